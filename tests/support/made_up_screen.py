"""Small plates of blobs, and a model that finds objects in them: it need not have learnt to be exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

import hpc_isl
from hpc_isl.learning.data.drift import Reference
from hpc_isl.learning.data.view import Role, View
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import Contract, Task
from hpc_isl.learning.network.heads import set_head
from hpc_isl.learning.network.unet import build
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, Problem, layout
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import Index, finalise, write_field
from hpc_isl.recipes.plates import CodecRecipe
from hpc_isl.recipes.training import NetRecipe, PredictRecipe
from hpc_isl.run import Run

CHANNELS = (Channel("Brightfield", fluorescent=False), Channel("Hoechst", color="0000FF"))
NET = NetRecipe(encoder="tu-test_resnet", weights=None, decoder=[16, 16, 8, 8, 8])


def write_screen(
    path: Path,
    wells: Sequence[str] = ("B02", "B03"),
    fields: int = 2,
    shape: tuple[int, int] = (96, 128),
    *,
    step: int | None = None,
    pixel_um: float | None = 0.5,
    stain: str = "Hoechst",
    times: int = 1,
    spacing: int = 20,
    unstained: Sequence[str] = (),
    unlit: Sequence[tuple[str, int]] = (),
    empty: Sequence[str] = (),
    faint: Sequence[str] = (),
    problems: Sequence[Problem] = (),
) -> Index:
    """A plate of cells in bright-field and their nuclei; fields of a well lie side by side.

    `step`: pixels from one field to the next; less than their width makes them overlap on one ground.
    `stain`: name of that of the nuclei. `spacing`: pixels from one nucleus to the next. `unstained`: wells in
    which the nuclei were not imaged; `unlit`: wells and times at which the bright-field was not;
    `empty`: wells without cells. `faint`: wells whose bright-field has lost most of its contrast.
    `problems`: fields that were left out, and why.
    """
    rows, columns = layout(set(wells))
    y, x = shape
    step = x if step is None else step
    made = tuple(
        Field(
            FieldKey(well, str(number + 1)), (times, 2, 1, y, x), "uint16",
            (0.0, number * step * pixel_um) if pixel_um else None, (0.0,),
            {"planes": {"Brightfield": [0], stain: [] if well in unstained else [0]}},
        )
        for well in wells for number in range(fields)
    )  # fmt: skip
    channels = (CHANNELS[0], replace(CHANNELS[1], name=stain))
    plate = Plate(path.stem, rows, columns, channels, made, pixel_um)
    for well in wells:
        ground = _ground(
            f"{path.stem} {well}", (times, y, (fields - 1) * step + x), spacing, well not in empty
        )
        if well in faint:
            light = ground[:, 0].astype(float)
            ground[:, 0] = light.mean() + (light - light.mean()) / 20
        for number, field in enumerate(f for f in made if f.key.well == well):
            pixels = ground[:, :, None, :, number * step : number * step + x].copy()
            imaged = [
                (t, c, z) for t, c, z in np.ndindex(field.shape[:3])
                if ((well, t) not in unlit if c == 0 else well not in unstained)
            ]  # fmt: skip
            for at in {*np.ndindex(field.shape[:3])} - {*imaged}:
                pixels[at] = 0  # as what was not imaged is stored
            write_field(path, plate, field, pixels, measure(pixels, imaged), CodecRecipe(chunk=64))
    treatments = ("control", "drug")
    plate_map = {well: {"treatment": treatments[n % 2]} for n, well in enumerate(wells)}
    return finalise(path, plate, plate_map, tuple(problems))


def _ground(name: str, shape: tuple[int, int, int], spacing: int = 20, cells: bool = True) -> np.ndarray:
    """(t, channel, y, x): nuclei on a rough lattice, and a bright-field that follows them."""
    rng = np.random.default_rng(list(name.encode()))
    stains = []
    for _ in range(shape[0]):
        points = np.zeros(shape[1:])
        ys, xs = np.mgrid[8 : shape[1] : spacing, 8 : shape[2] : spacing]
        ys, xs = (
            np.clip(v + rng.integers(-5, 6, v.shape), 0, n - 1)
            for v, n in zip((ys, xs), shape[1:], strict=True)
        )
        points[ys, xs] = rng.uniform(0.7, 1.3, ys.shape)
        stains.append(gaussian_filter(points, 3.5) * 60)
    stain = np.stack(stains) * cells
    light = 1000 + 300 * stain + rng.normal(0, 40, stain.shape)
    return np.stack([light, 400 + 6000 * stain + rng.normal(0, 60, stain.shape)], 1).clip(0).astype(np.uint16)


def save_model(
    folder: Path,
    *,
    kind: str = "cells",
    level: int = 0,
    predict: PredictRecipe | None = None,
    pixel_um: float | None = 0.5,
    channel: str = "Brightfield",
    net: NetRecipe = NET,
    confidence: tuple[float, ...] | None = None,
    reference: Reference | None = None,
) -> Run:
    """A run of finetune that holds a model of random weights, which calls about a third of pixels object."""
    run = Run(folder)
    folder.mkdir(parents=True)
    run.recipe.write_text("{}\n")
    task = Task("cells", kind, scale="object", h_maxima=2.0, min_area=6, arm="random", confidence=confidence)
    network = build(net, 1, task.outputs, seed=1, pretrained=False)
    set_head(network, task, 1)
    _calibrate(network, task)
    view = View((Role(channel, 0),), (), level=level, pixel_um=pixel_um)
    contract = Contract(
        view=view, net=net, predict=predict or PredictRecipe(stain=False), precision="fp32", recipe={},
        digest="0" * 16, split="", wells={}, plates={}, step=0, code=hpc_isl.__version__, task=task,
        reference=reference or {},
    )  # fmt: skip
    model.save(run.model, network, contract)
    return run


def _calibrate(network: torch.nn.Module, task: Task) -> None:
    """Shifts the mask's logit so that a third of the pixels of some blobs lies above 0."""
    blobs = _ground("calibration", (1, 128, 128))[0, 0].astype(np.float32)
    seen = torch.from_numpy((blobs - blobs.mean()) / blobs.std())[None, None]
    with torch.inference_mode():
        logit = network.eval()(seen)[0, -1]
    last = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    assert last.bias is not None
    with torch.no_grad():
        last.bias[-1] -= torch.quantile(logit, 0.65)
