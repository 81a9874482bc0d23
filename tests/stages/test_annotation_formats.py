"""Annotations as Cellpose, ImageJ, QuPath, COCO's tools and others save them are read to the pixel."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roifile
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from PIL import Image
from pycocotools import mask as coco_masks
from scipy.spatial import Delaunay, cKDTree

from hpc_isl.errors import UserError
from hpc_isl.stages.annotate import annotation as formats
from hpc_isl.stages.annotate import outline_files, outlines

RECORDED = Path(__file__).with_name("recorded")
SHAPE = (1, 60, 80)


def labels() -> np.ndarray:
    """(60, 80): eight rectangles, two of which touch."""
    found = np.zeros(SHAPE[1:], np.uint16)
    for number in range(8):
        y, x = 3 + 28 * (number // 4), 2 + 19 * (number % 4)
        found[y : y + 13 + number, x : x + 9 + number] = number + 1
    found[3:16, 11:20] = 9
    return found


def corners(number: int) -> list[tuple[int, int]]:
    """(x, y) around a rectangle, by the outer corners of its pixels."""
    ys, xs = np.nonzero(labels() == number)
    x0, y0, x1, y1 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def read(path: Path, part: str = "", shape: tuple[int, int, int] = SHAPE, **keys: Any) -> np.ndarray:
    """After the checks that planning makes."""
    formats.check(path, part, shape)
    return formats.drawing(path, part, shape, keys.get("overlaps")).labels


# ---------------------------------------------------------------- label images


def as_png(path: Path) -> None:
    Image.fromarray(labels()).save(path)


def as_palette(path: Path) -> None:
    image = Image.fromarray(labels().astype(np.uint8), "P")
    image.putpalette([channel for color in range(256) for channel in (color * 7 % 256, color, 0)])
    image.save(path)


def as_small_palette(path: Path) -> None:
    image = Image.fromarray(labels().astype(np.uint8), "P")
    image.putpalette([0, 0, 0, *[channel for color in range(15) for channel in (color * 9, 200, 255)]])
    image.save(path, bits=4)


def as_ome_tiff(path: Path) -> None:
    tifffile.imwrite(path, labels(), ome=True, metadata={"axes": "YX"}, compression="zlib")


def as_imagej_float(path: Path) -> None:
    tifffile.imwrite(path, labels().astype(np.float32), imagej=True)


def as_big_endian(path: Path) -> None:
    tifffile.imwrite(path, labels().astype(">i4"), byteorder=">")


def as_array(path: Path) -> None:
    np.save(path, labels())


def as_float_array(path: Path) -> None:
    np.save(path, labels().astype(np.float64))


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (as_png, "a_cp_masks.png"),
        (as_palette, "a.png"),
        (as_small_palette, "a.png"),
        (as_ome_tiff, "a.ome.tif"),
        (as_imagej_float, "a.tif"),
        (as_big_endian, "a.tiff"),
        (as_array, "a.npy"),
        (as_float_array, "a.npy"),
    ],
)
def test_numbers_of_objects_come_in_as_they_are(
    write: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name)[0], labels())


def test_a_page_for_each_time(tmp_path: Path) -> None:
    times = np.stack([labels(), labels() * 0, labels() * 3])
    tifffile.imwrite(tmp_path / "a.ome.tif", times, ome=True, metadata={"axes": "TYX"})
    np.save(tmp_path / "a.npy", times)
    for name in ("a.ome.tif", "a.npy"):
        np.testing.assert_array_equal(read(tmp_path / name, shape=(3, 60, 80)), times)
        with pytest.raises(UserError, match=r"has the shape \(3, 60, 80\), but the field has \(1, 60, 80\)"):
            read(tmp_path / name)


@pytest.mark.parametrize("compression", [None, "zlib", "packbits"])
def test_one_bit_for_each_pixel(compression: str | None, tmp_path: Path) -> None:
    """Rows of one-bit images end on whole bytes, so that they hold less than a byte for each pixel."""
    mask = labels()[:, :77] > 0
    tifffile.imwrite(tmp_path / "a.tif", mask, photometric="minisblack", compression=compression)
    Image.fromarray(mask).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        np.testing.assert_array_equal(read(tmp_path / name, shape=(1, 60, 77))[0] > 0, mask)


def test_few_grey_bits_keep_their_numbers(tmp_path: Path) -> None:
    """Decoders spread them over 0 to 255: PIL and imagecodecs make 17 of the first object."""
    numbers = np.arange(16, dtype=np.uint8).reshape(4, 4)
    for bits, rows in ((4, numbers), (2, numbers % 4)):
        each = (np.unpackbits(row[:, None], axis=1)[:, 8 - bits :] for row in rows)
        packed = b"".join(b"\0" + np.packbits(row).tobytes() for row in each)
        header = struct.pack(">IIBBBBB", 4, 4, bits, 0, 0, 0, 0)
        parts = [(b"IHDR", header), (b"IDAT", zlib.compress(packed)), (b"IEND", b"")]
        chunks = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts)
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
        np.testing.assert_array_equal(read(tmp_path / "a.png", shape=(1, 4, 4))[0], rows)


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "tiff"])
def test_a_colour_for_each_object(mode: str, tmp_path: Path) -> None:
    """The colour is the number; black, or what is transparent whatever its colour, is background."""
    colors = np.random.default_rng(1).integers(0, 256, (10, 4)).astype(np.uint8)
    colors[0], colors[1:, 3] = (9, 9, 9, 0), 255
    image = colors[labels()]
    path = tmp_path / ("a.tif" if mode == "tiff" else "a.png")
    if mode == "RGBA":
        Image.fromarray(image, "RGBA").save(path)
    else:
        opaque = np.where(labels()[..., None] > 0, image[..., :3], 0).astype(np.uint8)
        Image.fromarray(opaque).save(path) if mode == "RGB" else tifffile.imwrite(
            path, opaque, photometric="rgb"
        )
    expected = colors[:, :3] @ np.array([1, 2**8, 2**16])
    expected[0] = 0
    np.testing.assert_array_equal(read(path)[0], expected[labels()])


@pytest.mark.parametrize(
    ("pixels", "name", "messages"),
    [
        (labels() + np.float32(0.25), "a.tif", "float32 that are not whole"),
        (np.where(labels() == 1, np.nan, labels()).astype(np.float32), "a.tif", "not whole"),
        (labels() * np.float32(2**22), "a.tif", "so large they are not exact"),
        (labels() * 0.5, "a.npy", "float64 that are not whole"),
        (labels()[:50], "a.npy", r"has the shape \(50, 80\), but the field has \(1, 60, 80\)"),
        (labels() * 1j, "a.npy", "complex128; labels are whole numbers"),
    ],
)
def test_a_file_that_is_no_label_image_is_refused_with_the_reason(
    pixels: np.ndarray, name: str, messages: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    np.save(path, pixels) if name.endswith("npy") else tifffile.imwrite(path, pixels)
    with pytest.raises(UserError, match=messages):
        formats.check(path, "", SHAPE)


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_not_opened_and_the_error_says_how_to_save_masks(tmp_path: Path) -> None:
    """Cellpose's `_seg.npy` is one: who opens it runs whatever it holds."""
    path, trap = tmp_path / "B02_1_seg.npy", tmp_path / "sprung"
    np.save(path, {"masks": labels(), "trap": Trap(trap)}, allow_pickle=True)
    for call in (lambda: formats.check(path, "", SHAPE), lambda: read(path)):
        with pytest.raises(
            UserError, match=r"_seg.npy holds objects of Python.*File > Save masks as PNG/tif"
        ):
            call()
    assert not trap.exists()
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        pickle.load(file)
    assert trap.exists(), "the trap works"


