"""What every recipe is: frozen, strict, hashed; and the numbers that recipes are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator
from pydantic import Field as Bound

from hpc_isl.recipes.strict import Strict, default_at


def _as_micrometres(least: float, most: float, what: str) -> AfterValidator:
    """Refuses what was certainly meant in nanometres or millimetres."""

    def check(value: float) -> float:
        if least <= value <= most:
            return value
        other, unit = (value / 1000, "nm") if value > most else (value * 1000, "mm")
        means = f": {value:g} {unit} are {other:g} µm" if least <= other <= most else ""
        raise ValueError(f"{value:g} µm is no {what} ({least:g} to {most:g} µm are){means}")

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
        given = [getattr(self, key) for key in self.PLATES]
        return [path for each in given for path in (each if isinstance(each, list) else [each])]

    UNREAD: ClassVar[Mapping[str, str]] = {}
    """dotted keys of parts shared with other verbs that this verb never reads, and why: no keys of it"""

    def unused(self) -> Iterator[tuple[str, str]]:
        """Dotted keys that change nothing beside others of this recipe, and beside which."""
        return iter(())

    def given_unused(self) -> dict[str, str]:
        """Those of them whose value is not their default: it would change the digest and nothing else."""
        return {key: why for key, why in self.unused() if self._at(key) != default_at(type(self), key)}

    def _at(self, key: str) -> Any:
        return reduce(_part, key.split("."), self)


def _part(node: Any, name: str) -> Any:
    return node[int(name)] if isinstance(node, list) else getattr(node, name)
