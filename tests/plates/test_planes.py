"""Decoding planes: exact where the file is whole, an error that names it where it is not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import Header, header, read_plane
from hpc_isl.plates.statistics import measure

PIXELS = np.random.default_rng(0).poisson(60, (70, 90)).astype(np.uint16)
WAYS: dict[str, dict[str, Any]] = {
    "raw": {},
    "lzw": {"compression": "lzw", "rowsperstrip": 16},
    "deflate": {"compression": "deflate", "predictor": True, "rowsperstrip": 16},
    "zstd tiles": {"compression": "zstd", "tile": (32, 32)},
    "big": {"bigtiff": True},
    "big endian": {"byteorder": ">"},
}


@pytest.fixture(params=sorted(WAYS))
def tiff(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "plane.tif"
    tifffile.imwrite(path, PIXELS, metadata=None, **WAYS[request.param])
    return path


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "plane.png"
    path.write_bytes(imagecodecs.png_encode(PIXELS))
    return path


def test_a_tiff_is_read_exactly(tiff: Path) -> None:
    pixels = read_plane(tiff)
    assert header(tiff) == Header((70, 90), "uint16", 1)
    assert pixels.dtype == np.dtype("=u2")
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, PIXELS)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32"])
def test_other_types_are_read_exactly(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "x.tif", PIXELS.astype(dtype))
    assert header(tmp_path / "x.tif").dtype == dtype
    assert np.array_equal(read_plane(tmp_path / "x.tif"), PIXELS.astype(dtype))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("way", [{}, {"rowsperstrip": 7}, {"tile": (32, 32)}, {"photometric": "miniswhite"}])
@pytest.mark.parametrize("predictor", [False, True])
def test_lzw_of_every_kind_is_read_as_tifffile_reads_it(
    tmp_path: Path, dtype: str, byteorder: Literal["<", ">"], way: dict[str, Any], predictor: bool
) -> None:
    path = tmp_path / "x.tif"
    options = {"compression": "lzw", "predictor": predictor, "byteorder": byteorder, **way}
    tifffile.imwrite(path, PIXELS.astype(dtype), metadata=None, **options)
    pixels = read_plane(path)
    assert pixels.dtype == np.dtype(dtype)
    assert np.array_equal(pixels, tifffile.imread(path))
    assert np.array_equal(pixels, PIXELS.astype(dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_is_read_as_pillow_reads_it(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(PIXELS.astype(dtype)).save(tmp_path / "x.png")
    assert header(tmp_path / "x.png") == Header((70, 90), np.dtype(dtype).name, 1)
    assert np.array_equal(read_plane(tmp_path / "x.png"), np.asarray(Image.open(tmp_path / "x.png")))


def test_the_content_counts_and_not_the_suffix(png: Path) -> None:
    other = png.rename(png.with_suffix(".tif"))
    assert np.array_equal(read_plane(other), PIXELS)


def test_pages_are_planes(tmp_path: Path) -> None:
    stack = np.stack([PIXELS, PIXELS + 1, PIXELS + 2])
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack")
    assert header(tmp_path / "x.tif").pages == 3
    assert all(np.array_equal(read_plane(tmp_path / "x.tif", page), stack[page]) for page in range(3))
    with pytest.raises(UserError, match=r"x\.tif has 3 pages; there is no page 3"):
        read_plane(tmp_path / "x.tif", 3)


def test_a_thumbnail_is_no_plane(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        writer.write(PIXELS[::4, ::4], subfiletype=1)
        writer.write(PIXELS)
    assert header(tmp_path / "x.tif") == Header((70, 90), "uint16", 1)
    assert np.array_equal(read_plane(tmp_path / "x.tif"), PIXELS)


def packed(values: np.ndarray, bits: int) -> bytes:
    """A TIFF whose samples take so many bits, most significant first; rows are padded to whole bytes."""
    height, width = values.shape
    rows = ["".join(format(int(value), f"0{bits}b") for value in row) for row in values]
    data = b"".join(int(row + "0" * (-len(row) % 8), 2).to_bytes(-(-len(row) // 8), "big") for row in rows)
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 122), (277, 1), (278, height)]
    tags += [(279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 7, 9, 10, 11, 12, 13, 14, 15, 24, 31])
def test_samples_of_any_number_of_bits_are_read_exactly(tmp_path: Path, bits: int) -> None:
    """A camera's 12-bit packed plane is a valid TIFF: it converts, and its cut copy is refused."""
    values = np.random.default_rng(bits).integers(0, 2**bits, (24, 33))
    content, path = packed(values, bits), tmp_path / "x.tif"
    path.write_bytes(content)
    result = header(path)
    assert result == Header((24, 33), f"uint{8 if bits < 9 else 16 if bits < 17 else 32}", 1)
    pixels = read_plane(path)
    assert pixels.dtype.name == result.dtype
    assert np.array_equal(pixels, values)
    measure(pixels[None, None, None])
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"x\.tif is truncated"):
        header(path)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_tiff_is_named(tiff: Path, share: float, capfd: pytest.CaptureFixture[str]) -> None:
    content = tiff.read_bytes()
    tiff.write_bytes(content[: min(int(len(content) * share), len(content) - 1)])
    for read in (header, read_plane):
        with pytest.raises(UserError, match=r"plane\.tif"):
            read(tiff)
    assert capfd.readouterr().err == "", "nothing is said but the mistake"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_a_tiff_cut_anywhere_is_never_read(tiff: Path, data: st.DataObject) -> None:
    content = tiff.read_bytes()
    cut = tiff.with_name("cut.tif")
    cut.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(UserError, match=r"cut\.tif"):
        read_plane(cut)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(place=st.integers(0, 10_000), noise=st.binary(min_size=1, max_size=6))
