"""A plate as OME-Zarr 0.5 describes it: our nouns turned into the specification's, by yaozarrs' models.

To write another version of OME-Zarr, change this file alone. Importing it takes a moment: only what
writes plates does.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from math import isclose
from typing import Any

import numpy as np
from yaozarrs import v05

from hpc_isl.plates.metadata import axes, place
from hpc_isl.plates.plate import HEIGHT_TOLERANCE, Field, Plate, spacing, well_position
from hpc_isl.plates.statistics import FieldStatistics, PlaneStatistics

Grid = dict[str, tuple[float, float]]  # axis -> distance of pixels, position of the first one's centre


def image(plate: Plate, field: Field, levels: int, statistics: FieldStatistics) -> v05.Image:
    """Returns a field as a multiscale image, axes (t) c z y x, with channel names, colours and windows."""
    channels = []
    for number, channel in enumerate(plate.channels):
        planes = [plane for key, plane in statistics.planes.items() if key[1] == number]
        channels.append(
            v05.OmeroChannel(
                label=channel.name, color=channel.color, active=True, window=_window(field, planes)
            )
        )
    return v05.Image(multiscales=[image_scales(plate, field, levels)], omero=v05.Omero(channels=channels))


def image_scales(plate: Plate, field: Field, levels: int) -> v05.Multiscale:
    """Returns where the pixels of each level of a field lie."""
    return _multiscale(plate, field, str(field.key), axes(field), grid_of(plate, field), levels, "mean")


def background(plate: Plate, field: Field, levels: int, folder: str) -> v05.Image:
    """Returns an image of a plate of labels: where nothing is labelled, with levels below `folder`."""
    return v05.Image(multiscales=[background_scales(plate, field, levels, folder)])


def background_scales(plate: Plate, field: Field, levels: int, folder: str) -> v05.Multiscale:
    """Returns where the pixels of each level of an image of a plate of labels lie."""
    scales = label_scales(plate, field, levels, str(field.key))
    datasets = [level.model_copy(update={"path": f"{folder}/{level.path}"}) for level in scales.datasets]
    return scales.model_copy(update={"datasets": datasets})


def label_image(plate: Plate, field: Field, levels: int, shown: str) -> v05.LabelImage:
    """Returns labels of a field, axes (t) z y x: one plane, as thick as the whole stack it was drawn for."""
    return v05.LabelImage(
        multiscales=[label_scales(plate, field, levels, shown)],
        image_label=v05.ImageLabel(source=v05.LabelSource(image="../../")),
    )


def label_scales(plate: Plate, field: Field, levels: int, shown: str) -> v05.Multiscale:
    """Returns where the pixels of each level of a field's labels lie."""
    names = tuple(name for name in axes(field) if name != "c")
    depth, grid = field.shape[2], grid_of(plate, field)
    step, first = grid["z"]  # the plane of labels lies in the middle of the stack
    grid["z"] = (step * depth, first + step * (depth - 1) / 2)
    return _multiscale(plate, field, shown, names, grid, levels, "nearest")


def grid_of(plate: Plate, field: Field) -> Grid:
    """Returns the grid of level 0; where a size is unknown, in pixels from the first."""
    y_um, x_um = field.position_um if field.position_um and plate.pixel_um else (0.0, 0.0)
    step_um = _plane_distance(plate, field)
    z_um = field.z_um[0] if field.z_um and step_um else 0.0
    pixel, step = plate.pixel_um or 1.0, step_um or 1.0
    return {"t": (1.0, 0.0), "c": (1.0, 0.0), "z": (step, z_um), "y": (pixel, y_um), "x": (pixel, x_um)}


def _plane_distance(plate: Plate, field: Field) -> float | None:
    """Returns the distance of a field's planes in µm: the plate's, unless the field's own heights differ."""
    if plate.plane_um is None or len(field.z_um) < 2:
        return plate.plane_um
    # Acquisitions of one plate may have stacks of other steps, and the plate states one.
    own_um = spacing([field], HEIGHT_TOLERANCE)
    is_alike = own_um is not None and isclose(own_um, plate.plane_um, rel_tol=HEIGHT_TOLERANCE)
    return plate.plane_um if is_alike else own_um


