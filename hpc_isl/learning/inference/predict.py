"""From a field's sources and a network to its prediction: whole, or on a fixed global grid of tiles."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpc_isl.errors import UserError
from hpc_isl.learning.data.pixels import Box, Pixels
from hpc_isl.learning.network.contract import Contract
from hpc_isl.learning.network.limits import STRIDE, check_grid
from hpc_isl.learning.network.unet import construct
from hpc_isl.learning.training.precision import as_scored, autocast, repeat_on
from hpc_isl.recipes.training import NetRecipe
from hpc_isl.tiles import Tile, tiles

PER_IMAGE = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
SOURCES, OUTPUTS = 3, 2  # of the network that `footprint` tries: few beside the channels within it
EDGE = 256  # of the image that `footprint` tries; memory grows with its pixels
# Convolutions keep copies in an order of their own: measured are 1.1 to 1.35, 1.75 without channels_last.
SCRATCH = 1.4
Read = Callable[[Box], Pixels]
Write = Callable[[slice, Pixels], None]


@dataclass(frozen=True, eq=False)
class Predictor:
    """A network ready to predict field after field; it is moved to the device and left in evaluation mode.

    Predictions depend on the network, the pixels and these attributes, on one kind of device. Several threads
    may call it, beside another network's: they read and blend in parallel, while on each device one network
    runs at a time.

    Attributes:
        dtype: of the forward pass; predictions are float32.
        tile: edge of a tile in pixels, a multiple of 32; None: the field is one tile.
        halo: least number of pixels read around a tile, a multiple of 32. Its outer half is context only,
            in its inner half neighbours blend; where that outer half covers the network's reach, the
            result is the whole field's up to rounding.
        batch: tiles per forward pass; the last ones of a field are filled up, so that all passes are alike.
        threads: of a forward pass on a CPU, which decide the order of sums; None: as many as torch has.
        channels_last: memory layout of pixels and weights.
        compiled: by torch.compile, once for each size of field (or once for tiles).

    Raises:
        UserError: a tile or halo that does not fit the network's stride.
    """

    network: nn.Module
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    tile: int | None = None
    halo: int = 0
    batch: int = 1
    threads: int | None = None
    channels_last: bool = True
    compiled: bool = False

    @classmethod
    def by_contract(
        cls, network: nn.Module, contract: Contract, device: torch.device, **changes: Any
    ) -> Predictor:
        """Returns a predictor that computes as the model was scored, but for `changes` of attributes."""
        tiling = contract.predict
        scored = {
            "tile": tiling.tile, "halo": tiling.halo, "batch": tiling.batch,
            "channels_last": contract.net.channels_last,
        }  # fmt: skip
        return cls(network, device, as_scored(contract.precision, device), **scored | changes)

    def __post_init__(self) -> None:
        check_grid(self.tile, self.halo)
        repeat_on(self.device)
        _device_lock(self.device)  # created here, by one thread
        self.network.to(self.device)
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)

    def __call__(self, sources: Pixels) -> Pixels:
        """Returns the prediction (target, y, x) of normalised sources (source, y, x), both float32."""
        shape = (sources.shape[1], sources.shape[2])
        parts: list[Pixels] = []
        self.into(lambda box: sources[:, *box], lambda _, pixels: parts.append(pixels), shape)
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def into(self, read: Read, write: Write, shape: tuple[int, int]) -> None:
        """Predicts an image of any size, with the same bits: memory holds a batch and unfinished rows.

        Args:
            read: box (y, x) of the image -> its sources (source, y, x), float32.
            write: called with rows of the image and their prediction (target, rows, x), from the first
                row on.
        """
        # The grid is the same for every image of this size: tiles do not depend on what is read.
        grid = list(tiles(shape, self.tile, self.halo, STRIDE))
        self.network.eval()
        if len(grid) == 1:
            [(_, whole)] = self._passes(read, grid, shape)
            write(slice(0, shape[0]), np.ascontiguousarray(whole[0][:, : shape[0], : shape[1]]))
            return
        if warning := self.tiling_warning(shape):
            warnings.warn(warning, stacklevel=3)
        blend = Blend(grid, shape, self.halo // 2)
        for group, predictions in self._passes(read, grid, shape):
            for tile, prediction in zip(group, predictions, strict=False):  # a filled-up batch has more
                for rows, pixels in blend.add(tile, prediction):
                    write(rows, pixels)
        for rows, pixels in blend.last_rows():
            write(rows, pixels)

    def tiling_warning(self, shape: tuple[int, int]) -> str:
        """Returns why the prediction of a field of this size (y, x) may have seams; empty: it has none."""
        tiled = self.tile is not None and max(shape) > self.tile
        if not tiled or not any(isinstance(module, PER_IMAGE) for module in self.network.modules()):
            return ""
        return (
            "the network normalises by the statistics of each image: in tiles it sees other statistics than "
            "in whole fields, and seams may show; predict.tile=null avoids them"
        )

    def _passes(
        self, read: Read, grid: Sequence[Tile], shape: tuple[int, int]
    ) -> Iterator[tuple[Sequence[Tile], Pixels]]:
        """Yields groups of tiles with their predictions (tile, target, y, x)."""
        size = min(self.batch, len(grid))
        waiting: tuple[Sequence[Tile], _Pass] | None = None
        for first in range(0, len(grid), size):
            group = grid[first : first + size]
            windows = [padded(read, tile.read, shape) for tile in group]
            batch = torch.zeros((size, *windows[0].shape), pin_memory=self.device.type == "cuda")
            for place, window in zip(batch, windows, strict=False):
                place.numpy()[:] = window
            forward_pass = self._start(batch)
            # A GPU computes this group while the CPU blends the one before and reads the next one.
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = group, forward_pass
        assert waiting
        yield waiting[0], waiting[1].result()

    def _start(self, batch: Tensor) -> _Pass:
        """Starts the forward pass of a batch (tile, source, y, x)."""
        try:
            with (
                _device_lock(self.device),
                torch.inference_mode(),
                _threads(self.threads),
                autocast(self.device, self.dtype),
            ):
                images = batch.to(self.device, non_blocking=True)
                layout = torch.channels_last if self.channels_last else torch.contiguous_format
                prediction = self._forward(images.contiguous(memory_format=layout))
                return _Pass(prediction.float().contiguous())
        except torch.OutOfMemoryError:
            count, _, y, x = batch.shape
            factor = f"{count} × " if count > 1 else ""
            advice = "predict.batch=1" if count > 1 else "predict in tiles, predict.tile=1024"
            cuda = self.device.type == "cuda"
            share = torch.cuda.get_per_process_memory_fraction(self.device) if cuda else 1.0
            gpu = "the GPU" if share == 1 else f"{share:.0%} of a GPU (fewer site.workers have more each)"
            raise UserError(
                f"{gpu} has too little memory for {factor}{y} × {x} pixels at once: {advice}"
            ) from None

    @cached_property
    def _forward(self) -> Callable[[Tensor], Tensor]:
        return torch.compile(self.network, dynamic=False) if self.compiled else self.network


class _Pass:
    """A forward pass that a GPU may still be computing."""

    def __init__(self, prediction: Tensor) -> None:
        self.prediction, self.event = prediction, None
        if prediction.device.type == "cuda":
            # Only a copy into pinned memory lets the CPU continue.
            self.prediction = torch.empty(prediction.shape, pin_memory=True)
            self.prediction.copy_(prediction, non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()

    def result(self) -> Pixels:
        """Waits for the pass; returns its predictions (tile, target, y, x)."""
        if self.event is not None:
            self.event.synchronize()
        return np.asarray(self.prediction.numpy())


@lru_cache
def _device_lock(device: torch.device) -> Lock:
    """Returns the lock under which passes on a device start, so that they share the memory of one."""
    return Lock()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Sets torch's threads for a forward pass."""
    # OpenMP keeps the number for each Python thread, so the thread that computes must set it.
    previous_count = torch.get_num_threads()
    if count is None or count == previous_count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous_count)


