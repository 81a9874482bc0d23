"""What a plate's `zarr.json` files say: OME-Zarr 0.5 through the specification's models, and our own facts.

`attributes.ome` is the specification's and made by yaozarrs; `attributes.hpc_isl` is ours and holds
what the specification has no place for. To write another version of OME-Zarr, change this file alone.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from yaozarrs import v05

from hpc_isl.mistake import Mistake
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, well_position
from hpc_isl.plates.statistics import FieldStatistics
from hpc_isl.run import write_atomic

# ---------------------------------------------------------------- the specification's part


def image(plate: Plate, field: Field, levels: int, statistics: FieldStatistics) -> v05.Image:
    """A field as a multiscale image, axes (t) c z y x, with channel names, colours and windows."""
    names = axes(field)
    z_um = field.z_um[0] if field.z_um else 0.0
    y_um, x_um = field.position_um if field.position_um and plate.pixel_um else (0.0, 0.0)
    lattice = {
        "z": (plate.plane_um or 1.0, z_um if plate.plane_um else 0.0),
        "y": (plate.pixel_um or 1.0, y_um),
        "x": (plate.pixel_um or 1.0, x_um),
    }
    return v05.Image(
        multiscales=[_multiscale(plate, str(field.key), names, lattice, levels, "mean")],
        omero=v05.Omero(channels=_channels(plate, field, statistics)),
    )


def label_image(plate: Plate, field: Field, levels: int, shown: str, values: Iterable[int]) -> v05.LabelImage:
    """Labels of a field, axes (t) z y x: one plane, as thick as the whole stack it was drawn for.

    Every label of `values` gets a colour, as the specification advises and viewers like it best.
    """
    names = tuple(name for name in axes(field) if name != "c")
    depth = field.shape[2]
    step, z_um = plate.plane_um or 1.0, field.z_um[0] if field.z_um and plate.plane_um else 0.0
    y_um, x_um = field.position_um if field.position_um and plate.pixel_um else (0.0, 0.0)
    lattice = {
        "z": (step * depth, z_um + step * (depth - 1) / 2),
        "y": (plate.pixel_um or 1.0, y_um),
        "x": (plate.pixel_um or 1.0, x_um),
    }
    return v05.LabelImage(
        multiscales=[_multiscale(plate, shown, names, lattice, levels, "nearest")],
        image_label=v05.ImageLabel(
            colors=[v05.LabelColor(label_value=value, rgba=_hue(value)) for value in (0, *values)],
            source=v05.LabelSource(image="../../"),
        ),
    )


def _hue(label: int) -> list[int]:
    """Colours of neighbouring numbers lie far apart: steps of the golden ratio around the circle."""
    rgb = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.8, 1)
    return [*(round(255 * part) for part in rgb), 255] if label else [0, 0, 0, 0]


def axes(field: Field) -> tuple[str, ...]:
    """Axes of the stored image: c z y x, with t first where there is more than one time."""
    return ("t", "c", "z", "y", "x") if field.shape[0] > 1 else ("c", "z", "y", "x")


def _multiscale(
    plate: Plate,
    name: str,
    names: tuple[str, ...],
    lattice: Mapping[str, tuple[float, float]],
    levels: int,
    kind: str,
) -> v05.Multiscale:
    """`lattice`: axis -> (distance of pixels, position of the first pixel's centre) at level 0."""
    return v05.Multiscale(
        name=name,
        axes=[_axis(plate, axis) for axis in names],
        datasets=[_dataset(names, lattice, level) for level in range(levels)],
        type=kind,
    )


def _axis(plate: Plate, name: str) -> v05.TimeAxis | v05.ChannelAxis | v05.SpaceAxis:
    if name == "t":
        return v05.TimeAxis(name="t")
    if name == "c":
        return v05.ChannelAxis(name="c")
    known = plate.plane_um if name == "z" else plate.pixel_um
    return v05.SpaceAxis(name=name, unit="micrometer" if known else None)


def _dataset(names: tuple[str, ...], lattice: Mapping[str, tuple[float, float]], level: int) -> v05.Dataset:
    """A pixel of level k covers 2^k of level 0, so its centre lies (2^k - 1) / 2 of them further in."""
    factor = {name: 2**level if name in "yx" else 1 for name in names}
    steps = {name: lattice.get(name, (1.0, 0.0))[0] for name in names}
    origins = {name: lattice.get(name, (1.0, 0.0))[1] for name in names}
    scale = [steps[name] * factor[name] for name in names]
    translation = [origins[name] + steps[name] * (factor[name] - 1) / 2 for name in names]
    return v05.Dataset(
        path=str(level),
        coordinateTransformations=[
            v05.ScaleTransformation(scale=scale),
            v05.TranslationTransformation(translation=translation),
        ],
    )


def _channels(plate: Plate, field: Field, statistics: FieldStatistics) -> list[v05.OmeroChannel]:
    return [
        v05.OmeroChannel(
            label=channel.name, color=channel.color, active=True,
            window=_window(field, [p for key, p in statistics.planes.items() if key[1] == number]),
        )
        for number, channel in enumerate(plate.channels)
    ]  # fmt: skip


def _window(field: Field, planes: list[Any]) -> v05.OmeroWindow:
    import numpy as np

    kind = np.dtype(field.dtype)
    least = min((plane.min for plane in planes), default=0.0)
    most = max((plane.max for plane in planes), default=1.0)
    if kind.kind in "iu":
        least, most = float(np.iinfo(kind).min), float(np.iinfo(kind).max)
    start = min((plane.p1 for plane in planes), default=least)
    end = max((plane.p999 for plane in planes), default=most)
    return v05.OmeroWindow(min=least, max=most, start=start, end=max(end, start + 1e-6))


def plate_group(plate: Plate) -> v05.Plate:
    """All physical rows and columns, and the wells that hold fields."""
    counts: dict[tuple[str, int], int] = {}
    for field in plate.fields:
        pair = (field.key.well, field.key.acquisition)
        counts[pair] = counts.get(pair, 0) + 1
    rows = [v05.Row(name=name) for name in plate.rows]
    columns = [v05.Column(name=name) for name in plate.columns]
    acquisitions = [
        v05.Acquisition(
            id=number,
            name=name,
            maximumfieldcount=max((n for (_, a), n in counts.items() if a == number), default=None),
        )
        for number, name in plate.acquisitions.items()
    ]
    wells = [
        v05.PlateWell(path="/".join(place(plate, well)), rowIndex=row, columnIndex=column)
        for well in plate.wells
        for row, column in [well_position(well)]
    ]
    return v05.Plate(
        plate=v05.PlateDef(
            name=plate.name, rows=rows, columns=columns, wells=wells,
            acquisitions=acquisitions, field_count=max(counts.values()),
        )
    )  # fmt: skip


def well_group(fields: list[Field]) -> v05.Well:
    images = [v05.FieldOfView(path=f.key.image, acquisition=f.key.acquisition) for f in fields]
    return v05.Well(well=v05.WellDef(images=images))


def place(plate: Plate, well: str) -> tuple[str, str]:
    """Row and column folders of a well: ("B", "03")."""
    row, column = well_position(well)
    if row >= len(plate.rows) or column >= len(plate.columns):
        raise Mistake(f"well {well} lies outside a plate of {len(plate.rows)} × {len(plate.columns)} wells")
    return plate.rows[row], plate.columns[column]


# ---------------------------------------------------------------- our own part


def plate_facts(plate: Plate) -> dict[str, Any]:
    """The plate without its fields, as plain JSON."""
    facts = asdict(replace(plate, fields=()))
    del facts["fields"]
    return _plain(facts)


def plate_from(facts: Mapping[str, Any], fields: tuple[Field, ...]) -> Plate:
    return Plate(
        name=facts["name"],
        rows=tuple(facts["rows"]),
        columns=tuple(facts["columns"]),
        channels=tuple(Channel(**channel) for channel in facts["channels"]),
        fields=fields,
        pixel_um=facts["pixel_um"],
        plane_um=facts["plane_um"],
        acquisitions={int(number): name for number, name in facts["acquisitions"].items()},
        details=facts["details"],
    )


def field_facts(field: Field) -> dict[str, Any]:
    return _plain(asdict(field))


def field_from(facts: Mapping[str, Any]) -> Field:
    shape = facts["shape"]
    return Field(
        key=FieldKey(**facts["key"]),
        shape=(shape[0], shape[1], shape[2], shape[3], shape[4]),
        dtype=facts["dtype"],
        position_um=tuple(facts["position_um"]) if facts["position_um"] else None,
        z_um=tuple(facts["z_um"]),
        details=facts["details"],
    )


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """As JSON holds it: tuples become lists, keys strings, dates and paths text."""
    result: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return result


# ---------------------------------------------------------------- files


def write_group(folder: Path, ome: Any = None, ours: Mapping[str, Any] | None = None) -> None:
    """`folder/zarr.json` of a group, validated by the model it was made with; complete or not at all."""
    attributes: dict[str, Any] = {}
    if ome is not None:
        attributes["ome"] = ome.model_dump(mode="json", exclude_none=True)
    if isinstance(ome, v05.LabelImage):
        for color in attributes["ome"]["image-label"]["colors"]:
            color["label-value"] = int(color["label-value"])  # yaozarrs writes 1.0, readers want 1
    if isinstance(ome, v05.Plate):
        # The text of 0.5 asks for it, its schema does not know it: readers accept it, some warn without.
        attributes["ome"]["plate"]["version"] = ome.version
    if ours is not None:
        attributes["hpc_isl"] = dict(ours)
    content = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    write_atomic(folder / "zarr.json", json.dumps(content))


def read_group(folder: Path) -> dict[str, Any]:
    """Attributes of a group; a file that is not there or not JSON is a `Mistake`."""
    try:
        attributes: dict[str, Any] = json.loads((folder / "zarr.json").read_text())["attributes"]
    except FileNotFoundError:
        raise Mistake(f"{folder}: holds no zarr.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise Mistake(f"{folder / 'zarr.json'} is damaged: {error}") from None
    return attributes
