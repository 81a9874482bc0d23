from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from skimage.filters import threshold_otsu

from hpc_isl.errors import UserError
from hpc_isl.learning.data.calibrate import view_of
from hpc_isl.learning.data.fields import foreground_threshold
from hpc_isl.learning.data.pixels import gain
from hpc_isl.learning.data.samples import read
from hpc_isl.learning.data.split import draw
from hpc_isl.learning.data.view import Role, View
from hpc_isl.plates.plate import Channel, FieldKey
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import Index, read_box
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.training import SplitRecipe
from hpc_isl.seeds import stream

MakePlate = Callable[..., Index]
Array = np.ndarray[Any, Any]
KEY = FieldKey("B03", "1")
PROFILE = {
    "Type": "Polynomial", "Coefficients": [[1.2], [0.1, -0.1], [-1.2, 0.0, -1.2]],
    "Origin": [39.5, 47.5], "Scale": [1 / 80, 1 / 96], "Dims": [80, 96],
}  # fmt: skip


def recipe(data: dict[str, Any] | None = None, **changes: Any) -> PretrainRecipe:
    content = {
        "plates": ["P01.zarr"],
        "sources": [{"channel": "Phase", "plane": [0, 2]}],
        "targets": [{"channel": "Hoechst", "plane": "max"}],
        "data": data or {},
    }
    return PretrainRecipe.model_validate(content | changes)


def viewed(indices: list[Index], asked: PretrainRecipe) -> View:
    return view_of(indices, draw(indices, SplitRecipe(test=0, validation=0)), asked)


def stored(index: Index, key: FieldKey, channel: int, planes: list[int], level: int = 0) -> Array:
    """Counts through the store alone, (z, y, x)."""
    return read_box(index.image(key), level, 0, channel, planes, slice(None), slice(None)).astype(float)


def test_a_field_is_standardised_by_plane_and_its_target_by_the_training_wells(make_plate: MakePlate) -> None:
    index = make_plate()
    sources, targets = read(viewed([index], recipe()), index, KEY)
    planes = stored(index, KEY, 0, [0, 2])
    means, sds = (f(planes, axis=(1, 2), keepdims=True) for f in (np.mean, np.std))
    assert np.allclose(sources, (planes - means) / sds, atol=1e-5)
    every = np.stack([stored(index, field.key, 1, [0, 1, 2]) for field in index.plate.fields])
    low, high = np.percentile(every, [5, 99.5])
    assert targets is not None
    assert targets.shape == (1, 96, 80)
    assert sources.dtype == targets.dtype == np.float32
    assert np.allclose(
        targets[0], (stored(index, KEY, 1, [0, 1, 2]).max(axis=0) - low) / (high - low), atol=5e-3
    )


def test_wells_that_do_not_train_change_no_number(make_plate: MakePlate) -> None:
    bright = np.full((1, 2, 3, 96, 80), 60000, np.uint16)
    asked = recipe()
    with_it = make_plate(pixels={FieldKey("C02", "1"): bright})
    split = draw([with_it], SplitRecipe(test_wells=["C02"], validation=0))
    without = make_plate(name="P02", wells=("B02", "B03"))
    found, expected = view_of([with_it], split, asked), viewed([without], asked)
    assert (found.targets, found.foreground) == (expected.targets, expected.foreground)
    assert viewed([with_it], asked).targets != expected.targets


@pytest.mark.parametrize(("target", "scale"), [("none", 1.0), ("max16", 65535.0)])
def test_raw_counts_stay_raw(make_plate: MakePlate, target: str, scale: float) -> None:
    index = make_plate()
    view = viewed([index], recipe({"normalize": {"target": target, "source": "none"}}))
    sources, targets = read(view, index, KEY)
    assert view.targets[0].numbers == (0.0, scale)
    assert np.array_equal(sources, stored(index, KEY, 0, [0, 2]))
    assert targets is not None
    assert np.allclose(targets[0] * scale, stored(index, KEY, 1, [0, 1, 2]).max(axis=0))


def test_by_field_a_target_takes_the_numbers_of_its_own_plane(make_plate: MakePlate) -> None:
    index = make_plate()
    rule = {"target": "percentile", "target_by": "field", "low": 10, "high": 90, "clip": 1.5}
    view = viewed([index], recipe({"normalize": rule}))
    plane = stored(index, KEY, 1, [0, 1, 2]).max(axis=0)
    low, high = np.percentile(plane, [10, 90])
    _, targets = read(view, index, KEY)
    assert view.targets[0].numbers is None
    assert targets is not None
    assert np.allclose(targets[0], np.clip((plane - low) / (high - low), -1.5, 1.5), atol=1e-4)


