"""How well labels drafted from the stain agree with nuclei that people drew, at half resolution.

python docs/study/drafts.py P.zarr
"""

from __future__ import annotations

import sys
from pathlib import Path

from hpc_isl.objects.matching import object_scores
from hpc_isl.objects.scores import mask_iou
from hpc_isl.plates.store import label_names, open_plate, read_labels


def main() -> None:
    index = open_plate(Path(sys.argv[1]))
    for field in index.plate.fields:
        image = index.image(field.key)
        if {"drafted", "nuclei"} <= set(label_names(image)):
            drafted, drawn = (read_labels(image, name, 1) for name in ("drafted", "nuclei"))
            name = index.plate_map[field.key.well]["image"]
            scores = mask_iou(drafted, drawn), object_scores(drafted, drawn)["mAP"]
            print(f"{name:<10} IoU {scores[0]:.3f}   mAP {scores[1]:.3f}")


if __name__ == "__main__":
    main()
