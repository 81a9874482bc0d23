#!/usr/bin/env bash
# 2026-11-29, viscy-data 0.1.0, iohub 0.3.11, Python 3.12.
# Believed: iohub's plates of any axes that OME-Zarr allows can train VisCy, for it reads them by iohub.
# Seen: iohub writes and reads a plate of axes c, z, y, x (OME-Zarr needs no time axis), and VisCy's data module is
#   set up with it without a word. The first batch then raises BoundsCheckError, "index out of bounds for dimension
#   with length 1": VisCy indexes five axes, and the number of a channel meets z. The same pixels with a time axis
#   of length 1 are read.
# It matters because plates of one time point are what screens have, and other writers leave the axis out.
# Needs Python 3.12 or later, as PYTHON=python3.12, and 6 GB of room: it installs PyTorch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check viscy-data==0.1.0 iohub==0.3.11
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
from iohub.ngff import open_ome_zarr
from iohub.ngff.models import ChannelAxisMeta, SpaceAxisMeta, TimeAxisMeta
from viscy_data.hcs import HCSDataModule

CHANNELS = ["Phase", "DAPI"]
AXES = [TimeAxisMeta(name="t"), ChannelAxisMeta(name="c"), *(SpaceAxisMeta(name=name) for name in "zyx")]
pixels = np.random.default_rng(0).integers(100, 1000, (1, 2, 1, 64, 64)).astype(np.uint16)


def first_batch(name, axes):
    data = pixels[0] if len(axes) == 4 else pixels
    with open_ome_zarr(name, layout="hcs", mode="w", channel_names=CHANNELS, axes=axes, version="0.5") as plate:
        for column in range(1, 9):
            plate.create_position("A", str(column), "0").create_image("0", data)
    with open_ome_zarr(name, layout="hcs", mode="r") as plate:
        read = [position["0"].numpy() for _, position in plate.positions()]
    assert all(np.array_equal(one, data) for one in read), "iohub does not read what it wrote"
    module = HCSDataModule(name, "Phase", "DAPI", z_window_size=1, batch_size=2, num_workers=0,
                           pin_memory=False, yx_patch_size=(64, 64))
    module.prepare_data()
    module.setup("fit")
    try:
        return tuple(next(iter(module.train_dataloader()))["source"].shape)
    except Exception as error:
        return type(error).__name__


with_time, without = first_batch("time.zarr", AXES), first_batch("none.zarr", AXES[1:])
print(f"axes t, c, z, y, x: a batch of {with_time}")
print(f"axes c, z, y, x: {without}")
assert with_time == (2, 1, 1, 64, 64)
assert isinstance(without, str), "a plate without a time axis is read by now"
PYTHON
