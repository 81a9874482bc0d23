"""What TIFFs state of themselves: axes, names, sizes, positions, heights and times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metamorph_stack import write_stk

from hpc_isl.errors import UserError
from hpc_isl.plates.planes import read_plane
from hpc_isl.plates.readers import tiff_metadata
from hpc_isl.plates.readers.tiff_metadata import TiffMetadata, read

Place = tuple[int, int, int]
# Names and numbers as in a published example of Gen5 3.12's XML.
GEN5 = """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<BTIImageMetaData Version="34"><System><Gen5><Version>3.12.08</Version></Gen5></System>
<ImageReference><Plate>Plate 1</Plate><Date>02/01/25</Date><Time>20:00:10</Time><Well>B2</Well>
<KineticTimeMs>11550000</KineticTimeMs><HorizontalOffsetMicrons>-197</HorizontalOffsetMicrons>
<VerticalOffsetMicrons>291</VerticalOffsetMicrons><ZStackStepSizeMicrons>{step}</ZStackStepSizeMicrons>
<ZStackTotal>3</ZStackTotal><ZStackFocalPosition>2</ZStackFocalPosition>
<ZStackPosition>{position}</ZStackPosition></ImageReference>
<ImageAcquisition><PixelWidth>1224</PixelWidth><PixelHeight>904</PixelHeight>
<ImageWidthMicrons>394</ImageWidthMicrons><ImageHeightMicrons>291</ImageHeightMicrons>
<Channel Color="{color}"><ExcitationWavelength>469</ExcitationWavelength></Channel>
<FocalHeightMicrons>3226.3</FocalHeightMicrons><ShutterSpeedMS>50</ShutterSpeedMS></ImageAcquisition>
</BTIImageMetaData>"""


def coded(times: int, channels: int, planes: int) -> np.ndarray:
    """(t, c, z, y, x) pixels that tell where they belong."""
    t, c, z = np.ogrid[:times, :channels, :planes]
    codes = 1000 * t + 100 * c + z
    return np.broadcast_to(codes[..., None, None], (*codes.shape, 12, 16)).astype(np.uint16)


def places(result: TiffMetadata) -> list[Place]:
    return [(plane.time, plane.channel, plane.plane) for plane in result.planes]


def codes(path: Path, result: TiffMetadata) -> list[Place]:
    """What the pixels of each plane say of its place."""
    values = [int(read_plane(path, page)[0, 0]) for page in range(result.header.pages)]
    return [(value // 1000, value // 100 % 10, value % 100) for value in values]


def shuffled(order: str) -> np.ndarray:
    """Coded pixels with their first three axes in this order, the first the outermost."""
    return np.moveaxis(coded(2, 3, 4), ["TCZ".index(axis) for axis in order], range(3))


# ---------------------------------------------------------------- axes


@pytest.mark.parametrize("order", ["TCZ", "TZC", "CTZ", "CZT", "ZTC", "ZCT"])
@pytest.mark.parametrize("kind", ["ome", "shaped"])
def test_planes_are_along_the_axes_that_the_file_states(tmp_path: Path, kind: str, order: str) -> None:
    path = tmp_path / ("x.ome.tif" if kind == "ome" else "x.tif")
    metadata = {"axes": f"{order}YX"}
    tifffile.imwrite(path, shuffled(order), photometric="minisblack", metadata=metadata, ome=kind == "ome")
    result = read(path)
    assert (result.axes, result.header.pages) == (order, 24)
    assert places(result) == codes(path, result)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 1), (5, 1, 1), (1, 1, 4), (2, 1, 3)])
def test_axes_of_imagej_hyperstacks_are_distinguished(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.moveaxis(coded(*shape), 1, 2), imagej=True, metadata={"axes": "TZCYX"})
    result = read(path)
    assert places(result) == codes(path, result)
    assert result.axes == "".join(
        a for a, n in zip("TZC", (shape[0], shape[2], shape[1]), strict=True) if n > 1
    )


@pytest.mark.parametrize("axis", ["T", "C", "Z"])
def test_one_axis_is_the_one_that_the_file_states_and_not_z(tmp_path: Path, axis: str) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path, np.zeros((3, 8, 8), np.uint16), metadata={"axes": f"{axis}YX"}, photometric="minisblack"
    )
    assert read(path).axes == axis


@pytest.mark.parametrize("metadata", [None, {}, {"axes": "QYX"}, {"axes": "IYX"}])
def test_pages_are_z_where_nothing_states_another_axis(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.zeros((3, 8, 8), np.uint16), metadata=metadata, photometric="minisblack")
    assert (read(path).axes, places(read(path))) == ("Z", [(0, 0, 0), (0, 0, 1), (0, 0, 2)])


def test_an_axis_that_is_neither_time_channel_nor_z_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.zeros((3, 8, 8), np.uint16), metadata={"axes": "LYX"}, photometric="minisblack")
    with pytest.raises(UserError, match=r"x\.tif: its planes lie along an axis 'L'"):
        read(path)


@pytest.mark.parametrize("kind", ["imagej", "shaped"])
def test_planes_behind_one_page_are_read(tmp_path: Path, kind: str) -> None:
    """ImageJ writes stacks of more than 4 GB so, and tifffile on request."""
    path, pixels = tmp_path / "x.tif", coded(1, 1, 7)[0, 0]
    if kind == "shaped":
        tifffile.imwrite(path, pixels, photometric="minisblack", contiguous=True, truncate=True)
    else:
        description = "ImageJ=1.54f\nimages=7\nslices=7\n"
        tifffile.imwrite(path, pixels[0], description=description, metadata=None)
        with path.open("ab") as file:
            _append_behind_pixels(path, file, pixels)
    result = read(path)
    assert (result.axes, result.header.pages) == ("Z", 7)
    assert codes(path, result) == places(result)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"x\.tif is truncated"):
        read(path)


def _append_behind_pixels(path: Path, file: Any, pixels: np.ndarray) -> None:
    """The other planes follow the first, which must be the last thing in the file."""
    with tifffile.TiffFile(path) as tiff:
        end = tiff.pages[0].dataoffsets[0] + pixels[0].nbytes  # type: ignore[union-attr]
    assert end == path.stat().st_size
    file.write(pixels[1:].astype("<u2").tobytes())


# ---------------------------------------------------------------- quantities


def test_ome_xml_states_names_sizes_places_and_times(tmp_path: Path) -> None:
    path = tmp_path / "x.ome.tif"
    count = 6
    metadata = {
        "axes": "TCYX", "Channel": {"Name": ["Hoechst", "BF"]},
        "PhysicalSizeX": 0.65, "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 650.0, "PhysicalSizeYUnit": "nm",
        "Plane": {
            "PositionX": [1.5] * count, "PositionXUnit": ["mm"] * count, "PositionY": [200.0] * count,
            "PositionYUnit": ["µm"] * count, "PositionZ": [7.25] * count, "PositionZUnit": ["µm"] * count,
            "DeltaT": [0.0, 0.0, 1.0, 1.0, 2.0, 2.0], "DeltaTUnit": ["min"] * count,
            "ExposureTime": [50.0, 5.0] * 3, "ExposureTimeUnit": ["ms"] * count,
        },
    }  # fmt: skip
    tifffile.imwrite(path, coded(3, 2, 1)[:, :, 0], metadata=metadata, photometric="minisblack")
    result = read(path)
    assert (result.source, result.axes, result.pixel_um) == ("OME-XML", "TC", (0.65, 0.65))
    assert [plane.channel_name for plane in result.planes] == ["Hoechst", "BF"] * 3
    assert [plane.seconds for plane in result.planes] == [0, 0, 60, 60, 120, 120]
    assert {plane.center_um for plane in result.planes} == {(200.0, 1500.0)}
    assert {plane.z_um for plane in result.planes} == {7.25}
    assert [plane.exposure_s for plane in result.planes][:2] == [0.05, 0.005]


@pytest.mark.parametrize("unit", ["", "reference frame", "pixel", "furlong"])
def test_a_length_without_a_unit_of_length_is_not_known(tmp_path: Path, unit: str) -> None:
    path = tmp_path / "x.ome.tif"
    plane = {"PositionX": [5.0], "PositionY": [6.0], "PositionXUnit": [unit], "PositionYUnit": [unit]}
    tifffile.imwrite(path, coded(1, 1, 1)[0, 0, 0], metadata={"axes": "YX", "Plane": plane})
    assert read(path).planes[0].center_um is None


def test_imagej_states_sizes_with_their_unit(tmp_path: Path) -> None:
    path, metadata = tmp_path / "x.tif", {"axes": "TZYX", "unit": "micron", "spacing": 1.5, "finterval": 30.0}
    pixels = np.zeros((2, 3, 8, 8), np.uint16)
    tifffile.imwrite(path, pixels, imagej=True, metadata=metadata, resolution=(4.0, 4.0))
    result = read(path)
    assert result.pixel_um == (0.25, 0.25)
    assert [plane.z_um for plane in result.planes] == [0.0, 1.5, 3.0] * 2
    assert [plane.seconds for plane in result.planes] == [0.0] * 3 + [30.0] * 3
    tifffile.imwrite(path, pixels, imagej=True, metadata=metadata | {"unit": "pixel"}, resolution=(4.0, 4.0))
    assert (read(path).pixel_um, read(path).planes[1].z_um) == (None, None)


def test_resolution_tags_alone_are_no_pixel_size(tmp_path: Path) -> None:
    """Harmony writes the camera's pixels there."""
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path, np.zeros((8, 8), np.uint16), resolution=(1550.0, 1550.0), resolutionunit="CENTIMETER"
    )
    assert read(path).pixel_um is None


