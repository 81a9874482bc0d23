"""What to type after a stage: lines that work on the very plates that it has seen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.learning.data.split import PARTS
from hpc_isl.plates.store import Index, label_names, label_provenance
from hpc_isl.recipes.load import load
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.strict import written
from hpc_isl.stages.shared.plate_views import PlateViews, load_plate_views
from hpc_isl.stages.shared.sweeps import FEW

SHOWN = 3  # fields to begin with


def word(key: str, value: Any) -> str:
    """`key=value` as a shell and then YAML read it."""
    return shlex.quote(f"{key}={written(value)}")


def _plates(paths: Sequence[Path]) -> str:
    return word("plates", [str(path) for path in paths])


def pretrain_line(index: Index) -> str | None:
    """Pretraining on a plate by the shipped recipe, with the plate's own channels where it has others.

    None: the plate has no label-free channel beside a stain, or nothing to learn from.
    """
    channels = index.plate.channels
    seen = [{"channel": one.name, "plane": "focus"} for one in channels if not one.fluorescent]
    stains = [{"channel": one.name, "plane": "max"} for one in channels if one.fluorescent]
    for keys in ([], [f"sources={written(seen)}", f"targets={written(stains)}"]):
        with suppress(UserError):
            recipe = load("pretrain", None, [f"plates={written([str(index.path)])}", *keys])
            assert isinstance(recipe, PretrainRecipe)
            load_plate_views(recipe)
            return " ".join(["pretrain", _plates([index.path]), *map(shlex.quote, keys)])
    return None


def after_pretraining(study: PlateViews, arm: str) -> list[str]:
    """Fine-tuning, and a sweep of it, on the labels that there are; without any, how to draft the first ones.

    Args:
        arm: which the model starts.
    """
    plates = _plates([index.path for index in study.indices])
    for name, fields in _annotated(study).items():
        if not fields["train"] and not fields["validation"]:
            continue
        kind = "cells" if "cell" in name.lower() else "nuclei"
        given = ["pretrained={run}", plates, word("labels", name)]
        lines = [f"finetune finetune_{kind}.yaml {' '.join(given)} {word('arm', arm)}"]
        if fields["test"] and sum(fields.values()) >= FEW:
            lines.insert(0, f"sweep sweep_{kind}.yaml {' '.join(given)}")
        return lines
    return _drafting(study)


def _annotated(study: PlateViews) -> dict[str, dict[str, int]]:
    """Name of labels that people drew or drafted -> part -> fields that have them; of most fields first."""
    found: dict[str, dict[str, int]] = {}
    for part in PARTS:
        for index, key in study.places(part):
            image = index.image(key)
            for name in label_names(image):
                if (label_provenance(image, name) or ("", ""))[1] == "":
                    found.setdefault(name, dict.fromkeys(PARTS, 0))[part] += 1
    return dict(sorted(found.items(), key=lambda pair: -sum(pair[1].values())))


def _drafting(study: PlateViews) -> list[str]:
    """Labels drafted from the stain on a few fields, for a person to correct."""
    places = study.places("train")
    stain = study.view.targets[0].channel
    index, _ = places[0]
    if not index.plate.channels[index.channel(stain)].fluorescent:
        return []
    own = _spread([key for other, key in places if other is index])
    keys = [word("plate", str(index.path)), word("labels", "drafted"), word("channel", stain)]
    return [" ".join(["annotate draft", *keys, word("fields", list(map(str, own)))])]


def _spread(keys: Sequence[Any]) -> list[Any]:
    step = max(1, len(keys) // SHOWN)
    return list(keys[::step][:SHOWN])


def after_finetuning(plates: Sequence[Path]) -> str:
    """The model on whole plates."""
    return f"segment model={{run}} {_plates(plates)}"
