"""A model on a plate that it was not made for: channels of other names, pixels of another size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError, nearest
from hpc_isl.learning.data.fields import field_view, image_key, level_on
from hpc_isl.learning.data.pixels import Box, Pixels
from hpc_isl.learning.data.view import Role, View, same_pixel_size, stack
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index

# Pixels of the plate up to so many times as large as the model's are interpolated, with a warning.
COARSEST = 2.0
BAND = 32  # rows of the result at a time: they stay in a processor's cache, which makes it six times as fast


# ---------------------------------------------------------------- channels


def renamed(view: View, channels: Mapping[str, str]) -> View:
    """Returns the view in a plate's names of channels.

    Args:
        channels: the model's name -> the plate's; those that are not named keep theirs.

    Raises:
        UserError: a name that is none of the model's; two channels of the model that become one.
    """
    roles = view.sources + view.targets
    names = list(dict.fromkeys(role.channel for role in roles))
    for name in channels:
        if name not in names:
            raise UserError(f"channels: {name!r} is no channel of the model; {nearest(name, names)}")
    new_names = {name: channels.get(name, name) for name in names}
    for name in names:
        if (first := next(earlier for earlier in names if new_names[earlier] == new_names[name])) != name:
            raise UserError(
                f"channels: {new_names[name]!r} would be both {first!r} and {name!r} of the model; give each "
                "a channel of its own"
            )

    def role_of(role: Role) -> Role:
        return replace(role, channel=channels.get(role.channel, role.channel))

    foreground = view.foreground
    return replace(
        view,
        sources=tuple(map(role_of, view.sources)),
        targets=tuple(map(role_of, view.targets)),
        profiles={channels.get(name, name): profile for name, profile in view.profiles.items()},
        foreground=foreground and replace(foreground, role=role_of(foreground.role)),
    )


def stains_of(view: View, indices: Sequence[Index]) -> dict[str, bool]:
    """Returns each channel that the view sees -> whether it is a stain on any of the plates."""
    return {
        role.channel: any(index.plate.channels[index.channel(role.channel)].fluorescent for index in indices)
        for role in view.sources
    }


def unlike_channels(
    view: View, stains: Mapping[str, bool], channels: Mapping[str, str], index: Index
) -> Iterator[str]:
    """Yields a message for each channel of a plate of another kind than the one that a model learnt from.

    Args:
        view: of the model, in its own names of channels.
        stains: of its contract; a model of an earlier version has none, and is taken to have learnt from
            label-free images as far as its channels are given other names.
        channels: the model's name -> the plate's.
    """
    for name in dict.fromkeys(role.channel for role in view.sources):
        plate_channel = channels.get(name, name)
        learnt_stain = stains.get(name, False if name in channels else None)
        is_stain = index.plate.channels[index.channel(plate_channel)].fluorescent
        if learnt_stain is not None and is_stain != learnt_stain:
            kinds = ("a label-free image", "a stain")
            yield (
                f"{plate_channel!r} of {index.path} is {kinds[is_stain]}, and the model learnt from "
                f"{kinds[learnt_stain]}, {name!r}: what it makes of that means nothing, unless the plate is "
                "mistaken about it"
            )


# ---------------------------------------------------------------- size of pixels


@dataclass(frozen=True)
class Scale:
    """How the pixels of a field relate to those that the model sees, both counted from the same corner.

    Attributes:
        level: of the pyramid that is read; `stored`: its shape (y, x).
        factor: edge of the model's pixel in pixels of that level; 1: they are the model's.
        shape: (y, x) of the model's grid, which covers the field; its last pixels may extend beyond it.
        pixel_um: edge of a pixel of that grid in micrometres, or None: unknown.
    """

    level: int
    factor: float
    shape: tuple[int, int]
    stored: tuple[int, int]
    pixel_um: float | None = None

    @property
    def to_level_0(self) -> float:
        """Edge of the model's pixel in pixels of level 0."""
        return self.factor * (1 << self.level)


