#!/bin/bash
# Nuclei of the 20 fields of phase contrast from a head that begins as the predicted stain (docs/protocol.md);
# it continues where it was stopped.
#   DATA=/folder/of/the/fields WEIGHTS=tf_efficientnet_lite0.safetensors docs/study/nuclei.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) data=$(cd "$DATA" && pwd)
H="${H:-python -m hpc_isl.submit}"
mkdir -p "$1"
cp "$here"/pretrain.yaml "$here"/nuclei.yaml "$here"/split.csv "$1"
cp "$WEIGHTS" "$1"/lite0.safetensors
cd "$1"
ONE="site.cpus=1"

run() {  # VERB NAME …: begun, resumed, or done
  if [ -d "runs/$1/$2" ]; then $H resume "$1/$2" $ONE; return; fi
  local verb=$1 name=$2; shift 2
  $H "$verb" "$@" --name "$name" $ONE
}

if [ ! -d P.zarr ]; then
  awk -F, 'BEGIN {print "image,cell_line"} NR > 1 {print $1 "," $2}' "$data/manifest.csv" > lines.csv
  $H convert source="$data" out=P.zarr reader=pattern plate_map=lines.csv \
    'pattern.regex=(?P<image>.+)_(?P<channel>phase|nuclear)\.tif' 'pattern.transmitted=[phase]' $ONE
fi
for labels in cells nuclei; do
  mkdir -p $labels && cp "$data"/labels/*_$labels.tif $labels/
  $H annotate import $labels plate=P.zarr labels=$labels "regex=(?P<image>.+)_$labels\.tif" $ONE
done
$H annotate draft plate=P.zarr labels=drafted channel=nuclear $ONE

run pretrain isl pretrain.yaml net.encoder=tu-tf_efficientnet_lite0 net.weights=lite0.safetensors 'net.decoder=[128, 64, 48, 32, 16]'
run sweep nuclei nuclei.yaml
$H report nuclei
