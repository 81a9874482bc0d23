"""Losses against independent implementations."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from hpc_isl.errors import UserError
from hpc_isl.learning.network.losses import PIXEL, loss_of, pcc
from hpc_isl.learning.network.losses import structural_similarity as ours


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 2, 40, 48, generator=generator)
    return target + 0.3 * torch.rand(target.shape, generator=generator), target


def test_pcc_is_that_of_numpy_for_each_crop_and_target(pair):
    prediction, target = pair
    found = pcc(prediction, target)
    assert found.shape == (3, 2)
    expected = np.corrcoef(prediction[1, 1].flatten(), target[1, 1].flatten())[0, 1]
    assert float(found[1, 1]) == pytest.approx(expected, abs=1e-4)


def test_pcc_of_a_constant_crop_is_zero_with_a_finite_gradient(pair):
    prediction = torch.zeros_like(pair[0], requires_grad=True)
    value = pcc(prediction, pair[1])
    value.sum().backward()
    assert torch.equal(value, torch.zeros(3, 2))
    assert torch.isfinite(prediction.grad).all()


def test_ssim_is_that_of_skimage(pair):
    prediction, target = (t[0, 0].double() for t in pair)
    expected = structural_similarity(
        prediction.numpy(), target.numpy(), data_range=1.0, gaussian_weights=True, use_sample_covariance=False
    )
    found = ours(pair[0], pair[1], 1.0)
    assert found.shape == (3, 2)
    assert float(found[0, 0]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", list(PIXEL))
def test_every_loss_is_least_for_the_target_and_has_a_gradient(pair, name):
    prediction, target = pair[0].requires_grad_(), pair[1]
    loss = loss_of(name, pearson=0.5, ssim=0.5)
    value = loss(prediction, target)
    value.backward()
    assert value > loss(target, target)
    assert float(loss(target, target)) == pytest.approx(0, abs=2e-3)
    assert torch.isfinite(prediction.grad).all()
    assert prediction.grad.abs().max() > 0


def test_charbonnier_is_nearly_the_absolute_difference(pair):
    expected = (pair[0] - pair[1]).abs().mean()
    assert float(loss_of("charbonnier")(*pair)) == pytest.approx(float(expected), rel=1e-3)


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'smooth_l1'"):
        loss_of("smoothl1")
