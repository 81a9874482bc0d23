#!/bin/bash
# The study of docs/protocol.md, from the data to the reports; it continues where it was stopped.
#   DATA=/folder/of/the/fields WEIGHTS=mobilenet_v1_1.0_224_without_conv_pw_13.npz docs/study/run.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
H="${H:-python -m hpc_isl.submit}"
mkdir -p "$1" && cd "$1"
cp "$here"/*.yaml "$here"/split.csv .
ONE="site.cpus=1 ${SITE:-}"                    # one core for each run; sweeps fill all cores

run() {  # VERB NAME …: begun, resumed, or done
  if [ -d "runs/$1/$2" ]; then $H resume "$1/$2" $ONE; return; fi
  local verb=$1 name=$2; shift 2
  $H "$verb" "$@" --name "$name" $ONE
}

if [ ! -d P.zarr ]; then
  awk -F, 'BEGIN {print "image,cell_line"} NR > 1 {print $1 "," $2}' "$DATA/manifest.csv" > lines.csv
  $H convert source="$DATA" out=P.zarr reader=pattern plate_map=lines.csv \
    'pattern.regex=(?P<image>.+)_(?P<channel>phase|nuclear)\.tif' 'pattern.transmitted=[phase]'
fi
for labels in cells nuclei; do
  mkdir -p $labels && cp "$DATA"/labels/*_$labels.tif $labels/
  $H annotate import $labels plate=P.zarr labels=$labels "regex=(?P<image>.+)_$labels\.tif"
done
$H annotate draft plate=P.zarr labels=drafted channel=nuclear method=threshold threshold=li
[ -f mobilenetv1.safetensors ] || python "$here/mobilenet.py" "$WEIGHTS" mobilenetv1.safetensors

both() { local failed=0; for job in $(jobs -p); do wait "$job" || failed=1; done; return $failed; }
run pretrain isl pretrain.yaml &
run pretrain isl-imagenet pretrain.yaml net.weights=mobilenetv1.safetensors & both
run finetune drafted-nuclei drafted.yaml objects.kind=nuclei reference_labels=[nuclei,drafted] &
run finetune drafted-cells drafted.yaml 'objects={kind: cells, map: euclidean, h_maxima: 10, min_area: 0}' reference_labels=[cells] & both
run pretrain permuted pretrain.yaml control=permuted

for kind in nuclei cells; do
  run sweep $kind sweep_$kind.yaml
  $H report $kind
done
