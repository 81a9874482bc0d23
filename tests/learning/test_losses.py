"""Losses of images, and of masks and distance maps, against independent implementations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.losses import JaccardLoss
from skimage.metrics import structural_similarity

from hpc_isl.errors import UserError
from hpc_isl.learning.network.losses import (
    PIXEL,
    cross_entropy,
    jaccard,
    loss_of,
    object_loss,
    pcc,
    squared_error,
)
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


# ---------------------------------------------------------------- masks and distance maps

seeds = st.integers(0, 2**31)


def drawn(seed, outputs=1, size=8):
    """Predictions (3, outputs, y, x), and targets of which all is known."""
    rng = torch.Generator().manual_seed(seed)
    prediction = 3 * torch.randn(3, outputs, size, size, generator=rng)
    mask = (torch.rand(3, size, size, generator=rng) > 0.6).float()
    distance = mask * 255 * torch.rand(3, size, size, generator=rng)
    maps = [torch.ones_like(mask), mask, torch.ones_like(mask), distance][: 2 * outputs]
    return prediction, torch.stack(maps, 1), rng


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_the_loss_of_nuclei_is_the_librarys_jaccard_loss(seed):
    prediction, target, _ = drawn(seed)
    expected = JaccardLoss("binary")(prediction, target[:, 1:2])
    torch.testing.assert_close(object_loss("nuclei", 1.0)(prediction, target), expected)


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(0.1, 3000))
def test_the_loss_of_cells_is_squared_error_and_alpha_times_cross_entropy(seed, alpha):
    prediction, target, _ = drawn(seed, outputs=2)
    expected = F.mse_loss(prediction[:, 0], target[:, 3])
    expected += alpha * F.binary_cross_entropy_with_logits(prediction[:, 1], target[:, 1])
    torch.testing.assert_close(object_loss("cells", alpha)(prediction, target), expected)


@settings(deadline=None, max_examples=30)
@given(seeds, st.sampled_from(["nuclei", "cells"]), st.floats(0, 1))
def test_pixels_outside_of_boxes_change_neither_loss_nor_gradient(seed, kind, share):
    prediction, target, rng = drawn(seed, 1 if kind == "nuclei" else 2)
    known = (torch.rand(3, 8, 8, generator=rng) < share).float()
    target[:, ::2] = known[:, None]  # where the mask counts, and for cells where the map does
    other_target, other = target.clone(), prediction.clone()
    away = (known == 0)[:, None]
    other_target[:, 1::2] = torch.where(away, 1 - target[:, 1::2], target[:, 1::2])
    other = torch.where(away, -5 * prediction + 1, prediction)
    loss, found = object_loss(kind, 2000.0), []
    for output, drawn_ in ((prediction, target), (other, other_target)):
        leaf = output.clone().requires_grad_()
        value = loss(leaf, drawn_)
        value.backward()
        found.append((value.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not found[0][1][away.expand_as(prediction)].any()


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(0, 1))
def test_the_map_of_a_cut_object_teaches_nothing_and_its_mask_all(seed, share):
    prediction, target, rng = drawn(seed, outputs=2)
    target[:, 2] = (torch.rand(3, 8, 8, generator=rng) < share).float()
    leaf = prediction.requires_grad_()
    object_loss("cells", 2000.0)(leaf, target).backward()
    assert not leaf.grad[:, 0][target[:, 2] == 0].any()
    assert leaf.grad[:, 1].all()


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_a_box_counts_as_an_image_of_its_size_would(seed):
    prediction, target, _ = drawn(seed, outputs=2)
    target[:, 0] = 0
    target[:, 0, 2:7, 1:5] = 1
    cut = (slice(None), slice(2, 7), slice(1, 5))
    for loss, of in ((jaccard, 1), (cross_entropy, 1), (squared_error, 3)):
        whole = loss(prediction[:, 0], target[:, of], target[:, 0])
        alone = loss(prediction[:, 0][cut], target[:, of][cut], torch.ones(3, 5, 4))
        torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("kind", ["nuclei", "cells"])
def test_a_batch_without_known_pixels_has_a_finite_loss_and_changes_nothing(kind):
    prediction, target, _ = drawn(0, 1 if kind == "nuclei" else 2)
    target[:, ::2] = 0
    leaf = prediction.requires_grad_()
    value = object_loss(kind, 2000.0)(leaf, target)
    value.backward()
    assert torch.isfinite(value)
    assert not leaf.grad.any()


def test_a_crop_without_objects_still_teaches_background():
    """By itself it has no index, and the library's loss of it is 0; in a batch it counts for the union."""
    prediction, target, _ = drawn(0)
    target[1, 1] = 0
    leaf = prediction.requires_grad_()
    object_loss("nuclei", 1.0)(leaf, target).backward()
    assert (leaf.grad[1] > 0).all()
