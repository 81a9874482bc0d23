"""Fine-tuning: from a pretrained model and a few annotated boxes to a model that segments."""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from hpc_isl.errors import UserError, many
from hpc_isl.learning.network.checks import check_batchnorm, check_names, check_weights
from hpc_isl.learning.network.limits import check_grid
from hpc_isl.learning.training.batch_plan import (
    check_micro_batches,
    fork_server,
    loading_processes,
    steps_of,
)
from hpc_isl.plates.store import LabelState, former_stamp
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.program import ProgramRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.finetune import sweep
from hpc_isl.stages.finetune.boxes import fingerprint, states, unseen_remarks
from hpc_isl.stages.finetune.boxes import parts as boxes_parts
from hpc_isl.stages.finetune.inputs import (
    FinetuneInputs,
    compares_arms,
    fits_objects,
    frozen_batchnorm,
    guards_start,
    leaves_out,
    resolve_inputs,
)
from hpc_isl.stages.shared.plate_views import expanded, located_net, located_split
from hpc_isl.stages.shared.program import command_fingerprint, located, missing, needs_training
from hpc_isl.stages.shared.workloads import STEPS, TEST, megapixels, micro_batches, training_like
from hpc_isl.tasks import Workload

arrange = sweep.arrange
after_sweep = sweep.after_sweep


def plan(recipe: FinetuneRecipe) -> Plan:
    """Returns what fine-tuning would do; writes nothing.

    Raises:
        UserError: anything that can be known before the job starts: plates, models and their splits,
            labels, the number of boxes, encoder and weights, tiles.
    """
    recipe = _with_absolute_paths(recipe)
    # The last element of a sweep: its arm is known once the others are done.
    if recipe.arm == "best":
        recipe = sweep.best(recipe)
    inputs = resolve_inputs(recipe)
    (_check if recipe.program is None else _check_program)(recipe, inputs)
    labels = states([*inputs.learning, *inputs.testing])
    boxes = {"boxes": inputs.learning, "test boxes": inputs.testing}

    def stamp(image: Path, name: str) -> str:
        return labels[image, name].stamp

    def former_fingerprints() -> dict[str, str]:
        """Returns the boxes' fingerprints as earlier versions computed them, by names and sizes of files."""
        return {name: fingerprint(part_boxes, former_stamp) for name, part_boxes in boxes.items()}

    train = recipe.train
    steps = steps_of(train, len(inputs.learning) * train.crops_per_field) if recipe.n != 0 else 0
    like = training_like("finetune", inputs.net, recipe.predict, inputs.study.view, train)
    # Two more networks, each from half of the boxes in half the steps, are one more training.
    trainings = 2 if leaves_out(recipe) else 1
    units = {STEPS: trainings * micro_batches(train, steps), TEST: megapixels(inputs.tested)}
    # How long another program takes is not known from networks.
    workload = Workload(like | {"kind": recipe.objects.kind}, units) if recipe.program is None else None
    return Plan(
        recipe,
        (*_messages(recipe, inputs), *_edits(labels)),
        _fingerprints(recipe, inputs)
        | {name: fingerprint(part_boxes, stamp) for name, part_boxes in boxes.items()},
        check_size=partial(check_micro_batches, train) if recipe.program is None else lambda size: None,
        precision=("train.precision", train.precision) if recipe.program is None else None,
        parts={name: boxes_parts(part_boxes, stamp) for name, part_boxes in boxes.items()},
        workload=workload,
        former_fingerprints=former_fingerprints,
    )


def finetune(recipe: FinetuneRecipe, attempt: Attempt) -> None:
    """Trains on the drawn boxes, saves the model, scores the test boxes; see `finetuning.finetune`."""
    if recipe.program is not None:
        from hpc_isl.stages.finetune import program_arm

        return program_arm.finetune(recipe, recipe.program, attempt)
    if loading_processes(recipe.data.workers if recipe.data else None, attempt.cpus) and recipe.n != 0:
        fork_server()  # it imports what loading needs while this process imports the rest
    # Imported here because torch and its libraries take seconds, which a plan does not need.
    from hpc_isl.stages.finetune import finetuning

    return finetuning.finetune(recipe, attempt)


def trial(recipe: FinetuneRecipe, attempt: Attempt) -> None:
    """Fine-tunes for ten seconds and scores one test field, to time them; keeps nothing.

    Of another program nothing is timed: it cannot be asked to learn for ten seconds.
    """
    if recipe.program is not None:
        return
    from hpc_isl.stages.finetune import finetuning

    finetuning.trial(recipe, attempt)


# ---------------------------------------------------------------- what a plan consists of


