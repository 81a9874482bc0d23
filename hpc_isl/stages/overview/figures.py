"""Figures of a plate's wells from its index: focus, intensity, odd fields and planes that are missing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpc_isl.errors import many
from hpc_isl.plates.plate import FieldKey, PlaneIndex
from hpc_isl.plates.store import Index
from hpc_isl.stages.shared.heat_maps import HeatMap, PlateValues

ODD = {
    "saturated": (
        "Saturated fields",
        "more than a thousandth of a plane lies at the camera's greatest value",
    ),
    "empty": ("Empty fields", "a channel shows no structure, but noise and shading"),
    "out of focus": ("Blurred fields", "the sharpest plane of a channel is far less sharp than on the plate"),
}
"""Flag of the index -> title, and when a field has it."""


@dataclass(frozen=True)
class FieldFigures:
    """The figures of one field, from the index.

    Attributes:
        focus: channel -> score of its sharpest plane (no unit; greater is sharper, within one channel).
        intensity: channel -> mean of all its planes, in counts.
        flags: kind -> names of the channels that have it.
        missing: planes that most fields of its acquisition have, and this one has not.
    """

    focus: Mapping[str, float]
    intensity: Mapping[str, float]
    flags: Mapping[str, Sequence[str]]
    missing: int


def field_figures(index: Index) -> dict[FieldKey, FieldFigures]:
    """Returns the figures of each field, in plate order, without reading pixels."""
    names, usual = [channel.name for channel in index.plate.channels], _usual_planes(index)
    figures = {}
    for field in index.plate.fields:
        statistics = index.statistics[field.key]
        focus, means, flags = (defaultdict[str, list[float]](list), defaultdict[str, list[float]](list),
                               defaultdict[str, list[str]](list))  # fmt: skip
        for (_, channel, _), plane in statistics.planes.items():
            focus[names[channel]].append(plane.focus)
            means[names[channel]].append(plane.mean)
        for flag in statistics.flags:
            kind, _, number = flag.rpartition(":")
            flags[kind].append(names[int(number)])
        figures[field.key] = FieldFigures(
            {name: max(scores) for name, scores in focus.items()},
            {name: float(np.mean(values)) for name, values in means.items()},
            flags, len(usual[field.key.acquisition] - statistics.planes.keys()),
        )  # fmt: skip
    return figures


def _usual_planes(index: Index) -> dict[int, set[PlaneIndex]]:
    """Returns the planes (time, channel, plane) that at least half of the fields of an acquisition have."""
    # Channels of one plate often have different numbers of planes: only what others have can be missing.
    counts: dict[int, Counter[PlaneIndex]] = defaultdict(Counter)
    fields = Counter(field.key.acquisition for field in index.plate.fields)
    for field in index.plate.fields:
        counts[field.key.acquisition].update(index.statistics[field.key].planes.keys())
    return {
        acquisition: {place for place, count in planes.items() if 2 * count >= fields[acquisition]}
        for acquisition, planes in counts.items()
    }


def heat_maps(
    index: Index, figures: Mapping[FieldKey, FieldFigures], channels: Collection[str]
) -> Iterator[HeatMap]:
    """Yields focus and intensity of each channel, then fields that are odd and planes that are missing."""
    wells: dict[str, list[FieldFigures]] = defaultdict(list)
    for key, figure in figures.items():
        wells[key.well].append(figure)

    def heat_map(title: str, about: str, unit: str, value: Callable[[list[FieldFigures]], float]) -> HeatMap:
        values = {well: value(fields) for well, fields in wells.items()}
        return HeatMap(title, about, unit, [PlateValues("", index.plate.rows, index.plate.columns, values)])

    def median(attribute: str, channel: str) -> Callable[[list[FieldFigures]], float]:
        def value(fields: list[FieldFigures]) -> float:
            scores = [getattr(f, attribute)[channel] for f in fields if channel in getattr(f, attribute)]
            return float(np.median(scores)) if scores else np.nan

        return value

    for channel in channels:
        about = "Brenner's score over the squared mean, of the sharpest plane; greater is sharper. Median."
        yield heat_map(f"Focus, {channel}", about, "", median("focus", channel))
        yield heat_map(
            f"Intensity, {channel}", "Mean of all planes, median of the fields.", "counts",
            median("intensity", channel),
        )  # fmt: skip
    for kind, (title, condition) in ODD.items():
        about = f"Fields in which {condition}. Hover to read the channels."
        yield heat_map(title, about, "fields", lambda fields, kind=kind: sum(kind in f.flags for f in fields))  # type: ignore[misc]
    about = "Planes that at least half of the plate's fields have, and fields of these wells have not."
    yield heat_map("Missing planes", about, "planes", lambda fields: sum(field.missing for field in fields))


def hover(index: Index, figures: Mapping[FieldKey, FieldFigures]) -> dict[str, str]:
    """Returns the text of each well: its plate map, fields, and what is odd about these."""
    texts = {}
    for well in index.plate.wells:
        fields = {key: figure for key, figure in figures.items() if key.well == well}
        lines = [f"{well}: {many(len(fields), 'field')}", *plate_map_lines(index, well)]
        lines += [f"{key.image}: {text}" for key, figure in fields.items() if (text := oddities(figure))]
        texts[well] = "\n".join(lines)
    return texts


def plate_map_lines(index: Index, well: str) -> list[str]:
    """Returns the columns of the plate map for a well that are not empty."""
    return [f"{name}: {value}" for name, value in index.plate_map.get(well, {}).items() if value]


def oddities(figure: FieldFigures) -> str:
    """Returns what is odd about a field, as in `empty: Hoechst; 2 planes are missing`; empty: nothing."""
    parts = [f"{kind}: {', '.join(channels)}" for kind, channels in figure.flags.items()]
    parts += [many(figure.missing, "plane", "is missing", "are missing")] if figure.missing else []
    return "; ".join(parts)


def caption(figure: FieldFigures) -> dict[str, str]:
    """Returns channel -> a line about its pixels in a field."""
    return {
        name: f"focus {figure.focus[name]:.2g}, mean {value:,.0f} counts"
        for name, value in figure.intensity.items()
    }
