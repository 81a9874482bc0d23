"""How much memory a forward pass takes, told by one over tensors that hold no numbers."""

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
    """Bytes that a forward pass over so many pixels takes at most, in float32, beside the network itself.

    Args:
        pixels: of all tiles of the pass together.
    """
    decoder = None if net.decoder is None else tuple(net.decoder)
    return round(SCRATCH * pixels * _per_pixel(net.encoder, decoder, sources, outputs))


@lru_cache(maxsize=16)
def _per_pixel(encoder: str, decoder: tuple[int, ...] | None, sources: int, outputs: int) -> float:
    net = NetRecipe(encoder=encoder, decoder=decoder and list(decoder), weights=None)
    with torch.device("meta"), torch.inference_mode():
        network = construct(net, sources, outputs).eval()
        with _Alive() as alive:
            network(torch.empty(1, sources, EDGE, EDGE))
    return float(alive.most) / EDGE**2


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that operations made and that are still held; `most` is their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._held[reference.cdata] = reference, storage.nbytes()
        self._held = {key: each for key, each in self._held.items() if not _gone(each[0])}
        self.most = max(self.most, sum(size for _, size in self._held.values()))
        return made


def _gone(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())  # type: ignore[no-untyped-call]
