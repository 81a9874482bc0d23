"""How much memory a field takes: decides how many processes a machine holds, and what runs beside what."""

from __future__ import annotations

from hpc_isl.learning.network.contract import Contract
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.stages.segment.inputs import Models, scale_of, view_of

PROCESS = 900 * 2**20  # Python with torch, the network, and what libraries keep
HELD = 24  # bytes a pixel of each further time of a field: its prediction, stain and labels
LABELLING = 60  # bytes a pixel of level 0: prediction and its interpolation, flood, labels, features


def needed(recipe: SegmentRecipe, models: Models, index: Index, key: FieldKey) -> int:
    """Bytes at most while a field is computed, beside what the process holds anyway."""
    times, *_, y, x = index.field(key).shape
    measured = 4 * (len(index.plate.channels) if recipe.measure is None else len(recipe.measure))
    whole = min(y * x, recipe.max_pixels_in_memory) * (LABELLING + measured)
    held = 0 if y * x > recipe.max_pixels_in_memory else (times - 1) * y * x * HELD
    return whole + held + max(_forward(recipe, contract, index, key) for contract in models.contracts)


def _forward(recipe: SegmentRecipe, contract: Contract, index: Index, key: FieldKey) -> int:
    """Bytes of one forward pass."""
    from hpc_isl.learning.inference.predict import footprint

    of = recipe.predict or contract.predict
    try:
        shape = scale_of(recipe, view_of(recipe, contract), index, key).shape
    except ValueError:  # it will be lost, and takes nothing
        return 0
    pixels = shape[0] * shape[1]
    if of.tile is not None and max(shape) > of.tile:
        pixels = of.batch * (of.tile + 2 * of.halo) ** 2
    return footprint(contract.net, pixels)
