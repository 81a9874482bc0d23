"""Labels leave as outlines that QuPath and ImageJ open, and that hold just the pixels of their objects."""

from __future__ import annotations

import json
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import roifile
from matplotlib.path import Path as Curve

from hpc_isl.cli.main import run_command
from hpc_isl.errors import UserError
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, read_labels, write_labels
from hpc_isl.stages.annotate.annotation import drawing
from hpc_isl.stages.export.labels import export_labels

NAME = "nuclei & <cells>"
SIZE = 96


def drawn(seed: int = 0) -> np.ndarray:
    """(96, 96): discs, one with a hole, one of two pieces, and two pixels that touch at a corner."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    labels = np.zeros((SIZE, SIZE), np.uint32)
    for number in range(1, 12):
        cy, cx = rng.uniform(10, SIZE - 10, 2)
        labels[(y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(3, 11) ** 2] = 7 * number
    labels[40:60, 40:60], labels[45:55, 44:50] = 900, 0
    labels[2:5, 2:5] = labels[2:6, 8:9] = 901
    labels[90, 90] = labels[91, 91] = 902
    return labels


@pytest.fixture
def plate(tmp_path: Path, write_stained_plate: Callable[..., Index]) -> Index:
    index = write_stained_plate(tmp_path / "P01.zarr", wells=("B02", "B03", "C02"), size=SIZE)
    for number, well in enumerate(("B02", "C02")):
        origin = ("human", "segmented")[number]
        image, boxes = index.image(FieldKey(well, "1")), [(0, 0, SIZE, SIZE)]
        write_labels(image, NAME, drawn(number), origin=origin, boxes=boxes)
    return index


def filled(rings: list[np.ndarray]) -> np.ndarray:
    """Pixels whose centres an odd number of rings surrounds, by matplotlib."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    centers = np.stack([x.ravel(), y.ravel()], 1)
    return np.logical_xor.reduce([Curve(ring).contains_points(centers) for ring in rings]).reshape(SIZE, SIZE)


def test_geojson_is_what_qupath_reads_and_holds_the_labels_to_the_pixel(plate: Index, tmp_path: Path) -> None:
    made = export_labels(plate.path, NAME, tmp_path / "out")
    assert (made.fields, made.unlabelled) == (2, 1)
    assert sorted(path.name for path in made.out.iterdir()) == ["B02_1.geojson", "C02_1.geojson"]
    for number, (well, kind) in enumerate((("B02", "annotation"), ("C02", "detection"))):
        content = json.loads((made.out / f"{well}_1.geojson").read_text())
        assert content["type"] == "FeatureCollection"
        labels, again = drawn(number), np.zeros((SIZE, SIZE), np.uint32)
        for feature in content["features"]:
            assert feature["type"] == "Feature"
            assert uuid.UUID(feature["id"]).version == 5
            properties, geometry = feature["properties"], feature["geometry"]
            assert properties["objectType"] == kind
            assert properties["classification"] == {"name": NAME, "color": [0, 158, 115]}
            parts = (
                geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
            )
            rings = [np.array(ring) for part in parts for ring in part]
            assert all((ring[0] == ring[-1]).all() for ring in rings)
            again[filled(rings)] = int(properties["name"])
        np.testing.assert_array_equal(again, labels)
        kinds = {f["properties"]["name"]: f["geometry"] for f in content["features"]}
        assert len(kinds["900"]["coordinates"]) == 2
        assert kinds["901"]["type"] == kinds["902"]["type"] == "MultiPolygon"


def test_rois_are_read_back_by_roifile_to_the_pixel(plate: Index, tmp_path: Path) -> None:
    made = export_labels(plate.path, NAME, tmp_path / "out", "roi", ["B02"])
    path = made.out / "B02_1_RoiSet.zip"
    assert zipfile.ZipFile(path).testzip() is None
    again = np.zeros((SIZE, SIZE), np.uint32)
    rois = roifile.roiread(path)
    assert made.objects == len(rois) == len(np.unique(drawn())) - 1
    for roi in rois:
        rings = [np.asarray(ring) for ring in roi.coordinates(multi=True)]
        mask = filled(rings)
        y, x = np.nonzero(mask)
        bounds = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
        assert (roi.left, roi.top, roi.right, roi.bottom) == bounds
        again[mask] = int(roi.name)
    np.testing.assert_array_equal(again, drawn())


@pytest.mark.parametrize("form", ["geojson", "roi"])
def test_what_is_exported_can_be_imported_again(
    plate: Index, tmp_path: Path, write_stained_plate: Callable[..., Index], form: str
) -> None:
    """Also of a time series, where each outline says its time."""
    series = write_stained_plate(tmp_path / "T.zarr", wells=("B02",), size=SIZE, times=2)
    times = np.stack([drawn(3), drawn(4)])
    write_labels(series.image(FieldKey("B02", "1")), NAME, times, origin="human", boxes=[(0, 0, SIZE, SIZE)])
    for index, labels in ((plate, drawn()[None]), (series, times)):
        made = export_labels(index.path, NAME, tmp_path / index.plate.name, form, ["B02/1"])
        [path] = made.out.iterdir()
        again = drawing(path, "", labels.shape, None).labels
        for one, other in zip(again, labels, strict=True):
            pairs = {tuple(pair) for pair in np.stack([one.ravel(), other.ravel()], 1).tolist()}
            assert len(pairs) == len(np.unique(other)) == len(np.unique(one))


def test_the_command_line_exports_and_says_what(
    plate: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [f"plate={plate.path}", f"labels={NAME}", f"out={out}", "fields=[B02/1, C02]", "format=roi"]
    assert run_command(["export", "labels", *words]) == 0
    said = capsys.readouterr().out
    assert f"objects of 2 fields\n  outlines  {out}" in said
    assert run_command(["export", "labels", *words]) == 2
    assert f"out: {out} holds something already" in capsys.readouterr().err
    assert len(list(out.iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=qupath"], "format=qupath: no such format; there are: 'geojson', 'roi'"),
        (["fields=B03"], "fields: B03/1 have no labels"),
        (["fields=[B02"], r"[B02: is no list; write it as in [B03/1, D07]"),
        (["labels=nuclei"], f"labels=nuclei: no field has them; did you mean '{NAME}'"),
        (["fields=Q02"], "fields: 'Q02' is not on the plate"),
    ],
)
def test_a_wrong_word_is_named_and_nothing_is_written(
    plate: Index, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"plate={plate.path}", f"labels={NAME}", f"out={tmp_path / 'out'}", *words]
    assert run_command(["export", "labels", *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run_command(["export", *given]) == 2
    assert "export: say what" in capsys.readouterr().err


def test_labels_of_an_image_too_wide_for_rois_are_refused(
    plate: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpc_isl.stages.export.labels.MOST_PIXELS", SIZE - 1)
    with pytest.raises(UserError, match=r"have more than 95 pixels along an edge.*take format=geojson"):
        export_labels(plate.path, NAME, tmp_path / "out", "roi")
    assert export_labels(plate.path, NAME, tmp_path / "out").fields == 2
    assert read_labels(plate.image(FieldKey("B02", "1")), NAME).max() == 902


def test_several_processes_write_the_same_files(
    plate: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = export_labels(plate.path, NAME, tmp_path / "one").out
    monkeypatch.setattr("hpc_isl.stages.export.labels.WORTH_PROCESSES", 2)
    several = export_labels(plate.path, NAME, tmp_path / "several").out
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, several)]
    assert len(files[0]) == 2
    assert files[0] == files[1]
