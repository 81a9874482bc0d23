"""Crops of annotation boxes; each pixel of their plates holds where it lies, so that crops tell theirs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_isl.learning.data.annotated_crops import Annotated, AnnotatedCrops
from hpc_isl.learning.data.fields import field_view
from hpc_isl.learning.data.view import Role, View
from hpc_isl.learning.training.batches import batches
from hpc_isl.objects.distance import distance_map
from hpc_isl.objects.geodesic import geodesic_map
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, write_labels
from hpc_isl.recipes.training import AugmentRecipe, NormalizeRecipe, TrainRecipe

MakePlate = Callable[..., Index]
STILL = AugmentRecipe(flip=False, brightness=0, contrast=0)
LIVELY = AugmentRecipe(scale=0.3, brightness=0.2, contrast=0.1, noise=0.1)
KEY = FieldKey("B02", "1")
VIEW = View((Role("Phase", 0), Role("Phase", 1)), (), normalize=NormalizeRecipe(source="none"))
OBJECT = partial(distance_map, scale="object")
PIXELS = partial(distance_map, scale="pixels")


@pytest.fixture
def placed(make_plate):
    """placed(height, width, times=1) -> a plate of one field; plane 0 holds y, plane 1 x; and its labels."""

    def make(height: int = 96, width: int = 80, times: int = 1) -> tuple[Index, np.ndarray]:
        y, x = np.mgrid[:height, :width]
        pixels = np.zeros((times, 2, 3, height, width), np.uint16)
        pixels[:, 0, 0], pixels[:, 0, 1] = y, x
        index = make_plate(f"P{height}-{width}-{times}", wells=("B02",), pixels={KEY: pixels})
        labels = np.zeros((times, height, width), np.uint32)
        for moment in range(times):
            labels[moment, 5:20, 8:20], labels[moment, 12:30, 20:31] = 1, 2
            labels[moment, height // 2 :, width // 2 + moment : width // 2 + 12] = 3
        boxes = [(0, 0, height, width)]
        write_labels(
            index.image(KEY), "cells", labels if times > 1 else labels[0], origin="human", boxes=boxes
        )
        return index, labels

    return make


def crops(index, *boxes, edge=32, augment=STILL, seed=0, per_box=3, level=0, time=0, **options):
    """Of boxes (y0, x0, y1, x1) in pixels of the level."""
    view = View(VIEW.sources, (), level, 0.5 * 2**level, normalize=VIEW.normalize)
    field = field_view(view, index, KEY, time)
    return AnnotatedCrops(
        tuple(Annotated(field, index.image(KEY), "cells", level, (slice(y0, y1), slice(x0, x1)))
              for y0, x0, y1, x1 in boxes),
        edge, per_box, seed, augment, **options,
    )  # fmt: skip


def inside(sources, box):
    """Whether each pixel of a crop lies in the box, by what it holds."""
    (y, x), (y0, x0, y1, x1) = sources, box
    return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)


def test_a_sample_depends_on_seed_and_number_alone(placed):
    index, _ = placed()
    boxes = [(0, 0, 50, 50), (40, 30, 96, 80)]
    one = crops(index, *boxes, augment=LIVELY, distance=OBJECT)
    again = pickle.loads(pickle.dumps(one))
    forwards = [one[n] for n in range(14)]
    backwards = [again[n] for n in reversed(range(14))][::-1]
    for here, there in zip(forwards, backwards, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))
    assert len({sources.tobytes() for sources, _ in forwards}) == 14
    other = crops(index, *boxes, augment=LIVELY, distance=OBJECT, seed=1)
    assert not np.array_equal(one[0][0], other[0][0])


def test_loading_processes_give_the_same_samples_as_one_process(placed):
    index, _ = placed()
    one = crops(index, (0, 0, 50, 50), (40, 30, 96, 80), augment=LIVELY, distance=PIXELS, in_pixels=True)
    train = TrainRecipe(steps=2, batch=4, micro_batch=2, crop=32)
    alone = list(batches(one, train, last_step=2))
    shared = list(batches(one, train, last_step=2, workers=2))
    assert len(alone) == 4
    for here, there in zip(alone, shared, strict=True):
        assert here[:2] == there[:2]
        assert all(torch.equal(a, b) for a, b in zip(here[2:], there[2:], strict=True))


def test_every_box_gives_equally_many_crops_in_every_epoch(placed):
    index, _ = placed()
    boxes = [(0, 0, 32, 32), (50, 40, 96, 80)]
    one = crops(index, *boxes, edge=16)
    assert len(one) == 6
    for epoch in range(2):
        own = [one[number] for number in range(6 * epoch, 6 * epoch + 6)]
        first = [inside(sources, boxes[0]).any() for sources, _ in own]
        assert sorted(first) == [False] * 3 + [True] * 3


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize(("height", "width"), [(96, 80), (57, 41)])
def test_pixels_are_known_inside_the_box_alone_wherever_a_crop_lies(placed, height, width, data):
    index, labels = placed_once(placed, height, width)
    ys = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    xs = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    box = (ys[0], xs[0], ys[1], xs[1])
    edge = data.draw(st.integers(8, 48))
    one = crops(index, box, edge=edge, seed=data.draw(st.integers(0, 99)))
    sources, targets = one[data.draw(st.integers(0, 9))]
    tall, wide = min(edge, height), min(edge, width)
    top, left = (edge - tall) // 2, (edge - wide) // 2
    real = (slice(top, top + tall), slice(left, left + wide))
    known = np.zeros((edge, edge), bool)
    known[real] = inside(sources, box)[real]
    assert np.array_equal(targets[0], known.astype(np.float32))
    y, x = sources.astype(int)
    assert np.array_equal(targets[1], (known & (labels[0, y, x] > 0)).astype(np.float32))
    # As much of the box as the crop can hold.
    assert known.sum() == min(ys[1] - ys[0], tall) * min(xs[1] - xs[0], wide)


PLATES: dict = {}


def placed_once(placed, height, width):
    """One plate for all examples of a property."""
    if (height, width) not in PLATES or not PLATES[height, width][0].path.exists():
        PLATES[height, width] = placed(height, width)
    return PLATES[height, width]


@pytest.mark.parametrize("distance", [OBJECT, PIXELS], ids=["object", "pixels"])
def test_sources_mask_and_distance_stay_aligned_when_turned(placed, distance):
    index, labels = placed()
    box = (3, 6, 70, 61)
    whole = np.zeros(labels[0].shape, np.float32)
    whole[3:70, 6:61] = distance(labels[0, 3:70, 6:61])
    one = crops(index, box, augment=AugmentRecipe(brightness=0, contrast=0), distance=distance)
    turned = set()
    for number in range(24):
        sources, (known, mask, counts, found) = one[number]
        y, x = sources.astype(int)
        assert np.array_equal(known == 1, inside(sources, box))
        assert np.array_equal(mask, (labels[0, y, x] > 0) * known)
        assert np.array_equal(found, whole[y, x])
        assert np.array_equal(counts, known), "without whole_only the map counts wherever it is known"
        turned.add((np.sign(y[1, 0] - y[0, 0]), np.sign(y[0, 1] - y[0, 0]), np.sign(x[0, 1] - x[0, 0])))
    assert len(turned) >= 4


def test_sources_mask_and_distance_stay_aligned_when_magnified(placed):
    index, labels = placed()
    box = (3, 6, 70, 61)
    whole = np.zeros(labels[0].shape, np.float32)
    whole[3:70, 6:61] = PIXELS(labels[0, 3:70, 6:61])
    scaled = AugmentRecipe(flip=False, scale=0.3, brightness=0, contrast=0)
    one = crops(index, box, augment=scaled, distance=PIXELS, in_pixels=True)
    factors = []
    for number in range(12):
        sources, (known, mask, _counts, found) = one[number]
        rise = float(np.median(np.diff(sources[0], axis=0)))
        factors.append(1 / rise)
        # A place half-way between two pixels has two nearest ones.
        sure = (abs(sources % 1 - 0.5) > 0.02).all(axis=0)
        y, x = np.floor(sources + 0.5).astype(int)
        near = inside(np.stack([y, x]), box)
        assert np.array_equal(known[sure] == 1, near[sure])
        assert np.array_equal(mask[sure] == 1, (near & (labels[0, y, x] > 0))[sure])
        assert not found[mask == 0].any()
        # In the middle of objects a length grows with the magnification; at their rims it is between two.
        deep = sure & (whole[y, x] > 3) & (mask == 1)
        assert abs(found - whole[y, x] / rise)[deep].max(initial=0) < 1.5
    assert min(factors) < 0.9
    assert max(factors) > 1.1


def test_objects_are_measured_before_crops_cut_them(placed):
    index, labels = placed()
    box = (0, 0, 96, 80)
    one = crops(index, box, edge=8, distance=OBJECT)
    whole = OBJECT(labels[0])
    cut = 0
    for number in range(20):
        sources, targets = one[number]
        y, x = sources.astype(int)
        assert np.array_equal(targets[3], whole[y, x])
        cut += not np.allclose(targets[3], OBJECT(labels[0, y, x]))
    assert cut > 5


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_the_map_of_an_object_that_its_box_cuts_does_not_count(placed, scale):
    index, labels = placed()
    box = (3, 6, 70, 45)  # cuts object 3 and leaves the others whole
    augment = AugmentRecipe(brightness=0, contrast=0, scale=scale)
    one = crops(index, box, augment=augment, distance=partial(geodesic_map, scale="object"), whole_only=True)
    seen = set()
    for number in range(24):
        sources, (known, mask, counts, _found) = one[number]
        sure = (abs(sources % 1 - 0.5) > 0.02).all(axis=0)
        y, x = np.clip(np.floor(sources + 0.5).astype(int), 0, [[[95]], [[79]]])
        own = np.where(known == 1, labels[0, y, x], 0)
        assert np.array_equal((counts == 1)[sure], ((known == 1) & (own != 3))[sure])
        assert np.array_equal((mask == 1)[sure], (own > 0)[sure]), "of the mask all counts"
        seen |= set(np.unique(own[sure]))
    assert seen == {0, 1, 2, 3}


def test_lower_levels_and_odd_sizes(placed):
    index, _ = placed(57, 41)
    one = crops(index, (2, 3, 29, 21), edge=16, level=1)
    for number in range(6):
        sources, targets = one[number]
        # A pixel of level 1 is the mean of four; at odd edges, of those that are there.
        y, x = np.ceil((sources - 0.5) / 2).astype(int)
        assert y.max() <= 28
        assert x.max() <= 20
        assert np.array_equal(targets[0] == 1, inside(np.stack([y, x]), (2, 3, 29, 21)))


def test_times_of_a_field_have_their_own_labels(placed):
    index, labels = placed(times=2)
    box = (48, 30, 96, 80)
    masks = []
    for time in range(2):
        sources, targets = crops(index, box, time=time, edge=48)[0]
        y, x = sources.astype(int)
        assert np.array_equal(targets[1], (labels[time, y, x] > 0) * targets[0])
        masks.append(targets[1])
    assert not np.array_equal(*masks)


def test_crops_are_placed_on_objects_if_there_are_any(placed):
    index, labels = placed()
    full = crops(index, (0, 0, 96, 80), edge=12, per_box=40)
    held = np.mean([full[number][1][1].any() for number in range(40)])
    chance = (labels[0] > 0).mean()
    assert held > 0.75 > 4 * chance
    empty = crops(index, (0, 40, 40, 80), edge=12)
    for number in range(4):
        sources, targets = empty[number]
        assert np.array_equal(targets[0] == 1, inside(sources, (0, 40, 40, 80)))
        assert not targets[1].any()


def test_without_a_distance_map_there_are_two_targets_of_the_same_mask(placed):
    index, _ = placed()
    cells = crops(index, (0, 0, 96, 80), augment=LIVELY, distance=OBJECT)
    nuclei = replace(cells, distance=None)
    for number in range(4):
        assert nuclei[number][1].shape == (2, 32, 32)
        assert np.array_equal(cells[number][1][:2], nuclei[number][1])
        assert np.array_equal(cells[number][0], nuclei[number][0])
