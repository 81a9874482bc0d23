"""`VERB --help`: the keys of a recipe and of a site, with their defaults and meaning."""

from __future__ import annotations

import shutil
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from hpc_isl.errors import UserError
from hpc_isl.recipes.base import Recipe
from hpc_isl.recipes.load import RECIPES, shipped
from hpc_isl.recipes.many import ChainRecipe, SweepRecipe
from hpc_isl.recipes.strict import Strict, flatten, models_in, read_yaml, written
from hpc_isl.site import Site

LEFT = 34
KINDS: dict[str, type[Recipe]] = {**RECIPES, "sweep": SweepRecipe, "chain": ChainRecipe}
HIDDEN = {"base"}  # of a sweep: filled from the keys that are not its own
USAGE = {
    "annotate import": "annotate import FOLDER [RECIPE.yaml] plate=… labels=…",
    "annotate draft": "annotate draft [RECIPE.yaml] plate=… labels=… channel=…",
    "annotate export": "annotate export [RECIPE.yaml] plate=… labels=… out=FOLDER",
    "sweep": "sweep [RECIPE.yaml] over='{seed: [0, 1, 2]}' [key=value …]",
    "chain": "chain RECIPE.yaml",
}


def stage_manual(verb: str, program: str) -> str:
    """The whole page."""
    kind, options = KINDS[verb], "[--site NAME|FILE] [--name RUN] [--dry-run [--time]] [--wait]"
    options = options if verb == "chain" else f"{options} [--after RUN]"
    options += " [--verify 1%]" if verb == "segment" else ""  # that share is computed again and compared
    options += " [--update]" if verb == "sweep" else ""  # elements whose inputs have changed, once more
    usages = [text for name, text in USAGE.items() if name.startswith(verb)]
    usages = usages or [f"{verb} [RECIPE.yaml] [key=value …]"]
    given, origin = _shipped(verb)
    lines = [str(kind.__doc__).strip(), "", *(f"{program} {usage} {options}" for usage in usages)]
    more = ["  all other keys are those of the stage that varies, as pretrain --help lists them"]
    lines += ["", f"recipe{origin}", *_entries(rows(kind, given)), *(more if verb == "sweep" else []), ""]
    lines += ["site (site.key=value)", *_entries(rows(Site, {}))]
    return "\n".join(lines)


def _shipped(verb: str) -> tuple[dict[str, Any], str]:
    """What the shipped recipe of the verb sets."""
    try:
        path = shipped(f"{verb}.yaml")
    except UserError:
        return {}, ""
    return flatten(read_yaml(path)), f" (defaults as in {path.name})"


Row = tuple[str, str, str]


def rows(kind: type[Recipe] | type[Site], given: dict[str, Any]) -> Iterator[Row]:
    """Key, default and meaning of every key that the verb reads, depth first."""
    return _rows(kind, given, unread=tuple(getattr(kind, "UNREAD", ())))


def _rows(
    kind: type[Strict],
    given: dict[str, Any],
    path: str = "",
    base: Strict | None = None,
    unread: tuple[str, ...] = (),
) -> Iterator[Row]:
    for name, known in kind.model_fields.items():
        if name in HIDDEN:
            continue
        key = f"{path}{name}"
        if key in unread:
            continue
        default = getattr(base, name) if base is not None else known.default
        nested = models_in(known.annotation)
        is_list = typing.get_origin(known.annotation) is list
        if nested and not is_list and isinstance(default, Strict):
            yield from _rows(nested[0], given, f"{key}.", default, unread)
            continue
        yield key, _shown(given.get(key, default)), _meaning(known)
        if nested:
            yield from _rows(nested[0], {}, f"{key}.{'N.' if is_list else ''}", unread=unread)


def _shown(default: Any) -> str:
    return "(must be given)" if default is PydanticUndefined else f"= {written(default)}"


def _meaning(known: Any) -> str:
    text = " ".join((known.description or "").split())
    choices = _choices(known.annotation)
    return f"{text} [{' | '.join(map(str, choices))}]" if choices else text


def _choices(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _entries(rows: Iterator[Row]) -> Iterator[str]:
    """Two columns: `key = default` and its meaning; a long left side has a line of its own."""
    width = max(60, min(shutil.get_terminal_size((110, 24)).columns, 120))
    for key, default, meaning in rows:
        left = f"  {key} {default}"
        wrapped = textwrap.wrap(meaning, width - LEFT) or [""]
        if len(left) < LEFT - 1:
            yield f"{left:<{LEFT}}{wrapped.pop(0)}".rstrip()
        else:
            yield left
        yield from (" " * LEFT + line for line in wrapped if line)
