"""Two exports of one plate become one plate of two acquisitions, whose shifts are measured and applied."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from moved_plates import PITCH, write_pass

from hpc_isl.errors import UserError
from hpc_isl.learning.data.samples import read
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, open_plate, read_box
from hpc_isl.recipes.load import load
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.strict import parse
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.convert.stage import convert, plan
from hpc_isl.stages.inspect import inspect
from hpc_isl.stages.pretrain.stage import pretrain
from hpc_isl.stages.set_metadata import metadata_edit
from hpc_isl.stages.shared.following import pretrain_line
from hpc_isl.stages.shared.plate_views import load_plate_views
from hpc_isl.stages.synthetic.layout import BRIGHTFIELD, CELLMASK, HOECHST


def recipe(out: Path, *sources: Path, **given: Any) -> ConvertRecipe:
    whole = {"source": list(sources), "out": out, "codec": {"chunk": 64}} | given
    return parse(ConvertRecipe, whole, "the recipe")


def merged(folder: Path, *sources: Path, **given: Any) -> Index:
    what = recipe(folder / "P.zarr", *sources, **given)
    convert(what, Attempt(Run(folder / "runs" / "convert" / "P")))
    return open_plate(what.out)


def states(index: Index) -> dict[str, str]:
    assert index.registration is not None
    return {str(key): own.state for key, own in index.registration.shifts.items()}


def jitter(well: str, field: int) -> tuple[int, int]:
    """Where the fields of the second pass lie: all of them moved, and each a little for itself."""
    return 17 + field % 2, -9 + int(well[1:]) % 2


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A live pass, and a stained one with its fields numbered backwards, one of which is another well's."""
    folder = tmp_path_factory.mktemp("exports")
    live = write_pass(folder / "live", [BRIGHTFIELD], wells=3, fields=2, heights=(-4.0, 4.0))
    stained = write_pass(
        folder / "stained", [BRIGHTFIELD, HOECHST], wells=3, fields=2, heights=(-4.0, 4.0), move=jitter,
        reverse=True, stranger=("B04", 2), noise="second",
    )  # fmt: skip
    return live, stained


