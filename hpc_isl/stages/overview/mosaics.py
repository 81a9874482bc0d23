"""Pictures of wells: all fields of one in a JPEG per channel, so small that a page holds a plate."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.pyramid import level_of_at_least
from hpc_isl.plates.store import Index
from hpc_isl.seeds import evenly_spread
from hpc_isl.stages.shared.shown_plane import shown_plane

EDGES = (256, 192, 128, 96, 80, 64, 48, 32, 24)
"""Possible edges of a field, in pixels: multiples of 8, so that no block of a JPEG holds two fields."""
MOST_BYTES = 24e6  # of all pictures together, in the page
NOT_IMAGED = 227  # the grey of missing wells in heat maps
QUALITY = 80
SAMPLE = 24  # pictures that are tried to choose the edge
THREADS = 4
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Mosaic:
    """The fields of a well in one channel.

    Attributes:
        jpeg: a picture of `across` fields in each row, in the order of `fields`, each `edge` pixels wide.
    """

    fields: tuple[FieldKey, ...]
    across: int
    edge: int
    jpeg: bytes


def mosaics(
    index: Index, wells: Mapping[str, Sequence[FieldKey]], channels: Sequence[int]
) -> dict[tuple[str, int], Mosaic]:
    """Returns (well, channel) -> picture; reads the smallest level of the pyramid that is large enough.

    Fields have the greatest of `EDGES` at which all pictures fit into `MOST_BYTES`, by a sample of them.
    """
    pairs = [(key, channel) for keys in wells.values() for key in keys for channel in channels]
    scales = {channel: contrast(index, [key for keys in wells.values() for key in keys], channel)
              for channel in channels}  # fmt: skip
    with ThreadPoolExecutor(THREADS) as pool:
        samples = list(pool.map(
            lambda pair: thumbnail(index, pair[0], pair[1], EDGES[0], scales[pair[1]]),
            evenly_spread(pairs, SAMPLE),
        ))  # fmt: skip
        edge = _edge([picture for picture in samples if picture is not None], len(pairs))

        def mosaic_of(item: tuple[str, int]) -> Mosaic:
            keys, channel = wells[item[0]], item[1]
            pictures = [thumbnail(index, key, channel, edge, scales[channel]) for key in keys]
            return _mosaic(tuple(keys), pictures, edge)

        items = [(well, channel) for channel in channels for well in wells]
        return dict(zip(items, pool.map(mosaic_of, items), strict=True))


def contrast(index: Index, keys: Sequence[FieldKey], channel: int) -> tuple[float, float]:
    """Returns the counts shown black and white: the same in all fields, so that these can be compared."""
    facts = [
        (plane.p1, plane.p999)
        for key in keys
        for (time, c, _), plane in index.statistics[key].planes.items()
        if (time, c) == (0, channel)
    ]
    if not facts:
        return 0.0, 1.0
    low, high = np.array(facts).T
    # A few fields of dust or saturated pixels would leave all others dark.
    bottom, top = float(np.percentile(low, 5)), float(np.percentile(high, 95))
    return bottom, max(top, bottom + 1)


def thumbnail(
    index: Index, key: FieldKey, channel: int, edge: int, scale: tuple[float, float]
) -> Pixels | None:
    """Returns (y, x) of at most `edge` pixels along each side; None: the channel was not imaged there."""
    level = level_of_at_least(index.field(key).shape, index.levels(key), edge)
    counts = shown_plane(index, key, channel, level)
    if counts is None:
        return None
    low, high = scale
    grey = ((counts.astype(np.float32) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    height, width = grey.shape
    size = (max(1, round(edge * width / max(grey.shape))), max(1, round(edge * height / max(grey.shape))))
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX))


def _edge(sample: Sequence[Pixels], count: int) -> int:
    """Returns the greatest edge at which so many pictures like these fit."""
    for edge in EDGES:
        thumbnails = [
            Image.fromarray(picture).resize((edge, edge), Image.Resampling.BOX) for picture in sample
        ]
        # In one file, because fields share those of their wells; base64 makes four bytes of three.
        picture_bytes = (
            len(_jpeg(np.hstack([np.asarray(picture) for picture in thumbnails]))) / len(thumbnails)
            if thumbnails
            else 0
        )
        if count * picture_bytes * 4 / 3 <= MOST_BYTES:
            return edge
    return EDGES[-1]


def _mosaic(keys: tuple[FieldKey, ...], pictures: Sequence[Pixels | None], edge: int) -> Mosaic:
    across = math.ceil(math.sqrt(len(keys)))
    canvas = np.zeros((edge * -(-len(keys) // across), edge * across), np.uint8)
    for number, picture in enumerate(pictures):
        y, x = edge * (number // across), edge * (number % across)
        if picture is None:
            canvas[y : y + edge, x : x + edge] = NOT_IMAGED
        else:
            canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return Mosaic(keys, across, edge, _jpeg(canvas))


def _jpeg(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY, optimize=True)
    return stream.getvalue()
