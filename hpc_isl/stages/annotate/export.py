"""Fields lent to a person: a folder of images and labels that napari opens, and that import brings back."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates import store
from hpc_isl.plates.atomic_directory import atomic_directory
from hpc_isl.plates.plate import Field, FieldKey
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.annotate.drawn import whole
from hpc_isl.stages.annotate.export_manifest import MANIFEST, TABLE, ExportedField, content, manifest, version
from hpc_isl.stages.annotate.field_names import COLUMNS, Box, raise_together
from hpc_isl.stages.annotate.label_files import chosen
from hpc_isl.stages.shared.following import word

IMAGEJ = ("uint8", "uint16", "float32")
README_NAME = "README.txt"
README = """\
{fields} fields of the plate {plate}, labels {labels}.

B03_1.image.tif    field 1 of well B03, one page per channel: {channels}
                   (stains: the brightest of all planes at each pixel; label-free: the sharpest plane)
B03_1.labels.tif   its labels: 0 background, k the k-th object
{table}          the annotation boxes (pixels, ends excluded) in which every object is to be drawn
{manifest}      what the labels were when they were exported; leave it as it is

Correct the labels inside the boxes and save them under the same names: in napari File, Save Selected Layers.

    {napari}

What other programs save beside the images comes back too, in place of labels that were not changed: masks of
Cellpose (B03_1.image_cp_masks.png), ROIs of ImageJ (B03_1_RoiSet.zip), GeoJSON of QuPath (B03_1.geojson).

Then bring them back. What was changed becomes human, what was not stays what it is; add accept=true if
you have looked at all of it and the rest is right as it is.

    {bring}
