"""The estimated costs of a conversion, and the messages before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from imagecodecs import blosc_encode

from hpc_isl.errors import UserError
from hpc_isl.plates.atomic_directory import free
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.plate import TRANSMITTED, Field, FieldKey, PlaneFile, doubtful_size
from hpc_isl.plates.readers.folder import left_out_lines
from hpc_isl.recipes.plates import CodecRecipe
from hpc_isl.stages.convert.problems import counted, listing
from hpc_isl.stages.convert.survey import Survey

SAMPLED_FILES = 1000
PYRAMID = 4 / 3  # levels below the first add a third

Files = Mapping[FieldKey, tuple[PlaneFile, ...]]


@dataclass(frozen=True)
class Costs:
    """Estimated bytes.

    Attributes:
        compressed: compressed over raw size, at most 1.
    """

    bytes_in: int
    bytes_out: int
    compressed: float


def estimate(fields: tuple[Field, ...], files: Files, codec: CodecRecipe) -> Costs:
    """Returns what converting these fields takes, from file sizes and one compressed plane per channel."""
    compressed = _compressed_share(fields, files, codec)
    raw = sum(int(np.prod(field.shape)) * np.dtype(field.dtype).itemsize for field in fields)
    paths = sorted({file.path for field in fields for file in files[field.key]})
    # Of many files from a sample: asking for the size of all takes minutes on a network disk.
    sizes = [path.stat().st_size for path in paths[:: max(len(paths) // SAMPLED_FILES, 1)] if path.exists()]
    return Costs(sum(sizes) * len(paths) // max(len(sizes), 1), int(raw * PYRAMID * compressed), compressed)


def _compressed_share(fields: tuple[Field, ...], files: Files, codec: CodecRecipe) -> float:
    """Returns compressed over raw size of one plane per channel of three fields spread over the plate."""
    if codec.name == "none" or not fields:
        return 1.0
    step = max(len(fields) // 3, 1)
    sampled = {
        (field.key, file.channel): file
        for field in fields[step // 2 :: step][:3]
        for file in files[field.key]
    }
    shares = []
    for file in sampled.values():
        try:
            plane = read_plane(file.path, file.page)
        except UserError:
            continue  # the conversion itself will name it
        edge, packed = codec.chunk, 0
        for y in range(0, plane.shape[0], edge):
            for x in range(0, plane.shape[1], edge):
                # The array itself, because bytes have no item size to shuffle by.
                chunk: Any = np.ascontiguousarray(plane[y : y + edge, x : x + edge])
                packed += len(blosc_encode(chunk, codec.level, compressor=codec.name, shuffle="bitshuffle"))
        shares.append(packed / plane.nbytes)
    return min(sum(shares) / len(shares), 1.0) if shares else 1.0


def readable(size: float) -> str:
    """Returns a number of bytes as text, as in "1.5 GB"."""
    unit, scale = ("GB", 1e9) if size >= 1e8 else ("MB", 1e6)
    return f"{size / scale:.{1 if size >= 10 * scale else 2}f} {unit}"


# ---------------------------------------------------------------- messages


def describe(survey: Survey, costs: Costs) -> tuple[str, ...]:
    """Returns lines for the user: what there is, what it takes, what is wrong."""
    plate, out = survey.plate, survey.recipe.out
    lines = [f"{plate.name}: {_counts(survey)}", *_kinds_of_channels(survey), *survey.export.remarks]
    if omitted := left_out_lines(survey.export.left_out, survey.recipe.source.resolve()):
        count = _many(len(survey.export.left_out), "file")
        lines += [f"{count} will not be stored:", *(f"  {line}" for line in omitted)]
    if plate.pixel_um is None:
        lines.append("pixel size unknown: positions are kept in pixels, no micrometres are invented")
    elif doubt := doubtful_size(plate):
        lines.append(f"warning: {doubt}")
    if survey.plate_map:
        columns = sorted({name for facts in survey.plate_map.values() for name in facts})
        missing = [well for well in plate.wells if well not in survey.plate_map]
        line = f"plate map: {len(survey.plate_map)} wells, columns {', '.join(columns)}"
        lines.append(line + (f"; not in it: {', '.join(missing[:10])}" if missing else ""))
    if survey.state == "finished" and not survey.todo:
        return (*lines, f"{out} holds this plate already: nothing to convert")
    if survey.state == "unfinished":
        lines.append(f"{out} is half converted: fields that are there and unchanged are kept")
    room = free(out)
    lines.append(
        f"{_many(len(survey.todo), 'field')} to convert: {readable(costs.bytes_in)} in, about "
        f"{readable(costs.bytes_out)} out (pixels take {100 * costs.compressed:.0f} % with "
        f"{survey.recipe.codec.name})" + (f", {readable(room)} free at {out}" if room is not None else "")
    )
    if survey.export.problems:
        lines += [f"planes of these fields are not there: {counted(survey.export.problems)}"]
        lines += listing(survey.export.problems)
    return tuple(lines)


def _counts(survey: Survey) -> str:
    plate = survey.plate
    shapes = Counter(field.shape for field in plate.fields)
    (times, _, depth, height, width), _ = shapes.most_common(1)[0]
    planes = _many(depth, "plane") + (f" × {times} times" if times > 1 else "")
    files = len({file.path for field in plate.fields for file in survey.export.files.get(field.key, ())})
    return (
        f"{_many(len(plate.fields), 'field')} in {_many(len(plate.wells), 'well')}, "
        f"{_many(len(plate.channels), 'channel')} ({', '.join(channel.name for channel in plate.channels)}), "
        f"{planes}, {height} × {width} pixels"
        + (" (fields differ)" if len(shapes) > 1 else "")
        + f", {_many(files, 'file')}"
    )


def _kinds_of_channels(survey: Survey) -> Iterator[str]:
    """Yields which channels a network may look at, and which it learns to predict."""
    channels = survey.plate.channels
    free = [channel.name for channel in channels if not channel.fluorescent]
    stains = [channel.name for channel in channels if channel.fluorescent]
    yield f"label-free: {', '.join(free) or 'none'}; stains: {', '.join(stains) or 'none'}"
    doubted = [name for name in stains if TRANSMITTED.search(name)]
    if doubted and survey.plate.details.get("reader") == "pattern":
        yield (
            f"warning: {', '.join(doubted)}: taken as stains, though the names say otherwise; "
            f"pattern.transmitted=[{', '.join([*free, *doubted])}] says that they are label-free"
        )


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
