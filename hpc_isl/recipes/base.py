"""What every recipe is: frozen, strict, hashed; and the numbers that recipes are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Annotated, Any, ClassVar

from pydantic import Field as Bound

from hpc_isl.strict import Strict, default_at

Fraction = Annotated[float, Bound(ge=0, le=1)]
Positive = Annotated[int, Bound(ge=1)]
Count = Annotated[int, Bound(ge=0)]


class Recipe(Strict):
    """What to compute: the base of every stage's recipe."""

    RUNS: ClassVar[tuple[str, ...]] = ()
    """keys that name other runs, by name or folder"""
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
