"""What a file states of one plane, and quantities as vendors write them: None where a text states none."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from hpc_isl.errors import UserError

_MICROMETRES = {
    "m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "micrometers": 1.0, "micrometre": 1.0, "micrometres": 1.0, "nm": 1e-3, "pm": 1e-6, "å": 1e-4,
    "inch": 25400.0, "in": 25400.0,
}  # fmt: skip
_SECONDS = {
    "h": 3600.0, "hour": 3600.0, "hours": 3600.0, "min": 60.0, "minute": 60.0, "minutes": 60.0, "s": 1.0,
    "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "µs": 1e-6, "us": 1e-6, "ns": 1e-9,
}  # fmt: skip
_NUMBER_AND_UNIT = re.compile(r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*([^\d\s]*)\s*")
_MOMENT = re.compile(
    r"(\d{4})[-:./]?(\d\d)[-:./]?(\d\d)[ T_]+(\d\d):(\d\d):(\d\d)([.,]\d+)?\s*(Z|[-+]\d\d:?\d\d)?"
)


class MetadataError(UserError):
    """Metadata that cannot be understood; of a file with one plane they may be left out."""


@dataclass(frozen=True, slots=True)
class PlaneMetadata:
    """One plane, as its own file describes it; "" and None where the file states nothing.

    Attributes:
        time, channel, plane: indices within the file.
        center_um: stage position (y, x) in micrometres, in the directions of the stage.
        z_um: height, or distance from the file's first plane.
        moment: date and time as ISO 8601.
        seconds: from the start of the series.
        label: of the stage position, e.g. "E07 : Site 1".
        projection: how planes became one, e.g. "Maximum"; "" of a plane that was imaged.
    """

    time: int = 0
    channel: int = 0
    plane: int = 0
    channel_name: str = ""
    center_um: tuple[float, float] | None = None
    z_um: float | None = None
    moment: str = ""
    seconds: float | None = None
    exposure_s: float | None = None
    label: str = ""
    projection: str = ""


# ---------------------------------------------------------------- quantities


def number(text: object) -> float | None:
    """Returns the number that a text is; None where it is none, NaN or infinite."""
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def whole(facts: Mapping[str, str], name: str, origin: str, default: int | None = None) -> int:
    """Returns the whole number under a name; the default, if there is one, where the text is empty.

    Raises:
        UserError: naming `origin` and `name`: it is no whole number.
    """
    text = facts.get(name, "")
    if not text and default is not None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UserError(f"{origin}: {name} is {text!r}; a whole number is expected")
    return int(text)


def position(y: float | None, x: float | None, *, up: bool = False) -> tuple[float, float] | None:
    """Returns a position (y, x), None where one of both is unknown; `up`: y is stated growing upwards."""
    # Rows of an image are counted downwards, and so are ours.
    return None if y is None or x is None else (-y if up else y, x)


def edges(y: float | None, x: float | None) -> tuple[float, float] | None:
    """Returns the edges (y, x) of a pixel; None where one of both is unknown or 0."""
    return (y, x) if y and x else None


def micrometres(value: object, unit: str) -> float | None:
    """Returns a length in µm, to 0.1 pm; None where its unit is no length, as pixels and inventions are."""
    return _scaled(value, _MICROMETRES.get(_plain(unit)))


def seconds(value: object, unit: str) -> float | None:
    """Returns a time in seconds; None where its unit is no time."""
    return _scaled(value, _SECONDS.get(_plain(unit)))


def duration(text: object) -> float | None:
    """Returns the seconds of a text such as "100 ms"."""
    match = _NUMBER_AND_UNIT.fullmatch(str(text))
    return seconds(match[1], match[2]) if match else None


def moment(text: object) -> str:
    """Returns a date and time as ISO 8601, with the offset where one is stated; "" where there is none."""
    match = _MOMENT.match(str(text).strip())
    if not match:
        return ""
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    fraction = (fraction or "").replace(",", ".")[:7]  # microseconds
    zone = "+00:00" if zone == "Z" else zone or ""
    iso = f"{year}-{month}-{day}T{hour}:{minute}:{second}{fraction}{zone}"
    try:
        datetime.fromisoformat(iso)
    except ValueError:
        return ""
    return iso


def seconds_between(first: str, later: str) -> float | None:
    """Returns the seconds from one moment to another; None where either is unknown or lacks its offset."""
    try:
        return round((datetime.fromisoformat(later) - datetime.fromisoformat(first)).total_seconds(), 6)
    except (ValueError, TypeError):  # TypeError: one of both has no offset
        return None


def _plain(unit: str) -> str:
    # The Greek letter mu and ImageJ's escape become the micro sign.
    return unit.strip().replace("\\u00B5", "µ").replace("\u03bc", "µ").lower()


def _scaled(value: object, factor: float | None) -> float | None:
    size = number(value)
    return None if size is None or factor is None else round(size * factor, 7)
