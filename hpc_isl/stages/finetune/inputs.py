"""Inputs of a fine-tuning run: plates, split, view, network, the models it starts from, its boxes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.learning.data.calibrate import view_of
from hpc_isl.learning.data.drift import Reference, reference_of
from hpc_isl.learning.data.rescale import unlike_channels
from hpc_isl.learning.data.split import PARTS, Split
from hpc_isl.learning.data.split import draw as draw_split
from hpc_isl.learning.data.split import read as read_split
from hpc_isl.learning.data.view import View
from hpc_isl.learning.network.contract import Contract, Task, read_contract
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.training import DataRecipe, NetRecipe, PlaneRecipe, SplitRecipe
from hpc_isl.run import Run
from hpc_isl.stages.finetune import boxes as boxes_
from hpc_isl.stages.finetune.boxes import Box
from hpc_isl.stages.shared.plate_views import PlateField, PlateViews, open_plates, resized_since

LEARN = ("train", "validation")
Wells = dict[str, list[str]]
"""Plate -> wells, or fields as in B03/1."""


@dataclass(frozen=True)
class Start:
    """A model that weights are taken from."""

    folder: Path
    contract: Contract

    @property
    def isl(self) -> bool:
        """Whether it predicts a stain; else it segments."""
        return self.contract.task is None


@dataclass(frozen=True)
class FinetuneInputs:
    """Everything a run needs except pixels.

    Attributes:
        net: what to build; its weights are those of the arm imagenet.
        starts: arm -> the model that it starts from, for the arms that have one.
        pool: boxes that may train; learning: the boxes of this draw.
        testing: boxes that score, those of the main reference labels first.
        remarks: messages for the user.
        programs: names of the arms that are programs.
    """

    study: PlateViews
    net: NetRecipe
    starts: dict[str, Start]
    pool: tuple[Box, ...]
    learning: tuple[Box, ...]
    testing: tuple[Box, ...]
    remarks: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()

    @property
    def tested(self) -> list[PlateField]:
        """The fields of the boxes that score, each once."""
        return list({(box.index.path, box.key): (box.plate, box.key) for box in self.testing}.values())

    def start(self, arm: str) -> Start | None:
        """Returns the model that an arm starts from; None: random weights, or those of a file."""
        if arm in ("random", "imagenet") or arm in self.programs:
            return None
        if arm not in self.starts:
            arms = ", ".join(["random", "imagenet", *self.starts, *self.programs])
            raise UserError(f"arm={arm}: {needs(arm)}; with what is given there are the arms {arms}")
        return self.starts[arm]

    def _widest(self) -> Start | None:
        """Returns the ISL model whose training images serve as the reference of all arms."""
        return next((start for start in self.starts.values() if start.isl and start.contract.reference), None)

    def reference(self) -> Reference:
        """Returns the statistics of known images: those of the ISL model, else of all that may train."""
        if widest := self._widest():
            return widest.contract.reference
        indices = self.study.indices
        return reference_of(self.study.view, indices, [self._training(index) for index in indices])

    def _training(self, index: Index) -> list[FieldKey]:
        """Returns a plate's fields that may train, annotated or not, and those of this draw."""
        drawn = {box.key for box in self.learning if box.index.path == index.path}
        parts = (self.study.keys(index, part) for part in LEARN)
        return sorted(drawn.union(*parts), key=lambda key: key.place)

    def wells(self, arm: str) -> dict[str, Wells]:
        """Returns the wells of annotations (train, test), of the reference's images, and of the stain seen.

        The contract keeps them, so that no plate the model has seen is later taken for a new one.
        """
        widest, start = self._widest(), self.start(arm)
        training = ((index.plate.name, key) for index in self.study.indices for key in self._training(index))

        def grouped(fields: Iterable[tuple[str, FieldKey]]) -> Wells:
            units = sorted({(plate, f"{key.well}/{key.name}") for plate, key in fields})
            return {plate: [unit for _, unit in own] for plate, own in groupby(units, lambda pair: pair[0])}

        def trained(model: Start) -> Wells:
            return {plate: list(units) for plate, units in model.contract.wells.get("train", {}).items()}

        return {
            "train": grouped((box.plate.name, box.key) for box in self.learning),
            "test": grouped((box.plate.name, box.key) for box in self.testing),
            "reference": trained(widest) if widest else grouped(training),
            "stain": trained(start) if start and start.isl else {},
        }


