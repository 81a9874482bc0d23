"""Predicting whole fields, with and without tiles; and the model that remembers how."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hpc_isl.errors import UserError
from hpc_isl.learning.data.view import Foreground, Role, View
from hpc_isl.learning.inference.predict import Predictor, footprint
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import Contract
from hpc_isl.learning.network.unet import build
from hpc_isl.recipes.training import NetRecipe, PredictRecipe
from hpc_isl.tiles import tiles


class Small(nn.Module):
    """Pools by 4, so that the place on the grid matters, and reaches 14 pixels to each side."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fine, self.coarse = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 5, padding=2)
        self.out = nn.Conv2d(6, 1, 3, padding=1)

    def forward(self, x):
        low = self.coarse(nn.functional.max_pool2d(x, 4))
        return self.out(torch.cat([self.fine(x), nn.functional.interpolate(low, scale_factor=4)], 1).relu())


def field(y, x, seed=0):
    return np.random.default_rng(seed).normal(size=(2, y, x)).astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 96), (50, 70), (20, 33), (3, 64)])
def test_a_prediction_has_the_size_of_its_field(shape):
    found = Predictor(Small())(field(*shape))
    assert found.shape == (1, *shape)
    assert found.flags.c_contiguous


def test_a_field_of_whole_strides_is_not_padded():
    sources, network = field(64, 96), Small()
    with torch.no_grad():
        expected = network(torch.from_numpy(sources)[None])[0]
    np.testing.assert_allclose(Predictor(network)(sources), expected, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    y=st.integers(33, 200),
    x=st.integers(33, 200),
    tile=st.sampled_from([32, 64, 96]),
    seed=st.integers(0, 99),
)
def test_tiles_with_halo_enough_give_the_whole_field(y, x, tile, seed):
    sources, network = field(y, x, seed), Small()
    np.testing.assert_allclose(
        Predictor(network, tile=tile, halo=32)(sources), Predictor(network)(sources), atol=2e-6
    )


def test_tiles_without_halo_differ_so_the_test_above_can_fail():
    sources, network = field(128, 128), Small()
    difference = np.abs(Predictor(network, tile=32)(sources) - Predictor(network)(sources))
    assert difference.max() > 1e-2


@pytest.mark.parametrize(
    ("tile", "halo", "key"), [(100, 32, "predict.tile=100"), (64, 20, "predict.halo=20")]
)
def test_a_grid_off_the_stride_is_refused(tile, halo, key):
    with pytest.raises(UserError, match=f"{key}: a multiple of 32"):
        Predictor(Small(), tile=tile, halo=halo)(field(64, 64))


def test_a_network_with_statistics_of_the_image_warns_when_tiled():
    network = nn.Sequential(nn.InstanceNorm2d(2), nn.Conv2d(2, 1, 1))
    with pytest.warns(UserWarning, match="predict.tile=null"):
        Predictor(network, tile=32)(field(64, 64))
    Predictor(network)(field(64, 64))
    Predictor(network, tile=64)(field(64, 64))


def test_an_error_about_a_gpu_too_small_for_a_field_suggests_tiles():
    class Large(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=r"too little memory for 64 × 96 pixels at once.*predict.tile"):
        Predictor(Large())(field(64, 96))
    with pytest.raises(UserError, match=r"too little memory for 3 × 96 × 96 pixels.*predict.batch=1"):
        Predictor(Large(), tile=32, halo=32, batch=3)(field(200, 200))


def test_bf16_is_near_fp32_and_comes_back_as_float32():
    sources, network = field(64, 64), Small()
    found = Predictor(network, dtype=torch.bfloat16)(sources)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, Predictor(network)(sources), atol=0.05)


