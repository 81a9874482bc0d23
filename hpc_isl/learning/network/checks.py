"""Checks of a recipe's network at submission: from a table, or by the libraries where the table is silent.

Importing the libraries takes seconds. The table `encoders.json` lists what they can build, is made by
`tests/support/encoder_table.py`, and is valid for the exact versions that it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.learning.network.limits import DECODERS
from hpc_isl.recipes.training import NetRecipe, TrainRecipe

TABLE = Path(__file__).with_name("encoders.json")


def check_names(net: NetRecipe) -> None:
    """Raises a UserError unless the libraries know the encoder and the decoder has 3 to 5 blocks."""
    if not is_known(net):
        from hpc_isl.learning.network import unet

        unet.check_names(net)


def check_weights(net: NetRecipe, sources: int) -> Path | None:
    """Checks that the network can be built and its weights are on this machine; downloads them if need be.

    Returns:
        The file of the weights, None for random ones.

    Raises:
        UserError: as `unet.build`.
    """
    if is_known(net) and net.weights is None:
        return None
    hub = _table()[net.encoder].get(net.weights) if is_known(net) else None
    if hub is not None:
        import huggingface_hub

        cached = huggingface_hub.try_to_load_from_cache(hub["repo"], hub["file"], revision=hub["revision"])
        if isinstance(cached, str):
            return Path(cached)
    from hpc_isl.learning.network import unet

    return unet.check_weights(net, sources)


def check_batchnorm(net: NetRecipe, train: TrainRecipe, sources: int, frozen: str = "") -> None:
    """Checks that a micro-batch leaves BatchNorm more than one value per channel.

    Args:
        frozen: the part of the network whose BatchNorm keeps its statistics; see `batchnorm.single_value`.

    Raises:
        UserError: it leaves one value, which has no variance: torch would refuse it at the first step.
    """
    if train.micro_batch > 1:
        return
    from hpc_isl.learning.training.batchnorm import single_value

    if not single_value(net, sources, train.crop, frozen):
        return
    # The smallest divisor of the batch above 1, if there is one.
    least = next((n for n in range(2, train.batch + 1) if train.batch % n == 0), 2)
    batch = "" if train.batch > 1 else " and train.batch=2"
    larger = "" if single_value(net, sources, 2 * train.crop, frozen) else f", or train.crop={2 * train.crop}"
    raise UserError(
        f"train.micro_batch=1, train.crop={train.crop}: BatchNorm of net.encoder={net.encoder} would be left "
        "with one value per channel, of which there is no variance; take "
        f"train.micro_batch={least}{batch}{larger}"
    )


def is_known(net: NetRecipe) -> bool:
    """Returns whether a U-Net of this encoder and decoder can be built by the table, for any sources."""
    return net.encoder in _table() and (net.decoder is None or len(net.decoder) in DECODERS)


@cache
def _table() -> Mapping[str, Any]:
    """Returns encoder -> name of weights -> where they are on the hub; empty for other library versions."""
    content = json.loads(TABLE.read_text())
    for distribution, version in content["versions"].items():
        try:
            if metadata.version(distribution) != version:
                return {}
        except metadata.PackageNotFoundError:
            return {}
    return dict(content["encoders"])