"""


class _Stopped(Exception):
    """Leaves the folder that was begun."""


def plan(recipe: AnnotateRecipe, index: store.Index) -> Plan:
    """Which fields would be lent.

    Raises:
        UserError: the folder holds something; a field that has times; a box outside a field.
    """
    keys = _checked(recipe, index)
    there = [key for key in keys if recipe.labels in store.label_names(index.image(key))]
    messages = (
        f"{len(there)} of {len(keys)} fields have labels {recipe.labels!r}; the others get empty ones",
        f"{len(keys)} of {len(index.plate.fields)} fields of {recipe.plate} to {recipe.out}: "
        f"{len(index.plate.channels)} channels, {_bytes(index, keys) / 1e6:.3g} MB before compression",
    )
    assert recipe.out is not None
    return Plan(recipe, messages, {index.plate.name: index.fingerprint}, (recipe.out,))


def export(recipe: AnnotateRecipe, index: store.Index, attempt: Attempt) -> None:
    """Writes the folder; it is there whole afterwards, or not at all."""
    keys, out = _checked(recipe, index), recipe.out
    assert out is not None
    lent: dict[FieldKey, ExportedField] = {}
    if out.is_dir():
        out.rmdir()  # it is empty: nothing that came meanwhile is replaced
    with suppress(_Stopped), atomic_directory(out, _bytes(index, keys)) as folder:
        for number, key in enumerate(keys, 1):
            if attempt.stopping.is_set():
                attempt.log("stopped between fields; the folder is not there")
                raise _Stopped
            lent[key] = _lend(recipe, index, key, folder)
            attempt.progress(number, len(keys), "fields")
        (folder / TABLE).write_text(_table(lent))
        (folder / MANIFEST).write_text(manifest(index.plate.name, recipe.labels, lent))
        (folder / README_NAME).write_text(_readme(recipe, index, keys))
    if len(lent) < len(keys):
        return
    drawn = sum(bool(one.origin) for one in lent.values())
    attempt.log(f"{len(keys)} fields, {drawn} of them with labels; README.txt says how to go on")
    attempt.finish({
        "fields": len(keys),
        "with labels": drawn,
        "boxes": sum(len(one.boxes) for one in lent.values()),
        "made": {f"labels {recipe.labels!r} to correct": str(out)},
        "next": [_bring(recipe)],
    })  # fmt: skip


def _checked(recipe: AnnotateRecipe, index: store.Index) -> list[FieldKey]:
    out = recipe.out
    assert out is not None
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"out: {out} holds something already; name a new or an empty folder")
    keys = chosen(recipe.fields, index)
    raise_together([problem for key in keys for problem in _problems(index.field(key), recipe.box)])
    return keys


def _problems(field: Field, box: Box | None) -> Iterator[str]:
    times, height, width = field.shape[0], *field.shape[-2:]
    if times > 1:
        yield f"{field.key} has {times} times; export is for fields of one time"
    if box and not (box[0] < box[2] <= height and box[1] < box[3] <= width):
        yield f"{field.key}: box {box} (y0, x0, y1, x1) is empty or leaves the {height} × {width} pixels"


def _bytes(index: store.Index, keys: list[FieldKey]) -> int:
    planes = len(index.plate.channels) + 1
    return sum(
        planes * int(np.prod(index.field(key).shape[-2:])) * np.dtype(index.field(key).dtype).itemsize
        for key in keys
    )


# ---------------------------------------------------------------- one field


def _lend(recipe: AnnotateRecipe, index: store.Index, key: FieldKey, folder: Path) -> ExportedField:
    """Writes its two images; what the labels are."""
    image, field = index.image(key), index.field(key)
    labels, origin, boxes = np.zeros(field.shape[-2:], np.uint32), "", whole(field)
    base = version(image, recipe.labels)
    if base:
        labels = store.read_labels(image, recipe.labels)
        origin, given = store.annotation(image, recipe.labels)
        boxes = tuple(given) or boxes
    if recipe.box and origin != "human":
        boxes = (recipe.box,)
    names, pixels = _image(index, key)
    _write_image(folder / f"{_stem(key)}.image.tif", pixels, names, index.plate.pixel_um)
    # napari takes whole numbers of 32 bits for labels, and any others for an image.
    shown = labels.astype(np.int32) if labels.max() < 2**31 else labels
    tifffile.imwrite(folder / f"{_stem(key)}.labels.tif", shown, compression="zlib", metadata=None)
    return ExportedField(content(labels[None]), base, origin, boxes)


def _image(index: store.Index, key: FieldKey) -> tuple[list[str], NDArray[Any]]:
    """The channels of the field that were imaged at its first time, one plane (y, x) of each."""
    found = {}
    for number, channel in enumerate(index.plate.channels):
        facts = index.statistics[key].planes.items()
        focus = {z: fact.focus for (t, c, z), fact in facts if (t, c) == (0, number)}
        if not focus:
            continue
        sharpest = min(focus, key=lambda z: (-focus[z], z))
        planes = sorted(focus) if channel.fluorescent else [sharpest]
        found[channel.name] = store.read_box(
            index.image(key), 0, 0, number, planes, slice(None), slice(None)
        ).max(0)
    return list(found), np.stack(list(found.values()))


def _write_image(path: Path, pixels: NDArray[Any], names: list[str], pixel_um: float | None) -> None:
    """As ImageJ writes it, where ImageJ has such pixels: channels with names, pixels with a size."""
    if pixels.dtype.name not in IMAGEJ:
        tifffile.imwrite(path, pixels, photometric="minisblack", metadata={"axes": "CYX"})
        return
    size = {"unit": "um"} if pixel_um else {}
    tifffile.imwrite(
        path, pixels, imagej=True, resolution=(1 / pixel_um, 1 / pixel_um) if pixel_um else None,
        metadata={"axes": "CYX", "Labels": names, "mode": "grayscale", **size},
    )  # fmt: skip


def written(keys: Iterable[FieldKey]) -> set[str]:
    """Names of the files that an export of these fields writes."""
    images = {f"{_stem(key)}.{kind}.tif" for key in keys for kind in ("image", "labels")}
    return images | {TABLE, MANIFEST, README_NAME}


def _stem(key: FieldKey) -> str:
    return f"{key.well}_{key.image}"


# ---------------------------------------------------------------- what lies beside them


def _table(lent: dict[FieldKey, ExportedField]) -> str:
    """As `annotate import` reads it: a line for each box."""
    columns = [name for name in COLUMNS if name != "image"]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)
    for key, one in lent.items():
        for box in one.boxes:
            rows.writerow([f"{_stem(key)}.labels.tif", key.well, key.name, key.acquisition, *box])
    return text.getvalue()


def _readme(recipe: AnnotateRecipe, index: store.Index, keys: list[FieldKey]) -> str:
    assert recipe.out is not None
    first = [shlex.quote(str(recipe.out / f"{_stem(keys[0])}.{kind}.tif")) for kind in ("image", "labels")]
    return README.format(
        fields=len(keys), plate=recipe.plate, labels=recipe.labels, table=TABLE, manifest=MANIFEST,
        channels=", ".join(channel.name for channel in index.plate.channels),
        napari=f"napari {' '.join(first)}", bring=_bring(recipe),
    )  # fmt: skip


def _bring(recipe: AnnotateRecipe) -> str:
    """The command that brings the folder back."""
    words = [word("plate", str(recipe.plate)), word("labels", recipe.labels)]
    return f"python -m hpc_isl.submit annotate import {shlex.quote(str(recipe.out))} {' '.join(words)}"
