"""The base of every recipe: frozen, strict, hashed; and the recipes of many runs: sweeps and chains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, model_validator
from pydantic import Field as Bound

from hpc_isl.recipes.strict import Strict, default_at


def _as_micrometres(least: float, most: float, quantity: str) -> AfterValidator:
    """Refuses a length that was certainly meant in nanometres or millimetres."""

    def check(value: float) -> float:
        if least <= value <= most:
            return value
        converted, unit = (value / 1000, "nm") if value > most else (value * 1000, "mm")
        hint = f": {value:g} {unit} are {converted:g} µm" if least <= converted <= most else ""
        raise ValueError(f"{value:g} µm is no {quantity} ({least:g} to {most:g} µm are){hint}")

    return AfterValidator(check)


PixelSize = Annotated[float, Bound(gt=0), _as_micrometres(0.01, 50, "edge of a pixel")]
PlaneDistance = Annotated[float, Bound(gt=0), _as_micrometres(0.01, 200, "distance of planes")]
Fraction = Annotated[float, Bound(ge=0, le=1)]
Positive = Annotated[int, Bound(ge=1)]
Count = Annotated[int, Bound(ge=0)]


class Recipe(Strict):
    """What to compute: the base of every stage's recipe."""

    RUNS: ClassVar[tuple[str, ...]] = ()
    """keys that name other runs, by name or folder"""
    PLATES: ClassVar[tuple[str, ...]] = ()
    """keys that name the plates that are read, or written to"""

    def plates_read(self) -> list[Path]:
        """The plates that are read, or written to, as they were given."""
        values = [getattr(self, key) for key in self.PLATES]
        return [path for value in values for path in (value if isinstance(value, list) else [value])]

    UNREAD: ClassVar[Mapping[str, str]] = {}
    """dotted keys of parts shared with other verbs that this verb never reads, and why: no keys of it"""

    def unused(self) -> Iterator[tuple[str, str]]:
        """Yields dotted keys that change nothing in this recipe, with the reason: value of another key."""
        return iter(())

    def given_unused(self) -> dict[str, str]:
        """The `unused` keys whose value is not the default: it would change the digest and nothing else."""
        return {
            key: reason
            for key, reason in self.unused()
            if reduce(_part, key.split("."), self) != default_at(type(self), key)
        }


def one_or_more(value: Any) -> Any:
    """Returns a list of what may be given alone; null stays, and is refused by its own name if it must be."""
    return value if isinstance(value, list) or value is None else [value]


def _part(node: Any, name: str) -> Any:
    return node[int(name)] if isinstance(node, list) else getattr(node, name)


# ---------------------------------------------------------------- many runs


class SweepRecipe(Recipe):
    """An array of runs of one stage, each a job of its own: `over` says in what they differ.

    Typed again with the --name of a sweep that has ended, and with more in `over`, it computes what is new;
    with --update also the elements whose inputs have changed, as those that new annotations change.
    """

    stage: str
    """that each element runs; without it, the file's name tells: small_pretrain.yaml"""
    over: dict[str, list[Any]] | list[dict[str, Any]]
    """dotted key -> values, all combinations, e.g. {seed: [0, 1, 2], train.crop: [256, 512]};
    or a list of groups, e.g. [{seed: [0, 1]}, {seed: 1, train.crop: [256, 512]}]: in each group a list means
    each of its values, all combinations, and what comes twice is one element. A value that is itself a
    list is written [[32, 16]]"""
    base: dict[str, Any] = {}
    """the stage's recipe without what varies"""

    @model_validator(mode="after")
    def _something_varies(self) -> SweepRecipe:
        groups = [self.over] if isinstance(self.over, dict) else self.over
        if not self.over or any(values == [] for group in groups for values in group.values()):
            raise ValueError("over is empty; say what varies, as in over='{seed: [0, 1, 2]}'")
        return self


@dataclass(frozen=True)
class Arrangement:
    """The elements of a sweep as a stage arranges them, where it offers `arrange(elements, folder)`.

    Attributes:
        elements: name -> recipe, in order.
        messages: lines that the user should know.
        last: name of the element that waits for all others, and is planned when its job starts.
    """

    elements: Mapping[str, Recipe]
    messages: tuple[str, ...] = ()
    last: str | None = None


class StepRecipe(Strict):
    """A run of a chain, or a stop where a person does something."""

    name: str | None = None
    """of the run; null: the chain's name and the stage's"""
    stage: str | None = None
    """that is run"""
    recipe: Path | None = None
    """its file; null: the shipped recipe of the stage"""
    set: dict[str, Any] = {}
    """keys of the recipe, dotted or nested, e.g. {train.steps: 2000}"""
    site: str | None = None
    """another site than the chain's"""
    site_set: dict[str, Any] = {}
    """keys of the site, e.g. {gpus: 4}"""
    after: list[str] | None = None
    """names of earlier runs of this chain that it waits for; null: the step before it"""
    stop: str | None = None
    """instead of a run: what a person does before the chain continues"""

    @model_validator(mode="after")
    def _a_run_or_a_stop(self) -> StepRecipe:
        if (self.stage is None) == (self.stop is None):
            raise ValueError("a step has either a stage or a stop")
        return self


class ChainRecipe(Recipe):
    """Stages one after another: each step starts when those before it are done."""

    steps: list[StepRecipe]
    """in order"""

    @model_validator(mode="after")
    def _some(self) -> ChainRecipe:
        if not any(step.stage for step in self.steps):
            raise ValueError("steps: there is no step with a stage")
        return self

    def unused(self) -> Iterator[tuple[str, str]]:
        for number, step in enumerate(self.steps):
            if step.stop is not None:
                names = ("recipe", "set", "site", "site_set")
                yield from ((f"steps.{number}.{name}", "this step is a stop") for name in names)
