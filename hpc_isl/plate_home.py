"""Where index and labels of a plate lie: in the plate, or beside one that another program has written.

A module of the base, because the cluster locks plates, and knows which runs read one, without reading any.
"""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".hpc_isl"
PACKED = ".ozx"  # the name of a packed plate, one file, ends so


def beside(plate: Path) -> Path:
    """Returns `PLATE.hpc_isl` beside `PLATE.zarr`, `PLATE.ozx` or `PLATE`, whether it exists or not."""
    # Of other endings nothing is cut off: plates may be called by dates, 2026.11.29.
    name = plate.name.removesuffix(".zarr").removesuffix(PACKED)
    return plate.with_name(name + SUFFIX) if plate.name else plate


def home_of(plate: Path) -> Path:
    """Returns the folder that holds index and labels: `PLATE.hpc_isl` of an adopted plate, else the plate."""
    if plate.suffix == PACKED:
        return plate  # the folder beside it holds its labels and nothing else
    home = beside(plate)
    # A plate of ours has an index of its own from the moment that its conversion begins.
    adopted = (home / "zarr.json").is_file() and not (plate / "index").is_dir()
    return home if adopted else plate
