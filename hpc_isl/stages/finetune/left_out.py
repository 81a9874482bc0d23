"""Boxes left out in turn: each is predicted by a network of the same start that learnt from the others.

The boxes of a draw are dealt to two folds, and for each fold a network learns from the other one. So no
annotation is spent beyond the N of the draw, and yet there are predictions of objects that a network has not
seen: they fit what parts cells, decide whether training made the start any better, and let a sweep choose its
final model without a look at test fields.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from hpc_isl.files import write_atomic
from hpc_isl.learning.network.contract import Task
from hpc_isl.objects.confidence import Calibration, calibrate, measures
from hpc_isl.objects.matching import inside, match
from hpc_isl.objects.scores import mask_iou
from hpc_isl.objects.types import AnyLabels, Pixels
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.run import Attempt
from hpc_isl.stages.finetune.arm import crops_of, network_of, optimizer_groups, start_task
from hpc_isl.stages.finetune.boxes import Box, by_field
from hpc_isl.stages.finetune.fit import LeftOut, Piece, fit, standard_error, without_cut
from hpc_isl.stages.finetune.inputs import FinetuneInputs, fits_objects
from hpc_isl.stages.shared.decoding import Rule, decode, rule_of
from hpc_isl.stages.shared.following import LEFT_OUT
from hpc_isl.stages.shared.training_run import TrainingRun

FOLDS = 2


@dataclass(frozen=True)
class Evidence:
    """The evidence of the boxes left out about a run.

    Attributes:
        task: with what parts cells, fitted where the recipe asks for it, and with the confidence of objects.
        scores: of each piece by the network that did not learn from it: IoU of nuclei, mAP of cells.
        start_scores: of the same pieces before any training; empty where the start segments nothing.
    """

    task: Task | None
    scores: tuple[float, ...] = ()
    start_scores: tuple[float, ...] = ()

    @property
    def kept_scores(self) -> tuple[float, ...]:
        """The scores of what is kept: of the start, or of what training made of it."""
        return self.start_scores if self.keeps_start else self.scores

    @property
    def keeps_start(self) -> bool:
        """Whether training is not shown to be better than the start: by more than one standard error."""
        if not self.start_scores:
            return False
        gain = np.subtract(self.scores, self.start_scores)
        return bool(gain.mean() <= standard_error(gain))


def deal(boxes: Sequence[Box]) -> list[list[Piece]]:
    """Returns the pieces of each fold: whole fields in turn, or single boxes, or the halves of the only box.

    An empty list: too little is annotated to leave any of it out.
    """
    if not boxes:
        return []
    if len(boxes) == 1:
        return [[half] for half in _halves(boxes[0])]
    fields: dict[tuple[str, str, str], list[Box]] = {}
    for box in boxes:
        fields.setdefault(box.field, []).append(box)
    groups = list(fields.values()) if len(fields) > 1 else [[box] for box in boxes]
    return [[Piece(box) for group in groups[fold::FOLDS] for box in group] for fold in range(FOLDS)]


def _halves(box: Box) -> list[Piece]:
    """Returns the halves of a box along its longer side, with a strip of one object's length between them."""
    labels = box.drawn(level=0)
    axis = int(np.argmax(labels.shape))
    places = [place[axis] for place in find_objects(labels.astype(np.int64)) if place is not None]
    strip = ceil(np.median([place.stop - place.start for place in places])) if places else 0
    start, stop = box.corners[axis], box.corners[axis + 2]
    first_end, second_start = (start + stop - strip) // 2, (start + stop + strip) // 2
    if not start < first_end < second_start < stop:
        return []
    y0, x0, y1, x1 = box.corners
    first_corners = (y0, x0, first_end, x1) if axis == 0 else (y0, x0, y1, first_end)
    second_corners = (second_start, x0, y1, x1) if axis == 0 else (y0, second_start, y1, x1)
    return [
        Piece(replace(box, corners=first_corners), (axis, -1)),
        Piece(replace(box, corners=second_corners), (axis, 0)),
    ]


