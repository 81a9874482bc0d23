"""The pixels of a plate of ours, written as other programs write OME-Zarr: layouts, axes, chunks, bytes.

With zarr-python and metadata by hand, so that layouts which no writer here makes are tested too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from hpc_isl.plates.plate import Field, FieldKey
from hpc_isl.plates.store import Index, open_level

KINDS = {"t": "time", "c": "channel"}


def write_other(
    index: Index,
    path: Path,
    *,
    version: str = "0.4",
    axes: str = "tczyx",
    separator: str = "/",
    dtype: str | None = None,
    chunk: int = 160,
    shard: bool = False,
    levels: int | None = None,
    unit: str | None = "micrometer",
    per_unit: float = 1.0,
    padded: bool = True,
    first: int = 0,
    acquisitions: bool = False,
    fill: int = 0,
) -> Path:
    """Returns `path`, which holds the plate as another program writes it.

    Args:
        separator: of chunk names, / or a dot.
        dtype: of the arrays, e.g. ">u2".
        levels: of the pyramid; None: as many as ours.
        per_unit: micrometres that a unit has.
        padded: wells are called B/03, else B/3.
        first: number of the first image of a well.
        fill: of the arrays; chunks that hold nothing else are not written.
    """
    plate = index.plate
    wells = []
    for well in plate.wells:
        row, column = well[0], well[1:] if padded else str(int(well[1:]))
        wells.append({
            "path": f"{row}/{column}", "rowIndex": plate.rows.index(row), "columnIndex": int(column) - 1,
        })  # fmt: skip
        folder = path / row / column
        images = []
        for number, field in enumerate(f for f in plate.fields if f.key.well == well):
            name = str(first + number)
            images.append({"path": name, **({"acquisition": field.key.acquisition} if acquisitions else {})})
            count = min(levels or 99, index.levels(field.key))
            scales = []
            for level in range(count):
                pixels = whole(index, field.key, level)
                options = {"separator": separator, "chunk": chunk, "shard": shard, "fill": fill}
                _array(folder / name / str(level), _turned(pixels, axes), axes, version, dtype, options)
                scales.append(_dataset(index, field, level, axes, per_unit))
            group(folder / name, version, {
                "multiscales": [{
                    "version": version, "name": name, "datasets": scales,
                    "axes": [
                        {"name": a, "type": KINDS.get(a, "space")}
                        | ({"unit": unit} if unit and a in ("yxz" if plate.plane_um else "yx") else {})
                        for a in axes
                    ],
                }],
                "omero": {"channels": [
                    {"label": c.name, "color": c.color, "window": {"min": 0, "max": 1, "start": 0, "end": 1}}
                    for c in plate.channels
                ]},
            })  # fmt: skip
        group(folder, version, {"well": {"version": version, "images": images}})
        group(path / row, version, {})
    columns = [c if padded else str(int(c)) for c in plate.columns]
    content = {
        "name": plate.name, "version": version, "wells": wells, "rows": [{"name": row} for row in plate.rows],
        "columns": [{"name": column} for column in columns],
        "acquisitions": [{"id": number, "name": name} for number, name in plate.acquisitions.items()],
    }  # fmt: skip
    group(path, version, {"plate": content})
    return path


def write_series(
    index: Index, path: Path, version: str = "0.4", wells: bool = True, listed: bool = True
) -> Path:
    """Returns `path`, which holds the images side by side, as bioformats2raw writes them without a plate.

    The last field of the plate is image 0. `wells`: OME-XML describes the plate; `listed`: the group OME has
    the list of images.
    """
    plated = write_other(index, path.with_name("plated.zarr"), version=version)
    fields = list(reversed(index.plate.fields))
    group(path, version, {"bioformats2raw.layout": 3})
    images, samples = "", {}
    for number, field in enumerate(fields):
        own = [f.key for f in index.plate.fields if f.key.well == field.key.well]
        image = plated / field.key.well[0] / field.key.well[1:] / str(own.index(field.key))
        image.rename(path / str(number))
        _, c, z, y, x = field.shape
        images += (
            f'<Image ID="Image:{number}" Name="scan {number}"><Pixels SizeC="{c}" SizeT="1" SizeZ="{z}" '
            f'SizeX="{x}" SizeY="{y}" Type="uint16"/></Image>'
        )
        samples.setdefault(field.key.well, []).append(
            f'<WellSample ID="WellSample:0:{number}" Index="{own.index(field.key)}">'
            f'<ImageRef ID="Image:{number}"/></WellSample>'
        )
    shutil.rmtree(plated)
    stated = "".join(
        f'<Well Column="{int(well[1:]) - 1}" Row="{index.plate.rows.index(well[0])}" ID="Well:{well}">'
        f"{''.join(own)}</Well>"
        for well, own in samples.items()
    )
    rows, columns = len(index.plate.rows), len(index.plate.columns)
    plate = (
        f'<Plate ID="Plate:0" Name="{index.plate.name}" Rows="{rows}" Columns="{columns}">{stated}</Plate>'
    )
    space = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    group(path / "OME", version, {"series": [str(n) for n in range(len(fields))]} if listed else {})
    (path / "OME" / "METADATA.ome.xml").write_text(
        f'<?xml version="1.0"?><OME xmlns="{space}">{plate if wells else ""}{images}</OME>'
    )
    return path


def whole(index: Index, key: FieldKey, level: int = 0) -> np.ndarray:
    """All pixels of a level, (t, c, z, y, x)."""
    pixels = open_level(index.image(key), level).read().result()
    return pixels if pixels.ndim == 5 else pixels[None]


def _turned(pixels: np.ndarray, axes: Sequence[str]) -> np.ndarray:
    for number, axis in reversed(list(enumerate("tczyx"))):
        if axis not in axes:
            pixels = pixels.take(0, number)
    kept = [axis for axis in "tczyx" if axis in axes]
    return pixels.transpose([kept.index(axis) for axis in axes])


def _array(
    folder: Path, pixels: np.ndarray, axes: str, version: str, dtype: str | None, options: dict[str, Any]
) -> None:
    edge = options["chunk"]
    chunks = tuple(min(edge, n) if a in "yx" else 1 for a, n in zip(axes, pixels.shape, strict=True))
    common: dict[str, Any] = {
        "store": str(folder), "shape": pixels.shape, "dtype": dtype or pixels.dtype, "chunks": chunks,
        "fill_value": options["fill"], "config": {"write_empty_chunks": False},
    }  # fmt: skip
    if version == "0.5":
        if options["shard"]:
            common["shards"] = tuple(
                -(-n // c) * c if a in "zyx" else c
                for a, n, c in zip(axes, pixels.shape, chunks, strict=True)
            )
        array = zarr.create_array(**common, zarr_format=3, dimension_names=list(axes))
    else:
        encoding = {"name": "v2", "separator": options["separator"]}
        array = zarr.create_array(**common, zarr_format=2, chunk_key_encoding=encoding)
    array[...] = pixels


def _dataset(index: Index, field: Field, level: int, axes: str, per_unit: float) -> dict[str, Any]:
    plate, (y, x) = index.plate, field.position_um or (0.0, 0.0)
    first = {"y": y, "x": x, "z": field.z_um[0] if field.z_um else 0.0}
    step = {"y": plate.pixel_um or 1.0, "x": plate.pixel_um or 1.0, "z": plate.plane_um or 1.0}
    grown = {a: step.get(a, 1.0) * (2**level if a in "yx" else 1) for a in axes}
    return {
        "path": str(level),
        "coordinateTransformations": [
            {"type": "scale", "scale": [v / (per_unit if a in "zyx" else 1) for a, v in grown.items()]},
            {"type": "translation", "translation": [first.get(a, 0.0) / per_unit for a in axes]},
        ],
    }


def group(folder: Path, version: str, content: dict[str, Any]) -> None:
    """Writes a group's metadata, of zarr 2 or 3."""
    folder.mkdir(parents=True, exist_ok=True)
    if version == "0.5":
        attributes = {"ome": {"version": version, **content}} if content else {}
        text = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes})
        (folder / "zarr.json").write_text(text)
        return
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    if content:
        (folder / ".zattrs").write_text(json.dumps(content))


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and time: nothing may be written into another's plate."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
