#!/bin/bash
# Cells of two sizes (docs/protocol.md), in the folder that docs/study/usiigaci.sh has made; it continues where it was stopped.
#   docs/study/sizes.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here"/common.sh
cd "$1"
python - <<'PYTHON'
import csv
import numpy as np
import hpc_isl
plate = hpc_isl.open_plate("U.zarr")
fields = list(plate)[:-10]
large = {field.well: np.median(np.bincount(np.asarray(field.labels("cells")).ravel())[1:]) > 2000 for field in fields}
with open("sizes.csv", "w", newline="") as stream:
    lines = csv.writer(stream)
    lines.writerow(["plate", "well", "field", "part"])
    lines.writerows([plate.name, well, 1, "train" if is_large else "test"] for well, is_large in large.items())
print(f"{sum(large.values())} fields of large cells train, {len(large) - sum(large.values())} of small ones score")
PYTHON

for scale in 0 0.5; do
  run finetune sizes-$scale usiigaci.yaml split.file=sizes.csv objects.h_maxima=40 left_out=never train.steps=300 augment.scale=$scale
done
python - <<'PYTHON'
import hpc_isl
for scale in ("0", "0.5"):
    scores = hpc_isl.Run(f"runs/finetune/sizes-{scale}").scores()
    print(f"augment.scale={scale}: AP50 {scores['AP50'].mean():.3f}, mAP {scores['mAP'].mean():.3f}")
PYTHON
if [ "${ALL:-}" ]; then  # the frozen recipe with scale on all 26 fields
  run finetune cells-scaled usiigaci.yaml augment.scale=0.5
  python "$here"/splits.py runs/finetune/cells-scaled U.zarr
fi
if [ "${FULL:-}" ]; then  # the same at full resolution, with twice the steps
  run finetune cells-full usiigaci.yaml augment.scale=0.5 data.level=0 objects.h_maxima=40 left_out=never train.steps=1200
  python "$here"/splits.py runs/finetune/cells-full U.zarr
fi
if [ "${CELLPOSE3:-}" ]; then  # Cellpose 3 from scratch, on the same 26 fields at half resolution
  script=$here/programs/cellpose_program.py
  run finetune cells-cellpose3 usiigaci.yaml arm=cellpose3 left_out=never "programs=[{name: cellpose3, time_limit_s: 36000,
    train: [$CELLPOSE3, $script, train, '{images}', '{labels}', '{model}', '{seed}', --epochs, '150'],
    predict: [$CELLPOSE3, $script, predict, '{images}', '{model}', '{out}']}]"
  python "$here"/splits.py runs/finetune/cells-cellpose3 U.zarr
fi
