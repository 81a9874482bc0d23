"""Pretraining inside the job: trains, saves the model, scores the test wells."""

from __future__ import annotations

from hpc_isl.learning.data.calibrate import view_of
from hpc_isl.learning.data.drift import reference_of
from hpc_isl.learning.data.samples import crops_of
from hpc_isl.learning.data.split import PARTS, draw
from hpc_isl.learning.data.split import read as read_split
from hpc_isl.learning.data.split import write as write_split
from hpc_isl.learning.data.view import View
from hpc_isl.learning.network.losses import loss_of
from hpc_isl.learning.network.unet import build
from hpc_isl.learning.training.batch_plan import check_micro_batches
from hpc_isl.learning.training.world import World, open_world
from hpc_isl.recipes.load import digest
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.run import Attempt
from hpc_isl.stages.pretrain.results import make_results
from hpc_isl.stages.shared import held_out
from hpc_isl.stages.shared.following import after_pretraining
from hpc_isl.stages.shared.plate_views import PlateViews, open_plates
from hpc_isl.stages.shared.training_run import TrainingRun
from hpc_isl.stages.shared.workloads import TEST, TRIAL_S, VALIDATION, ended_after, megapixels

# Range of a normalised target's values, to which the constants of SSIM as a loss refer.
SPAN = {"percentile": 1.0, "standard": 4.0, "max16": 1.0, "none": 65535.0}


def pretrain(recipe: PretrainRecipe, attempt: Attempt) -> None:
    """Trains, saves the model, scores the test wells, draws pictures, writes the virtual stain.

    A run that is asked to stop saves a checkpoint (or drops the scores it has so far) and returns;
    the next attempt resumes there.
    """
    results, step = None, 0
    with open_world(attempt) as world:
        run = _open_run(recipe, attempt, world)
        progress, finished = run.train(run.study.fields("validation"))
        if finished:
            # With patience the network holds the weights of the best step, not those of the last one.
            step = progress.best_step if recipe.train.patience and progress.best_step else progress.step
            wells = {part: _wells(run.study, part, recipe.split.by) for part in PARTS}
            training = [run.study.keys(index, "train") for index in run.study.indices]
            run.save_model(step, wells, reference_of(run.study.view, run.study.indices, training))
            results = make_results(run)
    if results is None:
        attempt.stopping.set()  # one rank was asked to stop; now all of them know
        return
    rows, made = results
    attempt.metric(step, **{f"test/{name}": value for name, value in held_out.main_scores(rows).items()})
    if constant := held_out.figures(rows).get(held_out.CONSTANT):
        attempt.log(f"test wells: {held_out.constant_text(constant)}")
    arm = "imagenet+isl" if recipe.net.weights else "random+isl"
    attempt.finish({
        "figures": held_out.figures(rows) | {"steps": step},
        "by": held_out.by_plate_map(run.study, rows),
        "made": {"model": str(attempt.run.model), **made},
        "next": after_pretraining(run.study, arm) if run.world.rank == 0 else [],
    })  # fmt: skip


def trial(recipe: PretrainRecipe, attempt: Attempt) -> None:
    """Trains for a while, then scores a validation field and a test field; keeps nothing."""
    with open_world(attempt) as world:
        run = _open_run(recipe, attempt, world)
        with ended_after(attempt, TRIAL_S):
            run.train(run.study.fields("validation"))
        for part, phase in (("validation", VALIDATION), ("test", TEST)):
            attempt.clock.tick("between", 1)
            for field in run.study.fields(part)[:1]:
                for predicted in held_out.predict_field(run.predictor(), field):
                    held_out.score(predicted, recipe.labels)
                attempt.clock.tick(phase, megapixels([field]))


def _open_run(recipe: PretrainRecipe, attempt: Attempt, world: World) -> TrainingRun[PretrainRecipe]:
    """Opens plates and network. Rank 0 decides the split and the view; the other ranks receive them."""
    check_micro_batches(recipe.train, world.size)
    indices = open_plates(recipe.plates)
    path = attempt.run.folder / "split.csv"
    if world.rank == 0 and not path.exists():
        write_split(draw(indices, recipe.split), path)
    world.barrier()
    split = read_split(path)
    # One rank decides: percentiles must be the same bits on all.
    view = view_of(indices, split, recipe).to_dict() if world.rank == 0 else {}
    study = PlateViews(recipe, View.from_dict(world.broadcast(view)), split, indices)
    crops = crops_of(study.view, indices, split, recipe.train, recipe.augment, recipe.control)
    for line in crops.messages:
        attempt.log(line)
    network = build(recipe.net, len(study.view.sources), len(study.view.targets), recipe.train.seed)
    span = SPAN[recipe.data.normalize.target]
    return TrainingRun(
        recipe, attempt, world, study, recipe.net, network, crops,
        loss_of(recipe.loss.name, recipe.loss.pearson, recipe.loss.ssim, span),
        digest(recipe, study.fingerprints | {"split": split.digest}),
    )  # fmt: skip


def _wells(study: PlateViews, part: str, by: str) -> dict[str, list[str]]:
    """Returns plate -> wells of a part, or fields as in B03/1 where the split is by field."""
    units: dict[str, set[str]] = {index.plate.name: set() for index in study.indices}
    for plate, key in study.fields(part):
        units[plate.name].add(key.well if by == "well" else f"{key.well}/{key.name}")
    return {name: sorted(own) for name, own in units.items()}
