"""A plate of 3456 fields that is all index and no pixels."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from hpc_isl.plates import index as index_file
from hpc_isl.plates import metadata, ngff
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, layout, well_name
from hpc_isl.plates.statistics import FieldStatistics, Histogram, PlaneStatistics, to_dict


def large_plate(path: Path, alike: bool = True) -> Plate:
    """The index of 384 wells × 9 fields, 6 channels, 4 planes: no pixels, all the statistics.

    `alike`: one field's statistics for all, which is quick; otherwise each has its own, in three minutes.
    """
    rows, columns = layout({"P24"})
    wells = [well_name(row, column) for row in range(16) for column in range(24)]
    fields = tuple(
        Field(FieldKey(well, str(number)), (1, 6, 4, 2160, 2160), "uint16", (1.0, 2.0), (0.0, 2.0, 4.0, 6.0))
        for well in wells
        for number in range(1, 10)
    )
    plate = Plate("large", rows, columns, tuple(Channel(f"channel {c}") for c in range(6)), fields, 0.3, 2.0)
    rng, facts = np.random.default_rng(0), metadata.image_facts(plate)
    packed = [to_dict(_made_up(rng)) for _ in (fields[:1] if alike else fields)]
    images = [
        {"field": metadata.field_facts(field), "levels": 5, "plate": facts, "statistics": statistics}
        for field, statistics in zip(fields, itertools.cycle(packed), strict=False)
    ]
    index_file._write_index(path, images, plate)
    ours = {"plate": metadata.plate_facts(plate), "plate_map": {}, "problems": []}
    metadata.write_group(path, ngff.attributes(ngff.plate_group(plate)), ours)
    return plate


def _made_up(rng: np.random.Generator) -> FieldStatistics:
    planes = {(0, c, z): PlaneStatistics(*rng.random(9).tolist()) for c in range(6) for z in range(4)}
    brightness = np.linspace(3000, 0, 1280) ** 1.2
    histograms = {c: Histogram("uint16", rng.poisson(brightness).astype(np.int64)) for c in range(6)}
    return FieldStatistics(planes, histograms, (), rng.bytes(16).hex())