# ---------------------------------------------------------------- the end of an image


def padded(read: Read, box: tuple[slice, ...], shape: tuple[int, int]) -> Pixels:
    """Returns a box (c, y, x) of an image that is continued by reflection below and to the right."""
    rows, columns = (_reflected_indices(side, length) for side, length in zip(box, shape, strict=True))
    first, left = rows.min(), columns.min()
    pixels = read((slice(int(first), int(rows.max()) + 1), slice(int(left), int(columns.max()) + 1)))
    # Only tiles at the end of the image are continued; all others are returned as they were read.
    if pixels.shape[1] < len(rows) or rows[-1] != rows.max():
        pixels = pixels[:, rows - first]
    if pixels.shape[2] < len(columns) or columns[-1] != columns.max():
        pixels = pixels[:, :, columns - left]
    return pixels


def _reflected_indices(side: slice, length: int) -> NDArray[np.int64]:
    """Returns the indices along an axis, those beyond its end mirrored at the last pixel."""
    places = np.arange(side.start, side.stop)
    period = max(2 * (length - 1), 1)
    return np.minimum(places % period, (-places) % period) if side.stop > length else places


# ---------------------------------------------------------------- memory


def footprint(net: NetRecipe, pixels: int) -> int:
    """Returns an upper bound of the bytes of a float32 forward pass, beside the network itself.

    Args:
        pixels: of all tiles of the pass together.
    """
    decoder = None if net.decoder is None else tuple(net.decoder)
    return round(SCRATCH * pixels * _bytes_per_pixel(net.encoder, decoder))