def leave_out(run: TrainingRun[FinetuneRecipe], inputs: FinetuneInputs, task: Task) -> Evidence | None:
    """Trains a network for each fold on the others and predicts it; None: the run was asked to stop.

    A fold's network that has learnt is found again in its last checkpoint, so that a later attempt continues
    there. Writes `left_out.json` into the run folder.
    """
    recipe, attempt, world = run.recipe, run.attempt, run.world
    folds, task_of_start = deal(inputs.learning), start_task(recipe, inputs, task)
    left_out: list[LeftOut] = []
    for number, pieces in enumerate(folds):
        training_boxes = [
            piece.box for other_pieces in folds if other_pieces is not pieces for piece in other_pieces
        ]
        network = network_of(recipe, inputs, run.net, task)
        attempt.log(f"fold {number + 1} of {len(folds)} is left out and predicted by a network of the others")
        fold = replace(
            run, network=network, crops=crops_of(recipe, training_boxes), fold=number,
            groups=optimizer_groups(recipe, network), share_of_steps=1 - 1 / len(folds),
        )  # fmt: skip
        start_predictions = _predict(fold, pieces) if task_of_start else [None] * len(pieces)
        _, finished = fold.train()
        if not finished:
            return None
        left_out += map(LeftOut, pieces, _predict(fold, pieces), start_predictions)
    fitted: dict[str, Any] | None = None
    confidence: dict[str, Any] | None = None
    if fits_objects(recipe) and any(entry.truth.any() for entry in left_out):
        task, fitted = fit(task, recipe.objects, left_out)
    evidence, objects = _evidence(recipe, task, task_of_start, left_out)
    if left_out:
        calibration = _confidence(left_out, objects)
        evidence = replace(evidence, task=replace(task, confidence=calibration.weights))
        confidence = calibration.figures
    # Every rank has all predictions, but one of them decides: a last bit must not part the ranks.
    evidence, fitted, confidence = world.broadcast((evidence, fitted, confidence))
    if world.rank == 0:
        write_evidence(recipe, attempt, [entry.piece for entry in left_out], evidence, fitted, confidence)
    return evidence


