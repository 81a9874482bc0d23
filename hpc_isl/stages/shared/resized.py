"""Models that were trained on plates whose pixels, as was found later, are of another size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hpc_isl.learning.network.contract import Contract
from hpc_isl.metadata_changes import changed_since, changes_of
from hpc_isl.plates.store import open_plate


def resized_since(contract: Contract) -> Iterator[tuple[str, float | None]]:
    """`metadata of P01 changed: pixel_um: 325 -> 0.325`, for each plate that a model was trained on where
    that is so: the size that its contract says it sees is wrong. With it the size of the pixels that it did
    see, in micrometres. Names of channels are translated elsewhere.
    """
    for plate in map(Path, contract.recipe.get("plates", [])):
        lines = changed_since(changes_of(plate), contract.plates.values())
        if any(line.startswith("pixel_um:") for line in lines):
            size = open_plate(plate).plate.pixel_um
            seen = None if size is None else size * 2**contract.view.level
            yield f"metadata of {plate.stem} changed: {'; '.join(lines)}", seen
