"""What a report speaks of: the elements of a sweep of fine-tuning, as their run folders tell them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.load import read_kept
from hpc_isl.recipes.many import SweepRecipe
from hpc_isl.recipes.strict import parse
from hpc_isl.run import Run
from hpc_isl.stages.report.arms import Arm, Arms
from hpc_isl.stages.shared.sweeps import FINAL, MAIN, SCORES

PLACE = ("plate", "well", "field", "time", "box")
OWN = {*PLACE, *SCORES, "truth", "origin", "same", "objects", "predicted"}
Row = Mapping[str, str]
N = int | str
"""Annotation boxes, or all."""
Replicate = tuple[int, int]
"""Draw and seed: what an unlucky run can blame."""


@dataclass(frozen=True)
class Cell:
    """An arm at one number of annotation boxes: what a mean score belongs to."""

    arm: Arm
    n: N

    @property
    def order(self) -> tuple[Any, ...]:
        return *self.arm.order, rank(self.n)


def rank(n: N) -> float:
    """Its place among the numbers of boxes: `all` comes last."""
    return float("inf") if n == "all" else float(n)


@dataclass(frozen=True)
class Truth:
    """Labels that score, and who made them."""

    name: str
    origin: str

    def __str__(self) -> str:
        return f"{self.name} ({self.origin})"

    @property
    def circular(self) -> bool:
        return self.origin == "drafted"


@dataclass(frozen=True)
class Scored:
    """One test box and truth: a line of scores.csv."""

    place: tuple[str, ...]
    truth: Truth
    same: str
    columns: Row
    values: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Element:
    """One fine-tuning that is done."""

    run: Run
    recipe: FinetuneRecipe
    arm: Arm
    summary: Mapping[str, Any]
    scored: tuple[Scored, ...]
    boxes: tuple[Row, ...]

    @property
    def cell(self) -> Cell:
        return Cell(self.arm, self.recipe.n)

    @property
    def chance(self) -> Replicate:
        return self.recipe.draw, self.recipe.train.seed

    @property
    def figures(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.summary.get("figures", {})
        return found

    def trained(self, what: str) -> float:
        """Boxes or objects that it learnt from."""
        if what in self.figures:
            return float(self.figures[what])
        return float(len(self.boxes) if what == "boxes" else sum(float(box["objects"]) for box in self.boxes))


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
    def first(self) -> FinetuneRecipe:
        """A recipe for what all elements have in common."""
        return self.elements[0].recipe

    @property
    def score(self) -> str:
        """The main score: objects that touch are told apart by mAP alone."""
        return MAIN[self.first.objects.kind]

    @cached_property
    def truths(self) -> tuple[Truth, ...]:
        """In the order of the recipe; of one name, what people drew comes first."""
        names = self.first.reference_labels or [self.first.labels]
        found = {scored.truth for element in self.elements for scored in element.scored}
        known = {name: place for place, name in enumerate(names)}
        return tuple(
            sorted(found, key=lambda t: (known.get(t.name, len(names)), t.circular, t.name, t.origin))
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
    def chances(self) -> tuple[Replicate, ...]:
        """Of the elements that learn from boxes."""
        found = {element.chance for element in self.elements if element.recipe.n != 0}
        return tuple(sorted(found or {element.chance for element in self.elements}))

    @cached_property
    def group(self) -> str | None:
        """Column of the plate map whose values are the outermost units of the test boxes."""
        columns = {name for e in self.elements for scored in e.scored for name in scored.columns}
        return next((name for name in (self.first.within, "cell_line") if name in columns), None)

    @property
    def facets(self) -> tuple[str, ...]:
        """`same` as the boxes that trained, and all test boxes together ("")."""
        found = {scored.same for e in self.elements for scored in e.scored}
        return ("", *(name for name in ("within", "across") if name in found))

    def trained(self, n: N, what: str) -> float:
        """Boxes or objects at one N: the mean over draws, each counted once for all arms."""
        own = [element for element in self.elements if element.recipe.n == n]
        return fmean({(e.chance, e.recipe.fold): e.trained(what) for e in own}.values())


def read_sweep(run: Run) -> Sweep:
    """The sweep in a run folder.

    Raises:
        UserError: it is no sweep of fine-tuning, or no element is done.
    """
    recipe = _sweep_recipe(run)
    members = run.elements()
    recipes = {member: parse(FinetuneRecipe, read_kept("finetune", member.recipe), str(member.recipe))
               for member in members if member.recipe.is_file()}  # fmt: skip
    arms = Arms.of(recipe, [one for member, one in recipes.items() if member.name != FINAL])
    done: list[Element] = []
    missing: dict[str, str] = {}
    for member in members:
        try:
            done.append(_element(member, recipes, arms))
        except _NotThereError as why:
            missing[member.name] = str(why)
    final = next((element for element in done if element.run.name == FINAL), None)
    elements = tuple(element for element in done if element is not final)
    if not elements:
        raise UserError(f"report: no element of {run.name!r} is done yet; {len(members)} are not")
    return Sweep(run, recipe, elements, final, missing, tuple(member.name for member in members))


class _NotThereError(Exception):
    """Why an element has no place in the report."""


def _sweep_recipe(run: Run) -> SweepRecipe:
    if run.stage != "sweep":
        raise UserError(f"report: {run.label!r} is a {run.stage} run; name a sweep of finetune")
    recipe = parse(SweepRecipe, read_kept("sweep", run.recipe), str(run.recipe))
    if recipe.stage != "finetune":
        raise UserError(f"report: {run.name!r} is a sweep of {recipe.stage}; name a sweep of finetune")
    return recipe


def _element(run: Run, recipes: Mapping[Run, FinetuneRecipe], arms: Arms) -> Element:
    summary = _summary(run)
    if summary is None or run not in recipes:
        raise _NotThereError(_state(run))
    recipe = recipes[run]
    name = str(summary.get("arm", recipe.arm)) if recipe.arm == "best" else recipe.arm
    arm = Arm(name, arms.rest(recipe))
    unscored = run.name == FINAL and recipe.train_on_all
    try:
        scored = () if unscored else tuple(map(_scored, _lines(run.folder / "scores.csv")))
        boxes = tuple(_lines(run.folder / "boxes.csv")) if recipe.n != 0 else ()
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise _NotThereError(
            f"is done, but its tables cannot be read: {type(error).__name__}: {error}"
        ) from None
    if not scored and not unscored:
        raise _NotThereError("is done, but scored no test box")
    return Element(run, recipe, arm, summary, scored, boxes)


def _summary(run: Run) -> dict[str, Any] | None:
    try:
        return run.summary()
    except (OSError, json.JSONDecodeError):
        return None


def _state(run: Run) -> str:
    numbers = run.attempt_numbers()
    if not numbers:
        return "has not started"
    record = read_json(run.attempts / str(numbers[-1]) / "rank-0.json") or {}
    message = str(record.get("message", "")).strip().partition("\n")[0]
    outcome = {"mistake": "failed", None: "has not ended, or was lost"}
    word = outcome.get(record.get("outcome"), str(record.get("outcome")))
    return f"{word}: {message}" if message else word


def _lines(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8") as stream:
        yield from csv.DictReader(stream)


def _scored(line: Row) -> Scored:
    given = {name: line[name] if name in MAIN.values() else line.get(name) for name in SCORES}
    values = {name: float(text) if text else float("nan") for name, text in given.items()}
    columns = {name: value or "" for name, value in line.items() if name not in OWN}
    place = tuple(line[name] for name in PLACE)
    return Scored(place, Truth(line["truth"], line["origin"]), line.get("same") or "", columns, values)
