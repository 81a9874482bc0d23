"""Any folder of TIFF or PNG files whose names, or a table, tell what they show, to an `Export`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import isclose
from pathlib import Path
from typing import NamedTuple

from hpc_isl.errors import UserError, many
from hpc_isl.plates.plate import HEIGHT_TOLERANCE, Export, Field, FieldKey, LeftOut, PlaneFile, Plate, spacing
from hpc_isl.plates.readers import export, fields, pattern_names, plane_checks, tiff_metadata
from hpc_isl.plates.readers.export import Edges
from hpc_isl.plates.readers.fields import Shot
from hpc_isl.plates.readers.folder import Folder, left_out_by_name, left_out_lines, list_folder
from hpc_isl.plates.readers.pattern_names import IMAGES, Axes, Named, by_regex, by_table, matching
from hpc_isl.plates.readers.plane_checks import Kind, Size
from hpc_isl.plates.readers.tiff_metadata import TiffMetadata
from hpc_isl.plates.readers.vendor_facts import PlaneMetadata
from hpc_isl.recipes.plates import PatternRecipe


def read(folder: Path, recipe: PatternRecipe, resample: bool = False) -> Export:
    """Returns the plate that file names or a table describe, with what each file states of itself.

    - Planes are ordered by number: -4 before 2 before 10. Numbers count within an acquisition, so a
      channel with the one plane 5 has it where others have theirs. Numbers with a decimal point are
      heights in µm, and count within a field.
    - A file with several planes says along which axes they lie; z where it does not.
    - Times and acquisitions are in natural order (t2 before t10).
    - With a group `image` each image becomes a well, A01, A02, …, in natural order; its name is kept
      in the plate map's column `image`.
    - Field names stay where all are alphanumeric, else they are numbered in natural order and kept in
      `details["name"]`.
    - Channel names, pixel size, positions, heights, times and exposures are those that the files state,
      where neither names nor recipe do.

    Raises:
        UserError: see `by_regex`, `by_table` and `axes`; also a plane that is no number, no file that
            can be read, and more images that no expression matches than that one does.
    """
    below = list_folder(folder)
    named_files, left_out_files = _files_to_read(below, recipe)
    metadata, unreadable = _metadata(below, named_files)
    headers, edges = tiff_metadata.sizes_and_edges(metadata)
    pages = _all_pages(named_files, metadata, below.root, recipe.channels)
    pages, odd_sized_files, sizes_by_name, size_remarks = _of_one_size(
        pages, recipe, below.root, headers, edges if resample else None
    )
    # A channel that is left out tells neither the size of an image nor that of a pixel.
    stored_paths = {below.root / page.named.name for page in pages}
    headers = {path: kind for path, kind in headers.items() if path in stored_paths}
    edges = {path: edge for path, edge in edges.items() if path in stored_paths}
    axes = pattern_names.axes([page.named for page in pages], recipe)
    names = [channel.name for channel in axes.channels]
    by_field: dict[FieldKey, list[_Page]] = defaultdict(list)
    for page in pages:
        by_field[axes.key(page.named)].append(page)
    heights = any("." in page.named.plane for page in pages)
    numbers = _plane_numbers(by_field, heights)
    shots = {
        key: _shots(field_pages, below.root, axes, numbers[key]) for key, field_pages in by_field.items()
    }
    if sizes_by_name:
        channel_numbers = {channel.name: number for number, channel in enumerate(axes.channels)}
        sizes = {channel_numbers[name]: size for name, size in sizes_by_name.items()}
        shots, headers, edges = _resampled(shots, sizes, headers, edges)
    planes = {key: [shot.file for shot in field_shots] for key, field_shots in shots.items()}
    absent = [path for path in unreadable if str(path.relative_to(below.root)) not in below.files]
    files, problems = plane_checks.check(planes, names, unreadable, absent=absent)
    files, kind_problems, kind_remarks = plane_checks.agreeing(files, headers)
    kinds = plane_checks.kinds(files, headers)
    stated_um, edge_remarks = fields.pixel_edge(edges.values())
    pixel_um, pixel_remarks = _pixel_um(recipe, stated_um)
    channels, exposure_remarks = fields.with_exposures(
        axes.channels, (s for field_shots in shots.values() for s in field_shots)
    )
    plate_fields = []
    for key, field_shots in shots.items():
        z_um = _z_um(numbers[key], heights, recipe)
        plate_fields.append(_field(key, field_shots, axes, numbers[key], z_um, kinds[key], pixel_um))
    plate = Plate(
        name=below.root.name,
        rows=axes.wells.rows,
        columns=axes.wells.columns,
        channels=channels,
        fields=tuple(plate_fields),
        pixel_um=pixel_um,
        plane_um=spacing(plate_fields, HEIGHT_TOLERANCE),
        acquisitions={number: name or "0" for name, number in axes.acquisitions.items()},
        details={"reader": "pattern"},
    )
    remarks = [*size_remarks, *kind_remarks]
    if heights:
        remarks.append("the planes' names have decimal points and are taken as heights in micrometres")
    remarks += plane_checks.gaps(planes, names)
    remarks += [
        *(edge_remarks if recipe.pixel_um is None else []),
        *pixel_remarks,
        *exposure_remarks,
        *_odd_files(metadata),
    ]
    left_out = (*left_out_files, *odd_sized_files)
    return Export(plate, files, (*problems, *kind_problems), left_out, axes.wells.plate_map, tuple(remarks))


class _Page(NamedTuple):
    """One plane of one file: what names and file state of it together, and its page in the file."""

    named: Named
    page: int
    metadata: PlaneMetadata


def _files_to_read(below: Folder, recipe: PatternRecipe) -> tuple[list[Named], tuple[LeftOut, ...]]:
    """Returns the files that are read, and the images that are not."""
    root = below.root
    if recipe.table is not None:
        named_files = by_table(below, recipe.table)
        listed_names = {n.name for n in named_files}
        other_images = sorted(n for n in below.files if n not in listed_names and n.lower().endswith(IMAGES))
        return named_files, tuple(
            left_out_by_name(root, name, "image not in the table") for name in other_images
        )
    assert recipe.regex is not None, "the recipe holds one of the two"
    named_files, other_images = by_regex(below, recipe.regex)
    ignored = matching(recipe.ignore, other_images, "pattern.ignore")
    left_out_files = tuple(
        left_out_by_name(root, name, "ignored image" if name in ignored else "image of no pattern")
        for name in other_images
    )
    unmatched = [left for left, name in zip(left_out_files, other_images, strict=True) if name not in ignored]
    # A person's expression may match too little without being noticed; a table names exactly what it wants.
    if len(unmatched) > len(named_files):
        raise UserError(
            f"{root}: pattern.regex matches {len(named_files):,} images and leaves out {len(unmatched):,}, "
            "more than half; widen it, add another, or list in pattern.ignore what is no plane:\n"
            + "\n".join(left_out_lines(unmatched, root))
        )
    return named_files, left_out_files


def _metadata(
    below: Folder, named_files: Sequence[Named]
) -> tuple[dict[Path, TiffMetadata], dict[Path, str]]:
    """Returns what the files that can be used state of themselves, and a clause about each of the others."""
    by_name = {file.name: file for file in named_files}
    unreadable = below.missing(by_name)
    paths = {below.root / name: name for name in sorted(by_name.keys() & below.files)}
    metadata, damaged = tiff_metadata.read_all(list(paths))
    unreadable |= damaged
    for path, tiff in list(metadata.items()):
        if clause := _contradiction(by_name[paths[path]], tiff):
            unreadable[path] = clause
            del metadata[path]
    if not metadata:
        raise UserError(f"{below.root}: no file can be used; {next(iter(unreadable.values()))}")
    return metadata, unreadable


def _contradiction(named: Named, tiff: TiffMetadata) -> str:
    """Returns a clause where a name states one plane, time or channel and the file holds several, or ""."""
    for axis, kind in (("Z", "plane"), ("T", "time"), ("C", "channel")):
        if axis in tiff.axes and getattr(named, kind):
            count = len({getattr(plane, kind) for plane in tiff.planes})
            several = f"{tiff.header.pages} pages" if axis == "Z" else f"{count} {kind}s"
            return f"{named.name} has {several}, but is said to be {kind} {getattr(named, kind)}"
    return ""


def _resampled(
    shots: Mapping[FieldKey, Sequence[Shot]], sizes: Mapping[int, Size], headers: Mapping[Path, Kind],
    edges: Mapping[Path, Edges],
) -> tuple[dict[FieldKey, list[Shot]], dict[Path, Kind], dict[Path, Edges]]:  # fmt: skip
    """Returns the shots with what is to be resampled, headers as stored, and edges of all other pixels.

    `sizes`: channel number -> size to which its images are resampled.
    """
    sized_shots = {
        key: [replace(shot, file=export.sized(shot.file, sizes)) for shot in field_shots]
        for key, field_shots in shots.items()
    }
    files = {
        shot.file.path: shot.file
        for field_shots in sized_shots.values()
        for shot in field_shots
        if shot.file.size
    }
    size = next(headers[path][0] for path in headers if path not in files)
    stored_headers = export.as_stored(headers, files.values(), size)
    return sized_shots, stored_headers, {path: edge for path, edge in edges.items() if path not in files}


def _all_pages(
    named_files: Sequence[Named], metadata: Mapping[Path, TiffMetadata], root: Path, channels: Collection[str]
) -> list[_Page]:
    """Returns the planes of all files; one that cannot be read has those that most of its channel have."""
    usual_layouts = _usual_layouts(named_files, metadata, root)
    by_files = not any(named.time for named in named_files)  # names state no times
    return [
        page
        for named in named_files
        for page in _pages(
            named, metadata.get(root / named.name) or usual_layouts.get(named.channel), channels, by_files
        )
    ]


def _usual_layouts(
    named_files: Sequence[Named], metadata: Mapping[Path, TiffMetadata], root: Path
) -> dict[str, TiffMetadata]:
    """Returns channel in the name -> axes and planes that most of its files have, and nothing else of these.

    They stand for files that cannot be read: as one plane without channel and time such a file would add a
    channel and a first time to all fields.
    """
    if all(root / named.name in metadata for named in named_files):
        return {}  # quick: stacks may have thousands of planes each
    layouts: dict[str, Counter[tuple[str, tuple[PlaneMetadata, ...]]]] = defaultdict(Counter)
    for named in named_files:
        if tiff := metadata.get(root / named.name):
            planes = tuple(PlaneMetadata(p.time, p.channel, p.plane, p.channel_name) for p in tiff.planes)
            layouts[named.channel][tiff.axes, planes] += 1
    header = next(iter(metadata.values())).header
    return {
        channel: TiffMetadata(header, "", *counts.most_common(1)[0][0]) for channel, counts in layouts.items()
    }


def _pages(named: Named, tiff: TiffMetadata | None, channels: Collection[str], by_files: bool) -> list[_Page]:
    """Returns the planes of a file; the file states what its name leaves open.

    Args:
        by_files: times are those that the files state: what states none is of the first one.
    """
    if tiff is None:
        return [_Page(named, 0, PlaneMetadata())]
    pages = []
    for page, plane in enumerate(tiff.planes):
        channel = plane.channel_name or (str(plane.channel + 1) if "C" in tiff.axes else "")
        if channels and channel not in channels and "C" not in tiff.axes:
            channel = ""  # the recipe names the one channel of files whose names do not
        facts = {
            "channel": named.channel or channel,
            "time": named.time or (str(plane.time) if by_files or "T" in tiff.axes else ""),
            "plane": named.plane or (str(plane.plane) if "Z" in tiff.axes else ""),
        }
        pages.append(_Page(replace(named, **facts), page, plane))
    return pages


def _of_one_size(
    pages: list[_Page],
    recipe: PatternRecipe,
    root: Path,
    headers: Mapping[Path, Kind],
    edges: Mapping[Path, Edges] | None,
) -> tuple[list[_Page], list[LeftOut], dict[str, Size], list[str]]:
    """Returns the pages of channels that have the size of most, and what becomes of the others.

    Args:
        edges: of a pixel in each file; None: no channel is resampled.

    Returns:
        The pages that are kept, those left out, name -> size of the channels to resample, and remarks.
    """
    axes = pattern_names.axes([page.named for page in pages], recipe)
    channel_files = [(axes.channel_of[page.named.channel], root / page.named.name) for page in pages]
    sizes = plane_checks.channel_sizes(channel_files, headers)
    names = {c: axes.channels[c].name for c in sizes}
    channel_edges = None if edges is None else {c: edges.get(path) for c, path in channel_files}
    odd_channels, resampled, remarks = export.odd_channels(names, sizes, channel_edges)
    left_out = [
        LeftOut(path, "channel of another size", axes.key(page.named).well, axes.channels[c].name)
        for page, (c, path) in zip(pages, channel_files, strict=True)
        if c in odd_channels
    ]
    kept_pages = [page for page, (c, _) in zip(pages, channel_files, strict=True) if c not in odd_channels]
    return kept_pages, left_out, {names[c]: size for c, size in resampled.items()}, remarks


def _plane_numbers(
    by_field: Mapping[FieldKey, Sequence[_Page]], heights: bool
) -> dict[FieldKey, list[float]]:
    """Returns the plane numbers of each field, in order: its own heights, or its acquisition's numbers."""
    field_numbers = {
        key: {number for page in pages if (number := pattern_names.plane_number(page.named)) is not None}
        for key, pages in by_field.items()
    }
    acquisition_numbers: dict[int, set[float]] = defaultdict(set)
    for key, numbers in field_numbers.items():
        acquisition_numbers[key.acquisition] |= numbers
    return {
        key: sorted(field_numbers[key] if heights else acquisition_numbers[key.acquisition])
        for key in field_numbers
    }


