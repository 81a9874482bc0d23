"""annotate export: a folder of images and labels for a person to correct, which import reads again."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from hpc_isl.errors import many
from hpc_isl.files import check_new_folder
from hpc_isl.plates import store
from hpc_isl.plates.atomic_directory import atomic_directory
from hpc_isl.plates.plate import FieldKey
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.annotate.annotation import outside
from hpc_isl.stages.annotate.export_manifest import (
    MANIFEST,
    TABLE,
    ExportedField,
    content_hash,
    manifest_text,
    present_labels,
)
from hpc_isl.stages.annotate.label_files import COLUMNS, chosen, raise_together
from hpc_isl.stages.shared.following import word
from hpc_isl.stages.shared.shown_plane import shown_plane

IMAGEJ = ("uint8", "uint16", "float32")
README_NAME = "README.txt"
README = """\
{fields} fields of the plate {plate}, labels {labels}.

{stem}.image.tif    field {field} of well {well}, one page per channel: {channels}
                   (stains: the brightest of all planes at each pixel; label-free: the sharpest plane)
{stem}.labels.tif   its labels: 0 background, k the k-th object
{table}          the annotation boxes (pixels, ends excluded) in which every object is to be drawn
{manifest}      what the labels were when they were exported; leave it as it is

Correct the labels inside the boxes and save them under the same names: in napari File, Save Selected Layers.

    {napari}

What other programs save beside the images is imported too, in place of labels that were not changed: masks of
Cellpose ({stem}.image_cp_masks.png), ROIs of ImageJ ({stem}_RoiSet.zip), GeoJSON of QuPath ({stem}.geojson).

Then import them. What was changed becomes human, what was not stays what it is; add accept=true if
you have looked at all of it and the rest is right as it is.

    {import_line}
