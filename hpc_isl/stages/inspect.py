"""The verbs `inspect` and `validate`: what a plate holds, and whether it is as it should be."""

from __future__ import annotations

import shlex
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorstore as ts

from hpc_isl.errors import UserError
from hpc_isl.plate_home import home_of
from hpc_isl.plates import ome_zarr, packed, registration
from hpc_isl.plates.adopted import labels_inside, mend, pixel_source
from hpc_isl.plates.atomic_directory import leftovers
from hpc_isl.plates.label_groups import (
    existing,
    label_depth,
    label_levels,
    labels_home,
    noted,
    open_labels,
)
from hpc_isl.plates.labels import labels_of
from hpc_isl.plates.metadata import field_facts, read_group
from hpc_isl.plates.nodes import ArrayFacts, array_facts, decoded_per_used
from hpc_isl.plates.ome_zarr import OtherPlate
from hpc_isl.plates.plate import Field, FieldKey, Plate
from hpc_isl.plates.pyramid import open_fresh
from hpc_isl.plates.statistics import digest
from hpc_isl.plates.store import Index, annotation, edited, label_names, open_level, open_plate, read_labels

SHOWN = 10
THREADS = 4
CROP = 256  # of training, by default
SLOW = 4  # times as many bytes as on a converted plate are worth converting
DIFFER = "their pixels are not those of their checksum"
Line = tuple[str, str]


def inspect(path: Path) -> list[str]:
    """Returns a plate in some twenty lines: layout, pixels, channels, flags, labels, what was left out.

    Raises:
        UserError: there is no plate, or one that is not finished.
    """
    if is_unadopted(path):
        return [f"{name:12}{text}" for name, text in _other_plate(ome_zarr.read(path))]
    index = open_plate(path)
    sections = (_layout, _adopted_pixels, _shifts, _channels, _flags, _labels, _plate_map)
    lines = [line for section in sections for line in section(index)]
    stored = {field.key for field in index.plate.fields}
    for key, text, _ in index.problems:
        lines.append(("incomplete" if key in stored else "left out", f"{key}: {text}"))
    return [f"{name:12}{text}" for name, text in lines]


def is_unadopted(path: Path) -> bool:
    """Returns whether another program has written the plate, and it has not been adopted yet."""
    return home_of(path) == path and ome_zarr.is_other_plate(path) and not is_ours(path)


def is_ours(path: Path) -> bool:
    """Returns whether convert or adopt has written the plate's group."""
    return packed.is_file(path / "zarr.json") and "hpc_isl" in read_group(path)


def _other_plate(other: OtherPlate) -> Iterator[Line]:
    plate = other.plate
    yield "plate", f"{plate.name}, OME-Zarr {other.version} of another program, {other.path}"
    yield from _shapes(plate)
    yield "channels", ", ".join(channel.name for channel in plate.channels)
    key = plate.fields[0].key
    yield from _reading(other.path, other.arrays[key], other.sources[key].axes)
    for text in other.remarks:
        yield "remark", text
    for problem in other.problems:
        yield "unreadable", f"{problem.key}: {problem.text}"
    adopt = f"python -m hpc_isl.submit adopt {shlex.quote(str(other.path))}"
    yield "next", f"{adopt}   (measures it once, where it lies; then every verb takes it)"


def _adopted_pixels(index: Index) -> Iterator[Line]:
    """Yields where the pixels of an adopted plate lie, and which have changed; nothing of a converted one."""
    if index.adopted is None:
        return
    key = index.plate.fields[0].key
    inside = labels_inside(index.image(key)) is not None
    destination = "into its images" if inside else f"to {index.path}"
    yield "pixels in", f"{index.adopted}, where they lie; labels are written {destination}"
    source = pixel_source(index.image(key))
    assert source is not None
    level = index.adopted / source.image / str(source.levels[0])
    yield from _reading(index.adopted, array_facts(level), source.axes)
    if changed_keys := [field.key for field in index.plate.fields if _changes(index, field.key)]:
        yield "changed", f"since it was adopted: {_fields_text(changed_keys)}; {mend(index.adopted)}"


def _changes(index: Index, key: FieldKey) -> str:
    """Returns why pixels of a field of an adopted plate are not those measured; empty: they are."""
    source = pixel_source(index.image(key)) if index.adopted else None
    try:
        for level in range(len(source.levels) if source else 0):
            assert source is not None
            assert index.adopted is not None
            source.refuse_changed(index.adopted, level)
    except UserError as error:
        return str(error)
    return ""


