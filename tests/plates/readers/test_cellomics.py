"""Images of Cellomics, real ones and made-up ones."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from cellomics_export import dib, write
from coded_planes import coded, decoded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import header, read_plane
from hpc_isl.plates.readers import cellomics, detect, pattern
from hpc_isl.recipes.load import load
from hpc_isl.recipes.plates import ConvertRecipe


@pytest.mark.realdata
def test_a_real_folder_is_read_to_the_pixel(realdata: Path) -> None:
    """The one image that Bio-Formats converted is equal; the pixel size is read here on its own."""
    folder = realdata / "vendor/cellomics_c01/test-data/d1"
    result = detect.read(ConvertRecipe.model_validate({"source": folder, "out": "x.zarr"}))
    first = folder / "MFGTMP_120628160001_C18f00d0.C01"
    other = folder.parents[1] / "test-data-results-m/d1" / first.with_suffix(".tif").name
    np.testing.assert_array_equal(read_plane(first), tifffile.imread(other))
    per_metre = struct.unpack("<i", zlib.decompress(first.read_bytes()[4:])[24:28])[0]
    assert result.plate.pixel_um == round(1e6 / per_metre, 4) == 0.645
    assert {(str(k), f.channel, f.path.name) for k, own in result.files.items() for f in own} == {
        *((f"C18/{0}", c, f"MFGTMP_120628160001_C18f00d{c}.C01") for c in (0, 1, 2)),
        ("C18/1", 0, "MFGTMP_120628160001_C18f01d0.C01"),
    }
    assert [(left.path.name[-8:], left.kind) for left in result.left_out] == [("f00o1.C01"[-8:], "overlay")]
    assert (result.plate.name, len(result.plate.rows)) == ("MFGTMP_120628160001", 16)
    assert result.remarks[0].startswith("channels are named d0, d1, d2, as the files are")


@pytest.mark.parametrize("ending", ["C01", "DIB"])
def test_planes_are_placed_by_their_names(tmp_path: Path, ending: str) -> None:
    codes = [(well, f, c, 0, 0) for well in ("A01", "P24") for f in (0, 10) for c in (0, 1)]
    for code in codes:
        write(tmp_path / f"P_1_{code[0]}f{code[1]:02}d{code[2]}.{ending}", np.asarray(coded((24, 33), code)))
    result = cellomics.read(tmp_path)
    assert {
        (key.well, int(key.name), file.channel, file.plane, file.time): decoded(read_plane(file.path))
        for key, own in result.files.items()
        for file in own
    } == {code: code for code in codes}
    assert {field.shape for field in result.plate.fields} == {(1, 2, 1, 24, 33)}
    assert result.problems == ()


def test_rows_go_on_beyond_p_and_z(tmp_path: Path) -> None:
    for well in ("A01", "Q01", "AF48"):
        write(tmp_path / f"P_{well}f00d0.C01", np.asarray(coded((24, 33), (well, 0, 0, 0, 0))))
    result = cellomics.read(tmp_path)
    assert (result.plate.wells, result.left_out) == (("A01", "Q01", "AF48"), ())


def test_copies_as_tiff_are_left_out_and_tiffs_alone_are_read(tmp_path: Path) -> None:
    plane = np.asarray(coded((24, 32), ("A01", 0, 0, 0, 0)))
    write(tmp_path / "P_A01f00d0.C01", plane)
    for name in ("P_A01f00d0.tif", "P_A02f00d0.TIF", "P_A02f00o1.TIF", "picture.png"):
        tifffile.imwrite(tmp_path / name, plane)
    result = cellomics.read(tmp_path)
    assert {str(key): own[0].path.name for key, own in result.files.items()} == {
        "A01/0": "P_A01f00d0.C01", "A02/0": "P_A02f00d0.TIF",
    }  # fmt: skip
    assert Counter(left.kind for left in result.left_out) == {
        "copy as TIFF": 1,
        "overlay": 1,
        "unknown name": 1,
    }


def test_the_shipped_pattern_names_the_channels(tmp_path: Path) -> None:
    for c in (0, 1):
        write(tmp_path / f"P_A01f00d{c}.C01", np.asarray(coded((24, 32), ("A01", 0, c, 0, 0))))
    write(tmp_path / "P_A01f00o1.C01", np.zeros((24, 32), np.uint16))
    recipe = load(
        "convert",
        Path("patterns/cellomics.yaml"),
        [f"source={tmp_path}", "out=x.zarr", "pattern.channels={'1': Phase, '0': DAPI}"],
    )
    assert isinstance(recipe, ConvertRecipe)
    assert recipe.pattern is not None
    result = pattern.read(tmp_path, recipe.pattern)
    assert [channel.name for channel in result.plate.channels] == ["Phase", "DAPI"]
    assert result.plate.pixel_um == 0.645
    assert [left.kind for left in result.left_out] == ["ignored image"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("masks", "padded"), [(True, True), (False, True), (True, False)])
def test_pixels_are_the_files(tmp_path: Path, dtype: type, masks: bool, padded: bool) -> None:
    plane = np.arange(7 * 9).reshape(7, 9).astype(dtype)
    (tmp_path / "x.DIB").write_bytes(dib(plane, masks, padded=padded))
    assert header(tmp_path / "x.DIB") == ((7, 9), np.dtype(dtype).name, 1)
    np.testing.assert_array_equal(read_plane(tmp_path / "x.DIB"), plane)
    assert read_plane(tmp_path / "x.DIB").dtype == dtype


def test_several_plates_and_overlays_alone_are_refused(tmp_path: Path) -> None:
    plane = np.zeros((24, 32), np.uint16)
    write(tmp_path / "P_A01f00o0.C01", plane)
    with pytest.raises(UserError, match="holds overlays alone"):
        cellomics.read(tmp_path)
    write(tmp_path / "Q_A01f00d0.C01", plane)
    with pytest.raises(UserError, match=r"holds several plates \(P, Q\); give one as source"):
        cellomics.read(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    at=st.integers(0, 1000),
    noise=st.binary(max_size=4),
    cut=st.booleans(),
    ending=st.sampled_from(["C01", "DIB"]),
)
def test_a_damaged_image_is_read_or_named(
    tmp_path: Path, at: int, noise: bytes, cut: bool, ending: str
) -> None:
    path = write(tmp_path / f"P_A01f00d0.{ending}", np.arange(24 * 32, dtype=np.uint16).reshape(24, 32))
    content = path.read_bytes()
    at %= len(content)
    path.write_bytes(content[:at] + noise + (b"" if cut else content[at + len(noise) :]))
    try:
        shape, dtype, _ = header(path)
        plane = read_plane(path)
    except UserError as mistake:
        assert path.name in str(mistake)  # noqa: PT017 - either will do
    else:
        assert (plane.shape, plane.dtype.name) == (shape, dtype)
