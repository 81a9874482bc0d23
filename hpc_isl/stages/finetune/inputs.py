"""What a fine-tuning run stands on: plates, split, view, network, the weights it starts from, its boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.learning.data.calibrate import view_of
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
from hpc_isl.stages.shared.plate_views import open_plates
from hpc_isl.stages.shared.resized import resized_since

LEARN = ("train", "validation")


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
    """Everything but pixels.

    Attributes:
        net: what to build; its weights are those of the arm imagenet.
        starts: arm -> the model that it starts from, for the arms that have one.
        learning: the boxes of this draw; testing: those that score, the main truth's first.
        remarks: what the user should know.
    """

    indices: tuple[Index, ...]
    split: Split
    view: View
    net: NetRecipe
    starts: dict[str, Start]
    pool: tuple[Box, ...]
    learning: tuple[Box, ...]
    testing: tuple[Box, ...]
    remarks: tuple[str, ...] = ()

    @property
    def tested(self) -> list[tuple[Index, FieldKey]]:
        """The fields of the boxes that score, each once."""
        return list({(box.index.path, box.key): (box.index, box.key) for box in self.testing}.values())

    def start(self, arm: str) -> Start | None:
        """The model that an arm starts from; None: random weights, or those of a file."""
        if arm in ("random", "imagenet"):
            return None
        if arm not in self.starts:
            there = ", ".join(["random", "imagenet", *self.starts])
            raise UserError(f"arm={arm}: {needs(arm)}; with what is given there are the arms {there}")
        return self.starts[arm]


@dataclass(frozen=True)
class _Asked:
    sources: list[PlaneRecipe]
    targets: list[PlaneRecipe]
    data: DataRecipe


def resolve_inputs(recipe: FinetuneRecipe) -> FinetuneInputs:
    """Opens what a recipe names; reads no pixels and no weights.

    Raises:
        UserError: whatever does not fit together: models of different views, splits or networks, an arm
            without a model to start from, too few boxes, test wells that a model has trained on.
    """
    starts = _starts(recipe)
    indices = open_plates(recipe.plates)
    split = _split(recipe, indices, starts)
    view, net = _view(recipe, indices, split, starts), _net(recipe, starts)
    pool, testing = _parted(recipe, view, indices, split)
    pool = boxes_.only(pool, recipe.train_where)
    learning = boxes_.draw(pool, recipe.n, recipe.draw) if recipe.n != 0 else []
    remarks = [*_unlike(indices, starts), *_seen(recipe, testing, starts)]
    return FinetuneInputs(
        indices, split, view, net, starts, tuple(pool), tuple(learning), tuple(testing), tuple(remarks)
    )


def as_planned(
    recipe: FinetuneRecipe, setting: FinetuneInputs, parts: Mapping[str, Mapping[str, str]]
) -> FinetuneInputs:
    """The same with the boxes that the run was planned with, whatever has been annotated since.

    Args:
        parts: of the plan, as the run's record keeps them; empty: the plan is of an earlier version.

    Raises:
        UserError: labels in one of these boxes were changed, or removed.
    """
    if not parts:
        return setting
    there = {
        box.name: box
        for name in dict.fromkeys([recipe.labels, *recipe.reference_labels])
        for box in _of(setting.view, setting.indices, setting.split, name, PARTS)
    }
    states = boxes_.states(there.values())
    known = boxes_.parts(there.values(), lambda image, name: states[image, name].stamp)
    for name, stamp in (pair for own in parts.values() for pair in own.items()):
        if known.get(name) != stamp:
            raise UserError(
                f"{name}: these labels were changed since the run was planned; start it again under another "
                "--name, or the sweep that it belongs to with --update"
            )
    learning, testing = (tuple(there[name] for name in parts[key]) for key in ("boxes", "test boxes"))
    return replace(setting, learning=learning, testing=testing)


def frozen_batchnorm(recipe: FinetuneRecipe) -> str:
    """What of the network keeps the BatchNorm statistics that it came with: encoder, all, or nothing ("")."""
    if not recipe.transfer.hold_norm or recipe.arm == "random":
        return ""
    # Weights of a file come with an encoder alone; statistics of a new decoder would say nothing.
    return "encoder" if recipe.arm == "imagenet" else "all"


# ---------------------------------------------------------------- models


def needs(arm: str) -> str:
    """What must be given for an arm that has no model to start from."""
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
        _refuse_unfit(recipe, starts["drafted"].contract.task)
    return starts


def _refuse_unfit(recipe: FinetuneRecipe, task: Task | None) -> None:
    """The arm drafted begins with a head that says what the others will say."""
    if task is None:
        raise UserError(f"drafted={recipe.drafted}: a finetune run on drafted labels is needed")
    of = recipe.objects
    if task.kind != of.kind:
        raise UserError(f"drafted={recipe.drafted}: it segments {task.kind}, objects.kind is {of.kind}")
    if task.kind == "cells" and task.scale != of.scale:
        raise UserError(
            f"drafted={recipe.drafted}: objects.scale was {task.scale} there, here it is {of.scale}"
        )
    if task.from_stain:
        raise UserError(
            f"drafted={recipe.drafted}: it began with an ISL model; the control is to know of the stain by "
            "its drafted labels alone: arm=random or arm=imagenet"
        )


def _start(run: Path, key: str) -> Start:
    folder = Run(run).model
    try:
        start = Start(folder, read_contract(folder))
    except UserError as mistake:
        raise UserError(f"{key}={run}: {mistake}") from None
    for line, _ in resized_since(start.contract):
        raise UserError(
            f"{key}={run}: {line}, after this model was trained there: it takes pixels for another size than "
            "they have; train it again, under another --name"
        )
    return start


def _isl(starts: dict[str, Start]) -> list[Start]:
    return [start for arm, start in starts.items() if arm != "drafted"]


def _split(recipe: FinetuneRecipe, indices: Sequence[Index], starts: dict[str, Start]) -> Split:
    isl = _isl(starts)
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
    strangers = [index.plate.name for index in indices if not _listed(index, split)]
    if strangers:
        raise UserError(
            f"plate {strangers[0]!r} is not in the split of the pretrained model; give split.file, a CSV "
            "that lists it too"
        )
    return split


def _listed(index: Index, split: Split) -> bool:
    return any(split.part(index.plate.name, field.key) for field in index.plate.fields)


def _view(recipe: FinetuneRecipe, indices: Sequence[Index], split: Split, starts: dict[str, Start]) -> View:
    """What the network sees: as the pretrained models do, else as the recipe says."""
    views = [start.contract.view for start in starts.values()]
    if not _isl(starts):
        if not recipe.sources:
            raise UserError("sources: must be given where there is no pretrained model to say what is seen")
        views.insert(0, view_of(indices, split, _Asked(recipe.sources, [], recipe.data or DataRecipe())))
    for view in views[1:]:
        if _seen_by(view) != _seen_by(views[0]):
            raise UserError(
                "the models that arms start from see different things (sources, level, flat field or "
                "normalisation); compare those that see the same"
            )
    for index in indices:
        for role in views[0].sources:
            index.channel(role.channel)
    return views[0]


def _seen_by(view: View) -> tuple[object, ...]:
    """All that decides what sources look like."""
    rule = view.normalize
    return (
        view.sources, view.level, view.pixel_um, view.flat_field, dict(view.profiles), rule.source,
        rule.local_px,
    )  # fmt: skip


def _unlike(indices: Sequence[Index], starts: dict[str, Start]) -> Iterator[str]:
    """Channels that are of another kind here than where a model learnt."""
    found = (
        line
        for start in starts.values()
        for index in indices
        for line in unlike_channels(start.contract.view, start.contract.stains, {}, index)
    )
    yield from (f"warning: {line}" for line in dict.fromkeys(found))


def _net(recipe: FinetuneRecipe, starts: dict[str, Start]) -> NetRecipe:
    """One network for all arms; its weights are what the arm imagenet starts from."""
    nets = [start.contract.net for start in starts.values()]
    chosen = recipe.net or next((net for net in nets if net.weights is not None), None)
    chosen = chosen or (nets[0] if nets else NetRecipe())
    for arm, start in starts.items():
        own = start.contract.net
        if (own.encoder, own.decoder) != (chosen.encoder, chosen.decoder):
            raise UserError(
                f"arm {arm}: {start.folder.parent} is a U-Net on {own.encoder} {own.decoder or ''}, the "
                f"others are on {chosen.encoder} {chosen.decoder or ''}; one network for all arms"
            )
    return chosen


# ---------------------------------------------------------------- boxes


def _parted(
    recipe: FinetuneRecipe, view: View, indices: Sequence[Index], split: Split
) -> tuple[list[Box], list[Box]]:
    """Boxes that may train, and boxes that test, of each truth in turn."""
    if recipe.train_on_all:
        return boxes_.boxes_of(view, indices, split, recipe.labels), []
    truths = recipe.reference_labels or [recipe.labels]
    if recipe.fold is None:
        testing = [box for name in truths for box in _of(view, indices, split, name, ("test",))]
        learning = _of if recipe.n == 0 else boxes_.boxes_of
        return learning(view, indices, split, recipe.labels, LEARN), testing
    pool = boxes_.boxes_of(view, indices, split, recipe.labels)
    left_out = boxes_.fields(pool)
    if recipe.fold >= len(left_out):
        raise UserError(f"fold={recipe.fold}: there are {len(left_out)} annotated fields, folds from 0 on")
    own = left_out[recipe.fold]
    there = [box for name in truths for box in boxes_.boxes_of(view, indices, split, name)]
    return [box for box in pool if box.field != own], [box for box in there if box.field == own]


def _of(view: View, indices: Sequence[Index], split: Split, name: str, parts: tuple[str, ...]) -> list[Box]:
    """The boxes, none where no field of these parts has the labels."""
    try:
        return boxes_.boxes_of(view, indices, split, name, parts)
    except UserError:
        boxes_.boxes_of(view, indices, split, name)  # a name that is nowhere is a mistake all the same
        return []


def _seen(recipe: FinetuneRecipe, testing: Sequence[Box], starts: dict[str, Start]) -> Iterator[str]:
    """Test wells on which a model was trained are refused, or said."""
    for start in starts.values():
        seen = start.contract.has_seen
        leaks = [box for box in testing if seen("train", box.index.plate.name, box.key)]
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
