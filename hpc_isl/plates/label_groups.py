"""The groups that hold an image's labels: where they lie, what they are called, who made them.

Ours have notes beside the specification's metadata; those of other programs have none, and nothing is taken
for granted of them.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError, nearest
from hpc_isl.plates import metadata
from hpc_isl.plates.plate import Field, Plate

Box = tuple[int, int, int, int]
OTHERS = "other program"  # who made labels of which nothing more is known


def label_names(image: Path) -> list[str]:
    """Names of the image's labels, sorted."""
    return sorted(named(image))


def annotation(image: Path, name: str) -> tuple[str, list[Box]]:
    """Who made the labels, and the boxes (y0, x0, y1, x1) in which every object is drawn.

    Labels of other programs are taken to be complete in all of the image.
    """
    ours = noted(existing(image, name))
    boxes = ours["boxes"] if "boxes" in ours else [(0, 0, *facts(image)[1].shape[-2:])]
    return str(ours.get("origin", OTHERS)), [(box[0], box[1], box[2], box[3]) for box in boxes]


def fully_annotated(image: Path, name: str) -> bool:
    """Whether the labels are complete in all of the image; those of other programs are taken to be."""
    return (0, 0, *facts(image)[1].shape[-2:]) in annotation(image, name)[1]


def label_provenance(image: Path, name: str) -> tuple[str, str] | None:
    """Who made the labels and the fingerprint of the computation ("" for others); None: there are none."""
    folder = find(image, name)
    if folder is None:
        return None
    ours = noted(folder)
    return str(ours.get("origin", "")), str(ours.get("fingerprint", ""))


# ---------------------------------------------------------------- where they lie


def slug(name: str) -> str:
    """A folder name for any name: the name itself where it is plain, else a readable part and a hash."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        return name
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40]
    return f"{readable or 'labels'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def label_folder(image: Path, name: str) -> Path:
    return image / "labels" / slug(name)


def existing(image: Path, name: str) -> Path:
    folder = find(image, name)
    if folder is None:
        raise UserError(f"{image}: has no labels {name!r}; {nearest(name, named(image))}")
    return folder


def find(image: Path, name: str) -> Path | None:
    """The folder of labels, if they are there: one of ours, or one of another program that is called so."""
    own = label_folder(image, name)
    if (own / "zarr.json").is_file():
        return own
    return image / "labels" / name if name != own.name and name in label_paths(image) else None


def named(image: Path) -> dict[str, Path]:
    """Shown name -> folder; labels of other programs are shown by their path below `labels`."""
    return {_shown(image, folder): folder for folder in _folders(image)}


def _shown(image: Path, folder: Path) -> str:
    name = str(noted(folder).get("name", ""))
    return name if name and slug(name) == folder.name else str(folder.relative_to(image / "labels"))


def _folders(image: Path) -> list[Path]:
    """All label images: those in the folder `labels`, and those deeper down that its list names."""
    labels = image / "labels"
    paths = {path.parent.name for path in labels.glob("[!.]*/zarr.json")}
    if (labels / "zarr.json").is_file():
        paths |= {path for path in map(str, _part(labels, "ome").get("labels") or ()) if _is_plain(path)}
    found = (labels / path for path in sorted(paths) if (labels / path / "zarr.json").is_file())
    return [folder for folder in found if "multiscales" in _part(folder, "ome")]


def _is_plain(path: str) -> bool:
    """A path that leads to nowhere but below."""
    parts = path.split("/")
    return not any(part.startswith(".") or not part or "\\" in part for part in parts)


def noted(folder: Path) -> dict[str, Any]:
    """What we wrote beside the specification's metadata; other programs write none of it."""
    return _part(folder, "hpc_isl")


def _part(folder: Path, name: str) -> dict[str, Any]:
    """A part of a group's attributes; empty where another program has none, or something else there."""
    found = metadata.read_group(folder).get(name)
    return found if isinstance(found, dict) else {}


def label_paths(image: Path) -> list[str]:
    """Where the image's labels lie below its folder `labels`."""
    return [str(folder.relative_to(image / "labels")) for folder in _folders(image)]


def facts(image: Path) -> tuple[Plate, Field, int]:
    """Plate (its sizes alone), field and number of levels of an image, as the image itself says."""
    ours = metadata.read_group(image).get("hpc_isl")
    if not ours:
        raise UserError(f"{image}: is no image that convert has written, or another program has replaced it")
    sizes = {name: ours["plate"][name] for name in ("name", "pixel_um", "plane_um")}
    plate = Plate(rows=(), columns=(), channels=(), fields=(), **sizes)
    return plate, metadata.field_from(ours["field"]), ours["levels"]
