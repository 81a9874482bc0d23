"""The verb `overview`: a look at a plate, as one page that needs no server and as one picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.files import write_atomic
from hpc_isl.plates.plate import FieldKey, doubtful_size
from hpc_isl.plates.store import Index, open_plate
from hpc_isl.stages.overview import figures
from hpc_isl.stages.overview.figures import FieldFigures
from hpc_isl.stages.overview.mosaics import contrast, mosaics
from hpc_isl.stages.overview.page import MADE_BY, Sheet, WellText, draw, page_of

MOST_LINES = 6  # problems that the page names


@dataclass(frozen=True)
class Overview:
    """Paths of the page and the picture, and the edge of a field in the page, in pixels."""

    page: Path
    picture: Path
    headline: tuple[str, ...]
    edge: int
    fields: int


def overview(
    path: Path, out: Path | None = None, wells: Sequence[str] = (), channels: Sequence[str] = ()
) -> Overview:
    """Writes the page and, beside it, the picture; pixels are read from low levels of the pyramid.

    Args:
        out: the page, .html; None: PLATE_overview.html in the current folder.
        wells: whose fields are shown; none: all. Heat maps are of all wells.
        channels: that are shown; none: all.

    Raises:
        UserError: no such plate, well or channel, or a file that cannot be written.
    """
    index = open_plate(path)
    plate, names = index.plate, [channel.name for channel in index.plate.channels]
    page = out or Path(f"{path.name.removesuffix('.zarr') or plate.name}_overview.html")
    if page.suffix != ".html":
        raise UserError(f"out={page}: the page is a file that ends in .html")
    picture = page.with_suffix(".png")
    _refuse_others(page, picture)
    # Label-free channels first: of many channels the picture shows few.
    default_order = sorted(range(len(names)), key=lambda number: plate.channels[number].fluorescent)
    numbers = [index.channel(name) for name in channels] or default_order
    chosen = plate.choose(wells) if wells else {field.key for field in plate.fields}
    keys_by_well: dict[str, list[FieldKey]] = {}
    for field in plate.fields:
        if field.key in chosen:
            keys_by_well.setdefault(field.key.well, []).append(field.key)
    by_field = figures.field_figures(index)
    maps = list(figures.heat_maps(index, by_field, [names[number] for number in numbers]))
    pictures = mosaics(index, keys_by_well, numbers)
    shown_keys = [key for keys in keys_by_well.values() for key in keys]
    sheets = [
        Sheet(names[n], _about(index, shown_keys, n), {well: pictures[well, n] for well in keys_by_well})
        for n in numbers
    ]
    texts = {well: _text(index, well, keys, by_field) for well, keys in keys_by_well.items()}
    headline = tuple(_headline(index, by_field))
    html = page_of(plate.name, headline, sheets, texts, maps, figures.hover(index, by_field))
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(page, html, durable=False)
        draw(plate.name, sheets, maps, picture)
    except OSError as error:
        raise UserError(f"out={page}: cannot be written: {error.strerror or error}") from None
    edge = next(iter(pictures.values())).edge
    return Overview(page, picture, headline, edge, len(shown_keys))


def _refuse_others(page: Path, picture: Path) -> None:
    """Checks that nothing but an earlier overview would be replaced."""
    is_overview = page.is_file() and MADE_BY.encode() in page.read_bytes()
    if files := [path for path in (page, picture) if path.exists() and not is_overview]:
        raise UserError(f"out={page}: {files[0]} exists and overview has not made it; choose another name")


def _about(index: Index, keys: Sequence[FieldKey], number: int) -> str:
    channel = index.plate.channels[number]
    low, high = contrast(index, keys, number)
    plane = "the brightest of all planes at each pixel" if channel.fluorescent else "the sharpest plane"
    imaged = sum(any(c == number for _, c, _ in index.statistics[key].planes) for key in keys)
    remark = "" if imaged == len(keys) else f" Of {len(keys) - imaged} fields it was not imaged: grey."
    return (
        f"{plane.capitalize()}, first time; counts {low:,.0f} (black) to {high:,.0f} (white) in every "
        f"field.{remark}"
    )


def _text(
    index: Index, well: str, keys: Sequence[FieldKey], by_field: dict[FieldKey, FieldFigures]
) -> WellText:
    fields = [(key.image, figures.oddities(by_field[key]), figures.caption(by_field[key])) for key in keys]
    return WellText(figures.plate_map_lines(index, well), fields)


def _headline(index: Index, by_field: dict[FieldKey, FieldFigures]) -> list[str]:
    """Returns a summary of the plate in a few sentences."""
    plate = index.plate
    shapes = Counter(field.shape for field in plate.fields).most_common()
    t, c, z, y, x = shapes[0][0]
    remark = f" ({len(shapes) - 1} other shapes)" if len(shapes) > 1 else ""
    size = f"pixels of {plate.pixel_um:g} µm" if plate.pixel_um else "pixels of unknown size"
    lines = [
        f"{len(plate.fields)} fields in {len(plate.wells)} wells; times {t}, channels {c}, planes {z}, "
        f"{y} × {x} pixels{remark}; {size}."
    ]
    odd = {kind: sum(kind in figure.flags for figure in by_field.values()) for kind in figures.ODD}
    counts = [f"{figures.ODD[kind][0].lower()}: {count}" for kind, count in odd.items()]
    missing = sum(figure.missing for figure in by_field.values())
    lines.append(f"{'; '.join(counts)}; missing planes: {missing}.".capitalize())
    lines += filter(None, [doubtful_size(plate)])
    gaps = [f"{key}: {text}" for key, text, _ in index.problems]
    more = f" … and {len(gaps) - MOST_LINES} more (inspect lists them)" if len(gaps) > MOST_LINES else ""
    if gaps:
        lines.append(f"Left out or incomplete: {'; '.join(gaps[:MOST_LINES])}{more}.")
    return lines
