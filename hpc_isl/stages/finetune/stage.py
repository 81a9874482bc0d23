"""Fine-tuning: from a pretrained model and a few annotated boxes to a model that segments."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.learning.network.encoders import check_batchnorm, check_names, check_weights
from hpc_isl.learning.network.tiling_grid import check_grid
from hpc_isl.learning.training.forkserver import fork_server, loading_processes
from hpc_isl.learning.training.gradient_accumulation import check_micro_batches, steps_of
from hpc_isl.plates.store import LabelState, former_stamp
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.finetune import sweep
from hpc_isl.stages.finetune.boxes import Box, fingerprint, states
from hpc_isl.stages.finetune.boxes import parts as boxes_parts
from hpc_isl.stages.finetune.inputs import FinetuneInputs, frozen_batchnorm, resolve_inputs
from hpc_isl.stages.shared.plate_views import expanded, located_net, located_split
from hpc_isl.stages.shared.workloads import STEPS, TEST, megapixels, micro_batches, training_like
from hpc_isl.timing import Workload

arrange = sweep.arrange
Labels = Mapping[tuple[Path, str], LabelState]
after_sweep = sweep.after_sweep


def plan(recipe: FinetuneRecipe) -> Plan:
    """What fine-tuning would do; writes nothing.

    Raises:
        UserError: whatever can be known before the job starts: plates, models and their splits, labels, the
            number of boxes, encoder and weights, tiles.
    """
    recipe = _located(recipe)
    if recipe.arm == "best":
        recipe = sweep.best(recipe)
    setting = resolve_inputs(recipe)
    _check(recipe, setting)
    labels = states([*setting.learning, *setting.testing])
    parts = {
        name: boxes_parts(boxes, lambda image, name: labels[image, name].stamp)
        for name, boxes in _drawn(setting).items()
    }
    return Plan(
        recipe, (*_messages(recipe, setting), *_edits(labels)), _inputs(recipe, setting, labels),
        check_size=partial(check_micro_batches, recipe.train),
        precision=("train.precision", recipe.train.precision),
        parts=parts, workload=_workload(recipe, setting), former=partial(_former, setting),
    )  # fmt: skip


def finetune(recipe: FinetuneRecipe, attempt: Attempt) -> None:
    """Trains on the drawn boxes, keeps the model, scores the test boxes.

    A run that is asked to stop saves a checkpoint (or drops the scores it has so far) and returns;
    the next attempt takes it up there.
    """
    if loading_processes(recipe.data.workers if recipe.data else None, attempt.cpus) and recipe.n != 0:
        fork_server()
    from hpc_isl.stages.finetune import training_run  # torch and its libraries: a plan does without

    training_run.finetune(recipe, attempt)


def trial(recipe: FinetuneRecipe, attempt: Attempt) -> None:
    """The same for ten seconds, and one test field: what it takes is timed, not kept."""
    from hpc_isl.stages.finetune import training_run

    training_run.trial(recipe, attempt)


def _workload(recipe: FinetuneRecipe, setting: FinetuneInputs) -> Workload:
    steps = steps_of(recipe.train, len(setting.learning) * recipe.train.crops_per_field)
    like = training_like("finetune", setting.net, recipe.predict, setting.view, recipe.train)
    units = {STEPS: micro_batches(recipe.train, steps if recipe.n != 0 else 0)}
    units[TEST] = megapixels(setting.view, setting.tested)
    return Workload(like | {"kind": recipe.objects.kind}, units)


def _located(recipe: FinetuneRecipe) -> FinetuneRecipe:
    """The same with globs expanded and absolute paths: the job may start in another folder."""
    changes: dict[str, object] = {
        "plates": expanded(recipe.plates),
        "pretrained": [run.absolute() for run in recipe.pretrained],
        "drafted": recipe.drafted and recipe.drafted.absolute(),
    }
    if recipe.split:
        changes["split"] = located_split(recipe.split)
    if recipe.net:
        changes["net"] = located_net(recipe.net)
    return recipe.model_copy(update=changes)


def _check(recipe: FinetuneRecipe, setting: FinetuneInputs) -> None:
    check_grid(recipe.predict.tile, recipe.predict.halo)
    check_names(setting.net)
    setting.start(recipe.arm)
    if recipe.n == 0 and recipe.arm in ("random", "imagenet"):
        raise UserError(f"n=0: the arm {recipe.arm} knows nothing before it sees an annotation")
    if recipe.arm == "imagenet" and setting.net.weights is None:
        raise UserError("arm=imagenet: net.weights names no weights; give imagenet, or a file")
    if recipe.n != 0:
        check_batchnorm(setting.net, recipe.train, len(setting.view.sources), frozen_batchnorm(recipe))


def _inputs(recipe: FinetuneRecipe, setting: FinetuneInputs, labels: Labels) -> dict[str, str]:
    """Fingerprints of plates, boxes, the split, and the weights that the arm starts from."""
    inputs = {index.plate.name: index.fingerprint for index in setting.indices}
    for name, boxes in _drawn(setting).items():
        inputs[name] = fingerprint(boxes, lambda image, name: labels[image, name].stamp)
    inputs["split"] = setting.split.digest
    start = setting.start(recipe.arm)
    if start is not None:
        inputs["start"] = start.contract.weights
    if recipe.arm == "imagenet":
        file = check_weights(setting.net, len(setting.view.sources))
        inputs["net.weights"] = hashlib.sha256(Path(file or "").read_bytes()).hexdigest()[:32]
    return inputs


def _former(setting: FinetuneInputs) -> dict[str, str]:
    """Of the boxes as earlier versions noted them, with labels by their files' names and sizes."""
    return {name: fingerprint(boxes, former_stamp) for name, boxes in _drawn(setting).items()}


def _drawn(setting: FinetuneInputs) -> dict[str, Sequence[Box]]:
    return {"boxes": setting.learning, "test boxes": setting.testing}


def _edits(labels: Labels) -> Iterator[str]:
    if edited := sorted(str(image) for (image, _), state in labels.items() if state.edited):
        yield (
            f"labels of {len(edited)} images were edited (or damaged) since they were written, and are taken "
            f"as they are now: {', '.join(edited[:3])}{', …' if len(edited) > 3 else ''}"
        )


def _messages(recipe: FinetuneRecipe, setting: FinetuneInputs) -> Iterator[str]:
    start = setting.start(recipe.arm)
    of = f", from {start.folder.parent}" if start else ""
    yield f"{recipe.objects.kind}, arm {recipe.arm}{of}: U-Net on {setting.net.encoder}"
    shown = [f"{box.key} of {box.index.plate.name}" for box in setting.learning[:6]]
    which = f": {', '.join(shown)}" + ", …" * (len(setting.learning) > 6) if shown else ""
    yield f"learns from {len(setting.learning)} of {len(setting.pool)} annotation boxes{which}"
    tested = Counter((box.labels, box.origin) for box in setting.testing)
    for (labels, origin), count in tested.items():
        yield f"scored on {count} boxes of {labels!r} ({origin})"
    if not setting.testing and not recipe.train_on_all:
        yield "no test field has such labels: nothing will be scored"
    if recipe.n != 0:
        of_ = recipe.train
        long = f"{of_.steps} steps" if of_.steps else f"{of_.epochs} epochs"
        yield f"{long} of {of_.batch} crops of {of_.crop} × {of_.crop} pixels"
    yield from setting.remarks
