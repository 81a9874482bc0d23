"""A plate on disk: images are written whole, a plate is finished last, and read box by box.

Other packages import pixels, labels and index of a plate from here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates import adopted, metadata
from hpc_isl.plates.adopted import PixelSource
from hpc_isl.plates.atomic_directory import atomic_directory, translate_write_errors
from hpc_isl.plates.index import Index, finalise, image_path, open_plate, rebuild_index
from hpc_isl.plates.label_groups import annotation, fully_annotated, label_names, label_provenance
from hpc_isl.plates.labels import (
    LabelState,
    checksum,
    edited,
    edits_stay,
    former_stamp,
    label_bands,
    label_state,
    labels_checksum,
    read_label_box,
    read_labels,
    refuse_edited,
    stamp,
    write_labels,
    write_large_labels,
)
from hpc_isl.plates.plate import Field, Plate
from hpc_isl.plates.pyramid import count_levels, create_level, open_level, read_box, write_pyramid
from hpc_isl.plates.statistics import FieldStatistics, to_dict
from hpc_isl.recipes.plates import CodecRecipe

__all__ = [
    "Index", "LabelState", "annotation", "checksum", "edited", "edits_stay", "finalise", "former_stamp",
    "fully_annotated", "image_path", "label_bands", "label_names", "label_provenance", "label_state",
    "labels_checksum", "open_level", "open_plate", "read_box", "read_label_box", "read_labels",
    "rebuild_index", "refuse_edited", "stamp", "write_adopted_field", "write_field", "write_labels",
    "write_large_labels",
]  # fmt: skip


def write_field(
    plate_path: Path,
    plate: Plate,
    field: Field,
    pixels: NDArray[Any],
    statistics: FieldStatistics,
    codec: CodecRecipe,
    levels: int | None = None,
    *,
    inputs: str = "",
    problems: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Writes one field's image with its pyramid, complete or not at all.

    Args:
        pixels: (t, c, z, y, x), shape and dtype as `field` states them.
        statistics: of these pixels, from `statistics.measure`.
        levels: of the pyramid; None: until the longer edge is at most 256 pixels.
        inputs: digest of what the image was made of, kept in it, so that a later run can tell.
        problems: why planes of it are missing, kept in it too.
        overwrite: replace an existing image; it must not be in use.

    Raises:
        UserError: the disk is full, the image exists already, or the field's name is no folder name.
    """
    if not re.fullmatch(r"[A-Za-z0-9]+", field.key.name):
        raise UserError(f"field {str(field.key)!r}: the name of a field is made of letters and digits")
    if pixels.shape != field.shape or pixels.dtype.name != field.dtype:
        raise UserError(
            f"{field.key}: {field.dtype} pixels of shape {field.shape} are expected (t, c, z, y, x), "
            f"not {pixels.dtype.name} {pixels.shape}"
        )
    from hpc_isl.plates import ngff  # here, because readers of plates need not wait for it

    count = count_levels(field.shape, levels)
    stored = pixels if field.shape[0] > 1 else pixels[0]
    # Each level has a quarter of the pixels of the one before: all together 4/3 of the first.
    image, need = image_path(plate_path, plate, field.key), pixels.nbytes * 4 // 3
    with atomic_directory(image, need, overwrite) as folder:
        write_pyramid(folder, stored, metadata.axes(field), count, codec, "mean")
        ours = {
            "plate": metadata.image_facts(plate),
            "field": metadata.field_facts(field),
            "levels": count,
            "inputs": inputs,
            **({"problems": list(problems)} if problems else {}),
            "statistics": to_dict(statistics),
        }
        metadata.write_group(folder, ngff.attributes(ngff.image(plate, field, count, statistics)), ours)


def write_adopted_field(
    home: Path, plate: Plate, field: Field, source: PixelSource, statistics: FieldStatistics, inputs: str = ""
) -> None:
    """Writes what is known of a field whose pixels lie in another program's plate; its labels stay.

    The image of the plate of labels beside it is background: levels without a single chunk.

    Args:
        home: the folder beside the plate.
        source: where its pixels lie, with a hash of their files.
        statistics: of these pixels.
        inputs: digest of what was measured, so that a later run can tell.

    Raises:
        UserError: the image has another size than before, and has labels.
    """
    from hpc_isl.plates import ngff

    image = image_path(home, plate, field.key)
    if (image / "zarr.json").is_file() and label_names(image):
        former_shape = metadata.field_from(metadata.read_group(image)["hpc_isl"]["field"]).shape
        if former_shape[0] != field.shape[0] or former_shape[-2:] != field.shape[-2:]:
            raise UserError(
                f"{image}: has labels for an image of {former_shape} (t, c, z, y, x), "
                f"which is {field.shape} now; move them away first"
            )
    levels = len(source.levels)
    axes = tuple(axis for axis in metadata.axes(field) if axis != "c")
    t, _, _, y, x = field.shape
    with translate_write_errors(image):
        for level in range(levels):
            shape = (*((t,) if t > 1 else ()), 1, -(-y // 2**level), -(-x // 2**level))
            create_level(image / adopted.BACKGROUND, level, shape, np.dtype(np.uint32), axes, CodecRecipe())
        ours = {
            "plate": metadata.image_facts(plate),
            "field": metadata.field_facts(field),
            "levels": levels,
            "inputs": inputs,
            adopted.KEY: source.facts(),
            "statistics": to_dict(statistics),
        }
        group = ngff.background(plate, field, levels, adopted.BACKGROUND)
        metadata.write_group(image, ngff.attributes(group), ours)  # last: it says that the field is done
