"""Decoding of one plane of a TIFF, PNG or Cellomics file, complete or not at all."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EISDIR
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile

from hpc_isl.errors import UserError, many
from hpc_isl.plates.adopted import PixelSource
from hpc_isl.plates.nodes import files_digest, is_group
from hpc_isl.plates.other_image import OtherImage, read_image
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.statistics import is_measured

# Its warnings become the `UserError` of the file, or are about tags that nobody reads.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # in both byte orders, and BigTIFF with a plus
_LZW = 5
_GREY = (0, 1)  # white or black is zero
_PALETTE = 3
_SAMPLES = {2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


class Header(NamedTuple):
    """Shape (y, x), numpy dtype name and number of planes of a file."""

    shape: tuple[int, int]
    dtype: str
    pages: int


class StoredPlane(NamedTuple):
    """A plane of an open TIFF: the data of a page, or those so many bytes behind them.

    ImageJ writes large stacks, and MetaMorph all, as one page with the pixels of all planes behind it.
    """

    page: Any
    skip: int = 0


def header(path: Path, drawn: bool = False) -> Header:
    """Returns shape, type and number of planes, without decoding pixels.

    Reduced copies of a plane (thumbnails, pyramids) are no planes of their own.

    Args:
        drawn: accept also what painting programs write and cameras do not: less than 8 bits per pixel, a
            palette, colours.

    Raises:
        UserError: naming the file: missing, empty, truncated, of no known kind, several samples per
            pixel, more than two dimensions, or planes that differ in shape or type.
    """
    with named_file(path):
        if path.is_dir():  # an array of OME-Zarr, whose planes are counted along t, c and z
            image = _image_in(path)
            times, channels, depth, y, x = image.shape
            return Header((y, x), image.arrays[0].dtype, times * channels * depth)
        kind = file_kind(path)
        if kind == "dib":
            shape, depth, _ = read_header(path)
            return Header(shape, f"uint{8 * depth}", 1)
        if kind == "png":
            return _png_header(path, drawn)[0]
        with tifffile.TiffFile(path) as tiff:
            return header_of(stored_planes(tiff, drawn))


def header_of(stored: list[StoredPlane]) -> Header:
    """Returns the header of a TIFF with these planes."""
    page = stored[0].page
    return Header(page.shape[:2], "uint8" if page.dtype == bool else page.dtype.name, len(stored))


def read_plane(path: Path, page: int = 0, drawn: bool = False, digest: str = "") -> np.ndarray:
    """Returns one plane as (y, x), in the machine's byte order; the pixels are exactly the file's.

    Pixels of one bit become uint8. `drawn`: as for `header`; then numbers in the palette, or colours
    (y, x, samples). `digest`: of the files of an array of OME-Zarr, where it has just been taken.

    Raises:
        UserError: as `header`, and where compressed pixels do not decode or there is no such plane.
    """
    with named_file(path):
        if path.is_dir():
            pixels = _pixels_in(path, digest or files_digest(path))
            return np.asarray(pixels.reshape(-1, *pixels.shape[-2:])[page])
        kind = file_kind(path)
        if kind == "dib":
            return _checked_plane(decode(path), path)
        if kind == "png":
            return _checked_plane(_decoded_png(path, drawn), path, drawn)
        with tifffile.TiffFile(path) as tiff:
            stored = stored_planes(tiff, drawn)
            if not 0 <= page < len(stored):
                raise UserError(f"{path} has {len(stored)} pages; there is no page {page}")
            return _checked_plane(_decoded(tiff, stored[page]), path, drawn)


def _image_in(array: Path) -> OtherImage:
    """Returns the image of OME-Zarr to whose levels an array belongs."""
    image = next((folder for folder in array.parents if is_group(folder)), None)
    if image is None:
        raise IsADirectoryError(EISDIR, "is a folder, and no array of OME-Zarr")
    return read_image(image.parent, FieldKey("A01", "0"), image.name)


@lru_cache(maxsize=1)  # a chunk may hold many planes, which are read one after another
def _pixels_in(array: Path, files: str) -> np.ndarray:
    """Returns all pixels (t, c, z, y, x) of an array whose files have this digest."""
    image = _image_in(array)
    source = PixelSource(image.path, image.axes, image.paths, tuple(range(image.shape[1])), {})
    folder = next(folder for folder in array.parents if is_group(folder)).parent
    return np.asarray(source.array(folder, 0).read().result())


@contextmanager
def named_file(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong with a file into a `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise UserError(f"{path} claims more pixels than fit into memory: damaged?") from None
    except Exception as error:  # decoders raise what they like on damaged data
        raise UserError(f"{path} is damaged: {error or type(error).__name__}") from None


def file_kind(path: Path) -> str:
    """Returns "png", "tiff" or, of Cellomics, "dib", by the file's first bytes."""
    with path.open("rb") as file:
        start = file.read(8)
    if start == _PNG:
        return "png"
    if start[:4] in _TIFF:
        return "tiff"
    if start[:4] in (C01, DIB):
        return "dib"
    raise UserError(f"{path} is {'neither TIFF nor PNG' if start else 'empty'}")


