"""Heads of networks that segment: what they say, what they begin with, and that models stay as they are."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from hpc_isl.errors import UserError
from hpc_isl.learning.data.view import Role, View
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import CONTRACT, Contract, Task, read_contract
from hpc_isl.learning.network.heads import ShiftedSigmoid, set_head, start_from
from hpc_isl.learning.network.unet import build
from hpc_isl.recipes.training import NetRecipe, PredictRecipe

NET = NetRecipe(encoder="tu-test_resnet", weights=None, decoder=[16, 16, 8])
TASKS = [
    Task("a", "nuclei"),
    Task("a", "nuclei", "paper"),
    Task("a", "nuclei", "paper", from_stain=True, span=65535.0, slope=7.0),
    Task("a", "nuclei", "stain", from_stain=True, slope=9.0, centre=0.31),
    Task("a", "nuclei", "stain"),
    Task("a", "cells", map="geodesic", mask_threshold=0.6),
    Task("a", "cells", scale="pixels"),
    Task("a", "cells", "paper"),
    Task("a", "cells", "paper", from_stain=True),
]


def network(task, seed=0, sources=2):
    net = build(NET, sources, 1 if task.from_stain else task.outputs, seed)
    set_head(net, task, seed)
    return net


@settings(deadline=None)
@given(st.floats(0.1, 10), st.sampled_from([1.0, 65535.0]), st.floats(-1, 2))
def test_the_shifted_sigmoid_rises_and_is_a_half_at_half_the_span(slope, span, x):
    head = ShiftedSigmoid(slope, span).double()
    low, half, high = torch.sigmoid(head(span * torch.tensor([x, 0.5, x + 0.01], dtype=torch.float64)))
    assert low < high
    assert float(half) == 0.5
    assert float(low) == pytest.approx(expit(slope * (x - 0.5)), rel=1e-9)


def test_the_stains_head_begins_as_a_threshold_of_the_predicted_stain_and_learns_beside_it():
    stain = build(NET, 2, 1, seed=5).eval()
    task = Task("a", "nuclei", "stain", from_stain=True, slope=9.0, centre=0.31)
    net = build(NET, 2, 1, seed=6)
    start_from(net, stain.state_dict(), head=True)
    set_head(net, task)
    x = torch.randn(2, 2, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), 9.0 * (stain(x) - 0.31))
    net(x).mean().backward()
    residual = net.segmentation_head.residual
    assert residual.weight.grad.any(), "the residual learns"
    assert net.segmentation_head[0].weight.grad.any(), "and so does the stain"


def test_the_papers_head_for_cells_predicts_background_as_well_as_objects():
    """A ReLU at the end would make negative logits impossible."""
    net = network(Task("a", "cells", "paper", from_stain=True))
    with torch.no_grad():
        net.segmentation_head[-1].bias.copy_(torch.tensor([0.0, -3.0]))
        assert (net.eval()(torch.randn(1, 2, 64, 64))[0, 1] < 0).any()


@pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.kind} {t.head} {t.from_stain} {t.scale}")
def test_a_saved_model_gives_the_same_outputs_to_the_bit(tmp_path, task):
    net = network(task, seed=3).eval()
    x = torch.randn(1, 2, 64, 64)
    model.save(tmp_path, net, contract(task))
    loaded, kept = model.load(tmp_path)
    assert kept.task == task
    with torch.no_grad():
        assert net(x).shape == (1, task.outputs, 64, 64)
        assert torch.equal(loaded(x), net(x))


def contract(task, targets=1):
    return Contract(
        view=View((Role("BF", 0), Role("BF", 1)), tuple(Role("DAPI", n) for n in range(targets))),
        net=NET, predict=PredictRecipe(), precision="fp32", recipe={}, digest="", split="", wells={},
        plates={}, step=1, code="0", task=task,
    )  # fmt: skip


def test_a_contract_from_before_there_were_tasks_is_read(tmp_path):
    net = build(NET, 2, 1).eval()
    model.save(tmp_path, net, contract(None))
    content = json.loads((tmp_path / CONTRACT).read_text())
    del content["task"]
    (tmp_path / CONTRACT).write_text(json.dumps(content))
    assert read_contract(tmp_path).task is None
    loaded, _ = model.load(tmp_path)
    x = torch.randn(1, 2, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))


def test_the_task_reads_back_from_plain_json():
    task = Task(
        "nuclei", "cells", "paper", True, 65535.0, 3.0, "pixels", 4.0, 5, "reference", "drafted", 6, 7
    )
    content = json.loads(json.dumps(contract(task).to_dict()))
    assert Contract.from_dict(content).task == task
    expected = asdict(task)
    expected["h"] = expected.pop("h_maxima")  # contracts keep the names of the first version
    for name in (
        "map",
        "mask_threshold",
        "centre",
        "confidence",
    ):  # and its keys, where the others say nothing new
        del expected[name]
    assert content["task"] == expected


@pytest.mark.parametrize("kind", ["nuclei", "cells"])
def test_all_arms_have_equal_heads_to_begin_with_whatever_was_drawn_before(kind):
    """The first layers of an arm with weights of a file are drawn for three channels, of others for two."""
    task = Task("a", kind)
    one, other = network(task, 5), network(task, 5, sources=3)
    assert len(list(one.segmentation_head)) == len(list(other.segmentation_head))
    ours, theirs = one.segmentation_head.state_dict(), other.segmentation_head.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(network(task, 6).segmentation_head[0].weight, one.segmentation_head[0].weight)


def test_a_new_head_is_drawn_as_the_library_draws_it_and_leaves_torchs_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    net = network(Task("a", "nuclei"))
    assert torch.equal(torch.rand(3), expected)
    weight, library = net.segmentation_head[0].weight, build(NET, 2, 1, 8).segmentation_head[0]
    assert not net.segmentation_head[0].bias.any()
    assert not library.bias.any()
    bound = float(np.sqrt(6 / (9 * weight.shape[1] + 9)))  # of Glorot and Bengio, 2010
    for found in (weight, library.weight):
        assert found.abs().max().item() == pytest.approx(bound, rel=0.1)


@pytest.mark.parametrize("head", [True, False])
def test_encoder_and_decoder_weights_are_loaded_and_the_heads_if_asked(head):
    learnt, fresh = build(NET, 2, 1, 1), build(NET, 2, 1, 2)
    own = fresh.segmentation_head[0].weight.clone()
    start_from(fresh, learnt.state_dict(), head=head)
    for part in ("encoder", "decoder"):
        ours, theirs = (getattr(net, part).state_dict() for net in (fresh, learnt))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    expected = learnt.segmentation_head[0].weight if head else own
    assert torch.equal(fresh.segmentation_head[0].weight, expected)


def test_a_head_of_other_outputs_does_not_prevent_loading_the_rest():
    start_from(build(NET, 2, 2), build(NET, 2, 5).state_dict(), head=False)


@pytest.mark.parametrize("sources", [2, 3])
def test_weights_of_another_network_are_refused_and_named(sources):
    other = NET.model_copy(update={"decoder": [32, 16, 8]}) if sources == 2 else NET
    with pytest.raises(UserError, match=r"tensors of the pretrained model do not fit.*(decoder|encoder)\."):
        start_from(build(NET, 2, 1), build(other, sources, 1).state_dict(), head=False)


def test_the_papers_head_stands_on_one_stain():
    with pytest.raises(UserError, match="stands on one predicted stain; the pretrained model predicts 2"):
        set_head(build(NET, 2, 2), Task("a", "nuclei", "paper", from_stain=True))
