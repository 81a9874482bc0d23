"""A sweep of fine-tuning as its run folders describe it: arms, elements and scores of their test boxes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.plates.plate_map import OF_PLATE_MAP
from hpc_isl.recipes.base import SweepRecipe
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.load import read_kept
from hpc_isl.recipes.strict import flatten, parse
from hpc_isl.run import Run
from hpc_isl.stages.shared.following import FINAL, MAIN, SCORES

BOX = ["plate", "well", "field", "time", "box"]
LABELS = ["truth", "origin", "same"]
ABOUT = ["element", "arm", "n", "draw", "seed", "trained_boxes", "trained_objects"]
N = int | str
"""Number of annotation boxes, or `all`."""
Replicate = tuple[int, int]
"""Draw and seed: chance that an element may owe its score to."""
# These are the axes of a report; all else that is swept makes another arm.
AXES = ("arm", "n", "draw", "fold", "seed", "train.seed", "among")
ORDER = ("random", "random+isl", "imagenet", "imagenet+isl", "drafted", "best")


@dataclass(frozen=True)
class Arm:
    """An initialisation, and what else is swept beside boxes and chance: `train.steps=1600`."""

    name: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.variant}" if self.variant else self.name

    @property
    def order(self) -> tuple[int, str, list[str], str]:
        """By name as people list arms; numbers in the variant by their size."""
        # Padded, so that 1600 comes after 400.
        numbers = [digits.zfill(20) for digits in re.findall(r"\d+", self.variant)]
        return ORDER.index(self.name) if self.name in ORDER else len(ORDER), self.name, numbers, self.variant


@dataclass(frozen=True)
class Cell:
    """An arm at one number of annotation boxes: what a mean score belongs to."""

    arm: Arm
    n: N

    @property
    def order(self) -> tuple[Any, ...]:
        return *self.arm.order, rank(self.n)


def rank(n: N) -> float:
    """Returns the place of a number of boxes among others: `all` comes last."""
    return float("inf") if n == "all" else float(n)


@dataclass(frozen=True)
class Truth:
    """Labels that score, and their origin: human or drafted."""

    name: str
    origin: str

    def __str__(self) -> str:
        return f"{self.name} ({self.origin})"

    @property
    def circular(self) -> bool:
        return self.origin == "drafted"


@dataclass(frozen=True, eq=False)
class Element:
    """One fine-tuning that is done.

    Attributes:
        scores: one row per test box and truth, as `scores.csv` has it: `BOX`, `LABELS`, `SCORES` as floats,
            and columns of the plate map.
        boxes: the annotation boxes that it learnt from.
    """

    run: Run
    recipe: FinetuneRecipe
    arm: Arm
    figures: Mapping[str, Any]
    scores: pd.DataFrame
    boxes: pd.DataFrame

    @property
    def cell(self) -> Cell:
        return Cell(self.arm, self.recipe.n)

    @property
    def replicate(self) -> Replicate:
        return self.recipe.draw, self.recipe.train.seed

    def trained(self, what: str) -> float:
        """Returns the number of boxes or objects that it learnt from."""
        if what in self.figures:
            return float(self.figures[what])
        return float(len(self.boxes) if what == "boxes" else sum(map(float, self.boxes.get("objects", ()))))


@dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep of fine-tuning: what is done of it, and what is missing.

    Attributes:
        final: the element of all annotations, which no curve holds.
        missing: name of an element -> why it is not in the report.
        names: of all elements, `final` too.
    """

    run: Run
    recipe: SweepRecipe
    elements: tuple[Element, ...]
    final: Element | None
    missing: Mapping[str, str]
    names: tuple[str, ...]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The scores of all elements: `ABOUT`, then the columns of `Element.scores`."""
        scores = pd.concat([
            element.scores.assign(
                element=element.run.name, arm=str(element.arm), n=element.recipe.n, draw=element.recipe.draw,
                seed=element.recipe.train.seed, trained_boxes=element.trained("boxes"),
                trained_objects=element.trained("objects"),
            )
            for element in self.elements
        ], ignore_index=True)  # fmt: skip
        map_names = [name for name in map(str, scores) if name not in {*ABOUT, *SCORES}]
        scores[map_names] = scores[map_names].fillna("")  # columns of the plate map that some elements lack
        return scores[[*ABOUT, *(name for name in map(str, scores) if name not in ABOUT)]]

    @cached_property
    def first(self) -> FinetuneRecipe:
        """A recipe for what all elements have in common."""
        return self.elements[0].recipe

    @property
    def done(self) -> int:
        """How many elements are done, the final one too."""
        return len(self.elements) + (self.final is not None)

    @property
    def score(self) -> str:
        """The main score: only mAP tells touching objects apart."""
        return MAIN[self.first.objects.kind]

    @cached_property
    def truths(self) -> tuple[Truth, ...]:
        """In the order of the recipe; of one name, what people drew comes first."""
        names = self.first.reference_labels or [self.first.labels]
        pairs = self.scores[["truth", "origin"]].drop_duplicates().itertuples(index=False)
        places = {name: place for place, name in enumerate(names)}
        return tuple(
            sorted(
                (Truth(*pair) for pair in pairs),
                key=lambda t: (places.get(t.name, len(names)), t.circular, t.name, t.origin),
            )
        )

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(sorted({element.cell for element in self.elements}, key=lambda cell: cell.order))

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(dict.fromkeys(cell.arm for cell in self.cells))

    @cached_property
    def counts(self) -> tuple[N, ...]:
        """Numbers of boxes above 0, rising."""
        return tuple(sorted({cell.n for cell in self.cells if cell.n != 0}, key=rank))

    @property
    def fewest(self) -> N:
        return self.counts[0] if self.counts else 0

    @cached_property
    def replicates(self) -> tuple[Replicate, ...]:
        """Draws and seeds of the elements that learn from boxes."""
        with_boxes = {element.replicate for element in self.elements if element.recipe.n != 0}
        return tuple(sorted(with_boxes or {element.replicate for element in self.elements}))

    @cached_property
    def group(self) -> str | None:
        """Column of the plate map whose values are the outermost units of the test boxes."""
        columns = set(self.scores) - {*ABOUT, *BOX, *LABELS, *SCORES}
        within = self.first.within
        names = (within, f"{within}{OF_PLATE_MAP}", "cell_line")
        return next((name for name in names if name in columns), None)

    @property
    def facets(self) -> tuple[str, ...]:
        """All test boxes together (""), and those `within` or `across` the group of the training boxes."""
        same = set(self.scores.same)
        return ("", *(name for name in ("within", "across") if name in same))

    def trained(self, n: N, what: str, arm: Arm | None = None) -> float:
        """Returns boxes or objects at one N: the mean over draws, each counted once for all arms.

        `arm`: of arms of this variant alone: what is swept besides may decide which boxes there are.
        """
        elements = [element for element in self.elements if element.recipe.n == n]
        elements = [element for element in elements if arm is None or element.arm.variant == arm.variant]
        return fmean({(e.replicate, e.recipe.fold): e.trained(what) for e in elements}.values())


# ---------------------------------------------------------------- arms


def swept_keys(sweep: SweepRecipe) -> list[str]:
    """Returns the dotted keys that elements of the sweep set."""
    return list(dict.fromkeys(key for group in _groups(sweep) for key in group))


def _groups(sweep: SweepRecipe) -> list[list[str]]:
    """Returns the dotted keys of each group of values."""
    if isinstance(sweep.over, dict):
        return [list(sweep.over)]
    nested = [{key: flatten(value, key) if isinstance(value, dict) else [key] for key, value in group.items()}
              for group in sweep.over]  # fmt: skip
    return [[key for keys in group.values() for key in keys] for group in nested]


def _usual_values(sweep: SweepRecipe, flat: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Returns the keys that make another arm -> the value that an arm's name leaves out, if any.

    A key that every group sets is always named; one that some leave alone, where it is changed.
    """
    usual: dict[str, str | None] = {}
    for key in swept_keys(sweep):
        values = Counter(_value_label(recipe, key) for recipe in flat)
        if key not in AXES and len(values) > 1:
            always = all(key in group for group in _groups(sweep))
            usual[key] = None if always else values.most_common(1)[0][0]
    return usual


