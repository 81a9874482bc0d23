"""In silico labeling of high-content screening plates, from a vendor's folder to labels and tables.

A plate flows through the package as data flows through a house: ``plates`` (vendor folder to
OME-Zarr), ``learning`` (crops to networks), ``objects`` (maps to labels and scores), a corridor of
``stages`` and a gatehouse, ``cluster`` and ``submit``. Start at ``python -m hpc_isl.submit``.
"""

__version__ = "0.1.0"
