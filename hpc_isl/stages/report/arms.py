"""How a report tells arms apart: by what they start from, and by whatever else a sweep varies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.many import SweepRecipe
from hpc_isl.recipes.strict import flatten

# These are the axes of a report; whatever else is swept makes another arm.
AXES = ("arm", "n", "draw", "fold", "seed", "train.seed", "among")
ORDER = ("random", "random+isl", "imagenet", "imagenet+isl", "drafted", "best")


@dataclass(frozen=True)
class Arm:
    """An initialisation, and what else is swept beside boxes and chance."""

    name: str
    rest: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.rest}" if self.rest else self.name

    @property
    def order(self) -> tuple[int, str, list[str], str]:
        """By name as people list arms; numbers in the rest by their size."""
        numbers = [digits.zfill(20) for digits in re.findall(r"\d+", self.rest)]
        return ORDER.index(self.name) if self.name in ORDER else len(ORDER), self.name, numbers, self.rest


@dataclass(frozen=True)
class Arms:
    """The keys that make another arm, and of each the value that goes without saying, if any."""

    usual: Mapping[str, str | None]

    @classmethod
    def of(cls, sweep: SweepRecipe, recipes: Sequence[FinetuneRecipe]) -> Arms:
        """A key that every group sets is always said; one that some leave alone, where it is changed."""
        flat = [_flat(one) for one in recipes]
        groups = [set(_keys(group, nested=True)) for group in _groups(sweep)]
        usual: dict[str, str | None] = {}
        for key in swept_keys(sweep):
            values = Counter(shown(one, key) for one in flat)
            if key not in AXES and len(values) > 1:
                always = all(key in group for group in groups)
                usual[key] = None if always else values.most_common(1)[0][0]
        return cls(usual)

    def rest(self, recipe: FinetuneRecipe) -> str:
        """`train.steps=1600`, as the arm's name goes on."""
        flat = _flat(recipe)
        said = {key: shown(flat, key) for key in self.usual}
        return ", ".join(f"{key}={value}" for key, value in said.items() if value != self.usual[key])


def swept_keys(sweep: SweepRecipe) -> list[str]:
    """The dotted keys that elements of the sweep set."""
    nested = isinstance(sweep.over, list)
    return list(dict.fromkeys(key for group in _groups(sweep) for key in _keys(group, nested)))


def _groups(sweep: SweepRecipe) -> list[dict[str, Any]]:
    return [sweep.over] if isinstance(sweep.over, dict) else sweep.over


def _keys(group: Mapping[str, Any], nested: bool) -> Iterator[str]:
    for key, value in group.items():
        yield from flatten(value, key) if nested and isinstance(value, dict) else [key]


def _flat(recipe: FinetuneRecipe) -> dict[str, Any]:
    return flatten(recipe.model_dump(mode="json"))


def shown(flat: Mapping[str, Any], key: str) -> str:
    """The value of a key as a label has it: of a path its last part."""
    found = {name: value for name, value in flat.items() if name == key or name.startswith(f"{key}.")}
    return " ".join(Path(v).name if isinstance(v, str) and "/" in v else f"{v}" for v in found.values())