def _value_label(flat: Mapping[str, Any], key: str) -> str:
    """Returns the value of a key as a label has it: of a path its last part."""
    values = [value for name, value in flat.items() if name == key or name.startswith(f"{key}.")]
    return " ".join(Path(v).name if isinstance(v, str) and "/" in v else f"{v}" for v in values)


# ---------------------------------------------------------------- reading


def read_sweep(run: Run) -> Sweep:
    """Reads the sweep in a run folder.

    Raises:
        UserError: it is no sweep of fine-tuning, or no element is done.
    """
    if run.stage != "sweep":
        raise UserError(f"report: {run.label!r} is a {run.stage} run; name a sweep of finetune")
    recipe = parse(SweepRecipe, read_kept("sweep", run.recipe), str(run.recipe))
    if recipe.stage != "finetune":
        raise UserError(f"report: {run.name!r} is a sweep of {recipe.stage}; name a sweep of finetune")
    members = run.elements()
    recipes = {member: parse(FinetuneRecipe, read_kept("finetune", member.recipe), str(member.recipe))
               for member in members if member.recipe.is_file()}  # fmt: skip
    flat = {member: flatten(entry.model_dump(mode="json")) for member, entry in recipes.items()}
    usual = _usual_values(recipe, [flat[member] for member in flat if member.name != FINAL])
    done_elements: list[Element] = []
    missing: dict[str, str] = {}
    for member in members:
        try:
            values = {key: _value_label(flat.get(member, {}), key) for key in usual}
            variant = ", ".join(f"{key}={value}" for key, value in values.items() if value != usual[key])
            done_elements.append(_element(member, recipes.get(member), variant))
        except _MissingError as reason:
            missing[member.name] = str(reason)
    final = next((element for element in done_elements if element.run.name == FINAL), None)
    elements = tuple(element for element in done_elements if element is not final)
    if not elements:
        raise UserError(f"report: no element of {run.name!r} is done yet; {len(members)} are not")
    return Sweep(run, recipe, elements, final, missing, tuple(member.name for member in members))


