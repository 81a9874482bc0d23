"""Decoding one plane of a TIFF or PNG file, whole or not at all: the only place where pixels come in."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile

from hpc_isl.mistake import Mistake

# Its complaints become the `Mistake` of the file, or are about tags that nobody reads.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PALETTE = 3
_SAMPLES = {2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


class Header(NamedTuple):
    """What a file says of its pixels: (y, x), numpy dtype name, number of planes (TIFF pages)."""

    shape: tuple[int, int]
    dtype: str
    pages: int


def header(path: Path, drawn: bool = False) -> Header:
    """Shape, type and number of planes, without decoding pixels.

    Reduced copies of a plane (thumbnails, pyramids) are no planes of their own.

    Args:
        drawn: it may also be what painting programs write, and no camera: less than 8 bits per pixel, a
            palette, colours.

    Raises:
        Mistake: naming the file: missing, empty, truncated, neither TIFF nor PNG, several samples per
            pixel, more than two dimensions, or planes that differ in shape or type.
    """
    with _named(path):
        if _kind(path) == "png":
            return _png_header(path, drawn)[0]
        with tifffile.TiffFile(path) as tiff:
            pages = _pages(tiff)
            for page in pages:
                _check(page, path, drawn)
            return Header(pages[0].shape[:2], pages[0].dtype.name, len(pages))


def read_plane(path: Path, page: int = 0, drawn: bool = False) -> np.ndarray:
    """One plane as (y, x), in the machine's byte order; the pixels are exactly the file's.

    `drawn`: as `header` says; then numbers in the palette, or colours (y, x, samples).

    Raises:
        Mistake: as `header`, and where compressed pixels do not decode or there is no such page.
    """
    with _named(path):
        if _kind(path) == "png":
            return _plain(_decoded_png(path, drawn), path, drawn)
        with tifffile.TiffFile(path) as tiff:
            pages = _pages(tiff)
            if not 0 <= page < len(pages):
                raise Mistake(f"{path} has {len(pages)} pages; there is no page {page}")
            _check(pages[page], path, drawn)
            return _plain(pages[page].asarray(maxworkers=1), path, drawn)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file, it is the file that is named."""
    try:
        yield
    except Mistake:
        raise
    except FileNotFoundError:
        raise Mistake(f"{path}: there is no such file") from None
    except OSError as error:
        raise Mistake(f"{path} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise Mistake(f"{path} claims more pixels than fit into memory: damaged?") from None
    except Exception as error:  # decoders raise what they like on damaged data
        raise Mistake(f"{path} is damaged: {error or type(error).__name__}") from None


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    if start == _PNG:
        return "png"
    if start[:4] in _TIFF:
        return "tiff"
    raise Mistake(f"{path} is {'neither TIFF nor PNG' if start else 'empty'}")


def _png_header(path: Path, drawn: bool) -> tuple[Header, int, int]:
    """The header, bits per sample, and what the samples are (0 grey, 2 RGB, 3 palette, 4 or 6 with alpha)."""
    with path.open("rb") as file:
        start = file.read(26)
        file.seek(max(path.stat().st_size - len(_PNG_END), 0))
        end = file.read()
    if len(start) < 26 or end != _PNG_END:
        raise Mistake(f"{path} is truncated: its end is missing")
    width, height, bits, color = struct.unpack(">IIBB", start[16:26])
    if color and not drawn:
        raise Mistake(f"{path} is {_SAMPLES.get(color, 'in colour')}; one grey sample per pixel is expected")
    if bits not in (8, 16) and not drawn:
        raise Mistake(f"{path} has {bits} bits per pixel; 8 or 16 are expected")
    return Header((height, width), f"uint{max(bits, 8)}", 1), bits, color


def _decoded_png(path: Path, drawn: bool) -> np.ndarray:
    """The decoder spreads less than 8 grey bits over 0 to 255, and makes colours of a palette."""
    _, bits, color = _png_header(path, drawn)
    content = path.read_bytes()
    if color == _PALETTE:
        from PIL.PngImagePlugin import PngImageFile

        return np.asarray(PngImageFile(io.BytesIO(content)))
    pixels: np.ndarray = imagecodecs.png_decode(content)
    return pixels // (255 // (2**bits - 1)) if bits < 8 else pixels


def _pages(tiff: Any) -> list[Any]:
    """The pages that are planes of their own, all of one shape and type."""
    pages = [page for page in tiff.pages if not page.is_reduced]
    if not pages:
        raise Mistake(f"{tiff.filehandle.path} holds no image")
    if _next_page(tiff, tiff.pages[-1]):
        raise Mistake(f"{tiff.filehandle.path} is truncated: it has more pages than can be reached")
    kinds = {(page.shape, str(page.dtype)) for page in pages}
    if len(kinds) > 1:
        said = ", ".join(f"{shape} {dtype}" for shape, dtype in sorted(kinds, key=str))
        raise Mistake(
            f"{tiff.filehandle.path} has pages that differ: {said}; planes of one shape and type are expected"
        )
    return pages


def _next_page(tiff: Any, page: Any) -> int:
    """Where the file says that the next page lies; 0 after the last. tifffile ends in silence."""
    layout, file = tiff.tiff, tiff.filehandle
    file.seek(page.offset)
    (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(page.offset + layout.tagnosize + tags * layout.tagsize)
    (offset,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
    return int(offset)


def _check(page: Any, path: Path, drawn: bool) -> None:
    """A page is one grey plane whose every segment lies inside the file."""
    if page.samplesperpixel != 1 and not drawn:
        raise Mistake(f"{path} has {page.samplesperpixel} samples per pixel (colour?); one is expected")
    if page.bitspersample < 8 and not drawn:
        raise Mistake(f"{path} has {page.bitspersample} bits per pixel; 8 or more are expected")
    if page.samplesperpixel != 1 and page.planarconfig != 1:
        raise Mistake(
            f"{path} keeps its {page.samplesperpixel} colours apart; save it as a plain colour image"
        )
    rank = 2 if page.samplesperpixel == 1 else 3
    if page.dtype is None or len(page.shape) != rank or 0 in page.shape:
        raise Mistake(f"{path} holds {page.shape} {page.dtype} pixels; a plane (y, x) is expected")
    size = path.stat().st_size
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    for offset, count in segments:
        if offset + count > size:
            raise Mistake(f"{path} is truncated: {size} bytes, but its pixels reach to byte {offset + count}")
    if not segments or not all(offset and count for offset, count in segments):
        raise Mistake(f"{path} is damaged: some of its pixels were never written")
    row = -(-page.shape[1] * page.samplesperpixel * page.bitspersample // 8)
    if page.compression == 1 and sum(count for _, count in segments) < page.shape[0] * row:
        raise Mistake(f"{path} is damaged: it holds fewer pixels than its {page.shape} need")


def _plain(pixels: np.ndarray, path: Path, drawn: bool) -> np.ndarray:
    if pixels.ndim != 2 and not (drawn and pixels.ndim == 3):
        raise Mistake(f"{path} decodes to {pixels.shape}; a plane (y, x) is expected")
    return np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
