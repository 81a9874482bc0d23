"""One field segmented, in a process of the pool: pixels to labels, features, table, and the record last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from hpc_isl.files import read_json
from hpc_isl.learning.fields import image_key
from hpc_isl.learning.foreign import Scale, read_sources, to_full
from hpc_isl.learning.model import load
from hpc_isl.learning.precision import resolve
from hpc_isl.learning.predict import Predictor
from hpc_isl.learning.view import View
from hpc_isl.mistake import Mistake
from hpc_isl.objects.features import assigned, features
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, open_plate, read_box, read_labels, write_labels
from hpc_isl.recipe import RECIPES
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.run import Run
from hpc_isl.stages import segment_files as files
from hpc_isl.stages.annotate_draft import draft
from hpc_isl.stages.objects_from import Rule, objects_in, rule_of
from hpc_isl.stages.segment_files import Row, Work
from hpc_isl.stages.segment_maps import Maps, maps_of, plate_of, write_map
from hpc_isl.stages.segment_setting import Models, models_of, scale_of, view_of
from hpc_isl.strict import parse, read_yaml

Pixels = NDArray[np.float32]
Labels = NDArray[np.uint32]


@dataclass(frozen=True)
class Bench:
    """What a process keeps between fields: the recipe and the networks, loaded once."""

    recipe: SegmentRecipe
    models: Models
    view: View
    predictor: Predictor
    rule: Rule
    stain: Predictor | None
    stain_view: View | None
    maps: Maps


@dataclass(frozen=True)
class Seen:
    """One field at one time.

    Attributes:
        prediction: (output, y, x) as the network says it, on its own grid.
        stain: (target, y, x) on the grid of its model, or None.
        labels: (y, x) at full resolution.
    """

    prediction: Pixels
    stain: Pixels | None
    labels: Labels


def segment_field(work: Work) -> Row:
    """Computes a field and writes what the recipe keeps of it; the record, which is returned, comes last.

    Raises:
        Mistake: the field cannot be read, or the disk is full.
    """
    start = monotonic()
    bench, index = bench_of(work.run), index_of(work.plate)
    seen = look(bench, index, work.key)
    table = measured(bench, index, work, seen)
    _keep(bench, index, work, seen, table)
    facts = _facts(bench, index, work, seen, table)
    return files.write_record(work, {**facts, "seconds": round(monotonic() - start, 3)})


def verify_field(work: Work) -> str:
    """What is wrong with a field that is done, by computing it again; empty where nothing is."""
    bench, index = bench_of(work.run), index_of(work.plate)
    record = read_json(work.record) or {}
    seen = look(bench, index, work.key)
    table = measured(bench, index, work, seen)
    if files.content_hash([each.labels for each in seen], table) != record.get("hash"):
        return "computed again, its objects are others than its record says"
    image = index.image(work.key)
    if "labels" in bench.recipe.write:
        kept = read_labels(image, files.labels_name(image, bench.models.labels))
        if not np.array_equal(kept, _stacked(seen)):
            return "its labels on disk are others than were computed"
    return "" if pq.read_table(work.table).equals(table) else "its table on disk is another than was computed"


@lru_cache(maxsize=2)
def bench_of(run: Path) -> Bench:
    """The networks of a run, ready on this process's device."""
    recipe = parse(RECIPES["segment"], read_yaml(Run(run).recipe), str(Run(run).recipe))
    assert isinstance(recipe, SegmentRecipe)
    models = models_of(recipe)
    stained = models.stain_contract
    return Bench(
        recipe, models, view_of(recipe, models.contract), _loaded(recipe, models.folder),
        _rule(recipe, models),
        stain=_loaded(recipe, models.stain) if models.stain else None,
        stain_view=view_of(recipe, stained) if stained else None,
        maps=maps_of(recipe.write, models.contract, stained),
    )  # fmt: skip


def _rule(recipe: SegmentRecipe, models: Models) -> Rule:
    """The model's rule, with what the recipe says otherwise."""
    changes = {key: value for key in ("h", "min_area") if (value := getattr(recipe, key)) is not None}
    return replace(rule_of(models.contract.task), **changes)