# ---------------------------------------------------------------- filling


def test_the_shapes_of_imagej_are_filled_as_imagej_fills_them() -> None:
    """Recorded with ImageJ 1.53t: polygons, curves, holes, several parts, beyond the border, half pixels."""
    masks = tifffile.imread(RECORDED / "imagej_masks.tif") > 0
    shape = (1, *masks.shape[1:])
    found = formats.IMAGEJ.read(RECORDED / "imagej_RoiSet.zip", "", shape)
    assert len(found) == len(masks) == 16
    for one, expected in zip(found, masks, strict=True):
        y, x, mask = one.fill(*shape[1:])
        filled = np.zeros(shape[1:], bool)
        filled[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
        np.testing.assert_array_equal(filled, expected, err_msg=one.name)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 9))
def test_polygons_hold_the_pixels_whose_centres_they_surround(seed: int, count: int) -> None:
    """Compared with matplotlib, far from ties; the polygons cross themselves and leave the image."""
    points = np.random.default_rng(seed).uniform(-5, 30, (count, 2))
    y, x, mask = outlines.polygon_outline("p", 0, [[points]]).fill(24, 20)
    filled = np.zeros((24, 20), bool)
    filled[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    centres = np.stack(np.meshgrid(np.arange(20) + 0.5, np.arange(24) + 0.5), -1).reshape(-1, 2)
    closed = np.concatenate([points, points[:1]])
    np.testing.assert_array_equal(filled.ravel(), _crossings(closed, centres) % 2 == 1)
    if count == 3:  # which cannot cross itself: matplotlib counts turns
        np.testing.assert_array_equal(filled.ravel(), Polygon(closed).contains_points(centres))


def _crossings(closed: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """How many edges a line from each centre to the left meets, one by one."""
    found = np.zeros(len(centres), int)
    for (x0, y0), (x1, y1) in pairwise(closed):
        inside = (centres[:, 1] >= min(y0, y1)) & (centres[:, 1] < max(y0, y1))
        x = x0 + (centres[:, 1] - y0) / ((y1 - y0) or 1) * (x1 - x0)
        found += inside & (x <= centres[:, 0])
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_neighbours_share_no_pixel_and_leave_none(seed: int) -> None:
    """Corners on whole numbers put centres onto edges; each pixel of a tiled square belongs to one tile."""
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.integers(0, 25, (30, 2)), [(0, 0), (0, 24), (24, 0), (24, 24)]])
    tiles = Delaunay(points).simplices
    found = [
        outlines.polygon_outline(str(n), 0, [[points[tile].astype(float)]]) for n, tile in enumerate(tiles)
    ]
    painted, hidden = outlines.painted(Path("t"), found, (1, 24, 24), smaller_on_top=False)
    assert painted.all()
    sizes = [mask.sum() for one in found for *_, mask in [one.fill(24, 24)]]
    assert sum(sizes) == 24 * 24
    assert hidden == sizes.count(0)


