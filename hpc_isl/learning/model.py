"""What pretraining leaves behind: weights and their contract, without which they mean nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from hpc_isl.files import read_json, write_atomic
from hpc_isl.learning.unet import build
from hpc_isl.learning.view import View
from hpc_isl.mistake import Mistake
from hpc_isl.recipes.training import NetRecipe, PredictRecipe

FORMAT = 1
WEIGHTS, CONTRACT = "weights.safetensors", "contract.json"


@dataclass(frozen=True)
class Contract:
    """What a network expects of a plate, and where it comes from.

    Attributes:
        view: source and target roles, µm per pixel, normalisation with its numbers.
        net: what to build; the weights are the model's own.
        predict: tiles and halo that it was scored with.
        precision: of the forward pass: fp32, bf16 or fp16.
        recipe: all of the recipe that trained it, and `digest` of it with its inputs.
        split: digest of the split; `wells`: part -> plate -> wells (or fields, where the split is by field).
        plates: name -> fingerprint of the plates that it was trained on.
        step: optimiser steps behind these weights.
        code: version of this package.
        weights: SHA-256 of the weights file.
    """

    view: View
    net: NetRecipe
    predict: PredictRecipe
    precision: str
    recipe: Mapping[str, Any]
    digest: str
    split: str
    wells: Mapping[str, Mapping[str, list[str]]]
    plates: Mapping[str, str]
    step: int
    code: str
    weights: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `from_dict` reads it back to an equal contract."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        models = {"net": self.net.model_dump(mode="json"), "predict": self.predict.model_dump(mode="json")}
        return {"format": FORMAT, **plain, "view": self.view.to_dict(), **models}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Contract:
        own = {field.name: content[field.name] for field in fields(cls)}
        own["view"] = View.from_dict(content["view"])
        own["net"] = NetRecipe.model_validate(content["net"])
        own["predict"] = PredictRecipe.model_validate(content["predict"])
        return cls(**own)


def save(folder: Path, network: nn.Module, contract: Contract) -> None:
    """Writes `weights.safetensors`, then `contract.json`, which names the weights by their hash."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    weights = safetensors.torch.save(state)
    content = contract.to_dict() | {"weights": hashlib.sha256(weights).hexdigest()}
    write_atomic(folder / WEIGHTS, weights)
    write_atomic(folder / CONTRACT, json.dumps(content, indent=1))


def load(folder: Path) -> tuple[nn.Module, Contract]:
    """The network in evaluation mode, on the CPU, and its contract.

    Raises:
        Mistake: no model there, one of a later version, or weights that are not those of the contract.
    """
    content = read_json(folder / CONTRACT)
    if content is None or not (folder / WEIGHTS).exists():
        raise Mistake(f"{folder}: holds no model ({CONTRACT} and {WEIGHTS}); was the run finished?")
    if content["format"] != FORMAT:
        raise Mistake(f"{folder}: a model of format {content['format']}; this version reads format {FORMAT}")
    contract = Contract.from_dict(content)
    weights = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != contract.weights:
        raise Mistake(f"{folder / WEIGHTS}: these are not the weights that {CONTRACT} speaks of")
    view = contract.view
    network = build(contract.net, len(view.sources), len(view.targets), pretrained=False)
    network.load_state_dict(safetensors.torch.load(weights))
    return network.eval(), contract
