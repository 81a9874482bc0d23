"""A model on a plate that it was not made for: channels by other names, pixels of another size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, isclose

from hpc_isl.errors import UserError, nearest
from hpc_isl.learning.data.fields import field_view, image_key, level_on
from hpc_isl.learning.data.pixels import Box, Pixels
from hpc_isl.learning.data.planes import stack
from hpc_isl.learning.data.resample import resampled
from hpc_isl.learning.data.view import Role, View
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index

# Pixels of the plate up to so many times as large as the model's are interpolated, with a warning.
COARSEST = 2.0


# ---------------------------------------------------------------- channels


def renamed(view: View, channels: Mapping[str, str]) -> View:
    """The view in a plate's names of channels.

    Args:
        channels: the model's name -> the plate's; those that are not named keep theirs.

    Raises:
        UserError: a name that is none of the model's; two channels of the model that become one.
    """
    roles = view.sources + view.targets
    known = list(dict.fromkeys(role.channel for role in roles))
    for name in channels:
        if name not in known:
            raise UserError(f"channels: {name!r} is no channel of the model; {nearest(name, known)}")
    _refuse_merged(known, channels)
    shown = view.foreground
    return replace(
        view,
        sources=tuple(_renamed(role, channels) for role in view.sources),
        targets=tuple(_renamed(role, channels) for role in view.targets),
        profiles={channels.get(name, name): profile for name, profile in view.profiles.items()},
        foreground=shown and replace(shown, role=_renamed(shown.role, channels)),
    )


def _renamed(role: Role, channels: Mapping[str, str]) -> Role:
    return replace(role, channel=channels.get(role.channel, role.channel))


def _refuse_merged(known: list[str], channels: Mapping[str, str]) -> None:
    own: dict[str, str] = {}
    for name in known:
        first = own.setdefault(channels.get(name, name), name)
        if first != name:
            raise UserError(
                f"channels: {channels.get(name, name)!r} would be both {first!r} and {name!r} of the model; "
                "give each a channel of its own"
            )


def stains_of(view: View, indices: Sequence[Index]) -> dict[str, bool]:
    """Channel that the view looks at -> whether it is a stain on the plates that have it."""
    return {
        role.channel: any(index.plate.channels[index.channel(role.channel)].fluorescent for index in indices)
        for role in view.sources
    }


def unlike_channels(
    view: View, stains: Mapping[str, bool], channels: Mapping[str, str], index: Index
) -> Iterator[str]:
    """Channels of a plate that are of another kind than those that a model learnt from, in words.

    Args:
        view: of the model, in its own names of channels.
        stains: of its contract; a model of an earlier version has none, and is taken to have learnt from
            label-free images as far as its channels are given other names.
        channels: the model's name -> the plate's.
    """
    for name in dict.fromkeys(role.channel for role in view.sources):
        there = channels.get(name, name)
        known = stains.get(name, False if name in channels else None)
        stained = index.plate.channels[index.channel(there)].fluorescent
        if known is not None and stained != known:
            kinds = ("a label-free image", "a stain")
            yield (
                f"{there!r} of {index.path} is {kinds[stained]}, and the model learnt from {kinds[known]}, "
                f"{name!r}: what it makes of that means nothing, unless the plate is mistaken about it"
            )


# ---------------------------------------------------------------- size of pixels


@dataclass(frozen=True)
class Scale:
    """How the pixels of a field and those that the model sees lie to each other, from one corner.

    Attributes:
        level: of the pyramid that is read, `stored` its shape (y, x).
        factor: so many of its pixels make an edge of the model's; 1: they are the model's.
        shape: (y, x) of the model's grid, which covers the field; its last pixels may stick out.
        pixel_um: edge of a pixel of that grid in micrometres, or None: unknown.
    """

    level: int
    factor: float
    shape: tuple[int, int]
    stored: tuple[int, int]
    pixel_um: float | None = None

    @property
    def to_level_0(self) -> float:
        """So many pixels of level 0 make an edge of the model's."""
        return self.factor * (1 << self.level)


