"""Whether a network can be built, told at submission: from a table, or by the libraries where that is silent.

Importing the libraries takes seconds. The table `encoders.json` says what they can build, is made by
`encoder_table.py`, and counts for the very versions that it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.recipes.training import NetRecipe, TrainRecipe

TABLE = Path(__file__).with_name("encoders.json")
DECODERS = (3, 4, 5)
"""Blocks that a decoder may have."""


def check_names(net: NetRecipe) -> None:
    """The encoder is one that the libraries know, and the decoder has 3 to 5 blocks, else a `UserError`."""
    if not is_known(net):
        from hpc_isl.learning.network import unet

        unet.check_names(net)


def check_weights(net: NetRecipe, sources: int) -> Path | None:
    """The network can be built, and its weights lie here (downloaded if need be).

    Returns:
        The file of the weights, None for random ones.

    Raises:
        UserError: as `unet.build`.
    """
    if is_known(net) and net.weights is None:
        return None
    if is_known(net) and (file := _cached(net)):
        return file
    from hpc_isl.learning.network import unet

    return unet.check_weights(net, sources)


def check_batchnorm(net: NetRecipe, train: TrainRecipe, sources: int, held: str = "") -> None:
    """A micro-batch leaves BatchNorm more than one value per channel, of one crop as of many.

    Args:
        held: the part of the network whose BatchNorm keeps its statistics; see `norms.single_value`.

    Raises:
        UserError: it leaves one, whose variance says nothing: torch refuses it at the first step.
    """
    if train.micro_batch > 1:
        return
    from hpc_isl.learning.training.batchnorm import single_value

    if not single_value(net, sources, train.crop, held):
        return
    least = next((n for n in range(2, train.batch + 1) if train.batch % n == 0), 2)
    batch = "" if train.batch > 1 else " and train.batch=2"
    larger = "" if single_value(net, sources, 2 * train.crop, held) else f", or train.crop={2 * train.crop}"
    raise UserError(
        f"train.micro_batch=1, train.crop={train.crop}: BatchNorm of net.encoder={net.encoder} would be left "
        "with one value per channel, of which there is no variance; take "
        f"train.micro_batch={least}{batch}{larger}"
    )


def is_known(net: NetRecipe) -> bool:
    """Whether the table has it that a U-Net of this encoder and decoder can be built, on any sources."""
    return net.encoder in _table() and (net.decoder is None or len(net.decoder) in DECODERS)


def _cached(net: NetRecipe) -> Path | None:
    """The file of named weights, where the table knows it and it lies in the hub's cache."""
    hub = _table()[net.encoder].get(net.weights)
    if hub is None:
        return None
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(hub["repo"], hub["file"], revision=hub["revision"])
    return Path(found) if isinstance(found, str) else None


@cache
def _table() -> Mapping[str, Any]:
    """Encoder -> name of weights -> where they lie on the hub; empty where other versions are installed."""
    content = json.loads(TABLE.read_text())
    same = all(_version(name) == version for name, version in content["versions"].items())
    return dict(content["encoders"]) if same else {}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
