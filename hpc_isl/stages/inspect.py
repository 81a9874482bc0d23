"""What a plate holds, in a person's words, and whether it is as it should be: `inspect` and `validate`."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates.atomic_directory import leftovers
from hpc_isl.plates.label_groups import LabelPixels, existing, label_levels, noted, open_labels
from hpc_isl.plates.labels import labels_of
from hpc_isl.plates.metadata import field_facts, read_group
from hpc_isl.plates.plate import Field, FieldKey
from hpc_isl.plates.pyramid import open_fresh
from hpc_isl.plates.statistics import digest
from hpc_isl.plates.store import (
    Index,
    annotation,
    edited,
    label_names,
    open_level,
    open_plate,
    read_labels,
)

SHOWN = 10
THREADS = 4
DIFFER = "their pixels are not those of their checksum"


def inspect(path: Path) -> list[str]:
    """A plate in some twenty lines: layout, pixels, channels, flags, labels, what was left out.

    Raises:
        UserError: there is no plate, or one that is not finished.
    """
    index = open_plate(path)
    sections = (_layout, _channels, _flags, _labels, _plate_map, _left_out)
    return [f"{name:12}{text}" for section in sections for name, text in section(index)]


def validate(path: Path, deep: bool = False) -> list[str]:
    """What is wrong with a plate; empty when nothing is.

    By yaozarrs, whether it is valid OME-Zarr; by ourselves, whether the index agrees with the images,
    all shards are there, and labels fit. `deep` also decodes every pixel and compares digests.
    """
    try:
        index = open_plate(path)
    except UserError as error:
        return [str(error)]
    problems = [*_by_specification(path), *(f"{p}: left by a killed process" for p in leftovers(path))]
    for field in index.plate.fields:
        problems += [f"{field.key}: {text}" for text in _image(index, field, deep)]
    return problems


# ---------------------------------------------------------------- inspect


Line = tuple[str, str]


def _layout(index: Index) -> Iterator[Line]:
    plate = index.plate
    places = len(plate.rows) * len(plate.columns)
    yield "plate", f"{plate.name}, fingerprint {index.fingerprint}, {index.path}"
    yield "wells", f"{len(plate.wells)} of {places}, {plate.wells[0]} to {plate.wells[-1]}"
    yield "fields", f"{len(plate.fields)}"
    if len(plate.acquisitions) > 1:
        yield "passes", ", ".join(f"{number}: {name}" for number, name in plate.acquisitions.items())
    for (shape, dtype), count in Counter((f.shape, f.dtype) for f in plate.fields).most_common(SHOWN):
        t, c, z, y, x = shape
        yield "pixels", f"{y} × {x} {dtype}, channels {c}, planes {z}, times {t} (fields: {count})"
    pixel = f"{plate.pixel_um:g} µm" if plate.pixel_um else "unknown"
    step = f"{plate.plane_um:g} µm" if plate.plane_um else "unknown"
    yield "sizes", f"pixel {pixel}, distance of planes {step}, levels {index.levels(plate.fields[0].key)}"
    for name in ("instrument", "objective"):
        if plate.details.get(name):
            yield name, f"{plate.details[name]}"


def _channels(index: Index) -> Iterator[Line]:
    """Counts over the fields of the commonest type."""
    dtype = Counter(field.dtype for field in index.plate.fields).most_common(1)[0][0]
    keys = [field.key for field in index.plate.fields if field.dtype == dtype]
    width = max(len(channel.name) for channel in index.plate.channels)
    for number, channel in enumerate(index.plate.channels):
        text = f"{channel.name:{width}}  {'fluorescent' if channel.fluorescent else 'label-free '}"
        try:
            counts = index.histogram(keys, number)
        except UserError:
            yield f"channel {number}", f"{text}  no pixels"
            continue
        middle, bright = counts.percentile(50), counts.percentile(99.9)
        yield f"channel {number}", f"{text}  median {middle:.5g}, 99.9 % below {bright:.5g} counts"


def _flags(index: Index) -> Iterator[Line]:
    found: dict[str, list[FieldKey]] = {}
    for key, statistics in index.statistics.items():
        for flag in statistics.flags:
            found.setdefault(flag, []).append(key)
    for flag, keys in sorted(found.items()):
        word, _, channel = flag.partition(":")
        yield "flag", f"{word} in {index.plate.channels[int(channel)].name}: {_some(keys)}"


def _labels(index: Index) -> Iterator[Line]:
    found: dict[str, list[FieldKey]] = {}
    for field in index.plate.fields:
        for name in label_names(index.image(field.key)):
            found.setdefault(name, []).append(field.key)
    for name, keys in sorted(found.items()):
        notes = [annotation(index.image(key), name) for key in keys]
        origins = ", ".join(sorted({origin for origin, _ in notes}))
        boxes = sum(len(boxes) for _, boxes in notes)
        yield "labels", f"{name!r} ({origins}), annotation boxes: {boxes}; fields {_some(keys)}"
        if differ := edited_fields(index, name, keys):
            yield "edited", f"{name!r} since they were written, by a person or by damage: {_some(differ)}"


def edited_fields(index: Index, name: str, keys: Sequence[FieldKey]) -> list[FieldKey]:
    """The fields whose labels have other pixels than were written, or none that can be read."""

    def differs(key: FieldKey) -> bool:
        try:
            return bool(edited(index.image(key), name))
        except UserError:
            return True

    with ThreadPoolExecutor(THREADS) as pool:
        return [key for key, yes in zip(keys, pool.map(differs, keys), strict=True) if yes]


def _plate_map(index: Index) -> Iterator[Line]:
    for column in sorted({name for facts in index.plate_map.values() for name in facts}):
        values = Counter(facts[column] for facts in index.plate_map.values() if column in facts)
        shown = ", ".join(f"{value} ({count})" for value, count in values.most_common(SHOWN))
        yield "plate map", f"{column}: {shown}" + (" …" if len(values) > SHOWN else "")


def _left_out(index: Index) -> Iterator[Line]:
    there = {field.key for field in index.plate.fields}
    for key, text, _ in index.problems:
        yield "incomplete" if key in there else "left out", f"{key}: {text}"


def _some(keys: list[FieldKey]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(map(str, keys[:SHOWN])) + more


# ---------------------------------------------------------------- validate


def _by_specification(path: Path) -> list[str]:
    from yaozarrs import validate_zarr_store

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            validate_zarr_store(str(path))
        except ValueError as error:  # its errors are ValueErrors
            return [f"not valid OME-Zarr: {error}"]
    return [f"OME-Zarr: {warning.message}" for warning in caught]


def _image(index: Index, field: Field, deep: bool) -> Iterator[str]:
    image = index.image(field.key)
    try:
        ours = read_group(image).get("hpc_isl", {})
        measured = ours.get("statistics", {}).get("digest")
        if ours.get("field") != field_facts(field) or measured != index.statistics[field.key].digest:
            yield "the index says otherwise than the image; remove index/fields.parquet to have it made anew"
        for level in range(index.levels(field.key)):
            yield from _level(image, level)
        if deep:
            yield from _pixels(index, field)
        names = label_names(image)
    except UserError as mistake:
        yield f"{mistake}"
        return
    for name in names:
        try:
            yield from _label(image, name, index.levels(field.key), deep)
        except UserError as mistake:
            yield f"{mistake}"


def _level(image: Path, level: int) -> Iterator[str]:
    """Whether every shard of a level is there."""
    for shard in _missing(image / str(level), open_level(image, level)):
        yield f"level {level}: shard {shard} is missing"


def _missing(folder: Path, store: ts.TensorStore) -> Iterator[str]:
    """The shards of an array that have no file."""
    edges = store.chunk_layout.write_chunk.shape or store.shape
    grid = (-(-length // (edge or 1)) for length, edge in zip(store.shape, edges, strict=True))
    for place in np.ndindex(*grid):
        if not folder.joinpath("c", *map(str, place)).exists():
            yield "/".join(map(str, place))


def _pixels(index: Index, field: Field) -> Iterator[str]:
    """Whether every level can be decoded and the pixels are those that were measured."""
    for level in range(index.levels(field.key)):
        try:
            pixels = open_level(index.image(field.key), level).read().result()
        except ValueError as error:
            yield f"level {level} cannot be decoded: {error}"
            continue
        if level == 0 and digest(pixels.reshape(field.shape)) != index.statistics[field.key].digest:
            yield "its pixels are not those that were converted: the digest differs"


def _label(image: Path, name: str, levels: int, deep: bool) -> Iterator[str]:
    """Labels of other programs may lack chunks; ours too, if their pixels are those of their checksum."""
    labels_of(image, name)  # raises where they do not fit the image
    folder = existing(image, name)
    paths, _ = label_levels(folder)
    if len(paths) != levels:
        yield f"labels {name!r} have {len(paths)} levels; {levels} are expected, as many as the image has"
    for number in range(1, len(paths)):
        open_labels(folder, number)
    if not noted(folder):
        return
    if (deep or any(_missing(folder / paths[0], open_fresh(folder, paths[0])))) and edited(image, name):
        yield f"labels {name!r} were edited or damaged since they were written: {DIFFER}"
    for number in range(1, len(paths) if deep else 0):
        if not np.array_equal(_all(open_labels(folder, number)), read_labels(image, name, number)):
            yield f"labels {name!r}, level {number}: shows other objects than level 0, which people edit"


def _all(pixels: LabelPixels) -> NDArray[np.uint32]:
    found = np.concatenate(list(pixels.bands()))
    return found.reshape(pixels.shape) if pixels.shape[0] > 1 else found
