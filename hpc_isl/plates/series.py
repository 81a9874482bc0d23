"""Images of bioformats2raw that lie side by side, 0, 1, …: to which well of which plate each belongs.

OME/METADATA.ome.xml may describe a plate; else a table says it. Nothing is guessed from names.
"""

# From the specification (`bioformats2raw.layout` 3, versions 0.4 and 0.5) and the schema of OME-XML 2016-06.

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as member
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from hpc_isl.errors import UserError, many, nearest
from hpc_isl.files import csv_lines
from hpc_isl.plates import nodes
from hpc_isl.plates.adopted import OME_XML as XML
from hpc_isl.plates.plate import MOST_COLUMNS, MOST_ROWS, FieldKey, normal_well, well_name
from hpc_isl.plates.readers.vendor_facts import local_name, whole, xml_elements

Places = list[tuple[FieldKey, str]]
"""The key of each image, and its folder below the plate."""


@dataclass
class _Described:
    """Statements of OME-XML: images by id, in order, with their names; and a plate, whose samples are images.

    Attributes:
        samples: (well, pass, number of the sample in it, id of the image).
    """

    images: dict[str, str] = member(default_factory=dict)
    plate: dict[str, Any] = member(default_factory=dict)
    samples: list[tuple[str, int, int, str]] = member(default_factory=list)


def read_series(path: Path, table: Path | None) -> tuple[dict[str, Any], Places, list[str]]:
    """Returns what is stated of the plate, as a group of OME-Zarr would, its images, and remarks.

    Fields are numbered from 0 in each well and pass, in the order of their samples.

    Args:
        table: CSV with columns image, well and perhaps field; None: OME-XML has to describe a plate.

    Raises:
        UserError: nothing says to which well the images belong, or what says it is damaged.
    """
    described = _read_xml(path / XML) if (path / XML).is_file() else _Described()
    folders = _folders(path, len(described.images))
    names = dict(zip(folders, described.images.values(), strict=False))
    if table is not None:
        places, plate_facts = _by_table(table, folders, names), {}
    elif described.samples:
        places, plate_facts = _by_samples(path, described, folders), described.plate
    else:
        count, examples = many(len(folders), "image"), ", ".join(folders[:2])
        raise UserError(
            f"{path}: holds {count} of bioformats2raw, and {XML} puts none into a well; give adopt a table: "
            f"wells=FILE.csv with columns image ({examples}, … or the name in OME-XML), well and field"
        )
    unplaced = sorted(set(folders) - {folder for _, folder in places})
    remark = f"images that belong to no well are left out: {', '.join(unplaced[:10])}" if unplaced else ""
    return plate_facts, places, [remark] if remark else []


def _folders(path: Path, image_count: int) -> list[str]:
    """Returns the folders of the images, in the order of OME-XML."""
    group = path / "OME"
    series_names = nodes.ome_attributes(group).get("series") if nodes.is_group(group) else None
    if isinstance(series_names, list) and series_names:
        folders = [str(name).strip("/") for name in series_names]
        if any(part in ("", ".", "..") for name in folders for part in name.split("/")):
            raise UserError(f"{group}: lists series that lie elsewhere: {', '.join(folders[:5])}")
        return folders
    numbered = sorted((p.name for p in path.iterdir() if p.name.isdecimal() and nodes.is_group(p)), key=int)
    return numbered if len(numbered) > image_count else [str(number) for number in range(image_count)]


# ---------------------------------------------------------------- OME-XML


def _read_xml(path: Path) -> _Described:
    described = _Described()
    for kind, element in xml_elements(path, {"Image", "Plate"}):
        if kind == "Image":
            described.images[element.get("ID", "")] = element.get("Name", "")
        elif described.plate:
            raise UserError(f"{path}: describes several plates; one is expected")
        else:
            _add_plate(described, element, path)
    return described