def test_two_views_of_one_plate_do_not_share_numbers(make_plate: MakePlate) -> None:
    index = make_plate()
    for local, low in ((0, 10), (0, 20), (7, 20), (9, 20)):
        rule = {"target_by": "field", "low": low, "local_px": local}
        sources, targets = read(viewed([index], recipe({"normalize": rule})), index, KEY)
        assert targets is not None
        assert np.percentile(targets, low) == pytest.approx(0, abs=1e-5)
        assert np.allclose(sources.std(axis=(1, 2)), 1, atol=1e-4)


def test_sources_by_percentile_use_the_first_and_the_last_but_one(make_plate: MakePlate) -> None:
    index = make_plate()
    sources, _ = read(viewed([index], recipe({"normalize": {"source": "percentile"}})), index, KEY)
    assert np.allclose(np.percentile(sources, [1, 99], axis=(1, 2)), [[0, 0], [1, 1]], atol=1e-5)


def test_the_vendors_profile_divides_before_statistics(make_plate: MakePlate) -> None:
    flat = Channel("Phase", fluorescent=False, flat_field={"Profile": {"Type": "Identity"}})
    index = make_plate(channels=(flat, Channel("Hoechst", flat_field={"Profile": PROFILE})))
    asked = recipe({"flat_field": "vendor", "normalize": {"target": "standard"}})
    sources, targets = read(viewed([index], asked), index, KEY)
    whole = (slice(0, 96), slice(0, 80))
    corrected = [
        stored(index, field.key, 1, [0, 1, 2]).max(axis=0) / gain(PROFILE, (96, 80), whole)
        for field in index.plate.fields
    ]
    assert targets is not None
    assert np.allclose(targets[0], (corrected[1] - np.mean(corrected)) / np.std(corrected), atol=1e-4)
    assert np.array_equal(sources, read(viewed([index], recipe()), index, KEY)[0])
    with pytest.raises(UserError, match="channel 'Hoechst': the plate states no flat-field profile"):
        viewed([make_plate(name="P02", channels=(flat, Channel("Hoechst")))], asked)


def test_an_estimated_profile_evens_out_the_ground_and_travels_with_the_view(make_plate: MakePlate) -> None:
    ramp = 1 + 0.5 * np.linspace(-1, 1, 96)[:, None] * np.ones(80)
    noise = stream(0).normal(1, 0.01, (4, 96, 80))
    keys = [FieldKey(well, "1") for well in ("B02", "B03", "C02", "C03")]
    planes = {key: 1000 * (i + 1) * ramp * noise[i] for i, key in enumerate(keys)}
    pixels = {
        key: np.broadcast_to(plane, (1, 2, 3, 96, 80)).astype(np.uint16) for key, plane in planes.items()
    }
    index = make_plate(pixels=pixels)
    other = make_plate(name="P02", wells=("C03",), pixels=pixels)
    data = {"flat_field": "estimated", "normalize": {"source": "none"}, "foreground": {"required": False}}
    view = viewed([index], recipe(data))
    sources, _ = read(view, other, keys[3])
    assert set(view.profiles) == {"Phase", "Hoechst"}
    assert np.allclose(sources / 4000, noise[3], atol=0.01)


NORMALISATIONS: list[dict[str, Any]] = [
    {
        "normalize": {"source": source, "target": target, "target_by": by, "local_px": local},
        "flat_field": flat,
    }
    for source, target, by, local, flat in [
        ("standard", "percentile", "wells", 0, "none"),
        ("percentile", "standard", "field", 0, "none"),
        ("standard", "percentile", "wells", 9, "none"),
        ("percentile", "percentile", "field", 16, "estimated"),
        ("standard", "max16", "wells", 31, "vendor"),
        ("none", "none", "wells", 64, "vendor"),
    ]
]


@pytest.mark.parametrize("data", NORMALISATIONS, ids=str)
@pytest.mark.parametrize("level", [0, 1])
def test_a_crop_is_the_same_box_of_the_whole_field(
    make_plate: MakePlate, data: dict[str, Any], level: int
) -> None:
    channels = tuple(Channel(name, flat_field={"Profile": PROFILE}) for name in ("Phase", "Hoechst"))
    index = make_plate(channels=channels, wells=("B03",))
    view = viewed([index], recipe(data | {"level": level}))
    sources, targets = read(view, index, KEY)
    assert sources.shape == (2, 96 >> level, 80 >> level)
    for y, x, height, width in [
        (0, 0, 20, 20),
        (3, 17, 20, 20),
        (28, 20, 20, 20),
        (0, 0, 48, 7),
        (47, 39, 1, 1),
    ]:
        box = (slice(y, y + height), slice(x, x + width))
        crop = read(view, index, KEY, box=box)
        assert crop[1] is not None
        assert targets is not None
        assert np.allclose(
            crop[0], sources[:, *box], rtol=1e-6, atol=2e-3 if data["normalize"]["source"] == "none" else 2e-6
        )
        assert np.array_equal(crop[1], targets[:, *box])


