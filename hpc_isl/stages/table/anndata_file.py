"""A table as one AnnData file (.h5ad): what scanpy and the other libraries of single cells read.

A row is a well, field, plate or object, a column a feature. All else that is known of a row stands in `obs`,
under the names that pycytominer has for it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.files import partial_file
from hpc_isl.stages.table import profiles
from hpc_isl.stages.table.object_rows import ObjectRows
from hpc_isl.stages.table.segmented_plates import CYTOPLASM, MEDIAN, OBJECT, SegmentedPlate, mapped_columns

SUFFIX = ".h5ad"
ROWS = 4096  # of a chunk
NAMED_BY = ("plate", *OBJECT)
GROUPS = {
    "count": r"objects|objects_per_field|objects_per_mm2|confluence",
    "shape": r"(centroid_.|area|perimeter|equivalent_diameter|orientation)_\w+|eccentricity|solidity",
    "intensity": r".*_(mean|sd|min|max|sum|saturated)",
    "correlation": r".*_correlation",
    "radial": r".*_ring\d",
    "granularity": r".*_Granularity_\d+",
    "texture": r".*_\d+_\d\d_\d+",
}
UNIT = re.compile(r"_(um2?|px|rad)$")
COUNTS = re.compile(r"_(mean|sd|min|max|sum)$")  # of a channel: in counts of the camera


def check_library() -> None:
    """Raises a `UserError` where AnnData files cannot be written here."""
    if find_spec("anndata") is None:
        raise UserError("format=anndata: needs the library anndata: pip install 'hpc-isl[anndata]'")


def about_features(names: Sequence[str]) -> pd.DataFrame:
    """Returns a row for each feature: its group and unit, empty where it has none, or that is not known."""
    rows = []
    for name in names:
        feature = name.removeprefix(MEDIAN)
        base_name = feature.removeprefix(CYTOPLASM)
        group = next((group for group, pattern in GROUPS.items() if re.fullmatch(pattern, base_name)), "")
        unit = "counts" if COUNTS.search(base_name) else "1/mm2" if base_name == "objects_per_mm2" else ""
        if match := UNIT.search(base_name):
            unit = match[1]
        rows.append({"group": "cytoplasm" if base_name != feature else group, "unit": unit})
    return pd.DataFrame(rows, [*names], ["group", "unit"])


def write_rows(
    path: Path,
    plates: Sequence[SegmentedPlate],
    rows: pd.DataFrame,
    relative: pd.DataFrame | None,
    facts: Mapping[str, Any],
    in_place: bool = False,
) -> int:
    """Writes a table of wells, fields or plates; returns its number of rows.

    Args:
        relative: the same rows with relative readouts: the layer `normalised`, beside the layer `raw`.
        facts: of the run, for `uns`.
        in_place: X holds the relative readouts; else the plain ones.
    """
    from anndata.io import write_elem

    metadata_names, features = _split_columns([*map(str, rows)], plates, mapped_columns(plates))
    layers = {"raw": rows, "normalised": relative} if relative is not None else {}
    with _file(path) as file:
        write_elem(file, "X", _matrix(relative if in_place and relative is not None else rows, features))
        write_elem(file, "layers", {name: _matrix(layer, features) for name, layer in layers.items()})
        _finish(file, _obs(rows, metadata_names), features, facts)
    return len(rows)


def write_objects(path: Path, objects: ObjectRows, facts: Mapping[str, Any]) -> int:
    """Writes a row for each object that counts; returns their number. Features pass through in parts."""
    columns, mapped = objects.schema.names, objects.renamed.values()
    metadata_names, features = _split_columns(columns, objects.plates, mapped)
    parts: list[pd.DataFrame] = []
    with _file(path) as file:
        shape = (0, len(features))
        matrix = file.create_dataset(
            "X", shape, np.float32, maxshape=(None, len(features)), chunks=(ROWS, max(1, len(features)))
        )
        # As the format asks, which anndata itself writes for arrays that are there as a whole.
        matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for part in objects.parts():
            rows = part.to_pandas()
            matrix.resize(len(matrix) + len(rows), axis=0)
            matrix[len(matrix) - len(rows) :] = _matrix(rows, features)
            parts.append(rows[[*metadata_names]])
        # Texts of all parts are few, and are kept once.
        obs = _obs(pd.concat(parts) if parts else pd.DataFrame(columns=[*metadata_names]), metadata_names)
        _finish(file, obs, features, facts)
    return len(obs)


def _split_columns(
    columns: Sequence[str], plates: Sequence[SegmentedPlate], mapped: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """Returns the columns about a row with their names in `obs`, and those that are features."""
    names = profiles.pycytominer_names(columns, plates[0].kind, mapped)
    metadata_names = {column: name for column, name in names.items() if name.startswith("Metadata_")}
    return metadata_names, [column for column in columns if column not in metadata_names]


def _obs(rows: pd.DataFrame, metadata_names: Mapping[str, str]) -> pd.DataFrame:
    """Returns all that is known about each row, which is named by its plate, well, field, …"""
    places = zip(*(rows[name] for name in NAMED_BY if name in rows), strict=True)
    obs = rows[[*metadata_names]].rename(columns=dict(metadata_names))
    obs.index = pd.Index(["_".join(map(str, place)) for place in places])
    texts = [name for name in obs if obs[name].dtype == object]
    return obs.astype(dict.fromkeys(texts, "category"))


def _matrix(rows: pd.DataFrame, features: Sequence[str]) -> NDArray[np.float32]:
    return rows[[*features]].to_numpy(np.float32, na_value=np.nan)


@contextmanager
def _file(path: Path) -> Iterator[Any]:
    """Yields an HDF5 file beside the path, which is renamed at the end."""
    import h5py  # comes with anndata

    try:
        with partial_file(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            yield file
    except OSError as error:
        raise UserError(f"out={path}: cannot be written: {error.strerror or error}") from None


def _finish(file: Any, obs: pd.DataFrame, features: Sequence[str], facts: Mapping[str, Any]) -> None:
    from anndata.io import write_elem

    write_elem(file, "obs", obs)
    write_elem(file, "var", about_features(features))
    write_elem(file, "uns", dict(facts))
    for name in ("layers", "obsm", "varm", "obsp", "varp"):
        if name not in file:
            write_elem(file, name, {})
