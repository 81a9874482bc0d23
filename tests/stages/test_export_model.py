"""The decoding of an exported network is that of segment, and its contract says all that is needed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_screen import save_model
from scipy.ndimage import gaussian_filter

from hpc_isl.cli.main import run_command
from hpc_isl.errors import UserError
from hpc_isl.learning.inference.images import predict_images
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network.contract import read_contract
from hpc_isl.learning.network.model import load
from hpc_isl.recipes.training import NormalizeRecipe
from hpc_isl.run import Run
from hpc_isl.stages.export import decode
from hpc_isl.stages.export.model import Cut, check_package, public_contract
from hpc_isl.stages.shared.decoding import Rule
from hpc_isl.stages.shared.decoding import decode as decoded


def maps(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    """(2, y, x) without equal values: a distance map and a logit, each of smooth noise."""
    noise = np.random.default_rng(seed).normal(size=(2, height, width))
    return np.stack([40 * gaussian_filter(plane, 3) * 6 for plane in noise]).astype(np.float32)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return save_model(tmp_path / "runs" / "finetune" / "cells")


@pytest.mark.parametrize("kind", ["cells", "nuclei"])
@pytest.mark.parametrize("seed", range(4))
def test_an_export_decodes_maps_to_the_very_labels_of_segment(kind: str, seed: int) -> None:
    both = maps(seed)[slice(None) if kind == "cells" else slice(1)]
    for h, area, logit in ((0.0, 0, 0.0), (6.0, 25, 0.0), (20.0, 60, -4.0)):
        expected, _ = decoded(both, Rule(kind, h, area, threshold=logit))
        contract = {"kind": kind, "h_maxima": h, "min_area_px": area, "mask_logit": logit}
        labels = decode.objects(both, contract)
        np.testing.assert_array_equal(labels, expected)
        assert labels.dtype == np.uint32
        assert labels.max() > (3 if kind == "cells" else 0)
        cut = Cut(torch.nn.Identity(), logit)(torch.from_numpy(both)[None]).numpy()
        again = decode.Objects(kind, h, area)(cut)
        assert again.shape == (1, 1, *expected.shape)
        np.testing.assert_array_equal(again[0, 0], expected)


def test_maps_without_any_object_have_none() -> None:
    contract = {"kind": "cells", "h_maxima": 1.0, "min_area_px": 0, "mask_logit": 0.0}
    assert not decode.objects(np.stack([maps(0)[0], np.full((90, 120), -1, np.float32)]), contract).any()


@pytest.mark.parametrize(
    "rule", [{"source": "standard"}, {"source": "percentile", "local_px": 9}, {"source": "none"}]
)
def test_an_export_shows_the_network_what_the_package_shows_it(run: Run, rule: dict[str, object]) -> None:
    """Whatever the size of the image: also of fewer pixels than are missing to a multiple of the stride."""
    from dataclasses import replace

    network, contract = load(run.model)
    contract = replace(contract, view=replace(contract.view, normalize=NormalizeRecipe.model_validate(rule)))
    content = public_contract(contract)
    predictor = Predictor.by_contract(network, contract, torch.device("cpu"))

    def forward(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels)).numpy()

    for shape in ((64, 96), (131, 75), (33, 9)):
        image = np.random.default_rng(3).integers(200, 4000, (1, *shape)).astype(np.uint16)
        seen = decode.normalised(image, content["normalize"])
        found = decode.maps_of(seen, forward, content["stride"])
        expected = predict_images(predictor, contract, image[None])[0]
        assert found.shape == (2, *shape)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_contract_of_an_export_says_what_is_needed_and_no_path(run: Run) -> None:
    content = public_contract(read_contract(run.model))
    assert content["sources"] == [{"channel": "Brightfield", "plane": 0}]
    assert content["outputs"] == ["distance_map", "mask_logit"]
    assert (content["h_maxima"], content["min_area_px"], content["mask_logit"]) == (2.0, 6, 0.0)
    assert (content["pixel_um"], content["stride"]) == (0.5, 32)
    assert content["normalize"] == {"source": "standard", "local_px": 0}
    assert str(run.folder.parent) not in json.dumps(content)


def test_what_a_package_cannot_say_is_refused(run: Run) -> None:
    from dataclasses import replace

    contract = read_contract(run.model)
    local = replace(contract.view, normalize=NormalizeRecipe(local_px=9))
    with pytest.raises(UserError, match=r"no step that subtracts a box mean.*take format=onnx"):
        check_package(replace(contract, view=local))
    with pytest.raises(UserError, match=r"predicts stains; take format=onnx"):
        check_package(replace(contract, task=None))
    with pytest.raises(UserError, match=r"data.flat_field=estimated, which an export does not hold"):
        public_contract(replace(contract, view=replace(contract.view, flat_field="estimated")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=x"], "export: say what"),
        (["model", "out=x"], "export model: model= must be given"),
        (["model=@", "out=x", "labels=nuclei"], "export model: labels= means nothing here"),
        (["labels", "model=@", "plate=p", "labels=a", "out=x"], "export labels: model= means nothing here"),
        (
            ["model=@", "out=x", "format=tensorflow"],
            "format=tensorflow: no such format; there are: 'onnx', 'bioimageio'",
        ),
        (["model=nothing", "out=x"], "nothing"),
    ],
)
def test_a_wrong_word_is_named(
    run: Run, words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [word.replace("@", str(run.folder)) for word in words]
    assert run_command(["export", *given, "--root", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(find_spec("onnx") is not None, reason="onnx is installed here")
def test_without_onnx_the_message_says_what_to_install(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["export", f"model={run.folder}", f"out={tmp_path / 'out'}"]) == 2
    assert "onnx, onnxruntime is not installed: pip install 'hpc-isl[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
