"""The memory of a forward pass, measured by a pass over tensors that hold no numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpc_isl.learning.network.unet import construct
from hpc_isl.recipes.training import NetRecipe

EDGE = 256  # of the image that is tried; memory grows with its pixels
# Convolutions keep copies in an order of their own: measured are 1.1 to 1.35, 1.75 without channels_last.
SCRATCH = 1.4


def footprint(net: NetRecipe, pixels: int, sources: int = 3, outputs: int = 2) -> int:
    """Returns an upper bound of the bytes of a float32 forward pass, beside the network itself.

    Args:
        pixels: of all tiles of the pass together.
    """
    decoder = None if net.decoder is None else tuple(net.decoder)
    return round(SCRATCH * pixels * _bytes_per_pixel(net.encoder, decoder, sources, outputs))


@lru_cache(maxsize=16)
def _bytes_per_pixel(encoder: str, decoder: tuple[int, ...] | None, sources: int, outputs: int) -> float:
    net = NetRecipe(encoder=encoder, decoder=decoder and list(decoder), weights=None)
    with torch.device("meta"), torch.inference_mode():
        network = construct(net, sources, outputs).eval()
        with _LiveBytes() as live:
            network(torch.empty(1, sources, EDGE, EDGE))
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
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._live[reference.cdata] = reference, storage.nbytes()
        for key, (reference, _) in list(self._live.items()):
            if reference.expired():  # type: ignore[no-untyped-call]
                del self._live[key]
        self.most = max(self.most, sum(size for _, size in self._live.values()))
        return result