class _MissingError(Exception):
    """Says why an element is not in the report."""


def _element(run: Run, recipe: FinetuneRecipe | None, variant: str) -> Element:
    try:
        summary = run.summary()
    except (OSError, json.JSONDecodeError):
        summary = None
    if summary is None or recipe is None:
        raise _MissingError(_state(run))
    name = str(summary.get("arm", recipe.arm)) if recipe.arm == "best" else recipe.arm
    # A model of all annotations has no test box left that it could be scored on.
    unscored = run.name == FINAL and recipe.train_on_all
    scores = boxes = pd.DataFrame()
    try:
        if not unscored:
            scores = _read_scores(run.folder / "scores.csv")
        if recipe.n != 0:
            boxes = _read_csv(run.folder / "boxes.csv")
    except (OSError, KeyError, ValueError) as error:
        raise _MissingError(
            f"is done, but its tables cannot be read: {type(error).__name__}: {error}"
        ) from None
    if scores.empty and not unscored:
        raise _MissingError("is done, but scored no test box")
    return Element(run, recipe, Arm(name, variant), summary.get("figures", {}), scores, boxes)


def _read_csv(path: Path) -> pd.DataFrame:
    # As text: a field that is called 01 keeps its zero, and an empty cell is no NaN.
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _read_scores(path: Path) -> pd.DataFrame:
    """Returns the scores of an element; earlier versions had fewer of them, and no `same`."""
    table = _read_csv(path)
    map_columns = [name for name in table if name not in {*BOX, *LABELS, *SCORES, "objects", "predicted"}]
    # A table without a main score is torn: it has to fail here, and not to count as unscored.
    names = [name for name in SCORES if name in table or name in MAIN.values()]
    scores = table[names].replace("", "nan").astype(float).reindex(columns=list(SCORES))
    same = table.get("same", "")
    return pd.concat([table[[*BOX, "truth", "origin"]].assign(same=same), scores, table[map_columns]], axis=1)


def _state(run: Run) -> str:
    """Returns why an element is not done."""
    numbers = run.attempt_numbers()
    if not numbers:
        return "has not started"
    record = read_json(run.attempts / str(numbers[-1]) / "rank-0.json") or {}
    message = str(record.get("message", "")).strip().partition("\n")[0]
    # Records of ranks keep the words of earlier versions.
    outcome = {"mistake": "failed", None: "has not ended, or was lost"}
    word = outcome.get(record.get("outcome"), str(record.get("outcome")))
    return f"{word}: {message}" if message else word
