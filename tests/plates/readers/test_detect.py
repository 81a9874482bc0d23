"""Which reader a recipe gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc_isl.errors import UserError
from hpc_isl.plates.readers import detect
from hpc_isl.recipes.plates import ConvertRecipe

PATTERN = {"regex": r"(?P<well>\w+)\.tif"}


def recipe(source: Path, **more: Any) -> ConvertRecipe:
    return ConvertRecipe.model_validate({"source": source, "out": "x.zarr", **more})


def test_a_harmony_export_is_recognised_and_may_be_renamed(tmp_path: Path, harmony_export: Any) -> None:
    harmony_export.write(tmp_path, [harmony_export.shot()])
    assert detect.read(recipe(tmp_path)).plate.name == "P 01"
    assert detect.read(recipe(tmp_path, name="mine")).plate.name == "mine"


def test_a_pattern_is_used_where_one_is_given(images: Callable[..., Path]) -> None:
    folder = images("A01.tif")
    for reader in ("auto", "pattern"):
        assert detect.read(recipe(folder, reader=reader, pattern=PATTERN)).plate.wells == ("A01",)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "There are: 'A01.tif'"),
        ({"reader": "harmony"}, "no Harmony index"),
        ({"reader": "pattern"}, "needs pattern.regex or pattern.table"),
    ],
)
def test_the_known_layouts_are_listed(images: Callable[..., Path], more: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as mistake:
        detect.read(recipe(images("A01.tif"), **more))
    assert said in str(mistake.value)


def test_a_source_that_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        detect.read(recipe(tmp_path / "nowhere"))


# ---------------------------------------------------------------- what nothing fits


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Image/W1F001T0001Z01C1.tif,MeasurementResult.ome.xml", "a Yokogawa CQ1 measurement.*cq1.yaml"),
        (
            "a/r02c03f01p01-ch1sk1fk1fl1.tiff",
            "Harmony export without their index.*Index.idx.xml.*harmony_names",
        ),
        (
            "MeasurementIndex.ColumbusIDX.xml",
            "half of a Columbus export.*ImageIndex.ColumbusIDX.xml is missing",
        ),
        (
            "P_B02_T0001F001L01A01Z01C01.png",
            "CellVoyager images without their index.*patterns/cellvoyager.yaml",
        ),
        ("ZStep_1/P_B02_s1_w1.tif", "an ImageXpress stack without.*patterns/imagexpress_stack.yaml"),
        ("P_B02_s1_w1.tif", "ImageXpress images without.*patterns/imagexpress.yaml"),
        ("NAME_B2_1_00d06h00m.tif", "an IncuCyte export.*patterns/incucyte.yaml"),
        ("exp.nd,exp_w1DAPI_s1_t1.TIF", r"a MetaMorph \.nd series.*name no wells.*pattern.table"),
        ("x.czi", r"an instrument's own format \(.czi\), see 'x.czi': it is not read; export TIFF"),
        ("zarr.json", "It is a Zarr.*no vendor's export"),
        (".zgroup", "It is a Zarr"),
        (
            "lab-F,well-A4,z_depth-0,channel,value-PHASE_CONTRAST,is_mask-false,kind,value-ORIGINAL.png",
            "isl_google_public.yaml",
        ),
    ],
)
def test_what_a_folder_looks_like_is_suggested(tmp_path: Path, name: str, said: str) -> None:
    for each in name.split(",") if "lab-" not in name else [name]:
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).write_bytes(b"")
    with pytest.raises(UserError, match=rf"has no layout that is known\. .*{said}"):
        detect.read(recipe(tmp_path))


def test_an_export_some_folders_down_or_one_up_is_named(tmp_path: Path, harmony_export: Any) -> None:
    harmony_export.write(tmp_path / "a" / "b" / "c", [harmony_export.shot()])
    with pytest.raises(UserError, match=rf"Its folder 'b' looks like harmony: give source={tmp_path}/a/b\."):
        detect.read(recipe(tmp_path / "a"))
    below = tmp_path / "a" / "b" / "TimePoint_1"
    below.mkdir()
    (below / "B02.tif").write_bytes(b"")
    (tmp_path / "a" / "b" / "P.HTD").write_text('"HTSInfoFile", Version 1.0\n"EndFile"\n')
    with pytest.raises(
        UserError, match=rf"Beside it lies 'P.HTD', of imagexpress: give source={tmp_path}/a/b\."
    ):
        detect.read(recipe(below))


@pytest.mark.realdata
def test_companion_metadata_of_single_images_is_refused_by_name(realdata: Path) -> None:
    with pytest.raises(
        UserError, match=r"companion OME-XML of single images, as VisiView writes it, see '2024100"
    ):
        detect.read(recipe(realdata / "vendor" / "visiview_companion"))


def test_companion_metadata_of_a_plate_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.companion.ome").write_text('<OME><Plate ID="Plate:0"/></OME>')
    with pytest.raises(
        UserError, match=r"a plate with companion OME-XML, as CQ1 writes it, see 'x.companion.ome'"
    ):
        detect.read(recipe(tmp_path))
    (tmp_path / "x.companion.ome").write_text("<OME><Pl")
    with pytest.raises(UserError, match="companion OME-XML of single images"):
        detect.read(recipe(tmp_path))


def test_two_layouts_are_a_question(tmp_path: Path) -> None:
    (tmp_path / "P.HTD").write_text('"HTSInfoFile", Version 1.0\n"EndFile"\n')
    (tmp_path / "MeasurementData.mlf").write_text("<x/>")
    with pytest.raises(
        UserError, match=r"looks like imagexpress and cellvoyager; say which, as in reader=imagexpress"
    ):
        detect.read(recipe(tmp_path))
