"""Measurements of a CellVoyager: real metadata with made-up images, and made-up metadata too."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from coded_planes import coded

BTS = "{http://www.yokogawa.co.jp/BTS/BTSSchema/1.0}"
XMLNS = 'bts:Version="1.0" xmlns:bts="http://www.yokogawa.co.jp/BTS/BTSSchema/1.0"'
SIZE = (24, 32)


def records(index: Path, kind: str = "IMG") -> Iterator[tuple[dict[str, str], str]]:
    """Attributes and text of an index's records, as the standard library reads them."""
    for element in ElementTree.parse(index).getroot():
        facts = {name.removeprefix(BTS): value for name, value in element.attrib.items()}
        if facts["Type"] == kind:
            yield facts, element.text or ""


def with_images(metadata: Path, folder: Path, size: tuple[int, int] | None = None) -> Path:
    """A copy of real metadata, with an image for each record whose pixels hold what the record says.

    `size`: of the images, and as the `.mrf` of the copy states it; None: as the original states it.
    """
    folder.mkdir(parents=True)
    for path in metadata.iterdir():
        if path.is_file():
            name = re.sub(r"_2x2_well(?=\.m)", "", path.name)  # renamed by those who published it
            shutil.copyfile(path, folder / name)
    detail = folder / "MeasurementDetail.mrf"
    text = detail.read_text("utf-8-sig")
    if size:
        for side, pixels in zip(("Vertical", "Horizontal"), size, strict=True):
            text = re.sub(rf'bts:{side}Pixels="\d+"', f'bts:{side}Pixels="{pixels}"', text)
        detail.write_text(text)
    stated = [int(re.findall(rf'bts:{side}Pixels="(\d+)"', text)[0]) for side in ("Vertical", "Horizontal")]
    for facts, name in records(folder / "MeasurementData.mlf"):
        write(folder / name, facts, (stated[0], stated[1]))
    return folder


def write(path: Path, facts: dict[str, Any], size: tuple[int, int] = SIZE) -> None:
    """An image whose pixels hold well, field, channel, plane and time of its record."""
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, np.asarray(coded(size, code(facts))), metadata=None, compression="zlib")


def code(facts: dict[str, Any]) -> tuple[str, int, int, int, int]:
    row, column, field, channel, plane, time = (
        int(facts[name]) for name in ("Row", "Column", "FieldIndex", "Ch", "ZIndex", "TimePoint")
    )
    return f"{chr(64 + row)}{column:02d}", field, channel, plane, time


def record(**facts: Any) -> dict[str, Any]:
    """The facts of one image; what is not given is well A01, field 1, channel 1, plane 1, time 1."""
    usual = {
        "Type": "IMG", "Time": "2024-01-01T10:00:00.000+02:00", "Column": 1, "Row": 1, "TimePoint": 1,
        "FieldIndex": 1, "ZIndex": 1, "TimelineIndex": 1, "ActionIndex": 1, "Action": "3D",
        "X": 0.0, "Y": 0.0, "Z": 0.0, "Ch": 1,
    }  # fmt: skip
    return usual | facts


def name_of(facts: dict[str, Any]) -> str:
    return (
        "P#1_{Row}{Column}_T{TimePoint:04}F{FieldIndex:03}L{TimelineIndex:02}A{ActionIndex:02}"
        "Z{ZIndex:02}C{Ch:02}.tif"
    ).format_map(facts)


def write_measurement(
    folder: Path, images: Sequence[dict[str, Any]], errors: Sequence[tuple[dict[str, Any], str]] = ()
) -> Path:
    """A measurement of these images, with index, detail and setting of two channels."""
    folder.mkdir(parents=True, exist_ok=True)
    for facts in images:
        write(folder / name_of(facts), facts)
    lines = [_element("MeasurementRecord", facts, name_of(facts)) for facts in images]
    lines += [_element("MeasurementRecord", facts, text) for facts, text in errors]
    body = "\n".join(lines)
    (folder / "MeasurementData.mlf").write_text(f"<bts:MeasurementData {XMLNS}>{body}</bts:MeasurementData>")
    cameras = "".join(
        _element("MeasurementChannel", {
            "Ch": n, "HorizontalPixelDimension": 0.5, "VerticalPixelDimension": 0.5,
            "HorizontalPixels": SIZE[1], "VerticalPixels": SIZE[0],
        }) for n in (1, 2)
    )  # fmt: skip
    (folder / "MeasurementDetail.mrf").write_text(
        f'<bts:MeasurementDetail {XMLNS} bts:RowCount="8" bts:ColumnCount="12" '
        f'bts:MeasurementSettingFileName="a.mes">{cameras}</bts:MeasurementDetail>',
        "utf-8-sig",
    )
    channels = "".join(
        _element(
            "Channel",
            {"Ch": n, "Target": target, "ExposureTime": 10 * n, "Kind": kind, "Acquisition": "BP445/45"},
        )
        for n, target, kind in ((1, "DAPI", "ConfocalFluorescence"), (2, "BF", "Brightfield"))
    )
    (folder / "a.mes").write_text(f"<bts:MeasurementSetting {XMLNS}>{channels}</bts:MeasurementSetting>")
    return folder


def _element(name: str, facts: dict[str, Any], text: str = "") -> str:
    attributes = " ".join(f'bts:{key}="{value}"' for key, value in facts.items())
    return f"<bts:{name} {attributes}>{text}</bts:{name}>"
