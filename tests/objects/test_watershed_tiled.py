"""Labels by blocks equal those of the watershed in memory, however blocks are cut and in whatever order."""

import hashlib
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import peak_memory
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label

from hpc_isl.errors import UserError
from hpc_isl.objects import watershed_tiled
from hpc_isl.objects.draft_labels import drop_small
from hpc_isl.objects.watershed import watershed
from hpc_isl.objects.watershed_tiled import tiled_watershed

quickly = settings(deadline=None, max_examples=20)
edges = st.tuples(st.integers(6, 40), st.integers(6, 40))


def relief(seed, shape, levels):
    """Hills between 0 and 1, in so many levels (0: hardly any equal), and a mask of some coverage."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), rng.choice([0, 1, 2, 4]))
    hills = (noise - noise.min()) / (np.ptp(noise) or 1)
    if levels:
        hills = np.floor(hills * levels) / levels
    mask = noise >= np.quantile(noise, rng.uniform(0, 0.95))
    return hills.astype(np.float32), mask ^ (rng.random(shape) < rng.choice([0, 0.02, 0.3]))


def by_blocks(distance, mask, h, block, **others):
    """The labels, from blocks that partition the image and come in raster order."""
    found, times, corners = np.zeros(mask.shape, np.uint32), np.zeros(mask.shape, int), []

    def read(box):
        return (None if distance is None else distance[box].copy()), mask[box].copy()

    def write(box, labels):
        assert labels.dtype == np.uint32
        found[box] = labels
        times[box] += 1
        corners.append((box[0].start, box[1].start))

    with tempfile.TemporaryDirectory() as scratch:
        count, small = tiled_watershed(
            read, write, mask.shape, h, block=block, scratch=Path(scratch), **others
        )
    assert (times == 1).all()
    assert corners == sorted(corners)
    assert count == found.max(initial=0)
    assert small == 0 or "min_area" in others
    return found


def digest(labels):
    return hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest()


def shuffled(pool, seed):
    """A map that starts its work in a random order, and answers in the order in which the work ends."""

    def run(function, items):
        items = list(items)
        random.Random(seed).shuffle(items)
        return (one.result() for one in as_completed([pool.submit(function, item) for item in items]))

    return run


def snake(rows, columns):
    """A line of one pixel that goes through the whole image, row after row."""
    mask = np.zeros((rows, columns), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    return mask


def spiral(edge):
    """A line of one pixel that winds to the middle of a square."""
    mask = np.zeros((edge, edge), bool)
    y, x, dy, dx, length = 0, 0, 0, 1, edge - 1
    while length > 0:
        for _ in range(2):
            for _ in range(length):
                mask[y, x] = True
                y, x = y + dy, x + dx
            dy, dx = dx, -dy
        length -= 2
    return mask


# ---------------------------------------------------------------- as in memory


@quickly
@given(
    seed=st.integers(0, 10**6), shape=st.tuples(st.integers(1, 60), st.integers(1, 60)), block=edges,
    h=st.sampled_from([0, 0.01, 0.1, 0.4, 1e30]), levels=st.sampled_from([0, 3, 16, 255]),
    workers=st.integers(1, 4), order=st.integers(0, 99),
)  # fmt: skip
def test_any_blocks_by_any_workers_in_any_order_give_the_hash_of_the_whole(
    seed, shape, block, h, levels, workers, order
):
    distance, mask = relief(seed, shape, levels)
    with ThreadPoolExecutor(workers) as pool:
        found = by_blocks(distance, mask, h, block, run=shuffled(pool, order))
    assert digest(found) == digest(watershed(distance, mask, h))


@quickly
@given(seed=st.integers(0, 10**6), block=edges, h=st.sampled_from([None, 0.1]), area=st.integers(0, 30))
def test_small_objects_are_dropped_and_the_rest_renumbered(seed, block, h, area):
    distance, mask = relief(seed, (60, 70), 16)
    whole = label(mask, connectivity=2) if h is None else watershed(distance, mask, h)
    np.testing.assert_array_equal(
        by_blocks(distance, mask, h, block, min_area=area), drop_small(whole, area)[0]
    )


@quickly
@given(seed=st.integers(0, 10**6), block=edges)
def test_without_h_objects_are_the_components_of_scikit_image(seed, block):
    mask = relief(seed, (75, 60), 0)[1]
    np.testing.assert_array_equal(by_blocks(None, mask, None, block), label(mask, connectivity=2))


@pytest.mark.parametrize("mask", [snake(61, 50), spiral(51)], ids=["snake", "spiral"])
@pytest.mark.parametrize("block", [(13, 17), (40, 200)])
def test_a_component_may_wind_through_all_blocks(mask, block):
    assert label(mask, connectivity=2).max() == 1
    distance = relief(3, mask.shape, 64)[0]
    np.testing.assert_array_equal(by_blocks(distance, mask, 0.1, block), watershed(distance, mask, 0.1))
    np.testing.assert_array_equal(by_blocks(None, mask, None, block), mask)


def test_more_objects_than_16_bits_can_count():
    mask = np.zeros((560, 520), bool)
    mask[::2, ::2] = True
    mask[::40, ::50] = mask[1::40, 1::50] = mask[2::40, 2::50] = True
    distance, large = relief(1, mask.shape, 0)[0], np.s_[:560, :520]
    found = by_blocks(distance, mask, 0.1, (97, 128))
    assert found.max() > 70_000
    assert digest(found) == digest(watershed(distance, mask, 0.1)[large])


def test_pixels_that_touch_at_the_corners_of_blocks_alone_are_one_object():
    mask = np.zeros((16, 16), bool)
    mask[[7, 8], [7, 8]] = mask[[3, 4], [12, 11]] = True
    found = by_blocks(mask.astype(float), mask, 0, (4, 4))
    assert found[7, 7] == found[8, 8] == 2
    assert found[3, 12] == found[4, 11] == 1
    assert found.max() == 2


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (7, 0), (1, 1), (1, 9), (9, 1), (10, 11)])
@pytest.mark.parametrize("h", [None, 0, 1])
def test_background_alone_has_no_objects_and_a_flat_foreground_has_one(shape, h):
    flat, full = np.full(shape, 7.0), np.ones(shape, bool)
    np.testing.assert_array_equal(by_blocks(flat, full, h, (4, 4)), full)
    np.testing.assert_array_equal(by_blocks(flat, ~full, h, (4, 4)), ~full)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.uint16, np.int32])
def test_a_full_mask_of_any_levels_is_flooded_by_its_pixels(dtype):
    distance = (relief(9, (70, 80), 0)[0] * 200).astype(dtype)
    full = np.ones(distance.shape, np.uint8)
    np.testing.assert_array_equal(by_blocks(distance, full, 3, (32, 32)), watershed(distance, full, 3))


# ---------------------------------------------------------------- what is given


@pytest.mark.parametrize("h", [None, 0.1])
def test_objects_beyond_the_ceiling_of_the_labels_are_refused_before_any_is_written(monkeypatch, h):
    monkeypatch.setattr(watershed_tiled, "MOST", 3)
    mask = np.eye(9, dtype=bool)[:, ::2]
    written = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        pytest.raises(UserError, match="5 objects: labels are uint32"),
    ):
        tiled_watershed(
            lambda box: (mask[box].astype(float), mask[box]), lambda *block: written.append(block),
            mask.shape, h, block=(4, 4), scratch=Path(scratch),
        )  # fmt: skip
    assert not written


def test_mistakes_are_named():
    mask = np.ones((8, 8), bool)
    with pytest.raises(UserError, match=r"blocks of \(0, 4\)"):
        by_blocks(None, mask, None, (0, 4))
    with pytest.raises(UserError, match="h=-1"):
        by_blocks(mask.astype(float), mask, -1, (4, 4))
    with pytest.raises(UserError, match="NaN or infinite"):
        by_blocks(np.full((8, 8), np.nan), mask, 1, (4, 4))


def test_a_large_image_takes_a_sixteenth_of_the_memory_and_gives_the_same_labels(tmp_path):
    edge, rng = 8192, np.random.default_rng(3)
    piece = ndimage.gaussian_filter(rng.random((1024, 1024)), 6, mode="wrap").astype(np.float32)
    piece = (piece - piece.mean()) / piece.std()
    distance = np.lib.format.open_memmap(tmp_path / "distance.npy", "w+", np.float32, (edge, edge))
    mask = np.lib.format.open_memmap(tmp_path / "mask.npy", "w+", bool, (edge, edge))
    for row in range(0, edge, 1024):
        for column in range(0, edge, 1024):
            tile = np.roll(piece, (int(rng.integers(1024)), int(rng.integers(1024))), (0, 1))
            distance[row : row + 1024, column : column + 1024] = 40 * tile
            mask[row : row + 1024, column : column + 1024] = tile > 0.5
    distance.flush()
    mask.flush()
    found = {}
    for way in ("whole", "blocks"):
        script = Path(peak_memory.__file__)
        told = subprocess.run(
            [sys.executable, script, tmp_path, way, str(edge)], capture_output=True, text=True, check=True
        )
        found[way] = told.stdout.split()
    assert found["blocks"][0] == found["whole"][0]
    assert int(found["blocks"][1]) < int(found["whole"][1]) / 16
