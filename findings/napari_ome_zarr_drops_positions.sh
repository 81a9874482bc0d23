#!/usr/bin/env bash
# 2026-11-29, napari-ome-zarr 0.10.0 (ome-zarr 0.18.0), napari 0.9.2.
# Believed: two images of OME-Zarr 0.5 whose metadata state where they lie (scale and translation of each dataset,
#   as the specification has them) open in napari side by side, as two fields of a well or two tiles do.
# Seen: the layers have the scale, and no translation: both lie at the origin, one over the other. A translation
#   of the whole multiscale, which the specification allows beside those of the datasets, is dropped too.
# It matters because a well looks as if all its fields had been imaged in one place, and what is measured or drawn
#   in napari's world coordinates is of that place.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  napari==0.9.2 napari-ome-zarr==0.10.0 ome-zarr==0.18.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import warnings

warnings.simplefilter("ignore")
import numpy as np
import zarr
from napari.layers import Image
from napari_ome_zarr import napari_get_reader


def corner(name, of_dataset, of_image=None):
    """Where the corner of an image of 64 x 64 pixels of 0.5 um lies in napari's world."""
    group = zarr.open_group(name, mode="w", zarr_format=3)
    group.create_array("0", data=np.zeros((64, 64), np.uint16), chunks=(64, 64))
    places = [{"type": "scale", "scale": [0.5, 0.5]}, {"type": "translation", "translation": of_dataset}]
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    image = {"name": name, "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": places}]}
    if of_image:
        image["coordinateTransformations"] = [
            {"type": "scale", "scale": [1.0, 1.0]}, {"type": "translation", "translation": of_image},
        ]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    (data, settings, kind), *_ = napari_get_reader(name)(name)
    assert kind == "image", kind
    layer = Image(data, **{key: value for key, value in settings.items() if key in ("scale", "translate", "affine")})
    return [float(value) for value in layer.data_to_world((0, 0))], [float(value) for value in layer.scale]


first, scale = corner("first.zarr", [0.0, 0.0])
second, _ = corner("second.zarr", [0.0, 32.0])
whole, _ = corner("whole.zarr", [0.0, 0.0], [0.0, 32.0])
print("scale", scale, "corners: dataset at 0", first, "dataset at 32 um", second, "image at 32 um", whole)
assert scale == [0.5, 0.5], scale
assert first == [0.0, 0.0] and second == [0.0, 0.0], (first, second)
assert whole == [0.0, 0.0], whole
PYTHON