def test_a_metamorph_stack_keeps_all_its_planes(tmp_path: Path) -> None:
    path, pixels = tmp_path / "x.stk", coded(1, 1, 4)[0, 0]
    write_stk(path, pixels, [0.5] * 4, [1000] * 4, pixel_um=0.16, places=[(7000.0, 900.5)] * 4)
    result = read(path)
    assert (result.source, result.axes, result.pixel_um) == ("MetaMorph", "Z", (0.16, 0.16))
    assert [plane.z_um for plane in result.planes] == [0.0, 0.5, 1.0, 1.5]
    assert {plane.channel_name for plane in result.planes} == {"DAPI"}
    assert {plane.center_um for plane in result.planes} == {(900.5, 7000.0)}
    assert codes(path, result) == places(result)
    path.write_bytes(path.read_bytes().replace(pixels[3].tobytes(), pixels[3].tobytes()[:-50]))
    with pytest.raises(UserError, match=r"x\.stk"):
        read(path)


def test_a_metamorph_stack_of_times_is_a_series(tmp_path: Path) -> None:
    path = tmp_path / "x.stk"
    write_stk(path, coded(1, 1, 3)[0, 0], [0.0] * 3, [0, 60_000, 120_000])
    result = read(path)
    assert (result.axes, [plane.time for plane in result.planes]) == ("T", [0, 1, 2])
    assert [plane.moment[:19] for plane in result.planes] == [f"2024-01-01T00:0{m}:00" for m in range(3)]