def _png_header(path: Path, drawn: bool) -> tuple[Header, int, int]:
    """Returns header, bits per sample and kind of samples (0 grey, 2 RGB, 3 palette, 4 or 6 with alpha)."""
    with path.open("rb") as file:
        start = file.read(26)
        file.seek(max(path.stat().st_size - len(_PNG_END), 0))  # a truncated file lacks its end chunk
        end = file.read()
    if len(start) < 26 or end != _PNG_END:
        raise UserError(f"{path} is truncated: its end is missing")
    width, height, bits, color = struct.unpack(">IIBB", start[16:26])
    if color and not drawn:
        raise UserError(
            f"{path} is {_SAMPLES.get(color, 'in colour')}; one grey sample per pixel is expected"
        )
    if bits not in (8, 16) and not drawn:
        raise UserError(f"{path} has {bits} bits per pixel; 8 or 16 are expected")
    return Header((height, width), f"uint{max(bits, 8)}", 1), bits, color


def _decoded_png(path: Path, drawn: bool) -> np.ndarray:
    _, bits, color = _png_header(path, drawn)
    content = path.read_bytes()
    if color == _PALETTE:  # imagecodecs would make colours of it
        from PIL.PngImagePlugin import PngImageFile

        return np.asarray(PngImageFile(io.BytesIO(content)))
    pixels: np.ndarray = imagecodecs.png_decode(content)
    # The decoder spreads less than 8 grey bits over 0 to 255.
    return pixels // (255 // (2**bits - 1)) if bits < 8 else pixels


def stored_planes(tiff: Any, drawn: bool = False) -> list[StoredPlane]:
    """Returns the planes of an open TIFF, all of one shape and type, each wholly inside the file.

    Raises:
        UserError: see `header`.
    """
    path = tiff.filehandle.path
    pages = _pages(tiff)
    kinds = {(page.shape, str(page.dtype)) for page in pages}
    if len(kinds) > 1:
        listing = ", ".join(f"{shape} {dtype}" for shape, dtype in sorted(kinds, key=str))
        raise UserError(f"{path} has pages that differ: {listing}; planes of one shape and type are expected")
    for page in pages:
        _check(page, Path(path), drawn)
    if len(pages) > 1 or (count := _claimed(tiff)) < 2:
        return [StoredPlane(page) for page in pages]
    page = pages[0]
    if page.compression != 1 or not page.is_contiguous:
        raise UserError(
            f"{path} is a stack of {count} compressed planes behind one page, which is not read: "
            "save it uncompressed or as OME-TIFF"
        )
    end = page.dataoffsets[0] + count * page.nbytes
    if end > tiff.filehandle.size:
        raise UserError(
            f"{path} is truncated at {tiff.filehandle.size} bytes: "
            f"{many(count, 'plane', 'reaches', 'reach')} to byte {end}"
        )
    return [StoredPlane(page, number * page.nbytes) for number in range(count)]


