"""Label images as they lie on disk, ours and those of other programs: names, who made them, and pixels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from hpc_isl.errors import UserError, nearest
from hpc_isl.plates import adopted, metadata, nodes, packed
from hpc_isl.plates.plate import Field, Plate
from hpc_isl.plates.pyramid import open_fresh

Box = tuple[int, int, int, int]
OTHERS = "other program"  # who made labels of which nothing more is known
BAND = 1024  # rows that are read at once


def label_names(image: Path) -> list[str]:
    """Returns the names of the image's labels, sorted."""
    return sorted(named(image))


def annotation(image: Path, name: str) -> tuple[str, list[Box]]:
    """Returns who made the labels, and the boxes (y0, x0, y1, x1) in which every object is drawn.

    Labels of other programs are taken to be complete in all of the image.
    """
    ours = noted(existing(image, name))
    boxes = ours["boxes"] if "boxes" in ours else [(0, 0, *facts(image)[1].shape[-2:])]
    return str(ours.get("origin", OTHERS)), [(box[0], box[1], box[2], box[3]) for box in boxes]


def fully_annotated(image: Path, name: str) -> bool:
    """Returns whether the labels are complete in all of the image."""
    return (0, 0, *facts(image)[1].shape[-2:]) in annotation(image, name)[1]


class LabelProvenance(NamedTuple):
    """Who made labels, and the fingerprint of the computation; "" for labels that no run computed."""

    origin: str
    fingerprint: str


def label_provenance(image: Path, name: str) -> LabelProvenance | None:
    """Returns where the labels come from; None: there are none."""
    folder = find(image, name)
    if folder is None:
        return None
    ours = noted(folder)
    return LabelProvenance(str(ours.get("origin", "")), str(ours.get("fingerprint", "")))


# ---------------------------------------------------------------- where they lie


@lru_cache
def slug(name: str) -> str:
    """Returns a folder name for any name: itself where it is plain, else a readable part and a hash."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        return name
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40]
    return f"{readable or 'labels'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def label_folder(image: Path, name: str) -> Path:
    """Returns the folder that our labels of this name have, whether they exist or not."""
    return labels_home(image) / slug(name)


def labels_home(image: Path) -> Path:
    """Returns the folder into which labels of an image are written.

    Of a packed plate it lies beside it, of an adopted one in the plate itself where that was asked for.
    """
    return adopted.labels_inside(image) or packed.written_beside(image) / "labels"


def label_depth(image: Path) -> int:
    """Returns the number of levels that labels get: as many as the image has, as the specification asks."""
    if (inside := adopted.labels_inside(image)) is None:
        return facts(image)[2]
    return len(nodes.ome_attributes(inside.parent)["multiscales"][0]["datasets"])


def _label_folders(image: Path) -> list[Path]:
    """Returns the folders of the image's labels; the first holds what counts where both have one name."""
    home = labels_home(image)
    return [home] if home == image / "labels" else [home, image / "labels"]


def existing(image: Path, name: str) -> Path:
    """Returns the folder of labels; raises a `UserError` where there are none."""
    folder = find(image, name)
    if folder is None:
        raise UserError(f"{image}: has no labels {name!r}; {nearest(name, named(image))}")
    return folder


def find(image: Path, name: str) -> Path | None:
    """Returns the folder of labels, ours or of another program that calls them so; None: there are none."""
    for labels in _label_folders(image):
        if packed.is_file((folder := labels / slug(name)) / "zarr.json"):
            return folder
        if name != slug(name) and name in _possible_paths(labels) and _is_label_image(labels / name):
            return labels / name
    return _labels_of_adopted(image).get(name)


def named(image: Path) -> dict[str, Path]:
    """Returns name -> folder; labels of other programs are named by their path below `labels`."""
    folders = _labels_of_adopted(image)
    for labels in reversed(_label_folders(image)):
        for path in label_paths(labels):
            folder = labels / path
            name = str(noted(folder).get("name", ""))
            folders[name if name and slug(name) == folder.name else path] = folder
    return folders


def _labels_of_adopted(image: Path) -> dict[str, Path]:
    """Returns name -> folder of the labels in another program's image, where that holds the pixels."""
    image_folder = adopted.image_folder(image)
    labels = image_folder / "labels" if image_folder else None
    if labels is None or labels == labels_home(image) or not nodes.is_group(labels):
        return {}
    # Only what the list names: the folders that it does not name may be anything.
    paths = _listed_paths(nodes.ome_attributes(labels))
    groups = {path: labels / path for path in sorted(paths) if nodes.is_group(labels / path)}
    return {path: folder for path, folder in groups.items() if "multiscales" in nodes.ome_attributes(folder)}


def label_paths(labels: Path, known: Collection[str] = ()) -> list[str]:
    """Returns where label images lie below `labels`: directly, or deeper down where its list names them.

    `known`: paths known to hold label images, whose metadata (70 bytes a coloured label) are not parsed.
    """
    return [
        path
        for path in sorted(_possible_paths(labels))
        if (path in known and packed.is_file(labels / path / "zarr.json")) or _is_label_image(labels / path)
    ]


def _possible_paths(labels: Path) -> set[str]:
    paths = set(packed.folders_in(labels))
    return paths | (_listed_paths(_part(labels, "ome")) if packed.is_file(labels / "zarr.json") else set())


def _is_label_image(folder: Path) -> bool:
    return packed.is_file(folder / "zarr.json") and "multiscales" in _part(folder, "ome")


