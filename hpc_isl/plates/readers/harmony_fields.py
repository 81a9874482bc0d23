"""One field of a Harmony export: its shape, place, heights and times, from the records of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_isl.plates.plate import Field, FieldKey, PlaneFile, Problem, imaged
from hpc_isl.plates.readers import stacks
from hpc_isl.plates.readers.harmony_index import Image

Size = tuple[int, int]


@dataclass(frozen=True)
class ChannelOrder:
    """The vendor's numbers -> indices into the stored images: the same for all fields of the plate.

    Attributes:
        times: (TimepointID, number within a fast series) -> t
        channels: ChannelID -> c
        planes: PlaneID -> z
        names: of the channels, by c.
    """

    times: Mapping[tuple[int, int], int]
    channels: Mapping[int, int]
    planes: Mapping[int, int]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Camera:
    """What pixels are: (y, x) by ChannelID, numpy dtype name, edge of a pixel where it is known."""

    sizes: Mapping[int, Size]
    dtype: str
    pixel_um: float | None


def order(images: Sequence[Image]) -> ChannelOrder:
    """Ranks of the numbers that occur: TimepointID begins at 0 in Harmony V5 and at 1 in V7."""

    def ranks(values: set[Any]) -> dict[Any, int]:
        return {value: rank for rank, value in enumerate(sorted(values))}

    return ChannelOrder(
        times=ranks({image.time for image in images}),
        channels=ranks({image.channel for image in images}),
        planes=ranks({image.plane for image in images}),
    )


def field(
    key: FieldKey, images: Sequence[Image], stack: Sequence[PlaneFile], order: ChannelOrder, camera: Camera
) -> Field:
    """The field that `images` describe and `stack` holds the files of."""
    times, depth = stacks.extent(stack)
    size = camera.sizes[min(image.channel for image in images)]
    heights = _heights(images, order)
    longest = max(heights.values(), key=len, default=())
    stored = imaged([plane.place for plane in stack], order.names, times)
    details: dict[str, Any] = {**stored, "time": images[0].moment}
    if len(set(heights.values())) > 1:
        details["z_um"] = {name: list(values) for name, values in heights.items()}
    details |= _focus(images) | (_seconds(images, order) if times > 1 else {})
    return Field(
        key=key,
        shape=(times, len(order.names), depth, *size),
        dtype=camera.dtype,
        position_um=first_pixel(images[0], size, camera.pixel_um),
        z_um=longest if len(longest) == depth else (),
        details=details,
    )


def without_failures(
    files: Mapping[FieldKey, Sequence[PlaneFile]],
    images: Mapping[FieldKey, Sequence[Image]],
    order: ChannelOrder,
) -> tuple[dict[FieldKey, tuple[PlaneFile, ...]], list[Problem]]:
    """Returns the files without those that the instrument says it failed to take, which are problems."""
    kept: dict[FieldKey, tuple[PlaneFile, ...]] = {}
    problems = []
    for key, own in files.items():
        failed = {
            (order.times[image.time], order.channels[image.channel], order.planes[image.plane]): image
            for image in images[key]
            if image.failed
        }
        kept[key] = tuple(file for file in own if file.place not in failed)
        if named := [failed[file.place] for file in own if file.place in failed]:
            listed = stacks.listed([f"{image.url or image.id} ({image.state})" for image in named])
            problems.append(Problem(key, f"the instrument reports failures: {listed}", "failed"))
    return kept, problems


def first_pixel(image: Image, size: Size, pixel_um: float | None) -> tuple[float, float] | None:
    """(y, x) of the centre of the field's first pixel in µm, y down, from the centre of the well.

    Harmony states the centre of the field with y up, while the first row of the file is the upper
    one: so y turns its sign before half the image is taken off.
    """
    if image.x_um is None or image.y_um is None or pixel_um is None:
        return None
    half_y, half_x = ((length - 1) / 2 * pixel_um for length in size)
    return round(-image.y_um - half_y, 4), round(image.x_um - half_x, 4)


def _heights(images: Sequence[Image], order: ChannelOrder) -> dict[str, tuple[float, ...]]:
    """Channel name -> heights of its planes at its first time; empty where the vendor does not say."""
    heights: dict[int, dict[int, float | None]] = {}
    for image in sorted(images, key=lambda image: image.time):
        heights.setdefault(image.channel, {}).setdefault(image.plane, image.z_um)
    stated = {}
    for channel in sorted(heights):
        values = [z for _, z in sorted(heights[channel].items()) if z is not None]
        stated[order.names[order.channels[channel]]] = (
            tuple(values) if len(values) == len(heights[channel]) else ()
        )
    return stated


def _focus(images: Sequence[Image]) -> dict[str, float]:
    """Height of the stage at which the instrument found the bottom of the well."""
    for image in images:
        if image.stage_um is not None and image.z_um is not None:
            return {"focus_um": round(image.stage_um - image.z_um, 4)}
    return {}


def _seconds(images: Sequence[Image], order: ChannelOrder) -> dict[str, list[float | None]]:
    """Seconds from the start of the measurement, by time."""
    by_time: dict[int, float | None] = {}
    for image in images:
        by_time.setdefault(order.times[image.time], image.seconds)
    return {"seconds": [by_time[time] for time in sorted(by_time)]}
