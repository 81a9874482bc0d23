"""Damaged exports, thrown at every reader: read or refused by name, and nothing else ever happens."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cellvoyager_export
import gen5_export
import hcsai_export
import incell_export
import metaxpress_export
import numpy as np
import pytest
import scanr_export
import tifffile
from cellomics_export import write as write_dib
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from metamorph_stack import write_stk

from hpc_isl.errors import UserError
from hpc_isl.plates.plate import Export
from hpc_isl.plates.readers import detect
from hpc_isl.plates.store import open_plate, read_box
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.convert.stage import convert

SECONDS = 20  # of one reading, on a machine that is busy
FUZZ = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60, database=None
)


def harmony(folder: Path, made: Any) -> None:
    shots = [
        made.shot(Col=col, PlaneID=plane, ChannelID=channel)
        for col in (1, 2)
        for plane in (1, 2)
        for channel in (1, 2)
    ]
    made.write(folder, shots)


def imagexpress(folder: Path, made: Any) -> None:
    for well in ("B02", "B03"):
        for wave in (1, 2):
            for step in (1, 2):
                shot = metaxpress_export.Shot(well, 1, wave, step)
                metaxpress_export.write(
                    folder / "TimePoint_1" / f"ZStep_{step}" / f"P_{well}_w{wave}.TIF", shot
                )
    (folder / "P.HTD").write_bytes(metaxpress_export.htd(["B02", "B03"], waves=2))


def database(folder: Path, made: Any) -> None:
    guid = "17654C10-92F1-4DFD-98AA-6A01BBD775{:02}"
    for number, well in enumerate(("B02", "B03")):
        shot = metaxpress_export.Shot(well)
        metaxpress_export.write(folder / f"P_{well}_s1{guid.format(number)}.tif", shot)


def cellvoyager(folder: Path, made: Any) -> None:
    images = [
        cellvoyager_export.record(Column=column, ZIndex=z, Ch=ch, ActionIndex=ch)
        for column in (1, 2)
        for z in (1, 2)
        for ch in (1, 2)
    ]
    error = (cellvoyager_export.record(Type="ERR", Column=3), "AF Error at A03 No. 1 (x)")
    cellvoyager_export.write_measurement(folder, images, [error])


def imagexpress_ai(folder: Path, made: Any) -> None:
    images = [
        hcsai_export.row(Column=c, Wavelength=w, ZIndex=z) for c in (1, 2) for w in (0, 1) for z in (0, 1)
    ]
    hcsai_export.write_run(folder / "experiment", images)
    hcsai_export.write_run(folder / "experiment_montage", images[:1])


def scanr(folder: Path, made: Any) -> None:
    shots = [scanr_export.Shot(well, plane=z) for well in ("A01", "B02") for z in (0, 1)]
    scanr_export.write_index(folder, shots)


def older_scanr(folder: Path, made: Any) -> None:
    scanr_export.write_descriptor(folder, [scanr_export.Shot(well) for well in ("A01", "B02")])


def cellomics(folder: Path, made: Any) -> None:
    for name in ("A01f00d0", "A01f00d1", "B02f00d0", "B02f00d1"):
        write_dib(folder / f"P_{name}.C01", np.arange(24 * 32, dtype=np.uint16).reshape(24, 32))


def gen5(folder: Path, made: Any) -> None:
    for well in ("A01", "B02"):
        for z in (1, 2):
            shot = gen5_export.Shot(well, plane=z, planes=2)
            gen5_export.write(folder / f"{shot.short}_1Z{z}_DAPI_1_001_.tif", shot)


def incell(folder: Path, made: Any) -> None:
    shots = [
        incell_export.Shot(well, wave=w, plane=z) for well in ("A01", "B02") for w in (0, 1) for z in (0, 1)
    ]
    incell_export.write_run(folder, shots)


def pattern(folder: Path, made: Any) -> None:
    folder.mkdir()
    pixels = np.arange(2 * 2 * 24 * 32, dtype=np.uint16).reshape(2, 2, 24, 32)
    axes = {"axes": "ZCYX", "Channel": {"Name": ["A", "B"]}, "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "um"}
    tifffile.imwrite(folder / "B02.ome.tif", pixels, ome=True, metadata=axes)
    tifffile.imwrite(folder / "B03.tif", pixels, imagej=True, metadata={"axes": "ZCYX", "unit": "um"})
    write_stk(folder / "B04.stk", pixels[0], [0.0, 2.0], [10, 20])


MAKE: dict[str, Callable[[Path, Any], None]] = {
    "harmony": harmony, "imagexpress": imagexpress, "database": database, "imagexpress_ai": imagexpress_ai,
    "cellvoyager": cellvoyager, "scanr": scanr, "older_scanr": older_scanr,
    "cellomics": cellomics, "gen5": gen5, "incell": incell, "pattern": pattern,
}  # fmt: skip
READERS = {"database": "imagexpress", "older_scanr": "scanr"}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, harmony_export: Any) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("whole") / name for name in MAKE}
    for name, make in MAKE.items():
        make(folders[name], harmony_export)
    return folders


def recipe(name: str, folder: Path, **more: Any) -> ConvertRecipe:
    given = {"source": folder, "out": folder.parent / "out.zarr", "reader": READERS.get(name, name)}
    names = {"pattern": {"regex": r"(?P<well>[A-P]\d\d)\.(ome\.)?(tif|stk)"}} if name == "pattern" else {}
    return ConvertRecipe.model_validate(given | names | {"codec": {"chunk": 32}} | more)


# ---------------------------------------------------------------- damage

NUMBERS = [
    b"-1",
    b"0",
    b"1e99",
    b"nan",
    b"",
    b"99999999999999999999",
    b"1.5",
    b"../../../etc/passwd",
    b"/etc/hostname",
]
NOISE = st.binary(min_size=1, max_size=8) | st.sampled_from(
    [b"<", b">", b'"', b"&x;", b"\0", b"\xff\xfe", b"\r\n"]
)


def _cut(data: bytes, at: int, noise: bytes) -> bytes:
    return data[:at]


def _over(data: bytes, at: int, noise: bytes) -> bytes:
    return data[:at] + noise + data[at + len(noise) :]


def _insert(data: bytes, at: int, noise: bytes) -> bytes:
    return data[:at] + noise + data[at:]


def _drop(data: bytes, at: int, noise: bytes) -> bytes:
    return data[:at] + data[at + 3 * len(noise) :]


def _twice(data: bytes, at: int, noise: bytes) -> bytes:
    return data[:at] + data[max(0, at - 200) :]


def _value(data: bytes, at: int, noise: bytes) -> bytes:
    """The next value between quotes or tags becomes another one."""
    begin = min((p for p in (data.find(b'="', at), data.find(b">", at)) if p >= 0), default=-1)
    if begin < 0:
        return data
    begin += 2 if data[begin : begin + 2] == b'="' else 1
    ends = [p for p in (data.find(b'"', begin), data.find(b"<", begin)) if p >= 0]
    return data[:begin] + NUMBERS[len(noise) * at % len(NUMBERS)] + data[min(ends, default=len(data)) :]


CHANGES = [_cut, _over, _insert, _drop, _twice, _value, _value]


def damaged(name: str, whole: dict[str, Path], folder: Path, data: st.DataObject) -> Path:
    """A copy of the export, of which one to three files are damaged, the index and settings most often."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole[name], folder / "export")
    files = sorted(path for path in (folder / "export").rglob("*") if path.is_file())
    indices = [path for path in files if path.suffix.lower() not in (".tif", ".tiff", ".stk")] or files
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(indices) | st.sampled_from(files))
        change = data.draw(st.sampled_from(CHANGES))
        content = path.read_bytes()
        at = data.draw(st.integers(0, len(content)))
        path.write_bytes(change(content, at, data.draw(NOISE)))
    return folder / "export"