def test_the_box_mean_is_subtracted_before_the_numbers_are_found(make_plate: MakePlate) -> None:
    index = make_plate()
    sources, _ = read(viewed([index], recipe({"normalize": {"local_px": 15}})), index, KEY)
    planes = stored(index, KEY, 0, [0, 2])
    local = planes - np.stack([ndimage.uniform_filter(plane, 15) for plane in planes])
    expected = (local - local.mean(axis=(1, 2), keepdims=True)) / local.std(axis=(1, 2), keepdims=True)
    assert np.allclose(sources, expected, atol=1e-4)


def test_a_view_survives_json_and_reads_the_same(make_plate: MakePlate) -> None:
    index = make_plate()
    view = viewed([index], recipe({"flat_field": "estimated", "normalize": {"local_px": 9, "clip": 2}}))
    again = View.from_dict(json.loads(json.dumps(view.to_dict())))
    assert again == view
    first, second = read(view, index, KEY), read(again, index, KEY)
    assert np.array_equal(first[0], second[0])


# ---------------------------------------------------------------- planes


def test_focus_is_found_for_each_field_and_channel(make_plate: MakePlate) -> None:
    pixels = np.stack([[np.full((96, 80), 1000, np.uint16)] * 3] * 2)[None]
    sharp = pixels.copy()
    sharp[0, 0, 1, ::3], sharp[0, 1, 2, ::3] = 2000, 3000
    index = make_plate(pixels={KEY: sharp}, z_um=(0.0, 4.0, 8.0))
    asked = recipe(
        {"normalize": {"source": "none", "target": "none"}, "foreground": {"required": False}},
        sources=[{"channel": "Phase", "plane": p} for p in ("focus", "focus-1", "focus+4um")],
        targets=[{"channel": "Hoechst", "plane": "focus"}],
    )
    sources, targets = read(viewed([index], asked), index, KEY)
    assert np.array_equal(sources, sharp[0, 0, [1, 0, 2]])
    assert targets is not None
    assert np.array_equal(targets[0], sharp[0, 1, 2])


def test_planes_that_were_not_imaged_take_no_part_in_a_projection(make_plate: MakePlate) -> None:
    pixels = np.stack([[np.full((96, 80), 1000, np.uint16)] * 3] * 2)[None]
    pixels[0, 1, 0], pixels[0, 1, 2] = 0, 3000
    index = make_plate(pixels={KEY: pixels}, existing={1: (1, 2)})
    data = {"normalize": {"source": "none", "target": "none"}, "foreground": {"required": False}}
    for how, value in (("mean", 2000), ("min", 1000), ("max", 3000)):
        asked = recipe(data, targets=[{"channel": "Hoechst", "plane": how}])
        _, targets = read(viewed([index], asked), index, KEY)
        assert targets is not None
        assert (targets == value).all()


def test_acquisitions_of_one_field_are_read_together(make_plate: MakePlate) -> None:
    index = make_plate(acquisitions=(0, 1), wells=("B02", "B03"))
    asked = recipe(
        {"normalize": {"source": "none", "target": "none"}},
        sources=[{"channel": "Phase", "plane": 0, "acquisition": 0}],
        targets=[{"channel": "Hoechst", "plane": 1, "acquisition": 1}],
    )
    sources, targets = read(viewed([index], asked), index, KEY)
    assert targets is not None
    assert np.array_equal(sources, stored(index, KEY, 0, [0]))
    assert np.array_equal(targets, stored(index, replace(KEY, acquisition=1), 1, [1]))
    mixed = recipe(sources=[{"channel": "Phase", "acquisition": 0}], targets=[{"channel": "Hoechst"}])
    with pytest.raises(UserError, match=r"has the acquisitions 0, 1; .*'Hoechst' does not"):
        viewed([index], mixed)
    with pytest.raises(UserError, match="has no acquisition 3; there are: '0', '1'"):
        viewed([index], recipe(sources=[{"channel": "Phase", "acquisition": 3}]))


# ---------------------------------------------------------------- other plates