def _loaded(recipe: SegmentRecipe, folder: Path) -> Predictor:
    """The network on the device that this process sees."""
    network, contract = load(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    of = recipe.predict or contract.predict
    precision = recipe.precision or _possible(contract.precision, device)
    return Predictor(
        network, device, resolve(precision, device), tile=of.tile, halo=of.halo, batch=of.batch,
        threads=recipe.threads, channels_last=contract.net.channels_last, compiled=recipe.compile,
    )  # fmt: skip


def _possible(precision: str, device: torch.device) -> str:
    """What the model was scored with, where the device computes so: a CPU computes in fp32."""
    return precision if device.type == "cuda" else "fp32"


@lru_cache(maxsize=16)
def index_of(plate: Path) -> Index:
    return open_plate(plate)


# ---------------------------------------------------------------- pixels to labels


def look(bench: Bench, index: Index, key: FieldKey) -> list[Seen]:
    """All times of a field."""
    return [_look(bench, index, key, time) for time in range(index.field(key).shape[0])]


def _look(bench: Bench, index: Index, key: FieldKey, time: int) -> Seen:
    scale = scale_of(bench.recipe, bench.view, index, key)
    prediction = bench.predictor(read_sources(bench.view, index, key, time, scale))
    shape = index.field(image_key(key, bench.view.sources[0])).shape
    full = to_full(prediction, scale, (shape[-2], shape[-1]))
    stain = _stain(bench, index, key, time)
    return Seen(prediction, stain, objects_in(full, bench.rule.finer(scale.to_level_0)))


def _stain(bench: Bench, index: Index, key: FieldKey, time: int) -> Pixels | None:
    if bench.stain is None or bench.stain_view is None:
        return None
    scale = _stain_scale(bench, index, key)
    return bench.stain(read_sources(bench.stain_view, index, key, time, scale))


def _stain_scale(bench: Bench, index: Index, key: FieldKey) -> Scale:
    assert bench.stain_view is not None
    return scale_of(bench.recipe, bench.stain_view, index, key)


# ---------------------------------------------------------------- labels to a table


def measured(bench: Bench, index: Index, work: Work, seen: list[Seen]) -> pa.Table:
    """One row for each object of a field."""
    rows = []
    for time, each in enumerate(seen):
        channels = _channels(bench, index, work.key, time, each)
        columns = features(each.labels, channels, index.plate.pixel_um)
        if bench.recipe.cells:
            columns["cell"] = _cells(bench.recipe.cells, index, work.key, time, each.labels)
        rows.append((time, columns))
    return files.table_of(work, rows)


def _channels(
    bench: Bench, index: Index, key: FieldKey, time: int, seen: Seen
) -> Mapping[str, NDArray[Any]]:
    """Channel -> (y, x): stored counts of those that are measured, and the predicted stains."""
    there = {channel.name: channel.fluorescent for channel in index.plate.channels}
    wanted = bench.recipe.measure
    names = [name for name, stains in there.items() if stains] if wanted is None else wanted
    found = {name: _projected(index, key, time, name, there[name]) for name in names}
    if seen.stain is None or bench.stain_view is None:
        return found
    shape = (seen.labels.shape[0], seen.labels.shape[1])
    full = to_full(seen.stain, _stain_scale(bench, index, key), shape)
    names = [f"{role.channel} (predicted)" for role in bench.stain_view.targets]
    return found | dict(zip(names, full, strict=True))


def _projected(index: Index, key: FieldKey, time: int, name: str, fluorescent: bool) -> NDArray[Any]:
    """The maximum over the planes of a stain, the mean of those of transmitted light."""
    planes = list(index.field(key).planes(name))
    if not planes:
        shape = index.field(key).shape
        return np.zeros(shape[-2:], np.float32)
    whole = slice(None)
    stack = read_box(index.image(key), 0, time, index.channel(name), planes, whole, whole)
    return stack.max(0) if fluorescent else stack.mean(0, dtype=np.float32)


def _cells(name: str, index: Index, key: FieldKey, time: int, labels: Labels) -> NDArray[np.uint32]:
    """For each object the cell that it lies in."""
    cells = read_labels(index.image(key), name)
    return assigned(labels, cells[time] if cells.ndim == 3 else cells)


# ---------------------------------------------------------------- what is kept


def _keep(bench: Bench, index: Index, work: Work, seen: list[Seen], table: pa.Table) -> None:
    image, write = index.image(work.key), bench.recipe.write
    if bench.maps.channels:
        _keep_maps(bench, index, work, seen)
    if "labels" in write:
        labels = _stacked(seen)
        write_labels(
            image, files.labels_name(image, bench.models.labels), labels, origin="segmented",
            boxes=[(0, 0, *labels.shape[-2:])], fingerprint=work.fingerprint, overwrite=True,
        )  # fmt: skip
    files.write_table(work.table, table)


def _keep_maps(bench: Bench, index: Index, work: Work, seen: list[Seen]) -> None:
    scale = scale_of(bench.recipe, bench.view, index, work.key)
    plate = plate_of(index, bench.maps, scale.pixel_um)
    pixels = np.stack([bench.maps.of(each.prediction, each.stain) for each in seen])
    write_map(work.maps, plate, work.key, pixels)


def _stacked(seen: list[Seen]) -> Labels:
    """(y, x), or (t, y, x) of a field with times."""
    return np.stack([each.labels for each in seen]) if len(seen) > 1 else seen[0].labels


def _facts(bench: Bench, index: Index, work: Work, seen: list[Seen], table: pa.Table) -> Row:
    truth = _truth(bench, index, work.key, len(seen))
    return {
        "shape": list(seen[0].labels.shape),
        "pixel_um": index.plate.pixel_um,
        "objects": table.num_rows,
        "area": sum(int(np.count_nonzero(each.labels)) for each in seen),
        **({} if truth is None else {"truth": truth}),
        "hash": files.content_hash([each.labels for each in seen], table),
    }


def _truth(bench: Bench, index: Index, key: FieldKey, times: int) -> int | None:
    """How many objects there are by labels or by a stain; None where the field has neither."""
    of, image = bench.recipe.truth, index.image(key)
    if of is None:
        return None
    if of.labels is not None:
        try:
            labels = read_labels(image, of.labels)
        except Mistake:
            return None
        return sum(_count(plane) for plane in labels.reshape(-1, *labels.shape[-2:]))
    assert of.channel is not None
    if of.channel not in [channel.name for channel in index.plate.channels]:
        return None
    if f"empty:{index.channel(of.channel)}" in index.statistics[key].flags:
        return 0
    how = {"threshold": of.threshold, "sigma": of.sigma, "min_area": of.min_area, "split": True}
    stains = [_projected(index, key, time, of.channel, True) for time in range(times)]
    return sum(int(draft(stain, **how).max()) for stain in stains)  # type: ignore[arg-type]


def _count(labels: Labels) -> int:
    return int(np.count_nonzero(np.unique(labels)))
