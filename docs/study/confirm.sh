#!/bin/bash
# A model of the study on fields that it has never seen: the tables of docs/results.md on any folder laid out alike.
#   docs/study/confirm.sh DATA RUN FOLDER
# DATA holds NAME_phase.tif (and NAME_nuclear.tif, if the model sees it), and labels/NAME_cells.tif or
# labels/NAME_nuclei.tif of some or all of them. RUN is the folder of a finetune run or of a sweep: of
# docs/study/usiigaci.sh runs/finetune/cells, of docs/study/run.sh runs/sweep/cells or runs/sweep/nuclei.
# PIXEL_UM says the edge of a pixel where the files do not. Nothing is trained; the same call goes on where it was stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) data=$(cd "$1" && pwd) run=$(cd "$2" && pwd)
H="${H:-python -m hpc_isl.submit}"
mkdir -p "$3" && cd "$3"
if [ ! -d C.zarr ]; then
  $H convert source="$data" out=C.zarr reader=pattern ${PIXEL_UM:+pixel_um=$PIXEL_UM} \
    'pattern.regex=(?P<image>.+)_(?P<channel>phase|nuclear)\.tif' 'pattern.transmitted=[phase]' site.cpus=1
fi
for labels in cells nuclei; do
  compgen -G "$data/labels/*_$labels.tif" > /dev/null || continue
  mkdir -p $labels && cp "$data"/labels/*_$labels.tif $labels/
  $H annotate import $labels plate=C.zarr labels=$labels "regex=(?P<image>.+)_$labels\.tif" site.cpus=1
  echo "$labels:"
  python "$here"/splits.py "$run" C.zarr $labels
done
