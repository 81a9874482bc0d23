#!/usr/bin/env bash
# Makes former.tar.xz: what the version before the keys were renamed has left, for test_former_versions.py.
#   PYTHON=…/bin/python make.sh     with the Python of that version; prints its commit
set -euo pipefail
export HPC_ISL_IO_THREADS=1 CUDA_VISIBLE_DEVICES=
work=$(mktemp -d)/former
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$work" && cd "$work"
submit() { "$PYTHON" -m hpc_isl.submit "$@"; }
"$PYTHON" -m hpc_isl.stages.synthetic export --wells 4 --fields 1 --size 96 --planes 1
submit convert source=export out=plate.zarr plate_map=export/plate_map.csv site.cpus=1 site.tracking=none codec.chunk=64
for kind in nuclei cells; do
    submit annotate import export/truth/$kind plate=plate.zarr labels=$kind site.cpus=1 site.tracking=none
done
small=(train.crop=32 train.batch=2 train.micro_batch=2 site.cpus=1 site.tracking=none)
net='net={encoder: tu-test_resnet, weights: null, decoder: [16, 16, 8, 8, 8]}'
submit pretrain plates=[plate.zarr] 'sources=[{channel: Brightfield}]' 'targets=[{channel: HOECHST 33342}]' \
    "$net" split.test_wells=[B04] split.validation_wells=[] predict.stain=false \
    --name isl train.steps=4 "${small[@]}"
submit sweep stage=finetune plates=[plate.zarr] labels=cells pretrained=[isl] 'truth=[cells]' \
    'objects={kind: cells, h: 5, min_area: 0}' 'only={treatment: [DMSO, compound A]}' seen=allow \
    fold=0 'over={n: [1], arm: [random, random+isl]}' --name cells train.steps=3 "${small[@]}"
submit segment model=cells plates=[plate.zarr] labels=found 'write=[labels, mask]' h=4 empty=look \
    'truth={labels: cells}' largest=1000000 block=64 --name objects site.cpus=1 site.tracking=none
cp -r runs/segment/objects whole
# Two runs as a kill leaves them: a field of a segmentation, and steps of a training, are still to be computed.
rm -r runs/segment/objects/done runs/segment/objects/fields/*/B04-1.json
submit pretrain plates=[plate.zarr] 'sources=[{channel: Brightfield}]' 'targets=[{channel: HOECHST 33342}]' \
    "$net" split.test_wells=[B04] split.validation_wells=[] predict.stain=false \
    --name half train.steps=4 train.checkpoint_every=2 "${small[@]}"
cp -r runs/pretrain/half whole-half
echo "$work" > root.txt
tar -cJf "$here/former.tar.xz" --exclude=export --exclude='*.png' --exclude=code.diff --sort=name .
ls -la "$here/former.tar.xz"
