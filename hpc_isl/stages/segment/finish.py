"""The end of a segmentation: tables of plates, counts of wells, losses, pictures, and the done record."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hpc_isl.files import write_atomic
from hpc_isl.plates.plate import Field, FieldKey
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.segment import overlap, pictures
from hpc_isl.stages.segment.drift import write_drift
from hpc_isl.stages.segment.files import FieldTask, Row, csv_text, fitted, schema_file, write_table
from hpc_isl.stages.segment.inputs import Models, PlateInput, scale_of, taught, view_of
from hpc_isl.stages.segment.maps import finish_maps, maps_of, plate_of
from hpc_isl.stages.segment.overlap import Duplicate, wells_of
from hpc_isl.tasks import Pool, Task

VERIFY = "verify.json"
"""In a run folder: which share of its fields is to be computed again."""
GROUP = 2**16  # rows that are written, and read, together
Doubles = Mapping[str, Sequence[Duplicate]]
"""Slug of a plate -> its objects that are seen twice."""


def mark_duplicates(
    recipe: SegmentRecipe,
    models: Models,
    places: Sequence[tuple[PlateInput, FieldTask]],
    rows: Sequence[Row],
    pool: Pool,
) -> Doubles | None:
    """The objects of overlapping fields that do not count; None if the run is stopping."""
    if recipe.overlap is None or "labels" not in recipe.outputs:
        return {}
    whole: dict[str, tuple[PlateInput, dict[FieldKey, str]]] = {}
    for (target, work), row in zip(places, rows, strict=True):
        if "problem" not in row:
            whole.setdefault(target.slug, (target, {}))[1][work.key] = work.labels_fingerprint
    tasks, owner = [], {}
    for slug, (target, marks) in whole.items():
        for number, well in enumerate(wells_of(target.index, marks, models.labels, recipe.overlap)):
            tasks.append(Task(f"{slug} {number}", well, overlap.memory(target.index, well)))
            owner[tasks[-1].name] = slug
    found: dict[str, list[Duplicate]] = {}
    answers = 0
    for answer in pool.run(overlap.find_duplicates, tasks):
        if answer.problem:
            raise RuntimeError(f"overlapping fields of {answer.name}: {answer.problem}")
        answers += 1
        found.setdefault(owner[answer.name], []).extend(answer.value)
    return found if answers == len(tasks) else None


def finish(
    recipe: SegmentRecipe,
    models: Models,
    targets: Sequence[PlateInput],
    attempt: Attempt,
    rows: Sequence[Row],
    doubles: Doubles,
    seconds: float,
) -> None:
    """Everything about the run as a whole; refuses while a field has neither objects nor a reason.

    Raises:
        RuntimeError: no field at all could be segmented.
    """
    run, lost = attempt.run, [row for row in rows if "problem" in row]
    missing = sum(len(target.keys) for target in targets) - len(rows)
    assert not missing, f"{missing} fields have no record"
    to_retry = len(lost)
    if recipe.fields is None:
        lost += [left for target in targets for left in _left_out(target)]
    _write_losses(run, lost)
    if to_retry == len(rows):
        raise RuntimeError(f"no field could be segmented; the first: {lost[0]['problem']}")
    schema = pq.read_schema(schema_file(run.folder))
    for target in targets:
        _write_table(run, target, rows, doubles.get(target.slug, ()), schema)
    _write_plates(recipe, models, run, targets)
    _say_doubts(rows, attempt)
    made = {"objects, per field": run.folder / "objects", "objects, per plate": run.folder / "tables"}
    made |= {"losses": run.folder / "losses.csv"} if lost else {}
    made |= _made_of_all(recipe, models, targets, attempt, rows)
    (run.folder / VERIFY).unlink(missing_ok=True)
    attempt.finish(
        {
            "figures": {**_figures(rows, doubles, len(lost)), "seconds": round(seconds, 1)},
            "made": {what: str(path) for what, path in made.items()},
            **({"lost": to_retry} if to_retry else {}),
            "next": [*(["retry {run}"] if to_retry else []), "table {run} out=wells.csv"],
        }
    )


def _made_of_all(
    recipe: SegmentRecipe,
    models: Models,
    targets: Sequence[PlateInput],
    attempt: Attempt,
    rows: Sequence[Row],
) -> dict[str, Path]:
    """Drift, maps, counts and pictures: what they are -> where they are."""
    from hpc_isl.stages.table.stage import after_segmenting  # brings pandas, which a plan does not wait for

    return (
        write_drift(recipe, models, targets, attempt, rows)
        | _finish_maps(recipe, models, targets, attempt.run, rows)
        | after_segmenting(attempt.run)
        | pictures.draw(recipe, models, targets, attempt.run, rows)
    )


def _figures(rows: Sequence[Row], doubles: Doubles, lost: int) -> dict[str, int]:
    twice = sum(len(each) for each in doubles.values())
    found = {
        "objects": sum(row.get("objects", 0) for row in rows) - twice,
        "fields": sum("problem" not in row for row in rows),
        "lost fields": lost,
    }
    return found | ({"seen twice": twice} if twice else {})


def _left_out(target: PlateInput) -> Iterator[Row]:
    """Fields left out by `convert`, or without a source: they are missing in the counts of their wells."""
    passes = {key.acquisition for key in target.keys}
    texts: dict[FieldKey, list[str]] = {}
    there = {field.key for field in target.index.plate.fields}
    for key, text, _ in target.index.problems:
        if key.acquisition in passes and key not in there:
            texts.setdefault(key, []).append(text)
    reasons = {key: f"left out by convert: {'; '.join(said)}" for key, said in texts.items()}
    reasons |= dict.fromkeys(target.without, "left out: a source of the model was not imaged")
    for key, reason in reasons.items():
        where = {"well": key.well, "field": key.name, "acquisition": key.acquisition}
        yield {"plate": target.name, **where, "problem": reason}


def _say_doubts(rows: Sequence[Row], attempt: Attempt) -> None:
    """What workers found doubtful; and results repeat to the bit on one kind of device alone."""
    for doubt in sorted({row["doubt"] for row in rows if "doubt" in row}):
        attempt.log(f"warning: {doubt}")
    if empty := sum("empty" in row for row in rows):
        attempt.log(f"{empty} fields show nothing that has any structure: they have no objects")
    devices = Counter(row["device"] for row in rows if "device" in row)
    if len(devices) > 1:
        found = ", ".join(f"{count} on {device}" for device, count in devices.most_common())
        attempt.log(f"warning: fields were computed on unlike devices ({found}): last bits may differ")


def _write_losses(run: Run, lost: Sequence[Row]) -> None:
    """`losses.csv`: every field that has no objects because it could not be read, and why."""
    path = run.folder / "losses.csv"
    if not lost:
        return path.unlink(missing_ok=True)
    names = ("plate", "well", "field", "acquisition", "problem")
    return write_atomic(path, csv_text(names, ([row[name] for name in names] for row in lost)))


def _write_plates(recipe: SegmentRecipe, models: Models, run: Run, targets: Sequence[PlateInput]) -> None:
    """`plates.json`: what tables and pictures need to know of the plates, without opening them."""
    plates = [
        {
            "plate": target.name, "slug": target.slug, "path": str(target.index.path),
            "rows": list(target.index.plate.rows), "columns": list(target.index.plate.columns),
            "pixel_um": target.index.plate.pixel_um, "kind": models.kind,
            "taught": [f"{k.well}/{k.name}" for k in target.keys if taught(recipe, models, target, k)],
            "left_out": [
                {name: row[name] for name in ("well", "field", "acquisition", "problem")}
                for row in (_left_out(target) if recipe.fields is None else ())
            ],
            "plate_map": {well: dict(line) for well, line in target.index.plate_map.items()},
        }
        for target in targets
    ]  # fmt: skip
    write_atomic(run.folder / "plates.json", json.dumps(plates, indent=1))


# ---------------------------------------------------------------- one table per plate


def _write_table(
    run: Run, target: PlateInput, rows: Sequence[Row], twice: Sequence[Duplicate], schema: pa.Schema
) -> None:
    """All objects of a plate, in groups of rows that memory holds; with `duplicate_of`."""
    again: dict[str, dict[tuple[int, int], str]] = {}
    for image, time, label, of in twice:
        again.setdefault(image, {})[time, label] = of
    path = run.folder / "tables" / f"{target.slug}.parquet"
    stream = io.BytesIO()
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.Table] = []
    for key in _whole(target, rows):
        file = FieldTask(run.folder, target.index.path, target.name, target.slug, key).table
        part = _with_duplicates(_with_all_columns(file, schema), again.get(str(key), {}))
        writer = writer or pq.ParquetWriter(stream, part.schema, compression="zstd")
        waiting.append(part)
        if sum(each.num_rows for each in waiting) >= GROUP:
            writer.write_table(pa.concat_tables(waiting))
            waiting.clear()
    if writer is None:
        return path.unlink(missing_ok=True)
    if waiting:
        writer.write_table(pa.concat_tables(waiting))
    writer.close()
    return write_atomic(path, stream.getvalue())


def _with_all_columns(file: Path, schema: pa.Schema) -> pa.Table:
    """The table of a field; one that an earlier version wrote gets the columns of other plates."""
    part = pq.read_table(file)
    if not part.schema.equals(schema):
        part = fitted(part, schema)
        write_table(file, part)
    return part


def _with_duplicates(part: pa.Table, of: Mapping[tuple[int, int], str]) -> pa.Table:
    places = zip(part["time"].to_pylist(), part["label"].to_pylist(), strict=True) if of else []
    names = [of.get(place) for place in places] if of else [None] * part.num_rows
    return part.append_column("duplicate_of", pa.array(names, pa.string()))


# ---------------------------------------------------------------- plates of maps


def _finish_maps(
    recipe: SegmentRecipe, models: Models, targets: Sequence[PlateInput], run: Run, rows: Sequence[Row]
) -> dict[str, Path]:
    """What the networks say, as plates that open like any other."""
    maps = maps_of(recipe.outputs, models.contract, models.stain_contract)
    if not maps.channels:
        return {}
    view = view_of(recipe, models.contract)
    for target in targets:
        fields = []
        for key in _whole(target, rows):
            scale = scale_of(recipe, view, target.index, key)
            shape = (target.index.field(key).shape[0], len(maps.channels), 1, *scale.shape)
            fields.append(Field(key=key, shape=shape, dtype="float32"))
        if fields:
            path = run.folder / "maps" / f"{target.slug}.zarr"
            finish_maps(path, plate_of(target.index, maps, scale.pixel_um), fields, target.index)
    return {"what the network says": run.folder / "maps"}


def _whole(target: PlateInput, rows: Sequence[Row]) -> list[FieldKey]:
    """The fields of a plate that are not lost, in plate order."""
    there = {(row["well"], row["field"], row["acquisition"]) for row in rows
             if row["plate"] == target.name and "problem" not in row}  # fmt: skip
    return [key for key in target.keys if (key.well, key.name, key.acquisition) in there]
