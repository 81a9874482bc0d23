"""MetaSeries XML, which MetaXpress and MetaMorph write into each TIFF: one plane's facts.

Seen in files of MetaXpress 6.5 and 6.7, exported and as its database keeps them: all that is read here.
The column of a field grows with `stage-position-x`: seen in two fields that overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from hpc_isl.plates.readers.plane_metadata import PlaneMetadata
from hpc_isl.plates.readers.quantities import duration, micrometres, moment, number

Facts = Mapping[str, str]


def facts(root: Element) -> dict[str, str]:
    """Returns id -> value of all properties."""
    return {prop.get("id", ""): prop.get("value", "").strip() for prop in root.iter() if "id" in prop.attrib}


def plane(found: Facts) -> PlaneMetadata:
    """Returns what the facts say of the plane."""
    x, y = (number(found.get(f"stage-position-{axis}")) for axis in "xy")
    return PlaneMetadata(
        channel_name=found.get("_IllumSetting_", ""),
        center_um=None if x is None or y is None else (y, x),
        z_um=number(found.get("z-position")),
        moment=moment(found.get("acquisition-time-local")),
        exposure_s=duration(found.get("Exposure Time")),
        label=found.get("stage-label", ""),
        projection=found.get("Z Projection Method", ""),
    )


def pixel_um(found: Facts) -> tuple[float, float] | None:
    """Returns the edges (y, x) of a pixel in µm, where they are calibrated."""
    if found.get("spatial-calibration-state", "on").lower() != "on":
        return None
    unit = found.get("spatial-calibration-units", "")
    y, x = (micrometres(found.get(f"spatial-calibration-{axis}"), unit) for axis in "yx")
    return (y, x) if y and x else None
