"""The work of pretraining, inside the job: trains, keeps the model, scores what was held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import hpc_isl
from hpc_isl.device import remarks
from hpc_isl.learning.data.calibrate import view_of
from hpc_isl.learning.data.drift import reference_of
from hpc_isl.learning.data.fields import fields_of
from hpc_isl.learning.data.rescale import stains_of
from hpc_isl.learning.data.samples import Crops, crops_of
from hpc_isl.learning.data.split import PARTS, draw
from hpc_isl.learning.data.split import read as read_split
from hpc_isl.learning.data.split import write as write_split
from hpc_isl.learning.data.view import View
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import Contract
from hpc_isl.learning.network.losses import Loss, loss_of, title_of
from hpc_isl.learning.network.unet import build
from hpc_isl.learning.training.batches import batches
from hpc_isl.learning.training.checkpoint import Checkpoints
from hpc_isl.learning.training.forkserver import loading_processes
from hpc_isl.learning.training.gradient_accumulation import check_micro_batches, steps_of
from hpc_isl.learning.training.loop import Hooks, Progress, train
from hpc_isl.learning.training.precision import device_of, name_of, resolve
from hpc_isl.learning.training.prefetch import MicroBatch
from hpc_isl.learning.training.world import World, open_world
from hpc_isl.plates.plate import FieldKey
from hpc_isl.recipes.load import digest
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.run import Attempt
from hpc_isl.stages.pretrain.results import Results, make_results
from hpc_isl.stages.shared.following import after_pretraining
from hpc_isl.stages.shared.held_out import (
    CONSTANT,
    Pixels,
    by_plate_map,
    constant_text,
    figures,
    main_scores,
    predict_field,
    quick_scores,
    score,
)
from hpc_isl.stages.shared.plate_views import PlateViews, open_plates
from hpc_isl.stages.shared.training_log import TrainingLog
from hpc_isl.stages.shared.workloads import TEST, TRIAL_S, VALIDATION, ended_after, megapixels

# Range of a normalised target's values, to which the constants of SSIM as a loss refer.
SPAN = {"percentile": 1.0, "standard": 4.0, "max16": 1.0, "none": 65535.0}


@dataclass(frozen=True)
class TrainingRun:
    """One attempt at a run, and what it works on."""

    recipe: PretrainRecipe
    attempt: Attempt
    world: World
    study: PlateViews
    crops: Crops
    network: nn.Module
    checkpoints: Checkpoints
    ledger: TrainingLog

    @property
    def loss(self) -> Loss:
        of = self.recipe.loss
        return loss_of(of.name, of.pearson, of.ssim, SPAN[self.recipe.data.normalize.target])

    def loss_of_field(self, prediction: Pixels, truth: Pixels) -> float:
        """As in training, over a whole field, (target, y, x) each."""
        return float(self.loss(torch.tensor(prediction)[None], torch.tensor(truth)[None]))

    @property
    def predictor(self) -> Predictor:
        of, device = self.recipe.predict, self.world.device
        dtype = resolve(self.recipe.train.precision, device)
        return Predictor(
            self.network, device, dtype, of.tile, of.halo, of.batch,
            channels_last=self.recipe.net.channels_last,
        )  # fmt: skip

    def own_megapixels(self, part: str) -> float:
        """Of the fields of a part that this rank looks at."""
        own = self.study.places(part)[self.world.rank :: self.world.size]
        return megapixels(self.study.view, own)


def pretrain(recipe: PretrainRecipe, attempt: Attempt) -> None:
    """Trains, keeps the model, scores the test wells, draws pictures, writes the virtual stain.

    A run that is asked to stop saves a checkpoint (or drops the scores it has so far) and returns;
    the next attempt takes it up there.
    """
    results = None
    with open_world(attempt) as world:
        check_micro_batches(recipe.train, world.size)
        course = _prepare(recipe, attempt, world)
        progress, finished = _train(course)
        step = progress.best_step if recipe.train.patience and progress.best_step else progress.step
        if finished:
            _keep_model(course, step)
            of = recipe.loss
            results = make_results(
                course.study, course.predictor, attempt, world, recipe.labels, recipe.predict.stain,
                title_of(of.name, of.pearson, of.ssim),
            )  # fmt: skip
    if results is None:
        attempt.stopping.set()  # one rank was asked to stop; now all of them know
    else:
        attempt.metric(step, **{f"test/{name}": value for name, value in main_scores(results.rows).items()})
        if blind := figures(results.rows).get(CONSTANT):
            attempt.log(f"test wells: {constant_text(blind)}")
        attempt.finish(_summary(course, results, step))


def trial(recipe: PretrainRecipe, attempt: Attempt) -> None:
    """Trains for a while, then looks at a field of those that validate and test; keeps nothing."""
    with open_world(attempt) as world:
        course = _prepare(recipe, attempt, world)
        with ended_after(attempt, TRIAL_S):
            _train(course)
        for part, phase in (("validation", VALIDATION), ("test", TEST)):
            attempt.clock.tick("between", 1)
            for place in course.study.places(part)[:1]:
                for seen in predict_field(course.study, course.predictor, place):
                    score(course.study, seen, recipe.labels)
                attempt.clock.tick(phase, megapixels(course.study.view, [place]))


def _prepare(recipe: PretrainRecipe, attempt: Attempt, world: World) -> TrainingRun:
    """Opens what is needed. Rank 0 decides the split and the view; the others take them over."""
    indices = open_plates(recipe.plates)
    path = attempt.run.folder / "split.csv"
    if world.rank == 0 and not path.exists():
        write_split(draw(indices, recipe.split), path)
    world.barrier()
    split = read_split(path)
    view = view_of(indices, split, recipe).to_dict() if world.rank == 0 else {}
    study = PlateViews(indices, split, View.from_dict(world.broadcast(view)))
    crops = crops_of(study.view, indices, split, recipe.train, recipe.augment, recipe.control)
    for line in crops.messages:
        attempt.log(line)
    fingerprints = {index.plate.name: index.fingerprint for index in indices}
    key = digest(recipe, fingerprints | {"split": split.digest})
    return TrainingRun(
        recipe, attempt, world, study, crops,
        build(recipe.net, len(study.view.sources), len(study.view.targets), recipe.train.seed),
        Checkpoints(attempt.run.checkpoints, key, recipe.train.keep, attempt.log),
        TrainingLog(
            attempt, steps_of(recipe.train, len(crops)), recipe.train.batch,
            check_micro_batches(recipe.train, world.size),
        ),
    )  # fmt: skip


def _train(course: TrainingRun) -> tuple[Progress, bool]:
    recipe, world, attempt, steps = course.recipe, course.world, course.attempt, course.ledger.steps
    workers = loading_processes(recipe.data.workers, attempt.cpus)
    attempt.log(
        f"training: {world.size} process{'es' * (world.size > 1)} on {world.device.type}, each with "
        f"{torch.get_num_threads()} threads and {workers} loading processes"
    )
    for line in remarks("train.precision", recipe.train.precision, [device_of(world.device)]):
        attempt.log(line)

    def from_step(first: int) -> Iterator[MicroBatch]:
        return batches(course.crops, recipe.train, world.rank, world.size, first, steps, workers)

    hooks = Hooks(
        batches=from_step,
        stopping=attempt.stopping.is_set,
        report=course.ledger.step,
        evaluate=partial(_validate, course) if course.study.places("validation") else None,
        describe=partial(_describe, course),
    )
    return train(
        course.network, course.loss, hooks, recipe.train, recipe.optim, steps, world, course.checkpoints,
        recipe.net.channels_last,
    )  # fmt: skip


def _validate(course: TrainingRun, step: int) -> float | None:
    stopping = course.attempt.stopping.is_set
    places = course.study.places("validation")
    found = quick_scores(course.study, course.predictor, places, course.world, stopping, course.loss_of_field)
    course.attempt.clock.tick(VALIDATION, course.own_megapixels("validation"))
    if found is None:
        return None
    course.ledger.validated(step, found)
    return found["pcc"]


def _describe(course: TrainingRun, step: int, micro: int) -> str:
    """Which fields a micro-batch is made of."""
    of = course.recipe.train
    start = step * of.batch + micro * of.micro_batch
    fields = [course.crops.field(number) for number in range(start, start + of.micro_batch)]
    names = list(dict.fromkeys(f"{field.plate} {field.key}" for field in fields))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more fields" if len(names) > 3 else "")


def _keep_model(course: TrainingRun, step: int) -> None:
    recipe, study = course.recipe, course.study
    if course.world.rank:
        return
    contract = Contract(
        view=study.view,
        net=recipe.net,
        predict=recipe.predict,
        precision=name_of(resolve(recipe.train.precision, course.world.device)),
        recipe=recipe.model_dump(mode="json"),
        digest=course.checkpoints.digest,
        split=study.split.digest,
        wells={part: _units(study, part, recipe.split.by) for part in PARTS},
        plates={index.plate.name: index.fingerprint for index in study.indices},
        step=step,
        code=hpc_isl.__version__,
        reference=reference_of(study.view, study.indices, _training(study)),
        stains=stains_of(study.view, study.indices),
    )
    model.save(course.attempt.run.model, course.network, contract)


def _training(study: PlateViews) -> list[tuple[FieldKey, ...]]:
    """The training fields of each plate."""
    return [fields_of(study.view, index, study.split, "train") for index in study.indices]


def _units(study: PlateViews, part: str, by: str) -> dict[str, list[str]]:
    """Plate -> wells of a part, or fields as in B03/1 where the split is by field."""
    found: dict[str, set[str]] = {index.plate.name: set() for index in study.indices}
    for index, key in study.places(part):
        found[index.plate.name].add(key.well if by == "well" else f"{key.well}/{key.name}")
    return {name: sorted(units) for name, units in found.items()}


def _summary(course: TrainingRun, results: Results, step: int) -> dict[str, Any]:
    arm = "imagenet+isl" if course.recipe.net.weights else "random+isl"
    return {
        "figures": figures(results.rows) | {"steps": step},
        "by": by_plate_map(course.study, results.rows),
        "made": {"model": str(course.attempt.run.model), **results.made},
        "next": after_pretraining(course.study, arm) if course.world.rank == 0 else [],
    }
