"""Which reader understands a folder: the one that the recipe names, or the one that knows its layout.

For a folder that no reader takes, a guess is made from names, and one small file at most.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import Export
from hpc_isl.plates.readers import (
    acquisitions,
    cellomics,
    cellvoyager,
    gen5,
    harmony,
    imagexpress,
    imagexpress_ai,
    incell,
    ome_zarr,
    pattern,
    scanr,
)
from hpc_isl.plates.readers.folder import Folder, list_folder
from hpc_isl.plates.readers.vendor_facts import xml_elements
from hpc_isl.recipes.plates import ConvertRecipe


class Reader(NamedTuple):
    """A reader: whether it knows a folder, how it reads it, and the files that it is known by.

    `read` gets the folder, and whether channels of another size are to be resampled.
    """

    recognise: Callable[[Folder], bool]
    read: Callable[[Path, bool], Export]
    files: str


READERS = {
    "harmony": Reader(
        harmony.recognise,
        harmony.read,
        "Harmony or Columbus (Images/Index.idx.xml, Index.xml, ImageIndex.ColumbusIDX.xml)",
    ),
    "imagexpress": Reader(
        imagexpress.recognise,
        imagexpress.read,
        "ImageXpress or MetaXpress (PLATE.HTD, or images with their metadata)",
    ),
    "imagexpress_ai": Reader(imagexpress_ai.recognise, imagexpress_ai.read, "ImageXpress HCS.ai (.jdce)"),
    "cellvoyager": Reader(cellvoyager.recognise, cellvoyager.read, "CellVoyager (MeasurementData.mlf)"),
    "scanr": Reader(
        scanr.recognise, scanr.read, "scanR (data/metadata.ome.xml or experiment_descriptor.xml)"
    ),
    "cellomics": Reader(cellomics.recognise, cellomics.read, "Cellomics (PLATE_A01f00d0.C01)"),
    "ome_zarr": Reader(
        # Its channels are one array, of one size.
        ome_zarr.recognise,
        lambda folder, _: ome_zarr.read(folder),
        "OME-Zarr plates of other programs",
    ),
    "gen5": Reader(gen5.recognise, gen5.read, "Gen5 (A1_02_1_1_DAPI_001.tif with its metadata)"),
    "incell": Reader(incell.recognise, incell.read, "IN Cell Analyzer (.xdce)"),
}


def read(recipe: ConvertRecipe) -> Export:
    """Returns the export at `recipe.source`, by `recipe.reader`; the plate has `recipe.name` where given.

    Several sources are acquisitions of one plate: see `acquisitions.merged`.
    With `auto`, a recipe with a `pattern` is read by it, any other by the reader that knows the layout.

    Raises:
        UserError: there is no such folder, no known layout or several, or what the reader itself finds.
    """
    sources = recipe.source if isinstance(recipe.source, list) else [recipe.source]
    exports = [_read_source(recipe, source) for source in sources]
    export = exports[0]
    if len(exports) > 1:
        names = [source.name for source in sources]
        if len(set(names)) < len(names):
            names = [str(source) for source in sources]
        export = acquisitions.merged(exports, names, recipe.match == "name", recipe.resample)
    return replace(export, plate=replace(export.plate, name=recipe.name)) if recipe.name else export


def _read_source(recipe: ConvertRecipe, source: Path) -> Export:
    if not source.is_dir():
        raise UserError(f"source: {source} is not a folder")
    if recipe.reader == "pattern" or (recipe.reader == "auto" and recipe.pattern):
        if recipe.pattern is None:
            raise UserError("reader: pattern needs pattern.regex or pattern.table")
        return pattern.read(source, recipe.pattern, recipe.resample)
    return READERS[_recognised(source) if recipe.reader == "auto" else recipe.reader].read(
        source, recipe.resample
    )


def _recognised(folder: Path) -> str:
    if ome_zarr.is_plate(folder):  # before its chunks are listed
        return "ome_zarr"
    below = list_folder(folder)
    names = [name for name, reader in READERS.items() if reader.recognise(below)]
    if len(names) > 1:
        raise UserError(
            f"source: {folder} looks like {' and '.join(names)}; say which, as in reader={names[0]}"
        )
    if not names:
        advice = _suggestion(below) or _known_layouts(below)
        raise UserError(f"source: {folder} has no layout that is known. {advice}")
    return names[0]


def _known_layouts(below: Folder) -> str:
    names = sorted(entry.name for entry in below.root.iterdir())
    examples = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "") if names else "no files"
    layouts = ", ".join(reader.files for reader in READERS.values())
    return (
        f"Looked for: {layouts}. There are: {examples}. Other layouts are read by "
        "names or a table, with pattern.regex or pattern.table: see docs/plates.md, and configs/patterns"
    )


# ---------------------------------------------------------------- what an unknown folder looks like

_FOLDERS = 100  # looked into at most, because each is shown to every reader
_ABOVE = (
    ("harmony", re.compile(r"index(\.idx|\.ref)?\.xml|imageindex\.columbusidx\.xml", re.IGNORECASE)),
    ("imagexpress", re.compile(r".*\.htd", re.IGNORECASE)),
    ("cellvoyager", re.compile(r".*\.mlf", re.IGNORECASE)),
    ("incell", re.compile(r".*\.xdce", re.IGNORECASE)),
)


class _Look(NamedTuple):
    """A layout that no reader knows, by the name of one of its files below any folder."""

    layout: str
    names: str
    advice: str


_TRY = "try convert patterns/{} source=… out=…"
_LOOKS = (
    _Look(
        "a Yokogawa CQ1 measurement, whose metadata lie in companion OME-XML",
        r"MeasurementResult\.ome\.(?:xml|tiff?)",
        f"its images are read by their names: {_TRY.format('cq1.yaml')}",
    ),
    _Look(
        "images of a Harmony export without their index",
        r"r\d\dc\d\df\d+p\d+-ch\d+[^/]*\.tiff?",
        f"put Index.idx.xml beside them, or {_TRY.format('harmony_names.yaml')}",
    ),
    _Look(
        "half of a Columbus export",
        r"MeasurementIndex\.ColumbusIDX\.xml",
        "ImageIndex.ColumbusIDX.xml is missing, which names the images",
    ),
    _Look(
        "CellVoyager images without their index",
        r"[^/]+_A?[A-Z]\d\d_T\d+F\d+L\d+A\d+Z\d+C\d+\.(?:tiff?|png)",
        f"put MeasurementData.mlf beside them, or {_TRY.format('cellvoyager.yaml')}",
    ),
    _Look(
        "images of IN Cell Analyzer without their index",
        r"(?:[^/]*_)?A?[A-Z] - \d{1,2}\(fld \d+[^/]*\)\.tiff?",
        f"put the run's .xdce beside them, or {_TRY.format('incell.yaml')}",
    ),
    _Look(
        "an ImageXpress stack without what MetaXpress writes into its files",
        r"ZStep_\d+/[^/]*_[A-P]\d\d(?:_s\d+)?(?:_w\d+)?[^/]*\.tiff?",
        _TRY.format("imagexpress_stack.yaml"),
    ),
    _Look(
        "ImageXpress images without what MetaXpress writes into its files",
        r"[^/]*_[A-P]\d\d(?:_s\d+(?:_w\d+)?|_w\d+)[^/]*\.tiff?",
        _TRY.format("imagexpress.yaml"),
    ),
    _Look(
        "an IncuCyte export",
        r"[^/]+_[A-P]\d{1,2}_\d+_(?:\d+d\d\dh\d\dm|\d{4}y\d\dm\d\dd_\d\dh\d\dm)\.(?:tiff?|png)",
        _TRY.format("incucyte.yaml"),
    ),
    _Look(
        "the in silico labeling study of 2018",
        r"[^/]*,channel,value-[^/]*,kind,value-ORIGINAL\.png",
        _TRY.format("isl_google_public.yaml"),
    ),
    _Look(
        "a MetaMorph .nd series",
        r"[^/]+\.nd",
        "its images (NAME_w1DAPI_s1_t1.TIF) name no wells: give pattern.table, or pattern.regex with image",
    ),
    _Look(
        "an instrument's own format ({ending})",
        r"[^/]+\.(?:czi|lif|lof|xlef|nd2|oib|oif|vsi|ims|flex|mrxs|svs|lsm|dv|vsseries)",
        "it is not read; export TIFF or OME-TIFF from the vendor's software",
    ),
)


def _suggestion(below: Folder) -> str:
    """Returns what the folder looks like and what to try, or ""."""
    sentences = [*_neighbours(below), *_companion_advice(below)]
    # Hidden files are not listed, so that older OME-Zarr is known by its `.zgroup`.
    if "zarr.json" in below.files or (below.root / ".zgroup").is_file():
        zarr = f"It is a Zarr, {below.root.name!r}, and no vendor's export: if it is an OME-Zarr plate,"
        sentences = [zarr, "there is nothing to convert.", *sentences]
    if sentences:
        return " ".join(sentences)
    for look in _LOOKS:
        names = re.compile(rf"(?:.*/)?(?:{look.names})", re.IGNORECASE)
        if example := min((name for name in below.files if names.fullmatch(name)), default=""):
            layout = look.layout.format(ending=Path(example).suffix.lower())
            return f"It looks like {layout}, see {example!r}: {look.advice}."
    return ""


def _neighbours(below: Folder) -> Iterator[str]:
    """Yields where an export lies one folder further down, or up."""
    inner: dict[str, set[str]] = {}
    for name in below.files:
        inner_folder, _, inner_name = name.partition("/")
        if inner_name:
            inner.setdefault(inner_folder, set()).add(inner_name)
    for name in sorted(inner)[:_FOLDERS]:
        part = Folder(below.root / name, frozenset(inner[name]), frozenset())
        if reader_name := next((name for name, reader in READERS.items() if reader.recognise(part)), ""):
            source = shlex.quote(str(part.root))
            yield f"Its folder {part.root.name!r} looks like {reader_name}: give source={source}."
            return
    try:
        siblings = os.listdir(below.root.parent)
    except OSError:
        return
    for reader, index in _ABOVE:
        if files := sorted(name for name in siblings if index.fullmatch(name)):
            source = shlex.quote(str(below.root.parent))
            yield f"Beside it lies {files[0]!r}, of {reader}: give source={source}."
            return


def _companion_advice(below: Folder) -> Iterator[str]:
    """Yields advice on companion OME-XML: of a plate, as CQ1 writes it, or of images, as VisiView does."""
    files = sorted(name for name in below.files if name.lower().endswith(".companion.ome"))
    if not files:
        return
    try:
        plates = any(xml_elements(below.root / files[0], {"Plate"}))
    except (UserError, OSError):
        plates = False
    if plates:
        yield f"It looks like a plate with companion OME-XML, as CQ1 writes it, see {files[0]!r}: "
        yield f"its images are read by their names: {_TRY.format('cq1.yaml')}, or pattern.regex."
    else:
        yield f"It looks like companion OME-XML of single images, as VisiView writes it, see {files[0]!r}: "
        yield "that is no plate, for no wells are named; give pattern.table, or pattern.regex with image."