def _pages(tiff: Any) -> list[Any]:
    """Returns the pages that are planes, one at least; raises a `UserError` where some cannot be reached."""
    path = tiff.filehandle.path
    pages, offsets = [], set()
    for page in tiff.pages:
        if page.offset in offsets:
            raise UserError(f"{path} is damaged: it names a page twice")
        offsets.add(page.offset)
        if not page.is_reduced:  # thumbnails and pyramids are no planes
            pages.append(page)
    if not pages:
        raise UserError(f"{path} holds no image")
    # tifffile ends in silence where the next page cannot be reached: the offset after the last one is read.
    layout, file = tiff.tiff, tiff.filehandle
    file.seek(tiff.pages[-1].offset)
    (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(tiff.pages[-1].offset + layout.tagnosize + tags * layout.tagsize)
    (next_page,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
    if next_page:
        raise UserError(f"{path} is truncated: it has more pages than can be reached")
    return pages


def _claimed(tiff: Any) -> int:
    """Returns the number of planes that a file with one page claims to hold."""
    if tiff.is_stk:
        return int(tiff.stk_metadata["NumberPlanes"])
    if tiff.is_imagej:
        metadata = tiff.imagej_metadata or {}
        axes = [int(metadata.get(name, 1)) for name in ("channels", "slices", "frames")]
        return max(prod(axes), int(metadata.get("images", 1)))
    if tiff.is_shaped:
        # The last axes are those of the page: colours too, where a painting program wrote it.
        return prod(map(int, tiff.shaped_metadata[0]["shape"][: -len(tiff.pages[0].shape)]))
    return 1


def _check(page: Any, path: Path, drawn: bool) -> None:
    """Raises a `UserError` unless a page is one grey plane of a type that is stored, all in the file."""
    if page.samplesperpixel != 1 and not drawn:
        raise UserError(f"{path} has {page.samplesperpixel} samples per pixel (colour?); one is expected")
    if page.samplesperpixel != 1 and page.planarconfig != 1:
        raise UserError(
            f"{path} keeps its {page.samplesperpixel} colours apart; save it as a plain colour image"
        )
    rank = 2 if page.samplesperpixel == 1 else 3
    if page.dtype is None or len(page.shape) != rank or 0 in page.shape:
        raise UserError(f"{path} holds {page.shape} {page.dtype} pixels; a plane (y, x) is expected")
    if not drawn and page.dtype != bool and not is_measured(page.dtype.name):
        raise UserError(f"{path} holds {page.dtype} pixels; integers up to 32 bits and floats are read")
    size = path.stat().st_size
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    for offset, count in segments:
        if offset + count > size:
            raise UserError(
                f"{path} is truncated: {size} bytes, but its pixels reach to byte {offset + count}"
            )
    # Offsets and sizes of 0 are those of a file whose writer was interrupted.
    if not segments or not all(offset and count for offset, count in segments):
        raise UserError(f"{path} is damaged: some of its pixels were never written")
    height, width = page.shape[:2]
    if page.is_tiled:
        width = -(-width // page.tilewidth) * page.tilewidth
        height = -(-height // page.tilelength) * page.tilelength
    # Rows of any number of bits per sample are padded to whole bytes.
    needed = height * -(-width * page.samplesperpixel * page.bitspersample // 8)
    if page.compression == 1 and sum(count for _, count in segments) < needed:
        raise UserError(f"{path} is damaged: it holds fewer pixels than its {page.shape} need")


def _decoded(tiff: Any, stored: StoredPlane) -> np.ndarray:
    page, skip = stored
    if len(tiff.pages) == 1 and page.compression == _LZW and page.photometric in _GREY:
        # libtiff decodes LZW in 40 % of the time that imagecodecs' own decoder takes. Not deflate: there it
        # does not notice all damage. What it refuses, tifffile judges.
        tiff.filehandle.seek(0)
        with suppress(imagecodecs.TiffError, IndexError):
            pixels: np.ndarray = imagecodecs.tiff_decode(tiff.filehandle.read())
            if (pixels.shape, pixels.dtype) == (page.shape, page.dtype):  # not so where samples have 12 bits
                return pixels
    if not skip:
        dtype = np.uint8 if page.dtype == bool else page.dtype
        return page.asarray(maxworkers=1).astype(dtype, copy=False)  # type: ignore[no-any-return]
    dtype = page.dtype.newbyteorder(tiff.byteorder)
    pixels = tiff.filehandle.read_array(dtype, page.size, page.dataoffsets[0] + skip)
    return pixels.reshape(page.shape)


def _checked_plane(pixels: np.ndarray, path: Path, drawn: bool = False) -> np.ndarray:
    if pixels.ndim != 2 and not (drawn and pixels.ndim == 3):
        raise UserError(f"{path} decodes to {pixels.shape}; a plane (y, x) is expected")
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))


# ---------------------------------------------------------------- Cellomics

# A `.C01` is four bytes and a `.DIB` in zlib. Seen: 16 bits, 512 × 512, a header of 40 bytes and three masks
# of 4. The first row of the file is the upper one although the height is positive (equal to what Bio-Formats
# makes of it). Only read about: `.DIB` alone.
C01, DIB = b"\0\0\0\x10", b"\x28\0\0\0"  # a DIB begins with the length of its header
_MOST = 1 << 28  # pixels


class DibHeader(NamedTuple):
    """Size (y, x), bytes of a pixel, and edges of a pixel (y, x) in micrometres."""

    shape: tuple[int, int]
    depth: int
    pixel_um: tuple[float, float] | None


def read_header(path: Path) -> DibHeader:
    """Returns what a `.C01` or `.DIB` states, without its pixels.

    Raises:
        UserError: naming the file: no such image.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    try:
        # The header's 40 bytes alone are decompressed.
        data = zlib.decompressobj().decompress(start[4:], 40) if start[:4] == C01 else start[:40]
    except zlib.error as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if len(data) < 40 or data[:4] != DIB:
        raise UserError(f"{path} is truncated or no image of Cellomics: its header is missing")
    width, height, _, bits, _, _, x, y = struct.unpack("<iiHHIIii", data[4:32])
    if bits not in (8, 16):
        raise UserError(f"{path} has {bits} bits per pixel; 8 or 16 are expected")
    if width < 1 or height < 1 or width * height > _MOST:
        raise UserError(f"{path} is damaged: it claims {height} × {width} pixels")
    pixel_um = (round(1e6 / y, 4), round(1e6 / x, 4)) if x > 0 and y > 0 else None
    return DibHeader((height, width), bits // 8, pixel_um)


def decode(path: Path) -> np.ndarray:
    """Returns the pixels of a `.C01` or `.DIB` as (y, x), the upper row first.

    Raises:
        UserError: naming the file: see `read_header`; truncated or damaged.
    """
    (height, width), depth, _ = read_header(path)
    data = path.read_bytes()
    stride = -(-width * depth // 4) * 4  # rows of a DIB fill whole words
    if data[:4] == C01:
        decompressor = zlib.decompressobj()
        # No more than the header claims: damaged data must not unfold without end.
        data = decompressor.decompress(data[4:], stride * height + 2048)
        if not decompressor.eof:
            raise UserError(f"{path} is truncated or damaged: its compressed pixels do not end")
    for row in (stride, width * depth):
        begin = len(data) - row * height
        # Behind the header lie nothing, three masks, or a palette of 256 or of as many colours as it states.
        if begin in (40, 52, 40 + 4 * 256, 40 + 4 * int.from_bytes(data[32:36], "little")):
            rows = np.frombuffer(data, np.uint8, row * height, begin).reshape(height, row)[:, : width * depth]
            return np.ascontiguousarray(rows).view("<u2" if depth == 2 else np.uint8)
    raise UserError(f"{path} is truncated or damaged: {len(data)} bytes for {height} × {width} pixels")
