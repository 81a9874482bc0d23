"""Makes `encoders.json`, by which submission knows encoders without their libraries.

    python -m hpc_isl.learning.network.encoder_table

is run again whenever the locked versions of these libraries change; a test holds the table against them.
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
from hpc_isl.learning.network import encoders, unet, weights
from hpc_isl.recipes.training import NetRecipe

LIBRARIES = ("segmentation_models_pytorch", "timm")
# Of the thousand names of timm these; the library itself is asked about the others.
FAMILIES = ("resnet", "resnetv2")
SOURCES = (1, 4)  # fewer and more than the three that encoders are made for


def table() -> dict[str, Any]:
    """The content of the table; some minutes, for each network is built, without memory for its weights."""
    found = {name: weights_of(name) for name in names() if fits(name)}
    return {"versions": {name: metadata.version(name) for name in LIBRARIES}, "encoders": found}


def names() -> Iterator[str]:
    """The encoders that are looked at."""
    yield from smp.encoders.get_encoder_names()
    for family in FAMILIES:
        yield from (f"tu-{name}" for name in timm.list_models(module=family))


def fits(name: str) -> bool:
    """Whether a U-Net on this encoder can be built with decoders of every length."""
    return all(_builds(name, length, sources) for length in encoders.DECODERS for sources in SOURCES)


def _builds(name: str, length: int, sources: int) -> bool:
    net = NetRecipe(encoder=name, weights=None, decoder=[8] * length)
    try:
        with torch.device("meta"):
            network = unet.construct(net, sources, 1).to("meta")
            unet.freeze_unused(name, network, sources)
    except (UserError, RuntimeError, NotImplementedError):
        return False
    return True


def weights_of(name: str) -> dict[str, Any]:
    """Name of weights -> where they lie on the hub; timm's are asked of timm."""
    if name.startswith("tu-"):
        return {}
    known = smp.encoders.encoders[name]["pretrained_settings"]
    return {each: weights.hub_file(name, each)._asdict() for each in known}


if __name__ == "__main__":
    write_atomic(encoders.TABLE, json.dumps(table(), indent=1, sort_keys=True) + "\n")
