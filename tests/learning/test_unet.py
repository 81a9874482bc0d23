"""The network and where its weights come from."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hpc_isl.errors import UserError
from hpc_isl.learning.network import weights
from hpc_isl.learning.network.unet import build, check_weights
from hpc_isl.recipes.training import NetRecipe

TINY = NetRecipe(encoder="resnet18", weights=None, decoder=[32, 16, 8, 8, 4])


def tiny(**changes):
    return TINY.model_copy(update=changes)


@pytest.fixture(scope="module")
def encoder():
    """Weights of an encoder of three sources, as they are found in files."""
    return {n: t.clone() for n, t in build(TINY, 3, 1, seed=5).encoder.state_dict().items()}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty cache, and a hub that refuses connections."""
    monkeypatch.setattr(weights.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(weights.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(
        weights.huggingface_hub, "hf_hub_url", lambda repo, file, revision=None: f"http://127.0.0.1:1/{repo}"
    )


@pytest.mark.parametrize(("sources", "outputs"), [(1, 1), (3, 1), (5, 2)])
def test_output_has_the_size_of_the_input_and_a_plane_per_target(sources, outputs):
    network = build(TINY, sources, outputs).eval()
    assert network(torch.zeros(1, sources, 64, 96)).shape == (1, outputs, 64, 96)


def test_the_output_may_be_negative():
    network = build(TINY, 1, 1).eval()
    assert network(torch.randn(2, 1, 64, 64)).min() < 0


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = build(TINY, 2, 1, seed=3).state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    two = build(TINY, 2, 1, seed=3).state_dict()
    other = build(TINY, 2, 1, seed=4).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["encoder.conv1.weight"], other["encoder.conv1.weight"])


def test_layers_that_the_unet_never_reaches_are_frozen():
    network = build(tiny(encoder="efficientnet-b0"), 1, 1)
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder._conv_head.weight", "encoder._bn1.weight", "encoder._bn1.bias"}


def test_an_unknown_encoder_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'densenet121'"):
        check_weights(NetRecipe(encoder="densnet121"))
    with pytest.raises(UserError, match=r"timm has no 'resnet81'.*did you mean"):
        check_weights(NetRecipe(encoder="tu-resnet81"))


def test_an_encoder_of_one_fixed_size_is_refused():
    with pytest.raises(UserError, match="one fixed size"):
        check_weights(NetRecipe(encoder="tu-test_coatnet", weights=None))


def test_a_decoder_of_the_wrong_length_is_refused():
    with pytest.raises(UserError, match="3 to 5 numbers"):
        build(tiny(decoder=[8, 4]), 1, 1)


@pytest.mark.parametrize(
    "net", [tiny(weights="imagenet"), NetRecipe(encoder="tu-resnet18", weights="imagenet")]
)
def test_offline_the_error_comes_at_once_and_names_the_remedies(offline, net):
    with pytest.raises(UserError, match=r"(?s)cannot be reached.*net.weights=/path/to.*net.weights=null"):
        check_weights(net)


def test_a_hub_that_does_not_answer_is_not_waited_for(offline, monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert not weights._answers(url, seconds=0.5)  # and comes back, though nothing ever answers


def test_weights_in_the_cache_need_no_network(offline, encoder, tmp_path):
    hub = weights.hub_file("resnet18", "imagenet")
    folder = tmp_path / "hub" / f"models--{hub.repo.replace('/', '--')}" / "snapshots" / hub.revision
    folder.mkdir(parents=True)
    save_file(encoder, folder / hub.file)
    network = build(tiny(weights="imagenet"), 3, 1)
    assert torch.equal(
        network.encoder.state_dict()["layer1.0.conv1.weight"], encoder["layer1.0.conv1.weight"]
    )


@pytest.mark.parametrize(
    "form", ["safetensors", "pth", "of a unet", "parallel", "with classifier", "wrapped"]
)
def test_a_local_file_is_read_in_every_format(encoder, tmp_path, form):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    state = dict(encoder)
    if form == "of a unet":
        state = {f"encoder.{n}": t for n, t in state.items()} | {"decoder.x": torch.zeros(1)}
    if form == "parallel":
        state = {f"module.encoder.{n}": t for n, t in state.items()}
    if form == "with classifier":
        state |= {
            "fc.weight": torch.zeros(10, 512),
            "fc.bias": torch.zeros(10),
            "other.weight": torch.zeros(2),
        }
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if form == "wrapped" else state, path)
    found = build(tiny(weights=str(path)), 3, 1).encoder.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in encoder.items())


def test_the_first_layer_is_adapted_to_the_number_of_sources(encoder, tmp_path):
    save_file(encoder, tmp_path / "w.safetensors")
    net = tiny(weights=str(tmp_path / "w.safetensors"))
    first = encoder["conv1.weight"]
    one, five = (build(net, n, 1).encoder.conv1.weight.detach() for n in (1, 5))
    np.testing.assert_allclose(one, first.sum(1, keepdim=True))
    np.testing.assert_allclose(five, first[:, [0, 1, 2, 0, 1]] * 3 / 5, rtol=1e-6)


def test_weights_of_as_many_sources_are_taken_as_they_are(tmp_path):
    state = build(TINY, 2, 1, seed=9).encoder.state_dict()
    torch.save(state, tmp_path / "w.pth")
    found = build(tiny(weights=str(tmp_path / "w.pth")), 2, 1).encoder.state_dict()
    assert torch.equal(found["conv1.weight"], state["conv1.weight"])


def test_a_timm_encoder_reads_a_local_file(tmp_path):
    import timm

    model = timm.create_model("resnet10t", pretrained=False)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    network = build(NetRecipe(encoder="tu-resnet10t", weights=str(tmp_path / "w.safetensors")), 3, 1)
    found = network.encoder.model.state_dict()["layer1.0.conv1.weight"]
    assert torch.equal(found, model.state_dict()["layer1.0.conv1.weight"])


def test_weights_of_another_encoder_are_refused_with_names(encoder, tmp_path):
    save_file(encoder, tmp_path / "w.safetensors")
    with pytest.raises(
        UserError, match=r"does not fit the encoder resnet34: \d+ of its \d+ tensors.*layer1.2"
    ):
        check_weights(tiny(encoder="resnet34", weights=str(tmp_path / "w.safetensors")))


def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with (tmp_path / "w.pth").open("wb") as stream:
        pickle.dump({"a": Evil()}, stream)
    with pytest.raises(UserError, match="holds code"):
        check_weights(tiny(weights=str(tmp_path / "w.pth")))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_torn_weights_file_is_named(encoder, tmp_path, name):
    path = tmp_path / name
    torch.save(encoder, path) if name.endswith("pth") else save_file(encoder, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=name):
        check_weights(tiny(weights=str(path)))


def test_a_name_the_library_does_not_know_lists_those_it_does():
    with pytest.raises(UserError, match="did you mean 'imagenet'"):
        check_weights(tiny(weights="imagnet"))