@dataclass(frozen=True)
class _SourcesAlone:
    """The view that a recipe without a pretrained model asks for: sources, and no stain."""

    sources: list[PlaneRecipe]
    targets: list[PlaneRecipe]
    data: DataRecipe


def resolve_inputs(recipe: FinetuneRecipe) -> FinetuneInputs:
    """Opens what a recipe names; reads no pixels and no weights.

    Raises:
        UserError: inputs that do not fit together: models of different views, splits or networks, an arm
            without a model to start from, too few boxes, test wells that a model has trained on.
    """
    starts = _starts(recipe)
    indices = open_plates(recipe.plates)
    split = _split(recipe, indices, starts)
    study = PlateViews(recipe, _view(recipe, indices, split, starts), split, indices)
    net = _net(recipe, starts)
    pool, testing = _pool_and_testing(recipe, study)
    pool = boxes_.in_wells(pool, recipe.train_where)
    learning = boxes_.draw(pool, recipe.n, recipe.draw) if recipe.n != 0 else []
    remarks = [*_channel_warnings(indices, starts), *_leak_remarks(recipe, testing, starts)]
    programs = tuple(program.name for program in recipe.programs)
    boxes = (tuple(pool), tuple(learning), tuple(testing))
    return FinetuneInputs(study, net, starts, *boxes, tuple(remarks), programs)


def as_planned(
    recipe: FinetuneRecipe, inputs: FinetuneInputs, parts: Mapping[str, Mapping[str, str]]
) -> FinetuneInputs:
    """Returns the inputs with the boxes that the run was planned with, whatever was annotated since.

    Args:
        parts: of the plan, as the run's record keeps them; empty: the plan is of an earlier version.

    Raises:
        UserError: labels in one of these boxes were changed, or removed.
    """
    if not parts:
        return inputs
    box_by_name = {
        box.name: box
        for name in dict.fromkeys([recipe.labels, *recipe.reference_labels])
        for box in _boxes_if_any(inputs.study, name, PARTS)
    }
    states = boxes_.states(box_by_name.values())
    stamps = boxes_.parts(box_by_name.values(), lambda image, name: states[image, name].stamp)
    for name, stamp in (pair for part_stamps in parts.values() for pair in part_stamps.items()):
        if stamps.get(name) != stamp:
            raise UserError(
                f"{name}: these labels were changed since the run was planned; start it again under another "
                "--name, or the sweep that it belongs to with --update"
            )
    learning, testing = (tuple(box_by_name[name] for name in parts[key]) for key in ("boxes", "test boxes"))
    return replace(inputs, learning=learning, testing=testing)


def frozen_batchnorm(recipe: FinetuneRecipe) -> str:
    """Returns the part of the network that keeps its BatchNorm statistics: encoder, all, or none ("")."""
    if not recipe.transfer.hold_norm or recipe.arm == "random":
        return ""
    # Weights of a file come with an encoder alone; statistics of a new decoder would mean nothing.
    return "encoder" if recipe.arm == "imagenet" else "all"


def fits_objects(recipe: FinetuneRecipe) -> bool:
    """Returns whether what parts the cells is fitted."""
    fits = recipe.objects.kind == "cells" and recipe.objects.h_maxima == "fit" and recipe.program is None
    return fits and leaves_out(recipe)


def guards_start(recipe: FinetuneRecipe) -> bool:
    """Returns whether the start segments already, and is kept where training is no better."""
    from_stain = recipe.objects.head == "stain" and recipe.arm.endswith("+isl")
    return recipe.left_out == "auto" and recipe.n != 0 and (from_stain or recipe.arm == "drafted")


def leaves_out(recipe: FinetuneRecipe) -> bool:
    """Returns whether boxes are left out in turn."""
    fits = recipe.objects.kind == "cells" and recipe.objects.h_maxima == "fit" and recipe.program is None
    is_needed = fits or guards_start(recipe) or compares_arms(recipe)
    return recipe.left_out == "auto" and recipe.n != 0 and is_needed


