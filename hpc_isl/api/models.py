"""Trained models: what they expect of a plate, and their predictions on arrays and on fields of plates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_isl.api.plates import Field
from hpc_isl.api.runs import Run, find_run
from hpc_isl.errors import UserError
from hpc_isl.learning.data.fields import image_key, imaged_times
from hpc_isl.learning.data.rescale import labels_to_full, read_sources, scale_on, to_full
from hpc_isl.learning.inference.images import predict_images
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network.contract import PROGRAM, Contract, read_contract
from hpc_isl.learning.network.model import load
from hpc_isl.objects.draft_labels import drop_small
from hpc_isl.objects.types import Labels
from hpc_isl.stages.shared.decoding import decode, rule_of
from hpc_isl.stages.shared.following import model_run
from hpc_isl.stages.shared.program import predict


def load_model(run: str | Path | Run) -> Model:
    """Returns the model of a run of pretrain or finetune; of a sweep, that of its last element, `final`.

    Raises:
        UserError: there is no such run, or it has no model.
    """
    return Model(model_run(find_run(run).folder).model)


class Model:
    """A network with its contract, on a GPU where there is one; or another program that segments."""

    def __init__(self, folder: Path) -> None:
        self._contract = read_contract(folder)
        self._folder, self.network, self._predictor = folder, None, None
        if self._contract.program is not None:
            return
        self.network, _ = load(folder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # As it was scored, so that its scores hold for what it predicts here.
        self._predictor = Predictor.by_contract(self.network, self._contract, device)

    def __repr__(self) -> str:
        outputs = self._contract.task.labels if self._contract.task else ", ".join(self.targets)
        program = self._contract.program
        name = f"program {program.name}" if program else self._contract.net.encoder
        return f"<Model {name}: {', '.join(self.sources)} → {outputs}>"

    @property
    def contract(self) -> Contract:
        """What it expects of a plate, what it predicts, and where it comes from."""
        return self._contract

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the channels that it sees, in order."""
        return tuple(role.channel for role in self._contract.view.sources)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the stains that it predicts; of a model that segments, those it learnt before."""
        return tuple(role.channel for role in self._contract.view.targets)

    def predict(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Returns stains (image, target, y, x), float32, of images (image, source, y, x) in stored counts.

        Images have the µm per pixel of the contract. A model that segments gives the logit of its mask, or
        the distance map and that logit.

        Raises:
            UserError: another number of dimensions or of sources; the model is another program.
        """
        if self._predictor is None:
            raise UserError(f"{self!r} gives labels alone: segment(field) calls it")
        return predict_images(self._predictor, self._contract, np.asarray(images))

    def segment(self, field: Field, time: int = 0) -> Labels:
        """Returns labels (y, x) of a field at full resolution, as the verb `segment` computes them.

        Raises:
            UserError: the plate lacks a source of the model, or its pixels are too large for it; the program
                that is the model failed.
        """
        index, key, view = field._index, field._key, self._contract.view
        # Else the zeros that are stored in place of its planes would be segmented.
        if time not in imaged_times(view, index, key):
            raise UserError(f"{field!r}: a source of the model was not imaged at time {time}")
        scale = scale_on(view, index, key)
        shape = index.field(image_key(key, view.sources[0])).shape[-2:]
        sources, program = read_sources(view, index, key, time, scale), self._contract.program
        # The rule's lengths are in pixels of the model's grid, the labels at full resolution.
        rule = rule_of(self._contract.task).finer(scale.to_level_0, index.plate.pixel_um)
        if program is not None:
            [labels] = predict(program, [sources], self._folder / PROGRAM)
            return drop_small(labels_to_full(labels, scale, shape), rule.min_area)[0]
        assert self._predictor is not None
        return decode(to_full(self._predictor(sources), scale, shape), rule)[0]
