"""Fine-tuning: from a pretrained model and a few annotated boxes to a model that segments."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from hpc_isl.learning.encoders import check_batchnorm, check_names, check_weights
from hpc_isl.learning.forking import fork_server, loading_processes
from hpc_isl.learning.shares import check_shares
from hpc_isl.learning.stride import check_grid
from hpc_isl.mistake import Mistake
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.finetuning import sweep
from hpc_isl.stages.finetuning.boxes import fingerprint
from hpc_isl.stages.finetuning.setting import Setting, held_norms, settle
from hpc_isl.stages.shared.study import expanded, located_net, located_split

arrange = sweep.arrange


def plan(recipe: FinetuneRecipe) -> Plan:
    """What fine-tuning would do; writes nothing.

    Raises:
        Mistake: whatever can be known before the job starts: plates, models and their splits, labels, the
            number of boxes, encoder and weights, tiles.
    """
    recipe = _located(recipe)
    if recipe.arm == "best":
        recipe = sweep.best(recipe)
    setting = settle(recipe)
    _check(recipe, setting)
    inputs = _inputs(recipe, setting)
    size = partial(check_shares, recipe.train)
    return Plan(recipe, tuple(_says(recipe, setting)), inputs, check_size=size)


def finetune(recipe: FinetuneRecipe, attempt: Attempt) -> None:
    """Trains on the drawn boxes, keeps the model, scores the test boxes.

    A run that is asked to stop saves a checkpoint (or drops the scores it has so far) and returns;
    the next attempt takes it up there.
    """
    if loading_processes(recipe.data.workers if recipe.data else None, attempt.cpus) and recipe.n != 0:
        fork_server()
    from hpc_isl.stages.finetuning import work  # torch and its libraries: a plan does without

    work.finetune(recipe, attempt)


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


def _check(recipe: FinetuneRecipe, setting: Setting) -> None:
    check_grid(recipe.predict.tile, recipe.predict.halo)
    check_names(setting.net)
    setting.start(recipe.arm)
    if recipe.n == 0 and recipe.arm in ("random", "imagenet"):
        raise Mistake(f"n=0: the arm {recipe.arm} knows nothing before it sees an annotation")
    if recipe.arm == "imagenet" and setting.net.weights is None:
        raise Mistake("arm=imagenet: net.weights names no weights; give imagenet, or a file")
    if recipe.n != 0:
        check_batchnorm(setting.net, recipe.train, len(setting.view.sources), held_norms(recipe))


def _inputs(recipe: FinetuneRecipe, setting: Setting) -> dict[str, str]:
    """Fingerprints of plates, boxes, the split, and the weights that the arm starts from."""
    inputs = {index.plate.name: index.fingerprint for index in setting.indices}
    inputs |= {"boxes": fingerprint(setting.learning), "test boxes": fingerprint(setting.testing)}
    inputs["split"] = setting.split.digest
    start = setting.start(recipe.arm)
    if start is not None:
        inputs["start"] = start.contract.weights
    if recipe.arm == "imagenet":
        file = check_weights(setting.net, len(setting.view.sources))
        inputs["net.weights"] = hashlib.sha256(Path(file or "").read_bytes()).hexdigest()[:32]
    return inputs


def _says(recipe: FinetuneRecipe, setting: Setting) -> Iterator[str]:
    start = setting.start(recipe.arm)
    of = f", from {start.folder.parent}" if start else ""
    yield f"{recipe.objects.kind}, arm {recipe.arm}{of}: U-Net on {setting.net.encoder}"
    shown = [f"{box.key} of {box.index.plate.name}" for box in setting.learning[:6]]
    which = f": {', '.join(shown)}" + ", …" * (len(setting.learning) > 6) if shown else ""
    yield f"learns from {len(setting.learning)} of {len(setting.pool)} annotation boxes{which}"
    tested = Counter((box.labels, box.origin) for box in setting.testing)
    for (labels, origin), count in tested.items():
        yield f"scored on {count} boxes of {labels!r} ({origin})"
    if not setting.testing and not recipe.everything:
        yield "no test field has such labels: nothing will be scored"
    if recipe.n != 0:
        of_ = recipe.train
        long = f"{of_.steps} steps" if of_.steps else f"{of_.epochs} epochs"
        yield f"{long} of {of_.batch} crops of {of_.crop} × {of_.crop} pixels"
    yield from setting.remarks
