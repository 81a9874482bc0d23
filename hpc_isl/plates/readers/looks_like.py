"""What a folder that no reader takes looks like, and what to try: from names, and one small file at most."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hpc_isl.errors import UserError
from hpc_isl.plates.readers import xml
from hpc_isl.plates.readers.folder import Folder

_FOLDERS = 100
_ABOVE = (
    ("harmony", re.compile(r"index(\.idx|\.ref)?\.xml|imageindex\.columbusidx\.xml", re.IGNORECASE)),
    ("imagexpress", re.compile(r".*\.htd", re.IGNORECASE)),
    ("cellvoyager", re.compile(r".*\.mlf", re.IGNORECASE)),
)


class _Look(NamedTuple):
    what: str
    names: re.Pattern[str]
    advice: str


def _look(what: str, names: str, advice: str) -> _Look:
    return _Look(what, re.compile(rf"(?:.*/)?(?:{names})", re.IGNORECASE), advice)


_TRY = "try convert patterns/{} source=… out=…"
_LOOKS = (
    _look(
        "a Yokogawa CQ1 measurement, whose metadata lie in companion OME-XML",
        r"MeasurementResult\.ome\.(?:xml|tiff?)",
        f"its images are read by their names: {_TRY.format('cq1.yaml')}",
    ),
    _look(
        "images of a Harmony export without their index",
        r"r\d\dc\d\df\d+p\d+-ch\d+[^/]*\.tiff?",
        f"put Index.idx.xml beside them, or {_TRY.format('harmony_names.yaml')}",
    ),
    _look(
        "half of a Columbus export",
        r"MeasurementIndex\.ColumbusIDX\.xml",
        "ImageIndex.ColumbusIDX.xml is missing, which names the images",
    ),
    _look(
        "CellVoyager images without their index",
        r"[^/]+_[A-P]\d\d_T\d+F\d+L\d+A\d+Z\d+C\d+\.(?:tiff?|png)",
        f"put MeasurementData.mlf beside them, or {_TRY.format('cellvoyager.yaml')}",
    ),
    _look(
        "an ImageXpress stack without what MetaXpress writes into its files",
        r"ZStep_\d+/[^/]*_[A-P]\d\d(?:_s\d+)?(?:_w\d+)?[^/]*\.tiff?",
        _TRY.format("imagexpress_stack.yaml"),
    ),
    _look(
        "ImageXpress images without what MetaXpress writes into its files",
        r"[^/]*_[A-P]\d\d(?:_s\d+(?:_w\d+)?|_w\d+)[^/]*\.tiff?",
        _TRY.format("imagexpress.yaml"),
    ),
    _look(
        "an IncuCyte export",
        r"[^/]+_[A-P]\d{1,2}_\d+_(?:\d+d\d\dh\d\dm|\d{4}y\d\dm\d\dd_\d\dh\d\dm)\.(?:tiff?|png)",
        _TRY.format("incucyte.yaml"),
    ),
    _look(
        "the in silico labeling study of 2018",
        r"[^/]*,channel,value-[^/]*,kind,value-ORIGINAL\.png",
        _TRY.format("isl_google_public.yaml"),
    ),
    _look(
        "a MetaMorph .nd series",
        r"[^/]+\.nd",
        "its images (NAME_w1DAPI_s1_t1.TIF) name no wells: give pattern.table, or pattern.regex with image",
    ),
    _look(
        "an instrument's own format ({ending})",
        r"[^/]+\.(?:czi|lif|lof|xlef|nd2|oib|oif|vsi|ims|flex|mrxs|svs|lsm|dv|vsseries)",
        "it is not read; export TIFF or OME-TIFF from the vendor's software",
    ),
)


def suggestion(below: Folder, recognise: Mapping[str, Callable[[Folder], bool]]) -> str:
    """Returns what the folder looks like and what to try, or "".

    Args:
        recognise: by the name of each reader, to look one folder further down with.
    """
    said = [*_zarr(below), *_around(below, recognise), *_companion(below)]
    if not said:
        said = next(([found] for look in _LOOKS if (found := _seen(below, look))), [])
    return " ".join(said)


def _seen(below: Folder, look: _Look) -> str:
    found = min((name for name in below.files if look.names.fullmatch(name)), default="")
    ending = Path(found).suffix.lower()
    return f"It looks like {look.what.format(ending=ending)}, see {found!r}: {look.advice}." if found else ""


def _zarr(below: Folder) -> Iterator[str]:
    """Hidden files are not listed, so that older OME-Zarr is known by its `.zgroup`."""
    if "zarr.json" in below.files or (below.root / ".zgroup").is_file():
        yield f"It is a Zarr, {below.root.name!r}, and no vendor's export: if it is an OME-Zarr plate,"
        yield "there is nothing to convert."


def _around(below: Folder, recognise: Mapping[str, Callable[[Folder], bool]]) -> Iterator[str]:
    """An export one folder further down, or up."""
    inner: dict[str, set[str]] = {}
    for name in below.files:
        first, _, rest = name.partition("/")
        if rest:
            inner.setdefault(first, set()).add(rest)
    for name in sorted(inner)[:_FOLDERS]:
        part = Folder(below.root / name, frozenset(inner[name]), frozenset())
        if readers := [reader for reader, known in recognise.items() if known(part)]:
            yield f"Its folder {name!r} looks like {readers[0]}: give source={part.root}."
            return
    try:
        beside = os.listdir(below.root.parent)
    except OSError:
        return
    for reader, index in _ABOVE:
        if found := sorted(name for name in beside if index.fullmatch(name)):
            yield f"Beside it lies {found[0]!r}, of {reader}: give source={below.root.parent}."
            return


def _companion(below: Folder) -> Iterator[str]:
    """Companion OME-XML: of a plate, as CQ1 writes it, or of single images, as VisiView does."""
    found = sorted(name for name in below.files if name.lower().endswith(".companion.ome"))
    if not found:
        return
    try:
        plates = any(xml.elements(below.root / found[0], {"Plate"}))
    except (UserError, OSError):
        plates = False
    if plates:
        yield f"It looks like a plate with companion OME-XML, as CQ1 writes it, see {found[0]!r}: "
        yield f"its images are read by their names: {_TRY.format('cq1.yaml')}, or pattern.regex."
    else:
        yield f"It looks like companion OME-XML of single images, as VisiView writes it, see {found[0]!r}: "
        yield "that is no plate, for no wells are named; give pattern.table, or pattern.regex with image."