def test_on_another_plate_channels_are_found_by_name_and_targets_may_be_absent(make_plate: MakePlate) -> None:
    index = make_plate()
    view = viewed([index], recipe())
    pixels = np.ascontiguousarray(stored(index, KEY, 0, [0, 1, 2]).astype(np.uint16)[None, None])
    alone = make_plate(
        name="P02", channels=(Channel("Phase"),), pixels={KEY: pixels}, shape=(1, 1, 3, 96, 80)
    )
    sources, targets = read(view, alone, KEY)
    assert targets is None
    assert np.array_equal(sources, read(view, index, KEY)[0])
    both = np.concatenate([pixels, pixels], axis=1)
    turned = make_plate(name="P03", channels=(Channel("Hoechst"), Channel("Phase")), pixels={KEY: both})
    assert np.array_equal(read(view, turned, KEY)[0], sources)
    with pytest.raises(UserError, match=r"has no channel 'Phase'; .*[Tt]here are: 'DIC', 'Hoechst'"):
        read(view, make_plate(name="P04", channels=(Channel("DIC"), Channel("Hoechst"))), KEY)


def test_the_channel_that_shows_foreground_is_needed_for_training_alone(make_plate: MakePlate) -> None:
    names = ("Phase", "Hoechst", "GFP")
    index = make_plate(channels=tuple(map(Channel, names)), shape=(1, 3, 3, 96, 80))
    view = viewed([index], recipe({"foreground": {"channel": "GFP"}}))
    sources, targets = read(view, make_plate(name="P02"), KEY)
    assert sources.shape == (2, 96, 80)
    assert targets is not None


def test_on_a_plate_with_smaller_pixels_the_level_of_the_same_size_is_read(make_plate: MakePlate) -> None:
    view = viewed([make_plate(pixel_um=0.6)], recipe())
    fine = make_plate(name="P02", pixel_um=0.3)
    assert read(view, fine, KEY)[0].shape == (2, 48, 40)
    with pytest.raises(
        UserError, match=r"no pixels of 0\.6 µm; it has 0\.25 µm × 1, 2, 4, … on levels 0 to 2"
    ):
        read(view, make_plate(name="P03", pixel_um=0.25), KEY)
    with pytest.raises(UserError, match="no pixels of level 3; it has levels 0 to 2"):
        read(replace(view, level=3), make_plate(name="P04", pixel_um=None), KEY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": [{"channel": "Fase"}]}, "P01.zarr: has no channel 'Fase'; did you mean 'Phase'"),
        ({"targets": [{"channel": "DAPI"}]}, "has no channel 'DAPI'; there are: 'Phase', 'Hoechst'"),
        ({"data": {"foreground": {"channel": "GFP"}}}, "has no channel 'GFP'"),
        (
            {"data": {"normalize": {"low": 50, "high": 50}}},
            "target 'Hoechst': nearly all pixels of the training",
        ),
    ],
)
def test_a_missing_channel_is_reported_at_planning(make_plate: MakePlate, changes: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        viewed([make_plate()], recipe(**changes))


def test_plates_of_different_pixel_size_or_type_do_not_train_together(make_plate: MakePlate) -> None:
    first = make_plate(pixel_um=0.6)
    with pytest.raises(UserError, match=r"P01 0\.6 µm, P02 0\.3 µm; train on plates of one size"):
        viewed([first, make_plate(name="P02", pixel_um=0.3)], recipe())
    eight = {KEY: np.zeros((1, 2, 3, 96, 80), np.uint8)}
    small = make_plate(name="P03", pixel_um=0.6, wells=("B03",), pixels=eight)
    with pytest.raises(UserError, match="pixels of the types uint16, uint8"):
        viewed([first, small], recipe())


def test_several_plates_share_one_view(make_plate: MakePlate) -> None:
    one, two = make_plate(wells=("B02",)), make_plate(name="P02", wells=("B02", "B03"))
    view = viewed([one, two], recipe())
    every = [stored(i, f.key, 1, [0, 1, 2]) for i in (one, two) for f in i.plate.fields]
    low, high = np.percentile(np.stack(every), [5, 99.5])
    assert view.targets == (Role("Hoechst", "max", None, view.targets[0].numbers),)
    assert view.targets[0].numbers == pytest.approx((low, high - low), rel=5e-3)
    assert view.pixel_um == 0.5


def test_the_threshold_of_foreground_is_scikit_images_of_logarithms() -> None:
    rng = np.random.default_rng(1)
    dark, bright = rng.normal(60, 12, 9000), rng.normal(180, 15, 4000)
    pixels = np.concatenate([dark, bright]).clip(0, 255).astype("uint8").reshape(1, 1, 1, 100, 130)
    histogram = measure(pixels).histograms[0]
    light = np.log(histogram.centers + histogram.percentile(50))
    darker = np.searchsorted(light, threshold_otsu(hist=(histogram.counts, light)))
    # Ours lies in the middle of the gap between the classes, scikit-image's at its lower end.
    assert np.array_equal(pixels > foreground_threshold(histogram), pixels > histogram.centers[darker])
