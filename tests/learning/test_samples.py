from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpc_isl.errors import UserError
from hpc_isl.learning.data.calibrate import view_of
from hpc_isl.learning.data.samples import Crops, crops_of, read
from hpc_isl.learning.data.split import draw
from hpc_isl.learning.data.view import Foreground, Role, View, counts
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.training import AugmentRecipe, SplitRecipe
from hpc_isl.seeds import stream

MakePlate = Callable[..., Index]
ANY = {"foreground": {"required": False}}
STILL = {"flip": False, "brightness": 0, "contrast": 0}


def planned(
    indices: list[Index],
    data: dict[str, Any] = ANY,
    augment: dict[str, Any] = STILL,
    control: str = "none",
    **train: Any,
) -> tuple[Crops, View]:
    asked = PretrainRecipe.model_validate(
        {
            "plates": ["P01.zarr"],
            "sources": [{"channel": "Phase", "plane": [0, 2]}],
            "targets": [{"channel": "Hoechst", "plane": "max"}],
            "train": {"steps": 4, "batch": 8, "micro_batch": 2, "crop": 32, "crops_per_field": 3} | train,
            "augment": augment,
            "data": data,
            "control": control,
        }
    )
    split = draw(indices, SplitRecipe(test=0, validation=0))
    view = view_of(indices, split, asked)
    return crops_of(view, indices, split, asked.train, asked.augment, asked.control), view


def where(crop: np.ndarray[Any, Any], field: np.ndarray[Any, Any]) -> tuple[int, int]:
    """The place of a crop's first plane in a field's: found by looking everywhere."""
    windows = np.lib.stride_tricks.sliding_window_view(field[0], crop.shape[-2:])
    places = np.argwhere((abs(windows - crop[0]) < 1e-6).all(axis=(2, 3)))
    assert len(places) == 1
    return int(places[0][0]), int(places[0][1])


def test_a_crop_is_a_box_of_its_field_and_every_field_gives_equally_many_in_every_epoch(
    make_plate: MakePlate,
) -> None:
    indices = [make_plate(), make_plate(name="P02", wells=("B02",))]
    crops, view = planned(indices)
    assert len(crops) == 4 * 3
    by_name = {index.plate.name: index for index in indices}
    for epoch in range(2):
        numbers = range(epoch * 12, epoch * 12 + 12)
        fields = [crops.field(number) for number in numbers]
        names = [(field.plate, str(field.key)) for field in fields]
        assert all(names.count(name) == 3 for name in names)
        assert names != sorted(names)
        for number, field in zip(numbers, fields, strict=True):
            sources, targets = crops[number]
            whole = read(view, by_name[field.plate], field.key)
            y, x = where(sources, whole[0])
            box = (slice(y, y + 32), slice(x, x + 32))
            assert whole[1] is not None
            assert np.array_equal(sources, whole[0][:, *box])
            assert np.array_equal(targets, whole[1][:, *box])


