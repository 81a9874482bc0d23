"""Plates in viewers: what napari's reader of OME-Zarr makes of ours, without a window."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.draw import disk

from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, open_level, read_labels, write_labels

B02, B03 = FieldKey("B02", "1"), FieldKey("B03", "1")
LEVELS = 3
MakePlate = Callable[..., tuple[Index, dict[FieldKey, np.ndarray]]]
NAPARI = find_spec("napari") and find_spec("napari_ome_zarr")
pytestmark = pytest.mark.skipif(
    not NAPARI and os.environ.get("HPC_ISL_NEEDS_NAPARI") != "1", reason="needs napari-ome-zarr and napari"
)
Layer = tuple[list[Any], dict[str, Any], str]


def drawn(shape: tuple[int, ...], seed: int) -> np.ndarray:
    labels = np.zeros(shape, np.uint32)
    for number, centre in enumerate(np.random.default_rng(seed).uniform(10, 60, (6, 2)), 1):
        labels[..., *disk(tuple(centre), 7, shape=shape[-2:])] = number
    return labels


@pytest.fixture
def labelled(make_plate: MakePlate, request: pytest.FixtureRequest) -> Index:
    """Two wells of one field, with `nuclei` drawn in each; the first also has `cells`."""
    shape = getattr(request, "param", (1, 2, 3, 70, 90))
    index, _ = make_plate(shape, shape, levels=LEVELS)
    size = (shape[0], *shape[-2:]) if shape[0] > 1 else shape[-2:]
    for seed, key in enumerate((B02, B03)):
        write_labels(index.image(key), "nuclei", drawn(size, seed), origin="human", boxes=[])
    write_labels(index.image(B02), "cells", drawn(size, 2), origin="drafted", boxes=[])
    return index


def layers(path: Path) -> list[Layer]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # napari's own, on import
        from napari_ome_zarr import napari_get_reader
    read = napari_get_reader(str(path))
    assert read is not None
    found: list[Layer] = read(str(path))
    return found


def same(levels: list[Any], ours: Callable[[int], np.ndarray]) -> None:
    assert len(levels) == LEVELS
    for level, theirs in enumerate(levels):
        np.testing.assert_array_equal(theirs.compute(), ours(level))


@pytest.mark.parametrize("labelled", [(1, 2, 3, 70, 90), (1, 2, 1, 70, 90), (2, 2, 1, 70, 90)], indirect=True)
def test_a_field_opens_with_its_channels_and_its_labels_equal_at_every_level(labelled: Index) -> None:
    image = labelled.image(B02)
    (pixels, shown, kind), *labels = layers(image)
    assert kind == "image"
    same(pixels, lambda level: open_level(image, level).read().result())
    assert shown["channel_axis"] == pixels[0].ndim - 4
    assert shown["name"] == ["1: Brightfield", '1: HOECHST "33342"']
    assert len(shown["contrast_limits"]) == len(shown["colormap"]) == 2
    assert [(meta["name"], kind) for _, meta, kind in labels] == [
        ("labels/labels/cells", "labels"),
        ("labels/labels/nuclei", "labels"),
    ]
    for name, (theirs, _, _) in zip(("cells", "nuclei"), labels, strict=True):
        same(theirs, lambda level, name=name: read_labels(image, name, level)[..., None, :, :])


def test_labels_are_placed_on_their_image_and_have_colours(labelled: Index) -> None:
    (_, shown, _), (theirs, meta, _), _ = layers(labelled.image(B02))
    assert shown["scale"] == [4.0, 0.5, 0.5]
    assert meta["scale"] == [12.0, 0.5, 0.5]  # one plane of labels, as thick as the stack
    assert shown["units"] == meta["units"] == ("micrometer",) * 3
    assert shown["axis_labels"] == meta["axis_labels"] == ("z", "y", "x")
    # The reader leaves out positions, of image and labels alike: both begin at the origin.
    for each in (shown, meta):
        np.testing.assert_array_equal(each["affine"].translate, [0, 0, 0])
    there = set(np.unique(theirs[0].compute()))
    assert there == set(meta["colormap"])
    assert len({tuple(colour) for colour in meta["colormap"].values()}) == len(there)


@pytest.mark.parametrize("below", ["labels", "labels/nuclei"])
def test_a_labels_folder_opens_as_its_image_with_labels(labelled: Index, below: str) -> None:
    whole = layers(labelled.image(B02))
    found = layers(labelled.image(B02) / below)
    assert [(meta["name"], kind) for _, meta, kind in found] == [(m["name"], k) for _, m, k in whole]
    for (theirs, *_), (others, *_) in zip(found, whole, strict=True):
        np.testing.assert_array_equal(theirs[0].compute(), others[0].compute())


def test_a_plate_opens_as_a_grid_of_its_wells_with_the_labels_that_its_first_field_has(
    labelled: Index,
) -> None:
    (pixels, _, kind), *labels = layers(labelled.path)
    assert (kind, [kind for *_, kind in labels]) == ("image", ["labels", "labels"])
    nuclei = labels[1][0]
    for level in range(LEVELS):
        height, width = read_labels(labelled.image(B02), "nuclei", level).shape
        for column, key in ((1, B02), (2, B03)):  # row B, columns 02 and 03
            place = (..., slice(height, 2 * height), slice(column * width, (column + 1) * width))
            ours = open_level(labelled.image(key), level).read().result()
            np.testing.assert_array_equal(pixels[level][place].compute(), ours)
            drawn_there = read_labels(labelled.image(key), "nuclei", level)
            np.testing.assert_array_equal(nuclei[level][place].compute()[..., 0, :, :], drawn_there)
        assert not nuclei[level][..., :height, :].compute().any()  # row A holds no well
