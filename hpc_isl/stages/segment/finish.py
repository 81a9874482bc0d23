"""The end of a run: tables of plates, failed fields, drift of wells, pictures, and the done record."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from hpc_isl.errors import many
from hpc_isl.files import write_atomic
from hpc_isl.learning.data.drift import FACTS, FAR
from hpc_isl.learning.data.pixels import Pixels
from hpc_isl.learning.data.rescale import read_sources
from hpc_isl.objects.types import Labels
from hpc_isl.plates.plate import NOT_IMAGED, Field, FieldKey
from hpc_isl.plates.plate_map import described
from hpc_isl.plates.store import finalise, read_label_box
from hpc_isl.run import Attempt, Run
from hpc_isl.seeds import evenly_spread
from hpc_isl.stages.segment import gather
from hpc_isl.stages.segment.files import PLACE, Row, labels_name, maps_of, schema_file, write_csv
from hpc_isl.stages.segment.inputs import PlateInput, SegmentInputs
from hpc_isl.stages.segment.overlap import Duplicates
from hpc_isl.stages.shared.pictures import INK, panel_grid, save, show_grey

VERIFY = "verify.json"
"""In a run folder: which share of its fields is to be computed again."""
DRIFT = "drift.png"
FIELDS_SHOWN = 6
FAR_SHOWN = 5  # wells that are far, beside one that is not
EDGE = 512  # pixels of a field that a picture shows
Panel = tuple[str, Pixels, Labels]
"""Title, image and labels."""


def finish(
    inputs: SegmentInputs, attempt: Attempt, rows: Sequence[Row], duplicates: Duplicates, seconds: float
) -> None:
    """Writes all about the run as a whole; refuses while a field has neither objects nor a reason.

    Raises:
        RuntimeError: no field at all could be segmented.
    """
    from hpc_isl.stages.table.stage import after_segmenting  # brings pandas, which a plan does not wait for

    run, failed = attempt.run, [row for row in rows if "problem" in row]
    # A field without a row would silently be missing from all counts.
    missing = len(inputs.fields) - len(rows)
    assert not missing, f"{missing} fields have no record"
    to_retry = len(failed)
    left_out = {plate.slug: list(_left_out_rows(plate)) for plate in inputs.plates}
    failed += [row for plate in left_out.values() for row in plate]
    losses = run.folder / "losses.csv"
    if failed:
        write_csv(losses, failed, ("plate", *PLACE, "problem"))
    else:
        losses.unlink(missing_ok=True)  # of an earlier attempt
    if to_retry == len(rows):
        raise RuntimeError(f"no field could be segmented; the first: {failed[0]['problem']}")
    schema, complete_keys = pq.read_schema(schema_file(run.folder)), _complete_keys(inputs, rows)
    for plate in inputs.plates:
        gather.gather_objects(run, plate, complete_keys[plate.slug], duplicates.get(plate.slug, ()), schema)
        gather.gather_records(run, plate)
    _write_plates(inputs, run, left_out)
    empty = sum("empty" in row for row in rows)
    _log_doubts(rows, empty, attempt)
    created_files = {"objects, per plate": run.folder / "tables"}
    created_files |= {"losses": losses} if failed else {}
    created_files |= write_drift(inputs, attempt, rows)
    created_files |= _finish_maps(inputs, run, complete_keys)
    created_files |= after_segmenting(run)
    created_files |= draw_objects(inputs, run, rows)
    (run.folder / VERIFY).unlink(missing_ok=True)
    gather.remove_single_files(run, inputs.plates)
    duplicate_count = sum(len(objects) for objects in duplicates.values())
    # The names of figures stay: scripts and trackers read those of all versions.
    figures = {
        "objects": sum(row.get("objects", 0) for row in rows) - duplicate_count,
        "fields": len(rows) - to_retry, "lost fields": len(failed),
        **({"empty fields": empty} if empty else {}),
        **({"seen twice": duplicate_count} if duplicate_count else {}), "seconds": round(seconds, 1),
    }  # fmt: skip
    attempt.finish({
        "figures": figures, "made": {description: str(path) for description, path in created_files.items()},
        **({"lost": to_retry} if to_retry else {}),
        "next": [*(["retry {run}"] if to_retry else []), "table {run} out=wells.csv"],
    })  # fmt: skip


def _left_out_rows(plate: PlateInput) -> Iterator[Row]:
    """Yields fields left out by `convert`, or without a source: the counts of their wells lack them.

    None where the recipe chooses its fields: the user knows which.
    """
    if plate.recipe.fields is not None:
        return
    acquisitions = {key.acquisition for key in plate.keys}
    by_field: dict[FieldKey, list[str]] = {}
    converted = {field.key for field in plate.index.plate.fields}
    for key, problem, _ in plate.index.problems:
        if key.acquisition in acquisitions and key not in converted:
            by_field.setdefault(key, []).append(problem)
    reasons = {key: f"left out by convert: {'; '.join(problems)}" for key, problems in by_field.items()}
    reasons |= dict.fromkeys(plate.keys_without_source, "left out: a source of the model was not imaged")
    for key, reason in reasons.items():
        place = {"well": key.well, "field": key.name, "acquisition": key.acquisition}
        yield {"plate": plate.name, **place, "problem": reason}


def _log_doubts(rows: Sequence[Row], empty: int, attempt: Attempt) -> None:
    """Logs doubts of workers, empty fields, and that bits are the same on one kind of device alone."""
    for doubt in sorted({row["doubt"] for row in rows if "doubt" in row}):
        attempt.log(f"warning: {doubt}")
    if empty:
        attempt.log(
            f"{many(empty, 'field', 'shows', 'show')} nothing that has any structure: no objects there "
            f"({empty / len(rows):.1%} of all; empty_fields=segment, under another name of labels, asks the "
            "model about them too)"
        )
    devices = Counter(row["device"] for row in rows if "device" in row)
    if len(devices) > 1:
        counts = ", ".join(f"{count} on {device}" for device, count in devices.most_common())
        attempt.log(f"warning: fields were computed on unlike devices ({counts}): last bits may differ")


def _write_plates(inputs: SegmentInputs, run: Run, left_out: Mapping[str, Sequence[Row]]) -> None:
    """Writes `plates.json`: what tables and pictures need to know of the plates, without opening them."""
    plates = [
        {
            "plate": plate.name, "slug": plate.slug, "path": str(plate.index.path),
            "rows": list(plate.index.plate.rows), "columns": list(plate.index.plate.columns),
            "pixel_um": plate.index.plate.pixel_um, "kind": plate.models.kind,
            "taught": [f"{key.well}/{key.name}" for key in plate.keys if plate.was_trained_on(key)],
            "left_out": [
                {name: row[name] for name in (*PLACE, "problem")} for row in left_out[plate.slug]
            ],
            "incomplete": sorted({f"{key.well}/{key.name}" for key in {*plate.keys} & {
                key for key, _, kind in plate.index.problems if kind != NOT_IMAGED}}),
            "shown": plate.models.view.sources[0].channel,
            "plate_map": {well: dict(line) for well, line in plate.index.plate_map.items()},
        }
        for plate in inputs.plates
    ]  # fmt: skip
    write_atomic(run.folder / "plates.json", json.dumps(plates, indent=1))


def _finish_maps(
    inputs: SegmentInputs, run: Run, complete_keys: Mapping[str, Sequence[FieldKey]]
) -> dict[str, Path]:
    """Makes the maps plates that open like any other, with the plate maps of those that they come from."""
    maps = maps_of(inputs.recipe.outputs, inputs.models.contract, inputs.models.stain_contract)
    if not maps.channels:
        return {}
    for plate in inputs.plates:
        fields, index = [], plate.index
        for key in complete_keys[plate.slug]:
            scale = plate.scale(key)
            shape = (index.field(key).shape[0], len(maps.channels), 1, *scale.shape)
            fields.append(Field(key=key, shape=shape, dtype="float32"))
        if fields:
            maps_plate = maps.plate(index, scale.pixel_um, fields)
            plate_map = {well: index.plate_map[well] for well in maps_plate.wells if well in index.plate_map}
            finalise(run.folder / "maps" / f"{plate.slug}.zarr", maps_plate, plate_map)
    return {"what the network says": run.folder / "maps"}


def _complete_keys(inputs: SegmentInputs, rows: Sequence[Row]) -> dict[str, list[FieldKey]]:
    """Returns slug of a plate -> its fields that did not fail, in plate order."""
    complete_keys: dict[str, list[FieldKey]] = {plate.slug: [] for plate in inputs.plates}
    for (plate, key), row in zip(inputs.fields, rows, strict=True):
        if "problem" not in row:
            complete_keys[plate.slug].append(key)
    return complete_keys


# ---------------------------------------------------------------- pictures


def _drawable_fields(inputs: SegmentInputs, rows: Sequence[Row]) -> list[tuple[PlateInput, FieldKey, Row]]:
    """Returns the fields that did not fail and whose first time, which pictures show, was imaged."""
    return [
        (*place, row)
        for place, row in zip(inputs.fields, rows, strict=True)
        if "problem" not in row and 0 not in row.get("not_imaged", ())
    ]


def draw_objects(inputs: SegmentInputs, run: Run, rows: Sequence[Row]) -> dict[str, Path]:
    """Draws `pictures/objects.png`: the first source of up to six fields, with the outline of each object."""
    fields = _drawable_fields(inputs, rows)
    if not fields or not inputs.keeps_labels:
        return {}
    path = run.pictures / "objects.png"
    _draw_panels([_panel(*field) for field in evenly_spread(fields, FIELDS_SHOWN)], path)
    return {"objects on images": path}


def _panel(plate: PlateInput, key: FieldKey, row: Row, last_line: str = "") -> Panel:
    """Returns the middle of a field on the grid that the model sees; no more is read.

    `last_line`: of the title; empty: how many objects there are.
    """
    index, scale = plate.index, plate.scale(key)
    y, x = (slice((n - min(n, EDGE)) // 2, (n + min(n, EDGE)) // 2) for n in scale.shape)
    source = read_sources(plate.models.view, index, key, 0, scale, (y, x))[0]
    # Labels are of full resolution: those at the centres of the model's pixels are shown.
    rows, columns = (
        np.minimum(((np.arange(s.start, s.stop) + 0.5) * scale.to_level_0).astype(int), n - 1)
        for s, n in zip((y, x), index.field(key).shape[-2:], strict=True)
    )
    image, name = plate.image(key), labels_name(plate.image(key), plate.models.labels)
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    labels = read_label_box(image, name, 0, *box)[np.ix_(rows - rows[0], columns - columns[0])]
    if not last_line:
        small = sum(row.get("dropped", []))
        last_line = f"{many(row['objects'], 'object')} in the whole field"
        last_line += f", {small:,} too small" if small else ""
    facts = described(index.plate_map.get(key.well, {}))
    return f"{plate.name} {', '.join([str(key), *facts])}\n{last_line}", source, labels


def _draw_panels(panels: Sequence[Panel], path: Path, legend: str = "") -> None:
    """Draws images with the outlines of their objects, three in a row."""
    from skimage.segmentation import find_boundaries

    figure, axes = panel_grid(len(panels), 3, 4.2, 4.6)
    for axis, (title, image, labels) in zip(axes, panels, strict=False):
        show_grey(axis, image)
        edges = np.ma.masked_equal(find_boundaries(labels, mode="inner").astype(np.uint8), 0)
        axis.imshow(edges, cmap="autumn", vmin=0, vmax=1.5, interpolation="nearest")
        axis.set_title(title, fontsize=9, color=INK)
    if legend:
        lines = textwrap.wrap(legend, 58 * min(3, len(panels)))
        figure.supxlabel("\n".join(lines), fontsize=8, color=INK, x=0.01, ha="left")
    save(figure, path)


# ---------------------------------------------------------------- drift


def write_drift(inputs: SegmentInputs, attempt: Attempt, rows: Sequence[Row]) -> dict[str, Path]:
    """Writes `drift.csv`, and `pictures/drift.png` where wells are far; returns what each is -> its path.

    Wells that the model's reference was made of are in the table, and never called unlike it.
    """
    if not inputs.models.contract.reference:
        attempt.log("the model's contract has no statistics of its training fields: drift is not known")
        return {}
    wells = [row for plate in inputs.plates for row in plate.drift(plate.keys)]
    if not wells:
        return {}
    path = attempt.run.folder / "drift.csv"
    write_csv(path, wells)
    created_files = {"drift of each well": path}
    new_wells = [well for well in wells if not well["in_training"]]
    far = sorted((well for well in new_wells if well["largest"] > FAR), key=lambda well: -well["largest"])
    if not far:
        (attempt.run.pictures / DRIFT).unlink(missing_ok=True)  # of an earlier attempt
        return created_files
    nearest = min(wells, key=lambda well: float(well["largest"]))
    picture = _draw_drift(inputs, attempt.run.pictures / DRIFT, rows, [nearest, *far[:FAR_SHOWN]])
    hint = f"look at {picture.relative_to(attempt.run.folder)}" if picture else "look at these wells"
    worst = f"{far[0]['plate']} {far[0]['well']}: {_distance(far[0])}, {FACTS[_fact(far[0])]}"
    attempt.log(
        f"warning: in {len(far)} of {len(new_wells)} wells the images are unlike those that the model was "
        f"trained on (worst: {worst}); {hint}; {path.name} has all wells"
    )
    return created_files | ({"wells unlike the training images": picture} if picture else {})


def _draw_drift(inputs: SegmentInputs, path: Path, rows: Sequence[Row], wells: Sequence[Row]) -> Path | None:
    """Draws the first whole field of each well, the most ordinary one first; None: none that is far."""
    fields: dict[tuple[str, str], tuple[PlateInput, FieldKey, Row]] = {}
    for field in _drawable_fields(inputs, rows) if inputs.keeps_labels else ():
        fields.setdefault((field[0].name, field[1].well), field)
    pairs = [(well, fields[place]) for well in wells if (place := (well["plate"], well["well"])) in fields]
    if not any(well["largest"] > FAR for well, _ in pairs):
        path.unlink(missing_ok=True)  # of an earlier attempt
        return None
    panels = []
    for well, field in pairs:
        ordinary = "for comparison: like the training images"
        panels.append(_panel(*field, last_line=_distance(well) if well["largest"] > FAR else ordinary))
    facts = dict.fromkeys(_fact(well) for well, _ in pairs if well["largest"] > FAR)
    legend = "; ".join(f"{fact}: {FACTS[fact]}" for fact in facts)
    _draw_panels(panels, path, f"Distances in robust standard deviations of the training fields. {legend}")
    return path


def _fact(well: Row) -> str:
    return str(well["where"].rpartition(" ")[2])


def _distance(well: Row) -> str:
    """Returns `Brightfield 0 light −6.4`."""
    return f"{well['where']} {well[well['where']]:+.1f}".replace("-", "−")
