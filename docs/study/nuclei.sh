#!/bin/bash
# Nuclei of the 20 fields of phase contrast from a head that begins as the predicted stain (docs/protocol.md);
# it continues where it was stopped.
#   DATA=/folder/of/the/fields WEIGHTS=tf_efficientnet_lite0.safetensors docs/study/nuclei.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) data=$(cd "$DATA" && pwd)
. "$here"/common.sh
mkdir -p "$1"
cp "$here"/pretrain.yaml "$here"/nuclei.yaml "$here"/split.csv "$1"
cp "$WEIGHTS" "$1"/lite0.safetensors
cd "$1"
phase_nuclear "$data"
$H annotate draft plate=P.zarr labels=drafted channel=nuclear $ONE

run pretrain isl pretrain.yaml net.encoder=tu-tf_efficientnet_lite0 net.weights=lite0.safetensors 'net.decoder=[128, 64, 48, 32, 16]'
run sweep nuclei nuclei.yaml
$H report nuclei
