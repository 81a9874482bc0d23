"""A bioimage.io package: the network, its normalisation and its decoding, described for other programs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hpc_isl.learning.data.pixels import Pixels
from hpc_isl.learning.network.contract import Contract
from hpc_isl.stages.export import decode

LEAST = 128  # pixels along an edge
TEST = (160, 192)  # pixels of the package's test image
FORMAT, OPSET = "0.5.12", 17  # the first version of the specification with custom postprocessing, and ONNX's
README = """\
# {name}

Finds {labels} ({kind}) in {sources}, {pixel}. Made by {made_by}.

Before you publish it, add authors, a licence and what to cite to rdf.yaml: these are yours to say.

Give it whole images in counts as the camera gave them: each source is normalised by its own image, and
objects that lie on the seam of two blocks would be cut. The result is a label image: 0 background, k the k-th
object.

The network's map (its distance map inside the mask, -1e9 outside) becomes objects by `decode.py`, whose class
`Objects` is the package's custom postprocessing: seeds are the regional maxima of the map's h-maxima
transform (h = {h}), objects their watershed; those smaller than {area} pixels are dropped.
"""


def write_package(folder: Path, contract: Contract, content: dict[str, Any], name: str) -> None:
    """Adds the description, README and test tensors to a folder that holds model.onnx and decode.py.

    Args:
        content: the contract as the export states it.
        name: of the run.
    """
    image = _test_image(len(content["sources"]))
    labels = _labels(folder, image, content)
    np.save(folder / "test_image.npy", image)
    np.save(folder / "test_labels.npy", labels)
    sources = ", ".join(f"{role.channel} {role.plane}" for role in contract.view.sources)
    pixel = f"pixels of {content['pixel_um']:g} µm" if content["pixel_um"] else "pixels of unknown size"
    text = README.format(
        name=name, labels=content["labels"], kind=content["kind"], sources=sources, pixel=pixel,
        made_by=content["made_by"], h=content["h_maxima"], area=content["min_area_px"],
    )  # fmt: skip
    (folder / "README.md").write_text(text)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(_description(folder, content, name), sort_keys=False))


def _description(folder: Path, content: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the package's description, of version 0.5 of the specification."""
    size = {"min": LEAST, "step": content["stride"]}
    scale = {"unit": "micrometer", "scale": content["pixel_um"]} if content["pixel_um"] else {}
    channels = [f"{entry['channel']} {entry['plane']}" for entry in content["sources"]]
    identifiers = ["".join(char if char.isalnum() else "_" for char in channel) for channel in channels]

    def axes(names: list[str], sides: list[dict[str, Any]]) -> list[dict[str, Any]]:
        space_axes = [
            {"id": axis, "type": "space", **side, **scale} for axis, side in zip("yx", sides, strict=True)
        ]
        return [{"type": "batch"}, {"type": "channel", "channel_names": names}, *space_axes]

    def file(path: str) -> dict[str, str]:
        return {"source": path, "sha256": hashlib.sha256((folder / path).read_bytes()).hexdigest()}

    arguments = {key: content[key] for key in ("kind", "h_maxima", "min_area_px")}
    return {
        "type": "model",
        "format_version": FORMAT,
        "name": "".join(letter if letter.isalnum() or letter in "_+- ()" else "-" for letter in name),
        "description": f"Finds {content['labels']} ({content['kind']}) in {', '.join(channels)}."[:1024],
        "documentation": file("README.md"),
        "tags": ["segmentation", "label-free", content["kind"]],
        "attachments": [file("contract.json")],
        "inputs": [{
            "id": "image",
            "axes": axes(identifiers, [{"size": size}] * 2),
            "data": {"type": "float32"},
            "test_tensor": file("test_image.npy"),
            "preprocessing": [
                *_normalisation(content), {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
            ],
        }],
        "outputs": [{
            "id": "labels",
            "axes": axes(["labels"], [{"size": {"tensor_id": "image", "axis_id": axis}} for axis in "yx"]),
            "data": {"type": "uint32"},
            "test_tensor": file("test_labels.npy"),
            "postprocessing": [
                {"id": "custom", "callable": "Objects", **file("decode.py"), "kwargs": arguments},
                {"id": "ensure_dtype", "kwargs": {"dtype": "uint32"}},
            ],
        }],
        "weights": {"onnx": {**file("model.onnx"), "opset_version": OPSET}},
        "config": {"hpc_isl": content},
    }  # fmt: skip


def _normalisation(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the package's own steps that do what the contract's rule does, for each source by itself."""
    rule = content["normalize"]["source"]
    if rule == "standard":
        return [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["y", "x"], "eps": 1e-6}}]
    if rule == "percentile":
        arguments = {"axes": ["y", "x"], "min_percentile": 1.0, "max_percentile": 99.0, "eps": 1e-6}
        return [{"id": "scale_range", "kwargs": arguments}]
    return []


def _test_image(sources: int) -> Pixels:
    """Returns an image (1, source, y, x) of blobs: no picture of a user's goes into a package unasked."""
    noise = np.random.default_rng(0).normal(size=(sources, *TEST))
    planes = [1000 + 4000 * gaussian_filter(plane, 4) for plane in noise]
    return np.stack(planes)[None].astype(np.float32)


def _labels(folder: Path, image: Pixels, content: dict[str, Any]) -> NDArray[np.uint32]:
    """Returns what the package makes of the image, (1, 1, y, x)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    maps = session.run(None, {"image": decode.normalised(image[0], content["normalize"])[None]})[0]
    postprocessing = decode.Objects(content["kind"], content["h_maxima"], content["min_area_px"])
    return postprocessing(maps).astype(np.uint32)
