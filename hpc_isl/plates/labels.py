"""Labels of an image: integer images under `labels/`, who made them and in which boxes they are complete."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.mistake import Mistake, nearest
from hpc_isl.plates import metadata
from hpc_isl.plates.levels import (
    create_level,
    open_fresh,
    shard_boxes,
    write_coarser,
    write_pyramid,
    write_shards,
)
from hpc_isl.plates.partial import appears_whole, naming_unwritable
from hpc_isl.plates.plate import Field, Plate
from hpc_isl.recipes.plates import CodecRecipe

Box = tuple[int, int, int, int]
MOST_COLORS = 4096


def write_labels(
    image: Path,
    name: str,
    labels: NDArray[Any],
    *,
    origin: str,
    boxes: Sequence[Box],
    fingerprint: str = "",
    overwrite: bool = False,
) -> None:
    """Writes labels of an image under `labels/`, with as many levels as the image, as uint32.

    Args:
        labels: (y, x) integers of the image's size, or (t, y, x) where it has times; 0 background.
        origin: who made them: "human", "drafted", …
        boxes: (y0, x0, y1, x1) in pixels, ends excluded, in which every object is drawn.
        fingerprint: of what computed them, kept with them, so that two computations never mix.
        overwrite: replace labels of this name.
    """
    plate, field, levels = _facts(image)
    pixels = _checked(image, name, labels, field)
    outside = [box for box in boxes if not _inside(box, field.shape[-2:])]
    if outside:
        raise Mistake(
            f"{image}: annotation box {tuple(outside[0])} (y0, x0, y1, x1) is empty or lies outside the "
            f"image of {field.shape[-2]} × {field.shape[-1]} pixels"
        )
    if not overwrite and _find(image, name):
        raise Mistake(f"{image}: has labels {name!r} already")
    about = _About(image, name, plate, field, levels, origin, boxes, fingerprint)
    with appears_whole(_folder(image, name), pixels.nbytes, overwrite) as folder:
        write_pyramid(folder, pixels, about.axes, levels, CodecRecipe(), "stride")
        about.write(folder, _values(pixels))
    _list(image, name)


def write_large_labels(
    image: Path,
    name: str,
    times: Sequence[NDArray[np.uint32]],
    *,
    origin: str,
    fingerprint: str,
    overwrite: bool = False,
) -> None:
    """Labels of a whole image that memory does not hold, as `write_labels` writes those that it does.

    Args:
        times: (y, x) of each time, in files that are mapped to memory: they are read a shard at a time.
    """
    plate, field, levels = _facts(image)
    y, x = field.shape[-2:]
    about = _About(image, name, plate, field, levels, origin, [(0, 0, y, x)], fingerprint)
    with appears_whole(_folder(image, name), 4 * len(times) * y * x, overwrite) as folder:
        shape = (*((len(times),) if len(times) > 1 else ()), 1, y, x)
        store = create_level(folder, 0, shape, np.dtype(np.uint32), about.axes, CodecRecipe())
        for box in shard_boxes(store):
            time = box[0].start if len(times) > 1 else 0
            write_shards(store, box, times[time][box[-2:]].reshape(store[box].shape))
        write_coarser(folder, store, about.axes, levels, CodecRecipe())
        about.write(folder, range(1, 1 + min(MOST_COLORS, max(int(one.max()) for one in times))))
    _list(image, name)


@dataclass(frozen=True)
class _About:
    """What is said of labels beside their pixels."""

    image: Path
    name: str
    plate: Plate
    field: Field
    levels: int
    origin: str
    boxes: Sequence[Box]
    fingerprint: str

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(axis for axis in metadata.axes(self.field) if axis != "c")

    def write(self, folder: Path, values: Sequence[int]) -> None:
        """The group's metadata; `values`: labels that get a colour."""
        from hpc_isl.plates import ngff

        boxes = [list(map(int, box)) for box in self.boxes]
        ours: dict[str, Any] = {"name": self.name, "origin": self.origin, "boxes": boxes}
        ours |= {"fingerprint": self.fingerprint} if self.fingerprint else {}
        found = ngff.attributes(ngff.label_image(self.plate, self.field, self.levels, self.name))
        metadata.write_group(folder, ngff.colored(found, values), ours)


def read_labels(image: Path, name: str, level: int = 0) -> NDArray[np.uint32]:
    """Labels (y, x), or (t, y, x) where the image has times, at one level of the pyramid."""
    folder = _existing(image, name)
    pixels: NDArray[np.uint32] = open_fresh(folder, level).read().result()
    return pixels[..., 0, :, :]


def label_bands(image: Path, name: str, rows: int = 1024) -> Iterator[NDArray[np.uint32]]:
    """Labels at full resolution in bands of whole rows, from the first one on, time by time."""
    store = open_fresh(_existing(image, name), 0)
    for time in [store[number] for number in range(store.shape[0])] if store.rank == 4 else [store]:
        for first in range(0, time.shape[-2], rows):
            yield time[0, first : min(first + rows, time.shape[-2])].read().result()


def label_names(image: Path) -> list[str]:
    """Names of the image's labels, sorted."""
    return sorted(_named(image))


