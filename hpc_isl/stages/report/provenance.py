"""The provenance of a report: split, boxes, recipes, code, data, cost, and the elements that are missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.learning.data.split import PARTS
from hpc_isl.learning.data.split import read as read_split
from hpc_isl.plates.plate_map import OF_PLATE_MAP
from hpc_isl.plates.store import open_plate
from hpc_isl.recipes.strict import flatten
from hpc_isl.stages.report.sweep import Element, Sweep, rank, swept_keys
from hpc_isl.stages.shared.pictures import table, tag

PACKAGES = ("torch", "segmentation_models_pytorch", "numpy", "scipy", "scikit-image")
SHOWN = 12
WHERE = ["plate", "well", "field", "box", "origin", "objects"]


def provenance(sweep: Sweep) -> Iterator[object]:
    """Yields the last section of the page."""
    yield from _split(sweep)
    yield from _boxes(sweep)
    yield from _recipes(sweep)
    yield tag("h3", "Code, data and models")
    yield table(["what", "value"], _versions(sweep), "Where elements differ, all values are listed.")
    yield from _cost(sweep)
    yield tag("h3", "Elements that are missing")
    if sweep.missing:
        yield table(["element", "why"], list(sweep.missing.items()), "Not done, failed, or not readable.")
    else:
        yield tag("p", "None.")


def some(names: Sequence[str], separator: str, last: str) -> str:
    """Returns the first of many names, and how many more there are."""
    suffix = f"{last}{len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + suffix


def unlike_boxes(sweep: Sweep) -> list[str]:
    """Returns which elements learnt from different boxes though number, draw and fold are the same."""
    first_of_draw: dict[tuple[Any, ...], tuple[Element, set[Any]]] = {}
    lines = []
    for element in sweep.elements:
        recipe, names = element.recipe, ["plate", "well", "field", "box"]
        places = set(element.boxes.reindex(columns=names, fill_value="").itertuples(index=False, name=None))
        # Compared with the first element of the same number, draw and fold.
        first, boxes = first_of_draw.setdefault((recipe.n, recipe.draw, recipe.fold), (element, places))
        if boxes != places:
            lines.append(f"{element.run.name} and {first.run.name} learnt from different boxes of one draw.")
    return lines


def training_boxes(sweep: Sweep) -> pd.DataFrame:
    """Returns the boxes of each number, draw and fold, once: all arms learn from the same."""
    tables = [
        element.boxes.reindex(columns=WHERE, fill_value="").assign(
            n=element.recipe.n, draw=element.recipe.draw,
            fold="" if element.recipe.fold is None else element.recipe.fold,
        )
        for element in sorted(sweep.elements, key=lambda e: (rank(e.recipe.n), e.replicate))
        if len(element.boxes)
    ]  # fmt: skip
    boxes = (
        pd.concat(tables, ignore_index=True)
        if tables
        else pd.DataFrame(columns=["n", "draw", "fold", *WHERE])
    )
    return boxes[["n", "draw", "fold", *WHERE]].drop_duplicates()


# ---------------------------------------------------------------- split


def _split(sweep: Sweep) -> Iterator[object]:
    yield tag("h3", "Split")
    # The run of ISL keeps the split that it drew, before any element was trained.
    files = [Path(folder) / "split.csv" for folder in sweep.first.pretrained]
    files += [element.run.folder / "split.csv" for element in sweep.elements]
    path = next((path for path in files if path.is_file()), None)
    try:
        split = read_split(path) if path else None
    except UserError:
        split = None
    if split is None:
        yield tag("p", "The split's file was not found: neither in the ISL run nor in an element.")
        return
    groups = _groups(sweep)
    wells: dict[tuple[str, str], dict[str, dict[str, None]]] = {}
    for (plate, well, _), part in split.parts.items():
        row = wells.setdefault((plate, groups.get((plate, well), "")), {part: {} for part in PARTS})
        row[part][well] = None
    group_column = [sweep.group] if sweep.group else []
    body = [
        [
            plate,
            *([group] if group_column else []),
            *(f"{len(names)}: {', '.join(names)}" if (names := parts[part]) else "0" for part in PARTS),
        ]
        for (plate, group), parts in sorted(wells.items(), key=lambda item: item[0])
    ]
    yield table(["plate", *group_column, *PARTS], body, "Wells by part, made before pretraining.")


def _groups(sweep: Sweep) -> dict[tuple[str, str], str]:
    """Returns (plate, well) -> value of the group column: of the plates, where they still exist."""
    if sweep.group is None:
        return {}
    columns = (sweep.scores[name] for name in ("plate", "well", sweep.group))
    groups = {(plate, well): value for plate, well, value in zip(*columns, strict=True)}
    for path in sweep.first.plates:
        try:
            index = open_plate(path)
        # A plate that has moved keeps the values that the scores name.
        except (UserError, OSError):
            continue
        rows, column = index.plate_map.items(), sweep.group.removesuffix(OF_PLATE_MAP)
        groups |= {(index.plate.name, well): row.get(column, "") for well, row in rows}
    return groups


# ---------------------------------------------------------------- boxes and recipes


def _boxes(sweep: Sweep) -> Iterator[object]:
    yield tag("h3", "Annotation boxes that trained")
    boxes = training_boxes(sweep)
    keys = ["n", "draw", *(["fold"] if (boxes.fold != "").any() else [])]
    body = []
    for key, group in boxes.groupby(["n", "draw", "fold"], sort=False):
        places = [
            f"{box.plate} {box.well}/{box.field} ({box.box}): {box.objects}" for box in group.itertuples()
        ]
        objects = sum(float(count or 0) for count in group.objects)
        origins = ", ".join(sorted(set(group.origin)))
        body.append([*key[: len(keys)], len(group), f"{objects:g}", origins, some(places, "; ", "; and ")])
    names = {"n": "N", "draw": "draw", "fold": "fold"}
    header = [*(names[key] for key in keys), "boxes", "objects", "origin", "which: objects"]
    caption = "Boxes as y0 x0 y1 x1 in pixels; those of a draw hold those of every smaller N."
    yield table(header, body, caption, range(len(header) - 2))


def _recipes(sweep: Sweep) -> Iterator[object]:
    recipes = [flatten(element.recipe.model_dump(mode="json")) for element in sweep.elements]
    all_names, swept_rows = {name for recipe in recipes for name in recipe}, []
    for key in swept_keys(sweep.recipe):
        names = sorted(name for name in all_names if name == key or name.startswith(f"{key}.")) or [key]
        values = [dict.fromkeys(str(recipe.get(name)) for recipe in recipes) for name in names]
        swept_rows += [(name, ", ".join(texts)) for name, texts in zip(names, values, strict=True)]
    # The first element of each arm stands for it; axes of the report differ within an arm.
    pairs = reversed(list(zip(sweep.elements, recipes, strict=True)))
    arms = {element.arm: recipe for element, recipe in pairs}
    keys = dict.fromkeys(key for recipe in arms.values() for key in recipe)
    differing = [
        key
        for key in keys
        if len({str(recipe.get(key)) for recipe in arms.values()}) > 1
        and key not in {"n", "draw", "fold", "train.seed"}
    ]
    differences = [(arm, ", ".join(f"{key}={arms[arm].get(key)}" for key in differing)) for arm in sweep.arms]
    yield tag("h3", "Recipes")
    yield table(["key", "values"], swept_rows, "What is swept.")
    yield table(["arm", "differs in"], differences, "In what the arms' recipes differ.")
    base_text = "\n".join(f"{key}: {value}" for key, value in flatten(sweep.recipe.base).items())
    yield tag("p", "The base, without what varies:")
    yield tag("pre", base_text)


# ---------------------------------------------------------------- code, data, models, cost


def _versions(sweep: Sweep) -> list[tuple[str, str]]:
    """Returns names and values; where elements differ, all values."""
    records = [read_json(element.run.record) or {} for element in sweep.elements]
    rows = [("sweep", str(sweep.run.folder))]
    rows += [(name, _values(records, key)) for name, key in (
        ("version of hpc_isl", "version"), ("commit", "commit"), ("changes to it (digest)", "diff"),
        ("source files (digest)", "code"), ("submitted", "made"), ("Python", "python"),
        ("machine", "platform"),
    )]  # fmt: skip
    packages = [
        # Package names are the same with hyphens and underscores, and records hold both.
        {name.lower().replace("_", "-"): value for name, value in (record.get("packages") or {}).items()}
        for record in records
    ]
    rows += [(name, _values(packages, name.replace("_", "-"))) for name in PACKAGES]
    inputs = [record.get("inputs") or {} for record in records]
    names = dict.fromkeys(name for fingerprints in inputs for name in fingerprints)
    rows += [(f"fingerprint of {name}", _values(inputs, name)) for name in names]
    models = [*sweep.first.pretrained, *([sweep.first.drafted] if sweep.first.drafted else [])]
    rows += [(f"model {folder}", _model(Path(folder))) for folder in models]
    return [(name, value) for name, value in rows if value]


def _values(records: Sequence[Mapping[str, Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(str(record[key]) for record in records if record.get(key)))


def _model(folder: Path) -> str:
    # As JSON: a model whose weights were removed still says what it was.
    contract = read_json(folder / "model" / "contract.json")
    if contract is None:
        return "is no longer there"
    facts = [f"recipe {contract.get('digest', '?')}", f"split {contract.get('split', '?')}"]
    facts.append(f"weights {str(contract.get('weights', '?'))[:16]}")
    facts += [f"{name} {value}" for name, value in (contract.get("plates") or {}).items()]
    return ", ".join(facts)


def _cost(sweep: Sweep) -> Iterator[object]:
    yield tag("h3", "Cost")
    elements = pd.DataFrame([
        # Where the seconds are not known the sum is not a number, rather than too small.
        {"cell": element.cell, "seconds": float(element.figures.get("seconds", "nan")),
         "steps": element.figures.get("steps", 0)}
        for element in sweep.elements
    ])  # fmt: skip
    body, total_minutes = [], 0.0
    for cell in sorted(sweep.cells, key=lambda cell: rank(cell.n)):
        rows = elements[elements.cell == cell]
        seconds, steps = sum(rows.seconds), ", ".join(f"{step}" for step in sorted(set(rows.steps)))
        total_minutes += seconds / 60
        body.append([cell.arm, cell.n, len(rows), steps, f"{seconds / len(rows):.0f}", f"{seconds / 60:.1f}"])
    header = ["arm", "N", "elements", "steps", "seconds each", "minutes together"]
    yield table(header, body, f"All elements together: {total_minutes:.0f} minutes.", range(1, 6))
