"""BatchNorm that keeps the running statistics it came with; how statistics move is in test_loop.py."""

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from hpc_isl.errors import UserError
from hpc_isl.learning.network import unet
from hpc_isl.learning.network.checks import check_batchnorm
from hpc_isl.learning.training.batchnorm import freeze_batchnorm, running_statistics
from hpc_isl.learning.training.world import World
from hpc_isl.recipes.training import NetRecipe, TrainRecipe


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    net.train()
    for _ in range(5):
        net(2 + 3 * torch.randn(4, 1, 8, 8))
    return net


def statistics(net):
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def test_frozen_layers_normalise_in_training_as_in_evaluation():
    net = network()
    twin = copy.deepcopy(net).eval()
    freeze_batchnorm(net)
    net.train()
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(net(x), twin(x))
    assert net[0].training
    assert not torch.equal(copy.deepcopy(twin).train()(x), twin(x))


def test_frozen_statistics_stay_over_steps_of_several_micro_batches_while_weights_change():
    net = network()
    freeze_batchnorm(net)
    before = statistics(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    with running_statistics(net) as norms:
        assert norms.layers == []
        for _ in range(3):
            net.train()
            norms.start_step()
            for _ in range(2):
                net(torch.randn(4, 1, 8, 8)).square().mean().backward()
                norms.add()
            norms.end_step(World(), 2)
            optimizer.step()
    after = statistics(net)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    still = [name for name, p in net.named_parameters() if torch.equal(p, weights[name])]
    assert still == []  # the layers' own scale and shift among them


def test_with_a_frozen_encoder_the_other_layers_still_update_statistics():
    net = nn.Sequential(network(), nn.BatchNorm2d(2))
    freeze_batchnorm(net[0])
    net.train()
    before = statistics(net)
    with running_statistics(net) as norms:
        norms.start_step()
        net(torch.randn(4, 1, 8, 8))
        norms.add()
        norms.end_step(World(), 1)
    moved = {name for name, buffer in net.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_every_layer_of_a_timm_encoder_is_frozen_and_freezing_twice_changes_nothing():
    net = timm.create_model("test_efficientnet", pretrained=False)
    names = list(net.state_dict())
    freeze_batchnorm(net)
    freeze_batchnorm(net)
    net.train()
    layers = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert any(isinstance(layer, BatchNormAct2d) for layer in layers)
    assert not any(layer.training for layer in layers)
    assert list(net.state_dict()) == names


@pytest.mark.parametrize(
    ("net", "crop", "refused"),
    [
        ({"encoder": "resnet18"}, 32, True),
        ({"encoder": "resnet18"}, 64, False),
        ({"encoder": "resnet18", "decoder": [32, 16, 8, 8]}, 32, False),  # its deepest level has 2 x 2 pixels
        ({"encoder": "mit_b0"}, 32, False),  # normalises layers instead; cannot be built without memory
        ({"encoder": "tu-skresnet18"}, 64, True),  # normalises pooled features, whatever the crop
    ],
)
def test_one_crop_at_a_time_is_refused_where_training_would_fail(net, crop, refused):
    """A user reads at planning, before any queue, that one crop leaves BatchNorm nothing to normalise by,
    and what to take instead; where training works, nothing is said."""
    net, train = NetRecipe(**net, weights=None), TrainRecipe(steps=1, batch=9, micro_batch=1, crop=crop)
    network = unet.build(net, 2, 1).train()
    if refused:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network(torch.zeros(1, 2, crop, crop))
        with pytest.raises(UserError, match=r"micro_batch=1.*BatchNorm.*take train\.micro_batch=3") as said:
            check_batchnorm(net, train, 2)
        assert ("or train.crop=64" in str(said.value)) == (net.encoder == "resnet18")
    else:
        network(torch.zeros(1, 2, crop, crop))
        check_batchnorm(net, train, 2)


def test_frozen_statistics_need_no_second_crop():
    net, train = (
        NetRecipe(encoder="resnet18", weights=None),
        TrainRecipe(steps=1, batch=2, micro_batch=1, crop=32),
    )
    check_batchnorm(net, train, 2, frozen="all")
    check_batchnorm(net, train, 2, frozen="encoder")