# ---------------------------------------------------------------- outlines


def as_rois(path: Path, **facts: Any) -> None:
    rois = []
    for number in range(1, 10):
        roi = roifile.ImagejRoi.frompoints(np.array(corners(number), float))
        roi.name = f"cell {number}"
        for name, value in facts.items():
            setattr(roi, name, value)
        rois.append(roi)
    roifile.roiwrite(path, rois)


def feature(points: Any, name: str = "", kind: str = "Polygon", **more: Any) -> dict[str, Any]:
    properties = {"objectType": more.pop("objectType", "annotation"), **({"name": name} if name else {})}
    nucleus = {"nucleusGeometry": more.pop("nucleus")} if "nucleus" in more else {}
    geometry = {"type": kind, "coordinates": points, **more}
    return {"type": "Feature", "id": "0b1-2", "geometry": geometry, **nucleus, "properties": properties}


def closed(points: list[tuple[int, int]]) -> list[list[int]]:
    return [list(point) for point in [*points, points[0]]]


def as_geojson(path: Path) -> None:
    features = [feature([closed(corners(number))]) for number in range(1, 10)]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def as_older_geojson(path: Path) -> None:
    """QuPath before 0.3: a list, and the type where GeoJSON has the identity."""
    features = [feature([closed(corners(number))]) for number in range(1, 10)]
    for one in features:
        one |= {"id": "PathAnnotationObject", "properties": {"isLocked": False}}
    path.write_text(json.dumps(features))


