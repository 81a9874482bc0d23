"""The verb `set`: metadata of pixels and channels are corrected where a plate states them wrongly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from hpc_isl.errors import UserError, many, nearest
from hpc_isl.metadata_changes import SETTABLE
from hpc_isl.plates.change_metadata import change_metadata, differences
from hpc_isl.plates.packed import refuse_packed
from hpc_isl.plates.plate import Channel, Plate, color_of, doubtful_size
from hpc_isl.plates.store import Index, label_names, open_plate
from hpc_isl.recipes.base import PixelSize


@dataclass(frozen=True)
class MetadataEdit:
    """A change of metadata that was asked for.

    Attributes:
        plate: with other metadata.
        lines: what is different, as `differences` describes it; empty: nothing.
    """

    index: Index
    plate: Plate
    lines: tuple[str, ...]

    @property
    def measures(self) -> bool:
        """Whether figures in micrometres change, and not only what things are called."""
        return self.plate.pixel_um != self.index.plate.pixel_um

    def described(self) -> list[str]:
        """Returns what would be done, for a person who decides."""
        images = [self.index.image(field.key) for field in self.index.plate.fields]
        labels = sum(len(label_names(image)) for image in images)
        lines = [*self.lines, *([f"warning: {doubt}"] if (doubt := doubtful_size(self.plate)) else [])]
        return [
            f"{self.index.path}:",
            *(f"  {line}" for line in lines),
            f"written anew: metadata of the plate, of {many(len(images), 'image')} and {labels} labels, "
            "and the index; no pixel changes, and the former values are kept",
        ]

    def apply(self) -> Index:
        """Changes the plate and returns it.

        Raises:
            UserError: it is in use, or may not be written.
        """
        return change_metadata(self.index, self.plate, os.environ.get("USER") or str(os.getuid()))


def metadata_edit(path: Path, words: Sequence[str]) -> MetadataEdit:
    """Returns the change that `set PATH WORDS` asks for; writes nothing.

    Raises:
        UserError: no such key or channel, a value that cannot be meant, two channels of one name.
    """
    if not words:
        raise UserError(f"set {path}: say what, as in pixel_um=0.325; there are {', '.join(SETTABLE)}")
    index = open_plate(path.expanduser().absolute())
    refuse_packed(index.path, "set")
    pixel_um, new_names, label_free = index.plate.pixel_um, dict[str, str](), None
    for word in words:
        key, value = _key_and_value(word, index.plate)
        if key == "pixel_um":
            try:
                pixel_um = TypeAdapter(PixelSize | None).validate_python(value)
            except ValidationError as error:
                message = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise UserError(f"{word}: {message}") from None
        elif key == "transmitted":
            names = [value] if isinstance(value, str) else value
            if not isinstance(names, list):
                raise UserError(f"{word}: a list of channels is expected, as in transmitted=[Brightfield]")
            label_free = [str(name) for name in names]
        elif key in _names(index.plate):
            new_names[key] = value
        elif not isinstance(value, dict):
            raise UserError(f"{word}: write channels.OLD=NEW, or channels={{OLD: NEW}}")
        else:
            new_names |= {str(old): str(new) for old, new in value.items()}
    new = replace(index.plate, pixel_um=pixel_um, channels=_channels(index.plate, new_names, label_free))
    return MetadataEdit(index, new, differences(index.plate, new))


def _key_and_value(word: str, plate: Plate) -> tuple[str, Any]:
    """Returns key and value; the key of `channels.OLD=NEW` is OLD, which may hold dots and equals signs."""

    def as_yaml(text: str) -> Any:
        try:
            return yaml.safe_load(text) if text else None
        except yaml.YAMLError as error:
            raise UserError(f"{word}: the value is not YAML: {error}") from None

    for name in _names(plate):
        if word.startswith(f"channels.{name}="):
            new_name = word.removeprefix(f"channels.{name}=")
            value = as_yaml(new_name)
            return name, value if isinstance(value, str) else new_name  # 488 is a name here
    key, separator, text = word.partition("=")
    if separator and key in ("pixel_um", "transmitted", "channels"):
        return key, as_yaml(text)
    if separator and key.startswith("channels."):
        old_name = key.removeprefix("channels.")
        raise UserError(f"{word}: the plate has no channel {old_name!r}; {nearest(old_name, _names(plate))}")
    raise UserError(f"{word}: set takes key=value; {nearest(key, SETTABLE)}")


# ---------------------------------------------------------------- channels


def _names(plate: Plate) -> list[str]:
    # The longest first, because one may begin as another does.
    return sorted((channel.name for channel in plate.channels), key=len, reverse=True)


def _channels(plate: Plate, new_names: dict[str, str], label_free: list[str] | None) -> tuple[Channel, ...]:
    """Returns the channels with new names.

    Args:
        label_free: all that are label-free, by new or by old names; None: as before.
    """
    for old in new_names:
        if old not in _names(plate):
            raise UserError(f"channels: the plate has no channel {old!r}; {nearest(old, _names(plate))}")
    former = [channel.name for channel in plate.channels]
    names = [new_names.get(name, name) for name in former]
    for name in names:
        if not name.strip() or names.count(name) > 1:
            problem = "a channel without a name" if not name.strip() else f"two channels {name!r}"
            raise UserError(f"channels: that would make {problem}; each has a name of its own")
    channels = [replace(channel, name=name) for channel, name in zip(plate.channels, names, strict=True)]
    if label_free is None:
        return tuple(channels)
    # Old names too: a user may rename channels and say which are label-free in one call.
    valid_names = dict.fromkeys([*names, *former])
    for name in label_free:
        if name not in valid_names:
            raise UserError(f"transmitted: no channel {name!r}; {nearest(name, valid_names)}")
    places = {(names if name in names else former).index(name) for name in label_free}
    return tuple(_with_kind(channel, place not in places) for place, channel in enumerate(channels))


def _with_kind(channel: Channel, fluorescent: bool) -> Channel:
    """Returns the channel as a stain or not, in the colour of its kind unless a person has chosen one."""
    if channel.fluorescent == fluorescent:
        return channel
    # What becomes label-free is grey; a stain gets its emission's colour, unless a person chose another.
    usual = not fluorescent or channel.color == color_of(channel.fluorescent, channel.emission_nm)
    color = color_of(fluorescent, channel.emission_nm) if usual else channel.color
    return replace(channel, fluorescent=fluorescent, color=color)
