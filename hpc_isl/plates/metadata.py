"""The `zarr.json` files of a plate: the specification's part lies under `ome`, ours under `hpc_isl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.files import write_atomic
from hpc_isl.plates import packed
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, well_position


def axes(field: Field) -> tuple[str, ...]:
    """Returns the axes of the stored image: c z y x, with t first where there is more than one time."""
    return ("t", "c", "z", "y", "x") if field.shape[0] > 1 else ("c", "z", "y", "x")


def place(plate: Plate, well: str) -> tuple[str, str]:
    """Returns the row and column folders of a well: ("B", "03")."""
    row, column = well_position(well)
    if row >= len(plate.rows) or column >= len(plate.columns):
        raise UserError(f"well {well} lies outside a plate of {len(plate.rows)} × {len(plate.columns)} wells")
    return plate.rows[row], plate.columns[column]


def plate_facts(plate: Plate) -> dict[str, Any]:
    """Returns the plate without its fields, as plain JSON."""
    facts = asdict(replace(plate, fields=()))
    del facts["fields"]
    for channel in facts["channels"]:
        if not channel["corrected"]:  # so that the facts of most plates are those that earlier versions wrote
            del channel["corrected"]
    return _as_json(facts)


def image_facts(plate: Plate) -> dict[str, Any]:
    """Returns what every image states of its plate, so that labels and the index can be made from it."""
    return {
        "name": plate.name,
        "channels": [channel.name for channel in plate.channels],
        "pixel_um": plate.pixel_um,
        "plane_um": plate.plane_um,
    }


def plate_from(facts: Mapping[str, Any], fields: tuple[Field, ...]) -> Plate:
    """Returns the plate that `plate_facts` has written, with these fields."""
    values = {name: facts[name] for name in ("name", "pixel_um", "plane_um", "details")}
    return Plate(
        rows=tuple(facts["rows"]),
        columns=tuple(facts["columns"]),
        channels=tuple(Channel(**channel) for channel in facts["channels"]),
        fields=fields,
        acquisitions={int(number): name for number, name in facts["acquisitions"].items()},
        **values,
    )


def field_facts(field: Field) -> dict[str, Any]:
    """Returns the field as plain JSON."""
    return _as_json(asdict(field))


def field_from(facts: Mapping[str, Any]) -> Field:
    """Returns the field that `field_facts` has written."""
    t, c, z, y, x = facts["shape"]
    position = tuple(facts["position_um"]) if facts["position_um"] else None
    key, z_um = FieldKey(**facts["key"]), tuple(facts["z_um"])
    return Field(key, (t, c, z, y, x), facts["dtype"], position, z_um, facts["details"])


def _as_json(value: dict[str, Any]) -> dict[str, Any]:
    # As JSON holds it: tuples become lists, keys strings, dates and paths text, NaN null.
    text = json.dumps(value, default=lambda leaf: leaf.item() if hasattr(leaf, "item") else str(leaf))
    result: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
    return result


# ---------------------------------------------------------------- files


def write_group(
    folder: Path,
    ome: Mapping[str, Any] | None = None,
    ours: Mapping[str, Any] | None = None,
    writer: str = "",
) -> None:
    """Writes `folder/zarr.json` of a group, complete or not at all; `ome` comes from `ngff.attributes`.

    `writer`: one of several that may write it, one after the other; see `write_atomic`.
    """
    parts = {"ome": ome, "hpc_isl": ours}
    attributes = {name: part for name, part in parts.items() if part is not None}
    content = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    # NaN is no JSON: other programs would refuse the whole group.
    write_atomic(folder / "zarr.json", json.dumps(content, allow_nan=False), writer=writer)


def update_group(folder: Path, ome: Mapping[str, Any], writer: str = "") -> None:
    """Writes what the specification keeps in a group, made if need be; all else that it holds stays.

    `writer`: as for `write_group`.
    """
    file = folder / "zarr.json"
    attributes = read_group(folder) if file.is_file() else {}
    content = json.loads(file.read_text()) if file.is_file() else {"zarr_format": 3, "node_type": "group"}
    former = attributes.get("ome")
    content["attributes"] = attributes | {"ome": (former if isinstance(former, dict) else {}) | dict(ome)}
    write_atomic(file, json.dumps(content, allow_nan=False), writer=writer)


def read_group(folder: Path) -> dict[str, Any]:
    """Returns a group's attributes, empty where it has none; raises a `UserError` where they are no JSON."""
    try:
        attributes = dict(json.loads(packed.read_text(folder / "zarr.json")).get("attributes", {}))
    except FileNotFoundError:
        raise UserError(f"{folder}: holds no zarr.json") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{folder / 'zarr.json'} is damaged: {error}") from None
    return attributes