def test_gen5_states_position_and_settings_of_each_page(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as writer:
        for color in ("GFP", "Stitched[DAPI 377,447]"):
            for position in (1, 2, 3):
                text = GEN5.format(color=color, position=position, step=10)
                writer.write(np.zeros((8, 8), np.uint16), description=text, metadata=None, contiguous=False)
    result = read(path)
    assert (result.source, result.axes, result.pixel_um) == ("Gen5", "CZ", (0.3219027, 0.3218954))
    assert [plane.channel_name for plane in result.planes] == ["GFP"] * 3 + ["DAPI"] * 3
    assert [plane.z_um for plane in result.planes] == [3216.3, 3226.3, 3236.3] * 2
    first = result.planes[0]
    assert (first.center_um, first.exposure_s, first.seconds, first.label) == (
        (-291, -197),
        0.05,
        11550,
        "B2",
    )
    assert first.moment == "2025-02-01T20:00:10"
    assert [plane.projection for plane in result.planes][2:4] == ["", "Stitched"]


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["imagexpress_htd", "metaxpress_database"])
def test_metaseries_is_read_as_tifffile_reads_it(realdata: Path, name: str) -> None:
    compared = 0
    for path in (realdata / "vendor" / name).rglob("*.[tT][iI][fF]"):
        with tifffile.TiffFile(path) as tiff:
            plane = (tiff.metaseries_metadata or {})["PlaneInfo"]
        result = read(path)
        [ours] = result.planes
        assert result.source == "MetaSeries"
        assert result.pixel_um == (plane["spatial-calibration-y"], plane["spatial-calibration-x"])
        assert ours.center_um == (plane["stage-position-y"], plane["stage-position-x"])
        assert (ours.z_um, ours.channel_name) == (plane["z-position"], plane["_IllumSetting_"])
        assert ours.moment.replace("T", " ") == str(plane["acquisition-time-local"])[:23]
        assert f"{1000 * (ours.exposure_s or 0):g} ms" == plane["Exposure Time"]
        assert (ours.label, ours.projection) == (plane["stage-label"], plane.get("Z Projection Method", ""))
        compared += 1
    assert compared > 30


# ---------------------------------------------------------------- several files, damage


OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">{}</OME>'
IMAGE = (
    '<Image ID="Image:0" Name="n"><Pixels ID="P" DimensionOrder="XYZCT" Type="uint16" SizeX="8" SizeY="8" '
    'SizeZ="{z}" SizeC="1" SizeT="1"><Channel Name="DAPI"/>{data}</Pixels></Image>'
)


