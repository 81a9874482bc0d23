"""Pretraining: from whole plates to a model that predicts their stains from label-free planes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from math import ceil

from hpc_isl.errors import UserError, nearest
from hpc_isl.learning.data.fields import image_key
from hpc_isl.learning.data.samples import Crops
from hpc_isl.learning.data.split import PARTS
from hpc_isl.learning.network.encoders import check_batchnorm, check_names, check_weights
from hpc_isl.learning.network.tiling_grid import check_grid
from hpc_isl.learning.training.forkserver import fork_server, loading_processes
from hpc_isl.learning.training.gradient_accumulation import check_micro_batches, steps_of
from hpc_isl.plates.store import label_names
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.training import PlaneRecipe
from hpc_isl.run import Attempt, Plan
from hpc_isl.stages.shared.plate_views import (
    PlateField,
    PlateViews,
    expanded,
    load_plate_views,
    located_net,
    located_split,
    name_of,
)
from hpc_isl.stages.shared.workloads import (
    STEPS,
    TEST,
    VALIDATION,
    megapixels,
    micro_batches,
    training_like,
)
from hpc_isl.timing import Workload

SELDOM = 10**9


def plan(recipe: PretrainRecipe) -> Plan:
    """What pretraining would do; writes nothing, but fetches encoder weights into the library's cache.

    Raises:
        UserError: whatever can be known before the job starts: plates, channels, split, crops, encoder
            and its weights, tiles, labels.
    """
    check_names(recipe.net)
    check_grid(recipe.predict.tile, recipe.predict.halo)
    recipe = _located(recipe)
    _refuse_copying(recipe)
    study, crops = load_plate_views(recipe)
    _check_labels(recipe, study)
    weights = check_weights(recipe.net, len(study.view.sources))
    check_batchnorm(recipe.net, recipe.train, len(study.view.sources))
    inputs = {index.plate.name: index.fingerprint for index in study.indices}
    if weights is not None:
        inputs["net.weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()[:32]
    return Plan(
        recipe, tuple(_messages(recipe, study, crops)), inputs,
        check_size=partial(check_micro_batches, recipe.train),
        precision=("train.precision", recipe.train.precision), workload=_workload(recipe, study, crops),
    )  # fmt: skip


def pretrain(recipe: PretrainRecipe, attempt: Attempt) -> None:
    """Trains, keeps the model, scores the test wells, draws pictures, writes the virtual stain.

    A run that is asked to stop saves a checkpoint (or drops the scores it has so far) and returns;
    the next attempt takes it up there.
    """
    if loading_processes(recipe.data.workers, attempt.cpus):
        fork_server()  # it imports what loading needs while this process imports the rest
    from hpc_isl.stages.pretrain import (
        training_run,  # torch and its libraries take seconds: a plan does without
    )

    training_run.pretrain(recipe, attempt)


def trial(recipe: PretrainRecipe, attempt: Attempt) -> None:
    """The same for ten seconds, and one field of those that are scored: what it takes is timed, not kept."""
    from hpc_isl.stages.pretrain import training_run

    training_run.trial(recipe, attempt)


def trial_recipe(recipe: PretrainRecipe) -> PretrainRecipe:
    """The same without what comes now and then, which is tried apart."""
    train = recipe.train.model_copy(update={"evaluate_every": SELDOM, "checkpoint_every": SELDOM})
    return recipe.model_copy(update={"train": train})


# ---------------------------------------------------------------- what a plan consists of


def _workload(recipe: PretrainRecipe, study: PlateViews, crops: Crops) -> Workload:
    of, steps = recipe.train, steps_of(recipe.train, len(crops))
    validated, tested = (megapixels(study.view, study.places(part)) for part in ("validation", "test"))
    like = training_like("pretrain", recipe.net, recipe.predict, study.view, of)
    units = {STEPS: micro_batches(of, steps), TEST: tested}
    units[VALIDATION] = ceil(steps / of.evaluate_every) * validated
    return Workload(like | {"stain": recipe.predict.stain}, units)


def _located(recipe: PretrainRecipe) -> PretrainRecipe:
    """The same with globs expanded and absolute paths: the job may start in another folder."""
    changes = {
        "plates": expanded(recipe.plates),
        "net": located_net(recipe.net),
        "split": located_split(recipe.split),
    }
    return recipe.model_copy(update=changes)


def _check_labels(recipe: PretrainRecipe, study: PlateViews) -> None:
    if recipe.labels is None:
        return
    places = study.places("test")
    there = {name for place in places for name in _labels_of(study, place)}
    if recipe.labels not in there:
        raise UserError(
            f"labels={recipe.labels!r}: on no test field; {nearest(recipe.labels, sorted(there))}"
        )


def _refuse_copying(recipe: PretrainRecipe) -> None:
    """A plane that the network sees is none that it could learn to predict: it would copy it."""
    seen = {_plane(entry, plane) for entry in recipe.sources for plane in _planes(entry)}
    for entry in recipe.targets:
        for plane in _planes(entry):
            if _plane(entry, plane) in seen:
                raise UserError(
                    f"{entry.channel!r}, plane {plane}, is in sources and in targets: the network would copy "
                    "it; sources are label-free, targets are stains"
                )


def _planes(entry: PlaneRecipe) -> list[int | str]:
    return [*entry.plane] if isinstance(entry.plane, list) else [entry.plane]


def _plane(entry: PlaneRecipe, plane: int | str) -> tuple[str, int | None, int | str]:
    return entry.channel, entry.acquisition, plane


def _doubtful_roles(study: PlateViews) -> Iterator[str]:
    """Channels that are seen or predicted where one would not expect it."""
    stains = {one.name for index in study.indices for one in index.plate.channels if one.fluorescent}
    seen = dict.fromkeys(role.channel for role in study.view.sources)
    predicted = dict.fromkeys(role.channel for role in study.view.targets)
    mends = "if that is not so, `set PLATE transmitted=[…]` says which channels are label-free"
    for name in seen:
        if name in predicted:
            yield f"warning: {name!r} is both seen and predicted: that teaches nothing of cells without it"
        elif name in stains:
            yield f"warning: the source {name!r} is a stain: the model needs it on every plate; {mends}"
    for name in predicted:
        if name not in stains and name not in seen:
            yield f"warning: the target {name!r} is label-free, no stain; {mends}"


def _labels_of(study: PlateViews, place: PlateField) -> list[str]:
    index, key = place
    return label_names(index.image(image_key(key, study.view.targets[0])))


def _messages(recipe: PretrainRecipe, study: PlateViews, crops: Crops) -> Iterator[str]:
    for part in PARTS:
        places = study.places(part)
        wells = len({(index.plate.name, key.well) for index, key in places})
        yield f"{part:<11}{len(places)} fields in {wells} wells"
    yield from crops.messages
    steps, of = steps_of(recipe.train, len(crops)), recipe.train
    yield (
        f"{steps} steps of {of.batch} crops of {of.crop} × {of.crop} pixels: "
        f"{steps * of.batch / len(crops):.1f} epochs of {len(crops)} crops; "
        f"about {_gigabytes(crops, steps * of.batch):.3g} GB are read"
    )
    shares = of.batch // of.micro_batch
    legal = [str(n) for n in range(1, shares + 1) if shares % n == 0]
    yield f"micro-batches in a step: {shares} of {of.micro_batch} crops; for {' or '.join(legal)} process(es)"
    weights = recipe.net.weights or "random"
    roles = [", ".join(map(name_of, planes)) for planes in (study.view.sources, study.view.targets)]
    yield f"U-Net on {recipe.net.encoder} ({weights} weights): {roles[0]} → {roles[1]}"
    yield from _doubtful_roles(study)
    if not study.places("test"):
        yield "no test fields: nothing will be scored in the end"


def _gigabytes(crops: Crops, samples: int) -> float:
    """Pixels of the stored planes behind so many crops, two bytes each."""
    first = crops.fields[0]
    planes = sum(len(plane.planes) for plane in first.sources + (first.targets or ()))
    return 2e-9 * planes * crops.edge**2 * samples