def scale_on(view: View, index: Index, key: FieldKey, pixel_um: float | None = None) -> Scale:
    """Returns the scale of a field for a model: of the level whose pixels are the model's.

    If there is none, the coarsest level whose pixels are not larger than the model's is resampled. Where a
    size is not known, the level that the model was made for is read as it is.

    Args:
        pixel_um: edge of the model's pixels in micrometres, instead of what the view says.

    Raises:
        UserError: the plate's pixels are more than twice as large as the model's.
    """
    at = image_key(key, view.sources[0])
    model_um, plate_um = pixel_um or view.pixel_um, index.plate.pixel_um
    if model_um is None or plate_um is None:
        return _scale(index, at, level_on(replace(view, pixel_um=None), index, at), 1.0, model_um)
    # Level n has pixels of 2^n times the size.
    factors = [model_um / (plate_um * (1 << level)) for level in range(index.levels(at))]
    for level, factor in enumerate(factors):
        if same_pixel_size(factor, 1):
            return _scale(index, at, level, 1.0)
    level = max((n for n, factor in enumerate(factors) if factor > 1), default=0)
    if factors[level] < 1:
        # Detail that was never imaged cannot be interpolated.
        text = (
            f"{index.path}: its pixels of {plate_um:g} µm are larger than the {model_um:g} µm that the model "
            "sees"
        )
        if plate_um > model_um * COARSEST * 1.0001:
            raise UserError(
                f"{text}, by more than {COARSEST:g}; image with pixels of {model_um:g} µm, or take a model "
                f"that was trained at {plate_um / COARSEST:g} µm or more (data.level); if the size that the "
                "model sees is stated wrongly, pixel_um says it"
            )
        warnings.warn(
            f"{text}: they are interpolated, and what is finer is not there to be seen", stacklevel=2
        )
    return _scale(index, at, level, factors[level])


