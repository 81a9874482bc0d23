"""The models of a segmentation: their contracts, without weights, and how plates call their channels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from hpc_isl.errors import UserError, nearest
from hpc_isl.learning.data.rescale import renamed
from hpc_isl.learning.data.view import View
from hpc_isl.learning.network.contract import Contract, read_contract
from hpc_isl.recipes.load import RECIPES
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.run import Run
from hpc_isl.stages.shared.following import model_run
from hpc_isl.stages.shared.plate_views import resized_since

MODELS = ("finetune", "pretrain")  # the stages that make one


@dataclass(frozen=True)
class Models:
    """The models of a recipe: contracts, no weights.

    Attributes:
        folder: of the model that segments; `stain`: of the one whose stain is measured too, or None.
        labels: name of the labels to write.
        channels: a model's name of a channel -> the plates'.
        model_hashes: of what decides the objects of the model, and of what that of the stain predicts.
    """

    folder: Path
    contract: Contract
    labels: str
    channels: Mapping[str, str]
    model_hashes: tuple[str, ...]
    stain: Path | None = None
    stain_contract: Contract | None = None

    @property
    def kind(self) -> str:
        """Returns the kind of the objects: nuclei, cells, or stain (drafted from a predicted one)."""
        return self.contract.task.kind if self.contract.task else "stain"

    @property
    def contracts(self) -> tuple[Contract, ...]:
        return (self.contract, *([self.stain_contract] if self.stain_contract else []))

    @cached_property
    def view(self) -> View:
        """The view of the model, in the plates' names of channels."""
        return self._view(self.contract)

    @cached_property
    def stain_view(self) -> View | None:
        return self._view(self.stain_contract) if self.stain_contract else None

    def _view(self, contract: Contract) -> View:
        names = _channels(contract)
        return renamed(
            contract.view, {name: plate_name for name, plate_name in self.channels.items() if name in names}
        )

    def check_channels(self) -> None:
        """Checks that each name that the recipe translates is one of a model's.

        Raises:
            UserError: naming the nearest.
        """
        names = [name for contract in self.contracts for name in _channels(contract)]
        for name in self.channels:
            if name not in names:
                raise UserError(f"channels: {name!r} is no channel of the model; {nearest(name, names)}")


def models_of(recipe: SegmentRecipe) -> Models:
    """Returns the contracts of the recipe's models.

    Raises:
        UserError: a run without a model; no name for the labels.
    """
    folder = model_run(recipe.model).model
    contract = _contract("model", recipe.model, folder)
    labels = recipe.labels or (contract.task.labels if contract.task else None)
    if labels is None:
        raise UserError("labels: must name what is written, as in labels=nuclei; this model predicts a stain")
    models = Models(folder, contract, labels, recipe.channels, (_model_hash(contract),))
    if recipe.stain is None:
        return models
    stain = Run(recipe.stain).model
    stained = _contract("stain", recipe.stain, stain)
    if stained.task is not None:
        raise UserError(f"stain={recipe.stain}: this model segments; a run of pretrain predicts a stain")
    hashes = (*models.model_hashes, _model_hash(stained))
    return replace(models, model_hashes=hashes, stain=stain, stain_contract=stained)


def check_resized(recipe: SegmentRecipe, models: Models) -> None:
    """Refuses a model whose contract states the wrong size of pixels, unless the recipe states it.

    Raises:
        UserError: with the sizes that changed.
    """
    for key, contract in zip(("model", "stain"), models.contracts, strict=False):
        if key == "model" and recipe.pixel_um is not None:
            continue
        for line, pixel_um in resized_since(contract):
            advice = f", or say what pixels it was trained at: pixel_um={pixel_um:g}" if pixel_um else ""
            raise UserError(
                f"{key}={getattr(recipe, key).name}: {line}, after this model was trained there; train it "
                f"again, under another --name{advice if key == 'model' else ''}"
            )


def _model_hash(contract: Contract) -> str:
    return hashlib.sha256(json.dumps(contract.model_hash(), sort_keys=True).encode()).hexdigest()


def _contract(key: str, path: Path, folder: Path) -> Contract:
    stage = Run(path).stage
    if not folder.exists() and stage in RECIPES and stage not in MODELS:
        raise UserError(f"{key}={path}: a run of {stage} has no model; name one of {' or '.join(MODELS)}")
    try:
        return read_contract(folder)
    except UserError as error:
        raise UserError(f"{key}={path}: {error}") from None


def _channels(contract: Contract) -> list[str]:
    return list(dict.fromkeys(role.channel for role in contract.view.sources + contract.view.targets))