def _reading(path: Path, array: ArrayFacts, axes: Sequence[str]) -> Iterator[Line]:
    """Yields what reading a crop takes, and what to do where that is much."""
    ratio = decoded_per_used(array, axes, CROP)
    converted = replace(array, chunk=tuple(CROP if axis in ("y", "x") else 1 for axis in axes))
    usual = decoded_per_used(converted, axes, CROP)
    chunk, names = " × ".join(map(str, array.chunk)), ", ".join(axes)
    advice = (
        f"; convert source={shlex.quote(str(path))} rewrites it for training" if ratio > SLOW * usual else ""
    )
    yield (
        "reading",
        f"chunks of {chunk} ({names}): a crop of {CROP}² pixels decodes {ratio:.3g} bytes for each that it "
        f"uses, {usual:.3g} on a converted plate{advice}",
    )


def _shapes(plate: Plate) -> Iterator[Line]:
    places = len(plate.rows) * len(plate.columns)
    yield "wells", f"{len(plate.wells)} of {places}, {plate.wells[0]} to {plate.wells[-1]}"
    yield "fields", f"{len(plate.fields)}"
    if len(plate.acquisitions) > 1:
        yield "passes", ", ".join(f"{number}: {name}" for number, name in plate.acquisitions.items())
    for (shape, dtype), count in Counter((f.shape, f.dtype) for f in plate.fields).most_common(SHOWN):
        t, c, z, y, x = shape
        yield "pixels", f"{y} × {x} {dtype}, channels {c}, planes {z}, times {t} (fields: {count})"


def _layout(index: Index) -> Iterator[Line]:
    plate = index.plate
    yield "plate", f"{plate.name}, fingerprint {index.fingerprint}, {index.path}"
    yield from _shapes(plate)
    pixel = f"{plate.pixel_um:g} µm" if plate.pixel_um else "unknown"
    step = f"{plate.plane_um:g} µm" if plate.plane_um else "unknown"
    yield "sizes", f"pixel {pixel}, distance of planes {step}, levels {index.levels(plate.fields[0].key)}"
    for name in ("instrument", "objective"):
        if plate.details.get(name):
            yield name, f"{plate.details[name]}"


def _shifts(index: Index) -> Iterator[Line]:
    """Yields how later acquisitions are shifted against the first, and where that is shown field by field."""
    if index.registration is None:
        return
    for line in registration.summary_lines(index.registration):
        yield "shifts", line
    for state in ("far", "rejected"):
        keys = [key for key, shift in index.registration.shifts.items() if shift.state == state]
        if keys:
            yield "shifts", f"{registration.MEANINGS[state]}: {_fields_text(keys)}"
    if index.registration.shifts:
        yield "shifts", f"of each field: {index.path / index.registration.file}"
    if (picture := index.path / registration.PICTURE).exists():
        yield "shifts", f"as arrows over the plate: {picture}"


def _channels(index: Index) -> Iterator[Line]:
    # Counts of different types cannot be put in one histogram: those of the commonest type are shown.
    dtype = Counter(field.dtype for field in index.plate.fields).most_common(1)[0][0]
    keys = [field.key for field in index.plate.fields if field.dtype == dtype]
    width = max(len(channel.name) for channel in index.plate.channels)
    for number, channel in enumerate(index.plate.channels):
        head = f"{channel.name:{width}}  {'fluorescent' if channel.fluorescent else 'label-free '}"
        try:
            counts = index.histogram(keys, number)
        except UserError:
            yield f"channel {number}", f"{head}  no pixels"
            continue
        median, bright = counts.percentile(50), counts.percentile(99.9)
        corrected = f"; corrected by the instrument ({channel.corrected})" if channel.corrected else ""
        yield f"channel {number}", f"{head}  median {median:.5g}, 99.9 % below {bright:.5g} counts{corrected}"


def _flags(index: Index) -> Iterator[Line]:
    fields = defaultdict(list)
    for key, statistics in index.statistics.items():
        for flag in statistics.flags:
            fields[flag].append(key)
    for flag, keys in sorted(fields.items()):
        word, _, channel = flag.partition(":")
        yield "flag", f"{word} in {index.plate.channels[int(channel)].name}: {_fields_text(keys)}"


def _labels(index: Index) -> Iterator[Line]:
    fields = defaultdict(list)
    for field in index.plate.fields:
        for name in label_names(index.image(field.key)):
            fields[name].append(field.key)
    for name, keys in sorted(fields.items()):
        notes = [annotation(index.image(key), name) for key in keys]
        origins = ", ".join(sorted({origin for origin, _ in notes}))
        boxes = sum(len(boxes) for _, boxes in notes)
        yield "labels", f"{name!r} ({origins}), annotation boxes: {boxes}; fields {_fields_text(keys)}"
        if differ := edited_fields(index, name, keys):
            yield (
                "edited",
                f"{name!r} since they were written, by a person or by damage: {_fields_text(differ)}",
            )


