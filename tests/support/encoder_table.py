"""Writes `encoders.json`, by which submission knows encoders without importing their libraries.

    python tests/support/encoder_table.py

Run it again whenever the locked versions of these libraries change; a test compares the table with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch

from hpc_isl.errors import UserError
from hpc_isl.files import write_atomic
from hpc_isl.learning.network import checks, limits, unet, weights
from hpc_isl.recipes.training import NetRecipe

LIBRARIES = ("segmentation_models_pytorch", "timm")
# Of timm's thousand encoders, these; for the others submission asks the library itself.
FAMILIES = ("resnet", "resnetv2")
SOURCES = (1, 4)  # fewer and more than the three that encoders are made for


def table() -> dict[str, Any]:
    """Returns the content of the table; takes minutes, because it builds each network without weights."""
    encoders = {name: weights_of(name) for name in names() if fits(name)}
    return {"versions": {name: metadata.version(name) for name in LIBRARIES}, "encoders": encoders}


def names() -> Iterator[str]:
    """Yields the encoders that may be in the table."""
    yield from smp.encoders.get_encoder_names()
    for family in FAMILIES:
        yield from (f"tu-{name}" for name in timm.list_models(module=family))


def fits(name: str) -> bool:
    """Returns whether a U-Net on this encoder can be built with decoders of every length."""
    for length in limits.DECODERS:
        for sources in SOURCES:
            net = NetRecipe(encoder=name, weights=None, decoder=[8] * length)
            try:
                with torch.device("meta"):
                    network = unet.construct(net, sources, 1).to("meta")
                    unet.freeze_unused(name, network, sources)
            except (UserError, RuntimeError, NotImplementedError):
                return False
    return True


def weights_of(name: str) -> dict[str, Any]:
    """Returns name of weights -> where they are on the hub; timm is asked for its own when needed."""
    if name.startswith("tu-"):
        return {}
    known = smp.encoders.encoders[name]["pretrained_settings"]
    return {key: weights.hub_file(name, key)._asdict() for key in known}


if __name__ == "__main__":
    write_atomic(checks.TABLE, json.dumps(table(), indent=1, sort_keys=True) + "\n")
