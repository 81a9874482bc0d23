"""StarDist as an arm of a sweep, trained from scratch; needs stardist and tensorflow in its environment.

    python stardist_program.py train IMAGES LABELS MODEL SEED [--epochs 50] [--steps 20]
    python stardist_program.py predict IMAGES MODEL OUT

Objects are star-convex polygons: long, bent cells are not. Its thresholds are fitted on the images it has
learnt from, because no further annotation may be consulted. The file is not called stardist.py: Python would
import it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf
import tifffile
from csbdeep.utils import normalize
from stardist import fill_label_holes
from stardist.models import Config2D, StarDist2D

GRID = 2


def read(folder: Path) -> tuple[list[np.ndarray], list[str]]:
    """Returns normalised images, (y, x) or (y, x, channel), and their names."""
    paths = sorted(folder.glob("*.tif"))
    images = [tifffile.imread(path) for path in paths]
    images = [image if image.ndim == 2 else np.moveaxis(image, 0, -1) for image in images]
    return [normalize(image, 1, 99.8, axis=(0, 1)) for image in images], [path.name for path in paths]


def augmented(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    turns, mirrored = np.random.randint(4), np.random.randint(2)
    image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    image, labels = (image[::-1], labels[::-1]) if mirrored else (image, labels)
    return image * np.random.uniform(0.8, 1.2) + np.random.uniform(-0.1, 0.1), labels


def learn(given: argparse.Namespace) -> None:
    tf.keras.utils.set_random_seed(given.seed)
    images, names = read(given.images)
    labels = [fill_label_holes(tifffile.imread(given.labels / name).astype(np.int32)) for name in names]
    shortest = min(min(own.shape) for own in labels)
    patch = min(256, shortest // 16 * 16)
    if patch < 32:
        raise SystemExit(f"the smallest annotated box is {shortest} pixels wide: StarDist needs 32")
    config = Config2D(
        n_rays=32, grid=(GRID, GRID), n_channel_in=1 if images[0].ndim == 2 else images[0].shape[-1],
        train_patch_size=(patch, patch), train_epochs=given.epochs, train_steps_per_epoch=given.steps,
        train_tensorboard=False,
    )  # fmt: skip
    own = StarDist2D(config, name="own", basedir=str(given.model))
    # It asks for validation images, to choose weights by: those that it learns from, which N counts.
    own.train(images, labels, validation_data=(images, labels), augmenter=augmented, seed=given.seed)
    own.optimize_thresholds(images, labels)


def segment(given: argparse.Namespace) -> None:
    images, names = read(given.images)
    if not (given.model / "own").exists():
        raise SystemExit("nothing was trained: StarDist has nothing to segment with")
    own = StarDist2D(None, name="own", basedir=str(given.model))
    for image, name in zip(images, names, strict=True):
        labels, _ = own.predict_instances(image)
        tifffile.imwrite(given.out / name, labels.astype(np.int32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for name, call, folders in (("train", learn, ("images", "labels", "model")),
                                ("predict", segment, ("images", "model", "out"))):  # fmt: skip
        verb = verbs.add_parser(name)
        for folder in folders:
            verb.add_argument(folder, type=Path)
        if call is learn:
            verb.add_argument("seed", type=int)
            verb.add_argument("--epochs", type=int, default=50)
            verb.add_argument("--steps", type=int, default=20)
        verb.set_defaults(call=call)
    given = parser.parse_args()
    given.call(given)


if __name__ == "__main__":
    main()
