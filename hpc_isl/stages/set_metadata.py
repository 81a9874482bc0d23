"""The verb `set`: what a plate says of its pixels and channels is mended where it was stated wrongly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from hpc_isl.errors import UserError, nearest
from hpc_isl.plates.change_metadata import change_metadata, differences
from hpc_isl.plates.plate import Channel, Plate, color_of, doubtful_size
from hpc_isl.plates.store import Index, label_names, open_plate
from hpc_isl.recipes.base import PixelSize

KEYS = {
    "pixel_um": "edge of a pixel in micrometres; null: unknown",
    "channels.OLD": "the new name of the channel OLD; or channels={OLD: NEW, …}",
    "transmitted": "the label-free channels, as in transmitted=[Brightfield]; all others are stains",
}


@dataclass(frozen=True)
class MetadataEdit:
    """What is asked for.

    Attributes:
        new: the plate with other metadata.
        lines: what is different, as `differences` tells it; empty: nothing.
    """

    index: Index
    new: Plate
    lines: tuple[str, ...]

    @property
    def measures(self) -> bool:
        """Whether figures in micrometres change, and not only what things are called."""
        return self.new.pixel_um != self.index.plate.pixel_um

    def described(self) -> list[str]:
        """What would be done, for a person who decides."""
        images = [self.index.image(field.key) for field in self.index.plate.fields]
        labels = sum(len(label_names(image)) for image in images)
        shown = [*self.lines, *([f"warning: {doubt}"] if (doubt := doubtful_size(self.new)) else [])]
        return [
            f"{self.index.path}:",
            *(f"  {line}" for line in shown),
            f"written anew: metadata of the plate, of {len(images)} images and {labels} labels, and the "
            "index; no pixel changes, and the former values are kept",
        ]

    def apply(self) -> Index:
        """The plate, changed.

        Raises:
            UserError: it is in use, or may not be written.
        """
        return change_metadata(self.index, self.new, os.environ.get("USER") or str(os.getuid()))


def metadata_edit(path: Path, words: Sequence[str]) -> MetadataEdit:
    """What `set PATH WORDS` asks for; writes nothing.

    Raises:
        UserError: no such key or channel, a value that cannot be meant, two channels of one name.
    """
    if not words:
        raise UserError(f"set {path}: say what, as in pixel_um=0.325; there are {', '.join(KEYS)}")
    index = open_plate(path.expanduser().absolute())
    pixel_um, names, free = index.plate.pixel_um, dict[str, str](), None
    for word in words:
        key, value = _parted(word, index.plate)
        if key == "pixel_um":
            pixel_um = _size(word, value)
        elif key == "transmitted":
            free = _listed(word, value)
        else:
            names |= {key: value} if key in _names(index.plate) else _mapping(word, value)
    new = replace(index.plate, pixel_um=pixel_um, channels=_channels(index.plate, names, free))
    return MetadataEdit(index, new, differences(index.plate, new))


# ---------------------------------------------------------------- words


def _parted(word: str, plate: Plate) -> tuple[str, Any]:
    """Key and value; the key of `channels.OLD=NEW` is OLD, which may hold dots and equals signs."""
    for name in _names(plate):
        if word.startswith(f"channels.{name}="):
            new = word.removeprefix(f"channels.{name}=")
            value = _yaml(word, new)
            return name, value if isinstance(value, str) else new  # 488 is a name here
    key, separator, text = word.partition("=")
    if separator and key in ("pixel_um", "transmitted", "channels"):
        return key, _yaml(word, text)
    if separator and key.startswith("channels."):
        old = key.removeprefix("channels.")
        raise UserError(f"{word}: the plate has no channel {old!r}; {nearest(old, _names(plate))}")
    raise UserError(f"{word}: set takes key=value; {nearest(key, KEYS)}")


def _yaml(word: str, text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise UserError(f"{word}: the value is not YAML: {error}") from None


def _size(word: str, value: Any) -> float | None:
    try:
        return TypeAdapter(PixelSize | None).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{word}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _listed(word: str, value: Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list):
        raise UserError(f"{word}: a list of channels is expected, as in transmitted=[Brightfield]")
    return [str(name) for name in names]


def _mapping(word: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise UserError(f"{word}: write channels.OLD=NEW, or channels={{OLD: NEW}}")
    return {str(old): str(new) for old, new in value.items()}


# ---------------------------------------------------------------- channels


def _names(plate: Plate) -> list[str]:
    """The longest first: one may begin as another does."""
    return sorted((channel.name for channel in plate.channels), key=len, reverse=True)


def _channels(plate: Plate, names: dict[str, str], free: list[str] | None) -> tuple[Channel, ...]:
    """With new names; `free` says which are label-free, by new or by old names, None: as before."""
    for old in names:
        if old not in _names(plate):
            raise UserError(f"channels: the plate has no channel {old!r}; {nearest(old, _names(plate))}")
    renamed = [replace(channel, name=names.get(channel.name, channel.name)) for channel in plate.channels]
    shown = [channel.name for channel in renamed]
    for name in shown:
        if not name.strip() or shown.count(name) > 1:
            what = "a channel without a name" if not name.strip() else f"two channels {name!r}"
            raise UserError(f"channels: that would make {what}; each has a name of its own")
    if free is None:
        return tuple(renamed)
    wanted = {_place(name, shown, plate) for name in free}
    return tuple(_of_kind(channel, place not in wanted) for place, channel in enumerate(renamed))


def _place(name: str, shown: Sequence[str], plate: Plate) -> int:
    former = [channel.name for channel in plate.channels]
    for names in (list(shown), former):
        if name in names:
            return names.index(name)
    raise UserError(f"transmitted: no channel {name!r}; {nearest(name, dict.fromkeys([*shown, *former]))}")


def _of_kind(channel: Channel, fluorescent: bool) -> Channel:
    """Shown as such channels are, unless a person has chosen the colour."""
    if channel.fluorescent == fluorescent:
        return channel
    usual = not fluorescent or channel.color == color_of(channel.fluorescent, channel.emission_nm)
    color = color_of(fluorescent, channel.emission_nm) if usual else channel.color
    return replace(channel, fluorescent=fluorescent, color=color)