def listed_labels(labels: Path) -> list[str]:
    """Returns the list of an image's labels as it stands; empty where there is none."""
    if not packed.is_file(labels / "zarr.json"):
        return []
    return [str(path) for path in _part(labels, "ome").get("labels") or ()]


def _listed_paths(content: Mapping[str, Any]) -> set[str]:
    # Other programs wrote the list: a path that leads elsewhere than below is not followed.
    return {
        path
        for path in map(str, content.get("labels") or ())
        if not any(part.startswith(".") or not part or "\\" in part for part in path.split("/"))
    }


def noted(folder: Path) -> dict[str, Any]:
    """Returns what we wrote beside the specification's metadata; empty for labels of other programs."""
    if packed.is_file(folder / ".zattrs") and not packed.is_file(folder / "zarr.json"):
        return {}  # of zarr 2, which we never write
    return _part(folder, "hpc_isl")


def _part(folder: Path, name: str) -> dict[str, Any]:
    # Another program may have written something else under this name.
    content = metadata.read_group(folder).get(name)
    return content if isinstance(content, dict) else {}


def facts(image: Path) -> tuple[Plate, Field, int]:
    """Returns plate (its sizes alone), field and number of levels of an image, as the image itself states."""
    ours = metadata.read_group(image).get("hpc_isl")
    if not ours:
        raise UserError(f"{image}: is no image that convert has written, or another program has replaced it")
    sizes = {name: ours["plate"][name] for name in ("name", "pixel_um", "plane_um")}
    plate = Plate(rows=(), columns=(), channels=(), fields=(), **sizes)
    return plate, metadata.field_from(ours["field"]), ours["levels"]


# ---------------------------------------------------------------- pixels


@dataclass(frozen=True)
class LabelPixels:
    """One level of a label image: whatever axes it has on disk, it is read as uint32 (y, x).

    Attributes:
        folder: of the label image.
        level: of its array.
        store: (t, z, y, x).
    """

    folder: Path
    level: Path
    store: ts.TensorStore

    @property
    def shape(self) -> tuple[int, int, int]:
        """Times, height and width."""
        times, _, height, width = self.store.shape
        return times, height, width

    def read(self, time: int, y: slice, x: slice) -> NDArray[np.uint32]:
        """Returns a box (y, x) of one time; slices may have a step.

        Raises:
            UserError: pixels do not decode, are no labels, or lie over each other in several planes.
        """
        try:
            stack = np.asarray(self.store[time, :, y, x].read().result())
        except ValueError as error:
            raise UserError(f"{self.folder}: its pixels cannot be read: {error}") from None
        flat: NDArray[Any] = stack.max(0) if len(stack) > 1 else stack[0]
        # Planes become one where no object lies over another: then nothing has to be guessed.
        if len(stack) > 1 and (covered := int(((stack != 0) & (stack != flat)).any(0).sum())):
            raise UserError(
                f"{self.folder}: its {len(stack)} planes show different objects at {covered:,} pixels; "
                "labels of one plane are needed: keep one plane, or project them"
            )
        if np.can_cast(flat.dtype, np.uint32) or not flat.size:
            return flat.astype(np.uint32, copy=False)
        low, high = int(flat.min()), int(flat.max())
        if low < 0 or high >= 2**32:
            raise UserError(f"{self.folder}: holds values from {low} to {high}; labels go from 0 to 2^32 - 1")
        return flat.astype(np.uint32)

    def bands(self, rows: int = BAND) -> Iterator[NDArray[np.uint32]]:
        """Yields all of it in bands of whole rows, from the first one on, time by time."""
        times, height, _ = self.shape
        for time in range(times):
            for first in range(0, height, rows):
                yield self.read(time, slice(first, min(first + rows, height)), slice(None))


def open_labels(folder: Path, number: int = 0) -> LabelPixels:
    """Returns the pixels of the label image in a folder: full resolution, or the level of this number.

    Raises:
        UserError: it is no label image, has axes that fit none, or its array cannot be opened.
    """
    levels, axes = label_levels(folder)
    # A chunk that is missing is background: most programs do not write empty ones.
    store = open_fresh(folder, levels[number], fill_missing=True)
    if np.dtype(store.dtype.numpy_dtype).kind not in "iub":
        raise UserError(f"{folder}: holds {store.dtype.name}; labels are whole numbers")
    if len(axes) != store.rank or len(set(axes)) < len(axes) or not {"y", "x"} <= set(axes) <= set("tczyx"):
        raise UserError(
            f"{folder}: has the axes {', '.join(axes)} for {store.rank} dimensions; y and x are needed, "
            "t and z are possible"
        )
    store = store.transpose([axes.index(axis) for axis in "tczyx" if axis in axes])
    leading: tuple[Any, ...] = (slice(None),) * ("t" in axes)  # t stays before what is taken away or added
    if "c" in axes:
        if store.shape[len(leading)] != 1:
            raise UserError(f"{folder}: has {store.shape[len(leading)]} channels; labels have none")
        store = store[(*leading, 0)]
    store = store if "z" in axes else store[(*leading, ts.newaxis)]
    return LabelPixels(folder, folder / levels[number], store if leading else store[ts.newaxis])


def label_levels(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the paths of a label image's levels, the finest first, and the names of its axes."""
    try:
        multiscale = nodes.ome_attributes(folder)["multiscales"][0]
        levels = [str(level["path"]) for level in multiscale["datasets"]]
        axes = [str(axis["name"]) for axis in multiscale["axes"]]
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{folder}: is no label image of OME-Zarr ({error!r})") from None
    if not levels:
        raise UserError(f"{folder}: is a label image without levels")
    return levels, axes
