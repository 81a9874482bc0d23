"""Which reader understands a folder: the one that the recipe names, or the one that knows its layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hpc_isl.mistake import Mistake
from hpc_isl.plates.plate import Export
from hpc_isl.plates.readers import harmony, pattern
from hpc_isl.recipes.plates import ConvertRecipe


def read(recipe: ConvertRecipe) -> Export:
    """The export at `recipe.source`, by `recipe.reader`; the plate is named `recipe.name` where given.

    With `auto`, a recipe with a `pattern` is read by it, and a folder with a Harmony index as Harmony.

    Raises:
        Mistake: there is no such folder, no layout that is known, or what the reader itself finds.
    """
    if not recipe.source.is_dir():
        raise Mistake(f"source: {recipe.source} is not a folder")
    export = _read(recipe)
    return replace(export, plate=replace(export.plate, name=recipe.name)) if recipe.name else export


def _read(recipe: ConvertRecipe) -> Export:
    if recipe.reader == "pattern" or (recipe.reader == "auto" and recipe.pattern):
        if recipe.pattern is None:
            raise Mistake("reader: pattern needs pattern.regex or pattern.table")
        return pattern.read(recipe.source, recipe.pattern)
    if recipe.reader == "harmony" or harmony.recognise(recipe.source):
        return harmony.read(recipe.source)
    raise Mistake(
        f"source: {recipe.source} has no layout that is known. "
        "Looked for: a Harmony index (Images/Index.idx.xml or Images/Index.xml). "
        f"There are: {_shown(recipe.source)}. Other layouts are read with pattern.regex or pattern.table"
    )


def _shown(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "") if names else "no files"
