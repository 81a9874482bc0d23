"""The verbs `inspect` and `validate`: what a plate holds, and whether it is as it should be."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorstore as ts

from hpc_isl.errors import UserError
from hpc_isl.plates.atomic_directory import leftovers
from hpc_isl.plates.label_groups import existing, label_levels, noted, open_labels
from hpc_isl.plates.labels import labels_of
from hpc_isl.plates.metadata import field_facts, read_group
from hpc_isl.plates.plate import Field, FieldKey
from hpc_isl.plates.pyramid import open_fresh
from hpc_isl.plates.statistics import digest
from hpc_isl.plates.store import Index, annotation, edited, label_names, open_level, open_plate, read_labels

SHOWN = 10
THREADS = 4
DIFFER = "their pixels are not those of their checksum"
Line = tuple[str, str]


def inspect(path: Path) -> list[str]:
    """Returns a plate in some twenty lines: layout, pixels, channels, flags, labels, what was left out.

    Raises:
        UserError: there is no plate, or one that is not finished.
    """
    index = open_plate(path)
    sections = (_layout, _channels, _flags, _labels, _plate_map)
    lines = [line for section in sections for line in section(index)]
    stored = {field.key for field in index.plate.fields}
    for key, text, _ in index.problems:
        lines.append(("incomplete" if key in stored else "left out", f"{key}: {text}"))
    return [f"{name:12}{text}" for name, text in lines]


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
    # Counts of different types cannot be put in one histogram: those of the commonest type are shown.
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
        median, bright = counts.percentile(50), counts.percentile(99.9)
        yield f"channel {number}", f"{text}  median {median:.5g}, 99.9 % below {bright:.5g} counts"


def _flags(index: Index) -> Iterator[Line]:
    fields = defaultdict(list)
    for key, statistics in index.statistics.items():
        for flag in statistics.flags:
            fields[flag].append(key)
    for flag, keys in sorted(fields.items()):
        word, _, channel = flag.partition(":")
        yield "flag", f"{word} in {index.plate.channels[int(channel)].name}: {_some(keys)}"


def _labels(index: Index) -> Iterator[Line]:
    fields = defaultdict(list)
    for field in index.plate.fields:
        for name in label_names(index.image(field.key)):
            fields[name].append(field.key)
    for name, keys in sorted(fields.items()):
        notes = [annotation(index.image(key), name) for key in keys]
        origins = ", ".join(sorted({origin for origin, _ in notes}))
        boxes = sum(len(boxes) for _, boxes in notes)
        yield "labels", f"{name!r} ({origins}), annotation boxes: {boxes}; fields {_some(keys)}"
        if differ := edited_fields(index, name, keys):
            yield "edited", f"{name!r} since they were written, by a person or by damage: {_some(differ)}"


def edited_fields(index: Index, name: str, keys: Sequence[FieldKey]) -> list[FieldKey]:
    """Returns the fields whose labels have other pixels than were written, or none that can be read."""

    def differs(key: FieldKey) -> bool:
        try:
            return bool(edited(index.image(key), name))
        except UserError:
            return True  # nobody can tell whose labels these are

    with ThreadPoolExecutor(THREADS) as pool:
        return [key for key, differ in zip(keys, pool.map(differs, keys), strict=True) if differ]


def _plate_map(index: Index) -> Iterator[Line]:
    for column in sorted({name for facts in index.plate_map.values() for name in facts}):
        values = Counter(facts[column] for facts in index.plate_map.values() if column in facts)
        shown = ", ".join(f"{value} ({count})" for value, count in values.most_common(SHOWN))
        yield "plate map", f"{column}: {shown}" + (" …" if len(values) > SHOWN else "")


def _some(keys: list[FieldKey]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(map(str, keys[:SHOWN])) + more


# ---------------------------------------------------------------- validate


def validate(path: Path, deep: bool = False) -> list[str]:
    """Returns what is wrong with a plate; nothing where it is valid.

    yaozarrs checks whether it is valid OME-Zarr; the rest checks that the index agrees with the images, all
    shards exist, and labels fit. `deep` also decodes every pixel and compares digests.
    """
    from yaozarrs import validate_zarr_store

    try:
        index = open_plate(path)
    except UserError as error:
        return [str(error)]
    problems = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            validate_zarr_store(str(path))
            problems = [f"OME-Zarr: {warning.message}" for warning in caught]
        except ValueError as error:  # its errors are ValueErrors
            problems = [f"not valid OME-Zarr: {error}"]
    problems += [f"{partial}: left by a killed process" for partial in leftovers(path)]
    for field in index.plate.fields:
        problems += [f"{field.key}: {text}" for text in _image_problems(index, field, deep)]
    return problems


def _image_problems(index: Index, field: Field, deep: bool) -> Iterator[str]:
    image, levels = index.image(field.key), index.levels(field.key)
    try:
        ours = read_group(image).get("hpc_isl", {})
        measured = ours.get("statistics", {}).get("digest")
        # The index is a cache of what the images hold: where they differ, the images count.
        if ours.get("field") != field_facts(field) or measured != index.statistics[field.key].digest:
            yield "the index differs from the image; remove index/fields.parquet to have it made anew"
        for level in range(levels):
            for shard in _missing_shards(image / str(level), open_level(image, level)):
                yield f"level {level}: shard {shard} is missing"
        if deep:
            yield from _pixel_problems(index, field)
        names = label_names(image)
    except UserError as error:
        yield str(error)
        return
    for name in names:
        try:
            yield from _label_problems(image, name, levels, deep)
        except UserError as error:
            yield str(error)


def _missing_shards(folder: Path, store: ts.TensorStore) -> Iterator[str]:
    """Yields the shards of an array that have no file."""
    edges = store.chunk_layout.write_chunk.shape or store.shape
    grid = (-(-length // (edge or 1)) for length, edge in zip(store.shape, edges, strict=True))
    for place in np.ndindex(*grid):
        if not folder.joinpath("c", *map(str, place)).exists():
            yield "/".join(map(str, place))


def _pixel_problems(index: Index, field: Field) -> Iterator[str]:
    """Yields levels that cannot be decoded, and whether the pixels are not those that were measured."""
    for level in range(index.levels(field.key)):
        try:
            pixels = open_level(index.image(field.key), level).read().result()
        except ValueError as error:
            yield f"level {level} cannot be decoded: {error}"
            continue
        if level == 0 and digest(pixels.reshape(field.shape)) != index.statistics[field.key].digest:
            yield "its pixels are not those that were converted: the digest differs"


def _label_problems(image: Path, name: str, levels: int, deep: bool) -> Iterator[str]:
    labels_of(image, name)  # raises where they do not fit the image
    folder = existing(image, name)
    paths, _ = label_levels(folder)
    if len(paths) != levels:
        yield f"labels {name!r} have {len(paths)} levels; {levels} are expected, as many as the image has"
    for number in range(1, len(paths)):
        open_labels(folder, number)
    if not noted(folder):
        return
    # Labels of other programs may lack chunks; ours too, if their pixels are those of their checksum.
    is_sparse = deep or any(_missing_shards(folder / paths[0], open_fresh(folder, paths[0])))
    if is_sparse and edited(image, name):
        yield f"labels {name!r} were edited or damaged since they were written: {DIFFER}"
    for number in range(1, len(paths) if deep else 0):
        labels = open_labels(folder, number)
        pixels = np.concatenate(list(labels.bands()))
        if labels.shape[0] > 1:
            pixels = pixels.reshape(labels.shape)
        if not np.array_equal(pixels, read_labels(image, name, number)):
            yield f"labels {name!r}, level {number}: shows other objects than level 0, which people edit"
