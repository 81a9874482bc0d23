"""What one would rather look at: outlines of objects on images of a few fields, spread over the plates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_isl.learning.foreign import read_sources
from hpc_isl.learning.view import View
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, read_labels
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.run import Run
from hpc_isl.stages.segmentation.files import Row, labels_name
from hpc_isl.stages.segmentation.setting import Models, Target, scale_of, view_of
from hpc_isl.stages.shared.pictures import INK, save

SHOWN = 6
EDGE = 512  # pixels of the label's level that a panel shows


def draw(
    recipe: SegmentRecipe, models: Models, targets: Sequence[Target], run: Run, rows: Sequence[Row]
) -> dict[str, Path]:
    """`pictures/objects.png`: the first source of up to six fields, with the outline of each object."""
    places = [(target, key) for target in targets for key in target.keys]
    whole = [place for place, row in zip(places, rows, strict=True) if "problem" not in row]
    if not whole or "labels" not in recipe.write:
        return {}
    chosen = np.linspace(0, len(whole) - 1, min(SHOWN, len(whole))).round().astype(int)
    view = view_of(recipe, models.contract)
    panels = [_panel(recipe, models, view, *whole[number]) for number in chosen]
    path = run.pictures / "objects.png"
    _draw(panels, path)
    return {"objects on images": path}


def _panel(
    recipe: SegmentRecipe, models: Models, view: View, target: Target, key: FieldKey
) -> tuple[str, NDArray[np.float32], NDArray[np.uint32]]:
    """Title, image and labels of the middle of a field, on the level of the labels that shows most of it."""
    index = target.index
    labels = _labels(index, key, labels_name(index.image(key), models.labels))
    scale = scale_of(recipe, view, index, key)
    source = read_sources(view, index, key, 0, scale)[0]
    step = max(1, round(scale.to_level_0))
    shown = labels[step // 2 :: step, step // 2 :: step][: source.shape[0], : source.shape[1]]
    source = source[: shown.shape[0], : shown.shape[1]]
    box = tuple(slice(max(n - EDGE, 0) // 2, max(n - EDGE, 0) // 2 + EDGE) for n in shown.shape)
    about = [value for value in index.plate_map.get(key.well, {}).values() if value]
    title = (
        f"{target.name} {', '.join([str(key), *about[:2]])}\n{np.count_nonzero(np.unique(labels))} objects"
    )
    return title, source[box], shown[box]


def _labels(index: Index, key: FieldKey, name: str) -> NDArray[np.uint32]:
    labels = read_labels(index.image(key), name)
    return labels[0] if labels.ndim == 3 else labels


def _draw(panels: Sequence[tuple[str, NDArray[np.float32], NDArray[np.uint32]]], path: Path) -> None:
    from matplotlib.figure import Figure
    from skimage.segmentation import find_boundaries

    columns = min(3, len(panels))
    deep = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 4.6 * deep), layout="constrained", dpi=110)
    axes = figure.subplots(deep, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, image, labels) in zip(axes, panels, strict=False):
        low, high = np.percentile(image, [0.5, 99.5])
        axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
        edges = np.ma.masked_equal(find_boundaries(labels, mode="inner").astype(np.uint8), 0)
        axis.imshow(edges, cmap="autumn", vmin=0, vmax=1.5, interpolation="nearest")
        axis.set_title(title, fontsize=9, color=INK)
    save(figure, path)
