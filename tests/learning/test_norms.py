"""BatchNorm that keeps the running statistics it came with; how statistics move is in test_loop.py."""

import copy

import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from hpc_isl.learning.norms import hold_norms, running_statistics
from hpc_isl.learning.world import World


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    net.train()
    for _ in range(5):
        net(2 + 3 * torch.randn(4, 1, 8, 8))
    return net


def statistics(net):
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def test_held_layers_normalise_in_training_as_they_do_in_evaluation():
    net = network()
    twin = copy.deepcopy(net).eval()
    hold_norms(net)
    net.train()
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(net(x), twin(x))
    assert net[0].training
    assert not torch.equal(copy.deepcopy(twin).train()(x), twin(x))


def test_held_statistics_rest_over_steps_of_several_micro_batches_and_weights_move():
    net = network()
    hold_norms(net)
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


def test_where_an_encoder_is_held_the_rest_goes_on_taking_statistics():
    net = nn.Sequential(network(), nn.BatchNorm2d(2))
    hold_norms(net[0])
    net.train()
    before = statistics(net)
    with running_statistics(net) as norms:
        norms.start_step()
        net(torch.randn(4, 1, 8, 8))
        norms.add()
        norms.end_step(World(), 1)
    moved = {name for name, buffer in net.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_every_layer_of_an_encoder_of_timm_is_held_and_holding_twice_changes_nothing():
    net = timm.create_model("test_efficientnet", pretrained=False)
    names = list(net.state_dict())
    hold_norms(net)
    hold_norms(net)
    net.train()
    layers = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert any(isinstance(layer, BatchNormAct2d) for layer in layers)
    assert not any(layer.training for layer in layers)
    assert list(net.state_dict()) == names
