"""What all readers share: described planes become a plate, and what a vendor states wrongly is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from hpc_isl.plates.plate import Channel, FieldKey, color_of, layout
from hpc_isl.plates.readers import acquisitions, export, tiff_metadata
from hpc_isl.plates.readers.export import Described
from hpc_isl.plates.readers.fields import pixel_edge


def built(folder: Path, names: list[str], numbers: list[int] | None = None):
    """The export of one field with a channel for each name."""
    paths = [folder / f"c{number}.tif" for number in range(len(names))]
    for path in paths:
        tifffile.imwrite(path, np.zeros((8, 9), np.uint16))
    metadata, _ = tiff_metadata.read_single(paths)
    planes = [
        Described(FieldKey("B02", "1"), path, 0, number, 0, metadata[path].planes[0])
        for number, path in zip(numbers or range(len(names)), paths, strict=True)
    ]
    channels = {number: Channel(name, True, color_of(True, None)) for number, name in enumerate(names)}
    sizes, edges = tiff_metadata.sizes_and_edges(metadata)
    return export.build(planes, channels, sizes, edges, name="P", layout=layout, details={})


def test_channels_of_one_name_are_told_apart_and_remarked(tmp_path: Path) -> None:
    """A user who reads "DAPI" is never given one of two channels without knowing."""
    result = built(tmp_path, ["DAPI", "BF", "DAPI"])
    assert [channel.name for channel in result.plate.channels] == ["DAPI", "BF", "DAPI 2"]
    assert result.remarks == ("several channels are called 'DAPI': one of them is 'DAPI 2' here",)
    assert built(tmp_path, ["DAPI", "BF"]).remarks == ()


def test_a_reader_that_describes_a_plane_of_no_channel_is_at_fault(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"channels \{7\} that are not described"):
        built(tmp_path, ["DAPI"], [7])


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (2, 1)])
def test_fields_of_several_sources_are_paired_whatever_number_their_acquisition_has(
    tmp_path: Path, numbers: tuple[int, int], by_name: bool
) -> None:
    """A plate of OME-Zarr may call its only acquisition 1."""
    sources = []
    for channel, number in zip(("BF", "DAPI"), numbers, strict=True):
        (tmp_path / channel).mkdir()
        source = export.as_acquisition(built(tmp_path / channel, [channel]), number, [channel])
        sources.append(replace(source, plate=replace(source.plate, acquisitions={number: channel})))
    whole = acquisitions.merged(sources, ["live", "stained"], by_name)
    assert [str(field.key) for field in whole.plate.fields] == ["B02/1", "B02/1x1"]
    assert whole.plate.acquisitions == {0: "live", 1: "stained"}
    assert whole.remarks == ("stained: 1 of 1 fields lie where one of live does",)


def test_fields_without_a_partner_in_the_first_source_are_paired_among_the_others(tmp_path: Path) -> None:
    """One name is one place: else a network would learn from images of two."""
    sources = []
    second, third = {"1": 0.0, "2": 99.0}, {"1": 0.0, "2": 50.0, "3": 99.0}
    for source_name, places in (("a", {"1": 0.0}), ("b", second), ("c", third)):
        (tmp_path / source_name).mkdir()
        source = built(tmp_path / source_name, ["DAPI"])
        [field] = source.plate.fields
        keys = {name: FieldKey("B02", name) for name in places}
        fields = tuple(replace(field, key=keys[name], position_um=(y, 0.0)) for name, y in places.items())
        files = dict.fromkeys(keys.values(), source.files[field.key])
        sources.append(replace(source, plate=replace(source.plate, fields=fields, pixel_um=1.0), files=files))
    whole = acquisitions.merged(sources, ["a", "b", "c"])
    places_of = {str(field.key): field.position_um for field in whole.plate.fields}
    assert places_of == {
        "B02/1": (0, 0), "B02/1x1": (0, 0), "B02/1x2": (99, 0), "B02/2x1": (0, 0), "B02/2x2": (99, 0),
        "B02/2x3": (50, 0),
    }  # fmt: skip


def test_sizes_of_one_source_that_another_does_not_have_are_remarked(tmp_path: Path) -> None:
    sources = []
    for name, pixel_um, plane_um in (("live", 0.5, 2.0), ("fixed", None, 3.0), ("late", 0.5, 2.01)):
        (tmp_path / name).mkdir()
        source = built(tmp_path / name, ["DAPI"])
        fields = tuple(replace(field, shape=(1, 1, 3, 8, 9)) for field in source.plate.fields)
        plate = replace(source.plate, fields=fields, pixel_um=pixel_um, plane_um=plane_um)
        sources.append(replace(source, plate=plate))
    assert export.merged(sources, ["live", "fixed", "late"]).remarks == (
        "fixed: states no size of a pixel; 0.5 µm is taken, as of the others",
        "fixed: its planes lie 3 µm apart, others 2 µm: the plate states these",
    )


@pytest.mark.parametrize(
    ("edges", "pixel_um", "remark"),
    [
        ([(0.65, 0.65)], 0.65, None),
        ([(-1.0, -1.0)], None, "pixels of -1 µm cannot be; the size is left unknown"),
        ([(float("inf"), 1.0)], None, "pixels of 1, inf µm cannot be; the size is left unknown"),
        ([(0.65, 0.65), (-1.0, -1.0)], 0.65, None),
        (
            [(0.5, 0.65)],
            None,
            "pixels are not square: 0.65 µm along x, 0.5 µm along y; the size is left unknown",
        ),
        ([None], None, None),
    ],
)
def test_an_edge_of_a_pixel_that_cannot_be_is_not_believed(edges, pixel_um, remark) -> None:
    assert pixel_edge(edges) == (pixel_um, [] if remark is None else [remark])