def test_a_sample_depends_on_seed_and_number_alone(make_plate: MakePlate) -> None:
    index = make_plate()
    lively = {"flip": True, "noise": 0.5, "scale": 0.1}
    crops, _ = planned([index], augment=lively)
    again, _ = planned([index], augment=lively)
    forwards = [crops[n] for n in range(20)]
    backwards = [again[n] for n in reversed(range(20))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(forwards[0][0], replace(crops, seed=1)[0][0])
    assert len({sources.tobytes() for sources, _ in forwards}) == 20


def test_times_of_a_field_count_as_fields(make_plate: MakePlate) -> None:
    index = make_plate(wells=("B02",), shape=(3, 2, 3, 64, 64))
    crops, view = planned([index])
    assert len(crops) == 9
    assert {crops.field(n).time for n in range(9)} == {0, 1, 2}
    third = next(n for n in range(9) if crops.field(n).time == 2)
    where(crops[third][0], read(view, index, FieldKey("B02", "1"), time=2)[0])


def test_crops_hold_the_foreground_that_is_asked_for(make_plate: MakePlate) -> None:
    pixels = {}
    for i, well in enumerate(("B02", "B03", "C02")):
        array = np.full((1, 2, 3, 96, 80), 200, np.uint16)
        array[0, 1, 1, 10 + 20 * i : 16 + 20 * i, 60:66] = 5000
        pixels[FieldKey(well, "1")] = array
    index = make_plate(pixels=pixels)
    crops, view = planned([index], {"foreground": {"fraction": 0.01}, "normalize": {"target": "none"}})
    assert view.foreground is not None
    assert 200 <= view.foreground.threshold < 5000
    shares = [(crops[number][1] > view.foreground.threshold).mean() for number in range(45)]
    assert min(shares) > 0
    assert np.mean(np.array(shares) >= 0.01) > 0.9
    free, _ = planned([index], ANY | {"normalize": {"target": "none"}})
    assert min((free[number][1] > 200).mean() for number in range(45)) == 0


def test_foreground_too_small_for_the_coarsest_level_is_still_found(make_plate: MakePlate) -> None:
    pixels = np.full((1, 2, 3, 96, 80), 200, np.uint16)
    pixels[0, 1, 1, 50, 40] = 60000
    index = make_plate(wells=("B02",), pixels={FieldKey("B02", "1"): pixels})
    shown = {"threshold": 30000, "fraction": 0}
    crops, _ = planned([index], {"foreground": shown, "normalize": {"target": "none"}})
    assert all((crops[number][1] == 60000).any() for number in range(12))


def test_foreground_may_be_judged_on_all_planes_of_a_channel_that_is_no_target(make_plate: MakePlate) -> None:
    pixels = np.full((1, 2, 3, 96, 80), 200, np.uint16)
    pixels[0, 0, 1, 80:, 60:] = 900
    index = make_plate(wells=("B02",), pixels={FieldKey("B02", "1"): pixels})
    shown = {"channel": "Phase", "threshold": 500, "fraction": 0.05}
    crops, view = planned([index], {"foreground": shown, "normalize": {"target": "none"}})
    assert view.foreground == Foreground(Role("Phase", "max"), 500, 0.05)
    plane = crops.fields[0].foreground
    assert plane is not None
    assert counts(plane, plane.whole).max() == 900


def test_fields_without_foreground_are_left_out_counted_and_named(make_plate: MakePlate) -> None:
    dark = {FieldKey("B03", "1"): np.full((1, 2, 3, 96, 80), 200, np.uint16)}
    crops, _ = planned([make_plate(pixels=dark)], {"foreground": {"threshold": 2000}})
    assert len(crops) == 2 * 3
    assert crops.dropped == ("P01 B03/1",)
    assert crops.messages == (
        "1 of 3 training fields left out: no crop has 0.50% above 2000 counts of 'Hoechst': P01 B03/1",
    )
    with pytest.raises(
        UserError, match=r"no training field holds 0\.50% above 60000 counts of 'Hoechst' in a crop"
    ):
        planned([make_plate(name="P02")], {"foreground": {"threshold": 60000}})


def test_bright_specks_do_not_decide_what_foreground_is(make_plate: MakePlate) -> None:
    pixels = stream(2).normal(200, 10, (1, 2, 3, 96, 80)).astype(np.uint16)
    pixels[..., 20:40, 20:40] = 900
    pixels[..., 60, 60:63] = 60000
    index = make_plate(pixels={FieldKey(well, "1"): pixels for well in ("B02", "B03", "C02")})
    _, view = planned([index], {})
    assert view.foreground is not None
    assert 300 < (view.foreground.threshold or 0) < 800


def test_where_targets_are_normalised_by_field_each_has_a_threshold_of_its_own(make_plate: MakePlate) -> None:
    """A stain ten times as bright in one well: one threshold would take all of it, or none of the rest."""
    noise = stream(1).normal(200, 10, (1, 2, 3, 96, 80)).astype(np.uint16)
    usual = noise.copy()
    usual[..., 30:50, 30:50] += 800
    wells = {"B02": usual, "B03": usual * 10, "C02": noise}
    index = make_plate(pixels={FieldKey(well, "1"): array for well, array in wells.items()})
    crops, view = planned([index], {"normalize": {"target_by": "field"}})
    assert view.foreground is not None
    assert view.foreground.threshold is None
    assert crops.fields[1].threshold == pytest.approx(10 * crops.fields[0].threshold, rel=0.02)
    assert crops.dropped == ("P01 C02/1",)
    assert "above Otsu's threshold of 'Hoechst'" in crops.messages[0]


def test_fields_smaller_than_a_crop_are_reflected_and_reported(make_plate: MakePlate) -> None:
    index = make_plate(wells=("B02",))
    crops, view = planned([index], crop=128)
    sources, targets = crops[0]
    assert sources.shape == (2, 128, 128)
    assert targets.shape == (1, 128, 128)
    whole, _ = read(view, index, FieldKey("B02", "1"))
    assert np.array_equal(sources[:, 16:112, 24:104], whole)
    assert np.array_equal(sources[:, :16, 24:104], whole[:, 16:0:-1])
    assert crops.messages == ("1 of 1 fields are smaller than a crop (128 pixels): reflected to fit",)


@pytest.mark.parametrize("crop", [32, 96])
def test_a_scaled_crop_has_the_edge_of_a_crop(make_plate: MakePlate, crop: int) -> None:
    crops, _ = planned([make_plate()], {}, {"scale": 0.3}, crop=crop)
    assert {crops[n][0].shape for n in range(9)} == {(2, crop, crop)}
    assert {crops[n][1].shape for n in range(9)} == {(1, crop, crop)}


def test_augmentation_leaves_targets_their_values(make_plate: MakePlate) -> None:
    index = make_plate()
    crops, _ = planned([index])
    lively = replace(crops, augment=AugmentRecipe(noise=1.0, blur=1.0, contrast=0.5, brightness=2.0))
    for number in range(9):
        assert np.array_equal(np.sort(crops[number][1].ravel()), np.sort(lively[number][1].ravel()))


def test_the_permuted_control_gives_every_field_the_stain_of_another_one(make_plate: MakePlate) -> None:
    indices = [make_plate(), make_plate(name="P02", wells=("B02", "B04"))]
    by_name = {index.plate.name: index for index in indices}
    crops, view = planned(indices, control="permuted")
    plain, _ = planned(indices)
    stains = {
        str(field.targets[0].image): read(view, by_name[field.plate], field.key)[1]
        for field in plain.fields
        if field.targets
    }
    assert [field.key for field in crops.fields] == [field.key for field in plain.fields]
    learnt = [str(field.targets[0].image) for field in crops.fields if field.targets]
    assert set(learnt) == set(stains), "each stain is learnt once"
    assert all(image != own for image, own in zip(learnt, stains, strict=True))
    for number in range(15):
        field = crops.field(number)
        assert field.targets
        sources, targets = crops[number]
        y, x = where(sources, read(view, by_name[field.plate], field.key)[0])
        stain = stains[str(field.targets[0].image)]
        assert stain is not None
        assert np.array_equal(targets, stain[:, y : y + 32, x : x + 32])
    assert "control=permuted: each of 5 training fields learns the stain of another one" in crops.messages


def test_the_permuted_control_depends_on_the_seed_alone(make_plate: MakePlate) -> None:
    index = make_plate(wells=("B02", "B03", "B04", "C02", "C03", "C04"))

    def exchanged(seed: int) -> list[str]:
        crops, _ = planned([index], control="permuted", seed=seed)
        return [str(field.targets[0].image) for field in crops.fields if field.targets]

    assert exchanged(0) == exchanged(0)
    assert len({tuple(exchanged(seed)) for seed in range(6)}) > 1


def test_times_of_a_field_do_not_exchange_their_stains_with_each_other(make_plate: MakePlate) -> None:
    index = make_plate(wells=("B02", "B03"), shape=(3, 2, 3, 64, 64))
    crops, _ = planned([index], control="permuted")
    for field in crops.fields:
        assert field.targets
        assert field.targets[0].image == index.image(
            FieldKey({"B02": "B03", "B03": "B02"}[field.key.well], "1")
        )
        assert field.targets[0].time == field.time


def test_a_field_that_is_alone_in_its_size_is_left_out_of_the_control(make_plate: MakePlate) -> None:
    large = make_plate(name="P02", wells=("D05",), shape=(1, 2, 3, 112, 80))
    crops, _ = planned([make_plate(), large], control="permuted")
    assert [str(field.key) for field in crops.fields] == ["B02/1", "B03/1", "C02/1"]
    assert crops.messages[-1] == (
        "1 training field is left out of the control: no other has their size: P02 D05/1"
    )
    with pytest.raises(UserError, match="control=permuted: no two training fields have one size"):
        planned([large], control="permuted")


def test_crops_of_the_control_hold_the_foreground_of_the_stain_they_show(make_plate: MakePlate) -> None:
    pixels = {}
    for i, well in enumerate(("B02", "B03", "C02")):
        array = np.full((1, 2, 3, 96, 80), 200, np.uint16)
        array[0, 1, 1, 10 + 25 * i : 16 + 25 * i, 60:66] = 5000
        pixels[FieldKey(well, "1")] = array
    shown = {"foreground": {"threshold": 1000, "fraction": 0.01}, "normalize": {"target": "none"}}
    crops, _ = planned([make_plate(pixels=pixels)], shown, control="permuted")
    assert all((crops[number][1] > 1000).any() for number in range(27))


def test_training_fields_that_lack_a_plane_are_left_out_and_counted_by_kind(make_plate: MakePlate) -> None:
    """A user sees how many fields do not train and for want of what; the others train."""
    shape = (1, 2, 2, 96, 80)
    short = {FieldKey("B03", "1"): np.zeros(shape, np.uint16)}
    whole = make_plate(pixels=short)
    unstained = make_plate("P02", existing={1: ()})
    crops, _ = planned([whole, unstained])
    assert {f"{field.plate} {field.key}" for field in crops.fields} == {"P01 B02/1", "P01 C02/1"}
    assert crops.messages[0] == (
        "4 of 6 training fields left out: 3 without target 'Hoechst', 1 without plane 2 of 'Phase' "
        "(P01 B03/1, P02 B02/1, P02 B03/1, P02 C02/1)"
    )
    assert set(crops.dropped) == {"P01 B03/1", "P02 B02/1", "P02 B03/1", "P02 C02/1"}


def test_if_all_training_fields_lack_a_plane_one_error_names_them(make_plate: MakePlate) -> None:
    shape = (1, 2, 2, 96, 80)
    noise = np.random.default_rng(0).poisson(500, shape).astype(np.uint16)
    short = {FieldKey(well, "1"): noise for well in ("B02", "B03", "C02")}
    with pytest.raises(UserError, match="all 3 training fields lack what is asked for") as caught:
        planned([make_plate(pixels=short)])
    assert "P01 B03/1 'Phase': plane 2; there are the planes 0, 1" in str(caught.value)
    assert "P01 C02/1" in str(caught.value)


def test_planning_reads_no_pixels(make_plate: MakePlate, monkeypatch: pytest.MonkeyPatch) -> None:
    index = make_plate()

    def refuse(*_: object) -> None:
        raise AssertionError("a store was opened")

    monkeypatch.setattr("hpc_isl.plates.pyramid.open_level", refuse)
    crops, _ = planned([index], {})
    with pytest.raises(AssertionError, match="a store was opened"):
        crops[0]
