#!/usr/bin/env bash
# 2026-11-29, ome-zarr 0.18.0, read by ngio 1.1.3 and ome-zarr-models 1.6 (zarr 3.1.6).
# Believed: labels that ome-zarr-py writes into an OME-Zarr 0.5 image are found by the other libraries.
# Seen: `write_labels` makes the group `labels` with `ome: {"labels": [...]}` and no `version`. ngio then lists
#   no labels at all, without a warning; ome-zarr-models refuses its metadata ("version: Field required").
#   Once somebody adds the version, ngio finds the labels, and `write_labels` keeps it for further ones.
# It matters because a segmentation seems to be lost as soon as it is opened by the next tool of a pipeline.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  ome-zarr==0.18.0 ngio==1.1.3 ome-zarr-models==1.6 zarr==3.1.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import warnings

warnings.simplefilter("ignore")
import ngio
import numpy as np
import zarr
from ome_zarr import writer
from ome_zarr_models.v05.labels import LabelsAttrs

image = zarr.open_group("image.zarr", mode="w", zarr_format=3)
writer.write_image(np.zeros((64, 64), np.uint16), image, axes="yx")
labels = np.zeros((64, 64), np.uint32)
labels[10:20, 10:20] = 1
writer.write_labels(labels, image, "cells", axes="yx")


def look():
    ome = dict(zarr.open_group("image.zarr/labels", mode="r").attrs)["ome"]
    found = ngio.open_ome_zarr_container("image.zarr").list_labels()
    try:
        LabelsAttrs.model_validate(ome)
        said = "valid"
    except ValueError as error:
        said = " ".join(str(error).split("[")[0].splitlines()[1:])
    print("labels group:", ome, "| ngio lists", found, "| ome-zarr-models:", said)
    return ome, found, said


ome, found, said = look()
assert "version" not in ome, "it is written by now"
assert found == [], "ngio finds them by now"
assert said.startswith("version"), "ome-zarr-models takes it by now"

zarr.open_group("image.zarr/labels", mode="r+").attrs["ome"] = {**ome, "version": "0.5"}
ome, found, said = look()
assert (found, said) == (["cells"], "valid")
writer.write_labels(labels, image, "more", axes="yx")
ome, found, said = look()
assert (ome["version"], sorted(found)) == ("0.5", ["cells", "more"])
PYTHON
