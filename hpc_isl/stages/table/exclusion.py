"""Fields that are left out of a table: a person's list with reasons, and what leaving them out may hide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from hpc_isl.errors import UserError, nearest
from hpc_isl.files import csv_lines
from hpc_isl.stages.table.segmented_plates import SegmentedPlate

Exclusions = Mapping[tuple[str, str, str], str]
"""(plate, well, field) -> the reason."""
MUCH = 0.05  # share of fields beyond which a table says first how many it leaves out
CONTROLS = ("negative", "positive")


def read_exclusions(path: Path, plates: Sequence[SegmentedPlate]) -> Exclusions:
    """Returns the fields that a CSV lists: `well`, `field`, and any of `plate` and `reason`.

    `plate` may be missing where the run has one plate. Commas, semicolons or tabs part the columns.

    Raises:
        UserError: no such file or column, or a field that the run does not have; with the line.
    """
    header, *lines = csv_lines(path, f"exclude={path}") or [[]]
    header, names = [name.strip() for name in header], [plate.name for plate in plates]
    required = ["well", "field"] if len(names) == 1 else ["plate", "well", "field"]
    if missing_columns := [name for name in required if name not in header]:
        raise UserError(
            f"exclude={path}: has no column {missing_columns[0]!r}; {nearest(missing_columns[0], header)}"
        )
    fields_of_plate = {
        plate.name: set(zip(plate.images.well, plate.images.field, strict=True)) for plate in plates
    }
    exclusions: dict[tuple[str, str, str], str] = {}
    for number, line in enumerate(lines, start=2):
        if not any(map(str.strip, line)):
            continue
        location = f"exclude={path}, line {number}"
        row = dict(zip(header, map(str.strip, line), strict=False))  # a line may lack cells at its end
        plate, well, field = (row.get(name, "") for name in ("plate", "well", "field"))
        plate = plate or (names[0] if len(names) == 1 else "")
        if plate not in fields_of_plate:
            raise UserError(f"{location}: no plate {plate!r} in this run; {nearest(plate, names)}")
        if (well, field) not in fields_of_plate[plate]:
            fields = ["/".join(place) for place in sorted(fields_of_plate[plate])]
            raise UserError(f"{location}: no field {well}/{field}; {nearest(f'{well}/{field}', fields)}")
        exclusions[plate, well, field] = row.get("reason") or "listed"
    return exclusions


def warnings(plates: Sequence[SegmentedPlate], exclusions: Exclusions, rule: str = "") -> Iterator[str]:
    """Yields, in words, that much is left out, or more of treated wells than of controls; by which rule."""
    rule_text = f" by {rule}" if rule else ""
    fields = pd.concat(
        [plate.images[["well", "field"]].drop_duplicates().assign(plate=plate.name) for plate in plates],
        ignore_index=True,
    )
    places = list(fields[["plate", "well", "field"]].itertuples(index=False, name=None))
    fields["out"] = [place in exclusions for place in places]
    maps = {plate.name: plate.plate_map for plate in plates}
    control = [maps[plate].get(well, {}).get("control", "") for plate, well, _ in places]
    is_control = pd.Series(control, fields.index).str.strip().str.lower().isin(CONTROLS)
    share = fields.out.mean()
    if share > MUCH:
        yield f"warning: {fields.out.sum()} of {len(fields)} fields are left out{rule_text} ({share:.0%})"
    treated, controls = fields.out[~is_control].mean(), fields.out[is_control].mean()
    if is_control.any() and treated > controls:
        yield (
            f"warning: {treated:.0%} of the fields of treated wells are left out{rule_text}, and "
            f"{controls:.0%} of those of controls: what a compound does may be thrown away with them"
        )