def _shots(pages: Sequence[_Page], root: Path, axes: Axes, numbers: Sequence[float]) -> list[Shot]:
    z_of = {number: z for z, number in enumerate(numbers)}
    shots = []
    for named, page, metadata in pages:
        number = pattern_names.plane_number(named)
        time = axes.times[axes.acquisitions[named.acquisition], named.time]
        plane = 0 if number is None else z_of[number]
        file = PlaneFile(root / named.name, time, axes.channel_of[named.channel], plane, page)
        shots.append(Shot(file, metadata))
    return shots


def _field(
    key: FieldKey,
    shots: Sequence[Shot],
    axes: Axes,
    numbers: Sequence[float],
    z_um: tuple[float, ...],
    kind: Kind,
    pixel_um: float | None,
) -> Field:
    names = [channel.name for channel in axes.channels]
    details: dict[str, object] = {}
    for original, name in axes.fields.items():
        if name == key.name and original not in ("", name):  # it had to be numbered
            details["name"] = original
    if numbers:  # as the names have them, 2 rather than 2.0
        details["plane_numbers"] = [int(n) if n.is_integer() else n for n in numbers]
    field = fields.field(key, shots, names, *kind, pixel_um, details)
    times, count, depth, y, x = field.shape
    depth = max(depth, len(numbers))
    heights = z_um or (field.z_um if len(field.z_um) == depth else ())
    return replace(field, shape=(times, count, depth, y, x), z_um=heights)


