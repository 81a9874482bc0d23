"""What every recipe is: frozen, strict, hashed; and the numbers that recipes are made of."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field as Bound

from hpc_isl.strict import Strict

Fraction = Annotated[float, Bound(ge=0, le=1)]
Positive = Annotated[int, Bound(ge=1)]
Count = Annotated[int, Bound(ge=0)]


class Recipe(Strict):
    """What to compute: the base of every stage's recipe."""

    RUNS: ClassVar[tuple[str, ...]] = ()
    """keys that name other runs, by name or folder"""