def edited_fields(index: Index, name: str, keys: Sequence[FieldKey]) -> list[FieldKey]:
    """Returns the fields whose labels have other pixels than were written, or none that can be read."""

    def differs(key: FieldKey) -> bool:
        try:
            return bool(edited(index.image(key), name))
        except UserError:
            return True  # nobody can tell whose labels these are

    with ThreadPoolExecutor(THREADS) as pool:
        return [key for key, is_edited in zip(keys, pool.map(differs, keys), strict=True) if is_edited]


def _plate_map(index: Index) -> Iterator[Line]:
    for column in sorted({name for facts in index.plate_map.values() for name in facts}):
        values = Counter(facts[column] for facts in index.plate_map.values() if column in facts)
        listing = ", ".join(f"{value} ({count})" for value, count in values.most_common(SHOWN))
        yield "plate map", f"{column}: {listing}" + (" …" if len(values) > SHOWN else "")


def _fields_text(keys: list[FieldKey]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(map(str, keys[:SHOWN])) + more


# ---------------------------------------------------------------- validate


def validate(path: Path, deep: bool = False) -> list[str]:
    """Returns what is wrong with a plate; nothing where it is valid.

    yaozarrs checks whether it is valid OME-Zarr; the rest checks that the index agrees with the images, all
    shards exist, and labels fit. `deep` also decodes every pixel and compares digests.
    """
    try:
        if is_unadopted(path):
            return [*_by_specification(path), *_problems_of_other(ome_zarr.read(path), deep)]
        index = open_plate(path)
    except UserError as error:
        return [str(error)]
    problems = _by_specification(index.path)
    if index.adopted:
        problems += [f"{index.adopted}: {problem}" for problem in _by_specification(index.adopted)]
    problems += [f"{partial}: left by a killed process" for partial in leftovers(index.path)]
    for field in index.plate.fields:
        problems += [f"{field.key}: {text}" for text in _image_problems(index, field, deep)]
    return problems


def _by_specification(path: Path) -> list[str]:
    """Returns what yaozarrs, which knows OME-Zarr 0.4 and 0.5, finds wrong with a plate."""
    from yaozarrs import validate_zarr_store

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # It reads by fsspec, which needs to be told the archive of a packed plate.
            validate_zarr_store(f"zip://::{path}" if packed.split(path) else str(path))
        except ValueError as error:  # its errors are ValueErrors
            kinds = {str(entry["type"]) for entry in error.errors()} if hasattr(error, "errors") else set()
            # It looks for the image that labels belong to outside of the archive; ours lies two folders up.
            if packed.split(path) and kinds == {"label_image_source_not_found"}:
                return []
            return [f"not valid OME-Zarr: {error}"]
        return [f"OME-Zarr: {warning.message}" for warning in caught]


def _problems_of_other(other: OtherPlate, deep: bool) -> Iterator[str]:
    """Yields what of another program's plate cannot be read, and what our verbs need and it lacks."""
    for problem in other.problems:
        yield f"{problem.key}: {problem.text}"
    for field in other.plate.fields:
        source = other.sources[field.key]
        for level, path in enumerate(source.levels):
            try:
                store = source.array(other.path, level) if path is not None else None
                if store is not None:  # one pixel decodes a chunk, and tells of a codec that is not known
                    (store if deep else store[..., :1, :1, :1]).read().result()
            except ValueError as error:
                yield f"{field.key}: level {level} cannot be decoded: {error}"
    yield from (f"for our verbs: {text}" for text in other.remarks)
    if other.plate.pixel_um is None:
        yield "for our verbs: the size of a pixel is not known; sizes will be in pixels"
    if all(channel.fluorescent for channel in other.plate.channels):
        yield "for our verbs: no channel is label-free by its name; adopt transmitted=[NAME] says which are"


def _image_problems(index: Index, field: Field, deep: bool) -> Iterator[str]:
    image, levels = index.image(field.key), index.levels(field.key)
    try:
        facts = read_group(image).get("hpc_isl", {})
        image_digest = facts.get("statistics", {}).get("digest")
        # The index is a cache of what the images hold: where they differ, the images count.
        if facts.get("field") != field_facts(field) or image_digest != index.statistics[field.key].digest:
            yield "the index differs from the image; remove index/fields.parquet to have it made anew"
        if reason := _changes(index, field.key):
            yield reason
        for level in range(levels if index.adopted is None else 0):
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
        if not packed.is_file(folder.joinpath("c", *map(str, place))):
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
    expected = label_depth(image) if folder.is_relative_to(labels_home(image)) else levels
    if len(paths) != expected:
        yield f"labels {name!r} have {len(paths)} levels; {expected} are expected, as many as the image has"
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
