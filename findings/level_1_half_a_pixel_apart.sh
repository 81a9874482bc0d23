#!/usr/bin/env bash
# 2026-11-29, ome-zarr 0.18.0 and ngio 1.1.3 (zarr 3).
# Believed: two libraries that write the same image at the same pixel size place its coarser levels alike, and
#   the metadata place them where their pixels are.
# Seen: both halve 128 x 256 pixels to 64 x 128 at scale 2. ngio's level 1 holds the means of 2 x 2 pixels, whose
#   middle lies half a fine pixel from the corner's, and states no translation; ome-zarr states a translation of
#   0.5 for every level. Its labels (and ngio's) hold every second pixel, the odd ones, which lie a whole fine
#   pixel from the corner's: ome-zarr states 0.5 for them too, ngio 0.
# It matters because level 1 of one and the same image, and labels on it, lie up to a fine pixel apart in a viewer
#   or a measurement that takes the metadata at their word, by the library that wrote them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for package in ome-zarr==0.18.0 ngio==1.1.3; do
  python3 -m venv "$folder/${package%%==*}"
  "$folder/${package%%==*}/bin/python" -m pip install --quiet --disable-pip-version-check "$package"
done
cd "$folder"
cat > common.py <<'PYTHON'
import numpy as np
import zarr

IMAGE = (np.random.default_rng(0).random((128, 256)) * 60000).astype(np.uint16)
LABELS = (np.arange(128 * 256).reshape(128, 256) // 7).astype(np.uint32)


def level_1(path):
    """Pixels, scale and translation of the second level."""
    group = zarr.open_group(path, mode="r")
    attributes = dict(group.attrs)
    level = attributes.get("ome", attributes)["multiscales"][0]["datasets"][1]
    steps = {own["type"]: own[own["type"]][-2:] for own in level["coordinateTransformations"]}
    pixels = np.squeeze(group[level["path"]][:])
    return pixels, steps["scale"], steps.get("translation", [0.0, 0.0])
PYTHON
ome-zarr/bin/python - <<'PYTHON'
import zarr
from common import IMAGE, LABELS, level_1
from ome_zarr.writer import write_image, write_labels

root = zarr.open_group("image.zarr", mode="w", zarr_format=3)
write_image(IMAGE, root, axes="yx")
write_labels(LABELS, root, name="cells", axes="yx")
for path in ("image.zarr", "image.zarr/labels/cells"):
    pixels, scale, translation = level_1(path)
    print("ome-zarr", path, pixels.shape, "scale", scale, "translation", translation)
    assert list(scale) == [2, 2], scale
    assert list(translation) == [0.5, 0.5], translation
assert (pixels == LABELS[1::2, 1::2]).all(), "labels are not the odd pixels"
PYTHON
ngio/bin/python -W ignore - <<'PYTHON'
import numpy as np
from common import IMAGE, LABELS, level_1
from ngio import create_ome_zarr_from_array

container = create_ome_zarr_from_array("ngio.zarr", IMAGE, pixelsize=1.0, overwrite=True)
label = container.derive_label("cells")
label.set_array(LABELS)
label.consolidate()
for path in ("ngio.zarr", "ngio.zarr/labels/cells"):
    pixels, scale, translation = level_1(path)
    print("ngio", path, pixels.shape, "scale", scale, "translation", translation)
    assert list(scale) == [2, 2], scale
    assert list(translation) == [0, 0], translation
    if path == "ngio.zarr":
        means = IMAGE.reshape(64, 2, 128, 2).mean((1, 3))
        assert np.abs(pixels - means).max() <= 0.5, "level 1 does not hold means"
assert (pixels == LABELS[1::2, 1::2]).all(), "labels are not the odd pixels"
PYTHON
echo "still so: the same level, half a pixel apart in the metadata, and labels a whole one from where they are said to be"
