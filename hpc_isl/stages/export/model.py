"""`export model`: a network for other programs, as ONNX or a bioimage.io package, with what decodes it."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hpc_isl
from hpc_isl.errors import UserError, nearest
from hpc_isl.files import check_new_folder
from hpc_isl.learning.data.pixels import Pixels
from hpc_isl.learning.network.contract import Contract
from hpc_isl.learning.network.limits import STRIDE
from hpc_isl.learning.network.model import load
from hpc_isl.plates.atomic_directory import atomic_directory
from hpc_isl.run import Run
from hpc_isl.stages.export import decode
from hpc_isl.stages.export.package import OPSET, write_package
from hpc_isl.stages.shared.decoding import rule_of
from hpc_isl.stages.shared.following import model_run
from hpc_isl.stages.shared.plate_views import resized_since

FORMATS = ("onnx", "bioimageio")
NEEDED = ("onnx", "onnxruntime")  # the extra `onnx`
EDGES = (3 * STRIDE, 5 * STRIDE)  # of the image that both are tried on: not the one that was traced
TOLERANCE = 1e-4
FILES = {"model": "model.onnx", "contract": "contract.json", "decode": "decode.py"}


@dataclass(frozen=True)
class ExportedModel:
    """The folder that was written, and the greatest difference from PyTorch as a share of the map's range."""

    out: Path
    difference: float


def export_model(run: Run, out: Path, form: str = "onnx") -> ExportedModel:
    """Writes the model of a run of pretrain or finetune into a new folder, whole or not at all.

    Raises:
        UserError: no model, one that is another program, or that the format cannot hold; a library that is
            not installed; a folder that holds something.
    """
    if form not in FORMATS:
        raise UserError(f"format={form}: no such format; {nearest(form, FORMATS)}")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(f"export model: {', '.join(missing)} is not installed: pip install 'hpc-isl[onnx]'")
    check_new_folder(out)
    run = model_run(run.folder)
    network, contract = load(run.model)
    if lines := [line for line, _ in resized_since(contract)]:
        raise UserError(f"model={run.label}: {lines[0]}, after this model was trained there; train it again")
    content = public_contract(contract)
    if form == "bioimageio":
        check_package(contract)
        network = Cut(network, content["mask_logit"])
    if out.is_dir():
        out.rmdir()  # fails unless it is empty: nothing that came meanwhile is replaced
    with atomic_directory(out, 2 * (run.model / "weights.safetensors").stat().st_size) as folder:
        (folder / FILES["contract"]).write_text(json.dumps(content, indent=1))
        shutil.copyfile(decode.__file__, folder / FILES["decode"])
        _write_onnx(network, len(contract.view.sources), content, folder / FILES["model"])
        difference = _difference(network, len(contract.view.sources), folder / FILES["model"])
        if form == "bioimageio":
            write_package(folder, contract, content, run.label)
    return ExportedModel(out, difference)


def public_contract(contract: Contract) -> dict[str, Any]:
    """Returns what another program must know to use the network: no path and no plate's name.

    Raises:
        UserError: images are corrected for uneven light first, which only this package does.
    """
    view, task = contract.view, contract.task
    if view.flat_field != "none":
        raise UserError(
            f"the model sees images after data.flat_field={view.flat_field}, which an export does not hold; "
            "train one with data.flat_field=none"
        )
    rule = rule_of(task)
    content: dict[str, Any] = {
        "made_by": f"hpc_isl {hpc_isl.__version__}, {contract.net.encoder}, step {contract.step}",
        "weights": contract.weights,
        "sources": [{"channel": role.channel, "plane": role.plane} for role in view.sources],
        "pixel_um": view.pixel_um,
        "normalize": {"source": view.normalize.source, "local_px": view.normalize.local_px},
        "stride": STRIDE,
        "kind": rule.kind,
    }
    if task is None:
        return content | {
            "outputs": [role.channel for role in view.targets],
            "stains": [{"channel": role.channel, "numbers": role.numbers} for role in view.targets],
        }
    outputs = ["mask_logit"] if rule.kind == "nuclei" else ["distance_map", "mask_logit"]
    return content | {
        "outputs": outputs, "labels": task.labels, "h_maxima": rule.h_maxima, "mask_logit": rule.threshold,
        "min_area_px": rule.min_area, "min_area_um2": rule.min_area_um2,
    }  # fmt: skip


def check_package(contract: Contract) -> None:
    """Raises a UserError where a bioimage.io package cannot say what the contract says."""
    if contract.task is None:
        raise UserError("format=bioimageio: the model predicts stains; take format=onnx")
    if contract.view.normalize.local_px:
        raise UserError(
            "format=bioimageio: has no step that subtracts a box mean (data.normalize.local_px); take "
            "format=onnx"
        )


class Cut(nn.Module):
    """A network that segments, with its maps made one: the distance inside the mask, -1e9 outside.

    Of nuclei, 1 inside. A bioimage.io package may not change the number of channels behind the network.
    """

    def __init__(self, network: nn.Module, threshold: float) -> None:
        super().__init__()
        self.network, self.threshold = network, threshold

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.network(images)
        inside = maps[:, -1:] > self.threshold
        value = maps[:, :1] if maps.shape[1] > 1 else torch.ones_like(maps)
        return torch.where(inside, value, torch.full_like(value, decode.OUTSIDE))


def _write_onnx(network: nn.Module, sources: int, contract: dict[str, Any], path: Path) -> None:
    """Writes the network, of any batch, height and width under its stride, with the contract inside."""
    import onnx

    axes: dict[int, str] = {0: "batch", 2: "y", 3: "x"}
    with warnings.catch_warnings():
        # The tracer warns that it is the older exporter, and of the network's own check of its stride. The
        # newer one gives the same numbers, takes five times as long and needs a library more.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.zeros(1, sources, 2 * STRIDE, 2 * STRIDE),), str(path), dynamo=False,
            input_names=["image"], output_names=["maps"], opset_version=OPSET,
            dynamic_axes={"image": axes, "maps": axes},
        )  # fmt: skip
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"hpc_isl": json.dumps(contract)})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _difference(network: nn.Module, sources: int, path: Path) -> float:
    """Returns how much onnxruntime differs from PyTorch on an image, as a share of each map's range.

    Raises:
        UserError: it differs by more than 1e-4.
    """
    import onnxruntime

    image = np.random.default_rng(0).normal(size=(1, sources, *EDGES)).astype(np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(image)).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference = greatest_difference(session.run(None, {"image": image})[0][0], expected[0])
    if difference > TOLERANCE:
        raise UserError(
            f"{path.name}: onnxruntime differs from PyTorch by {difference:.2g} of the range of a map; this "
            "network cannot be exported"
        )
    return difference


def greatest_difference(maps: Pixels, expected: Pixels) -> float:
    """Returns the greatest difference of maps (map, y, x) as a share of the range of the expected one.

    Where the mask is cut out of a map, the share of pixels that are cut in one alone counts too.
    """
    shares = []
    for actual, reference in zip(maps, expected, strict=True):
        inside = (actual > decode.OUTSIDE / 2) & (reference > decode.OUTSIDE / 2)
        cut = (
            np.count_nonzero((actual > decode.OUTSIDE / 2) != (reference > decode.OUTSIDE / 2)) / actual.size
        )
        if inside.any():
            difference = float(np.abs(actual - reference)[inside].max())
            shares.append(difference / max(float(np.ptp(reference[inside])), 1e-6))
        shares.append(cut)
    return max(shares)