# ---------------------------------------------------------------- the grid


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    size=st.sampled_from([32, 64, 160, None]),
    halo=st.sampled_from([0, 32, 96]),
)
def test_tiles_own_each_pixel_once_and_read_boxes_of_one_shape(shape, size, halo):
    owned = np.zeros(shape, int)
    padded = [-(-n // 32) * 32 for n in shape]
    grid = list(tiles(shape, size, halo, 32))
    for tile in grid:
        owned[tile.own] += 1
        for own, read, end in zip(tile.own, tile.read, padded, strict=True):
            assert 0 <= read.start <= max(own.start - halo, 0)
            assert min(own.stop + halo, end) <= read.stop <= end
            assert read.start % 32 == read.stop % 32 == 0
    assert (owned == 1).all()
    assert len({tuple(read.stop - read.start for read in tile.read) for tile in grid}) == 1
    corners = [[own.start for own in tile.own] for tile in grid]
    assert corners == sorted(corners)


class Watched(Small):
    """Remembers the shapes that it was given, and how many called it at once."""

    def __init__(self):
        super().__init__()
        self.shapes, self.inside, self.most, self.threads = [], 0, 0, []

    def forward(self, x):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.shapes.append(tuple(x.shape))
        self.threads.append(torch.get_num_threads())
        time.sleep(0.002)
        result = super().forward(x)
        self.inside -= 1
        return result


@pytest.mark.parametrize(("batch", "passes"), [(1, 12), (4, 3), (5, 3), (50, 1)])
def test_all_passes_over_tiles_are_alike(batch, passes):
    network, sources = Watched(), field(200, 161)
    found = Predictor(network, tile=64, halo=32, batch=batch)(sources)
    assert network.shapes == [(min(batch, 12), 2, 128, 128)] * passes
    np.testing.assert_allclose(found, Predictor(Small())(sources), atol=2e-6)


def test_tiles_that_would_all_read_the_whole_field_are_one():
    network = Watched()
    Predictor(network, tile=64, halo=32, batch=4)(field(128, 96))
    assert network.shapes == [(1, 2, 128, 96)]


@settings(max_examples=25, deadline=None)
@given(
    y=st.integers(40, 300),
    x=st.integers(40, 200),
    tile=st.sampled_from([32, 64]),
    halo=st.sampled_from([0, 32, 64]),
    batch=st.integers(1, 5),
)
def test_blended_are_the_tiles_by_their_weights(y, x, tile, halo, batch):
    """Against the definition, over the whole image at once and in double precision."""
    sources, network, ramp = field(y, x), Small(), halo // 2
    total, weight = np.zeros((y, x)), np.zeros((y, x))
    padded = np.pad(sources, ((0, 0), (0, -y % 32), (0, -x % 32)), mode="reflect")
    for each in tiles((y, x), tile, halo, 32):
        part = np.zeros(padded.shape[1:])
        part[each.read] = Predictor(network)(padded[:, *each.read])[0]
        far = [
            np.maximum(np.maximum(own.start - np.arange(n), np.arange(n) - own.stop + 1), 0)
            for own, n in zip(each.own, (y, x), strict=True)
        ]
        bell = np.multiply.outer(*(np.maximum(1 - f / (ramp + 1), 0) for f in far))
        total += part[:y, :x] * bell
        weight += bell
    found = Predictor(network, tile=tile, halo=halo, batch=batch)(sources)
    np.testing.assert_allclose(found[0], total / weight, atol=5e-6)


# ---------------------------------------------------------------- images of any size


@settings(max_examples=25, deadline=None)
@given(
    y=st.integers(1, 400),
    x=st.integers(1, 200),
    tile=st.sampled_from([32, 64, None]),
    halo=st.sampled_from([0, 32, 64]),
    batch=st.integers(1, 5),
)
def test_an_image_predicted_row_by_row_has_the_same_bits(y, x, tile, halo, batch):
    sources, predictor = field(y, x), Predictor(Small(), tile=tile, halo=halo, batch=batch)
    found, end = np.full((1, y, x), np.nan, np.float32), 0

    def write(rows, pixels):
        nonlocal end
        assert rows.start == end < rows.stop
        found[:, rows], end = pixels, rows.stop

    predictor.into(lambda box: sources[:, *box].copy(), write, (y, x))
    assert end == y
    np.testing.assert_array_equal(found, predictor(sources))


def test_of_a_long_image_only_a_band_is_in_memory():
    read, done = [], [0]

    def part(box):
        rows, columns = box
        read.append((rows.stop - rows.start, rows.start - done[-1]))
        return np.ones((2, rows.stop - rows.start, columns.stop - columns.start), np.float32)

    Predictor(Small(), tile=64, halo=32, batch=2).into(
        part, lambda rows, _: done.append(rows.stop), (3000, 96)
    )
    assert max(high for high, _ in read) == 128
    assert max(ahead for _, ahead in read) <= 4 * 64  # the tiles of a pass, and of one ahead
    assert max(np.diff(done)) <= 2 * 64
    assert done[-1] == 3000


# ---------------------------------------------------------------- threads


def test_threads_are_set_for_a_pass_and_restored():
    network, before = Watched(), torch.get_num_threads()
    Predictor(network, threads=before + 1)(field(32, 32))
    assert network.threads == [before + 1]
    assert torch.get_num_threads() == before


def test_many_threads_may_predict_and_the_network_runs_for_one_at_a_time():
    network = Watched()
    predictor = Predictor(network, tile=32, halo=32, batch=2, threads=1)
    fields = [field(100, 100, seed) for seed in range(12)]
    expected = [predictor(each) for each in fields]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(predictor, fields))
    assert network.most == 1
    assert threading.active_count() < 20
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, other)