def compares_arms(recipe: FinetuneRecipe) -> bool:
    """Returns whether a sweep chooses its final model among runs such as this one."""
    return recipe.n == "all" and not recipe.train_on_all


# ---------------------------------------------------------------- models


def needs(arm: str) -> str:
    """Returns what must be given for an arm that has no model to start from."""
    if arm == "drafted":
        return "drafted must name a finetune run on drafted labels"
    kind = "random weights (net.weights=null)" if arm == "random+isl" else "weights of a file or name"
    return f"pretrained must name an ISL run that began with {kind}"


def _starts(recipe: FinetuneRecipe) -> dict[str, Start]:
    starts: dict[str, Start] = {}
    for run in recipe.pretrained:
        start = _start(run, "pretrained")
        if not start.isl:
            raise UserError(f"pretrained={run}: this model segments; an ISL run, of pretrain, is needed")
        arm = "random+isl" if start.contract.net.weights is None else "imagenet+isl"
        if arm in starts:
            raise UserError(f"pretrained: {starts[arm].folder.parent} and {run} both start the arm {arm}")
        starts[arm] = start
    if recipe.drafted is not None:
        starts["drafted"] = _start(recipe.drafted, "drafted")
        _check_drafted(recipe, starts["drafted"].contract.task)
    return starts


def _check_drafted(recipe: FinetuneRecipe, task: Task | None) -> None:
    """Raises a UserError unless the model's head predicts what the other arms will predict."""
    objects = recipe.objects
    problem = ""
    if task is None:
        problem = "a finetune run on drafted labels is needed"
    elif task.kind != objects.kind:
        problem = f"it segments {task.kind}, objects.kind is {objects.kind}"
    elif task.kind == "cells" and task.scale != objects.scale:
        problem = f"objects.scale was {task.scale} there, here it is {objects.scale}"
    elif task.kind == "cells" and task.map != objects.map:
        problem = f"objects.map was {task.map} there, here it is {objects.map}"
    elif task.from_stain:
        problem = (
            "it began with an ISL model; the control is to know of the stain by its drafted labels alone: "
            "arm=random or arm=imagenet"
        )
    if problem:
        raise UserError(f"drafted={recipe.drafted}: {problem}")


def _start(run: Path, key: str) -> Start:
    folder = Run(run).model
    try:
        start = Start(folder, read_contract(folder))
    except UserError as error:
        raise UserError(f"{key}={run}: {error}") from None
    for line, _ in resized_since(start.contract):
        raise UserError(
            f"{key}={run}: {line}, after this model was trained there: it takes pixels for another size than "
            "they have; train it again, under another --name"
        )
    return start


def _isl_starts(starts: dict[str, Start]) -> list[Start]:
    return [start for arm, start in starts.items() if arm != "drafted"]


def _split(recipe: FinetuneRecipe, indices: Sequence[Index], starts: dict[str, Start]) -> Split:
    isl = _isl_starts(starts)
    if recipe.split is not None or not isl:
        return draw_split(indices, recipe.split or SplitRecipe())
    digests = {start.contract.split for start in isl}
    if len(digests) > 1:
        raise UserError(
            "pretrained: the models were trained with different splits; compare those of one split"
        )
    path = isl[0].folder.parent / "split.csv"
    split = read_split(path)
    if split.digest not in digests:
        raise UserError(f"{path}: this is not the split that the model was trained with")
    for plate in (index.plate for index in indices):
        if not any(split.part(plate.name, field.key) for field in plate.fields):
            raise UserError(
                f"plate {plate.name!r} is not in the split of the pretrained model; give split.file, a CSV "
                "that lists it too"
            )
    return split


def _view(recipe: FinetuneRecipe, indices: Sequence[Index], split: Split, starts: dict[str, Start]) -> View:
    """Returns the view of the pretrained models, which must agree; else the one that the recipe states."""
    views = [start.contract.view for start in starts.values()]
    if not _isl_starts(starts):
        if not recipe.sources:
            raise UserError("sources: must be given where there is no pretrained model to say what is seen")
        sources_recipe = _SourcesAlone(recipe.sources, [], recipe.data or DataRecipe())
        views.insert(0, view_of(indices, split, sources_recipe))

    def decisive(view: View) -> tuple[object, ...]:
        """Returns everything that decides what sources look like."""
        rule = view.normalize
        profiles = dict(view.profiles)
        return view.sources, view.level, view.pixel_um, view.flat_field, profiles, rule.source, rule.local_px

    # Arms differ in their weights alone; else a sweep would compare more than it says.
    if any(decisive(view) != decisive(views[0]) for view in views[1:]):
        raise UserError(
            "the models that arms start from see different things (sources, level, flat field or "
            "normalisation); compare those that see the same"
        )
    for index in indices:
        for role in views[0].sources:
            index.channel(role.channel)
    return views[0]


