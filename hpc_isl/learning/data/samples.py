"""From plates to samples: whole fields and random crops, read by one and the same code; permuted controls."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError, many
from hpc_isl.learning.data.augment import resize, shade, turn, zoom
from hpc_isl.learning.data.fields import (
    FieldView,
    NotImagedError,
    field_view,
    fields_of,
    image_key,
    training_view,
)
from hpc_isl.learning.data.pixels import Box, Pixels, pad
from hpc_isl.learning.data.split import Split
from hpc_isl.learning.data.view import (
    Foreground,
    View,
    common,
    counts,
    partnered,
    shifted,
    smallest,
    stack,
)
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index
from hpc_isl.recipes.training import AugmentRecipe, TrainRecipe
from hpc_isl.seeds import stream

REDRAWS = 8


def read(
    view: View, index: Index, key: FieldKey, time: int = 0, box: Box | None = None
) -> tuple[Pixels, Pixels | None]:
    """Returns what the network sees and should predict: sources (C, y, x) and targets (K, y, x), float32.

    Targets are None where the plate has no such channel, and NaN where another acquisition does not show the
    place; a source repeats its nearest pixel there.

    Args:
        box: (y, x) at the level read; None: the whole field.

    Raises:
        UserError: as `fields.field_view` does, and for pixels that cannot be read.
    """
    field = field_view(view, index, key, time)
    box = box or (slice(0, field.shape[0]), slice(0, field.shape[1]))
    if not field.targets:
        return stack(field.sources, box), None
    targets = stack(field.targets, box)
    for pixels, plane in zip(targets, field.targets, strict=True):
        valid_box = common(box, partnered(plane))
        if valid_box != box:
            inside = shifted(valid_box, (-box[0].start, -box[1].start))
            valid_pixels = pixels[inside].copy()
            pixels[:] = np.nan
            pixels[inside] = valid_pixels
    return stack(field.sources, box), targets


def drawn(seed: int, number: int, length: int) -> tuple[int, int]:
    """Returns epoch and crop of a sample: an epoch holds `length` crops, in an order of its own."""
    epoch, place = divmod(number, length)
    return epoch, int(_order(seed, epoch, length)[place])


# Every sample needs its epoch's order; at the end of an epoch a step needs two.
@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return stream(seed, "order", epoch).permutation(length)


@dataclass(frozen=True)
class Crops:
    """Training samples by number: seed and number decide what a sample holds, in any process.

    Number n is sample n % len of epoch n // len; an epoch holds `per_field` crops of each field, in
    an order of its own. A time of a field counts as a field.

    Attributes:
        edge: of a crop, in pixels.
        messages: for the user: fields left out, fields padded.
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

    def field(self, number: int) -> FieldView:
        """Returns the field that a sample comes from; reads nothing."""
        return self.fields[drawn(self.seed, number, len(self))[1] // self.per_field]

    def __getitem__(self, number: int) -> tuple[Pixels, Pixels]:
        """Returns source (C, edge, edge) and target (K, edge, edge), float32."""
        epoch, crop = drawn(self.seed, number, len(self))
        field, rng = self.fields[crop // self.per_field], stream(self.seed, "crop", epoch, crop)
        size = round(self.edge / zoom(self.augment, rng))
        box, stored = _place(field, size, self.foreground, rng)
        assert field.targets is not None  # crops_of leaves out such fields
        # The counts that decided on the place are not read again.
        planes = [stack(field.sources, box), stack(field.targets, box, stored)]
        sources, targets = (resize(pad(pixels, size), self.edge) for pixels in planes)
        if self.augment.flip:
            sources, targets = turn(sources, targets, rng)
        return shade(sources, self.augment, rng), targets


# ---------------------------------------------------------------- where a crop lies


def _place(
    field: FieldView, size: int, foreground: Foreground | None, rng: np.random.Generator
) -> tuple[Box, Mapping[tuple[object, ...], Pixels]]:
    """Returns a random box that holds the wanted foreground, and the counts that were read to know it.

    Where eight draws find none, the box is laid around a foreground pixel of the smallest level.
    """
    starts = [side.start for side in field.valid]
    lengths = [side.stop - side.start for side in field.valid]
    sides = [min(size, length) for length in lengths]

    def box_at(corner: Sequence[int]) -> Box:
        y, x = (slice(start, start + side) for start, side in zip(corner, sides, strict=True))
        return y, x

    def at_random() -> Box:
        places = zip(starts, lengths, sides, strict=True)
        return box_at([start + int(rng.integers(n - side + 1)) for start, n, side in places])

    plane = field.foreground
    if foreground is None or plane is None:
        return at_random(), {}
    for _ in range(REDRAWS):
        box = at_random()
        stored = counts(plane, box)
        if np.count_nonzero(stored > field.threshold) >= max(foreground.fraction * stored.size, 1):
            return box, {plane.place: stored}
    small = smallest(plane)
    scale = plane.shape[0] / small.shape[0], plane.shape[1] / small.shape[1]
    valid_box = common(small.whole, _scale_box(field.valid, scale))
    pixels = np.full(small.shape, -np.inf, np.float32)  # what has no partner is no foreground
    pixels[valid_box] = counts(small, valid_box)
    bright = np.argwhere(pixels > field.threshold)
    if not len(bright):
        # The coarsest level may average all bright pixels away.
        bright = np.argwhere(pixels == pixels.max())
    center = (bright[rng.integers(len(bright))] + 0.5) * np.divide(plane.shape, small.shape)
    spans = zip(center, sides, field.valid, strict=True)
    return box_at(
        [int(np.clip(middle - side / 2, valid.start, valid.stop - side)) for middle, side, valid in spans]
    ), {}


def _scale_box(box: Box, scale: tuple[float, float]) -> Box:
    """Returns a box on a coarser level, whose pixels are so many times as large."""
    y, x = (
        slice(int(side.start / step), ceil(side.stop / step)) for side, step in zip(box, scale, strict=True)
    )
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
    """Returns the crops of all training fields; reads no pixels.

    Args:
        control: permuted: each field has the targets of another one.

    Raises:
        UserError: all training fields lack a plane (ten are named); no field holds foreground; fields whose
            targets cannot be permuted.
    """
    fields, lacking = _training_fields(view, indices, split)
    kept_fields, dropped = fields, list[FieldView]()
    if view.foreground is not None:
        kept_fields, dropped = _split_by_foreground(view.foreground, indices, fields, train.crop)
    messages = list(_messages(fields, lacking, kept_fields, dropped, train.crop, view.foreground))
    if control == "permuted":
        kept_fields, control_messages = permuted(kept_fields, train.seed)
        messages += control_messages
    return Crops(
        fields=tuple(kept_fields),
        edge=train.crop,
        per_field=train.crops_per_field,
        seed=train.seed,
        augment=augment,
        foreground=view.foreground,
        messages=tuple(messages),
        dropped=(*(name for name, _ in lacking), *(f"{field.plate} {field.key}" for field in dropped)),
    )


def _training_fields(
    view: View, indices: Sequence[Index], split: Split
) -> tuple[list[FieldView], list[tuple[str, NotImagedError]]]:
    """Returns the training fields that have all planes of the view; and the others' names with the reason."""
    complete: list[FieldView] = []
    lacking: list[tuple[str, NotImagedError]] = []
    for index in indices:
        for key in fields_of(view, index, split, "train"):
            for time in range(index.field(key).shape[0]):
                try:
                    complete.append(training_view(view, index, key, time))
                except NotImagedError as error:
                    lacking.append((f"{index.plate.name} {key}", error))
    if not complete and lacking:
        lines = [f"  {error}" for _, error in lacking[:LISTED]] + ["  …"] * (len(lacking) > LISTED)
        raise UserError("\n".join([f"all {len(lacking)} training fields lack what is asked for:", *lines]))
    return complete, lacking


def _split_by_foreground(
    foreground: Foreground, indices: Sequence[Index], fields: Sequence[FieldView], edge: int
) -> tuple[list[FieldView], list[FieldView]]:
    """Returns fields in which some crop can hold the wanted foreground, and those in which none can."""
    plates = {index.plate.name: index for index in indices}
    kept_fields: list[FieldView] = []
    dropped: list[FieldView] = []
    for field in fields:
        sides = [min(side.stop - side.start, edge) for side in field.valid]
        needed = max(foreground.fraction * np.prod(sides), 1)
        index, at = plates[field.plate], image_key(field.key, foreground.role)
        histogram = index.histogram([at], index.channel(foreground.role.channel))
        # An upper bound: the histogram is of level 0, and of all planes of the channel together.
        upper_bound = histogram.fraction_above(field.threshold) * histogram.total
        (kept_fields if upper_bound >= needed else dropped).append(field)
    if not kept_fields:
        raise UserError(
            f"no training field holds {_foreground_text(foreground)} in a crop; "
            "set data.foreground.threshold, fraction, or required=false"
        )
    return kept_fields, dropped


def _foreground_text(foreground: Foreground) -> str:
    limit = "Otsu's threshold" if foreground.threshold is None else f"{foreground.threshold:g} counts"
    return f"{foreground.fraction:.2%} above {limit} of {foreground.role.channel!r}"


def _messages(
    fields: Sequence[FieldView],
    lacking: Sequence[tuple[str, NotImagedError]],
    kept_fields: Sequence[FieldView],
    dropped: Sequence[FieldView],
    edge: int,
    foreground: Foreground | None,
) -> Iterator[str]:
    """Yields what the user should know of the fields left out, and of the small ones."""

    def names_text(names: Sequence[str]) -> str:
        return ", ".join(names[:LISTED]) + (", …" * (len(names) > LISTED))

    if lacking:
        kinds = Counter(error.kind for _, error in lacking)
        kind_counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        names = names_text(list(dict.fromkeys(name for name, _ in lacking)))
        total = len(fields) + len(lacking)
        yield f"{len(lacking)} of {many(total, 'training field')} left out: {kind_counts} ({names})"
    small = [field for field in kept_fields if min(side.stop - side.start for side in field.valid) < edge]
    if small:
        yield (
            f"{len(small)} of {len(kept_fields)} fields are smaller than a crop ({edge} pixels): "
            "reflected to fit"
        )
    if dropped and foreground:
        names = names_text([f"{field.plate} {field.key}" for field in dropped])
        yield (
            f"{len(dropped)} of {many(len(kept_fields) + len(dropped), 'training field')} left out: no "
            f"crop has {_foreground_text(foreground)}: {names}"
        )


LISTED = 10


def permuted(fields: Sequence[FieldView], seed: int) -> tuple[list[FieldView], tuple[str, ...]]:
    """Returns the fields with the targets of others, in their own order, and messages for the user.

    Only fields of equal size, time and acquisition are exchanged: a field never learns its own stain,
    even at another time. A field that no other matches is left out.

    Raises:
        UserError: no two fields could be exchanged.
    """
    # By time too: a field must not learn its own stain at another time.
    groups = defaultdict(list)
    for number, field in enumerate(fields):
        groups[field.shape, field.time, field.key.acquisition].append(number)
    partners: dict[int, int] = {}
    for place, group in enumerate(groups.values()):
        # Each field takes the targets of the next one on a random ring, so that none takes its own.
        ring = [int(number) for number in stream(seed, "control", place).permutation(group)]
        if len(ring) > 1:
            partners.update(zip(ring, ring[1:] + ring[:1], strict=True))
    if not partners:
        raise UserError(
            "control=permuted: no two training fields have one size; fields whose stains can be exchanged "
            "are needed, or control=none"
        )
    permuted_fields = []
    for number, partner in sorted(partners.items()):
        target = fields[partner]
        # A crop's foreground is judged on the stain that it is to show.
        stain = {name: getattr(target, name) for name in ("targets", "foreground", "threshold")}
        valid = common(fields[number].valid, target.valid)
        permuted_fields.append(replace(fields[number], **stain, valid=valid))
    messages = [
        f"control=permuted: each of {len(permuted_fields)} training fields learns the stain of another one"
    ]
    if unmatched := [field for number, field in enumerate(fields) if number not in partners]:
        names = ", ".join(f"{field.plate} {field.key}" for field in unmatched[:LISTED])
        messages.append(
            f"{many(len(unmatched), 'training field', 'is', 'are')} left out of the control: no other "
            f"has their size: {names}" + (", …" * (len(unmatched) > LISTED))
        )
    return permuted_fields, tuple(messages)
