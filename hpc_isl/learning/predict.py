"""A field's sources and a network to its prediction: whole, or on a fixed global grid of tiles."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hpc_isl.learning.precision import autocast
from hpc_isl.learning.stride import STRIDE, check_grid
from hpc_isl.mistake import Mistake
from hpc_isl.tiles import Tile, padding, tiles

Pixels = NDArray[np.float32]
PER_IMAGE = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


def predict(
    network: nn.Module,
    sources: Pixels,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    tile: int | None = None,
    halo: int = 0,
) -> Pixels:
    """The prediction (target, y, x) of one field's normalised sources (source, y, x), both float32.

    The network is left in evaluation mode.

    Args:
        device: where the network lives; default: the CPU.
        tile: edge of a tile in pixels, a multiple of 32; None: the field is one tile.
        halo: pixels read around a tile, a multiple of 32. The outer half of it is context alone, over
            the inner half neighbours blend; where that outer half covers the network's reach, the
            result is the whole field's up to rounding.

    Raises:
        Mistake: a tile or halo that does not fit the network's stride.
    """
    check_grid(tile, halo)
    device = device or torch.device("cpu")
    network.eval()
    if tile is None or max(sources.shape[1:]) <= tile:
        return _whole(network, sources, device, dtype)
    if any(isinstance(module, PER_IMAGE) for module in network.modules()):
        warnings.warn(
            "the network normalises by the statistics of each image: in tiles it sees other statistics "
            "than in whole fields, and seams may show; predict.tile=null avoids them",
            stacklevel=2,
        )
    return _blended(sources, tile, halo, lambda part: _whole(network, part, device, dtype))


def _blended(sources: Pixels, tile: int, halo: int, whole: Callable[[Pixels], Pixels]) -> Pixels:
    """The tiles' predictions, each weighted by its bell, over their weights."""
    shape = (sources.shape[1], sources.shape[2])
    weight = np.zeros(shape, np.float32)
    total: Pixels | None = None
    for each in tiles(shape, tile, halo):
        part = whole(sources[:, *each.read])
        if total is None:
            total = np.zeros((len(part), *shape), np.float32)
        bell = _bell(each, halo // 2)
        total[:, *each.read] += part * bell
        weight[each.read] += bell
    assert total is not None
    return total / weight


def _whole(network: nn.Module, sources: Pixels, device: torch.device, dtype: torch.dtype) -> Pixels:
    """One pass over an array, padded by reflection below and to the right to multiples of the stride."""
    y, x = sources.shape[1:]
    padded = np.pad(sources, ((0, 0), (0, padding(y, STRIDE)), (0, padding(x, STRIDE))), mode="reflect")
    try:
        with torch.inference_mode(), autocast(device, dtype):
            batch = torch.from_numpy(padded)[None].to(device, memory_format=torch.channels_last)
            result = network(batch)[0, :, :y, :x]
    except torch.OutOfMemoryError:
        raise Mistake(
            f"the GPU has too little memory for {y} × {x} pixels at once: predict in tiles, predict.tile=1024"
        ) from None
    return np.asarray(result.float().cpu().numpy())


def _bell(tile: Tile, ramp: int) -> Pixels:
    """Weights over what a tile reads: 1 in its own box, falling to 0 within `ramp` pixels around it."""
    sides = []
    for own, read in zip(tile.own, tile.read, strict=True):
        places = np.arange(read.start, read.stop)
        outside = np.maximum(np.maximum(own.start - places, places - own.stop + 1), 0)
        sides.append(np.clip(1 - outside / (ramp + 1), 0, 1))
    bell: Pixels = np.multiply.outer(*sides).astype(np.float32)
    return bell
