"""Which reader understands a folder: the one that the recipe names, or the one that knows its layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import Export
from hpc_isl.plates.readers import (
    cellomics,
    cellvoyager,
    gen5,
    harmony,
    imagexpress,
    imagexpress_ai,
    looks_like,
    pattern,
    scanr,
)
from hpc_isl.plates.readers.folder import Folder, list_folder
from hpc_isl.recipes.plates import ConvertRecipe

RECOGNISE: dict[str, Callable[[Folder], bool]] = {
    "harmony": lambda below: harmony.recognise(below.root),
    "imagexpress": imagexpress.recognise,
    "imagexpress_ai": imagexpress_ai.recognise,
    "cellvoyager": cellvoyager.recognise,
    "scanr": scanr.recognise,
    "cellomics": cellomics.recognise,
    "gen5": gen5.recognise,
}
LOOKED_FOR = (
    "Harmony or Columbus (Images/Index.idx.xml, Index.xml, ImageIndex.ColumbusIDX.xml)",
    "ImageXpress or MetaXpress (PLATE.HTD, or images with their metadata)",
    "ImageXpress HCS.ai (.jdce)",
    "CellVoyager (MeasurementData.mlf)",
    "scanR (data/metadata.ome.xml or experiment_descriptor.xml)",
    "Cellomics (PLATE_A01f00d0.C01)",
    "Gen5 (A1_02_1_1_DAPI_001.tif with its metadata)",
)
READ: dict[str, Callable[[Path], Export]] = {
    "harmony": harmony.read,
    "imagexpress": imagexpress.read,
    "imagexpress_ai": imagexpress_ai.read,
    "cellvoyager": cellvoyager.read,
    "scanr": scanr.read,
    "cellomics": cellomics.read,
    "gen5": gen5.read,
}


def read(recipe: ConvertRecipe) -> Export:
    """The export at `recipe.source`, by `recipe.reader`; the plate is named `recipe.name` where given.

    With `auto`, a recipe with a `pattern` is read by it, any other by the reader that knows the layout.

    Raises:
        UserError: there is no such folder, no known layout or several, or what the reader itself finds.
    """
    if not recipe.source.is_dir():
        raise UserError(f"source: {recipe.source} is not a folder")
    export = _read(recipe)
    return replace(export, plate=replace(export.plate, name=recipe.name)) if recipe.name else export


def _read(recipe: ConvertRecipe) -> Export:
    if recipe.reader == "pattern" or (recipe.reader == "auto" and recipe.pattern):
        if recipe.pattern is None:
            raise UserError("reader: pattern needs pattern.regex or pattern.table")
        return pattern.read(recipe.source, recipe.pattern)
    return READ[_recognised(recipe.source) if recipe.reader == "auto" else recipe.reader](recipe.source)


def _recognised(folder: Path) -> str:
    below = list_folder(folder)
    found = [name for name, recognise in RECOGNISE.items() if recognise(below)]
    if len(found) > 1:
        raise UserError(
            f"source: {folder} looks like {' and '.join(found)}; say which, as in reader={found[0]}"
        )
    if not found:
        raise UserError(f"source: {folder} has no layout that is known. {_advice(below)}")
    return found[0]


def _advice(below: Folder) -> str:
    if suggestion := looks_like.suggestion(below, RECOGNISE):
        return suggestion
    return (
        f"Looked for: {', '.join(LOOKED_FOR)}. There are: {_shown(below.root)}. Other layouts are read by "
        "names or a table, with pattern.regex or pattern.table: see docs/plates.md, and configs/patterns"
    )


def _shown(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "") if names else "no files"
