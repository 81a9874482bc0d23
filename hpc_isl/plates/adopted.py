"""Images of an adopted plate: the pixels lie in another program's plate, all else in the folder beside it.

The image's group beside the plate notes where each level of its pixels lies, how its axes are turned and
which of its channels is which of the plate's. A level that the other program has not halved exactly is
computed from the next finer one, so that all readers find the levels that they find in a converted plate.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorstore as ts

from hpc_isl.errors import UserError
from hpc_isl.plates import metadata, nodes, packed

SERIES = "bioformats2raw.layout"  # in the group of images that it wrote side by side, 0, 1, …
OME_XML = "OME/METADATA.ome.xml"  # describes them
KEY = "pixels"  # beside the facts of an image: a `PixelSource`
PLATE_KEY = "adopted"  # beside the facts of the plate: an `AdoptedPlate`
BACKGROUND = "background"  # the folder of the empty levels that stand for the image in a plate of labels


@dataclass(frozen=True)
class PixelSource:
    """Where the pixels of an image lie.

    Attributes:
        image: folder of the image, below the other plate.
        axes: of its arrays, one letter of tczyx each, or - for one that is dropped.
        levels: path of the array of each of our levels, below the image; None: it is computed.
        channels: number of each channel of the plate in the arrays; None: this image lacks it.
        files: path of an array -> hash of its files, as they were when the image was measured.
    """

    image: str
    axes: tuple[str, ...]
    levels: tuple[str | None, ...]
    channels: tuple[int | None, ...]
    files: Mapping[str, str]

    def facts(self) -> dict[str, Any]:
        """Returns the source as plain JSON, which `of_facts` reads back."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return facts

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> PixelSource:
        lists = {name: tuple(facts[name]) for name in ("axes", "levels", "channels")}
        return cls(image=facts["image"], files=dict(facts["files"]), **lists)

    def array(self, plate: Path, level: int) -> ts.TensorStore:
        """Returns one level of the image of the plate at `plate`, as (t, c, z, y, x); no file is checked."""
        path = self.levels[level]
        if path is None:
            return ts.downsample(self.array(plate, level - 1), [1, 1, 1, 2, 2], "mean")
        store = nodes.open_array(plate / self.image / path, fill_missing=True)
        for number, axis in reversed(list(enumerate(self.axes))):
            if axis == "-":
                store = store[(slice(None),) * number + (0,)]
        axes = [axis for axis in self.axes if axis != "-"]
        store = store.transpose([axes.index(axis) for axis in "tczyx" if axis in axes])
        for number, axis in enumerate("tcz"):
            if axis not in axes:
                store = store[(slice(None),) * number + (ts.newaxis,)]
        return self._with_channels(store)

    def _with_channels(self, store: ts.TensorStore) -> ts.TensorStore:
        if self.channels == tuple(range(store.shape[1])):
            return store
        # A channel that the image lacks is zeros, as convert stores it; nothing of it counts as imaged.
        shape = (store.shape[0], *store.shape[2:])
        spec = {"shape": shape, "data_type": store.dtype.name, "fill_value": 0}
        memory = {"driver": "zarr3", "kvstore": {"driver": "memory"}, "metadata": spec}
        zeros = ts.open(memory, create=True, context=ts.Context()).result()
        return ts.stack([zeros if n is None else store[:, n] for n in self.channels], axis=1)

    def refuse_changed(self, plate: Path, level: int) -> None:
        """Checks that the files of a level are those that were measured.

        Raises:
            UserError: they changed; names the command that measures them anew.
        """
        path = next(path for path in reversed(self.levels[: level + 1]) if path is not None)
        folder = plate / self.image / path
        if not folder.is_dir() or nodes.files_digest(folder) != self.files[path]:
            raise UserError(
                f"{folder}: its files, or their times, changed since the plate was adopted; {mend(plate)}"
            )


