"""Labels from a distance map and a mask, by one exact watershed per component of the mask.

Let D′ be the distance map inside the mask and −∞ outside. Seeds are the regional maxima of HMAX_h(D′), the
reconstruction by dilation of D′ − h under D′; labels are the watershed of −D′ from these seeds inside the
mask. Pixels touch in 8 directions. Equal levels come in the raster order of their pixels, so there is one
strict total order and one result.

No object leaves its component of the mask, and raster order survives cropping: boxes that hold whole
components give the labels of the whole image, whatever the boxes and the process. Objects are numbered by
their first pixel in raster order.
"""

from __future__ import annotations

import numpy as np
from skimage.measure import label
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed as skimage_watershed

from hpc_isl.errors import UserError
from hpc_isl.objects.types import Image, Labels
from hpc_isl.objects.watershed_kernels import framed, objects_of

TOUCHING = np.ones((3, 3), bool)


def watershed(distance: Image, mask: Image, h: float) -> Labels:
    """Returns labels (y, x) of the objects, numbered by their first pixel.

    Args:
        distance: predicted distance map (y, x), high in the middle of objects, finite everywhere.
        mask: true (not 0) inside objects; values of the map outside do not count.
        h: in the unit of the map. Where two peaks meet no more than h below the lower one, they are one
            object, and so are equal peaks.
    """
    return objects_of(levels(distance, mask, h), h)


def reference(distance: Image, mask: Image, h: float) -> Labels:
    """Returns the labels by scikit-image, step by step, many times slower: `watershed` is tested against it.

    Seeds are the same on every map, labels on every map without equal levels. Where levels are equal, the
    layout of its queue decides, so pixels between two objects may differ, and with them the objects' numbers.
    """
    level = levels(distance, mask, h)
    inside = level > -np.inf
    if not inside.any():
        return np.zeros(distance.shape, np.uint32)
    # HMAX_h: peaks lower than h above their saddle vanish.
    suppressed = reconstruction(level - level.dtype.type(h), level, footprint=TOUCHING)
    seeds = label(local_maxima(suppressed, connectivity=2) & inside, connectivity=2)
    labels = skimage_watershed(-level, seeds, mask=inside, connectivity=TOUCHING)[1:-1, 1:-1]
    _, first, names = np.unique(labels[labels > 0], return_index=True, return_inverse=True)
    numbered = np.zeros(labels.shape, np.uint32)
    numbered[labels > 0] = 1 + first.argsort().argsort()[names]
    return numbered


def levels(distance: Image, mask: Image, h: float) -> Image:
    """Returns D′ in a frame of −∞, so that every pixel has eight neighbours."""
    _check(distance, mask, h)
    kind = np.result_type(distance.dtype, np.float32)
    level: Image
    level, non_finite = framed(distance.astype(kind, copy=False), mask.astype(bool, copy=False))
    if non_finite:
        raise UserError(
            f"{non_finite} pixels of the distance map are NaN or infinite; finite numbers are expected"
        )
    return level


def _check(distance: Image, mask: Image, h: float) -> None:
    if distance.ndim != 2 or distance.shape != mask.shape:
        raise UserError(
            f"distance map of shape {distance.shape}, mask of shape {mask.shape}: both (y, x), of one size"
        )
    if distance.dtype.kind not in "fiu" or mask.dtype.kind not in "biu":
        raise UserError(
            f"distance map of {distance.dtype}, mask of {mask.dtype}: real numbers, and true or false "
            "(logits > 0), are expected"
        )
    if not 0 <= h < np.inf:
        raise UserError(f"h={h}: 0 or a positive number, in the unit of the distance map")
    if (distance.shape[0] + 2) * (distance.shape[1] + 2) >= 2**31:
        raise UserError(f"an image of {distance.shape} pixels: fewer than 2^31 can be flooded in one piece")
