"""Pictures of a run: outlines of objects on images of a few fields, spread over the plates."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpc_isl.learning.data.pixels import Pixels
from hpc_isl.learning.data.rescale import read_sources
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.plate_map import described
from hpc_isl.plates.store import read_label_box
from hpc_isl.run import Run
from hpc_isl.stages.segment.files import Labels, Row, labels_name
from hpc_isl.stages.segment.inputs import PlateInput, SegmentInputs
from hpc_isl.stages.shared.pictures import INK, save

Panel = tuple[str, Pixels, Labels]
"""Title, image and labels."""
SHOWN = 6
EDGE = 512  # pixels that a panel shows


def draw(inputs: SegmentInputs, run: Run, rows: Sequence[Row]) -> dict[str, Path]:
    """Draws `pictures/objects.png`: the first source of up to six fields, with the outline of each object."""
    whole = [
        (*place, row)
        for place, row in zip(inputs.fields, rows, strict=True)
        if "problem" not in row and 0 not in row.get("not_imaged", ())
    ]
    if not whole or not inputs.keeps_labels:
        return {}
    chosen = np.linspace(0, len(whole) - 1, min(SHOWN, len(whole))).round().astype(int)
    path = run.pictures / "objects.png"
    draw_panels([panel(*whole[number]) for number in chosen], path)
    return {"objects on images": path}


def panel(plate: PlateInput, key: FieldKey, row: Row, below: str = "") -> Panel:
    """Returns the middle of a field on the grid that the model sees; no more is read.

    `below`: last line of the title; empty: how many objects there are.
    """
    index, scale = plate.index, plate.scale(key)
    y, x = (slice((n - min(n, EDGE)) // 2, (n + min(n, EDGE)) // 2) for n in scale.shape)
    source = read_sources(plate.models.view, index, key, 0, scale, (y, x))[0]
    # Labels are of full resolution: those at the centres of the model's pixels are shown.
    rows, columns = (
        np.minimum(((np.arange(s.start, s.stop) + 0.5) * scale.to_level_0).astype(int), n - 1)
        for s, n in zip((y, x), index.field(key).shape[-2:], strict=True)
    )
    image, name = plate.image(key), labels_name(plate.image(key), plate.models.labels)
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    labels = read_label_box(image, name, 0, *box)[np.ix_(rows - rows[0], columns - columns[0])]
    if not below:
        small = sum(row.get("dropped", []))
        below = f"{row['objects']:,} objects" + (f", {small:,} too small" if small else "")
    about = described(index.plate_map.get(key.well, {}))
    return f"{plate.name} {', '.join([str(key), *about])}\n{below}", source, labels


def draw_panels(panels: Sequence[Panel], path: Path, legend: str = "") -> None:
    """Draws images with the outlines of their objects, three in a row."""
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
    if legend:
        lines = textwrap.wrap(legend, 58 * columns)
        figure.supxlabel("\n".join(lines), fontsize=8, color=INK, x=0.01, ha="left")
    save(figure, path)
