"""Changing a plate's metadata: the size of a pixel, names of channels, which of them are label-free.

Pixels, statistics and the origin of labels stay. What names channels or measures in micrometres is written
anew, in the plate, its images, their labels and the index, all of it or nothing.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hpc_isl import metadata_changes
from hpc_isl.errors import UserError
from hpc_isl.files import now
from hpc_isl.metadata_changes import MetadataChange
from hpc_isl.plates import adopted, atomic_directory, index_table, metadata
from hpc_isl.plates.index import Index, encoded, fingerprint_of, image_path, open_plate
from hpc_isl.plates.plate import BY_CHANNEL, Field, Plate

GROUP = "zarr.json"
KEPT = ("pixel_um", "channels")  # what a change replaces, of `metadata.plate_facts`
Json = dict[str, Any]


def differences(old: Plate, new: Plate) -> tuple[str, ...]:
    """Returns what is different, one line each: `pixel_um: 325 -> 0.325`."""
    sizes = ["unknown" if size is None else f"{size:g}" for size in (old.pixel_um, new.pixel_um)]
    lines = [f"pixel_um: {sizes[0]} -> {sizes[1]}"] if old.pixel_um != new.pixel_um else []
    for before, after in zip(old.channels, new.channels, strict=True):
        if before.name != after.name:
            lines.append(f"channel {before.name!r} -> {after.name!r}")
        if before.fluorescent != after.fluorescent:
            kind = "fluorescent" if after.fluorescent else "label-free"
            lines.append(f"channel {after.name!r} is {kind}")
    return tuple(lines)


def field_of(field: Field, old: Plate, new: Plate) -> Field:
    """Returns a field of the old plate as the new one describes it."""
    renamed = {fact: _renamed(field.details[fact], old, new) for fact in BY_CHANNEL if fact in field.details}
    position = field.position_um
    # The stage was at the centre of the field: with pixels of another size the first one lies elsewhere.
    if position is not None and old.pixel_um and new.pixel_um:
        halves = [(length - 1) / 2 * (old.pixel_um - new.pixel_um) for length in field.shape[-2:]]
        position = round(position[0] + halves[0], 4), round(position[1] + halves[1], 4)
    return replace(field, details={**field.details, **renamed}, position_um=position)


def _renamed(by_channel: Mapping[str, Any], old: Plate, new: Plate) -> dict[str, Any]:
    names = {before.name: after.name for before, after in zip(old.channels, new.channels, strict=True)}
    return {names.get(name, name): value for name, value in by_channel.items()}


def plate_of(plate: Plate, old: Plate, new: Plate) -> Plate:
    """Returns a plate that has the metadata of `old` with those of `new`; its fields and all else stay."""
    details = dict(plate.details)
    if isinstance(details.get("channels"), Mapping):  # what the vendor states of each
        details["channels"] = _renamed(details["channels"], old, new)
    fields = tuple(field_of(field, old, new) for field in plate.fields)
    return replace(plate, pixel_um=new.pixel_um, channels=new.channels, fields=fields, details=details)


def words_for(old: Plate, new: Plate) -> list[str]:
    """Returns the arguments of `set PLATE` that make the new metadata of the old, quoted for a shell."""
    arguments = [f"pixel_um={json.dumps(new.pixel_um)}"] if old.pixel_um != new.pixel_um else []
    for before, after in zip(old.channels, new.channels, strict=True):
        arguments += [f"channels.{before.name}={after.name}"] if before.name != after.name else []
    if [channel.fluorescent for channel in old.channels] != [channel.fluorescent for channel in new.channels]:
        transmitted = [channel.name for channel in new.channels if not channel.fluorescent]
        arguments.append(f"transmitted={json.dumps(transmitted, ensure_ascii=False)}")
    return [shlex.quote(argument) for argument in arguments]


def as_converted(index: Index) -> Plate:
    """Returns the plate's channels and pixel size before anything was changed, without fields."""
    plate = replace(index.plate, fields=())
    return former(plate, index.changes[0]) if index.changes else plate


def former(plate: Plate, change: MetadataChange) -> Plate:
    """Returns the plate as it was before a change."""
    facts = metadata.plate_facts(replace(plate, fields=())) | dict(change.former)
    return metadata.plate_from(facts, plate.fields)


# ---------------------------------------------------------------- the change