@lru_cache(maxsize=16)
def _bytes_per_pixel(encoder: str, decoder: tuple[int, ...] | None) -> float:
    net = NetRecipe(encoder=encoder, decoder=decoder and list(decoder), weights=None)
    with torch.device("meta"), torch.inference_mode():
        network = construct(net, SOURCES, OUTPUTS).eval()
        with _LiveBytes() as live:
            network(torch.empty(1, SOURCES, EDGE, EDGE))
    return float(live.most) / EDGE**2


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that operations made and that still exist; `most` is the peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()  # views share one, which counts once
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._live[reference.cdata] = reference, storage.nbytes()
        for key, (reference, _) in list(self._live.items()):
            if reference.expired():  # type: ignore[no-untyped-call]
                del self._live[key]
        self.most = max(self.most, sum(size for _, size in self._live.values()))
        return result


Rows = tuple[slice, Pixels]
"""Rows of an image, and their pixels (k, rows, x)."""


class Blend:
    """Adds tiles in raster order; holds only the rows that later tiles may change.

    A tile weighs 1 in its own box and falls to 0 within `ramp` pixels around it; where tiles meet,
    weights are divided by their sum. The result depends on the grid alone.
    """

    def __init__(self, tiles: Sequence[Tile], shape: tuple[int, int], ramp: int) -> None:
        owns = [{(tile.own[axis].start, tile.own[axis].stop) for tile in tiles} for axis in (0, 1)]
        self._sides = [_weights(sorted(own), length, ramp) for own, length in zip(owns, shape, strict=True)]
        self._shape, self._top = shape, 0
        self._sum: Pixels | None = None

    def add(self, tile: Tile, prediction: Pixels) -> Iterator[Rows]:
        """Adds `prediction` (k, y, x) of `tile.read`; yields the rows that became complete, if any."""
        (y, down), (x, across) = (side[own.start] for side, own in zip(self._sides, tile.own, strict=True))
        yield from self._until(y.start)
        total = self._rows(y.stop, len(prediction))
        inner = [slice(s.start - r.start, s.stop - r.start) for s, r in zip((y, x), tile.read, strict=True)]
        part = prediction[:, *inner] * np.multiply.outer(down, across)
        total[:, y.start - self._top : y.stop - self._top, x] += part

    def last_rows(self) -> Iterator[Rows]:
        """Yields the last rows, after all tiles."""
        yield from self._until(self._shape[0])

    def _until(self, row: int) -> Iterator[Rows]:
        if self._sum is None or row <= self._top:
            return
        count = row - self._top
        complete_rows, self._sum = self._sum[:, :count], self._sum[:, count:]
        yield slice(self._top, row), complete_rows
        self._top = row

    def _rows(self, stop: int, outputs: int) -> Pixels:
        """Returns the sums, extended by zeros down to row `stop`."""
        total = np.zeros((outputs, 0, self._shape[1]), np.float32) if self._sum is None else self._sum
        missing_rows = stop - self._top - total.shape[1]
        if missing_rows > 0:
            room = np.zeros((outputs, missing_rows, self._shape[1]), np.float32)
            total = np.concatenate([total, room], axis=1)
        self._sum = total
        return total


def _weights(owns: Sequence[tuple[int, int]], length: int, ramp: int) -> dict[int, tuple[slice, Pixels]]:
    """Returns a tile's first own pixel along an axis -> the range that it contributes to, and its weights."""
    # Weights along each axis alone: those of a tile are their outer product.
    places = np.arange(length)
    distances = [np.maximum(np.maximum(start - places, places - stop + 1), 0) for start, stop in owns]
    total = np.sum([np.maximum(1 - distance / (ramp + 1), 0) for distance in distances], axis=0)
    reach = [slice(max(start - ramp, 0), min(stop + ramp, length)) for start, stop in owns]
    return {
        start: (extent, ((1 - distance[extent] / (ramp + 1)) / total[extent]).astype(np.float32))
        for (start, _), extent, distance in zip(owns, reach, distances, strict=True)
    }
