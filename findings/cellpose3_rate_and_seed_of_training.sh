#!/usr/bin/env bash
# 2026-11-30, cellpose 3.1.1.2 (torch 2.15.0, numpy 2.0.2).
# Believed: `train_seg(n_epochs=N)` raises the learning rate at the beginning and lowers it at the end, whatever N
#   is; and `numpy.random.seed` before it makes replicates that see other crops.
# Seen: the rate is lowered only if N > 100: with 100 epochs the last one still has all of it, with 101 a
#   1024th. And each epoch seeds numpy's global generator with its own number: trainings that were seeded
#   differently see the same crops, and everybody who draws from that generator afterwards gets the same numbers.
# It matters where scores at different N are one curve (it has a step between 100 and 101), and where the
#   spread of replicates is taken for the spread over crops: it is that of first weights alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  cellpose==3.1.1.2 torch==2.15.0 numpy==2.0.2
cd "$folder"
mkdir models_of_cellpose
HOME=$folder CELLPOSE_LOCAL_MODELS_PATH=$folder/models_of_cellpose venv/bin/python - <<'PYTHON'
import logging
import re

import numpy as np
import torch
from cellpose import models, train

y, x = np.indices((96, 96))
labels = np.zeros((96, 96), np.int32)
for number, (cy, cx) in enumerate([(24, 24), (24, 72), (72, 24), (72, 72), (48, 48)], 1):
    labels[(y - cy) ** 2 + (x - cx) ** 2 < 144] = number
image = (labels > 0) * 100.0 + (y + x) / 10
lines = []


class Kept(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())


logging.getLogger("cellpose.train").addHandler(Kept())
logging.getLogger("cellpose.train").setLevel(logging.INFO)
torch.set_num_threads(1)


def trained(epochs, seed):
    """Returns epoch -> learning rate as it is logged, and what numpy's generator draws next."""
    lines.clear()
    torch.manual_seed(seed)
    np.random.seed(seed)
    network = models.CellposeModel(gpu=False, pretrained_model=False, nchan=2).net
    train.train_seg(
        network, train_data=[image[None]], train_labels=[labels], channels=[1, 0], channel_axis=0, n_epochs=epochs,
        learning_rate=0.1, batch_size=1, bsize=64, min_train_masks=1, save_path=".", model_name="own",
    )
    logged = (re.match(r"(\d+), .*LR=([0-9.]+)", line) for line in lines)
    return {int(match[1]): float(match[2]) for match in logged if match}, np.random.random()


hundred, drawn = trained(100, seed=1)
more, _ = trained(101, seed=1)
_, drawn_by_another_seed = trained(100, seed=2)
print("rate at epoch 90 of 100:", hundred[90], " at epochs 50, 90 and 100 of 101:", more[50], more[90], more[100])
print("what numpy draws after trainings with two seeds:", drawn, drawn_by_another_seed)
assert hundred[90] == 0.1, "100 epochs lower their rate by now"
assert more[50] == 0.1 and more[90] < 0.001 and more[100] < 0.0002, "101 epochs have another schedule by now"
assert drawn == drawn_by_another_seed, "training depends on numpy's seed by now"
PYTHON