def test_a_damaged_tiff_is_read_or_named_and_nothing_else(tiff: Path, place: int, noise: bytes) -> None:
    content = bytearray(tiff.read_bytes())
    place %= len(content)
    content[place : place + len(noise)] = noise
    bent = tiff.with_name("bent.tif")
    bent.write_bytes(content)
    try:
        assert read_plane(bent).ndim == 2
    except UserError as mistake:
        assert "bent.tif" in str(mistake)  # noqa: PT017 - either will do


def test_a_stack_whose_last_pages_are_lost_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as writer:
        for plane in range(3):
            writer.write(PIXELS + plane, contiguous=False)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"x\.tif is truncated"):
        header(path)


def test_compressed_pixels_that_do_not_decode_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, PIXELS, compression="deflate", rowsperstrip=70)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[0]  # type: ignore[union-attr]
    content = bytearray(path.read_bytes())
    content[offset + 20 : offset + 60] = bytes(40)
    path.write_bytes(content)
    header(path)
    with pytest.raises(UserError, match=r"x\.tif is damaged"):
        read_plane(path)


def test_pixels_that_were_never_written_are_not_zeros(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, PIXELS, rowsperstrip=10)
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags["StripByteCounts"]  # type: ignore[union-attr]
        tag.overwrite([0] * 7)
    for read in (header, read_plane):
        with pytest.raises(UserError, match="never written"):
            read(path)


@pytest.mark.parametrize("cut", [4, 8, 20, 30, 60, 0.5, -1, -12, -20])
def test_a_truncated_png_is_named(png: Path, cut: float) -> None:
    content = png.read_bytes()
    png.write_bytes(content[: int(len(content) * cut) if isinstance(cut, float) else cut])
    for read in (header, read_plane):
        with pytest.raises(UserError, match=r"plane\.png"):
            read(png)


def test_a_damaged_png_is_named(png: Path) -> None:
    content = bytearray(png.read_bytes())
    content[len(content) // 2] ^= 255
    png.write_bytes(content)
    with pytest.raises(UserError, match=r"plane\.png is damaged"):
        read_plane(png)


# ---------------------------------------------------------------- not a plane


def _tiff(pixels: Any, **how: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, pixels, **how)


def _png(mode: str) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, (8, 8)).save(path, format="png")


def _pages(*pages: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tifffile.TiffWriter(path) as writer:
            for page in pages:
                writer.write(page)

    return write


RGB = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_tiff(RGB, photometric="rgb"), "has 3 samples per pixel"),
        (
            _tiff(np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate"),
            "has 3 samples per pixel",
        ),
        (
            _tiff(np.zeros((5, 16, 16), np.uint16), volumetric=True, tile=(4, 16, 16)),
            "a plane (y, x) is expected",
        ),
        (_tiff(PIXELS.astype(np.int64)), "holds int64 pixels; integers up to 32 bits and floats are read"),
        (_tiff(PIXELS.astype(np.complex64)), "holds complex64 pixels"),
        (_pages(PIXELS, PIXELS[:10]), "pages that differ"),
        (_pages(PIXELS, PIXELS.astype(np.uint8)), "pages that differ"),
        (_png("RGB"), "is RGB;"),
        (_png("RGBA"), "is RGB with alpha"),
        (_png("LA"), "is grey with alpha"),
        (_png("P"), "is palette"),
        (_png("1"), "has 1 bits per pixel; 8 or 16"),
        (lambda path: path.write_text("not an image"), "is neither TIFF nor PNG"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"II*\0"), "is damaged"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: None, "there is no such file"),
    ],
)
def test_what_is_no_plane_is_refused_by_name(
    tmp_path: Path, write: Callable[[Path], None], said: str
) -> None:
    path = tmp_path / "x.img"
    write(path)
    for read in (header, read_plane):
        with pytest.raises(UserError) as mistake:
            read(path)
        assert str(path) in str(mistake.value)
        assert said in str(mistake.value)