def write_evidence(
    recipe: FinetuneRecipe, attempt: Attempt, pieces: Sequence[Piece], evidence: Evidence,
    fitted: dict[str, Any] | None = None, confidence: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes `left_out.json`, from which a sweep chooses its final model, and logs what it says."""
    content = {
        "pieces": [piece.box.name for piece in pieces], "scores": evidence.scores,
        "start_scores": evidence.start_scores, "keeps_start": evidence.keeps_start,
        "kept_scores": evidence.kept_scores, "fit": fitted, "confidence": confidence,
    }  # fmt: skip
    write_atomic(attempt.run.folder / LEFT_OUT, json.dumps(content, indent=1))
    for line in _messages(recipe, evidence, fitted, confidence):
        attempt.log(line)


def _predict(run: TrainingRun[FinetuneRecipe], pieces: Sequence[Piece]) -> list[Pixels]:
    """Returns the prediction of each piece; the ranks share the fields, each predicted whole and once."""
    predictor, predictions = run.predictor(), []
    for boxes in by_field([piece.box for piece in pieces])[run.world.rank :: run.world.size]:
        first_box = next(iter(boxes.values()))
        sources, _ = first_box.plate.read(first_box.key, first_box.time)
        prediction = predictor(sources)
        predictions += [
            (number, inside(prediction, box.at(box.level)).copy()) for number, box in boxes.items()
        ]
    gathered = dict(pair for rank_predictions in run.world.gather(predictions) for pair in rank_predictions)
    return [gathered[number] for number in range(len(pieces))]


@dataclass(frozen=True)
class _PieceObjects:
    """The objects of each piece as one network, or its start, predicts them.

    Attributes:
        threshold: logit of the mask above which a pixel is of an object.
    """

    predictions: Sequence[Pixels]
    labels: Sequence[AnyLabels]
    threshold: float


def _evidence(
    recipe: FinetuneRecipe, task: Task, task_of_start: Task | None, left_out: Sequence[LeftOut]
) -> tuple[Evidence, _PieceObjects]:
    """Returns the evidence, and the objects that are found by what is kept."""

    def objects_of(predictions: Sequence[Pixels], rule: Rule) -> _PieceObjects:
        labels = [decode(prediction, rule)[0] for prediction in predictions]
        return _PieceObjects(predictions, labels, rule.threshold)

    def scores(objects: _PieceObjects) -> tuple[float, ...]:
        return tuple(
            piece_score(recipe.objects.kind, entry.piece, entry.truth, labels)
            for entry, labels in zip(left_out, objects.labels, strict=True)
        )

    trained_objects = objects_of([entry.prediction for entry in left_out], rule_of(task))
    start_predictions = [entry.start for entry in left_out if entry.start is not None]
    if not start_predictions:
        return Evidence(task, scores(trained_objects)), trained_objects
    start_objects = objects_of(start_predictions, rule_of(task_of_start))
    evidence = Evidence(task, scores(trained_objects), scores(start_objects))
    return evidence, start_objects if evidence.keeps_start else trained_objects


def _confidence(left_out: Sequence[LeftOut], objects: _PieceObjects) -> Calibration:
    """Learns the confidence of objects from those that are found in the pieces."""
    values, is_right = [], []
    for entry, prediction, labels in zip(left_out, objects.predictions, objects.labels, strict=True):
        labels = without_cut(labels, entry.truth, entry.piece.edge)
        truth = without_cut(entry.truth, entry.truth, entry.piece.edge)
        values.append(measures(labels, prediction, objects.threshold))
        names: NDArray[Any] = np.setdiff1d(labels, [0])
        is_right.append(np.isin(names, match(labels, truth).prediction))
    return calibrate(values, is_right)


def piece_score(kind: str, piece: Piece, drawn: AnyLabels, labels: AnyLabels) -> float:
    """Returns the IoU of a piece's mask, or the mAP of its cells, with the objects drawn in it."""
    truth = without_cut(drawn, drawn, piece.edge)
    labels = without_cut(labels, drawn, piece.edge)
    return mask_iou(labels, truth) if kind == "nuclei" else match(labels, truth).mean_ap()


def _messages(
    recipe: FinetuneRecipe, evidence: Evidence, fitted: dict[str, Any] | None,
    confidence: dict[str, Any] | None,
) -> list[str]:  # fmt: skip
    name = "IoU" if recipe.objects.kind == "nuclei" else "mAP"
    if not evidence.scores:
        return ["too little is annotated to leave a part of it out: nothing is fitted or checked"]
    lines = [f"left out in turn: {name} {np.mean(evidence.scores):.3f} over {len(evidence.scores)} pieces"]
    if fitted:
        lines.append(
            f"h_maxima={fitted['h_maxima']:g}, mask_threshold={fitted['mask_threshold']:g}, "
            f"min_area={fitted['min_area']}: fitted on {fitted['objects']} objects ({name} "
            f"{fitted['mAP_usual']:.3f} before, with the usual h_maxima={fitted['usual']:g})"
        )
    if evidence.start_scores:
        verdict = "the start is kept" if evidence.keeps_start else "training is kept"
        lines.append(f"the start has {name} {np.mean(evidence.start_scores):.3f} there: {verdict}")
    if confidence and "auroc" in confidence:
        lines.append(
            f"confidence of {confidence['objects']} objects: AUROC {confidence['auroc']:.2f}, Brier score "
            f"{confidence['brier']:.2f} (by area alone {confidence['area_auroc']:.2f}, "
            f"{confidence['area_brier']:.2f})"
        )
    return lines