def test_repeated_runs_give_the_same_bits_with_one_number_of_threads(network):
    sources = field(200, 160)
    first = Predictor(network, tile=64, halo=32, batch=3, threads=1)
    again = replace(first, network=build(contract().net, 2, 1, seed=4, pretrained=False))
    np.testing.assert_array_equal(first(sources), again(sources))
    np.testing.assert_array_equal(first(sources), first(sources))


def test_a_compiled_network_predicts_the_same():
    sources, network = field(64, 96), Small()
    found = Predictor(network, compiled=True)(sources)
    np.testing.assert_allclose(found, Predictor(network)(sources), atol=2e-6)


# ---------------------------------------------------------------- memory

MEASURE = """
import re, sys
from pathlib import Path
import numpy as np
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network.unet import build
from hpc_isl.recipes.training import NetRecipe

def memory(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

predictor = Predictor(build(NetRecipe(encoder=sys.argv[1], weights=None), 3, 2), threads=1)
predictor(np.zeros((3, 64, 64), np.float32))
sources = np.ones((3, 768, 768), np.float32)
Path("/proc/self/clear_refs").write_text("5")  # the greatest from here on
before = memory("VmRSS")
predictor(sources)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux for the greatest memory")
@pytest.mark.parametrize("encoder", ["mobilenet_v2", "densenet121"])
def test_the_memory_of_a_pass_is_known_before_it(encoder):
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, encoder], capture_output=True, text=True, check=True, timeout=300
    )
    measured, expected = int(told.stdout), footprint(NetRecipe(encoder=encoder, weights=None), 768 * 768)
    assert measured / 1.5 < expected < measured * 1.5


def test_more_channels_and_more_pixels_take_more_memory():
    small, large = (
        NetRecipe(encoder="resnet18", weights=None, decoder=d) for d in ([64, 32, 16], [256, 128, 64])
    )
    assert footprint(small, 10**6) < footprint(large, 10**6)
    assert footprint(small, 2 * 10**6) == pytest.approx(2 * footprint(small, 10**6))


# ---------------------------------------------------------------- the model


def contract(**changes):
    view = View(
        sources=(Role("Phase", "focus+2"), Role("Phase", 3)),
        targets=(Role("Hoechst", "max", 1, (120.0, 3000.5)),),
        pixel_um=0.6,
        foreground=Foreground(Role("Hoechst", "max"), 800.0, 0.01),
    )
    values = {
        "view": view, "net": NetRecipe(encoder="resnet18", weights="imagenet", decoder=[16, 8, 8, 4, 4]),
        "predict": PredictRecipe(tile=64, halo=32), "precision": "fp32", "recipe": {"a": 1}, "digest": "d",
        "split": "s", "wells": {"train": {"P01": ["B02"]}}, "plates": {"P01": "f"}, "step": 7, "code": "0.1",
    }  # fmt: skip
    return Contract(**values | changes)


@pytest.fixture(scope="module")
def network():
    return build(contract().net, 2, 1, seed=4, pretrained=False).eval()


def test_a_model_is_read_back_as_it_was_written(network, tmp_path):
    model.save(tmp_path / "model", network, contract())
    found, about = model.load(tmp_path / "model")
    assert about == contract(weights=about.weights)
    sources = field(64, 64)
    np.testing.assert_array_equal(Predictor(found)(sources), Predictor(network)(sources))


def test_a_contract_describes_its_training_images_and_older_ones_do_not():
    own = contract(reference={"Phase focus+2": {"contrast": [-2.5, 0.2]}})
    content = json.loads(json.dumps(own.to_dict()))
    assert Contract.from_dict(content) == own
    del content["reference"], content["predict"]["batch"]
    assert Contract.from_dict(content) == contract(reference={})


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        model.load(tmp_path)


def test_weights_of_another_model_are_refused(network, tmp_path):
    model.save(tmp_path, network, contract())
    path = tmp_path / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="not the weights that"):
        model.load(tmp_path)
