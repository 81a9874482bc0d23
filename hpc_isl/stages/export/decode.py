"""From an image to objects with an exported network: normalise, predict, decode. A part of each export.

    python decode.py IMAGE.tif LABELS.tif        # beside model.onnx and contract.json

Needs numpy, scipy, scikit-image, tifffile and onnxruntime, and nothing of hpc_isl. IMAGE.tif holds the
contract's sources in their order, (source, y, x), or (y, x) where there is one, in counts as the camera gave
them, at the contract's `pixel_um`.

Let D be the distance map where the mask's logit is above `mask_logit`, and -infinity elsewhere. Seeds are the
regional maxima of D's h-maxima transform; objects are the watershed of -D from these seeds, 8-connected.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from skimage.measure import label
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

OUTSIDE = -1e9
"""Stands for -infinity in a map that has to be finite."""
TOUCHING = np.ones((3, 3), bool)
Pixels = NDArray[np.float32]


def normalised(image: Pixels, rule: Mapping[str, Any]) -> Pixels:
    """Returns what the network sees of an image (source, y, x), each source by its own statistics."""
    planes = [plane.astype(np.float32) for plane in image]
    if edge := rule["local_px"]:
        planes = [plane - uniform_filter(plane, edge, mode="reflect") for plane in planes]
    scaled = []
    for plane in planes:
        offset, scale = 0.0, 1.0
        if rule["source"] == "standard":
            offset, scale = float(plane.mean(dtype=np.float64)), float(plane.std(dtype=np.float64))
        if rule["source"] == "percentile":
            offset, top = np.percentile(plane, [1, 99])
            scale = top - offset
        scaled.append((plane - np.float32(offset)) * np.float32(1 / (scale or 1.0)))
    return np.stack(scaled)


def maps_of(image: Pixels, predict: Callable[[Pixels], Pixels], stride: int) -> Pixels:
    """Returns the network's maps (map, y, x) of a normalised image, which is continued by reflection.

    Args:
        predict: images (1, source, y, x) -> maps (1, map, y, x), y and x multiples of `stride`.
    """
    height, width = image.shape[-2:]
    missing = [(0, -length % stride) for length in (height, width)]
    # An image smaller than what is missing is mirrored again and again.
    maps: Pixels = predict(np.pad(image, [(0, 0), *missing], mode="reflect")[None])[0]
    return maps[:, :height, :width]


def objects(maps: Pixels, contract: Mapping[str, Any]) -> NDArray[np.uint32]:
    """Returns labels (y, x), numbered by the objects' first pixels, of maps (map, y, x)."""
    inside = maps[-1] > contract["mask_logit"]
    if contract["kind"] == "nuclei":
        labels = label(inside, connectivity=2)
    else:
        labels = _h_maxima_watershed(np.where(inside, maps[0], OUTSIDE), contract["h_maxima"])
    areas = np.bincount(labels.ravel())
    large_labels = np.where(areas[labels] < contract["min_area_px"], 0, labels)
    _, first, names = np.unique(large_labels[large_labels > 0], return_index=True, return_inverse=True)
    numbered = np.zeros(labels.shape, np.uint32)
    numbered[large_labels > 0] = 1 + first.argsort().argsort()[names]
    return numbered


def _h_maxima_watershed(distance: Pixels, h: float) -> NDArray[Any]:
    level = np.pad(distance, 1, constant_values=OUTSIDE)
    level = np.where(level > OUTSIDE / 2, level, -np.inf).astype(np.float32)
    inside = level > -np.inf
    if not inside.any():
        return np.zeros(distance.shape, int)
    suppressed = reconstruction(level - np.float32(h), level, footprint=TOUCHING)
    seeds = label(local_maxima(suppressed, connectivity=2) & inside, connectivity=2)
    return np.asarray(watershed(-level, seeds, mask=inside, connectivity=TOUCHING)[1:-1, 1:-1])


def counts(maps: Pixels, contract: Mapping[str, Any]) -> Pixels:
    """Returns the maps of a model that predicts stains, (stain, y, x), in counts where it knows these."""
    numbers = np.array([stain["numbers"] or (0.0, 1.0) for stain in contract["stains"]], np.float32)
    return maps * numbers[:, 1, None, None] + numbers[:, 0, None, None]


class Objects:
    """The custom postprocessing of a bioimage.io package: one map, in which the mask is cut out, to labels.

    Args are those of the contract.
    """

    def __init__(self, kind: str, h_maxima: float, min_area_px: int) -> None:
        self.contract = {
            "kind": kind, "h_maxima": h_maxima, "min_area_px": min_area_px, "mask_logit": OUTSIDE / 2,
        }  # fmt: skip

    def __call__(self, maps: NDArray[Any]) -> NDArray[Any]:
        """Returns labels as float32 (batch, 1, y, x) of the maps, of the same shape."""
        # The package's tensors keep one type; its next step makes whole numbers of them.
        return np.stack([objects(image_maps, self.contract)[None] for image_maps in maps]).astype(np.float32)


def main() -> None:
    """Segments one image."""
    import onnxruntime
    import tifffile

    folder, (source, out) = Path(__file__).parent, sys.argv[1:]
    contract = json.loads((folder / "contract.json").read_text())
    image = tifffile.imread(source)
    image = image[None] if image.ndim == 2 else image
    channels = [entry["channel"] for entry in contract["sources"]]
    if image.ndim != 3 or len(image) != len(channels):
        sys.exit(f"{source}: has the shape {image.shape}; (source, y, x) is expected, of {channels}")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    maps = maps_of(
        normalised(image, contract["normalize"]),
        lambda pixels: session.run(None, {"image": pixels})[0],
        contract["stride"],
    )
    result = counts(maps, contract) if contract["kind"] == "stain" else objects(maps, contract)
    tifffile.imwrite(out, result, compression="zlib")


if __name__ == "__main__":
    main()