"""


class _Stopped(Exception):
    """Leaves the folder that was begun."""


def plan(recipe: AnnotateRecipe, index: store.Index) -> Plan:
    """Returns which fields would be exported.

    Raises:
        UserError: the folder holds something; a field that has times; a box outside a field.
    """
    keys, out = _fields_and_folder(recipe, index)
    labelled = [key for key in keys if recipe.labels in store.label_names(index.image(key))]
    messages = (
        f"{len(labelled)} of {len(keys)} fields have labels {recipe.labels!r}; the others get empty ones",
        f"{len(keys)} of {len(index.plate.fields)} fields of {recipe.plate} to {out}: "
        f"{many(len(index.plate.channels), 'channel')}, {_bytes(index, keys) / 1e6:.3g} MB uncompressed",
    )
    return Plan(recipe, messages, {index.plate.name: index.fingerprint}, (out,))


def export(recipe: AnnotateRecipe, index: store.Index, attempt: Attempt) -> None:
    """Writes the folder, which appears whole or not at all."""
    keys, out = _fields_and_folder(recipe, index)
    exported: dict[FieldKey, ExportedField] = {}
    if out.is_dir():
        out.rmdir()  # fails unless it is empty: nothing that came meanwhile is replaced
    with suppress(_Stopped), atomic_directory(out, _bytes(index, keys)) as folder:
        for number, key in enumerate(keys, 1):
            if attempt.stopping.is_set():
                attempt.log("stopped between fields; the folder is not there")
                raise _Stopped
            exported[key] = _export_field(recipe, index, key, folder)
            attempt.progress(number, len(keys), "fields")
        (folder / TABLE).write_text(_table_text(exported))
        # Import recognises the folder by its manifest, and by it which labels a person has changed.
        (folder / MANIFEST).write_text(manifest_text(index.plate.name, recipe.labels, exported))
        files = [shlex.quote(str(out / f"{_stem(keys[0])}.{kind}.tif")) for kind in ("image", "labels")]
        readme = README.format(
            fields=len(keys), plate=recipe.plate, labels=recipe.labels, table=TABLE, manifest=MANIFEST,
            channels=", ".join(channel.name for channel in index.plate.channels),
            stem=_stem(keys[0]), field=keys[0].name, well=keys[0].well,
            napari=f"napari {' '.join(files)}", import_line=_import_line(recipe),
        )  # fmt: skip
        (folder / README_NAME).write_text(readme)
    if len(exported) < len(keys):
        return
    labelled = sum(bool(field.origin) for field in exported.values())
    attempt.log(
        f"{many(len(keys), 'field')}, {labelled} of them with labels; README.txt says how to continue"
    )
    attempt.finish({
        "fields": len(keys),
        "with labels": labelled,
        "boxes": sum(len(field.boxes) for field in exported.values()),
        "made": {f"labels {recipe.labels!r} to correct": str(out)},
        "next": [_import_line(recipe)],
    })  # fmt: skip


def _fields_and_folder(recipe: AnnotateRecipe, index: store.Index) -> tuple[list[FieldKey], Path]:
    """Returns the fields and the folder, after a look at both."""
    out = recipe.out
    assert out is not None
    check_new_folder(out)
    keys = chosen(recipe.fields, index)
    problems = [
        f"{key} has {times} times; export is for fields of one time"
        for key in keys
        if (times := index.field(key).shape[0]) > 1
    ]
    raise_together(problems + outside(recipe.box, keys, index))
    return keys, out


def _bytes(index: store.Index, keys: list[FieldKey]) -> int:
    # The channels, and the labels.
    planes = len(index.plate.channels) + 1
    fields = [index.field(key) for key in keys]
    return sum(planes * int(np.prod(field.shape[-2:])) * np.dtype(field.dtype).itemsize for field in fields)


def _import_line(recipe: AnnotateRecipe) -> str:
    """Returns the command that imports the folder."""
    keys = f"{word('plate', str(recipe.plate))} {word('labels', recipe.labels)}"
    return f"python -m hpc_isl.submit annotate import {shlex.quote(str(recipe.out))} {keys}"


# ---------------------------------------------------------------- files


def _export_field(recipe: AnnotateRecipe, index: store.Index, key: FieldKey, folder: Path) -> ExportedField:
    """Writes the two images of a field and returns what the labels are."""
    present = present_labels(index, key, recipe.labels, recipe.box)
    names, pixels = _channels(index, key)
    _write_image(folder / f"{_stem(key)}.image.tif", pixels, names, index.plate.pixel_um)
    # napari takes whole numbers of 32 bits for labels, and any others for an image.
    labels = present.labels
    saved_labels = labels.astype(np.int32) if labels.max() < 2**31 else labels
    tifffile.imwrite(folder / f"{_stem(key)}.labels.tif", saved_labels, compression="zlib", metadata=None)
    return ExportedField(content_hash(labels[None]), present.version, present.origin, present.boxes)


def _channels(index: store.Index, key: FieldKey) -> tuple[list[str], NDArray[Any]]:
    """Returns names and pixels (c, y, x) of the channels of a field that were imaged at its first time."""
    images = {
        channel.name: pixels
        for number, channel in enumerate(index.plate.channels)
        if (pixels := shown_plane(index, key, number)) is not None
    }
    return list(images), np.stack(list(images.values()))


def _write_image(path: Path, pixels: NDArray[Any], names: list[str], pixel_um: float | None) -> None:
    """Writes a TIFF as ImageJ does, where ImageJ has such pixels: channels with names, pixels with a size."""
    if pixels.dtype.name not in IMAGEJ:
        tifffile.imwrite(path, pixels, photometric="minisblack", metadata={"axes": "CYX"})
        return
    size = {"unit": "um"} if pixel_um else {}
    tifffile.imwrite(
        path, pixels, imagej=True, resolution=(1 / pixel_um, 1 / pixel_um) if pixel_um else None,
        metadata={"axes": "CYX", "Labels": names, "mode": "grayscale", **size},
    )  # fmt: skip


def _table_text(exported: dict[FieldKey, ExportedField]) -> str:
    """Returns the CSV that `annotate import` reads: a line for each box."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(name for name in COLUMNS if name != "image")
    for key, field in exported.items():
        for box in field.boxes:
            writer.writerow([f"{_stem(key)}.labels.tif", key.well, key.name, key.acquisition, *box])
    return stream.getvalue()


def exported_files(keys: Iterable[FieldKey]) -> set[str]:
    """Returns the names of the files that an export of these fields writes."""
    images = {f"{_stem(key)}.{kind}.tif" for key in keys for kind in ("image", "labels")}
    return images | {TABLE, MANIFEST, README_NAME}


def _stem(key: FieldKey) -> str:
    return f"{key.well}_{key.image}"
