"""What a fine-tuned model has seen: kept in its contract, so that nobody takes it for something new."""

from __future__ import annotations

from collections.abc import Iterable

from hpc_isl.learning.data.drift import Reference, reference_of
from hpc_isl.learning.data.fields import fields_of
from hpc_isl.stages.finetune.boxes import Box
from hpc_isl.stages.finetune.inputs import FinetuneInputs, Start

Wells = dict[str, list[str]]
"""Plate -> wells, or fields as in B03/1."""


def reference(setting: FinetuneInputs) -> Reference:
    """What the images are like that the model knows: the ISL model's, which saw most, else the split's."""
    if known := _widest(setting):
        return known.contract.reference
    keys = [fields_of(setting.view, index, setting.split, "train") for index in setting.indices]
    return reference_of(setting.view, setting.indices, keys)


def wells(setting: FinetuneInputs, arm: str) -> dict[str, Wells]:
    """Of annotations (train, test), of the images in its reference, and of the stain that ISL has seen."""
    known, start = _widest(setting), setting.start(arm)
    return {
        "train": _boxed(setting.learning),
        "test": _boxed(setting.testing),
        "reference": _trained(known) if known else _split(setting),
        "stain": _trained(start) if start and start.isl else {},
    }


def _widest(setting: FinetuneInputs) -> Start | None:
    """The ISL model whose training fields the reference is made of."""
    return next((start for start in setting.starts.values() if start.isl and start.contract.reference), None)


def _trained(start: Start) -> Wells:
    return {plate: list(units) for plate, units in start.contract.wells.get("train", {}).items()}


def _boxed(boxes: Iterable[Box]) -> Wells:
    return _grouped((box.index.plate.name, f"{box.key.well}/{box.key.name}") for box in boxes)


def _split(setting: FinetuneInputs) -> Wells:
    return _grouped(
        (index.plate.name, f"{key.well}/{key.name}")
        for index in setting.indices
        for key in fields_of(setting.view, index, setting.split, "train")
    )


def _grouped(units: Iterable[tuple[str, str]]) -> Wells:
    found: dict[str, set[str]] = {}
    for plate, unit in units:
        found.setdefault(plate, set()).add(unit)
    return {plate: sorted(own) for plate, own in found.items()}
