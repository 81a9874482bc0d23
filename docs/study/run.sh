#!/bin/bash
# The study of docs/protocol.md, from the data to the reports; it continues where it was stopped.
#   DATA=/folder/of/the/fields WEIGHTS=mobilenet_v1_1.0_224_without_conv_pw_13.npz docs/study/run.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here"/common.sh
mkdir -p "$1" && cd "$1"
cp "$here"/*.yaml "$here"/split.csv .
phase_nuclear "$DATA"
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
