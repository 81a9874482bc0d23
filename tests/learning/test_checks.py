"""The table of encoders, compared with the libraries that it describes."""

import encoder_table
import huggingface_hub
import pytest
import segmentation_models_pytorch as smp
import timm
from safetensors.torch import save_file

from hpc_isl.errors import UserError
from hpc_isl.learning.network import checks, unet
from hpc_isl.recipes.training import NetRecipe

TABLE = checks._table()
MAKE = "write the table again: python tests/support/encoder_table.py"


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_the_table_is_that_of_the_installed_versions():
    assert TABLE, MAKE


def test_the_table_holds_the_encoders_of_the_library_that_can_be_tried_without_memory():
    own = {name for name in TABLE if not name.startswith("tu-")}
    left_out = set(smp.encoders.get_encoder_names()) - own
    assert own <= set(smp.encoders.get_encoder_names()), MAKE
    assert all(name.startswith("mit_") for name in left_out), MAKE  # which read numbers while built


def test_the_table_holds_names_that_timm_knows():
    names = [name[3:] for name in TABLE if name.startswith("tu-")]
    assert names
    assert all(timm.is_model(name) for name in names), MAKE


def test_the_table_lists_where_the_library_keeps_its_weights():
    for name, facts in TABLE.items():
        assert facts == encoder_table.weights_of(name), MAKE


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "tu-resnet10t", "mit_b0"])
def test_encoders_in_the_table_can_be_built_and_others_cannot(name):
    assert encoder_table.fits(name) == (name in TABLE)


@pytest.mark.parametrize("encoder", ["densnet121", "tu-resnet81", "mit_b9"])
def test_a_name_that_no_library_knows_is_refused_with_the_nearest(encoder):
    with pytest.raises(UserError, match="did you mean"):
        checks.check_names(NetRecipe(encoder=encoder))


def test_a_decoder_of_the_wrong_length_is_refused():
    with pytest.raises(UserError, match="3 to 5 numbers"):
        checks.check_names(NetRecipe(encoder="resnet18", decoder=[8, 4]))


def test_an_encoder_of_one_fixed_size_is_refused():
    with pytest.raises(UserError, match="one fixed size"):
        checks.check_weights(NetRecipe(encoder="tu-test_coatnet", weights=None), sources=2)


def test_random_weights_come_from_no_file():
    assert checks.check_weights(NetRecipe(encoder="resnet18", weights=None), sources=2) is None


def test_weights_in_the_cache_are_found_and_are_those_that_the_job_will_read(empty_cache):
    hub = TABLE["resnet18"]["imagenet"]
    folder = empty_cache / f"models--{hub['repo'].replace('/', '--')}" / "snapshots" / hub["revision"]
    folder.mkdir(parents=True)
    net = NetRecipe(encoder="resnet18", weights="imagenet")
    save_file(
        unet.build(net.model_copy(update={"weights": None}), 3, 1).encoder.state_dict(), folder / hub["file"]
    )
    found = checks.check_weights(net, sources=2)
    assert found == folder / hub["file"]
    assert found == unet.check_weights(net, sources=2)


@pytest.mark.parametrize("weights", ["imagenet", "imagnet", "/nowhere/w.pth"])
def test_missing_weights_are_refused_as_in_the_job(empty_cache, weights):
    with pytest.raises(UserError, match=r"net\.weights"):
        checks.check_weights(NetRecipe(encoder="resnet18", weights=weights), sources=2)


def test_a_table_of_other_versions_is_ignored(monkeypatch):
    monkeypatch.setattr(checks.metadata, "version", lambda name: "0.0")
    checks._table.cache_clear()
    try:
        assert not checks.is_known(NetRecipe(encoder="resnet18"))
        checks.check_names(NetRecipe(encoder="resnet18"))
    finally:
        checks._table.cache_clear()
