"""Run where shapely and geojson are installed: whether outlines are valid, and which pixels they hold.

    python check_geojson.py OUTLINES.geojson LABELS.npy

Prints the number of features; fails where one is invalid, or where they do not rasterise to the labels.
"""

import sys
from pathlib import Path

import geojson
import numpy as np
import shapely

content = geojson.loads(Path(sys.argv[1]).read_text())
labels = np.load(sys.argv[2])
assert content.is_valid, content.errors()
again = np.zeros_like(labels)
y, x = np.mgrid[: labels.shape[0], : labels.shape[1]] + 0.5
for feature in content["features"]:
    shape = shapely.geometry.shape(feature["geometry"])
    assert shape.is_valid, shapely.is_valid_reason(shape)
    mask = shapely.contains_xy(shape, x, y)
    assert shape.area == mask.sum()
    assert not again[mask].any()
    again[mask] = int(feature["properties"]["name"])
    for polygon in getattr(shape, "geoms", [shape]):
        assert polygon.exterior.is_ccw  # as RFC 7946 asks
        assert not any(hole.is_ccw for hole in polygon.interiors)
assert (again == labels).all()
print(len(content["features"]))