def change_metadata(index: Index, new: Plate, user: str) -> Index:
    """Writes the metadata of `new`, and records the former ones; a kill leaves the old ones or the new.

    Raises:
        UserError: the plate is in use, or was changed since `index` was opened.
    """
    with atomic_directory.unused(index.path):
        # Opened again, now that nobody else can change it: the caller's index may be old.
        current_index = open_plate(index.path)
        if (current_index.fingerprint, current_index.plate) != (index.fingerprint, index.plate):
            raise UserError(f"{index.path}: was changed by another process just now; look at it again")
        atomic_directory.replace_together(
            index.path, list(_files(index, plate_of(index.plate, index.plate, new), user))
        )
    return open_plate(index.path)


def _files(index: Index, new: Plate, user: str) -> Iterator[tuple[str, atomic_directory.Content]]:
    """Yields every file that changes, below the plate, and its new content."""
    images = {field.key: image_path(index.path, new, field.key) for field in new.fields}
    groups = [
        _image(_group(images[field.key]), index.plate, new, field, index.levels(field.key))
        for field in new.fields
    ]
    for field, group in zip(new.fields, groups, strict=True):
        yield str((images[field.key] / GROUP).relative_to(index.path)), partial(_dumped, group)
        for path in sorted(images[field.key].glob(f"labels/[!.]*/{GROUP}")):
            yield str(path.relative_to(index.path)), partial(_labels, path.parent, index, new, field)
    ours = [group["attributes"]["hpc_isl"] for group in groups]
    lines = differences(index.plate, new)
    facts = metadata.plate_facts(index.plate)
    former_facts = {name: facts[name] for name in KEPT}
    change = MetadataChange(now(), user, index.fingerprint, "", lines, former_facts)
    shifts = index.registration.digest if index.registration else ""
    change = replace(change, after=fingerprint_of(ours, new, (*index.changes, change), shifts))
    yield index_table.FILE, partial(encoded, ours, change.after)
    plate_group = _group(index.path)
    plate_group["attributes"]["hpc_isl"] |= {
        "plate": metadata.plate_facts(new),
        metadata_changes.KEY: [change.facts() for change in (*index.changes, change)],
    }
    yield GROUP, partial(_dumped, plate_group)


def _image(group: Json, old: Plate, new: Plate, field: Field, levels: int) -> Json:
    from hpc_isl.plates import ngff

    # What other programs have added, or set for their viewers, stays.
    ome, ours = group["attributes"]["ome"], group["attributes"]["hpc_isl"]
    ours["plate"], ours["field"] = metadata.image_facts(new), metadata.field_facts(field)
    if adopted.KEY in ours:
        scales = ngff.background_scales(new, field, levels, adopted.BACKGROUND)
    else:
        scales = ngff.image_scales(new, field, levels)
    ome["multiscales"][0] = ngff.attributes(scales)
    entries = ome.get("omero", {}).get("channels", [])
    for entry, before, after in zip(entries, old.channels, new.channels, strict=False):
        entry |= {"label": after.name} if entry.get("label") == before.name else {}
        entry |= {"color": after.color} if entry.get("color") == before.color else {}
    return group


def _labels(folder: Path, index: Index, new: Plate, field: Field) -> bytes:
    from hpc_isl.plates import ngff

    group = _group(folder)
    attributes = group["attributes"]
    if "hpc_isl" in attributes:
        scales = ngff.label_scales(new, field, index.levels(field.key), attributes["hpc_isl"]["name"])
        attributes["ome"]["multiscales"][0] = ngff.attributes(scales)
    else:  # of another program, which has cut the levels in its own way
        old_grid, in_micrometres = ngff.grid_of(index.plate, index.field(field.key)), new.pixel_um is not None
        try:
            for scales in attributes["ome"]["multiscales"]:
                ngff.move(scales, old_grid, ngff.grid_of(new, field), in_micrometres)
        except (KeyError, TypeError, IndexError):
            raise UserError(
                f"{folder}: these labels of another program do not say where their pixels lie, as OME-Zarr "
                "0.5 has it, so their scale cannot be changed along; move them out of the plate first"
            ) from None
    return _dumped(group)


def _group(folder: Path) -> Json:
    metadata.read_group(folder)  # raises where it is missing or no JSON
    content: Json = json.loads((folder / GROUP).read_text())
    content.pop("consolidated_metadata", None)  # copies of the groups below, which change
    return content


def _dumped(group: Json) -> bytes:
    return json.dumps(group, allow_nan=False).encode()