def _with_absolute_paths(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """Returns the recipe with globs expanded and absolute paths: the job may start in another folder."""
    # A program of another arm changes nothing here, and is no reason to compute a network's arm again.
    programs = [located(recipe.program)] if recipe.program else []
    changes: dict[str, object] = {
        "programs": programs if recipe.arm != "best" else recipe.programs,
        "plates": expanded(recipe.plates),
        "pretrained": [run.absolute() for run in recipe.pretrained],
        "drafted": recipe.drafted and recipe.drafted.absolute(),
    }
    if recipe.split:
        changes["split"] = located_split(recipe.split)
    if recipe.net:
        changes["net"] = located_net(recipe.net)
    return recipe.model_copy(update=changes)


def _check_program(recipe: FinetuneRecipe, inputs: FinetuneInputs) -> None:
    if recipe.is_zero_shot and recipe.n != 0:
        raise UserError(f"n={recipe.n}: {needs_training(recipe.arm)}; n=0 scores it as it is")


def _check(recipe: FinetuneRecipe, inputs: FinetuneInputs) -> None:
    check_grid(recipe.predict.tile, recipe.predict.halo)
    check_names(inputs.net)
    start = inputs.start(recipe.arm)
    stain = start.contract.view.normalize.target if start and start.isl else None
    if recipe.objects.head == "stain" and stain == "none":
        raise UserError(
            "objects.head=stain: the pretrained model predicts raw counts, of which no threshold is "
            "calibrated; take one whose data.normalize.target is not none, or objects.head=same"
        )
    if recipe.n == 0 and recipe.arm in ("random", "imagenet"):
        raise UserError(f"n=0: the arm {recipe.arm} knows nothing before it sees an annotation")
    if recipe.arm == "imagenet" and inputs.net.weights is None:
        raise UserError("arm=imagenet: net.weights names no weights; give imagenet, or a file")
    if recipe.n != 0:
        check_batchnorm(inputs.net, recipe.train, len(inputs.study.view.sources), frozen_batchnorm(recipe))


def _fingerprints(recipe: FinetuneRecipe, inputs: FinetuneInputs) -> dict[str, str]:
    """Returns the fingerprints of plates, the split, and the weights that the arm starts from."""
    fingerprints = inputs.study.fingerprints | {"split": inputs.study.split.digest}
    start = inputs.start(recipe.arm)
    if recipe.program is not None:
        fingerprints["program"] = command_fingerprint(recipe.program)
    if start is not None:
        fingerprints["start"] = start.contract.weights
    if recipe.arm == "imagenet":
        file = check_weights(inputs.net, len(inputs.study.view.sources))
        fingerprints["net.weights"] = hashlib.sha256(Path(file or "").read_bytes()).hexdigest()[:32]
    return fingerprints


def _edits(labels: Mapping[tuple[Path, str], LabelState]) -> Iterator[str]:
    if images := sorted(str(image) for (image, _), state in labels.items() if state.edited):
        yield (
            f"labels of {many(len(images), 'image')} were edited (or damaged) since they were written, and "
            f"are taken as they are now: {', '.join(images[:3])}{', …' if len(images) > 3 else ''}"
        )


def _messages(recipe: FinetuneRecipe, inputs: FinetuneInputs) -> Iterator[str]:
    start = inputs.start(recipe.arm)
    origin = f", from {start.folder.parent}" if start else ""
    if recipe.program is not None:
        yield from _program_messages(recipe, recipe.program)
    else:
        yield f"{recipe.objects.kind}, arm {recipe.arm}{origin}: U-Net on {inputs.net.encoder}"
    box_names = ", ".join(f"{box.key} of {box.plate.name}" for box in inputs.learning[:6])
    boxes_text = f": {box_names}" + ", …" * (len(inputs.learning) > 6) if box_names else ""
    yield f"learns from {len(inputs.learning)} of {len(inputs.pool)} annotation boxes{boxes_text}"
    test_counts = Counter((box.labels, box.origin) for box in inputs.testing)
    for (labels, labelled_by), count in test_counts.items():
        yield f"scored on {many(count, 'box')} of {labels!r} ({labelled_by})"
    if not inputs.testing and not recipe.train_on_all:
        yield "no test field has such labels: nothing will be scored"
    if recipe.n != 0 and recipe.program is None:
        train = recipe.train
        length = f"{train.steps} steps" if train.steps else f"{train.epochs} epochs"
        yield f"{length} of {train.batch} crops of {train.crop} × {train.crop} pixels"
    if leaves_out(recipe):
        purposes = [
            "fit h_maxima" * fits_objects(recipe),
            "see whether the start gets any better" * guards_start(recipe),
            "compare the arm" * compares_arms(recipe),
        ]
        cost = "the program learns twice more, from the others"
        if recipe.program is None:
            cost = "two more networks learn from the others, in as many steps together"
        yield (
            f"to {' and '.join(filter(None, purposes))}, boxes are left out in turn: {cost} (left_out=never "
            f"spares {'that' if recipe.program else 'them'})"
        )
    for name in dict.fromkeys([recipe.labels, *recipe.reference_labels]):
        yield from unseen_remarks(inputs.study, name)
    yield from inputs.remarks


def _program_messages(recipe: FinetuneRecipe, program: ProgramRecipe) -> Iterator[str]:
    learns = program.train is not None and recipe.n != 0
    commands = {"train": program.train if learns else None, "predict": program.predict}
    calls = "; ".join(f"{name}: {shlex.join(command)}" for name, command in commands.items() if command)
    yield f"{recipe.objects.kind}, arm {recipe.arm}: another program; {calls}"
    yield f"each call has {program.time_limit_s} s; segment counts {program.memory_gb:g} GB of memory for it"
    for command in filter(None, commands.values()):
        if missing(program, command):
            yield f"warning: there is no {command[0]} here; the job fails unless its node has it"
