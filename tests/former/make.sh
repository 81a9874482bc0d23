#!/usr/bin/env bash
# Makes former.tar.xz: what the version before the keys of recipes were renamed has left.
#   PYTHON=…/bin/python make.sh     with the Python of that version
set -euo pipefail
export HPC_ISL_IO_THREADS=1 CUDA_VISIBLE_DEVICES=
work=$(mktemp -d)/former
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$work" && cd "$work"
submit() { "$PYTHON" -m hpc_isl.submit "$@" site.cpus=1 site.tracking=none; }
"$PYTHON" -m hpc_isl.stages.synthetic export --wells 4 --fields 1 --size 96 --planes 1
submit convert source=export out=plate.zarr plate_map=export/plate_map.csv codec.chunk=64
for kind in nuclei cells; do
    submit annotate import export/truth/$kind plate=plate.zarr labels=$kind
done
small=(train.crop=32 train.batch=2 train.micro_batch=2)
# A small network and an optimiser without a state: files stay small.
submit pretrain plates=[plate.zarr] 'sources=[{channel: Brightfield}]' 'targets=[{channel: HOECHST 33342}]' \
    'net={encoder: tu-test_resnet, weights: null, decoder: [8, 8, 8, 8, 8]}' 'optim={name: sgd, betas: [0, 0.9]}' \
    split.test_wells=[B04] split.validation_wells=[] predict.stain=false \
    --name isl train.steps=4 train.checkpoint_every=2 "${small[@]}"
submit sweep stage=finetune plates=[plate.zarr] labels=cells pretrained=[isl] 'truth=[cells]' \
    'objects={kind: cells, h: 5, min_area: 0}' 'only={treatment: [DMSO, compound A]}' seen=allow \
    fold=0 'over={n: [1], arm: [random, random+isl]}' --name cells train.steps=3 "${small[@]}"
submit segment model=cells plates=[plate.zarr] labels=found 'write=[labels, mask]' h=4 empty=look \
    'truth={labels: cells}' largest=1000000 block=64 --name objects
# Two runs as a kill leaves them: a field of a segmentation, and two steps of a training, are still to be computed.
cp -r runs/segment/objects whole
rm -r runs/segment/objects/done runs/segment/objects/fields/*/B04-1.json
cp runs/pretrain/isl/model/contract.json whole/isl-contract.json
(cd runs/pretrain/isl && rm -r done model checkpoints/step-00000004.pt && sed -i '/"step": [34]/d' metrics.jsonl)
rm runs/sweep/cells/finetune/n=*/model/weights.safetensors
echo "$work" > root.txt
tar -cJf "$here/former.tar.xz" --exclude=export --exclude=checkpoints/best.pt --exclude='*.png' --exclude='*.html' \
    --exclude=code.diff --sort=name .
ls -la "$here/former.tar.xz"
