"""From plates to samples: whole fields and random crops, read by one and the same code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.learning.data.augment import resize, shade, turn, zoom
from hpc_isl.learning.data.fields import (
    FieldView,
    NotImagedError,
    field_view,
    fields_of,
    image_key,
    training_view,
)
from hpc_isl.learning.data.numbering import drawn
from hpc_isl.learning.data.permuted_control import LISTED, permuted
from hpc_isl.learning.data.pixels import Box, Pixels, pad
from hpc_isl.learning.data.planes import Plane, counts, smallest, stack
from hpc_isl.learning.data.split import Split
from hpc_isl.learning.data.view import Foreground, View
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index
from hpc_isl.recipes.training import AugmentRecipe, TrainRecipe
from hpc_isl.seeds import stream

REDRAWS = 8


def read(
    view: View, index: Index, key: FieldKey, time: int = 0, box: Box | None = None
) -> tuple[Pixels, Pixels | None]:
    """What the network sees and should say: sources (C, y, x) and targets (K, y, x), float32.

    Args:
        box: (y, x) at the level read; None: the whole field.

    Returns:
        Targets are None where the plate has no such channel.

    Raises:
        UserError: as `fields.field_view` does, and for pixels that cannot be read.
    """
    found = field_view(view, index, key, time)
    box = box or (slice(0, found.shape[0]), slice(0, found.shape[1]))
    return stack(found.sources, box), stack(found.targets, box) if found.targets else None


@dataclass(frozen=True)
class Crops:
    """Training samples by number: what a number gives depends on the seed alone, not on who asks.

    Number n is sample n % len of epoch n // len; an epoch holds `per_field` crops of each field, in
    an order of its own. A time of a field counts as a field.

    Attributes:
        edge: of a crop, in pixels.
        says: what a user should know: fields left out, fields padded.
        dropped: fields in which no crop could hold the foreground that is required, or that lack a plane.
    """

    fields: tuple[FieldView, ...]
    edge: int
    per_field: int
    seed: int
    augment: AugmentRecipe
    foreground: Foreground | None = None
    messages: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.fields) * self.per_field

    def __getitem__(self, number: int) -> tuple[Pixels, Pixels]:
        """Source (C, edge, edge) and target (K, edge, edge), float32."""
        epoch, crop = drawn(self.seed, number, len(self))
        return self._crop(self.fields[crop // self.per_field], stream(self.seed, "crop", epoch, crop))

    def field(self, number: int) -> FieldView:
        """The field that a sample comes from; reads nothing."""
        return self.fields[drawn(self.seed, number, len(self))[1] // self.per_field]

    def _crop(self, field: FieldView, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        size = round(self.edge / zoom(self.augment, rng))
        box, stored = _place(field, size, self.foreground, rng)
        assert field.targets is not None  # crops_of refuses such fields
        planes = [stack(field.sources, box), stack(field.targets, box, stored)]
        sources, targets = (resize(pad(pixels, size), self.edge) for pixels in planes)
        if self.augment.flip:
            sources, targets = turn(sources, targets, rng)
        return shade(sources, self.augment, rng), targets


# ---------------------------------------------------------------- where a crop lies


def _place(
    field: FieldView, size: int, wanted: Foreground | None, rng: np.random.Generator
) -> tuple[Box, Mapping[tuple[object, ...], Pixels]]:
    """A box at random that holds the foreground wanted, and the counts that had to be read to know.

    Where eight draws find none, the box is laid around a foreground pixel of the smallest level.
    """
    sides = [min(size, length) for length in field.shape]
    plane = field.foreground
    if wanted is None or plane is None:
        return _at_random(field.shape, sides, rng), {}
    for _ in range(REDRAWS):
        box = _at_random(field.shape, sides, rng)
        stored = counts(plane, box)
        if np.count_nonzero(stored > field.threshold) >= max(wanted.fraction * stored.size, 1):
            return box, {plane.place: stored}
    return _around_foreground(plane, field.threshold, sides, rng), {}


def _at_random(shape: tuple[int, int], sides: Sequence[int], rng: np.random.Generator) -> Box:
    return _box([int(rng.integers(n - side + 1)) for n, side in zip(shape, sides, strict=True)], sides)


def _around_foreground(plane: Plane, threshold: float, sides: Sequence[int], rng: np.random.Generator) -> Box:
    small = smallest(plane)
    pixels = counts(small, small.whole)
    bright = np.argwhere(pixels > threshold)
    if not len(bright):
        bright = np.argwhere(pixels == pixels.max())
    center = (bright[rng.integers(len(bright))] + 0.5) * np.divide(plane.shape, small.shape)
    corner = [
        int(np.clip(c - side / 2, 0, n - side)) for c, side, n in zip(center, sides, plane.shape, strict=True)
    ]
    return _box(corner, sides)


def _box(corner: Sequence[int], sides: Sequence[int]) -> Box:
    y, x = (slice(start, start + side) for start, side in zip(corner, sides, strict=True))
    return y, x


# ---------------------------------------------------------------- planning


def crops_of(
    view: View,
    indices: Sequence[Index],
    split: Split,
    train: TrainRecipe,
    augment: AugmentRecipe,
    control: str = "none",
) -> Crops:
    """The crops of all training fields; reads no pixels.

    Args:
        control: permuted: each field has the targets of another one.

    Raises:
        UserError: all training fields lack a plane (ten are named); no field holds foreground; fields whose
            targets cannot be permuted.
    """
    good, lacking = _training_fields(view, indices, split)
    kept, dropped = _with_foreground(view, indices, good, train.crop)
    messages = (*_lacking(lacking, len(good)), *_messages(kept, dropped, train.crop, view.foreground))
    if control == "permuted":
        kept, more = permuted(kept, train.seed)
        messages += more
    return Crops(
        fields=tuple(kept),
        edge=train.crop,
        per_field=train.crops_per_field,
        seed=train.seed,
        augment=augment,
        foreground=view.foreground,
        messages=messages,
        dropped=(*(name for name, _ in lacking), *(f"{field.plate} {field.key}" for field in dropped)),
    )


def _training_fields(
    view: View, indices: Sequence[Index], split: Split
) -> tuple[list[FieldView], list[tuple[str, NotImagedError]]]:
    """The training fields that have what the view means, and the others: name and reason."""
    good: list[FieldView] = []
    lacking: list[tuple[str, NotImagedError]] = []
    for index in indices:
        for key in fields_of(view, index, split, "train"):
            for time in range(index.field(key).shape[0]):
                try:
                    good.append(training_view(view, index, key, time))
                except NotImagedError as error:
                    lacking.append((f"{index.plate.name} {key}", error))
    if not good and lacking:
        lines = [f"  {error}" for _, error in lacking[:LISTED]] + ["  …"] * (len(lacking) > LISTED)
        raise UserError("\n".join([f"all {len(lacking)} training fields lack what is asked for:", *lines]))
    return good, lacking


def _lacking(lacking: Sequence[tuple[str, NotImagedError]], good: int) -> list[str]:
    """The line that counts the fields left out, by what they lack."""
    if not lacking:
        return []
    kinds = Counter(error.kind for _, error in lacking)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    names = list(dict.fromkeys(name for name, _ in lacking))
    named = ", ".join(names[:LISTED]) + (", …" * (len(names) > LISTED))
    return [f"{len(lacking)} of {good + len(lacking)} training fields are left out: {counted} ({named})"]


def _with_foreground(
    view: View, indices: Sequence[Index], fields: Sequence[FieldView], edge: int
) -> tuple[list[FieldView], list[FieldView]]:
    """Fields in which some crop can hold the foreground wanted, and those in which none can."""
    wanted = view.foreground
    if wanted is None:
        return list(fields), []
    plates = {index.plate.name: index for index in indices}
    kept: list[FieldView] = []
    dropped: list[FieldView] = []
    for field in fields:
        needed = max(wanted.fraction * np.prod(np.minimum(field.shape, edge)), 1)
        (kept if _most(plates[field.plate], field, wanted) >= needed else dropped).append(field)
    if not kept:
        raise UserError(
            f"no training field holds {_named(wanted)} in a crop; "
            "set data.foreground.threshold, fraction, or required=false"
        )
    return kept, dropped


def _most(index: Index, field: FieldView, wanted: Foreground) -> float:
    """At most so many pixels of the field are foreground: those of level 0, of all its planes together."""
    key = image_key(field.key, wanted.role)
    histogram = index.histogram([key], index.channel(wanted.role.channel))
    return histogram.fraction_above(field.threshold) * histogram.total


def _named(wanted: Foreground) -> str:
    limit = "Otsu's threshold" if wanted.threshold is None else f"{wanted.threshold:g} counts"
    return f"{wanted.fraction:.2%} above {limit} of {wanted.role.channel!r}"


def _messages(
    kept: Sequence[FieldView], dropped: Sequence[FieldView], edge: int, wanted: Foreground | None
) -> Iterator[str]:
    small = [field for field in kept if min(field.shape) < edge]
    if small:
        yield f"{len(small)} of {len(kept)} fields are smaller than a crop ({edge} pixels): reflected to fit"
    if dropped and wanted:
        named = ", ".join(f"{field.plate} {field.key}" for field in dropped[:LISTED])
        yield (
            f"{len(dropped)} of {len(kept) + len(dropped)} training fields are left out, for no crop has "
            f"{_named(wanted)}: {named}" + (", …" * (len(dropped) > LISTED))
        )
