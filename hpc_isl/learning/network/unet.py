"""The network: a U-Net of segmentation_models_pytorch, whose decoder ends without an activation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from hpc_isl import seeds
from hpc_isl.errors import UserError, nearest
from hpc_isl.learning.network.limits import DECODERS, STRIDE
from hpc_isl.learning.network.weights import find_weights, read_weights
from hpc_isl.recipes.training import NetRecipe


def build(net: NetRecipe, sources: int, outputs: int, seed: int = 0, pretrained: bool = True) -> nn.Module:
    """Returns a network from (batch, sources, y, x) to (batch, outputs, y, x), y and x multiples of 32.

    Args:
        seed: of the weights that are not read from a file; torch's own generator is left alone.
        pretrained: False where all weights are about to be loaded: `net.weights` is then ignored.

    Raises:
        UserError: an unknown encoder, a decoder that does not fit, or missing weights.
    """
    check_names(net)
    # Found before anything is built, which takes seconds.
    file = find_weights(net.encoder, net.weights) if pretrained and net.weights else None
    with torch.random.fork_rng():
        torch.manual_seed(seeds.integer(seed, "weights"))
        network = construct(net, sources, outputs, file)
        freeze_unused(net.encoder, network, sources)
    return network


def check_weights(net: NetRecipe, sources: int = 3) -> Path | None:
    """Checks that the network can be built, and returns the file of its weights; None for random ones."""
    build(net, sources, 1)
    return find_weights(net.encoder, net.weights) if net.weights else None


def check_names(net: NetRecipe) -> None:
    """Raises a UserError unless the library knows the encoder and the decoder has 3 to 5 blocks."""
    encoders = list(smp.encoders.encoders)
    if net.encoder.startswith("tu-"):
        name = net.encoder[3:].partition(".")[0]
        if not timm.is_model(name):
            raise UserError(
                f"net.encoder={net.encoder!r}: timm has no {name!r}; {nearest(name, timm.list_models())}"
            )
    elif net.encoder not in encoders:
        raise UserError(
            f"net.encoder={net.encoder!r}: no such encoder; {nearest(net.encoder, encoders)}, or tu-… of timm"
        )
    if net.decoder is not None and len(net.decoder) not in DECODERS:
        raise UserError(f"net.decoder={net.decoder}: 3 to 5 numbers of channels, deepest first, or null")


def construct(net: NetRecipe, sources: int, outputs: int, file: Path | None = None) -> nn.Module:
    """Returns the network with the weights of `file`, or random ones; all of them are trainable."""
    if file is None or net.encoder.startswith("tu-"):
        # timm renames and adapts the tensors of a file itself.
        timm_options = {"pretrained_cfg_overlay": {"file": str(file)}} if file else {}
        return _unet(net, sources, outputs, encoder_weights=True if file else None, **timm_options)
    state = read_weights(file)
    network: Any = _unet(net, 3, outputs, encoder_weights=None)
    first_layer = next(
        name for name, module in network.encoder.named_modules() if isinstance(module, nn.Conv2d)
    )
    stored_weight = state.get(f"{first_layer}.weight")
    # A file for as many channels is loaded as it is; else the first layer of 3 channels is adapted.
    fits = stored_weight is not None and stored_weight.shape[1] == sources
    if fits:
        network.encoder.set_in_channels(sources, pretrained=False)
    _load(network.encoder, state, file, net.encoder)
    if not fits:
        network.encoder.set_in_channels(sources, pretrained=True)
    return cast(nn.Module, network)


def _unet(net: NetRecipe, sources: int, outputs: int, **options: Any) -> nn.Module:
    decoder = net.decoder or [256, 128, 64, 32, 16]
    try:
        network: nn.Module = smp.Unet(
            net.encoder, in_channels=sources, classes=outputs, activation=None,
            encoder_depth=len(decoder), decoder_channels=decoder, **options,
        )  # fmt: skip
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"net.encoder={net.encoder}: the library cannot build it: {str(error)[:500]}"
        ) from None
    return network


def _load(encoder: nn.Module, state: Mapping[str, Tensor], file: Path, name: str) -> None:
    """Loads all of the encoder's tensors from the file's, which may hold more, such as a classifier."""
    try:
        encoder.load_state_dict(dict(state))  # knows older names of its tensors
        return
    except RuntimeError:
        encoder_state = encoder.state_dict()
    wrong = [
        key
        for key, tensor in encoder_state.items()
        if not key.endswith("num_batches_tracked") and (key not in state or state[key].shape != tensor.shape)
    ]
    if wrong:
        examples = ", ".join(list(state)[:3])
        raise UserError(
            f"net.weights={file} does not fit the encoder {name}: {len(wrong)} of its {len(encoder_state)} "
            f"tensors are missing or of another shape, such as {', '.join(wrong[:3])}; the file holds "
            f"{examples}, …"
        )
    encoder.load_state_dict({key: tensor for key, tensor in state.items() if key in encoder_state})


def freeze_unused(encoder: str, network: nn.Module, sources: int) -> None:
    """Freezes the layers that a U-Net never reaches, so that ranks do not wait for their gradients."""
    # Evaluation mode: running statistics stay as they are.
    network.eval()
    try:
        network(torch.zeros(1, sources, 2 * STRIDE, 2 * STRIDE)).sum().backward()
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"net.encoder={encoder}: takes images of one fixed size, not any multiple of {STRIDE} pixels "
            f"({error})"
        ) from None
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    network.train()