def _multiscale(
    plate: Plate, field: Field, name: str, names: tuple[str, ...], grid: Grid, levels: int, kind: str
) -> v05.Multiscale:
    sizes = {"z": _plane_distance(plate, field), "y": plate.pixel_um, "x": plate.pixel_um}
    unit = {axis: "micrometer" if size_um else None for axis, size_um in sizes.items()}
    other_axes = {"t": v05.TimeAxis(name="t"), "c": v05.ChannelAxis(name="c")}
    datasets = []
    for level in range(levels):
        # A pixel of level k covers 2^k of level 0, so its centre lies (2^k - 1) / 2 of them further in.
        places = [(*grid[axis], 2**level if axis in "yx" else 1) for axis in names]
        scale = [step * factor for step, _, factor in places]
        translation = [first + step * (factor - 1) / 2 for step, first, factor in places]
        transformations = [
            v05.ScaleTransformation(scale=scale), v05.TranslationTransformation(translation=translation)
        ]  # fmt: skip
        datasets.append(v05.Dataset(path=str(level), coordinateTransformations=transformations))
    axes = [other_axes.get(axis) or v05.SpaceAxis(name=axis, unit=unit[axis]) for axis in names]
    return v05.Multiscale(name=name, axes=axes, datasets=datasets, type=kind)


def move(scales: dict[str, Any], old: Grid, new: Grid, known: bool) -> None:
    """Moves levels (as JSON) from the old grid to the new one in y and x, whichever program wrote them.

    `known`: whether the new grid is in micrometres.
    """
    names = [axis["name"] for axis in scales["axes"]]
    for axis in (axis for axis in scales["axes"] if axis["name"] in "yx"):
        axis.pop("unit", None)
        axis |= {"unit": "micrometer"} if known else {}
    for step in (step for level in scales["datasets"] for step in level["coordinateTransformations"]):
        kind = step["type"]
        for index, name in enumerate(names):
            if name in "yx" and kind in ("scale", "translation"):
                (from_step, from_first), (to_step, to_first) = old[name], new[name]
                first = (from_first, to_first) if kind == "translation" else (0.0, 0.0)
                step[kind][index] = (step[kind][index] - first[0]) / from_step * to_step + first[1]


def _window(field: Field, planes: list[PlaneStatistics]) -> v05.OmeroWindow:
    kind = np.dtype(field.dtype)
    least = min((plane.min for plane in planes), default=0.0)
    most = max((plane.max for plane in planes), default=1.0)
    if kind.kind in "iu":
        least, most = float(np.iinfo(kind).min), float(np.iinfo(kind).max)
    start = min((plane.p1 for plane in planes), default=least)
    end = max((plane.p999 for plane in planes), default=most)
    return v05.OmeroWindow(min=least, max=most, start=start, end=max(end, start + 1e-6))


def plate_group(plate: Plate) -> v05.Plate:
    """Returns all physical rows and columns, and the wells that hold fields."""
    counts = Counter((field.key.well, field.key.acquisition) for field in plate.fields)
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
    """Returns the images of a well."""
    images = [v05.FieldOfView(path=f.key.image, acquisition=f.key.acquisition) for f in fields]
    return v05.Well(well=v05.WellDef(images=images))


def labels_group(folders: list[str]) -> v05.LabelsGroup:
    """Returns the list of an image's labels."""
    return v05.LabelsGroup(labels=folders)


def attributes(model: Any) -> dict[str, Any]:
    """Returns what `attributes.ome` holds: the model as JSON."""
    content: dict[str, Any] = model.model_dump(mode="json", exclude_none=True)
    if isinstance(model, v05.Plate):
        # The text of 0.5 asks for it, its schema does not know it: readers accept it, some warn without.
        content["plate"]["version"] = model.version
    return content


def colored(attributes: dict[str, Any], labels: Iterable[int]) -> dict[str, Any]:
    """Returns the attributes of labels with a colour for each, as the specification advises."""
    # As JSON, because the model would compare each colour with all others, in Python.
    colors = [{"label-value": label, "rgba": _color(label)} for label in (0, *labels)]
    return attributes | {"image-label": {"colors": colors, **attributes["image-label"]}}


@lru_cache(maxsize=8192)
def _color(label: int) -> list[int]:
    # Colours of neighbouring numbers lie far apart: steps of the golden ratio around the circle.
    rgb = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.8, 1)
    return [*(round(255 * part) for part in rgb), 255] if label else [0, 0, 0, 0]
