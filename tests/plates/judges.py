"""Independent validators and readers that judge what the store writes: load this file by its path."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np


def judge(path: Path) -> None:
    """Two validators and two readers look at a plate, its images and their labels; warnings count."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _validate(path)
        _read(path)


def _validate(path: Path) -> None:
    import zarr
    from ome_zarr_models import open_ome_zarr
    from ome_zarr_models.v05 import HCS, Image, ImageLabel, Labels, Well
    from yaozarrs import validate_zarr_store

    validate_zarr_store(str(path))
    assert isinstance(open_ome_zarr(zarr.open_group(path, mode="r")), HCS)
    for well in path.glob("[!.]*/*/zarr.json"):
        Well.from_zarr(zarr.open_group(well.parent, mode="r"))
    for image in path.glob("[!.]*/*/*/zarr.json"):
        Image.from_zarr(zarr.open_group(image.parent, mode="r"))
    for labels in path.glob("*/*/*/labels/zarr.json"):
        Labels.from_zarr(zarr.open_group(labels.parent, mode="r"))
    for label in path.glob("*/*/*/labels/*/zarr.json"):
        ImageLabel.from_zarr(zarr.open_group(label.parent, mode="r"))


def _read(path: Path) -> None:
    """What ome-zarr-py and ngio read is what we read."""
    from ngio import open_ome_zarr_plate
    from ome_zarr.io import parse_url
    from ome_zarr.reader import OMERO, Multiscales, Plate, Reader

    from hpc_isl.plates.store import label_names, open_level, open_plate, read_labels

    index = open_plate(path)
    if len({field.shape for field in index.plate.fields}) == 1:  # ome-zarr-py lays all fields into one grid
        (node, *_) = list(Reader(parse_url(str(path)))())
        assert any(isinstance(spec, Plate) for spec in node.specs)
    images = open_ome_zarr_plate(str(path)).get_images(max_workers=1)
    assert len(images) == len(index.plate.fields)
    for field in index.plate.fields:
        ours = open_level(index.image(field.key), 0).read().result()
        (node, *_) = list(Reader(parse_url(str(index.image(field.key))))())
        assert {Multiscales, OMERO} <= {type(spec) for spec in node.specs}
        np.testing.assert_array_equal(node.data[0].compute(), ours)
        assert node.metadata["channel_names"] == [channel.name for channel in index.plate.channels]
        row, column = index.image(field.key).parts[-3:-1]
        container = images[f"{row}/{column}/{field.key.image}"]
        np.testing.assert_array_equal(container.get_image().get_as_numpy(), ours)
        assert container.channel_labels == [channel.name for channel in index.plate.channels]
        for name, folder in zip(
            label_names(index.image(field.key)), sorted(container.list_labels()), strict=True
        ):
            theirs = container.get_label(folder).get_as_numpy()
            np.testing.assert_array_equal(theirs[..., 0, :, :], read_labels(index.image(field.key), name))