def assert_sound(export: Export, folder: Path) -> None:
    """All that a plan may say: fields of reasonable size, and files of the export alone."""
    root = folder.resolve()
    files = [file for own in export.files.values() for file in own]
    assert all(file.path.resolve().is_relative_to(root) for file in files)
    assert set(export.files) <= {field.key for field in export.plate.fields}
    for field in export.plate.fields:
        assert math.prod(field.shape[:3]) <= 1000
        for file in export.files.get(field.key, ()):
            assert all(0 <= at < length for at, length in zip(file.place, field.shape, strict=False))
    numbers = [
        export.plate.pixel_um,
        export.plate.plane_um,
        *(x for f in export.plate.fields for x in f.z_um),
    ]
    numbers += [x for f in export.plate.fields for x in f.position_um or ()]
    assert all(math.isfinite(number) for number in numbers if number is not None)


@pytest.mark.parametrize("name", MAKE)
@FUZZ
@given(data=st.data())
def test_a_damaged_export_is_read_or_refused(
    tmp_path: Path, whole: dict[str, Path], name: str, data: st.DataObject
) -> None:
    folder = damaged(name, whole, tmp_path / "x", data)
    began = time.monotonic()
    try:
        export = detect.read(recipe(name, folder))
    except UserError as mistake:
        assert str(mistake)  # noqa: PT017 - either will do
        event("refused")
    else:
        event(f"read, with {min(1, len(export.problems))} problems")
        assert_sound(export, folder)
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("name", MAKE)
@settings(FUZZ, max_examples=8)
@given(data=st.data(), on_error=st.sampled_from(["stop", "skip"]))
def test_of_a_damaged_export_a_whole_plate_or_none_is_made(
    tmp_path: Path, whole: dict[str, Path], name: str, data: st.DataObject, on_error: str
) -> None:
    folder = damaged(name, whole, tmp_path / "x", data)
    what = recipe(name, folder, on_error=on_error)
    try:
        convert(what, Attempt(Run(tmp_path / "x" / "runs" / "convert" / "P")))
    except UserError:
        with pytest.raises(UserError):
            open_plate(what.out)
        return
    index = open_plate(what.out)
    for field in index.plate.fields:
        for t, c, z in np.argwhere(index.imaged(field.key)).tolist():
            whole_plane = read_box(index.image(field.key), 0, t, c, [z], slice(None), slice(None))
            assert whole_plane.any() or np.asarray(field.shape[-2:]).min() > 0


@pytest.mark.parametrize("name", MAKE)
def test_a_whole_one_is_read(whole: dict[str, Path], name: str) -> None:
    export = detect.read(recipe(name, whole[name]))
    assert [problem for problem in export.problems if problem.kind != "not imaged"] == []
    assert_sound(export, whole[name])
