"""A trained model on disk: its weights, and the contract that gives them meaning (which needs no torch)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from hpc_isl.errors import UserError
from hpc_isl.files import write_atomic
from hpc_isl.learning.network.contract import CONTRACT, WEIGHTS, Contract, read_contract
from hpc_isl.learning.network.heads import set_head
from hpc_isl.learning.network.unet import build


def save(folder: Path, network: nn.Module, contract: Contract) -> None:
    """Writes `weights.safetensors`, then `contract.json`, which names the weights by their hash."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    weights = safetensors.torch.save(state)
    content = contract.to_dict() | {"weights": hashlib.sha256(weights).hexdigest()}
    write_atomic(folder / WEIGHTS, weights)
    # Last: a folder without a contract holds no model.
    write_atomic(folder / CONTRACT, json.dumps(content, indent=1))


def load(folder: Path) -> tuple[nn.Module, Contract]:
    """Returns the network in evaluation mode, on the CPU, and its contract.

    Raises:
        UserError: no model in the folder, one of a later version, or weights that are not the contract's.
    """
    contract, state = read_state(folder)
    view, task = contract.view, contract.task
    outputs = len(view.targets) if task is None else 1 if task.from_stain else task.outputs
    network = build(contract.net, len(view.sources), outputs, pretrained=False)
    if task is not None:
        set_head(network, task)
    network.load_state_dict(state)
    return network.eval(), contract


def read_state(folder: Path) -> tuple[Contract, dict[str, Tensor]]:
    """Returns the contract and the weights by name; raises as `load` does."""
    contract = read_contract(folder)
    if contract.program is not None:
        raise UserError(f"{folder}: holds another program, {contract.program.name}, and no network")
    weights = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != contract.weights:
        raise UserError(f"{folder / WEIGHTS}: these are not the weights that {CONTRACT} speaks of")
    return contract, safetensors.torch.load(weights)