def _add_plate(described: _Described, plate: Element, path: Path) -> None:
    passes = [child for child in plate if local_name(child.tag) == "PlateAcquisition"]
    pass_of = {
        reference.get("ID", ""): number
        for number, acquisition in enumerate(passes)
        for reference in acquisition.iter()
    }
    rows, columns = (_number(plate, axis, path, default=0) for axis in ("Rows", "Columns"))
    described.plate |= {
        "name": plate.get("Name") or plate.get("ID") or "plate",
        "rows": [{}] * min(rows, MOST_ROWS),
        "columns": [{}] * min(columns, MOST_COLUMNS),
        "acquisitions": [
            {"id": number, "name": acquisition.get("Name") or acquisition.get("ID") or str(number)}
            for number, acquisition in enumerate(passes)
        ],
    }
    for well in (child for child in plate if local_name(child.tag) == "Well"):
        row, column = (_number(well, axis, path) for axis in ("Row", "Column"))
        if row >= MOST_ROWS or column >= MOST_COLUMNS:
            raise UserError(f"{path}: row {row}, column {column} (from 0) is no well")
        samples = [child for child in well if local_name(child.tag) == "WellSample"]
        for rank, sample in enumerate(samples):
            reference = next((child for child in sample if local_name(child.tag) == "ImageRef"), None)
            if reference is not None:  # else the position was planned, and not imaged
                described.samples.append((
                    well_name(row, column), pass_of.get(sample.get("ID", ""), 0),
                    _number(sample, "Index", path, default=rank), reference.get("ID", ""),
                ))  # fmt: skip


def _number(element: Element, name: str, path: Path, default: int | None = None) -> int:
    return whole(element.attrib, name, f"{path}: {local_name(element.tag)}", default)


def _by_samples(path: Path, described: _Described, folders: Sequence[str]) -> Places:
    folder_of = dict(zip(described.images, folders, strict=False))
    places, counts = [], Counter[tuple[str, int]]()
    for well, number, _, image in sorted(described.samples, key=lambda sample: sample[:3]):
        if image not in folder_of:
            raise UserError(f"{path / XML}: well {well} names image {image!r}, which is not there")
        places.append((FieldKey(well, str(counts[well, number]), number), folder_of[image]))
        counts[well, number] += 1
    _refuse_twice(path / XML, places)
    return places


# ---------------------------------------------------------------- the table


def _by_table(table: Path, folders: Sequence[str], names: Mapping[str, str]) -> Places:
    """Returns the images that a table lists; one is named by its folder, or by a name that it alone has."""
    counts = Counter(names.values())
    folder_of = {name: folder for folder, name in names.items() if name and counts[name] == 1}
    folder_of |= {folder: folder for folder in folders}
    header, *lines = csv_lines(table, f"wells: {table}") or [[]]
    columns = [name.strip().lower() for name in header]
    if lacking := {"image", "well"} - set(columns):
        raise UserError(f"wells: {table} has no column {min(lacking)!r}; image, well and field are read")
    places, numbers = [], Counter[str]()
    for count, line in enumerate(lines, start=2):
        row = {name: text.strip() for name, text in zip(columns, line, strict=False)}
        if not any(row.values()):
            continue
        image, field = row["image"], row.get("field", "")
        if image not in folder_of:
            suggestion = nearest(image, folder_of)
            raise UserError(f"wells: {table} line {count}: there is no image {image!r}; {suggestion}")
        if field and not (field.isascii() and field.isalnum()):
            raise UserError(f"wells: {table} line {count}: field {field!r}; letters and digits are expected")
        well = normal_well(row.get("well", ""))
        places.append((FieldKey(well, field or str(numbers[well])), folder_of[image]))
        numbers[well] += 1
    if not places:
        raise UserError(f"wells: {table} lists no image")
    _refuse_twice(table, places)
    return places


def _refuse_twice(origin: Path, places: Places) -> None:
    for values in ([key for key, _ in places], [folder for _, folder in places]):
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            kind = "field" if isinstance(repeated[0], FieldKey) else "image"
            raise UserError(f"{origin}: {kind} {repeated[0]} is listed twice")
