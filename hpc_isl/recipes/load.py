"""Recipes are read, also under the keys of earlier versions, and hashed; where to compute is the site's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hpc_isl
from hpc_isl.errors import UserError, nearest
from hpc_isl.recipes.base import Recipe
from hpc_isl.recipes.strict import Strict, default_at, flatten, override, parse, read_yaml
from hpc_isl.stages.stage_table import STAGES


class _Recipes(Mapping[str, type[Recipe]]):
    """The class of each stage's recipe, imported when it is asked for: no stage waits for those of others."""

    def __getitem__(self, stage: str) -> type[Recipe]:
        kind: type[Recipe] = STAGES[stage].load_recipe()
        return kind

    def __iter__(self) -> Iterator[str]:
        return iter(STAGES)

    def __len__(self) -> int:
        return len(STAGES)


RECIPES = _Recipes()
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
    lines = dict.fromkeys(line for key in flatten(content) if (line := renamed_key(stage, key)))
    if lines:
        raise UserError("\n".join([f"{origin}:", *(f"  {line}" for line in lines)]))
    # By hand, because the part is shared with stages that do read these keys.
    for key, value in flatten(content).items():
        for unread, reason in kind.UNREAD.items():
            if f"{key}.".startswith(f"{unread}.") and value != default_at(kind, key):
                raise UserError(f"{origin}:\n  {key}: no such key of {stage}: {reason}")
    return parse(kind, content, origin)


def refuse_unused(recipes: Sequence[Recipe], origin: str) -> None:
    """Refuses a key that is given and changes nothing: nobody would notice before the results are there.

    Args:
        recipes: one, or those of a sweep, which may set for all elements what some of them use.
    """
    unused, *unused_in_others = (recipe.given_unused() for recipe in recipes)
    lines = [f"  {key}: changes nothing because {reason}; leave it out" for key, reason in unused.items()
             if all(key in keys for keys in unused_in_others)]  # fmt: skip
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
    return kept_keys(stage, read_yaml(path))


def load_kept(stage: str, path: Path) -> Recipe:
    """Returns the recipe of one stage that a run folder keeps, also one of an earlier version."""
    return parse(RECIPES[stage], read_kept(stage, path), str(path))


def digest(recipe: Recipe, fingerprints: Mapping[str, str] = {}) -> str:
    """Hash of the recipe without paths, and of its inputs' fingerprints."""
    return digests(recipe)(fingerprints)


def digests(recipe: Recipe) -> Callable[[Mapping[str, str]], str]:
    """Returns `digest` of one recipe, which is written out once for many inputs, such as all fields."""
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(recipe).__mro__}
    stage = next((name for name, stage in STAGES.items() if stage.recipe in kinds), "")
    content = former_keys(stage, _without_paths(recipe))  # so that a new name makes no new digest
    head = json.dumps([type(recipe).__name__, content], sort_keys=True)[:-1]

    def digest_of(fingerprints: Mapping[str, str]) -> str:
        text = f"{head}, {json.dumps(dict(fingerprints), sort_keys=True)}]"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    return digest_of


def _without_paths(value: Any) -> Any:
    if isinstance(value, Strict):
        return {name: _without_paths(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Path):  # a plate that was moved is the same plate: its fingerprint counts
        return None
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item) for item in value]
    return value


# ---------------------------------------------------------------- keys of earlier versions

# Kept recipes and contracts are read through `present_keys`. Digests are taken of `former_keys`, because what
# was computed before a key was renamed must keep its digest and its fingerprints.
FORMER_KEYS: Mapping[str, Mapping[str, str]] = {
    "segment": {
        "write": "outputs",
        "truth": "reference_labels",
        "empty": "empty_fields",
        "h": "h_maxima",
        "largest": "max_pixels_in_memory",
        "block": "block_size",
    },
    "finetune": {
        "truth": "reference_labels",
        "only": "train_where",
        "everything": "train_on_all",
        "seen": "test_wells_seen_in_pretraining",
        "objects.h": "objects.h_maxima",
    },
}
"""stage -> former dotted key -> present one"""
FORMER_VALUES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "segment": {"empty_fields": {"none": "zero", "look": "segment"}},
    "finetune": {"objects.method": {"flood": "watershed"}},
}
"""stage -> present dotted key -> former value -> present one"""