def as_coco(path: Path, segmentation: Callable[[int], Any] | None = None) -> None:
    def flat(number: int) -> Any:
        return [[edge for point in corners(number) for edge in point]]

    chosen = segmentation or flat
    content = {
        "images": [{"id": 7, "file_name": "plate/B02_1.jpg", "height": 60, "width": 80},
                   {"id": 8, "file_name": "B02_2.jpg", "height": 60, "width": 80}],
        "annotations": [{"id": n, "image_id": 7, "segmentation": chosen(n)} for n in range(1, 10)],
        "categories": [{"id": 1, "name": "cell"}],
    }  # fmt: skip
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("write", "name", "part"),
    [
        (as_rois, "B02_1_RoiSet.zip", ""),
        (as_geojson, "B02_1.geojson", ""),
        (as_older_geojson, "B02_1.json", ""),
        (as_coco, "annotations.json", "plate/B02_1.jpg"),
    ],
)
def test_outlines_become_numbered_objects(
    write: Callable[[Path], None], name: str, part: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name, part)[0], labels())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.02, 0.98), st.booleans())
def test_run_lengths_are_those_of_cocos_own_tools(seed: int, share: float, compressed: bool) -> None:
    mask = np.random.default_rng(seed).random((17, 23)) < share
    found = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = found["counts"].decode()
    if not compressed:
        counts = [
            int(run)
            for run in np.diff(
                np.flatnonzero(np.diff(mask.ravel("F").astype(int), prepend=0, append=-1)), prepend=0
            )
        ]
    if mask.any():
        [one] = [outline_files._coco_outline("m", {"size": [17, 23], "counts": counts}, (17, 23))]
        np.testing.assert_array_equal(one.fill(17, 23)[2], mask)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_polygons_of_coco_differ_from_its_own_tools_along_the_outline_alone(seed: int) -> None:
    """They fill a pixel that the outline only touches; here its centre decides, as everywhere else."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    points = 20 + np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(6, 18, (9, 1))
    y, x, mask = outlines.polygon_outline("p", 0, [[points]]).fill(40, 40)
    ours = np.zeros((40, 40), bool)
    ours[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    [run] = coco_masks.frPyObjects([points.ravel().tolist()], 40, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own, of numpy
        theirs = coco_masks.decode(run).astype(bool)
    outline = points + np.linspace(0, 1, 400)[:, None, None] * (np.roll(points, -1, axis=0) - points)
    centres = np.mgrid[:40, :40].transpose(1, 2, 0)[..., ::-1] + 0.5
    away = cKDTree(outline.reshape(-1, 2)).query(centres)[0] > 0.5
    np.testing.assert_array_equal(ours[away], theirs[away])


def test_holes_several_parts_and_ellipses_of_qupath(tmp_path: Path) -> None:
    square, hole = closed([(2, 2), (22, 2), (22, 22), (2, 22)]), closed([(8, 8), (14, 8), (14, 12), (8, 12)])
    other = closed([(30, 2), (40, 2), (40, 10), (30, 10)])
    box = closed([(50, 10), (70, 10), (70, 20), (50, 20)])
    features = [
        feature([square, hole], "ring"),
        feature([[other], [closed([(30, 20), (33, 20), (33, 25), (30, 25)])]], "parts", "MultiPolygon"),
        feature([box], "oval", isEllipse=True),
        feature([closed([(8, 8), (14, 8), (14, 12), (8, 12)])], "in the hole", objectType="detection"),
        feature([closed([(0, 0), (80, 0), (80, 60), (0, 60)])], objectType="root"),
    ]
    path = tmp_path / "B02_1.geojson"
    path.write_text(json.dumps(features))
    found = read(path)[0]
    expected = np.zeros((60, 80), int)
    expected[2:22, 2:22], expected[2:10, 30:40], expected[20:25, 30:33] = 1, 2, 2
    expected[8:12, 8:14] = 4
    y, x = np.mgrid[:60, :80] + 0.5
    expected[((x - 60) / 10) ** 2 + ((y - 15) / 5) ** 2 <= 1] = 3
    np.testing.assert_array_equal(found, expected)
    assert formats.check(path, "", SHAPE) == [
        "B02_1.geojson: 1 of type root are no objects and are left out",
        "B02_1.geojson: objects are 3 of type annotation, 1 of type detection",
    ]


def test_cells_of_qupath_are_taken_and_their_nuclei_reported(tmp_path: Path) -> None:
    nucleus = {"type": "Polygon", "coordinates": [closed([(5, 5), (8, 5), (8, 8), (5, 8)])]}
    cell = feature([closed([(2, 2), (12, 2), (12, 12), (2, 12)])], objectType="cell", nucleus=nucleus)
    (tmp_path / "B02_1.geojson").write_text(json.dumps(cell))
    assert read(tmp_path / "B02_1.geojson").sum() == 100
    [remark] = formats.check(tmp_path / "B02_1.geojson", "", SHAPE)
    assert remark == "B02_1.geojson: 1 cells have a nucleus inside; the cells' outlines are taken"


def test_outlines_of_each_time(tmp_path: Path) -> None:
    """ImageJ counts frames from 1, QuPath from 0; where there are several, an outline is of one of them."""
    shape = (3, 60, 80)
    rois = [roifile.ImagejRoi.frompoints(np.array(corners(n), float), t=n - 1, z=0, c=0) for n in (1, 2, 3)]
    roifile.roiwrite(tmp_path / "a.zip", rois)
    features = [feature([closed(corners(n))], plane={"c": -1, "z": 0, "t": n - 1}) for n in (1, 2, 3)]
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    expected = np.stack([np.where(labels() == n, n, 0) for n in (1, 2, 3)])
    for name in ("a.zip", "a.geojson"):
        np.testing.assert_array_equal(read(tmp_path / name, shape=shape), expected)
        with pytest.raises(
            UserError, match=r"2 outlines \(.*\) are of a time that the field has not; it has 1"
        ):
            formats.check(tmp_path / name, "", SHAPE)
    as_rois(tmp_path / "b.zip")
    with pytest.raises(UserError, match="cell 1 belongs to no frame, and the field has 3 times"):
        formats.check(tmp_path / "b.zip", "", shape)


def test_overlapping_outlines_are_counted_and_refused_unless_overlaps_is_given(tmp_path: Path) -> None:
    """Nothing is cut or covered silently; with `smaller_on_top` the smaller one gets what both surround."""
    squares = {
        "large": (2, 2, 30, 30),
        "small": (20, 20, 36, 36),
        "same": (20, 20, 36, 36),
        "far": (50, 5, 60, 9),
    }
    features = [
        feature([closed([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])], name)
        for name, (x0, y0, x1, y1) in squares.items()
    ]
    path = tmp_path / "B02_1.geojson"
    path.write_text(json.dumps(features))
    with pytest.raises(
        UserError, match=r"2 pairs of outlines overlap, in 356 pixels \(large and small, small and"
    ):
        read(path)
    drawn = formats.drawing(path, "", SHAPE, "smaller_on_top")
    expected = np.zeros((60, 80), int)
    expected[2:30, 2:30], expected[20:36, 20:36], expected[5:9, 50:60] = 1, 3, 4
    np.testing.assert_array_equal(drawn.labels[0], expected)
    assert (drawn.hidden, drawn.apart) == (1, True)


def roi(kind: Any, **facts: Any) -> roifile.ImagejRoi:
    made = roifile.ImagejRoi.frompoints(np.array([(5, 5), (20, 5), (20, 20)], float))
    made.roitype, made.name = kind, "this one"
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("write", "messages"),
    [
        (
            roi(roifile.ROI_TYPE.POLYLINE),
            "this one is no area but a polyline: save the ROIs without it",
        ),
        (roi(roifile.ROI_TYPE.POINT), "no area but a point"),
        (roi(roifile.ROI_TYPE.POLYGON, options=roifile.ROI_OPTIONS.SPLINE_FIT), "has rounded corners"),
        (b"Iout and then nothing", "this one is damaged"),
        (b"no ROI at all" * 20, "this one is damaged"),
        ({"type": "FeatureCollection", "features": [feature([1, 2], "dot", "Point")]}, "dot is no area"),
        ({"type": "FeatureCollection", "features": [feature([[[1, 2], [3, 4]]], "two")]}, "two is damaged"),
        ({"type": "FeatureCollection", "features": [{"type": "Feature"}]}, "object 1 is damaged"),
        ({"type": "FeatureCollection", "features": [feature([closed([(99, 9), (95, 9), (95, 3)])], "x")]},
         r"1 outlines \(x\) lie outside of the field of 60 × 80 pixels"),
        ({"some": "thing"}, "is neither GeoJSON .features. nor COCO"),
        ("[{", "is not readable as JSON"),
    ],
)  # fmt: skip
def test_a_segmentation_that_is_no_object_is_named(write: Any, messages: str, tmp_path: Path) -> None:
    """With its name and what to do: nothing is left out silently."""
    path = tmp_path / ("B02_1.geojson" if isinstance(write, (dict, str)) else "RoiSet.zip")
    if isinstance(write, (dict, str)):
        path.write_text(json.dumps(write) if isinstance(write, dict) else write)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("this one.roi", write if isinstance(write, bytes) else write.tobytes())
            archive.writestr("__MACOSX/._this one.roi", b"of a Mac")
    with pytest.raises(UserError, match=messages):
        formats.check(path, "", SHAPE)


@pytest.mark.parametrize(
    ("segmentation", "messages"),
    [
        ([], "annotation 1 of plate/B02_1.jpg has no outline: boxes alone are no objects"),
        (
            {"size": [60, 81], "counts": [60 * 81]},
            r"has a mask of \(60, 81\) pixels; the image has \(60, 80\)",
        ),
        ({"size": [60, 80], "counts": [5, 10]}, "its run lengths do not fill the image"),
        ({"size": [60, 80], "counts": "\x10\x20"}, "its run lengths do not fill the image"),
        ([[1, 2, 3]], "is damaged"),
        ([[1, 2, 3, "a", 5, 6]], "is damaged"),
    ],
)
def test_damage_in_coco_is_named(segmentation: Any, messages: str, tmp_path: Path) -> None:
    as_coco(tmp_path / "a.json", lambda number: segmentation)
    with pytest.raises(UserError, match=messages):
        formats.check(tmp_path / "a.json", "plate/B02_1.jpg", SHAPE)


def test_a_coco_file_is_gone_through_once_for_all_of_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file about a plate has thousands of images: for each anew, that would be a matter of hours."""
    path, passes = tmp_path / "a.json", []

    class Annotations(list[Any]):
        def __iter__(self) -> Any:
            passes.append(self)
            return super().__iter__()

    as_coco(path)
    content = json.loads(path.read_text())
    content["annotations"] = Annotations(content["annotations"])
    monkeypatch.setattr(outline_files, "_parse_json", lambda *_: content)
    counts = [len(outline_files.read_coco(path, part, SHAPE)) for part in ("plate/B02_1.jpg", "B02_2.jpg")]
    assert counts == [9, 0]
    assert len(passes) == 1


def test_an_image_of_coco_has_the_fields_size(tmp_path: Path) -> None:
    as_coco(tmp_path / "a.json")
    with pytest.raises(
        UserError, match=r"plate/B02_1.jpg has \(60, 80\) pixels, but the field has \(1, 61, 80\)"
    ):
        formats.check(tmp_path / "a.json", "plate/B02_1.jpg", (1, 61, 80))


def test_files_in_a_wrong_format_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no archive")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00")
    for name, messages in (
        ("a.zip", "cannot be read"),
        ("b.zip", "holds no ROI"),
        ("a.npy", "cannot be read"),
    ):
        with pytest.raises(UserError, match=messages):
            formats.check(tmp_path / name, "", SHAPE)
