"""The verb `table`: the results of a run of segment as one table of all its plates, and as heat maps."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from hpc_isl import __version__
from hpc_isl.errors import UserError, many, nearest
from hpc_isl.files import partial_file, write_atomic
from hpc_isl.run import Run
from hpc_isl.stages.table import anndata_file, plate_maps, profiles
from hpc_isl.stages.table.exclusion import Exclusions, read_exclusions, warnings
from hpc_isl.stages.table.field_pictures import quality_section
from hpc_isl.stages.table.object_rows import ObjectRows, object_rows
from hpc_isl.stages.table.quality import QcRules, enough, flagged, left_out, read_rules
from hpc_isl.stages.table.segmented_plates import (
    BESIDE,
    BY,
    SegmentedPlate,
    mapped_columns,
    read_plates,
    rows_of,
    segmented_plates,
)

PER = (*BY, "object")
TYPES = (".csv", ".parquet")
FORMATS = ("plain", "pycytominer", "anndata")


@dataclass(frozen=True)
class TableFiles:
    """The message of `table`, and the files it wrote.

    Attributes:
        headline: the first line that it prints; `notes`: what a user should know besides.
        paths: what each file is -> its path.
    """

    headline: str
    paths: Mapping[str, Path]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Form:
    """How a table is written.

    Attributes:
        per: well, field, plate, or object.
        normalise: none, negative_controls or plate, as in `profiles.normalised`, in the place of readouts;
            of wells alone. None: by negative controls where there are any, beside the readouts, or in their
            place for pycytominer, whose profiles have one column for a feature.
        names: plain, pycytominer: its names of columns, or anndata: a file of another kind; the key `format`.
        exclude: a list of fields to leave out, as `exclusion.read_exclusions` reads it.
        qc: rules of quality, as `quality.read_rules` reads them.
    """

    per: str = "well"
    normalise: str | None = None
    names: str = "plain"
    exclude: Path | None = None
    qc: Path | None = None

    def check(self) -> None:
        """Raises `UserError` for what no table has."""
        _check_per(self.per)
        if self.names not in FORMATS:
            raise UserError(f"format={self.names}: no such form; {nearest(self.names, FORMATS)}")
        if self.names == "anndata":
            anndata_file.check_library()
        if self.normalise not in (None, "none") and self.per != "well":
            raise UserError(
                f"normalise={self.normalise}: compares wells, which are the units of a plate; leave out "
                f"per={self.per}"
            )


def table(
    run: Run, out: Path | None = None, per: str = "well", heat_maps: Sequence[str] | None = None,
    normalise: str | None = None, names: str = "plain", exclude: Path | None = None,
    qc: Path | None = None,
) -> TableFiles:  # fmt: skip
    """Writes the table, and heat maps of all plates into `pictures/` of the run.

    Args:
        out: a file, .csv or .parquet (anndata: .h5ad); None: `wells.csv`, `objects.csv`, … in the run folder.
        per, normalise, names, exclude, qc: as in `Form`.
        heat_maps: count, a column of the table of wells that holds numbers, or a feature of objects, whose
            median is shown; None: count, and confluence of cells.

    Raises:
        UserError: the run is none of segment, or not done; no such form, ending or column.
    """
    form = Form(per, normalise, names, exclude, qc)
    form.check()
    suffix = anndata_file.SUFFIX if names == "anndata" else ".csv"
    path = check_path(out or run.folder / f"{form.per}s{suffix}", names)
    return _write(run, segmented_plates(run), path, form, heat_maps)


def after_segmenting(run: Run) -> dict[str, Path]:
    """Writes the table of wells and its heat maps as segmenting ends; returns what each is -> its path."""
    return dict(_write(run, read_plates(run), run.folder / "wells.csv", Form(), None).paths)


def data_frame(run: Run, per: str = "well") -> pd.DataFrame:
    """Returns the table that `table` writes by default; all objects of a run must fit into memory.

    Raises:
        UserError: as `table` does.
    """
    _check_per(per)
    rules = QcRules()
    plates, _, _ = _select(run, segmented_plates(run), rules, None)
    if per == "well":
        wells = enough(rows_of(plates, per), rules)
        return _with_relative(wells, profiles.normalised(wells, profiles.usual_method(wells)[0]))
    if per != "object":
        return rows_of(plates, per)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "objects.parquet"
        write_objects(path, object_rows(plates), {})
        return pd.read_parquet(path)


def _with_relative(wells: pd.DataFrame, relative: profiles.Relative) -> pd.DataFrame:
    """Returns the wells with their relative readouts, if there are any, beside the plain ones."""
    if relative.wells is wells:  # nothing to compare with
        return wells
    return wells.join(relative.wells[profiles.readouts(wells)].add_prefix(BESIDE))


def _check_per(per: str) -> None:
    if per not in PER:
        raise UserError(f"per={per}: no such table; {nearest(per, PER)}")


def _write(
    run: Run, plates: Sequence[SegmentedPlate], path: Path, form: Form, heat_maps: Sequence[str] | None
) -> TableFiles:
    rules = read_rules(form.qc)
    plates, by_rule, notes = _select(run, plates, rules, form.exclude)
    wells, per = enough(rows_of(plates, "well"), rules), form.per
    quality = profiles.assay_quality(wells)
    method, method_notes = (form.normalise, []) if form.normalise else profiles.usual_method(wells)
    relative = profiles.normalised(wells, method)
    adds_columns = method != "none" and form.normalise is None and form.names == "plain"
    if adds_columns:
        wells = _with_relative(wells, relative)
    columns = plate_maps.columns_of(heat_maps, wells)
    rows = wells if per in ("well", "object") else rows_of(plates, per)
    if form.names == "anndata":
        count = _write_anndata(run, plates, path, form, rules, rows, relative)
    else:
        if per == "well" and not adds_columns:
            rows = relative.wells
            if form.names != "plain" and method != "none":
                rows.insert(0, profiles.OBJECT_COUNT, wells.objects)
        count = _write_table(plates, path, form, rows)
    headline, outputs = _headline(plates, wells), {f"table of {many(count, per)}": path}
    if len(quality):
        outputs["assay quality"] = run.folder / "assay_quality.csv"
        write_rows(outputs["assay quality"], quality)
    if len(relative.scales):
        outputs["what normalised readouts are compared with"] = run.folder / "normalisation.csv"
        write_rows(outputs["what normalised readouts are compared with"], relative.scales)
    outputs |= _write_left_out(run, by_rule)
    section = quality_section(plates, by_rule)
    outputs |= plate_maps.draw(run, plates, wells, columns, [f"{headline}.", *notes], section)
    return TableFiles(
        headline, outputs, [*notes, *profiles.quality_lines(quality), *method_notes, *relative.notes]
    )


def _write_table(plates: Sequence[SegmentedPlate], path: Path, form: Form, rows: pd.DataFrame) -> int:
    """Writes CSV or Parquet; returns the number of its rows. `rows`: of wells, fields or plates."""

    def names(columns: Sequence[str], mapped: Collection[str]) -> dict[str, str]:
        return {} if form.names == "plain" else profiles.pycytominer_names(columns, plates[0].kind, mapped)

    if form.per == "object":
        objects = object_rows(plates)
        return write_objects(path, objects, names(objects.schema.names, objects.renamed.values()))
    return write_rows(path, rows.rename(columns=names([*map(str, rows)], mapped_columns(plates))))


def _write_anndata(
    run: Run, plates: Sequence[SegmentedPlate], path: Path, form: Form, rules: QcRules,
    rows: pd.DataFrame, relative: profiles.Relative,
) -> int:  # fmt: skip
    facts = {
        "run": run.label, "hpc_isl": __version__, "recipe": run.recipe.read_text(),
        "qc": rules.model_dump_json(), "normalisation": relative.scales,
    }  # fmt: skip
    if form.per == "object":
        return anndata_file.write_objects(path, object_rows(plates), facts)
    relative_rows = relative.wells if form.per == "well" and len(relative.scales) else None
    in_place = form.normalise not in (None, "none")
    return anndata_file.write_rows(path, plates, rows, relative_rows, facts, in_place)


def _select(
    run: Run, plates: Sequence[SegmentedPlate], rules: QcRules, exclude_file: Path | None
) -> tuple[list[SegmentedPlate], dict[str, Exclusions], list[str]]:
    """Returns the plates with flags and without the fields left out, these by rule, and what to know of them.

    Args:
        exclude_file: a person's list of fields to leave out.
    """
    path = run.folder / "drift.csv"
    drift = pd.read_csv(path, dtype={"plate": str, "well": str}) if path.exists() else pd.DataFrame()
    plates = [flagged(plate, rules, drift) for plate in plates]
    by_rule = {f"exclude={exclude_file.name}": read_exclusions(exclude_file, plates)} if exclude_file else {}
    listed = {place for fields in by_rule.values() for place in fields}
    for rule, fields in left_out(plates, rules).items():
        if unlisted := {place: reason for place, reason in fields.items() if place not in listed}:
            by_rule[rule] = unlisted
    notes = [line for rule, fields in by_rule.items() for line in warnings(plates, fields, rule)]
    all_fields = {place: reason for fields in by_rule.values() for place, reason in fields.items()}
    return [plate.without(all_fields) if all_fields else plate for plate in plates], by_rule, notes


def _write_left_out(run: Run, by_rule: Mapping[str, Exclusions]) -> dict[str, Path]:
    """Writes `left_out_fields.csv`, which `exclude=` reads; none where no field is left out."""
    path = run.folder / "left_out_fields.csv"
    rows = [(*place, reason, rule) for rule, fields in by_rule.items() for place, reason in fields.items()]
    if not rows:
        path.unlink(missing_ok=True)  # of an earlier call
        return {}
    write_rows(path, pd.DataFrame(rows, columns=["plate", "well", "field", "reason", "rule"]))
    return {f"{many(len(rows), 'field')} left out": path}


def _headline(plates: Sequence[SegmentedPlate], wells: pd.DataFrame) -> str:
    """Returns `2 plates, 120 wells, 480 fields, 3 of them failed, 51,234 objects`."""
    images = pd.concat([plate.images.assign(plate=plate.name) for plate in plates])
    field_columns = ["plate", "well", "field", "acquisition"]
    fields = len(images.drop_duplicates(field_columns))
    # A field that failed at some times alone is none of the failed fields.
    left_out_count = 0
    if "excluded" in images:
        left_out_count = len(images[images.excluded].drop_duplicates(field_columns))
    failed_count = fields - left_out_count - len(images[images.problem == ""].drop_duplicates(field_columns))
    objects = int(wells.objects.sum())
    return (
        f"{many(len(plates), 'plate')}, {many(len(wells.drop_duplicates(['plate', 'well'])), 'well')}, "
        f"{many(fields, 'field')}{f', {failed_count:,} of them failed' if failed_count else ''}"
        f"{f', {left_out_count:,} of them left out' if left_out_count else ''}, "
        f"{many(objects, 'object')}"
    )


# ---------------------------------------------------------------- files


def check_path(path: Path, names: str = "plain") -> Path:
    """Returns the path, if its ending says what to write.

    Raises:
        UserError: it ends otherwise, or is a folder.
    """
    if path.is_dir():
        raise UserError(f"out={path}: is a folder; name a file, as in out={path / 'wells.csv'}")
    types = (anndata_file.SUFFIX,) if names == "anndata" else TYPES
    if path.suffix not in types:
        raise UserError(f"out={path}: no such kind of table; {nearest(path.suffix, types)}")
    return path


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"out={path}: cannot be written: {error.strerror or error}") from None


def write_rows(path: Path, rows: pd.DataFrame) -> int:
    """Writes a table of wells, fields or plates; returns its number of rows."""
    content: str | bytes
    if path.suffix == ".csv":
        # Six digits of a figure, as many as anyone measures.
        content = rows.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    else:
        # Without the metadata of pandas: any reader of Parquet sees the same columns.
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(), stream)
        content = stream.getvalue()
    with _translate_errors(path):
        write_atomic(path, content)
    return len(rows)


def write_objects(path: Path, objects: ObjectRows, names: Mapping[str, str]) -> int:
    """Writes a row for each object that counts; returns their number.

    Args:
        names: columns that are called otherwise -> how.
    """
    count, column_names = 0, [names.get(name, name) for name in objects.schema.names]
    columns = zip(objects.schema, column_names, strict=True)
    schema = pa.schema([column.with_name(name) for column, name in columns])
    with _translate_errors(path), _stream_to(path, schema) as writer:
        for part in objects.parts():
            writer.write_table(part.rename_columns(column_names))
            count += part.num_rows
    return count


@contextmanager
def _stream_to(path: Path, schema: pa.Schema) -> Iterator[Any]:
    """Yields a writer to a file beside the path, which is renamed at the end."""
    with partial_file(path) as temporary:
        if path.suffix == ".parquet":
            writer = pq.ParquetWriter(temporary, schema, compression="zstd")
        else:
            writer = pc.CSVWriter(temporary, schema, write_options=pc.WriteOptions(quoting_style="needed"))
        with writer:
            yield writer