WHOLE = {
    "": {"plates", "labels", "arm", "n", "optim", "train"},
    "measure": {"channels"},
    "objects": {"kind", "head", "slope", "scale", "h_maxima", "method"},
}
"""section ("": the recipe itself) -> keys that every version wrote into it where it was kept whole"""
ADDED: Mapping[str, Mapping[str, object]] = {
    "convert": {"channels": None, "times": None, "planes": None, "match": "position", "resample": False},
    "adopt": {"labels": None, "wells": None},
    "segment": {
        "nuclei": None,
        "measure.features": ["shape", "intensity"],
        "measure.white": 65535.0,
        "measure.texture_px": 3,
        "measure.grey_levels": 256,
        "measure.flat_field": "none",
        "measure.flat_field_files": {},
        "measure.dark": 0.0,
        "measure.dark_file": None,
        "measure.background_px": None,
    },
    "finetune": {
        "objects.map": "euclidean",
        "objects.mask_threshold": None,
        "left_out": "never",
        "programs": [],
    },
}
"""stage -> key that earlier versions did not have -> the value that means what they did

A digest leaves such a key out where it has that value, so that what was computed before keeps its digest."""


def present_keys(stage: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys and values of a recipe, nested or dotted, as this version names them."""
    result = _translate(content, FORMER_KEYS.get(stage, {}), FORMER_VALUES.get(stage, {}))
    if stage == "segment" and isinstance(result.get("measure", {}), (list, type(None))):
        result["measure"] = {"channels": result["measure"]}  # `measure` was a list of channels
    for outer, section, key, value in _added_keys(stage, result):
        # A whole section lacks the key only where an earlier version wrote it; a section that a person typed
        # is not whole and takes today's default.
        if WHOLE[outer] <= section.keys():
            section.setdefault(key, value)
    return result


def former_keys(stage: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys and values of a recipe as the first version named them."""
    keys = {present: former for former, present in FORMER_KEYS.get(stage, {}).items()}
    values = {
        _renamed_key(key, keys): {present: former for former, present in names.items()}
        for key, names in FORMER_VALUES.get(stage, {}).items()
    }
    result = _translate(content, keys, values)
    for _, section, key, value in _added_keys(stage, result):
        if section.get(key, ...) == value:
            del section[key]
    if stage == "segment" and isinstance(measure := result.get("measure"), dict) and len(measure) == 1:
        result["measure"] = measure.get("channels")
    if stage == "annotate" and result.get("action") in ("import", "export") and "method" in result:
        # Only a draft reads it, and the default has changed since.
        result["method"] = "threshold"
    return result


def _added_keys(stage: str, content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str, object]]:
    """Yields section (name, content), key in it and value of each added key whose section is there."""
    for dotted, value in ADDED.get(stage, {}).items():
        outer, _, key = dotted.rpartition(".")
        section = content.get(outer) if outer else content
        if isinstance(section, dict):
            yield outer, section, key, value


def kept_keys(stage: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a run folder of any kind keeps as its recipe: of one stage, a sweep or a chain."""
    result = dict(content)
    if stage == "sweep":
        element_stage = str(content.get("stage"))
        over = content.get("over", {})
        groups = over if isinstance(over, list) else [over]
        present_groups = [present_keys(element_stage, group) for group in groups]
        result |= {"over": present_groups if isinstance(over, list) else present_groups[0]}
        return result | {"base": present_keys(element_stage, content.get("base", {}))}
    if stage == "chain":
        steps = content.get("steps", [])
        return result | {
            "steps": [
                step | {"set": present_keys(str(step.get("stage")), step.get("set") or {})} for step in steps
            ]
        }
    return present_keys(stage, content)


def renamed_key(stage: str, key: str) -> str:
    """Returns what to type instead of a dotted key of an earlier version; empty: it is none."""
    present = _renamed_key(key, FORMER_KEYS.get(stage, {}))
    if present == key:
        return ""
    values = FORMER_VALUES.get(stage, {}).get(present, {})
    hint = "".join(f", and its value {former!r} is {value!r}" for former, value in values.items())
    return f"{key}: is called {present} now{hint}"


def _renamed_key(key: str, names: Mapping[str, str]) -> str:
    """The dotted key, where it or one that it lies below has another name."""
    for old, new in names.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def _translate(
    content: Mapping[str, Any],
    keys: Mapping[str, str],
    values: Mapping[str, Mapping[str, str]],
    path: str = "",
) -> dict[str, Any]:
    new_parent = _renamed_key(path, keys)
    result: dict[str, Any] = {}
    for name, value in content.items():
        dotted = f"{path}.{name}" if path else str(name)
        new_key = _renamed_key(dotted, keys)
        if isinstance(value, Mapping):
            value = _translate(value, keys, values, dotted)
        elif new_key in values:
            names = values[new_key]
            # A sweep gives a list of values.
            value = (
                [names.get(item, item) for item in value]
                if isinstance(value, list)
                else names.get(value, value)
            )
        result[new_key.removeprefix(f"{new_parent}.") if new_parent else new_key] = value
    return result
