"""Cellpose as an arm of a sweep; needs cellpose 3 (a convolutional network) or 4 (Cellpose-SAM) installed.

    python cellpose_program.py train IMAGES LABELS MODEL SEED [--weights NAME_OR_FILE] [--epochs 150]
    python cellpose_program.py predict IMAGES MODEL OUT [--weights NAME_OR_FILE]

Without --weights cellpose 3 trains from scratch; with it, e.g. cyto3 or cpsam, it starts from weights that
have to be at hand: in CELLPOSE_LOCAL_MODELS_PATH, or at the path that is given. Predicting takes what was
trained, and the weights alone where nothing was. The file is not called cellpose.py: Python would import it.
"""

from __future__ import annotations

import argparse
import logging
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tifffile
import torch
from cellpose import models, train

SAM = int(version("cellpose").split(".")[0]) >= 4


def read(folder: Path) -> tuple[list[np.ndarray], list[str]]:
    """Returns images (channel, y, x) and their names: of up to two sources for cellpose 3, three for 4."""
    paths = sorted(folder.glob("*.tif"))
    images = [np.atleast_3d(tifffile.imread(path).T).T for path in paths]  # (y, x) becomes (1, y, x)
    return [image[: 3 if SAM else 2] for image in images], [path.name for path in paths]


def network(weights: str | None) -> models.CellposeModel:
    if weights is None and SAM:
        raise SystemExit("cellpose 4 has no training from scratch: --weights cpsam, or a file")
    return models.CellposeModel(gpu=torch.cuda.is_available(), pretrained_model=weights or False)


def channels(images: list[np.ndarray]) -> dict[str, object]:
    """Cellpose 3 is told which channel is which: the first is segmented, the second helps."""
    return {"channel_axis": 0} if SAM else {"channel_axis": 0, "channels": [1, 2 * (len(images[0]) > 1)]}


def learn(given: argparse.Namespace) -> None:
    torch.manual_seed(given.seed)  # of the first weights alone: cellpose draws the same crops for every seed
    images, names = read(given.images)
    labels = [tifffile.imread(given.labels / name).astype(np.int32) for name in names]
    own = network(given.weights)
    # Few annotations: every image counts, however few objects it has, and an epoch has at least eight images.
    rate = {"learning_rate": 0.005 if given.weights is None else 0.001, "weight_decay": 1e-4}
    if SAM:
        rate = {"learning_rate": 1e-5, "weight_decay": 0.1}
    train.train_seg(
        own.net, train_data=images, train_labels=labels, n_epochs=given.epochs, batch_size=1 if SAM else 8,
        min_train_masks=1, nimg_per_epoch=max(8, len(images)), save_path=given.model, model_name="own",
        **rate, **({} if SAM else {"channels": channels(images)["channels"]}), channel_axis=0,
    )  # fmt: skip


def segment(given: argparse.Namespace) -> None:
    images, names = read(given.images)
    trained = given.model / "models" / "own"
    own = network(str(trained) if trained.exists() else given.weights)
    if not trained.exists() and given.weights is None:
        raise SystemExit("nothing was trained, and no --weights are given: there is nothing to segment with")
    for image, name in zip(images, names, strict=True):
        labels = own.eval(image, **channels([image]))[0]
        tifffile.imwrite(given.out / name, np.asarray(labels, np.int32))


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for name, call, folders in (("train", learn, ("images", "labels", "model")),
                                ("predict", segment, ("images", "model", "out"))):  # fmt: skip
        verb = verbs.add_parser(name)
        for folder in folders:
            verb.add_argument(folder, type=Path)
        if call is learn:
            verb.add_argument("seed", type=int)
            # Of 100 epochs or fewer cellpose 3 does not lower the learning rate at the end.
            verb.add_argument("--epochs", type=int, default=150)
        verb.add_argument("--weights")
        verb.set_defaults(call=call)
    given = parser.parse_args()
    given.call(given)


if __name__ == "__main__":
    main()
