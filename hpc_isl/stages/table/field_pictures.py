"""Fields that were left out of a table, and a sample of those that were kept, for a person to look at."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.pyramid import level_of_at_least
from hpc_isl.plates.store import Index, open_plate, read_box
from hpc_isl.seeds import stream
from hpc_isl.stages.shared.pictures import INK, Html, join, panel_grid, picture, show_grey, table, tag
from hpc_isl.stages.table.exclusion import Exclusions
from hpc_isl.stages.table.segmented_plates import SegmentedPlate

LISTED = 200  # fields that a page lists; the CSV has all
PICTURES = 12
EDGE = 256  # pixels that a picture is drawn from, at least
Place = tuple[str, str, str]
"""(plate, well, field)."""


def quality_section(plates: Sequence[SegmentedPlate], by_rule: Mapping[str, Exclusions]) -> Html:
    """Returns the part of a page that shows what was left out, and a random sample of what was kept."""
    left_out = [(place, rule, reason) for rule, fields in by_rule.items() for place, reason in fields.items()]
    places = {place for place, _, _ in left_out}
    kept_fields = [place for plate in plates for place in _complete_fields(plate) if place not in places]
    sample_numbers = stream(0, "kept", len(kept_fields)).permutation(len(kept_fields))[:PICTURES]
    # As many of each rule: of a rule that leaves much out, few pictures tell all.
    shown_fields = _spread([[place for place, rule, _ in left_out if rule == name] for name in by_rule])
    rules = {place: rule for place, rule, _ in left_out}
    parts: list[object] = [tag("h2", "Fields that are left out, and some that are kept")]
    if left_out:
        lines = [(*place, rule, reason) for place, rule, reason in left_out[:LISTED]]
        caption = f"Left out: {len(left_out):,}. All are in left_out_fields.csv."
        parts += _pictures(
            plates, {place: rules[place] for place in shown_fields}, "Fields that are left out."
        )
        parts.append(table(("plate", "well", "field", "rule", "reason"), lines, caption))
    else:
        parts.append(tag("p", "No field is left out."))
    sample = {kept_fields[number]: "" for number in sorted(sample_numbers)}
    parts += _pictures(plates, sample, f"A random sample of the {len(kept_fields):,} fields that are kept.")
    return join(parts)


def _complete_fields(plate: SegmentedPlate) -> list[Place]:
    whole = plate.images[plate.images.problem == ""]
    return list(dict.fromkeys((plate.name, *place) for place in zip(whole.well, whole.field, strict=True)))


def _spread(groups: Sequence[Sequence[Place]]) -> list[Place]:
    """Returns up to as many places as are drawn, the first of each group first."""
    longest = max(map(len, groups), default=0)
    interleaved = [group[turn] for turn in range(longest) for group in groups if turn < len(group)]
    return interleaved[:PICTURES]


def _pictures(plates: Sequence[SegmentedPlate], texts: Mapping[Place, str], caption: str) -> list[Html]:
    """Returns a picture of these fields; none of those whose plate has gone."""
    plate_by_name = {plate.name: plate for plate in plates}
    indices: dict[str, Index] = {}
    for name in dict.fromkeys(place[0] for place in texts):
        with suppress(UserError):
            indices[name] = open_plate(plate_by_name[name].path)
    images = {}
    for place in texts:
        index = indices.get(place[0])
        if index is not None and (pixels := _pixels(plate_by_name[place[0]], index, place)) is not None:
            images[place] = pixels
    if not images:
        return [tag("p", f"{caption} The plates are not where they were: no pictures.")] if texts else []
    figure, axes = panel_grid(len(images), 6, 2.1, 2.35)
    for axis, (place, pixels) in zip(axes, images.items(), strict=False):
        show_grey(axis, pixels, interpolation=None)
        title = f"{place[0]} {place[1]}/{place[2]}\n{texts[place]}".strip()
        axis.set_title(title, fontsize=7, color=INK, loc="left")
    png = io.BytesIO()
    figure.savefig(png, format="png", facecolor="white")
    return [picture(png.getvalue(), caption, caption)]


def _pixels(plate: SegmentedPlate, index: Index, place: Place) -> NDArray[np.float32] | None:
    """Returns the middle plane of a field's shown channel (y, x), small; None: it cannot be read."""
    images = plate.images
    image = images[(images.well == place[1]) & (images.field == place[2])].iloc[0]
    key = FieldKey(place[1], place[2], int(image.acquisition))
    try:
        channel = index.channel(plate.shown_channel) if plate.shown_channel else 0
        field, planes = index.field(key), index.planes(key, channel, int(image.time))
        if not planes:
            return None
        level = level_of_at_least(field.shape, index.levels(key), EDGE)
        y, x = (slice(0, -(-length // 2**level)) for length in field.shape[-2:])
        middle = [planes[len(planes) // 2]]
        stack = read_box(index.image(key), level, int(image.time), channel, middle, y, x)
    except UserError:
        return None
    return np.asarray(stack[0], np.float32)
