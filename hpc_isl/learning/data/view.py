"""The view: what turns a plate's stored pixels into what a network sees; part of the model's contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hpc_isl.learning.data.flat_field import Profile
from hpc_isl.learning.data.planes import Numbers
from hpc_isl.recipes.training import NormalizeRecipe


@dataclass(frozen=True)
class Role:
    """One input or output of the network, on any plate.

    Attributes:
        plane: a number, max, mean, min, focus, or an offset from focus, as in PlaneRecipe.
        numbers: offset and scale of a target's training wells; None: each field's own.
    """

    channel: str
    plane: int | str
    acquisition: int | None = None
    numbers: Numbers | None = None


@dataclass(frozen=True)
class Foreground:
    """A crop must hold at least `fraction` of pixels above `threshold`, in stored counts of the role.

    A threshold of None is Otsu's of each field.
    """

    role: Role
    threshold: float | None
    fraction: float


@dataclass(frozen=True)
class View:
    """How stored pixels become network arrays; the same for crops and whole fields, on any plate.

    Attributes:
        level: of the pyramid, on the plates it was made for.
        pixel_um: edge of a pixel of that level in micrometres, or None: unknown.
        flat_field: none, vendor (each plate's own) or estimated.
        profiles: channel -> estimated profile.
        normalize: the recipe's; the numbers it led to are in `targets`.
        foreground: None where any crop will do.
    """

    sources: tuple[Role, ...]
    targets: tuple[Role, ...]
    level: int = 0
    pixel_um: float | None = None
    flat_field: str = "none"
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    normalize: NormalizeRecipe = field(default_factory=NormalizeRecipe)
    foreground: Foreground | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON; `from_dict` reads it back to an equal view."""
        return asdict(self) | {"normalize": self.normalize.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> View:
        def role(entry: Mapping[str, Any]) -> Role:
            numbers = entry["numbers"]
            return Role(**{**entry, "numbers": numbers and tuple(numbers)})  # JSON turns tuples into lists

        foreground = content["foreground"]
        own = {
            "sources": tuple(map(role, content["sources"])),
            "targets": tuple(map(role, content["targets"])),
            "normalize": NormalizeRecipe.model_validate(content["normalize"]),
            "foreground": foreground and Foreground(**{**foreground, "role": role(foreground["role"])}),
        }
        return cls(**{**content, **own})