def scale_on(view: View, index: Index, key: FieldKey, pixel_um: float | None = None) -> Scale:
    """The scale of a field for a model: the level whose pixels are the model's (within 5 %), else resampled.

    Resampled is the coarsest level whose pixels are not larger than the model's. Where a size is not
    known, that is the level that the model was made for, as it is.

    Args:
        pixel_um: edge of the model's pixels in micrometres, instead of what the view says.

    Raises:
        UserError: the plate's pixels are more than twice as large as the model's.
    """
    at = image_key(key, view.sources[0])
    wanted, size = pixel_um or view.pixel_um, index.plate.pixel_um
    if wanted is None or size is None:
        return _scale(index, at, level_on(replace(view, pixel_um=None), index, at), 1.0, wanted)
    factors = [wanted / (size * (1 << level)) for level in range(index.levels(at))]
    for level, factor in enumerate(factors):
        if isclose(factor, 1, rel_tol=0.05):
            return _scale(index, at, level, 1.0)
    level = max((n for n, factor in enumerate(factors) if factor > 1), default=0)
    if factors[level] < 1:
        _judge(index, size, wanted)
    return _scale(index, at, level, factors[level])


def _judge(index: Index, size: float, wanted: float) -> None:
    """Detail that was never imaged cannot be interpolated: warned of, and refused beyond a factor of 2."""
    text = f"{index.path}: its pixels of {size:g} µm are larger than the {wanted:g} µm that the model sees"
    if size > wanted * COARSEST * 1.0001:
        raise UserError(
            f"{text}, by more than {COARSEST:g}; image with pixels of {wanted:g} µm, or take a model that "
            f"was trained at {size / COARSEST:g} µm or more (data.level); if the size that the model sees is "
            "stated wrongly, pixel_um says it"
        )
    warnings.warn(f"{text}: they are interpolated, and what is finer is not there to be seen", stacklevel=3)


def _scale(index: Index, at: FieldKey, level: int, factor: float, pixel_um: float | None = None) -> Scale:
    """`pixel_um` counts where the plate's own is not known."""
    if index.plate.pixel_um is not None:
        pixel_um = index.plate.pixel_um * (1 << level) * factor
    y, x = (-(-length // (1 << level)) for length in index.field(at).shape[-2:])
    shape = (ceil(y / factor - 1e-9), ceil(x / factor - 1e-9))
    return Scale(level, factor, shape, (y, x), pixel_um)


def at_scale(view: View, scale: Scale) -> View:
    """The view that reads the level of a scale, whatever the size of its pixels."""
    rule = view.normalize
    local = rule.model_copy(update={"local_px": round(rule.local_px * scale.factor)})
    return replace(view, level=scale.level, pixel_um=None, normalize=local)


# ---------------------------------------------------------------- pixels


def read_sources(
    view: View, index: Index, key: FieldKey, time: int, scale: Scale, box: Box | None = None
) -> Pixels:
    """What the network sees of a field: (source, y, x) float32, normalised, on the model's grid.

    Args:
        box: (y, x) of that grid, the same bits as in the whole; None: the whole field.

    Raises:
        UserError: as `fields.field_view` does, and for pixels that cannot be read.
    """
    seen = replace(at_scale(view, scale), targets=(), foreground=None)
    planes = field_view(seen, index, key, time).sources
    box = box or _whole(scale.shape)
    if scale.factor == 1:
        return stack(planes, box)
    return resampled(lambda part: stack(planes, part), box, scale.factor, scale.stored)


def to_full(prediction: Pixels, scale: Scale, shape: tuple[int, int]) -> Pixels:
    """A prediction (k, y, x) on the model's grid at level 0: (k, *shape), by bilinear interpolation."""
    return to_full_box(lambda box: prediction[:, *box], scale, _whole(shape))


def to_full_box(read: Callable[[Box], Pixels], scale: Scale, box: Box) -> Pixels:
    """The same for a box (y, x) of level 0, bit for bit.

    Args:
        read: box of the model's grid -> (k, y, x) float32; asked for what is needed alone.
    """
    if scale.to_level_0 == 1:
        return read(box)
    return resampled(read, box, 1 / scale.to_level_0, scale.shape)


def _whole(shape: tuple[int, int]) -> Box:
    return slice(0, shape[0]), slice(0, shape[1])