def annotation(image: Path, name: str) -> tuple[str, list[Box]]:
    """Who made the labels, and the boxes (y0, x0, y1, x1) in which every object is drawn."""
    ours = metadata.read_group(_existing(image, name))["hpc_isl"]
    return ours["origin"], [(box[0], box[1], box[2], box[3]) for box in ours["boxes"]]


def covers(image: Path, name: str) -> bool:
    """Whether the labels are complete in all of the image; those of other programs are taken to be."""
    boxes = metadata.read_group(_existing(image, name)).get("hpc_isl", {}).get("boxes")
    y, x = _facts(image)[1].shape[-2:]
    return boxes is None or [0, 0, y, x] in boxes


def stamp(image: Path, name: str) -> str:
    """What tells these labels from others: who made them, boxes, and their files, by name and size."""
    folder = _existing(image, name)
    found = hashlib.sha256(repr((name, metadata.read_group(folder).get("hpc_isl", {}))).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
    return found.hexdigest()


def read_label_box(image: Path, name: str, time: int, y: slice, x: slice) -> NDArray[np.uint32]:
    """A box (y, x) of the labels of one time at full resolution."""
    store = open_fresh(_existing(image, name), 0)
    box: NDArray[np.uint32] = (store[time] if store.rank == 4 else store)[0, y, x].read().result()
    return box


def computed_by(image: Path, name: str) -> tuple[str, str] | None:
    """Who made the labels and the fingerprint of the computation ("" for others); None: there are none."""
    folder = _find(image, name)
    if folder is None:
        return None
    ours = metadata.read_group(folder).get("hpc_isl", {})
    return str(ours.get("origin", "")), str(ours.get("fingerprint", ""))


def slug(name: str) -> str:
    """A folder name for any name: the name itself where it is plain, else a readable part and a hash."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        return name
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40]
    return f"{readable or 'labels'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _folder(image: Path, name: str) -> Path:
    return image / "labels" / slug(name)


def _existing(image: Path, name: str) -> Path:
    folder = _find(image, name)
    if folder is None:
        raise Mistake(f"{image}: has no labels {name!r}; {nearest(name, _named(image))}")
    return folder


def _find(image: Path, name: str) -> Path | None:
    """The folder of labels, if they are there: one of ours, or one of another program that is called so."""
    others = {folder.name: folder for folder in _folders(image)}
    own = _folder(image, name).name
    return others.get(own, others.get(name))


def _named(image: Path) -> dict[str, Path]:
    """Shown name -> folder; labels of other programs are shown by their folder's name."""
    return {_shown(folder): folder for folder in _folders(image)}


def _shown(folder: Path) -> str:
    name = str(metadata.read_group(folder).get("hpc_isl", {}).get("name", ""))
    return name if name and slug(name) == folder.name else folder.name


def _folders(image: Path) -> list[Path]:
    return sorted(path.parent for path in (image / "labels").glob("[!.]*/zarr.json"))


def _list(image: Path, name: str) -> None:
    """The labels group names every folder that is there, so it heals after a kill in between.

    Others may add labels to the image meanwhile, and list them; whoever writes the list last looks again.
    """
    from hpc_isl.plates import ngff

    there, listed = [folder.name for folder in _folders(image)], None
    while there != listed:
        group = ngff.attributes(ngff.labels_group(there))
        with naming_unwritable(image / "labels"):
            metadata.write_group(image / "labels", group, writer=slug(name))
        there, listed = [folder.name for folder in _folders(image)], there


def _facts(image: Path) -> tuple[Plate, Field, int]:
    ours = metadata.read_group(image)["hpc_isl"]
    sizes = {name: ours["plate"][name] for name in ("name", "pixel_um", "plane_um")}
    plate = Plate(rows=(), columns=(), channels=(), fields=(), **sizes)
    return plate, metadata.field_from(ours["field"]), ours["levels"]


def _checked(image: Path, name: str, labels: NDArray[Any], field: Field) -> NDArray[np.uint32]:
    times = field.shape[:1] if field.shape[0] > 1 else ()
    expected = times + field.shape[-2:]
    if labels.shape != expected:
        raise Mistake(f"{image}: labels {name!r} of shape {labels.shape} do not fit the image's {expected}")
    if labels.dtype.kind not in "iub":
        raise Mistake(f"{image}: labels {name!r} are {labels.dtype}; whole numbers are expected")
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= 2**32):
        raise Mistake(f"{image}: labels {name!r} go from {labels.min()} to {labels.max()}; 0 to 2^32-1 fit")
    return labels.astype(np.uint32)[..., None, :, :]


def _values(pixels: NDArray[np.uint32]) -> list[int]:
    """The labels there are, background apart; the first of very many, for each takes 70 bytes of metadata."""
    few = pixels.size and pixels.max() < 4 * pixels.size
    found = np.flatnonzero(np.bincount(pixels.ravel())) if few else np.unique(pixels)
    return [int(value) for value in found if value][:MOST_COLORS]


def _inside(box: Box, shape: tuple[int, ...]) -> bool:
    y0, x0, y1, x1 = box
    return 0 <= y0 < y1 <= shape[0] and 0 <= x0 < x1 <= shape[1]
