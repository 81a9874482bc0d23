"""Another program that segments: it learns one threshold. Run as a script, in a process of its own.

    threshold_program.py train IMAGES LABELS MODEL SEED
    threshold_program.py predict IMAGES MODEL OUT [FAULT]

Where nothing was trained, the middle between the darkest and the brightest pixel is taken.
With a fault it does what programs should not do.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import tifffile
from scipy.ndimage import label


def train(images: Path, labels: Path, model: Path, seed: str) -> None:
    inside, outside, objects = [], [], 0
    for path in sorted(images.glob("*.tif")):
        image, drawn = tifffile.imread(path), tifffile.imread(labels / path.name)
        assert image.dtype == np.float32
        assert drawn.dtype == np.uint16
        assert drawn.shape == image.shape[-2:]
        image = image if image.ndim == 2 else image[0]
        inside.append(image[drawn > 0])
        outside.append(image[drawn == 0])
        objects += len(np.unique(drawn[drawn > 0]))
    dim, bright = np.concatenate(outside).max().item(), np.concatenate(inside).min().item()
    learnt = {"threshold": (dim + bright) / 2, "images": len(inside), "objects": objects, "seed": int(seed)}
    (model / "learnt.json").write_text(json.dumps(learnt))
    print("learnt", learnt["threshold"])


def predict(images: Path, model: Path, out: Path, fault: str = "") -> None:
    learnt = model / "learnt.json"
    print("a warning that nobody minds", file=sys.stderr)
    for path in sorted(images.glob("*.tif")):
        image = tifffile.imread(path)
        image = image if image.ndim == 2 else image[0]
        middle = (image.min() + image.max()) / 2
        level = json.loads(learnt.read_text())["threshold"] if learnt.exists() else middle
        labels = label(image > level)[0]
        if fault:
            labels = _wrong(fault, labels, out / path.name)
        if labels is not None:
            tifffile.imwrite(out / path.name, labels)


def _wrong(fault: str, labels: np.ndarray, path: Path) -> np.ndarray | None:
    if fault == "exit":
        sys.exit("no weights were found")
    elif fault == "abort":
        os.abort()
    elif fault == "sleep":
        time.sleep(600)
    elif fault == "missing":
        path.with_suffix(".png").write_bytes(b"")
        return None
    elif fault == "more":
        tifffile.imwrite(path.with_name("other.tif"), labels)
    elif fault == "damaged":
        path.write_bytes(b"II*\0")
        return None
    elif fault == "stops early" and path.name != "00000.tif":
        return None
    changed = {"float": labels.astype(np.float32), "shape": labels[1:], "negative": labels - 1,
               "numbers": np.where(labels, labels * 1000003, 0).astype(np.uint32)}  # fmt: skip
    return changed.get(fault, labels)


if __name__ == "__main__":
    {"train": train, "predict": predict}[sys.argv[1]](*map(Path, sys.argv[2:5]), *sys.argv[5:])
