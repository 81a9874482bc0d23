"""Reads a table with scanpy, scales it and finds two principal components. Prints what was found, as JSON."""

from __future__ import annotations

import json
import sys

import scanpy

data = scanpy.read_h5ad(sys.argv[1])
known = data[:, (data.X == data.X).all(0)].copy()  # features that are known of every row
scanpy.pp.scale(known)
scanpy.pp.pca(known, n_comps=2)
scanpy.pp.neighbors(known, n_neighbors=3)
units = sorted(set(data.var["unit"]), key=lambda unit: (unit in ("1/mm2", "rad"), unit))
print(
    json.dumps({
        "rows": data.n_obs, "plates": sorted(set(data.obs["Metadata_Plate"])), "units": units,
        "components": list(known.obsm["X_pca"].shape),
    })
)  # fmt: skip
