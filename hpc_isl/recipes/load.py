"""Recipes: what each stage computes, read and hashed; where it is computed is the site's matter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hpc_isl
from hpc_isl.errors import UserError, nearest
from hpc_isl.recipes import former
from hpc_isl.recipes.base import Recipe
from hpc_isl.recipes.strict import Strict, default_at, flatten, override, parse, read_yaml
from hpc_isl.stages.stage_table import STAGES

RECIPES: dict[str, type[Recipe]] = {name: stage.load_recipe() for name, stage in STAGES.items()}
_PACKAGE = Path(hpc_isl.__file__).parent
_CONFIGS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")
"""inside the wheel, or beside the package in a checkout"""


def shipped(name: str) -> Path:
    """A file of `configs/` as it is shipped."""
    for folder in _CONFIGS:
        path = folder / name
        if path.exists():
            return path
    raise UserError(f"{name}: no such file, and not a shipped recipe; {nearest(name, shipped_names())}")


def shipped_names() -> list[str]:
    """The shipped recipes, as `shipped` takes them."""
    for folder in _CONFIGS:
        if folder.is_dir():
            paths = (path.relative_to(folder) for path in folder.rglob("*.yaml"))
            return sorted(str(path) for path in paths if path.parts[0] != "sites")
    return []


def load(stage: str, path: Path | None, assignments: list[str]) -> Recipe:
    """The recipe of `stage` from a file (default: the shipped one, if there is one) and dotted overrides.

    A path that does not exist is looked for among the shipped recipes.
    """
    content, origin = read(stage, path, assignments)
    recipe = parsed(stage, content, origin)
    refuse_unused([recipe], origin)
    return recipe


def parsed(stage: str, content: dict[str, Any], origin: str) -> Recipe:
    """The recipe that somebody has written: with keys that the stage reads, and no others.

    Those that it never reads may have their defaults, as in the recipe of an earlier run.

    Raises:
        UserError: naming the keys that are wrong.
    """
    kind = RECIPES[stage]
    renamed = dict.fromkeys(line for key in flatten(content) if (line := former.complaint(stage, key)))
    if renamed:
        raise UserError("\n".join([f"{origin}:", *(f"  {line}" for line in renamed)]))
    for key, value in flatten(content).items():
        for unread, why in kind.UNREAD.items():
            if f"{key}.".startswith(f"{unread}.") and value != default_at(kind, key):
                raise UserError(f"{origin}:\n  {key}: no such key of {stage}: {why}")
    return parse(kind, content, origin)


def refuse_unused(recipes: Sequence[Recipe], origin: str) -> None:
    """A key that is given and changes nothing is told: nobody would miss it before the results are there.

    Args:
        recipes: one, or those of a sweep, which may set for all elements what some of them use.
    """
    first, *others = (recipe.given_unused() for recipe in recipes)
    lines = [f"  {key}: changes nothing because {why}; leave it out" for key, why in first.items()
             if all(key in other for other in others)]  # fmt: skip
    if lines:
        raise UserError("\n".join([f"{origin}:", *lines]))


def read(stage: str, path: Path | None, assignments: list[str]) -> tuple[dict[str, Any], str]:
    """The keys and values that `load` validates, and where they come from, for messages."""
    if path is None and f"{stage}.yaml" in shipped_names():
        path = shipped(f"{stage}.yaml")
    elif path is not None and not path.exists():
        path = shipped(str(path))
    content = override(read_yaml(path) if path else {}, assignments)
    return content, str(path or stage) + (f" with {' '.join(assignments)}" if assignments else "")


def read_kept(stage: str, path: Path) -> dict[str, Any]:
    """Returns the keys and values that a run folder keeps, also one of an earlier version.

    Raises:
        UserError: naming a file that is missing or damaged.
    """
    return former.kept(stage, read_yaml(path))


def load_kept(stage: str, path: Path) -> Recipe:
    """Returns the recipe of one stage that a run folder keeps, also one of an earlier version."""
    return parse(RECIPES[stage], read_kept(stage, path), str(path))


def digest(recipe: Recipe, fingerprints: Mapping[str, str] = {}) -> str:
    """Hash of what is computed from what: the recipe without paths, and its inputs' fingerprints."""
    stage = next((stage for stage, kind in RECIPES.items() if isinstance(recipe, kind)), "")
    content = former.former(stage, _without_paths(recipe))  # so that a new name makes no new digest
    text = json.dumps([type(recipe).__name__, content, dict(fingerprints)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_paths(value: Any) -> Any:
    if isinstance(value, Strict):
        return {name: _without_paths(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Path):
        return None
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item) for item in value]
    return value
