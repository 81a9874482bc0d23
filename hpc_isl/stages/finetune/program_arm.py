"""An arm that is another program: it learns from the boxes of a run, and is scored as networks are.

One rank does all of it; how a program uses the machine is its own matter. A program has no checkpoints: a run
that was ended before its done record trains again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import hpc_isl
from hpc_isl.errors import many
from hpc_isl.files import read_json, write_atomic
from hpc_isl.learning.data.rescale import stains_of
from hpc_isl.learning.network.contract import CONTRACT, PROGRAM, Contract, Task
from hpc_isl.learning.training.world import World
from hpc_isl.objects.draft_labels import drop_small
from hpc_isl.objects.matching import inside
from hpc_isl.objects.types import Labels, Pixels
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.load import digest
from hpc_isl.recipes.program import ProgramRecipe
from hpc_isl.run import Attempt
from hpc_isl.stages.finetune.arm import seed_of
from hpc_isl.stages.finetune.boxes import Box, BoxObjects, draw, objects_of
from hpc_isl.stages.finetune.finetuning import finish, write_boxes
from hpc_isl.stages.finetune.inputs import FinetuneInputs, as_planned, leaves_out, resolve_inputs
from hpc_isl.stages.finetune.left_out import Evidence, deal, piece_score, write_evidence
from hpc_isl.stages.finetune.scores import main_figures, score_boxes
from hpc_isl.stages.shared import program as programs

SCRATCH = "scratch"
POLL_S = 0.5
Place = tuple[str | int, ...]
"""A field at one time, wherever its plate is stored."""


def finetune(recipe: FinetuneRecipe, program: ProgramRecipe, attempt: Attempt) -> None:
    """Lets a program learn from the drawn boxes, keeps what it made, scores the test boxes."""
    if attempt.rank:
        return _wait_for_rank_0(attempt)
    for name in (SCRATCH, attempt.run.model.name):  # of an attempt that was killed
        shutil.rmtree(attempt.run.folder / name, ignore_errors=True)
    record = read_json(attempt.run.record) or {}
    inputs = as_planned(recipe, resolve_inputs(recipe), record.get("parts", {}))
    objects = [objects_of(box) for box in inputs.learning]
    write_boxes(attempt, objects)
    arm = ProgramArm(recipe, program, attempt, inputs)
    try:
        figures = arm.run(objects, digest(recipe, record.get("inputs", {})))
    except programs.ProgramStopped:
        return attempt.log("stopped while the program ran: the next attempt calls it again")
    finally:
        shutil.rmtree(arm.scratch, ignore_errors=True)
    if figures is None:
        return None
    return finish(recipe, attempt, 0, figures, {})


def _wait_for_rank_0(attempt: Attempt) -> None:
    """Returns when rank 0 has ended: srun ends all ranks a minute after the first one has left."""
    while not attempt.stopping.wait(POLL_S):
        record = read_json(attempt.folder / "rank-0.json") or {}
        if "exit" in record or attempt.run.summary() is not None:
            return


@dataclass(frozen=True)
class ProgramArm:
    """A program, and the boxes of a run."""

    recipe: FinetuneRecipe
    program: ProgramRecipe
    attempt: Attempt
    inputs: FinetuneInputs

    @property
    def model(self) -> Path:
        """The folder that training fills, and that is kept; empty where nothing is trained."""
        return self.attempt.run.model / PROGRAM

    def run(self, objects: Sequence[BoxObjects], recipe_digest: str) -> dict[str, float] | None:
        """Trains, keeps the model and scores it; returns the figures, or None if the attempt is to stop."""
        recipe, attempt = self.recipe, self.attempt
        object_count = sum(entry.count for entry in objects)
        start = time.monotonic()
        evidence = self.leave_out()
        self.model.mkdir(parents=True, exist_ok=True)
        if recipe.n != 0:
            attempt.log(f"{many(len(objects), 'box')}, {many(object_count, 'object')}")
            attempt.log(f"{recipe.arm} has learnt{self.train(self.inputs.learning, self.model)}")
        seconds = time.monotonic() - start if recipe.n != 0 else 0.0
        self.save(object_count, recipe_digest)
        labels = self.predicted(self.inputs.testing, self.model)
        rows = score_boxes(
            recipe, attempt, World(), self.inputs, lambda box, _: (labels[field_of(box)], None)
        )
        if rows is None:
            return None
        scores = main_figures(rows, recipe)
        if evidence is not None and evidence.scores:
            scores["left_out"] = round(float(np.mean(evidence.scores)), 5)
        cost = {"boxes": len(objects), "objects": object_count, "steps": 0, "seconds": round(seconds, 1)}
        return scores | cost

    def train(self, boxes: Sequence[Box], model: Path) -> str:
        """Lets the program learn from boxes; returns what it has printed last."""
        pairs = ((inside(self.read(box), box.at(box.level)), box.drawn(box.level)) for box in boxes)
        stopping = self.attempt.stopping
        return programs.train(self.program, pairs, model, self.scratch, seed_of(self.recipe), stopping)

    def predicted(self, boxes: Sequence[Box], model: Path | None) -> dict[Place, Labels]:
        """Returns the labels of the whole fields of boxes, all segmented in one call of the program."""
        fields = {field_of(box): box for box in boxes}
        if not fields:
            return {}
        self.attempt.log(f"{self.recipe.arm} segments {many(len(fields), 'field')}")
        images = (self.read(box) for box in fields.values())
        labels = programs.predict(self.program, images, model, self.scratch, self.attempt.stopping)
        # Only where a smallest area is asked for: a program has its own, and the network's is fitted to maps.
        min_area = self.recipe.objects.min_area or 0
        return {
            place: drop_small(field_labels, min_area)[0]
            for place, field_labels in zip(fields, labels, strict=True)
        }

    def read(self, box: Box) -> Pixels:
        """Returns the field of a box (source, y, x), in counts."""
        view = programs.in_counts(box.plate.view)
        sources: Pixels = replace(box.plate, view=view).read(box.key, box.time)[0]
        return sources

    @property
    def scratch(self) -> Path:
        return self.attempt.run.folder / SCRATCH

    def leave_out(self) -> Evidence | None:
        """Scores boxes by the program when it has not learnt from them; None: nothing asks for it.

        Writes `left_out.json`. A program that learns nothing has seen no box, so that one call tells all.
        """
        recipe, score_by_piece = self.recipe, dict[int, float]()
        if recipe.is_zero_shot and recipe.left_out == "auto" and not recipe.train_on_all:
            folds = [[piece for fold in deal(draw(self.inputs.pool, "all", recipe.draw)) for piece in fold]]
        elif leaves_out(recipe):
            folds = deal(self.inputs.learning)
        else:
            return None
        pieces = [piece for fold in folds for piece in fold]
        for number, fold_pieces in enumerate(folds):
            training_boxes = [piece.box for piece in pieces if piece not in fold_pieces]
            model = self.scratch / f"fold-{number}" if training_boxes else None
            if model:
                self.attempt.log(
                    f"fold {number + 1} of {len(folds)} is left out; {recipe.arm} learns from the others"
                )
                self.train(training_boxes, model)
            labels = self.predicted([piece.box for piece in fold_pieces], model)
            for piece in fold_pieces:
                predicted_labels = inside(labels[field_of(piece.box)], piece.box.at(piece.box.level))
                truth = piece.box.drawn(piece.box.level)
                score_by_piece[pieces.index(piece)] = piece_score(
                    recipe.objects.kind, piece, truth, predicted_labels
                )
        evidence = Evidence(None, tuple(score_by_piece[number] for number in range(len(pieces))))
        write_evidence(recipe, self.attempt, pieces, evidence)
        return evidence

    def save(self, object_count: int, recipe_digest: str) -> None:
        """Writes the contract, beside the folder that training has filled; `object_count`: learnt from."""
        recipe, inputs, study = self.recipe, self.inputs, self.inputs.study
        task = Task(
            labels=recipe.labels, kind=recipe.objects.kind, min_area=recipe.objects.min_area or 0,
            arm=recipe.arm, boxes=len(inputs.learning), objects=object_count,
        )  # fmt: skip
        contract = Contract(
            view=programs.in_counts(study.view), net=inputs.net, predict=recipe.predict, precision="fp32",
            recipe=recipe.model_dump(mode="json"), digest=recipe_digest, split=study.split.digest,
            wells=inputs.wells(recipe.arm), plates=study.fingerprints, step=0, code=hpc_isl.__version__,
            task=task, reference=inputs.reference(), stains=stains_of(study.view, study.indices),
            program=self.program, weights=programs.folder_fingerprint(self.model),
            program_files=programs.command_fingerprint(self.program),
        )  # fmt: skip
        # Last: a folder without a contract holds no model.
        write_atomic(self.attempt.run.model / CONTRACT, json.dumps(contract.to_dict(), indent=1))


def field_of(box: Box) -> Place:
    return *box.field, box.key.acquisition, box.time
