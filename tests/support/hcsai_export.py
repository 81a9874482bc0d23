"""Runs of ImageXpress HCS.ai: real metadata with made-up images, and made-up metadata too."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from coded_planes import Code, coded

from hpc_isl.plates.plate import well_name

SIZE = (24, 32)
COLUMNS = [
    "FovUuid",
    "Well",
    "Row",
    "Column",
    "Field",
    "Wavelength",
    "Timepoint",
    "ZIndex",
    "ImageStartXPx",
    "ImageStartYPx",
    "ImageSizeXPx",
    "ImageSizeYPx",
    "ImageSubFolderPath",
    "ImageFileName",
    "TimeStampSec",
    "ExposureTimeMs",
    "ExcitationEmissionFilter",
    "PositionXUm",
    "PositionYUm",
    "PositionZUm",
]


def rows(folder: Path) -> Iterator[dict[str, str]]:
    """Rows of a run's index, as the standard library reads them."""
    with (folder / "image_metadata_1.csv").open(newline="") as file:
        yield from csv.DictReader(file)


def code(row: dict[str, Any]) -> Code:
    row_, column, field, wave, z, time = (
        int(row[name]) for name in ("Row", "Column", "Field", "Wavelength", "ZIndex", "Timepoint")
    )
    return well_name(row_ - 1, column - 1), field, wave, z, time


def with_images(metadata: Path, folder: Path) -> Path:
    """A copy of real metadata, with an image for each row, of the size that it states."""
    shutil.copytree(metadata, folder)
    for index in folder.rglob("image_metadata_1.csv"):
        for row in rows(index.parent):
            write(index.parent, row)
    return folder


def write(run: Path, row: dict[str, Any]) -> None:
    path = run / str(row["ImageSubFolderPath"]) / str(row["ImageFileName"])
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (int(row["ImageSizeYPx"]), int(row["ImageSizeXPx"]))
    tifffile.imwrite(path, np.asarray(coded(size, code(row))), metadata=None, compression="zlib")


def row(**facts: Any) -> dict[str, Any]:
    """One image; what is not given is well A01, field 0, wavelength 0, plane 0, time 0."""
    usual: dict[str, Any] = {
        "Well": "", "Row": 1, "Column": 1, "Field": 0, "Wavelength": 0, "Timepoint": 0, "ZIndex": 0,
        "ImageStartXPx": 0, "ImageStartYPx": 0, "ImageSizeXPx": SIZE[1], "ImageSizeYPx": SIZE[0],
        "ImageSubFolderPath": "timepoint0", "TimeStampSec": 1786140449.069, "ExposureTimeMs": 10,
        "ExcitationEmissionFilter": "", "PositionXUm": 14400, "PositionYUm": 11300, "PositionZUm": 18444.72,
    } | facts  # fmt: skip
    name = "P_t{Timepoint}_{Row}_{Column}_s{Field}_w{Wavelength}_z{ZIndex}.tif".format_map(usual)
    return {"ImageFileName": name} | usual


def write_run(folder: Path, images: Sequence[dict[str, Any]], **protocol: Any) -> Path:
    """A run of these images with two wavelengths, DAPI and TL."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        write(folder, image)
    with (folder / "image_metadata_1.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows(images)
    waves = [
        {"Index": n, "EmissionFilter": {"Name": name, "Wavelength": nm, "Unit": "nm"}}
        for n, name, nm in ((0, "DAPI", 440), (1, "TL", 450))
    ]
    usual = {
        "ObjectiveCalibration": {"Unit": "µm", "PixelWidth": 0.5, "PixelHeight": 0.5},
        "Plate": {"Rows": 8, "Columns": 12}, "Wavelengths": waves,
        "PlateMap": {"ZDimensionParameters": {"Enabled": True, "NumberOfSlices": 1}},
    }  # fmt: skip
    stack = {
        "PlateId": "P1 2026-03-02, 13:57:52", "Creation": {"Date": "2026-03-02", "Time": "13:57:52"},
        "AutoLeadAcquisitionProtocol": usual | protocol, "ImageMetadataFiles": ["image_metadata_1.csv"],
    }  # fmt: skip
    (folder / "P1.jdce").write_text(json.dumps({"ImageStack": stack}))
    return folder
