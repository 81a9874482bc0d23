"""What a report rests on: split, boxes, recipes, code, data, cost; and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.learning.data.split import PARTS
from hpc_isl.learning.data.split import read as read_split
from hpc_isl.plates.store import open_plate
from hpc_isl.recipes.strict import flatten
from hpc_isl.stages.report.arms import Arm, swept_keys
from hpc_isl.stages.report.sweep_results import Element, Sweep, rank

PACKAGES = ("torch", "segmentation_models_pytorch", "numpy", "scipy", "scikit-image")


@dataclass(frozen=True)
class SplitRow:
    """Wells of one plate and one value of the group column, by part."""

    plate: str
    group: str
    wells: Mapping[str, list[str]]


def split_rows(sweep: Sweep) -> list[SplitRow]:
    """Who trains, validates and tests, by plate and line; empty where no split file is found."""
    path = next((path for path in _split_files(sweep) if path.is_file()), None)
    if path is None:
        return []
    try:
        split = read_split(path)
    except UserError:
        return []
    groups = _groups(sweep)
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for (plate, well, _), part in split.parts.items():
        row = found.setdefault((plate, groups.get((plate, well), "")), {part: [] for part in PARTS})
        if well not in row[part]:
            row[part].append(well)
    return [SplitRow(plate, group, wells) for (plate, group), wells in sorted(found.items())]


def _split_files(sweep: Sweep) -> Iterator[Path]:
    yield from (Path(folder) / "split.csv" for folder in sweep.first.pretrained)
    yield from (element.run.folder / "split.csv" for element in sweep.elements)


def _groups(sweep: Sweep) -> dict[tuple[str, str], str]:
    """(plate, well) -> value of the group column: of the plates, where they are still there."""
    if sweep.group is None:
        return {}
    found = {
        scored.place[:2]: scored.columns.get(sweep.group, "") for e in sweep.elements for scored in e.scored
    }
    groups = {(plate, well): value for (plate, well), value in found.items()}
    for path in sweep.first.plates:
        try:
            index = open_plate(path)
        except (UserError, OSError):
            continue
        groups |= {
            (index.plate.name, well): row.get(sweep.group, "") for well, row in index.plate_map.items()
        }
    return groups


def unlike_boxes(sweep: Sweep) -> list[str]:
    """Arms that did not learn from the same boxes though number, draw and fold are the same."""
    first: dict[tuple[Any, ...], tuple[Element, set[Any]]] = {}
    found = []
    for element in sweep.elements:
        recipe = element.recipe
        own = {tuple(box.get(name) for name in ("plate", "well", "field", "box")) for box in element.boxes}
        other, boxes = first.setdefault((recipe.n, recipe.draw, recipe.fold), (element, own))
        if boxes != own:
            found.append(f"{element.run.name} and {other.run.name} learnt from different boxes of one draw.")
    return found


# ---------------------------------------------------------------- recipes


def swept(sweep: Sweep) -> list[tuple[str, str]]:
    """What varies: dotted key, and its values over the elements."""
    flat = [flatten(element.recipe.model_dump(mode="json")) for element in sweep.elements]
    rows = []
    for key in swept_keys(sweep.recipe):
        names = sorted({name for one in flat for name in one if name == key or name.startswith(f"{key}.")})
        values = {name: dict.fromkeys(str(one.get(name)) for one in flat) for name in names or [key]}
        rows += [(name, ", ".join(each)) for name, each in values.items()]
    return rows


def arm_differences(sweep: Sweep) -> list[tuple[Arm, str]]:
    """What an arm's recipe has that not all arms have, axes of the report apart."""
    recipes = {
        element.arm: flatten(element.recipe.model_dump(mode="json")) for element in reversed(sweep.elements)
    }
    keys = dict.fromkeys(key for recipe in recipes.values() for key in recipe)
    apart = {"n", "draw", "fold", "train.seed"}
    differing = [
        key for key in keys if len({str(one.get(key)) for one in recipes.values()}) > 1 and key not in apart
    ]
    return [(arm, ", ".join(f"{key}={recipes[arm].get(key)}" for key in differing)) for arm in sweep.arms]


# ---------------------------------------------------------------- code, data, models


def provenance(sweep: Sweep) -> list[tuple[str, str]]:
    """What, and its value; where elements differ in it, all values."""
    records = [read_json(element.run.record) or {} for element in sweep.elements]
    rows = [("sweep", str(sweep.run.folder))]
    rows += [(name, _values(records, key)) for name, key in (
        ("version of hpc_isl", "version"), ("commit", "commit"), ("changes to it (digest)", "diff"),
        ("source files (digest)", "code"), ("submitted", "made"), ("Python", "python"),
        ("machine", "platform"),
    )]  # fmt: skip
    packages = [
        {_plain(name): value for name, value in (record.get("packages") or {}).items()} for record in records
    ]
    rows += [(name, _values(packages, _plain(name))) for name in PACKAGES]
    inputs = [record.get("inputs") or {} for record in records]
    rows += [
        (f"fingerprint of {name}", _values(inputs, name))
        for name in dict.fromkeys(k for i in inputs for k in i)
    ]
    models = [*sweep.first.pretrained, *([sweep.first.drafted] if sweep.first.drafted else [])]
    rows += [(f"model {folder}", _model(Path(folder))) for folder in models]
    return [(name, value) for name, value in rows if value]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _values(records: Sequence[Mapping[str, Any]], key: str) -> str:
    return ", ".join(dict.fromkeys(str(record[key]) for record in records if record.get(key)))


def _model(folder: Path) -> str:
    contract = read_json(folder / "model" / "contract.json")
    if contract is None:
        return "is no longer there"
    facts = [f"recipe {contract.get('digest', '?')}", f"split {contract.get('split', '?')}"]
    facts.append(f"weights {str(contract.get('weights', '?'))[:16]}")
    facts += [f"{name} {value}" for name, value in (contract.get("plates") or {}).items()]
    return ", ".join(facts)


# ---------------------------------------------------------------- cost


def cost(sweep: Sweep) -> list[tuple[str, str, int, str, float, float]]:
    """Arm, N, elements, steps, mean seconds of one, seconds of all."""
    rows = []
    for cell in sweep.cells:
        own = [element.figures for element in sweep.elements if element.cell == cell]
        seconds = [float(figures.get("seconds", float("nan"))) for figures in own]
        steps = ", ".join(f"{step}" for step in sorted(Counter(figures.get("steps", 0) for figures in own)))
        rows.append((str(cell.arm), str(cell.n), len(own), steps, sum(seconds) / len(seconds), sum(seconds)))
    return sorted(rows, key=lambda row: rank(int(row[1]) if row[1].isdigit() else row[1]))
