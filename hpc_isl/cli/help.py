"""The help of a verb that computes: the keys of its recipe and of a site, with their defaults and meaning."""

from __future__ import annotations

import shutil
import textwrap
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic_core import PydanticUndefined

from hpc_isl.errors import UserError
from hpc_isl.recipes.base import ChainRecipe, Recipe, SweepRecipe
from hpc_isl.recipes.load import RECIPES, shipped
from hpc_isl.recipes.strict import Strict, flatten, meanings, models_in, read_yaml, written
from hpc_isl.site import Site

LEFT = 34  # width of the left column
REQUIRED = "(must be given)"
KINDS: dict[str, type[Recipe]] = {**RECIPES, "sweep": SweepRecipe, "chain": ChainRecipe}
HIDDEN = {"base"}  # of a sweep: filled from the keys that are not its own
USUAL = {
    "convert": ("plate_map", "reader", "pattern.regex", "on_error", "fields", "channels"),
    "adopt": ("index", "labels", "transmitted", "wells", "plate_map", "on_error"),
    "annotate": ("source", "channel", "method", "fields", "out", "overwrite", "model", "n"),
    "pretrain": ("sources.N.plane", "split.test", "train.steps", "train.batch",
                 "train.micro_batch", "train.precision", "net.encoder"),
    "finetune": ("pretrained", "arm", "n", "objects.kind", "train.steps", "train.micro_batch"),
    "segment": ("labels", "fields", "measure.channels", "measure.features", "cells", "pixel_um", "overlap",
                "overwrite"),
    "sweep": ("over",),
    "chain": ("steps.N.stage", "steps.N.recipe", "steps.N.set", "steps.N.stop"),
}  # fmt: skip
USUAL_OF_SITE = ("partition", "nodes", "gpus", "cpus", "memory", "time")
EXAMPLES = {
    "convert": (
        "convert source=/phenix/P01 out=/data/P01.zarr plate_map=P01.csv",
        "convert source=[/phenix/P01-live,/phenix/P01-stained] out=/data/P01.zarr",
    ),
    "adopt": ("adopt /data/P01.zarr", "adopt /archive/P01.zarr index=/data/P01.hpc_isl transmitted=[BF]"),
    "annotate": (
        "annotate draft plate=/data/P01.zarr labels=drafted channel='HOECHST 33342' fields=[B03/1,D07/2]",
        "annotate export plate=/data/P01.zarr labels=drafted out=todo/",
        "annotate import todo/ plate=/data/P01.zarr labels=nuclei",
        "annotate edit plate=/data/P01.zarr labels=nuclei fields=[B03/1,D07/2]",
        "annotate propose plate=/data/P01.zarr model=S12 n=5 labels=cells",
    ),
    "pretrain": ("pretrain plates=[/data/P01.zarr] train.steps=5000 --name S12",),
    "finetune": ("finetune finetune_nuclei.yaml pretrained=S12 plates=[/data/P01.zarr] labels=nuclei",),
    "segment": ("segment model=nuc plates='/data/P*.zarr' labels=nuclei --name nuc-P",),
    "sweep": ("sweep pretrain.yaml over='{seed: [0, 1, 2]}' plates=[/data/P01.zarr] --name seeds",),
    "chain": ("chain chain.yaml --site mycluster",),
}
Row = tuple[str, str, str]  # key, default, meaning


def stage_manual(verb: str, program: str, every_key: bool = True) -> str:
    """Returns the page of a verb: keys that must be given, the usual ones and examples, or every key."""
    kind = KINDS[verb]
    defaults, origin = _shipped_defaults(verb)
    recipe_rows, site_rows = list(rows(kind, defaults)), list(rows(Site, {}))
    required = [row for row in recipe_rows if row[1] == REQUIRED and "N." not in row[0]]
    usual = [
        row for key in USUAL.get(verb, ()) for row in recipe_rows if row[0] == key and row not in required
    ]
    lines = [str(kind.__doc__).strip(), "", "must be given", *_entries(required)]
    if every_key:
        other_rows = [row for row in recipe_rows if row not in required]
        lines += ["", f"all other keys{origin}", *_entries(other_rows)]
        if verb == "sweep":
            lines.append("  all further keys are those of the stage that varies: see pretrain --help all")
        lines += ["", "site (site.key=value)", *_entries(site_rows)]
    else:
        site_rows = [row for row in site_rows if row[0] in USUAL_OF_SITE]
        lines += ["", f"usual{origin}", *_entries(usual)] if usual else []
        lines += ["", "site (site.key=value), usual", *_entries(site_rows)]
        lines += ["", "examples", *(f"  {program} {example}" for example in EXAMPLES.get(verb, ()))]
        lines += ["", f"every key of the recipe and of the site: {program} {verb} --help all"]
    return "\n".join(lines)


def _shipped_defaults(verb: str) -> tuple[dict[str, Any], str]:
    """Returns what the shipped recipe of the verb sets, and a remark about it."""
    try:
        path = shipped(f"{verb}.yaml")
    except UserError:
        return {}, ""
    return flatten(read_yaml(path)), f" (defaults as in {path.name})"


def rows(kind: type[Recipe] | type[Site], defaults: dict[str, Any]) -> Iterator[Row]:
    """Yields key, default and meaning of every key that the verb reads, depth first."""
    return _rows(kind, defaults, unread=tuple(getattr(kind, "UNREAD", ())))


def _rows(
    kind: type[Strict],
    defaults: dict[str, Any],
    path: str = "",
    base: Strict | None = None,
    unread: tuple[str, ...] = (),
    required: str = REQUIRED,
) -> Iterator[Row]:
    meaning_of_key = meanings(kind)
    for name, field in kind.model_fields.items():
        key = f"{path}{name}"
        if name in HIDDEN or key in unread:  # unread: of a part that verbs share, and this one does not read
            continue
        default = getattr(base, name) if base is not None else field.default
        nested = models_in(field.annotation)
        is_list = typing.get_origin(field.annotation) is list
        # A part with a default has no row of its own, and the defaults of its keys come from that default.
        if nested and not is_list and isinstance(default, Strict):
            yield from _rows(nested[0], defaults, f"{key}.", default, unread)
            continue
        value = defaults.get(key, default)
        meaning, choices = meaning_of_key.get(name, ""), _choices(field.annotation)
        yield (
            key,
            required if value is PydanticUndefined else f"= {written(value)}",
            f"{meaning} [{' | '.join(map(str, choices))}]" if choices else meaning,
        )
        if nested:
            # What a part needs that is null by default must be given only with that part.
            nested_required = f"(needed with {key})" if default is None else required
            yield from _rows(
                nested[0], {}, f"{key}.{'N.' if is_list else ''}", unread=unread, required=nested_required
            )


def _choices(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _entries(rows: Iterable[Row]) -> Iterator[str]:
    """Yields two columns: `key = default`, on a line of its own where it is long, and its meaning."""
    width = max(60, min(shutil.get_terminal_size((110, 24)).columns, 120))
    for key, default, meaning in rows:
        left = f"  {key} {default}"
        wrapped = textwrap.wrap(meaning, width - LEFT) or [""]
        if len(left) < LEFT - 1:  # else the key has a line of its own
            yield f"{left:<{LEFT}}{wrapped.pop(0)}".rstrip()
        else:
            yield left
        yield from (" " * LEFT + line for line in wrapped if line)