def _scale(index: Index, at: FieldKey, level: int, factor: float, pixel_um: float | None = None) -> Scale:
    """Returns the scale; `pixel_um` is used where the plate's own size is not known."""
    if index.plate.pixel_um is not None:
        pixel_um = index.plate.pixel_um * (1 << level) * factor
    y, x = (-(-length // (1 << level)) for length in index.field(at).shape[-2:])
    # 1e-9: a quotient that rounding has raised above a whole number adds no pixel.
    shape = (ceil(y / factor - 1e-9), ceil(x / factor - 1e-9))
    return Scale(level, factor, shape, (y, x), pixel_um)


def at_scale(view: View, scale: Scale) -> View:
    """Returns the view that reads the level of a scale, whatever the size of its pixels."""
    rule = view.normalize
    scaled_rule = rule.model_copy(update={"local_px": round(rule.local_px * scale.factor)})
    return replace(view, level=scale.level, pixel_um=None, normalize=scaled_rule)


# ---------------------------------------------------------------- pixels


def read_sources(
    view: View, index: Index, key: FieldKey, time: int, scale: Scale, box: Box | None = None
) -> Pixels:
    """Returns what the network sees of a field: (source, y, x) float32, normalised, on the model's grid.

    Args:
        box: (y, x) of that grid, with the same bits as in the whole field; None: the whole field.

    Raises:
        UserError: as `fields.field_view` does, and for pixels that cannot be read.
    """
    source_view = replace(at_scale(view, scale), targets=(), foreground=None)
    planes = field_view(source_view, index, key, time).sources
    box = box or (slice(0, scale.shape[0]), slice(0, scale.shape[1]))
    if scale.factor == 1:
        return stack(planes, box)
    return resampled(lambda part: stack(planes, part), box, scale.factor, scale.stored)


def to_full(prediction: Pixels, scale: Scale, shape: tuple[int, int]) -> Pixels:
    """Returns a prediction (k, y, x) on the model's grid at level 0: (k, *shape), interpolated bilinearly."""
    whole = (slice(0, shape[0]), slice(0, shape[1]))
    return to_full_box(lambda box: prediction[:, *box], scale, whole)


def to_full_box(read: Callable[[Box], Pixels], scale: Scale, box: Box) -> Pixels:
    """Returns a box (y, x) of level 0 of a prediction, with the same bits as `to_full`.

    Args:
        read: box of the model's grid -> (k, y, x) float32; called for the needed pixels alone.
    """
    if scale.to_level_0 == 1:
        return read(box)
    return resampled(read, box, 1 / scale.to_level_0, scale.shape)


def labels_to_full(labels: NDArray[np.uint32], scale: Scale, shape: tuple[int, int]) -> NDArray[np.uint32]:
    """Returns labels (y, x) on the model's grid at level 0, of `shape`: each pixel has the nearest one's."""
    rows, columns = (((np.arange(length) + 0.5) / scale.to_level_0).astype(np.int64) for length in shape)
    return labels[np.ix_(rows, columns)]


# ---------------------------------------------------------------- resampling


@dataclass(frozen=True)
class Taps:
    """The pixels of an axis that make up those of another: (output, tap) indices and weights."""

    indices: NDArray[np.int64]
    weights: Pixels

    @property
    def read(self) -> slice:
        """The range of the input that is needed."""
        return slice(int(self.indices.min()), int(self.indices.max()) + 1)


def taps(wanted: slice, step: float, length: int) -> Taps:
    """Returns the taps of output pixels `wanted`, each as long as `step` of the `length` input pixels.

    Weights fall off as a triangle of at least one pixel on each side, and of one output pixel where there
    are fewer of them: bilinear interpolation, and its antialiased form. An output pixel may extend beyond
    the input by less than its length; the pixels that it covers decide.
    """
    reach = max(step, 1.0)
    centers = (np.arange(wanted.start, wanted.stop) + 0.5) * step - 0.5
    first = np.floor(centers - reach).astype(np.int64) + 1
    places = first[:, None] + np.arange(int(np.ceil(2 * reach)))
    weights = np.maximum(1 - np.abs(places - centers[:, None]) / reach, 0)
    # Pixels beyond the image count for nothing; the others then share their weight.
    weights[(places < 0) | (places >= length)] = 0
    weights /= weights.sum(1, keepdims=True)
    return Taps(np.clip(places, 0, length - 1), weights.astype(np.float32))


def resampled(read: Callable[[Box], Pixels], box: Box, step: float, shape: tuple[int, int]) -> Pixels:
    """Returns a box of an image (c, y, x) whose pixels are as long as `step` of those that `read` gives.

    A pixel is the square that it covers, on both grids from the same corner. A box has the same bits as
    the whole result: `torch.nn.functional.interpolate` gives the same up to rounding, but its result
    depends on where its input was cut.

    Args:
        read: box of an image of `shape` (y, x) -> (c, y, x) float32; called for the needed pixels alone.
        box: (y, x) of the result.
    """
    rows, columns = (taps(side, step, length) for side, length in zip(box, shape, strict=True))
    pixels = read((rows.read, columns.read))
    result = np.empty((len(pixels), len(rows.indices), len(columns.indices)), np.float32)
    for start in range(0, len(rows.indices), BAND):
        band = slice(start, start + BAND)
        part = _along_rows(pixels, rows.indices[band] - rows.read.start, rows.weights[band])
        # Columns become rows, because whole rows are contiguous in memory.
        transposed = np.ascontiguousarray(part.swapaxes(1, 2))
        across = _along_rows(transposed, columns.indices - columns.read.start, columns.weights)
        result[:, band] = across.swapaxes(1, 2)
    return result


def _along_rows(pixels: Pixels, indices: NDArray[np.int64], weights: Pixels) -> Pixels:
    """Multiplies and adds tap by tap, so that no pixel depends on which others are computed."""
    total = pixels[:, indices[:, 0]] * weights[:, :1]
    for tap in range(1, indices.shape[1]):
        total += pixels[:, indices[:, tap]] * weights[:, tap, None]
    return total
