"""Steps that readers of exports with an index share: layout, type of pixels, files without a record."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from pathlib import Path, PurePosixPath

from hpc_isl.errors import UserError
from hpc_isl.plates import plate as plates
from hpc_isl.plates.planes import Header, header
from hpc_isl.plates.plate import LeftOut, row_name, well_position
from hpc_isl.plates.readers.folder import Folder

IMAGES = (".tif", ".tiff", ".png")


def layout(
    wells: set[str], rows: int, columns: int, origin: object
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns rows and columns as stated; where that cannot be, those of the smallest format for the wells.

    Raises:
        UserError: a well lies outside the plate that is stated.
    """
    if not (1 <= rows <= 32 and 1 <= columns <= 48):
        return plates.layout(wells)
    for well in sorted(wells):
        row, column = well_position(well)
        if row >= rows or column >= columns:
            raise UserError(f"{origin}: a plate of {rows} × {columns} wells, but there is well {well}")
    return tuple(map(row_name, range(rows))), tuple(f"{column + 1:02d}" for column in range(columns))


def probe(paths: Iterable[Path], absent: Container[Path], origin: object) -> Header:
    """Returns the header of the first file that can be read: indices do not state the type of pixels.

    Raises:
        UserError: there is none.
    """
    damaged = None
    for path in paths:
        if path not in absent:
            try:
                return header(path)
            except UserError as error:
                damaged = damaged or error
    raise damaged or UserError(f"{origin}: none of the images that it names is there")


def unnamed(
    below: Folder, named: Iterable[Path], kind: Callable[[str], str] = lambda _: "not in the index"
) -> list[LeftOut]:
    """Returns the images that the index does not name; `kind` tells why of a path below the folder."""
    known = set(named)
    found = (name for name in sorted(below.files) if PurePosixPath(name).suffix.lower() in IMAGES)
    return [LeftOut(below.root / name, kind(name)) for name in found if below.root / name not in known]
