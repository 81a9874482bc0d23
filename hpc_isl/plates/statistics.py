"""Statistics of a field's pixels: measured once at conversion, merged afterwards without reading pixels."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import astuple, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.plates.plate import PlaneIndex

# A channel is saturated where more than this share of a plane lies at a camera's greatest value,
SATURATED_SHARE = 1e-3
CAMERA_BITS = (8, 10, 12, 14, 16)
# and empty where in all its planes pixels 2 apart are as unlike as pixels 16 apart, up to this share:
# noise without structure, shading aside.
EMPTY_STRUCTURE = 0.1
BINS_PER_OCTAVE = 128
FLOAT_OCTAVES = (-16, 16)
# Rows at once, whose copies the processor's cache should hold: counted with 64 bits; differences in float32.
_ROWS, _BEND_ROWS = 128, 32


@dataclass(frozen=True)
class PlaneStatistics:
    """Statistics of one plane's level-0 pixels, in counts; percentiles interpolate linearly as numpy's do.

    `focus` is Brenner's score over the squared mean, (mean of squared differences of pixels two
    apart, along y and x) / mean²: unitless, greater is sharper, comparable within one channel.
    """

    min: float
    max: float
    mean: float
    sd: float
    p1: float
    p50: float
    p99: float
    p999: float
    focus: float


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of pixels over bins that depend on the dtype alone, so that histograms merge by `+`.

    Integers: one bin per value below 256 and 128 bins per octave above (uint8: 256 bins, uint16:
    1280, uint32: 3328); signed ones mirror this below zero. Floats: 128 bins per octave of magnitude
    from 2^-16 to 2^16 on both sides of one bin around zero; what lies beyond falls into the outermost.
    """

    dtype: str
    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.counts.shape != (len(edges(self.dtype)) - 1,):
            raise ValueError(
                f"{self.counts.shape} counts for {self.dtype}: {len(edges(self.dtype)) - 1} are expected"
            )

    def __add__(self, other: Histogram) -> Histogram:
        if self.dtype != other.dtype:
            raise ValueError(f"histograms of {self.dtype} and {other.dtype} have no bins in common")
        return Histogram(self.dtype, self.counts + other.counts)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Histogram)
            and self.dtype == other.dtype
            and bool(np.array_equal(self.counts, other.counts))
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def total(self) -> int:
        """Number of pixels."""
        return int(self.counts.sum())

    def percentile(self, q: float) -> float:
        """Returns the value below which q % of pixels lie: exact in bins of one value, else interpolated."""
        self._refuse_empty()
        rank = q / 100 * (self.total - 1)
        cumulative = np.cumsum(self.counts)
        index = int(np.searchsorted(cumulative, rank, side="right"))
        low, high = self._span(index)
        count = int(self.counts[index])
        share = (rank - (cumulative[index] - count)) / max(count - 1, 1)
        return float(low + (high - low) * min(share, 1))

    def mean(self) -> float:
        """Returns the mean of the bins' centres, in counts."""
        self._refuse_empty()
        return float(np.average(self.centers, weights=self.counts))

    def sd(self) -> float:
        """Returns the standard deviation of the bins' centres, in counts."""
        self._refuse_empty()
        return float(np.sqrt(np.average((self.centers - self.mean()) ** 2, weights=self.counts)))

    def fraction_above(self, value: float) -> float:
        """Returns the share of pixels greater than `value`, interpolated within a bin of several values."""
        self._refuse_empty()
        lows, highs = self._spans
        width = np.maximum(highs - lows, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            above = np.where(width > 0, np.clip((highs - value) / width, 0, 1), lows > value)
        return float((self.counts * above).sum() / self.total)

    @property
    def centers(self) -> NDArray[np.float64]:
        """The middle of each bin, in counts."""
        lows, highs = self._spans
        return (lows + highs) / 2

    @property
    def _spans(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # A bin of integers ends one below the next edge.
        step = 0 if np.dtype(self.dtype).kind == "f" else 1
        return edges(self.dtype)[:-1], edges(self.dtype)[1:] - step

    def _span(self, index: int) -> tuple[float, float]:
        lows, highs = self._spans
        return float(lows[index]), float(highs[index])

    def _refuse_empty(self) -> None:
        if not self.counts.any():
            raise ValueError("the histogram holds no pixels")


@dataclass(frozen=True)
class FieldStatistics:
    """Statistics of one field.

    Attributes:
        planes: (time, channel, plane) -> statistics; planes that do not exist are absent.
        histograms: channel -> counts over all its times and planes.
        flags: "empty:2", "saturated:0": what is odd, and in which channel; a plate's index adds
            "out of focus:1", which shows only beside other fields.
        digest: hash of the raw pixels with shape and dtype.
    """

    planes: Mapping[PlaneIndex, PlaneStatistics]
    histograms: Mapping[int, Histogram] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    digest: str = ""


def measure(pixels: NDArray[Any], existing: Collection[PlaneIndex] | None = None) -> FieldStatistics:
    """Returns statistics of (t, c, z, y, x) pixels.

    Args:
        existing: the planes that were imaged, as (time, channel, plane); None: all of them.
    """
    edges(pixels.dtype.name)  # refuses types that are not measured
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ValueError("some pixels are NaN or infinite")
    places = sorted(np.ndindex(pixels.shape[:3]) if existing is None else existing)
    planes: dict[PlaneIndex, PlaneStatistics] = {}
    histograms: dict[int, Histogram] = {}
    flags: list[str] = []
    for channel in sorted({channel for _, channel, _ in places}):
        keys = [place for place in places if place[1] == channel]
        facts = [_plane(pixels[key]) for key in keys]
        planes |= {key: fact[0] for key, fact in zip(keys, facts, strict=True)}
        counts = np.sum([fact[1] for fact in facts], axis=0)
        histograms[channel] = Histogram(pixels.dtype.name, counts)
        if all(structure < EMPTY_STRUCTURE for *_, structure in facts):
            flags.append(f"empty:{channel}")
        if any(at_limit > SATURATED_SHARE for *_, at_limit, _ in facts):
            flags.append(f"saturated:{channel}")
    return FieldStatistics(planes, histograms, tuple(flags), digest(pixels))


def sharpness(plane: NDArray[Any]) -> tuple[float, float]:
    """Returns how sharp the structure in a plane (y, x) is, and its contrast; both unitless.

    D(h) is the mean square of f(x − h) − 2 f(x) + f(x + h) along both axes, in which shading, nearly a slope,
    plays no part. The noise in it is (16 D(1) − D(2)) / 15, as where structure is smooth the rest grows with
    h⁴. Sharpness is the rest at 2 pixels over that at 8: the number of objects, brightness and noise play
    little part in it. Contrast is the latter over the squared mean. Where nearly all of D(8) is noise there
    is no structure that could be blurred, and sharpness is 1.
    """
    pixels = plane.astype(np.float32)
    mean = float(pixels.mean(dtype=np.float64))
    near, fine, coarse = (_bend(pixels, apart) for apart in (1, 2, 8))
    noise = max((16 * near - fine) / 15, 0.0)
    structure = coarse - noise
    contrast = max(structure, 0.0) / mean**2 if mean else 0.0
    if structure <= EMPTY_STRUCTURE * coarse:
        return 1.0, contrast
    return min(max(fine - noise, 0.0) / structure, 1.0), contrast


def _bend(pixels: NDArray[np.float32], apart: int) -> float:
    """Returns the mean squared second difference of pixels so far apart, over both axes."""
    parts = slice(-2 * apart), slice(apart, -apart), slice(2 * apart, None)
    means = []
    for axis, length in enumerate(pixels.shape):
        if length <= 2 * apart or not pixels.size:
            continue
        total, count, overlap = 0.0, 0, 0 if axis else 2 * apart
        # Of few rows the float32 sums lose less, too.
        for start in range(0, len(pixels) - overlap, _BEND_ROWS):
            band = pixels[start : start + _BEND_ROWS + overlap]
            left, centre, right = (band[:, part] if axis else band[part] for part in parts)
            bend = left + right
            bend -= 2 * centre
            total, count = total + float(np.vdot(bend, bend)), count + bend.size
        means.append(total / count)
    return sum(means) / len(means) if means else 0.0


def repeated(pixels: NDArray[Any], places: Iterable[PlaneIndex]) -> int:
    """Returns how many planes of an image (t, c, z, y, x) equal an earlier one bit for bit.

    >>> repeated(np.zeros((1, 1, 3, 4, 4), np.uint16), [(0, 0, 0), (0, 0, 2)])
    1
    """
    different: dict[bytes, list[PlaneIndex]] = {}
    count = 0
    for place in sorted(places):
        plane = pixels[place]
        # Few pixels tell most planes apart; only where these are equal all are compared.
        similar = different.setdefault(plane[::16, ::16].tobytes(), [])
        if any(np.array_equal(plane, pixels[earlier]) for earlier in similar):
            count += 1
        else:
            similar.append(place)
    return count


def digest(pixels: NDArray[Any]) -> str:
    """Returns a hash of pixels, shape and dtype; the order of bytes and of axes in memory does not matter."""
    # Little-endian in C order, so that machines and memory layouts agree.
    little = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    hasher = hashlib.sha256(f"{pixels.dtype.name}{pixels.shape}".encode())
    hasher.update(little.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()[:32]


def is_measured(dtype: str) -> bool:
    """Returns whether pixels of a type are measured, and so stored: integers up to 32 bits, and floats."""
    kind = np.dtype(dtype)
    return kind.kind == "f" or (kind.kind in "iu" and kind.itemsize <= 4)


@lru_cache
def edges(dtype: str) -> NDArray[np.float64]:
    """Returns edges of the histogram's bins, ascending; bin k holds edges[k] <= value < edges[k + 1]."""
    if not is_measured(dtype):
        raise ValueError(f"pixels of type {dtype}: integers up to 32 bits and floats are measured")
    kind = np.dtype(dtype)
    steps = np.arange(BINS_PER_OCTAVE) / BINS_PER_OCTAVE + 1
    if kind.kind == "f":
        octaves = range(*FLOAT_OCTAVES)
        up = np.append(np.concatenate([steps * 2.0**k for k in octaves]), 2.0 ** FLOAT_OCTAVES[1])
        return np.concatenate([-up[::-1], up])
    bits = kind.itemsize * 8 - (kind.kind == "i")
    low = np.arange(min(256, 2**bits), dtype=float)
    up = np.concatenate([low, *(steps * 2.0**k for k in range(8, bits)), [2.0**bits]])
    return up if kind.kind == "u" else np.concatenate([1 - up[:0:-1], up])


def _plane(plane: NDArray[Any]) -> tuple[PlaneStatistics, NDArray[np.int64], float, float]:
    """Returns statistics, histogram, share of pixels at a camera's greatest value, share of structure."""
    if plane.dtype in (np.uint8, np.uint16):  # much faster than by sorting
        counts = np.zeros(int(plane.max()) + 1, np.int64)
        for start in range(0, len(plane), _ROWS):
            counts += np.bincount(plane[start : start + _ROWS].ravel(), minlength=len(counts))
        distinct = np.flatnonzero(counts)
        counts = counts[distinct]
    else:
        distinct, counts = np.unique(plane, return_counts=True)
    values = distinct.astype(float)
    total = plane.size
    weights = counts / total
    mean = float(values @ weights)
    variance = float((values - mean) ** 2 @ weights)
    p1, p50, p99, p999 = _percentiles(values, counts, (1, 50, 99, 99.9))
    pixels = plane.astype(np.float32)
    steps = np.empty_like(pixels)
    rough, coarse = _unlikeness(pixels, 2, steps), _unlikeness(pixels, 16, steps)
    greatest = float(values[-1])
    at_limit = counts[-1] / total if greatest in [2.0**bits - 1 for bits in CAMERA_BITS] else 0.0
    facts = PlaneStatistics(
        min=float(values[0]), max=greatest, mean=mean, sd=variance**0.5,
        p1=p1, p50=p50, p99=p99, p999=p999, focus=2 * rough / mean**2 if mean else 0.0,
    )  # fmt: skip
    # Noise differs as much between near pixels as between far ones: then this share is near 0.
    structure = 1 - rough / coarse if coarse else 0.0
    bin_edges = edges(plane.dtype.name)
    bins = np.clip(np.searchsorted(bin_edges, values, side="right") - 1, 0, len(bin_edges) - 2)
    histogram = np.bincount(bins, weights=counts, minlength=len(bin_edges) - 1).astype(np.int64)
    return facts, histogram, float(at_limit), structure


def _percentiles(
    values: NDArray[np.float64], counts: NDArray[np.int64], percentages: tuple[float, ...]
) -> list[float]:
    cumulative = np.cumsum(counts)
    ranks = np.asarray(percentages) / 100 * (cumulative[-1] - 1)
    below = values[np.searchsorted(cumulative, np.floor(ranks), side="right")]
    above = values[np.searchsorted(cumulative, np.ceil(ranks), side="right")]
    return [float(value) for value in below + (above - below) * (ranks - np.floor(ranks))]


def _unlikeness(pixels: NDArray[np.float32], apart: int, steps: NDArray[np.float32]) -> float:
    """Returns the mean squared difference of pixels so far apart, over both axes; `steps` is overwritten."""
    squares = []
    for far, near in ((pixels[apart:], pixels[:-apart]), (pixels[:, apart:], pixels[:, :-apart])):
        if far.size:
            step = np.subtract(far, near, out=steps.reshape(-1)[: far.size].reshape(far.shape))
            squares.append(float(np.vdot(step, step)) / step.size)
    return sum(squares) / len(squares) if squares else 0.0


# ---------------------------------------------------------------- as JSON


def to_dict(statistics: FieldStatistics) -> dict[str, Any]:
    """Returns plain JSON, which `from_dict` reads back to an equal value."""
    histograms = {}
    for channel, histogram in statistics.histograms.items():
        packed = zlib.compress(histogram.counts.astype("<i8").tobytes(), 9)  # most bins are 0
        encoded = base64.b64encode(packed).decode()
        histograms[str(channel)] = {"dtype": histogram.dtype, "zlib": encoded}
    return {
        "planes": [[*key, *astuple(plane)] for key, plane in statistics.planes.items()],
        "histograms": histograms,
        "flags": list(statistics.flags),
        "digest": statistics.digest,
    }


def from_dict(content: Mapping[str, Any]) -> FieldStatistics:
    """Returns the statistics that `to_dict` has written."""
    planes = {(t, c, z): PlaneStatistics(*facts) for t, c, z, *facts in content["planes"]}
    histograms = {}
    for channel, packed in content["histograms"].items():
        counts = np.frombuffer(zlib.decompress(base64.b64decode(packed["zlib"])), "<i8")
        histograms[int(channel)] = Histogram(packed["dtype"], counts.astype(np.int64))
    return FieldStatistics(planes, histograms, tuple(content["flags"]), content["digest"])
