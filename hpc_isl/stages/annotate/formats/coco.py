"""COCO JSON: one file about many images, with polygons or run lengths for each object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.stages.annotate.formats.jsonfile import load, ring
from hpc_isl.stages.annotate.formats.outlines import Mask, Outline, Shape, check_places, of_mask, of_polygons


def names(path: Path) -> list[str] | None:
    """The file names of its images; None: it is no COCO file."""
    content = load(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return None
    return list(_images(path)) if isinstance(content.get("annotations"), list) else None


def check(path: Path, part: str, shape: Shape) -> Sequence[str]:
    """The image has the field's size, and every object is an area in it."""
    image = _images(path)[part]
    size = (image.get("height"), image.get("width"))
    if size != shape[1:] or shape[0] != 1:
        raise UserError(f"{path}: {part} has {size} pixels, but the field has {shape} (t, y, x)")
    check_places(path, read(path, part, shape), shape)
    called = {one.get("id"): str(one.get("name")) for one in load(path).get("categories") or []}
    counts = Counter(called.get(one.get("category_id"), "?") for one in _annotations(path, part))
    if len(counts) < 2:
        return ()
    return [f"{part}: objects are {', '.join(f'{n} of category {kind}' for kind, n in counts.most_common())}"]


def read(path: Path, part: str, shape: Shape) -> list[Outline]:
    """The objects of one image, in the order of the file."""
    found = []
    for number, one in enumerate(_annotations(path, part), 1):
        name = f"annotation {one.get('id', number)}"
        try:
            found.append(_outline(name, one.get("segmentation"), shape[1:]))
        except UserError as mistake:
            raise UserError(f"{path}: {name} of {part} {mistake}") from None
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise UserError(f"{path}: {name} of {part} is damaged ({error})") from None
    return found


def _images(path: Path) -> dict[str, Mapping[str, Any]]:
    """By file name.

    Raises:
        UserError: two images of one name, or an image without one.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for image in load(path)["images"]:
        name = image.get("file_name") if isinstance(image, dict) else None
        if not name or str(name) in found:
            raise UserError(f"{path}: each image needs a file_name of its own; {name!r} is none")
        found[str(name)] = image
    return found


def _annotations(path: Path, part: str) -> list[Mapping[str, Any]]:
    image = _images(path)[part].get("id")
    return [one for one in load(path)["annotations"] if one.get("image_id") == image]


def _outline(name: str, segmentation: Any, size: tuple[int, int]) -> Outline:
    if not segmentation:
        raise UserError("has no outline: boxes alone are no objects")
    if isinstance(segmentation, list):
        polygons = [[ring(zip(flat[::2], flat[1::2], strict=True))] for flat in segmentation]
        return of_polygons(name, 0, polygons)
    if tuple(segmentation["size"]) != size:
        raise UserError(f"has a mask of {tuple(segmentation['size'])} pixels; the image has {size}")
    counts = segmentation["counts"]
    runs = _decompressed(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if sum(runs) != size[0] * size[1] or min(runs) < 0:
        raise UserError("is damaged: its run lengths do not fill the image")
    return of_mask(name, 0, size, partial(_mask, runs, size))


def _mask(runs: Sequence[int], size: tuple[int, int]) -> Mask:
    """Background and object in turns, down the columns."""
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(size[1], size[0]).T


def _decompressed(text: str) -> list[int]:
    """Run lengths as COCO's tools shorten them: 5 bits to a character; from the fourth on, differences."""
    runs: list[int] = []
    value = place = 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 31) << place
        place += 5
        if code & 32:
            continue
        value -= (1 << place) if code & 16 else 0
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = place = 0
    return runs
