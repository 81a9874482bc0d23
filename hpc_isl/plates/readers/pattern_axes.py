"""Wells, fields, channels and indices of a plate, from what file names or a table state."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hpc_isl.errors import UserError, nearest
from hpc_isl.plates.plate import FORMATS, Channel, FieldKey, layout, row_name, well_name, well_position
from hpc_isl.plates.readers.export import Layout
from hpc_isl.plates.readers.pattern_names import Named, natural
from hpc_isl.recipes.plates import PatternRecipe

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_FIELD = re.compile(r"(?!\d+x)[A-Za-z0-9]+")  # 1x2 would read as field 2 of acquisition 1
_COLORS = ("0000FF", "00FF00", "FF0000", "FF00FF", "00FFFF", "FFFF00")


@dataclass(frozen=True)
class Wells:
    """The wells of the plate.

    Attributes:
        rows, columns: of the plate's format.
        names: what the files state (well or image) -> well.
        plate_map: where images stand for wells: well -> {"image": its name}.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    names: Mapping[str, str]
    plate_map: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Axes:
    """All that the names state of a plate: mappings lead from their text to names and indices.

    Attributes:
        times: (acquisition, the file's text) -> t.
    """

    wells: Wells
    channels: tuple[Channel, ...]
    channel_of: Mapping[str, int]
    fields: Mapping[str, str]
    acquisitions: Mapping[str, int]
    times: Mapping[tuple[int, str], int]

    def key(self, named: Named) -> FieldKey:
        """Returns the field that a file belongs to."""
        well = self.wells.names[named.well or named.image]
        return FieldKey(well, self.fields[named.field], self.acquisitions[named.acquisition])


def axes(named: Sequence[Named], recipe: PatternRecipe) -> Axes:
    """Returns wells, channels, fields, acquisitions and times of the files, in order.

    Raises:
        UserError: naming a file: no well name, wells that do not fit the plate, a channel that
            pattern.channels does not list.
    """
    acquisitions = _ranks({n.acquisition for n in named})
    times: dict[int, set[str]] = defaultdict(set)
    for n in named:
        times[acquisitions[n.acquisition]].add(n.time)
    stored, channel_of = _channels(named, recipe)
    names = {n.field for n in named}
    if all(_FIELD.fullmatch(name) for name in names if name):  # alphanumeric, as OME-Zarr asks
        fields = {name: name or "1" for name in names}
    else:
        fields = {name: str(rank + 1) for name, rank in _ranks(names).items()}
    return Axes(
        wells=_wells(named, recipe),
        channels=stored,
        channel_of=channel_of,
        fields=fields,
        acquisitions=acquisitions,
        times={(a, text): t for a, texts in times.items() for text, t in _ranks(texts).items()},
    )


def plane_number(named: Named) -> float | None:
    """Returns the plane that a name states: a whole number, a height, or None."""
    if named.plane and not _NUMBER.fullmatch(named.plane):
        raise UserError(f"{named.origin}: plane {named.plane!r} is no number; 7, -4 and 1341.95 are")
    return float(named.plane) if named.plane else None


def _wells(named: Sequence[Named], recipe: PatternRecipe) -> Wells:
    """Returns wells as written (b3, B03), or one for each image, A01, A02, …, in natural order."""
    images = sorted({n.image for n in named if n.image}, key=natural)
    if not images:
        names = {n.well: _well(n, recipe.wells_on_plate) for n in {n.well: n for n in named}.values()}
        numbers = sorted((text for text in names if text.isdecimal()), key=natural)
        if numbers and len(numbers) < len(names):  # they would put two wells into one
            other = min(text for text in names if not text.isdecimal())
            raise UserError(f"some wells are numbers ({numbers[0]}), some are names ({other}): one of both")
        rows, columns = layout(set(names.values()), recipe.wells_on_plate)
        return Wells(rows, columns, names, {})
    if nameless := [n for n in named if not n.image]:
        raise UserError(f"{nameless[0].origin}: the group image is empty; each file must name its image")
    rows, columns = _format_for(len(images), recipe.wells_on_plate)
    names = {image: well_name(*divmod(place, len(columns))) for place, image in enumerate(images)}
    return Wells(rows, columns, names, {well: {"image": image} for image, well in names.items()})


def _well(named: Named, wells_on_plate: int | None) -> str:
    try:
        well = well_name(*_position(named.well, wells_on_plate))
        layout({well}, wells_on_plate)
        return well
    except UserError as error:
        raise UserError(f"{named.origin}: {error}") from None


def _position(well: str, wells_on_plate: int | None) -> tuple[int, int]:
    """Returns row and column of a name, or of a running number, which counts along the rows from 1."""
    if not re.fullmatch(r"[0-9]{1,5}", well):
        return well_position(well)
    if wells_on_plate is None:
        raise UserError(
            f"well {well!r} is a running number: give pattern.wells_on_plate, as 96, so that row and column "
            "are known; numbers count along the rows from 1"
        )
    if not 1 <= int(well) <= wells_on_plate:
        raise UserError(f"well {well!r} is no number from 1 to {wells_on_plate}, the wells on the plate")
    return divmod(int(well) - 1, FORMATS[wells_on_plate][1])


def _format_for(images: int, wells_on_plate: int | None) -> Layout:
    for count, (rows, columns) in FORMATS.items():
        allowed = count >= 96 if wells_on_plate is None else count == wells_on_plate
        if allowed and images <= count:
            return tuple(map(row_name, range(rows))), tuple(f"{column + 1:02d}" for column in range(columns))
    raise UserError(
        f"{images} images do not fit a plate of {wells_on_plate or 1536} wells, one well each; "
        "name wells and fields in pattern.regex instead, or convert fewer at a time"
    )


def _channels(named: Sequence[Named], recipe: PatternRecipe) -> tuple[tuple[Channel, ...], dict[str, int]]:
    """Returns the channels in stored order, and what the files state -> index.

    The order is that of `recipe.channels`; without it, natural. Several names may share one channel.
    """
    stated = sorted({n.channel: n for n in named}.values(), key=lambda n: natural(n.channel))
    only = set(recipe.channels.values()) if not any(n.channel for n in stated) else set()
    stored = {n.channel: only.pop() if len(only) == 1 else _stored(n, recipe) for n in stated}
    listed = [*dict.fromkeys(recipe.channels.values()), *stored.values()]
    names = [name for name in dict.fromkeys(listed) if name in stored.values()]
    for name in recipe.transmitted:
        if name not in listed:
            raise UserError(
                f"pattern.transmitted: no channel {name!r}; {nearest(name, dict.fromkeys(listed))}"
            )
    stains = [name for name in names if name not in recipe.transmitted]
    hues = {name: _COLORS[number % len(_COLORS)] for number, name in enumerate(stains)}
    channels = (Channel(name, fluorescent=name in hues, color=hues.get(name, "FFFFFF")) for name in names)
    return tuple(channels), {text: names.index(name) for text, name in stored.items()}


def _stored(named: Named, recipe: PatternRecipe) -> str:
    if not recipe.channels:
        return named.channel or "channel"
    if named.channel not in recipe.channels:
        raise UserError(
            f"{named.origin}: channel {named.channel!r} is not in pattern.channels; "
            f"{nearest(named.channel, recipe.channels)}"
        )
    return recipe.channels[named.channel]


def _ranks(texts: Collection[str]) -> dict[str, int]:
    """Returns the rank of each text in natural order."""
    return {text: rank for rank, text in enumerate(sorted(texts, key=natural))}
