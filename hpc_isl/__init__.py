"""In silico labeling of high-content screening plates, from a vendor's folder to labels and tables.

On the command line: ``python -m hpc_isl.submit``. In a notebook: ``hpc_isl.open_plate`` and the other names
below, each loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_isl.api.models import Model, load_model
    from hpc_isl.api.plates import Field, Plate, open_plate
    from hpc_isl.api.runs import Run, read_table

__version__ = "0.1.0"
__all__ = ["Field", "Model", "Plate", "Run", "load_model", "open_plate", "read_table"]

_MODULES = {"Field": "plates", "Plate": "plates", "open_plate": "plates",
            "Model": "models", "load_model": "models", "Run": "runs", "read_table": "runs"}  # fmt: skip


def __getattr__(name: str) -> Any:
    # The command line must not wait for torch, zarr and pandas.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hpc_isl.api.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
