"""The pictures of docs/tutorial.md, from the folder that its commands have made.

python docs/tutorial/pictures.py docs/images     # beside the folder `tutorial`
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

import hpc_isl

Y0, X0, Y1, X1 = BOX = (100, 100, 420, 420)
DRAFTED, DRAWN = "#ffb000", "#3da5ff"  # apart for the colour-blind too


def show(axis: Axes, image: NDArray[Any], title: str) -> None:
    low, high = np.percentile(image, (1, 99.7))
    axis.imshow(image, cmap="gray", vmin=low, vmax=high)
    axis.set(title=title, xticks=[], yticks=[])


def outline(axis: Axes, labels: NDArray[Any], colour: str) -> None:
    for number in np.unique(labels[labels > 0]):
        axis.contour(labels == number, [0.5], colors=colour, linewidths=0.8)


def main(folder: Path) -> None:
    plate = hpc_isl.open_plate("tutorial/u2os.zarr")
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.3), layout="constrained")
    for axis, well in zip(axes, ("A02", "N18"), strict=True):
        (field,) = plate[well]
        show(axis, field.read("Hoechst", box=BOX), f"{well}: drafted (yellow), drawn by people (blue)")
        outline(axis, field.labels("drafted")[Y0:Y1, X0:X1], DRAFTED)
        outline(axis, field.labels("nuclei")[Y0:Y1, X0:X1], DRAWN)
    figure.savefig(folder / "tutorial_drafts.png", dpi=110)

    (field,) = plate["F03"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.3), layout="constrained")
    image, found = field.read("Hoechst", box=BOX), field.labels("found")[Y0:Y1, X0:X1]
    show(axes[0], image, "F03: Hoechst")
    show(axes[1], image, f"found: {len(np.unique(found)) - 1} nuclei in this part")
    outline(axes[1], found, DRAWN)
    figure.savefig(folder / "tutorial_found.png", dpi=110)

    runs = Path("tutorial/runs")
    shutil.copy(runs / "pretrain/isl/pictures/examples.png", folder / "tutorial_isl.png")
    shutil.copy(runs / "sweep/nuc/report/curves-0.png", folder / "tutorial_report.png")
    shutil.copy("tutorial/doses.png", folder / "tutorial_doses.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