def _channel_warnings(indices: Sequence[Index], starts: dict[str, Start]) -> Iterator[str]:
    """Yields a warning for each channel that is of another kind here than where a model learnt."""
    lines = (
        line
        for start in starts.values()
        for index in indices
        for line in unlike_channels(start.contract.view, start.contract.stains, {}, index)
    )
    yield from (f"warning: {line}" for line in dict.fromkeys(lines))


def _net(recipe: FinetuneRecipe, starts: dict[str, Start]) -> NetRecipe:
    """Returns one network for all arms; its weights are those that the arm imagenet starts from."""
    nets = [start.contract.net for start in starts.values()]
    # The arm imagenet takes the named weights that a pretrained model began with.
    network = recipe.net or next((net for net in nets if net.weights is not None), None)
    network = network or (nets[0] if nets else NetRecipe())
    for arm, start in starts.items():
        arm_net = start.contract.net
        if (arm_net.encoder, arm_net.decoder) != (network.encoder, network.decoder):
            raise UserError(
                f"arm {arm}: {start.folder.parent} is a U-Net on {arm_net.encoder} {arm_net.decoder or ''}, "
                f"the others are on {network.encoder} {network.decoder or ''}; one network for all arms"
            )
    return network


# ---------------------------------------------------------------- boxes


def _pool_and_testing(recipe: FinetuneRecipe, study: PlateViews) -> tuple[list[Box], list[Box]]:
    """Returns the boxes that may train, and the boxes that test, for each reference labels in turn."""
    if recipe.train_on_all:
        return boxes_.boxes_of(study, recipe.labels), []
    references = recipe.reference_labels or [recipe.labels]
    if recipe.fold is None:
        testing = [box for name in references for box in _boxes_if_any(study, name, ("test",))]
        # Without annotation (n = 0) nothing is drawn, so the training fields need no labels.
        pool_of = _boxes_if_any if recipe.n == 0 else boxes_.boxes_of
        return pool_of(study, recipe.labels, LEARN), testing
    pool = boxes_.boxes_of(study, recipe.labels)
    annotated = boxes_.fields(pool)
    if recipe.fold >= len(annotated):
        raise UserError(f"fold={recipe.fold}: there are {len(annotated)} annotated fields, folds from 0 on")
    field = annotated[recipe.fold]
    testing = [box for name in references for box in boxes_.boxes_of(study, name) if box.field == field]
    return [box for box in pool if box.field != field], testing


def _boxes_if_any(study: PlateViews, name: str, parts: Sequence[str]) -> list[Box]:
    """Returns the boxes; none where no field of these parts has the labels."""
    try:
        return boxes_.boxes_of(study, name, parts)
    except UserError:
        boxes_.boxes_of(study, name)  # a name that no field of any part has is still an error
        return []


def _leak_remarks(recipe: FinetuneRecipe, testing: Sequence[Box], starts: dict[str, Start]) -> Iterator[str]:
    """Refuses test fields that a model was trained on, or yields a remark where the recipe allows them."""
    for start in starts.values():
        leaks = [box for box in testing if start.contract.has_seen("train", box.plate.name, box.key)]
        if not leaks:
            continue
        names = ", ".join(dict.fromkeys(f"{box.key.well}/{box.key.name}" for box in leaks[:6]))
        text = f"{start.folder.parent.name} was trained on test fields ({names}), so scores flatter its arm"
        if recipe.test_wells_seen_in_pretraining == "refuse":
            raise UserError(
                f"{text}. Annotate wells of its part `test` (its split.csv), "
                "or say test_wells_seen_in_pretraining=allow"
            )
        yield text