def mend(plate: Path) -> str:
    """Returns the clause that names the command that measures a plate anew."""
    return f"measure it anew: python -m hpc_isl.submit adopt {shlex.quote(str(plate))}"


def pixel_source(image: Path) -> PixelSource | None:
    """Returns where the pixels of an image lie; None: in the image itself."""
    facts = metadata.read_group(image).get("hpc_isl", {}).get(KEY)
    return PixelSource.of_facts(facts) if facts else None


def image_folder(image: Path) -> Path | None:
    """Returns the folder of another program's image that holds the pixels; None: the image itself does."""
    source = pixel_source(image) if not packed.is_dir(image / "0") else None
    return adopted_plate(image.parents[2]).path / source.image if source else None


def labels_inside(image: Path) -> Path | None:
    """Returns where new labels of an image lie in another program's plate; None: not there."""
    if packed.is_dir(image / "0") or not packed.is_file(image / "zarr.json"):
        return None
    source = pixel_source(image)
    plate = adopted_plate(image.parents[2]) if source else None
    return plate.path / source.image / "labels" if source and plate and plate.labels_inside else None


def open_level(image: Path, level: int) -> ts.TensorStore:
    """Returns the array (t, c, z, y, x) of one level of an image whose pixels lie elsewhere.

    Raises:
        UserError: there is no such level, or its files changed since they were measured.
    """
    source = pixel_source(image)
    if source is None or level >= len(source.levels):
        raise UserError(f"{image}: level {level} cannot be read: there is none")
    plate = adopted_plate(image.parents[2]).path
    source.refuse_changed(plate, level)
    return source.array(plate, level)


# ---------------------------------------------------------------- the plate


@dataclass(frozen=True)
class AdoptedPlate:
    """Another program's plate: where it lies, and a hash of what it says of itself.

    `labels_inside`: new labels are written into its images, and not beside it.
    """

    path: Path
    metadata: str
    labels_inside: bool = False

    def facts(self, home: Path) -> dict[str, str]:
        """Returns JSON for the folder `home`; of a plate beside it the name alone, so that both can move."""
        location = self.path.name if self.path.parent == home.parent else str(self.path)
        inside = {"labels": "inside"} if self.labels_inside else {}
        return {"plate": location, "metadata": self.metadata, **inside}


def adopted_plate(home: Path, facts: Mapping[str, Any] | None = None) -> AdoptedPlate:
    """Returns the plate whose index and labels `home` holds; `facts`: as its group has them, if known."""
    if facts is None:
        facts = metadata.read_group(home).get("hpc_isl", {})
    entry = facts.get(PLATE_KEY)
    if not entry:
        raise UserError(f"{home}: does not say which plate it belongs to; adopt that again")
    return AdoptedPlate(home.parent / entry["plate"], entry["metadata"], entry.get("labels") == "inside")


def metadata_digest(plate: Path) -> str:
    """Returns a hash of the metadata in the plate's own group, and of the OME-XML that may stand for them."""
    attributes = nodes.ome_attributes(plate)
    content = json.dumps(attributes, sort_keys=True).encode()
    if "plate" not in attributes and (plate / OME_XML).is_file():
        content += (plate / OME_XML).read_bytes()
    return hashlib.sha256(content).hexdigest()[:32]


def refuse_changed_plate(known: AdoptedPlate, home: Path) -> None:
    """Checks that the plate is there and says of itself what it said; pixels are checked when they are read.

    Raises:
        UserError: it is missing or changed; names the command that mends it.
    """
    if not nodes.is_group(known.path):
        raise UserError(
            f"{known.path}: this plate, whose index is {home}, is not there; if it was moved, adopt it where "
            f"it lies now: python -m hpc_isl.submit adopt PLATE index={shlex.quote(str(home))}"
        )
    if metadata_digest(known.path) != known.metadata:
        raise UserError(f"{known.path}: its metadata changed since it was adopted; {mend(known.path)}")