def _z_um(numbers: Sequence[float], heights: bool, recipe: PatternRecipe) -> tuple[float, ...]:
    """Returns heights as the names state them; or from numbers, whose smallest difference is `plane_um`."""
    if heights:
        return tuple(numbers)
    if recipe.plane_um is None or len(numbers) < 2:
        return ()
    # Numbers may skip planes: the smallest difference is one step.
    step = min(upper - lower for lower, upper in pairwise(numbers))
    return tuple(round((number - numbers[0]) / step * recipe.plane_um, 4) for number in numbers)


def _pixel_um(recipe: PatternRecipe, stated: float | None) -> tuple[float | None, list[str]]:
    """Returns the recipe's pixel size, with a remark where the files differ; without one, the files'."""
    if recipe.pixel_um is None:
        return stated, []
    if stated is None or isclose(stated, recipe.pixel_um, rel_tol=0.01):
        return recipe.pixel_um, []
    return recipe.pixel_um, [
        f"pattern.pixel_um is {recipe.pixel_um:g} µm, but the files state {stated:g} µm; the recipe's is kept"
    ]


def _odd_files(metadata: Mapping[Path, TiffMetadata]) -> list[str]:
    """Returns remarks about the files' metadata, counted by kind."""
    kinds = Counter(tiff.remark for tiff in metadata.values() if tiff.remark)
    kinds |= Counter(
        f"names {tiff.linked!r} as the file that holds its metadata, which is not read"
        for tiff in metadata.values()
        if tiff.linked
    )
    return [f"{many(count, 'file')}: {remark}" for remark, count in sorted(kinds.items())]
