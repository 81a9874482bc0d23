#!/bin/bash
# The second data set of docs/protocol.md, from the data to the table; it continues where it was stopped.
#   WEIGHTS=tf_efficientnet_lite0.safetensors docs/study/usiigaci.sh DATA FOLDER
# DATA holds setNN_phase.tif and labels/setNN_cells.tif; the last 10 fields in order test, all others train.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) data=$(cd "$1" && pwd)
H="${H:-python -m hpc_isl.submit}"
mkdir -p "$2"
cp "$here"/usiigaci.yaml "$2"
cp "$WEIGHTS" "$2"/lite0.safetensors
cd "$2"
if [ ! -d U.zarr ]; then
  $H convert source="$data" out=U.zarr reader=pattern \
    'pattern.regex=(?P<image>set\d+)_(?P<channel>phase)\.tif' 'pattern.transmitted=[phase]' site.cpus=1
  mkdir -p cells && cp "$data"/labels/*_cells.tif cells/
  $H annotate import cells plate=U.zarr labels=cells "regex=(?P<image>.+)_cells\.tif" site.cpus=1
fi
python - <<'PYTHON'
import csv
import hpc_isl
plate = hpc_isl.open_plate("U.zarr")
wells = [field.well for field in plate]
with open("split.csv", "w", newline="") as stream:
    lines = csv.writer(stream)
    lines.writerow(["plate", "well", "field", "part"])
    lines.writerows([plate.name, well, 1, "train" if n < len(wells) - 10 else "test"] for n, well in enumerate(wells))
PYTHON
if [ -d runs/finetune/cells ]; then $H resume cells site.cpus=1; else $H finetune usiigaci.yaml --name cells site.cpus=1; fi
python "$here"/splits.py runs/finetune/cells U.zarr
