"""Keys and values of recipes that had other names in earlier versions: one table for all of them.

Recipes kept in run folders and contracts are read through `present`. Digests are taken of `former`: what was
computed before keeps its digest and its fingerprints. A person who types a former key is told its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS: Mapping[str, Mapping[str, str]] = {
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
VALUES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "segment": {"empty_fields": {"none": "zero", "look": "segment"}},
    "finetune": {"objects.method": {"flood": "watershed"}},
}
"""stage -> present dotted key -> former value -> present one"""

WHOLE = {"objects": {"kind", "head", "slope", "scale", "h_maxima", "method"}}
"""section -> keys that every version wrote into it where it was kept whole"""
ADDED: Mapping[str, Mapping[str, object]] = {
    "finetune": {"objects.map": "euclidean", "objects.mask_threshold": None}
}
"""stage -> key that earlier versions did not have -> the value that means what they did

A digest leaves such a key out where it has that value, so that what was computed before keeps its digest."""


def present(stage: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys and values of a recipe, nested or dotted, as this version names them."""
    result = _translated(content, KEYS.get(stage, {}), VALUES.get(stage, {}))
    for key, value in ADDED.get(stage, {}).items():
        outer, inner = key.split(".")
        # A whole section lacks the key only where an earlier version wrote it; a section that a person typed
        # is not whole and takes today's default.
        if isinstance(section := result.get(outer), dict) and WHOLE[outer] <= section.keys():
            section.setdefault(inner, value)
    return result


def former(stage: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys and values of a recipe as the first version named them."""
    keys = {new: old for old, new in KEYS.get(stage, {}).items()}
    values = {
        _renamed(key, keys): {new: old for old, new in names.items()}
        for key, names in VALUES.get(stage, {}).items()
    }
    result = _translated(content, keys, values)
    for key, value in ADDED.get(stage, {}).items():
        outer, inner = key.split(".")
        if isinstance(section := result.get(outer), dict) and section.get(inner, ...) == value:
            del section[inner]
    return result


def kept(stage: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a run folder of any kind keeps as its recipe: of one stage, a sweep or a chain."""
    result = dict(content)
    if stage == "sweep":
        inner = str(content.get("stage"))
        over = content.get("over", {})
        groups = over if isinstance(over, list) else [over]
        translated = [present(inner, group) for group in groups]
        result |= {"over": translated if isinstance(over, list) else translated[0]}
        return result | {"base": present(inner, content.get("base", {}))}
    if stage == "chain":
        steps = content.get("steps", [])
        return result | {
            "steps": [
                step | {"set": present(str(step.get("stage")), step.get("set") or {})} for step in steps
            ]
        }
    return present(stage, content)


def complaint(stage: str, key: str) -> str:
    """Returns what to type instead of a dotted key of an earlier version; empty: it is none."""
    new = _renamed(key, KEYS.get(stage, {}))
    if new == key:
        return ""
    values = VALUES.get(stage, {}).get(new, {})
    changed = "".join(f", and its value {old!r} is {value!r}" for old, value in values.items())
    return f"{key}: is called {new} now{changed}"


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """The dotted key, where it or one that it lies below has another name."""
    for old, new in names.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def _translated(
    content: Mapping[str, Any],
    keys: Mapping[str, str],
    values: Mapping[str, Mapping[str, str]],
    path: str = "",
) -> dict[str, Any]:
    above = _renamed(path, keys)
    result: dict[str, Any] = {}
    for name, value in content.items():
        dotted = f"{path}.{name}" if path else str(name)
        new = _renamed(dotted, keys)
        if isinstance(value, Mapping):
            value = _translated(value, keys, values, dotted)
        elif new in values:
            names = values[new]
            # A sweep gives a list of values.
            value = [names.get(v, v) for v in value] if isinstance(value, list) else names.get(value, value)
        result[new.removeprefix(f"{above}.") if above else new] = value
    return result
