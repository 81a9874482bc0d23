"""Predicting whole fields, with and without tiles; and the model that remembers how."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hpc_isl.learning import model
from hpc_isl.learning.contract import Contract
from hpc_isl.learning.predict import predict
from hpc_isl.learning.unet import build
from hpc_isl.learning.view import Foreground, Role, View
from hpc_isl.mistake import Mistake
from hpc_isl.recipes.training import NetRecipe, PredictRecipe


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
    assert predict(Small(), field(*shape)).shape == (1, *shape)


def test_a_field_of_whole_strides_is_not_padded():
    sources, network = field(64, 96), Small()
    with torch.no_grad():
        expected = network(torch.from_numpy(sources)[None])[0]
    np.testing.assert_allclose(predict(network, sources), expected, atol=1e-6)


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
        predict(network, sources, tile=tile, halo=32), predict(network, sources), atol=2e-6
    )


def test_tiles_without_halo_differ_so_the_test_above_can_fail():
    sources, network = field(128, 128), Small()
    difference = np.abs(predict(network, sources, tile=32) - predict(network, sources))
    assert difference.max() > 1e-2


@pytest.mark.parametrize(
    ("tile", "halo", "key"), [(100, 32, "predict.tile=100"), (64, 20, "predict.halo=20")]
)
def test_a_grid_off_the_stride_is_refused(tile, halo, key):
    with pytest.raises(Mistake, match=f"{key}: a multiple of 32"):
        predict(Small(), field(64, 64), tile=tile, halo=halo)


def test_a_network_with_statistics_of_the_image_warns_when_tiled():
    network = nn.Sequential(nn.InstanceNorm2d(2), nn.Conv2d(2, 1, 1))
    with pytest.warns(UserWarning, match="predict.tile=null"):
        predict(network, field(64, 64), tile=32)
    predict(network, field(64, 64))


def test_a_gpu_too_small_for_a_field_is_told_of_tiles():
    class Large(nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(Mistake, match=r"too little memory for 64 × 96 pixels at once.*predict.tile"):
        predict(Large(), field(64, 96))


def test_bf16_is_near_fp32_and_comes_back_as_float32():
    sources, network = field(64, 64), Small()
    found = predict(network, sources, dtype=torch.bfloat16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, predict(network, sources), atol=0.05)


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
    np.testing.assert_array_equal(predict(found, sources), predict(network, sources))


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(Mistake, match="holds no model"):
        model.load(tmp_path)


def test_weights_of_another_model_are_refused(network, tmp_path):
    model.save(tmp_path, network, contract())
    path = tmp_path / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Mistake, match="not the weights that"):
        model.load(tmp_path)