@pytest.fixture(scope="module")
def plate(exports: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Index:
    return merged(tmp_path_factory.mktemp("merged"), *exports)


def test_fields_are_matched_by_position_and_their_shifts_come_back(plate: Index) -> None:
    assert plate.plate.acquisitions == {0: "live", 1: "stained"}
    assert plate.registration is not None
    for well in ("B02", "B03", "B04"):
        for field in (1, 2):
            if (well, field) == ("B04", 2):
                continue
            found = plate.shift(FieldKey(well, str(field)), FieldKey(well, str(field), 1))
            assert found is not None
            assert np.abs(np.subtract(found, jitter(well, field))).max() <= 1
    assert plate.field(FieldKey("B02", "1", 1)).details["field_of_export"] == "2"


def test_a_field_that_shows_another_well_is_rejected(plate: Index) -> None:
    assert {key for key, state in states(plate).items() if state == "rejected"} == {"B04/1x2"}
    assert plate.shift(FieldKey("B04", "2"), FieldKey("B04", "2", 1)) is None


def test_bright_field_is_registered_against_stains_alone(exports: tuple[Path, Path], tmp_path: Path) -> None:
    stained = write_pass(
        tmp_path / "stained", [HOECHST, CELLMASK], wells=3, fields=2, move=lambda well, field: (-23, 31)
    )
    index = merged(tmp_path, exports[0], stained)
    assert set(states(index).values()) == {"measured"}
    for field in (field.key for field in index.plate.fields if field.key.acquisition == 0):
        found = index.shift(field, FieldKey(field.well, field.name, 1))
        assert found is not None
        assert np.abs(np.subtract(found, (-23, 31))).max() <= 1


def test_a_plate_that_is_turned_by_a_third_of_a_degree_is_modelled(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    def turned(well: str, field: int) -> tuple[int, int]:
        # About the middle well: the others rise and sink.
        return round((int(well[1:]) - 3) * PITCH * np.sin(np.deg2rad(0.3))), 5

    stained = write_pass(
        tmp_path / "stained", [BRIGHTFIELD], wells=3, fields=2, heights=(-4.0, 4.0), move=turned, degrees=0.3,
        noise="second",
    )  # fmt: skip
    index = merged(tmp_path, exports[0], stained)
    assert index.registration is not None
    model = index.registration.models[1]
    assert model is not None
    assert model["degrees"] == pytest.approx(0.3, abs=0.01)
    assert set(states(index).values()) == {"measured"}
    for own in index.registration.shifts.values():
        assert own.shift is not None
        assert np.abs(np.subtract(own.shift, turned(own.key.well, 1))).max() <= 1


# ---------------------------------------------------------------- applied when pixels are read


PAIR = [
    "sources=[{channel: Brightfield, plane: 0, acquisition: 0}]",
    "targets=[{channel: HOECHST 33342, plane: 1, acquisition: 1}]",
    "data={normalize: {source: none, target: none}, foreground: {required: false}}",
    "augment={flip: false, brightness: 0, contrast: 0}",
    "train={steps: 1, batch: 2, micro_batch: 2, crop: 64}", "net={encoder: tu-test_resnet, weights: null}",
    "split={test_wells: [B02], validation_wells: []}",
]  # fmt: skip


def stored(index: Index, key: FieldKey, channel: str, plane: int) -> Any:
    every = slice(None)
    return read_box(index.image(key), 0, 0, index.channel(channel), [plane], every, every)[0]


def test_a_field_is_read_with_its_partner_and_what_has_none_is_no_number(plate: Index) -> None:
    study, _ = load_plate_views(load("pretrain", None, [f"plates=[{plate.path}]", *PAIR]))
    key = FieldKey("B03", "1")
    y, x = plate.shift(key, FieldKey("B03", "1", 1)) or (0, 0)
    assert y > 0 > x
    sources, targets = study.plates[0].read(key)
    raw = stored(plate, FieldKey("B03", "1", 1), "HOECHST 33342", 1)
    np.testing.assert_array_equal(sources[0], stored(plate, key, "Brightfield", 0))
    np.testing.assert_array_equal(targets[0, :-y, -x:], raw[y:, :x])
    assert np.isnan(targets[0, -y:]).all()
    assert np.isnan(targets[0, :, :-x]).all()
    part = (slice(150, 224), slice(0, 40))  # a box reads what the whole field holds there
    for box, whole in zip(read(study.view, plate, key, 0, part), (sources, targets), strict=True):
        assert box is not None
        np.testing.assert_array_equal(box, whole[:, *part])


def test_the_next_step_after_merging_names_the_passes(plate: Index) -> None:
    line = pretrain_line(plate)
    assert line is not None
    words = shlex.split(line)[1:]
    what = load("pretrain", None, words)
    assert isinstance(what, PretrainRecipe)
    assert [(role.channel, role.acquisition) for role in what.sources] == [("Brightfield", 0)]
    assert [(role.channel, role.acquisition) for role in what.targets] == [("HOECHST 33342", 1)]


def test_crops_hold_pairs_alone_and_none_of_a_field_that_was_rejected(plate: Index) -> None:
    _, crops = load_plate_views(load("pretrain", None, [f"plates=[{plate.path}]", *PAIR]))
    assert {str(field.key) for field in crops.fields} == {"B03/1", "B03/2", "B04/1"}
    assert any("1 of which two acquisitions show different places" in line for line in crops.messages)
    for number in range(len(crops)):
        source, target = crops[number]
        key = crops.field(number).key
        partner = FieldKey(key.well, key.name, 1)
        shift = plate.shift(key, partner)
        assert shift is not None
        whole = stored(plate, key, "Brightfield", 0).astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(whole, (1, 64))[:, :, 0]
        [(y, x)] = np.argwhere((windows == source[0, 0]).all(axis=-1))
        raw = stored(plate, partner, "HOECHST 33342", 1)
        y, x = y + shift[0], x + shift[1]
        np.testing.assert_array_equal(target[0], raw[y : y + 64, x : x + 64])


def test_the_shifts_are_part_of_the_fingerprint_and_their_table_may_not_be_changed(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    index = merged(tmp_path, *exports)
    assert (index.path / "index" / "registration.png").stat().st_size > 1000
    (index.path / "index" / "fields.parquet").unlink()
    assert open_plate(index.path).fingerprint == index.fingerprint
    text = "\n".join(inspect(index.path))
    assert (
        "acquisition 1: shifted by 18, -9 px (y, x; median), turned by 0.00°: 5 measured, 1 left out" in text
    )
    assert "do not show the same place: B04/1x2" in text
    [table] = index.path.glob("index/registration-*.csv")
    assert str(table) in text
    # Another wish for the same plate finds it as it is.
    assert "nothing to convert" in "\n".join(plan(recipe(index.path, *exports)).messages)
    renamed = metadata_edit(index.path, ["channels.Brightfield=BF"]).apply()
    assert (renamed.registration, renamed.fingerprint == index.fingerprint) == (index.registration, False)
    table.write_text(table.read_text().replace("measured,18,-9", "measured,18,-10", 1))
    with pytest.raises(UserError, match=r"\.csv was changed since it was written"):
        open_plate(index.path)


def test_a_field_that_joins_later_is_registered_and_the_others_keep_their_shifts(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    live, stained = exports
    late = tmp_path / "stained"
    shutil.copytree(stained, late)
    [file] = (late / "Images").glob("r02c02f01p01-ch2*")
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    what = {"on_error": "skip", "fields": ["B02", "B03/1", "B03/1x1"], "name": "P"}
    before = merged(tmp_path, live, late, **what)
    assert before.registration is not None
    file.write_bytes(whole)
    after = merged(tmp_path, live, late, **what)
    assert after.registration is not None
    assert before.registration.shifts.keys() == after.registration.shifts.keys()
    assert [own.shift for own in before.registration.shifts.values()] == [
        own.shift for own in after.registration.shifts.values()
    ]
    assert before.fingerprint != after.fingerprint
    assert len(list(after.path.glob("index/registration-*.csv"))) == 1


def test_a_plate_of_one_acquisition_has_no_shifts(exports: tuple[Path, Path], tmp_path: Path) -> None:
    index = merged(tmp_path, exports[0])
    assert index.registration is None
    assert not list(index.path.glob("index/registration*"))
    assert "shift" not in "\n".join(inspect(index.path))


# ---------------------------------------------------------------- exports that do not fit together


def restate(export: Path, values: dict[str, str]) -> None:
    """Lets the index of an export state these values; keys are patterns of elements' opening tags."""
    index = export / "Images" / "Index.idx.xml"
    text = index.read_text(encoding="utf-8")
    for tag, value in values.items():
        text = re.sub(f"({tag})[^<]*<", rf"\g<1>{value}<", text)
    index.write_text(text, encoding="utf-8")


def test_exports_whose_positions_do_not_meet_are_refused_or_paired_by_name(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    live, stained = exports
    far = tmp_path / "far"
    shutil.copytree(stained, far)
    restate(far, {r'<PositionX Unit="m">': "0.5"})
    with pytest.raises(UserError, match=r"no field of far lies where one of live does: .*match=name pairs"):
        plan(recipe(tmp_path / "P.zarr", live, far))
    said = "\n".join(plan(recipe(tmp_path / "P.zarr", live, far, match="name")).messages)
    assert "far: 6 of 6 fields lie where one of live does" in said


def test_a_stained_pass_with_binning_is_resampled_and_registered(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    binned = write_pass(
        tmp_path / "binned", [BRIGHTFIELD, HOECHST], wells=3, fields=2, heights=(-4.0, 4.0), noise="second",
        move=lambda well, field: (12, -8),
    )  # fmt: skip
    for path in (binned / "Images").glob("*.tiff"):
        pixels = tifffile.imread(path).reshape(112, 2, 112, 2).mean(axis=(1, 3))
        tifffile.imwrite(path, pixels.astype("uint16"))
    restate(binned, {"<ImageSize[XY]>": "112", "<ImageResolution[XY][^>]*>": "1.196E-06"})
    index = merged(tmp_path, exports[0], binned, resample=True)
    assert (index.plate.pixel_um, {field.shape[-2:] for field in index.plate.fields}) == (0.598, {(224, 224)})
    assert set(states(index).values()) == {"measured"}
    for field in (field.key for field in index.plate.fields if field.key.acquisition == 0):
        found = index.shift(field, FieldKey(field.well, field.name, 1))
        assert found is not None
        assert np.abs(np.subtract(found, (12, -8))).max() <= 1


def test_pairs_by_name_are_another_plate_than_pairs_by_position(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    merged(tmp_path, *exports)
    with pytest.raises(UserError, match="holds another plate"):
        plan(recipe(tmp_path / "P.zarr", *exports, match="name"))


def test_fields_without_a_partner_are_kept_and_named(exports: tuple[Path, Path], tmp_path: Path) -> None:
    fewer = write_pass(tmp_path / "fewer", [HOECHST], wells=4, fields=2)
    said = "\n".join(plan(recipe(tmp_path / "P.zarr", exports[0], fewer)).messages)
    assert "fewer: 6 of 8 fields lie where one of live does" in said
    assert "fewer: without a partner in live: 2 (B05/1, B05/2)" in said
    # Where the name is another field's in the first export, it gets one of its own.
    lone = write_pass(tmp_path / "lone", [BRIGHTFIELD], wells=3, fields=1)
    with pytest.raises(UserError, match="no field of live lies where one of lone does"):
        plan(recipe(tmp_path / "P.zarr", lone, exports[0]))
    three = write_pass(tmp_path / "three", [HOECHST], wells=3, fields=3, reverse=True)
    said = "\n".join(plan(recipe(tmp_path / "P.zarr", exports[0], three)).messages)
    assert "three: 6 of 9 fields lie where one of live does" in said
    assert "three: without a partner in live: 3 (B02/3, B03/3, B04/3)" in said


def test_pixels_of_another_size_and_one_folder_twice_are_refused(
    exports: tuple[Path, Path], tmp_path: Path
) -> None:
    live, stained = exports
    other = tmp_path / "other"
    shutil.copytree(stained, other)
    restate(other, {"<ImageResolution[XY][^>]*>": "1.196E-06"})
    with pytest.raises(UserError, match=r"live has pixels of 0.598 µm, other of 1.196 µm; resample=true"):
        plan(recipe(tmp_path / "P.zarr", live, other))
    with pytest.raises(UserError, match="source: one folder, or several different ones"):
        recipe(tmp_path / "P.zarr", live, live)


# ---------------------------------------------------------------- what a network makes of it


@pytest.mark.journey
def test_a_network_learns_from_shifted_passes_as_well_as_from_passes_that_lie_still(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    live = write_pass(tmp_path / "live", [BRIGHTFIELD], wells=6, heights=(-4.0, 4.0))
    scores = {}
    for name, shift in (("still", (0, 0)), ("moved", (23, -14))):
        stained = write_pass(
            tmp_path / name, [BRIGHTFIELD, CELLMASK], wells=6, heights=(-4.0, 4.0),
            move=lambda well, field, shift=shift: shift, noise="second",
        )  # fmt: skip
        plate = merged(tmp_path / f"merged {name}", live, stained)
        run = Run(tmp_path / "runs" / "pretrain" / name)
        what = load("pretrain", None, [
            f"plates=['{plate.path}']", "sources=[{channel: Brightfield, plane: [0, 1], acquisition: 0}]",
            "targets=[{channel: CellMask Deep Red, plane: max, acquisition: 1}]", "optim.lr=0.004",
            "split={test_wells: [B03, B04, B06], validation_wells: []}", "data.workers=0",
            "net={encoder: tu-test_resnet, weights: null, decoder: [16, 16, 8, 8, 8]}",
            "train={steps: 160, batch: 8, micro_batch: 8, crop: 64}", "predict.stain=false",
        ])  # fmt: skip
        assert isinstance(what, PretrainRecipe)
        pretrain(what, Attempt(run))
        summary = run.summary()
        assert summary is not None
        scores[name] = summary["figures"]["pcc"]
    assert scores["still"] > 0.85  # else nothing would be learnt from either
    assert scores["moved"] == pytest.approx(scores["still"], abs=0.02)
