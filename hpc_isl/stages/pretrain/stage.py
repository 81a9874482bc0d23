"""Pretraining: from whole plates to a model that predicts their stains from label-free planes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from math import ceil

from hpc_isl.errors import UserError, many, nearest
from hpc_isl.learning.data.fields import image_key
from hpc_isl.learning.data.samples import Crops
from hpc_isl.learning.data.split import PARTS
from hpc_isl.learning.network.checks import check_batchnorm, check_names, check_weights
from hpc_isl.learning.network.limits import check_grid
from hpc_isl.learning.training.batch_plan import (
    check_micro_batches,
    fork_server,
    loading_processes,
    steps_of,
)
from hpc_isl.plates.store import label_names
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.training import PlaneRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.shared import plate_views, workloads
from hpc_isl.stages.shared.plate_views import PlateViews, load_plate_views, name_of
from hpc_isl.stages.shared.workloads import megapixels
from hpc_isl.tasks import Workload

SELDOM = 10**9


def plan(recipe: PretrainRecipe) -> Plan:
    """Returns what pretraining would do; writes nothing, but downloads encoder weights into the cache.

    Raises:
        UserError: anything that can be known before the job starts: plates, channels, split, crops,
            encoder and its weights, tiles, labels.
    """
    check_names(recipe.net)
    check_grid(recipe.predict.tile, recipe.predict.halo)
    # Absolute paths, because the job may start in another folder.
    paths = {
        "plates": plate_views.expanded(recipe.plates),
        "net": plate_views.located_net(recipe.net),
        "split": plate_views.located_split(recipe.split),
    }
    recipe = recipe.model_copy(update=paths)
    _refuse_copying(recipe)
    study, crops = load_plate_views(recipe)
    _check_labels(recipe, study)
    weights = check_weights(recipe.net, len(study.view.sources))
    check_batchnorm(recipe.net, recipe.train, len(study.view.sources))
    # The inputs are part of the digest: other pixels or weights make it another run.
    inputs = study.fingerprints
    if weights is not None:
        inputs["net.weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()[:32]
    train, steps = recipe.train, steps_of(recipe.train, len(crops))
    like = workloads.training_like("pretrain", recipe.net, recipe.predict, study.view, train)
    units = {
        workloads.STEPS: workloads.micro_batches(train, steps),
        workloads.TEST: megapixels(study.fields("test")),
        workloads.VALIDATION: ceil(steps / train.evaluate_every) * megapixels(study.fields("validation")),
    }
    return Plan(
        recipe, tuple(_messages(recipe, study, crops)), inputs,
        check_size=partial(check_micro_batches, train), precision=("train.precision", train.precision),
        workload=Workload(like | {"stain": recipe.predict.stain}, units),
    )  # fmt: skip


def pretrain(recipe: PretrainRecipe, attempt: Attempt) -> None:
    """Trains, saves the model, scores the test wells; see `pretraining.pretrain`."""
    if loading_processes(recipe.data.workers, attempt.cpus):
        fork_server()  # it imports what loading needs while this process imports the rest
    # Imported here because torch and its libraries take seconds, which a plan does not need.
    from hpc_isl.stages.pretrain import pretraining

    pretraining.pretrain(recipe, attempt)


def trial(recipe: PretrainRecipe, attempt: Attempt) -> None:
    """Pretrains for ten seconds and scores a field of each kind, to time them; keeps nothing."""
    from hpc_isl.stages.pretrain import pretraining

    pretraining.trial(recipe, attempt)


def trial_recipe(recipe: PretrainRecipe) -> PretrainRecipe:
    """Returns the recipe without the validations and checkpoints, which a trial times separately."""
    train = recipe.train.model_copy(update={"evaluate_every": SELDOM, "checkpoint_every": SELDOM})
    return recipe.model_copy(update={"train": train})


# ---------------------------------------------------------------- checks and messages of a plan


def _check_labels(recipe: PretrainRecipe, study: PlateViews) -> None:
    if recipe.labels is None:
        return
    target = study.view.targets[0]
    images = [plate.index.image(image_key(key, target)) for plate, key in study.fields("test")]
    names = {name for image in images for name in label_names(image)}
    if recipe.labels not in names:
        raise UserError(
            f"labels={recipe.labels!r}: on no test field; {nearest(recipe.labels, sorted(names))}"
        )


def _refuse_copying(recipe: PretrainRecipe) -> None:
    """Raises a UserError for a plane in both sources and targets, which the network would just copy."""

    def planes(entries: list[PlaneRecipe]) -> Iterator[tuple[str, int | None, int | str]]:
        for entry in entries:
            for plane in entry.plane if isinstance(entry.plane, list) else [entry.plane]:
                yield entry.channel, entry.acquisition, plane

    sources = set(planes(recipe.sources))
    for channel, acquisition, plane in planes(recipe.targets):
        if (channel, acquisition, plane) in sources:
            raise UserError(
                f"{channel!r}, plane {plane}, is in sources and in targets: the network would copy it; "
                "sources are label-free, targets are stains"
            )


def _doubtful_roles(study: PlateViews) -> Iterator[str]:
    """Yields warnings about stains among the sources, and label-free channels among the targets."""
    stains = {c.name for index in study.indices for c in index.plate.channels if c.fluorescent}
    sources = dict.fromkeys(role.channel for role in study.view.sources)
    targets = dict.fromkeys(role.channel for role in study.view.targets)
    remedy = "if that is not so, `set PLATE transmitted=[…]` says which channels are label-free"
    for name in sources:
        if name in targets:
            yield f"warning: {name!r} is both seen and predicted: that teaches nothing of cells without it"
        elif name in stains:
            yield f"warning: the source {name!r} is a stain: the model needs it on every plate; {remedy}"
    for name in targets:
        if name not in stains and name not in sources:
            yield f"warning: the target {name!r} is label-free, no stain; {remedy}"


def _messages(recipe: PretrainRecipe, study: PlateViews, crops: Crops) -> Iterator[str]:
    for part in PARTS:
        fields = study.fields(part)
        wells = len({(plate.name, key.well) for plate, key in fields})
        yield f"{part:<11}{many(len(fields), 'field')} in {many(wells, 'well')}"
    yield from crops.messages
    train, steps = recipe.train, steps_of(recipe.train, len(crops))
    samples = steps * train.batch
    first = crops.fields[0]
    planes = sum(len(plane.planes) for plane in first.sources + (first.targets or ()))
    gigabytes = 2e-9 * planes * crops.edge**2 * samples  # a stored pixel has two bytes
    yield (
        f"{steps} steps of {train.batch} crops of {train.crop} × {train.crop} pixels: "
        f"{samples / len(crops):.1f} epochs of {len(crops)} crops; about {gigabytes:.3g} GB are read"
    )
    count = train.batch // train.micro_batch
    sizes = " or ".join(str(n) for n in range(1, count + 1) if count % n == 0)
    yield f"micro-batches in a step: {count} of {train.micro_batch} crops; for {sizes} process(es)"
    weights = recipe.net.weights or "random"
    sources, targets = (", ".join(map(name_of, roles)) for roles in (study.view.sources, study.view.targets))
    yield f"U-Net on {recipe.net.encoder} ({weights} weights): {sources} → {targets}"
    yield from _doubtful_roles(study)
    if not study.fields("test"):
        yield "no test fields: nothing will be scored in the end"
