"""A model's contract: what its network expects of a plate, what it predicts, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.learning.data.view import View
from hpc_isl.plates.plate import FieldKey
from hpc_isl.recipes.load import former_keys, present_keys
from hpc_isl.recipes.program import ProgramRecipe
from hpc_isl.recipes.training import NetRecipe, PredictRecipe

FORMAT = 1
WEIGHTS, CONTRACT = "weights.safetensors", "contract.json"
PROGRAM = "program"
"""The folder in the place of weights, where the model is another program: what its training has written."""


@dataclass(frozen=True)
class Task:
    """The prediction of a network that segments, and how it becomes objects.

    Attributes:
        labels: name of the labels that it learnt.
        kind: nuclei (one output, the mask's logit) or cells (distance map, and the mask's logit).
        head: same, paper or stain; `from_stain`: the last two take the output of an ISL model.
        span: the stain's output is divided by this before the paper's sigmoid.
        slope, centre: of that sigmoid; of the stain's head, in the unit of the predicted stain.
        map, scale, h_maxima, mask_threshold, min_area, method: as in ObjectsRecipe, h_maxima in numbers;
            `min_area` is in pixels that the network sees, and `min_area_um2` the same in µm², where known.
        confidence: weights of the probability that an object is found (`objects.confidence`); empty: none was
            learnt, and objects get a score; None: a model of an earlier version, which says nothing.
        arm, boxes, objects: the arm it started from, and the numbers of boxes and objects it learnt from.
    """

    labels: str
    kind: str
    head: str = "same"
    from_stain: bool = False
    span: float = 1.0
    slope: float = 10.0
    scale: str = "object"
    h_maxima: float = 10.0
    min_area: int = 0
    method: str = "watershed"
    arm: str = ""
    boxes: int = 0
    objects: int = 0
    min_area_um2: float | None = None
    map: str = "euclidean"
    mask_threshold: float | None = None
    centre: float = 0.5
    confidence: tuple[float, ...] | None = None

    @property
    def outputs(self) -> int:
        return 1 if self.kind == "nuclei" else 2


@dataclass(frozen=True)
class Contract:
    """The data that a network expects of a plate, and its origin.

    Attributes:
        view: source and target roles, µm per pixel, normalisation with its numbers.
        net: what to build; the weights are the model's own.
        predict: tiles and halo that it was scored with.
        precision: of the forward pass: fp32, bf16 or fp16.
        recipe: all of the recipe that trained it, and `digest` of it with its inputs.
        split: digest of the split; `wells`: part -> plate -> wells (or fields, where the split is by field).
            For a model that segments, the parts are what its annotations trained (train) and tested, what the
            `reference` was made of, and the stain that the ISL model it began with has seen (stain).
        plates: name -> fingerprint of the plates that it was trained on.
        step: optimiser steps behind these weights.
        code: version of this package.
        weights: SHA-256 of the weights file.
        task: of a model that segments; None: it predicts the view's targets.
        reference: statistics of the sources in its training fields, with which `drift` compares other fields.
        stains: channel that it sees -> whether that is a stain on the plates that it was trained on.
        program: another program that segments, in the place of a network. `net`, `predict` and `precision`
            mean nothing then, the view gives counts, and `weights` is a hash of the folder that its training
            has filled.
        program_files: hash of the files that its commands name, as they were when it was scored.
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
    task: Task | None = None
    reference: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    stains: Mapping[str, bool] = field(default_factory=dict)
    program: ProgramRecipe | None = None
    program_files: str = ""

    def has_seen(self, part: str, plate: str, key: FieldKey) -> bool:
        """Returns whether a field of a plate, or its well, is in a part of the wells."""
        # Splits are by well or by field, and contracts list what was split.
        units = self.wells.get(part, {}).get(plate, [])
        return key.well in units or f"{key.well}/{key.name}" in units

    def model_hash(self) -> dict[str, Any]:
        """Returns all that decides the objects that this model finds, as plain JSON: not its origin."""
        content = self.to_dict()
        decisive = {name: content[name] for name in ("view", "net", "predict", "precision", "weights")}
        names = ["kind", "head", "from_stain", "span", "slope", "scale", "h_maxima", "min_area", "method"]
        # Models of earlier versions have none, and keep the hash that labels were written under.
        optional = {"min_area_um2": None, "map": "euclidean", "mask_threshold": None, "centre": 0.5,
                    "confidence": None}  # fmt: skip
        names += [name for name, value in optional.items() if self.task and getattr(self.task, name) != value]
        task = self.task and {name: getattr(self.task, name) for name in names}
        if self.program is not None:
            commands = {name: content["program"][name] for name in ("predict", "env")}
            decisive |= {"program": commands, "program_files": self.program_files}
        return decisive | {"task": task and _former_task(task)}

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON; `from_dict` reads it back to an equal contract."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        models = {"net": self.net.model_dump(mode="json"), "predict": self.predict.model_dump(mode="json")}
        task = self.task and _former_task(asdict(self.task))
        content = {"format": FORMAT, **plain, "view": self.view.to_dict(), **models, "task": task}
        if self.program is None:
            return {
                name: value for name, value in content.items() if name not in ("program", "program_files")
            }
        return content | {"program": self.program.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Contract:
        values = {entry.name: content[entry.name] for entry in fields(cls) if entry.name in content}
        values["view"] = View.from_dict(content["view"])
        values["net"] = NetRecipe.model_validate(content["net"])
        values["predict"] = PredictRecipe.model_validate(content["predict"])
        program = content.get("program")
        values["program"] = ProgramRecipe.model_validate(program) if program else None
        task = content.get("task")
        if task:
            task = present_keys("finetune", {"objects": task})["objects"]
            if task.get("confidence") is not None:  # JSON has lists alone
                task["confidence"] = tuple(task["confidence"])
            values["task"] = Task(**task)
        return cls(**values)


def _former_task(task: dict[str, Any]) -> dict[str, Any]:
    """Returns a task under the names of the first version, which contracts keep for every version to read."""
    content: dict[str, Any] = former_keys("finetune", {"objects": task})["objects"]
    for name in ("centre", "confidence"):
        if name in content and content[name] == getattr(Task, name):
            del content[name]
    return content


def read_contract(folder: Path) -> Contract:
    """Returns the contract of the model in a folder; reads no weights.

    Raises:
        UserError: no model in the folder, or one of a later version.
    """
    content = read_json(folder / CONTRACT)
    payload = PROGRAM if content and content.get("program") else WEIGHTS
    if content is None or not (folder / payload).exists():
        raise UserError(
            f"{folder}: holds no model ({CONTRACT} and {payload}); was the run finished, or removed?"
        )
    if content["format"] != FORMAT:
        raise UserError(
            f"{folder}: a model of format {content['format']}; this version reads format {FORMAT}"
        )
    return Contract.from_dict(content)
