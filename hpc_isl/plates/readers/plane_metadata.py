"""What a file says of one plane."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_isl.errors import UserError


class MetadataError(UserError):
    """Metadata that cannot be understood; of a file with one plane they may be left out."""


@dataclass(frozen=True, slots=True)
class PlaneMetadata:
    """One plane, as its own file describes it; "" and None where the file does not say.

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
