"""In silico labeling of high-content screening plates, from a vendor's folder to labels and tables.

A plate flows through three libraries: ``plates`` (vendor folder to OME-Zarr), ``learning`` (crops to
networks) and ``objects`` (maps to labels and scores). ``stages`` call these, and ``cluster`` runs stages on a
laptop or a cluster. Start at ``python -m hpc_isl.submit``.
"""

__version__ = "0.1.0"
