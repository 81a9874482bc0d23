"""The objects of a run as one table, some at a time, with the plate map of each one's well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from hpc_isl.stages.table.segmented_plates import DUPLICATE, SegmentedPlate, plate_map_name


@dataclass(frozen=True)
class ObjectRows:
    """A row for each object that counts, of all plates of a run.

    Attributes:
        schema: plate and well, the columns of the plate maps, then all other columns of all plates; null is
            unknown.
        renamed: column of a plate map -> its name here.
    """

    plates: Sequence[SegmentedPlate]
    schema: pa.Schema
    renamed: Mapping[str, str]

    def parts(self) -> Iterator[pa.Table]:
        """Yields the rows in plate order, as many at a time as a plate's file holds together."""
        for plate in self.plates:
            # An empty cell of a plate map is unknown: null, as all that tables do not know.
            maps = {
                well: {self.renamed[name]: value or None for name, value in facts.items()}
                for well, facts in plate.plate_map.items()
            }
            for part in plate.batches():
                yield self._with_plate_map(part, maps)

    def _with_plate_map(self, part: pa.Table, maps: Mapping[str, Mapping[str, str | None]]) -> pa.Table:
        wells = part["well"].to_pylist()
        columns = [
            part[column.name].cast(column.type)
            if column.name in part.column_names
            else pa.array([maps.get(well, {}).get(column.name) for well in wells], column.type)
            for column in self.schema
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)


def object_rows(plates: Sequence[SegmentedPlate]) -> ObjectRows:
    """Returns the objects of these plates; none is read yet."""
    merged_schema = pa.unify_schemas([plate.schema for plate in plates], promote_options="permissive")
    columns = {column.name: column for column in merged_schema if column.name != DUPLICATE}
    mapped = dict.fromkeys(name for plate in plates for name in plate.map_columns)
    renamed = {name: plate_map_name(name, merged_schema.names) for name in mapped}
    place_columns = [columns.pop(name) for name in ("plate", "well") if name in columns]
    map_fields = [pa.field(name, pa.string()) for name in renamed.values()]
    return ObjectRows(plates, pa.schema([*place_columns, *map_fields, *columns.values()]), renamed)
