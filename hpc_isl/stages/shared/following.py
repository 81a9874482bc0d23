"""Commands to type after a stage, for the plates that it used, and what later stages know about a sweep."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.learning.data.split import PARTS
from hpc_isl.learning.network.contract import CONTRACT
from hpc_isl.plates.store import Index, label_names, label_provenance
from hpc_isl.recipes.load import load
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.strict import written
from hpc_isl.run import Run
from hpc_isl.stages.shared.plate_views import PlateViews, load_plate_views

SHOWN = 3  # fields to begin with
FEW = 6
"""With fewer annotated fields than this, one field is left out in turn."""
FINAL = "final"
"""The element that learns from all annotations: the model of the sweep."""
SCORES = ("iou", "mAP", "AP50", "AP75", "F1", "PQ", "SQ", "RQ", "count_error")
"""The scores of a test box, as columns of `scores.csv`."""
LEFT_OUT = "left_out.json"
"""In the folder of a run: what boxes left out in turn say of it."""
MAIN = {"nuclei": "iou", "cells": "mAP"}
"""Kind of objects -> the score that decides which arm is best."""


def word(key: str, value: Any) -> str:
    """Returns `key=value`, quoted so that a shell and then YAML read the value back."""
    return shlex.quote(f"{key}={written(value)}")


def pretrain_line(index: Index) -> str | None:
    """Returns the command that pretrains on a plate by the shipped recipe.

    It names the plate's own channels where the recipe's are not on the plate. None: the plate has no
    label-free channel beside a stain, or nothing to learn from.
    """
    channels = index.plate.channels
    label_free = [{"channel": c.name, "plane": "focus"} for c in channels if not c.fluorescent]
    stains = [{"channel": c.name, "plane": "max"} for c in channels if c.fluorescent]
    # First passes that were merged, then the channels of the shipped recipe, then those of the plate.
    plate_keys = [f"sources={written(label_free)}", f"targets={written(stains)}"]
    passes = [_keys_of_passes(index)] if len(index.plate.acquisitions) > 1 else []
    for keys in (*passes, [], plate_keys):
        with suppress(UserError):
            recipe = load("pretrain", None, [f"plates={written([str(index.path)])}", *keys])
            assert isinstance(recipe, PretrainRecipe)
            load_plate_views(recipe)
            return " ".join(["pretrain", word("plates", [str(index.path)]), *map(shlex.quote, keys)])
    return None


def _keys_of_passes(index: Index) -> list[str]:
    """Returns sources and targets of a plate that was imaged live, and then stained."""
    keys = []
    for key, fluorescent, plane in (("sources", False, "focus"), ("targets", True, "max")):
        names = [channel.name for channel in index.plate.channels if channel.fluorescent == fluorescent]
        imaged = {
            (field.key.acquisition, name) for field in index.plate for name in names if field.planes(name)
        }
        first_pass = min((number for number, _ in imaged), default=0)
        roles = [
            {"channel": name, "plane": plane, "acquisition": first_pass}
            for name in names
            if (first_pass, name) in imaged
        ]
        keys.append(f"{key}={written(roles)}")
    return keys


def after_pretraining(study: PlateViews, arm: str) -> list[str]:
    """Returns the commands that fine-tune on existing labels, and sweep; without labels, that draft some.

    Args:
        arm: that the pretrained model starts.
    """
    plates = word("plates", [str(index.path) for index in study.indices])
    for name, fields in _annotated_counts(study).items():
        if not fields["train"] and not fields["validation"]:
            continue
        # Nothing but their name tells what was drawn.
        kind = "cells" if "cell" in name.lower() else "nuclei"
        keys = " ".join(["pretrained={run}", plates, word("labels", name)])
        lines = [f"finetune finetune_{kind}.yaml {keys} {word('arm', arm)}"]
        if fields["test"] and sum(fields.values()) >= FEW:
            lines.insert(0, f"sweep sweep_{kind}.yaml {keys}")
        return lines
    return _drafting(study)


def _annotated_counts(study: PlateViews) -> dict[str, dict[str, int]]:
    """Returns labels that people drew or drafted -> part -> number of fields; most fields first."""
    counts: dict[str, dict[str, int]] = {}
    for part in PARTS:
        for plate, key in study.fields(part):
            image = plate.index.image(key)
            for name in label_names(image):
                # Labels with a fingerprint were computed by a run of segment: nobody annotated them.
                provenance = label_provenance(image, name)
                if provenance is None or not provenance.fingerprint:
                    counts.setdefault(name, dict.fromkeys(PARTS, 0))[part] += 1
    return dict(sorted(counts.items(), key=lambda pair: -sum(pair[1].values())))


def _drafting(study: PlateViews) -> list[str]:
    """Returns the command that drafts labels from the stain on a few fields, for a person to correct."""
    fields = study.fields("train")
    stain = study.view.targets[0].channel
    index = fields[0][0].index
    if not index.plate.channels[index.channel(stain)].fluorescent:
        return []
    field_names = [str(key) for plate, key in fields if plate.index is index]
    chosen_fields = field_names[:: max(1, len(field_names) // SHOWN)][:SHOWN]
    keys = [word("plate", str(index.path)), word("labels", "drafted"), word("channel", stain)]
    return [" ".join(["annotate draft", *keys, word("fields", chosen_fields)])]


def after_finetuning(plates: Sequence[Path]) -> str:
    """Returns the command that segments whole plates with the model."""
    # The command line puts the name of the run in the place of {run}.
    return f"segment model={{run}} {word('plates', [str(path) for path in plates])}"


def model_run(folder: Path) -> Run:
    """Returns the run whose model is meant: of a sweep its final element.

    Raises:
        UserError: there is no final element, the run has not ended, or it has taught nothing.
    """
    run = Run(folder)
    members = {member.name: member for member in run.elements()}
    if members and FINAL not in members:
        raise UserError(
            f"model={folder.name}: this sweep has no element {FINAL!r}; name one of its elements, as in "
            f"model={folder.name}/{next(iter(members))}"
        )
    run = members.get(FINAL, run)
    trains = run.stage in ("pretrain", "finetune") and run.recipe.exists() and not run.removed
    if trains and not (run.model / CONTRACT).exists():
        name = f"{folder.name}/{FINAL}" if members else folder.name
        if run.summary() is None:
            done = [element.name for element in members.values() if (element.model / CONTRACT).exists()]
            hint = f", or take an element that is done: 'model={folder.name}/{done[-1]}'" if done else ""
            raise UserError(
                f"model={name}: it has not ended, so there is no model yet: resume {folder.name}{hint}"
            )
        raise UserError(
            f"model={name}: nothing was learnt (n=0), so it has no model of its own; name the pretrained "
            "one, whose stain is thresholded"
        )
    return run