def pages(path: Path, count: int, description: str) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for page in range(count):
            text = description if page == 0 else None
            writer.write(np.full((8, 8), page, np.uint16), description=text, metadata=None, contiguous=False)
    return path


def tiff_data(*parts: tuple[str, int, int, int]) -> str:
    return "".join(
        f'<TiffData FirstZ="{z}" IFD="{page}" PlaneCount="{count}">'
        f'<UUID FileName="{file}">urn:uuid:{file}</UUID></TiffData>'
        for file, page, z, count in parts
    )


def test_of_a_set_of_files_each_knows_its_planes(tmp_path: Path) -> None:
    data = tiff_data(("a.tif", 0, 0, 2), ("b.tif", 0, 3, 1), ("b.tif", 1, 2, 1))
    text = OME.format(IMAGE.format(z=4, data=data))
    assert places(read(pages(tmp_path / "a.tif", 2, text))) == [(0, 0, 0), (0, 0, 1)]
    assert places(read(pages(tmp_path / "b.tif", 2, text))) == [(0, 0, 3), (0, 0, 2)]


def test_a_file_that_was_renamed_is_known_by_its_uuid_or_as_the_only_one(tmp_path: Path) -> None:
    whole = OME.format(IMAGE.format(z=2, data=tiff_data(("1", 0, 0, 2), ("other.tif", 0, 0, 0))))
    assert places(read(pages(tmp_path / "new.tif", 2, whole))) == [(0, 0, 0), (0, 0, 1)]
    alone = OME.format(IMAGE.format(z=2, data=tiff_data(("old.tif", 0, 0, 2))))
    assert places(read(pages(tmp_path / "new.tif", 2, alone))) == [(0, 0, 0), (0, 0, 1)]


def test_a_companion_file_is_named(tmp_path: Path) -> None:
    text = OME.format('<BinaryOnly MetadataFile="p.companion.ome" UUID="urn:uuid:2"/>')
    result = read(pages(tmp_path / "x.tif", 2, text))
    assert (result.linked, result.axes) == ("p.companion.ome", "Z")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OME.format(IMAGE.format(z=3, data="<TiffData/>")), "its OME-XML speaks of 3 planes, but it has 2"),
        (OME.format(2 * IMAGE.format(z=1, data="<TiffData/>")), "its OME-XML speaks of 2 images in it"),
        (OME.format(IMAGE.format(z=10**8, data="<TiffData/>")), "its OME-XML speaks of 0 images in it"),
        (OME.format("<Image>"), "its OME-XML is not well-formed XML"),
        ("<MetaData><PlaneInfo></MetaData>", "its MetaSeries XML is not well-formed XML"),
    ],
)
def test_metadata_that_do_not_fit_several_planes_are_a_mistake_and_of_one_a_remark(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(UserError) as mistake:
        read(pages(tmp_path / "x.tif", 2, text))
    assert "x.tif" in str(mistake.value)
    assert said in str(mistake.value)
    single = read(pages(tmp_path / "y.tif", 1, text))
    assert len(single.planes) == 1
    assert single.remark


@pytest.mark.parametrize("count", [1, 2])
def test_entities_are_refused(tmp_path: Path, count: int) -> None:
    text = '<!DOCTYPE OME [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + OME.format("<Image Name='&a;'/>")
    with pytest.raises(UserError, match=r"x\.tif: its OME-XML holds a DTD or entities"):
        read(pages(tmp_path / "x.tif", count, text))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_bent_metadata_are_read_or_named_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    text = data.draw(
        st.sampled_from([OME.format(IMAGE.format(z=2, data="<TiffData/>")), GEN5, "ImageJ=1\nimages=2\n"])
    )
    at, noise = data.draw(st.integers(0, len(text))), data.draw(st.text('<>/&;"=019nZ\n', max_size=6))
    path = pages(tmp_path / "x.tif", 2, text[:at] + noise + text[at + len(noise) :])
    try:
        result = tiff_metadata.read(path)
    except UserError as mistake:
        assert "x.tif" in str(mistake)  # noqa: PT017 - either will do
    else:
        assert len(set(places(result))) == result.header.pages == 2
        json.dumps(result.facts)


def test_what_is_no_tiff_states_only_its_size(tmp_path: Path) -> None:
    import imagecodecs

    (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(np.zeros((8, 9), np.uint8)))
    result = read(tmp_path / "x.png")
    assert (result.header.shape, result.source, result.axes, len(result.planes)) == ((8, 9), "", "", 1)
