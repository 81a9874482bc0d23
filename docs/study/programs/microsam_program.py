"""micro-sam as an arm of a sweep; needs micro_sam, version 1.3 or a later 1, from conda-forge.

    python microsam_program.py train IMAGES LABELS MODEL SEED --weights FILE [--type vit_b_lm] [--epochs 20]
    python microsam_program.py predict IMAGES MODEL OUT --weights FILE [--type vit_b_lm]

Written by its documentation and never run: neither the package nor its weights were at hand. FILE is a
checkpoint with the decoder for automatic segmentation, such as that of vit_b_lm. Of several sources the first
is seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tifffile


def read(path: Path) -> np.ndarray:
    """Returns the first source (y, x), from 0 to 255 between its 1st and 99th percentile."""
    image = tifffile.imread(path)
    image = image if image.ndim == 2 else image[0]
    low, high = np.percentile(image, (1, 99))
    return np.clip((image - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)


def learn(given: argparse.Namespace) -> None:
    import micro_sam.training as sam_training
    import torch

    torch.manual_seed(given.seed)
    folder = given.images.parent / "in 8 bits"
    folder.mkdir()
    paths = sorted(given.images.glob("*.tif"))
    for path in paths:
        tifffile.imwrite(folder / path.name, read(path))
    raw = [str(folder / path.name) for path in paths]
    drawn = [str(given.labels / path.name) for path in paths]
    patch = min(512, *(min(tifffile.imread(path).shape) for path in drawn))

    def loader(is_train: bool) -> torch.utils.data.DataLoader:
        return sam_training.default_sam_loader(
            raw_paths=raw, raw_key=None, label_paths=drawn, label_key=None, patch_shape=(patch, patch),
            with_segmentation_decoder=True, is_train=is_train, batch_size=1, shuffle=True,
        )  # fmt: skip

    # It asks for validation images: those that it learns from; no further annotation may be consulted.
    sam_training.train_sam(
        name="own", model_type=given.type[:5], train_loader=loader(True), val_loader=loader(False),
        n_epochs=given.epochs, early_stopping=None, checkpoint_path=given.weights,
        with_segmentation_decoder=True, save_root=str(given.model),
    )  # fmt: skip


def segment(given: argparse.Namespace) -> None:
    from micro_sam.automatic_segmentation import automatic_instance_segmentation, get_predictor_and_segmenter

    trained = given.model / "checkpoints" / "own" / "best.pt"
    model = (given.type[:5], str(trained)) if trained.exists() else (given.type, given.weights)
    predictor, segmenter = get_predictor_and_segmenter(model_type=model[0], checkpoint=model[1], amg=False)
    for path in sorted(given.images.glob("*.tif")):
        labels = automatic_instance_segmentation(predictor, segmenter, input_path=read(path), ndim=2)
        tifffile.imwrite(given.out / path.name, np.asarray(labels, np.int32))


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
            verb.add_argument("--epochs", type=int, default=20)
        verb.add_argument("--weights", required=True)
        verb.add_argument("--type", default="vit_b_lm")
        verb.set_defaults(call=call)
    given = parser.parse_args()
    given.call(given)


if __name__ == "__main__":
    main()
