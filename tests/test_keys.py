"""Keys of recipes: each one that `VERB --help` lists is read by that verb, and no other one is accepted.

A user should see a key refused, with why and what to do, where it would change the fingerprint alone.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml
from made_up_screen import save_model, write_screen
from other_plates import write_other
from scipy.ndimage import gaussian_filter
from used_plates import Here, computed

import hpc_isl
from hpc_isl.cli.help import KINDS, rows, stage_manual
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.submit import chain, sweep
from hpc_isl.errors import UserError
from hpc_isl.plates.store import write_labels
from hpc_isl.recipes.base import Recipe
from hpc_isl.recipes.load import RECIPES, load
from hpc_isl.recipes.strict import Strict, to_yaml
from hpc_isl.site import Site
from hpc_isl.stages.adopt import stage as adopt
from hpc_isl.stages.annotate import stage as annotate
from hpc_isl.stages.convert import stage as convert
from hpc_isl.stages.finetune import stage as finetune
from hpc_isl.stages.pretrain import stage as pretrain
from hpc_isl.stages.segment import stage as segment

# These read every key, whatever becomes of it: checking, hashing and writing down is no use.
PACKAGE = Path(hpc_isl.__file__).parent
ACCOUNTS = set((PACKAGE / "recipes").glob("*.py"))


class Reads:
    """Which keys of a verb's recipe the package reads, as `--help` writes them: `sources.N.channel`."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self._paths: dict[int, tuple[str, Any]] = {}  # keeps what it names: no id is used twice

    def __call__(self, value: Any, name: str, found: Any) -> None:
        top = isinstance(value, Recipe)
        if name not in type(value).model_fields or not (top or id(value) in self._paths):
            return
        path = "" if top else self._paths[id(value)][0]
        if not self._only_accounts():
            self.keys.add(f"{path}{name}")
        parts = found if isinstance(found, list) else [found]
        suffix = ".N." if isinstance(found, list) else "."
        for part in parts:
            if isinstance(part, Strict):
                self._paths.setdefault(id(part), (f"{path}{name}{suffix}", part))

    @staticmethod
    def _only_accounts() -> bool:
        reader = Path(sys._getframe(3).f_code.co_filename)
        return not reader.is_relative_to(PACKAGE) or reader in ACCOUNTS


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found, plain = Reads(), Strict.__getattribute__

    def spy(self: Strict, name: str) -> Any:
        value = plain(self, name)
        if not name.startswith("_") and name != "model_fields":
            found(self, name, value)
        return value

    monkeypatch.setattr(Strict, "__getattribute__", spy)
    return found


def keys_of(verb: str) -> set[str]:
    """As `VERB --help` lists them."""
    return {key for key, _, _ in rows(KINDS[verb], {})}


GIVEN = {
    "pretrain": ["plates=[P]", "sources=[{channel: a}]", "targets=[{channel: b}]"],
    "finetune": ["plates=[P]", "labels=nuclei"],
    "segment": ["plates=[P]", "model=M"],
    "convert": ["source=S", "out=P.zarr"],
    "adopt": ["plate=P.zarr"],
    "annotate": ["plate=P.zarr", "labels=nuclei"],
}

TINY = "net={encoder: tu-test_resnet, weights: null, decoder: [16, 8, 8, 4, 4]}"
EPOCH = "train={epochs: 1, batch: 2, micro_batch: 2, crop: 32, crops_per_field: 1, evaluate_every: 1}"
STEP = "train={epochs: 1, batch: 2, micro_batch: 2, crop: 32, crops_per_field: 2}"
SPLIT = "split={test: 0.2, validation: 0.2, stratify: cell_line}"


def test_every_key_of_pretrain_and_finetune_is_read(
    reads: Reads, tmp_path: Path, write_stained_plate: Callable[..., Any]
) -> None:
    torch.set_num_threads(1)
    index = write_stained_plate(tmp_path / "P01.zarr", size=64)
    squares = np.zeros((64, 64), np.uint32)
    squares[8:24, 8:24], squares[30:50, 30:50] = 1, 2
    for field in index.plate.fields:
        write_labels(index.image(field.key), "nuclei", squares, origin="human", boxes=[(0, 0, 64, 64)])
    given = [f"plates=[{tmp_path}/P01.zarr]"]
    isl = [EPOCH, "sources=[{channel: Brightfield}]", "targets=[{channel: Hoechst}]", TINY, "data.workers=0"]
    computed(pretrain, tmp_path, "S12", *given, *isl, SPLIT, "labels=nuclei")
    assert keys_of("pretrain") - reads.keys == set()

    reads.keys.clear()
    given.append(STEP)
    own = [*given, TINY, "labels=nuclei", "sources=[{channel: Brightfield}]", "data={workers: 0}"]
    computed(finetune, tmp_path, "cells", *own, SPLIT, "arm=random", "n=1", "objects={kind: cells}")
    start = [*given, "labels=nuclei", f"pretrained=[{tmp_path}/runs/pretrain/S12]"]
    paper = [
        "arm=random+isl",
        "objects={head: paper, slope: 5}",
        "fold=0",
        "test_wells_seen_in_pretraining=allow",
    ]
    computed(finetune, tmp_path, "paper", *start, *paper)
    script = Path(__file__).parent / "support" / "threshold_program.py"
    train = [sys.executable, str(script), "train", "{images}", "{labels}", "{model}", "{seed}"]
    predict = [sys.executable, str(script), "predict", "{images}", "{model}", "{out}"]
    program = json.dumps([{"name": "other", "train": train, "predict": predict}])
    computed(finetune, tmp_path, "program", *own, SPLIT, f"programs={program}", "arm=other", "n=1")
    with pytest.raises(UserError, match="arm=best"):
        finetune.plan(load("finetune", None, [*start, "arm=best"]))
    assert keys_of("finetune") - reads.keys == set()


def test_every_key_of_segment_is_read(reads: Reads, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    write_screen(tmp_path / "S1.zarr", wells=["B02"], fields=1)
    save_model(tmp_path / "runs" / "finetune" / "cells")
    words = [f"model={tmp_path}/runs/finetune/cells", f"plates=[{tmp_path}/S1.zarr]", "labels=found"]
    corrected = "measure={dark: 5, background_px: 32}"
    computed(
        segment, tmp_path, "whole", *words, "reference_labels={channel: Hoechst}", corrected, pools=Here()
    )
    tiled = ["predict={tile: 32}", "max_pixels_in_memory=1000", "block_size=64", "labels=large"]
    computed(segment, tmp_path, "tiled", *words, *tiled, pools=Here())
    # These are read where the library of the extra `features` is installed: tests/stages/test_measurements.py
    of_texture = {"measure.white", "measure.texture_px", "measure.grey_levels"}
    assert keys_of("segment") - reads.keys - of_texture == set()


def test_every_key_of_adopt_is_read(reads: Reads, tmp_path: Path) -> None:
    other = write_other(write_screen(tmp_path / "ours" / "P01.zarr", ["B02"], 1), tmp_path / "P01.zarr")
    computed(adopt, tmp_path, "A", f"plate={other}", "transmitted=[Brightfield]")
    assert keys_of("adopt") - reads.keys == set()


def test_every_key_of_convert_and_annotate_is_read(reads: Reads, tmp_path: Path) -> None:
    source, masks = tmp_path / "export", tmp_path / "masks"
    source.mkdir()
    masks.mkdir()
    blobs = gaussian_filter(np.random.default_rng(0).normal(0, 1, (48, 48)), 4)
    pixels = (4000 + 20000 * blobs).clip(0).astype(np.uint16)
    for name in ("B02_1", "B02_2"):
        tifffile.imwrite(source / f"{name}.tif", pixels)
    tifffile.imwrite(masks / "B02_1.tif", np.eye(48, dtype=np.uint8))
    (tmp_path / "table.csv").write_text("path,well,channel\nB02_1.tif,B02,1\n")
    regex = r'pattern={regex: "(?P<well>...)_(?P<channel>.)\\.tif"}'
    computed(convert, tmp_path, "P", f"source={source}", f"out={tmp_path}/P.zarr", regex)
    (source / "B03_1.tif").write_bytes((source / "B02_1.tif").read_bytes()[:200])
    computed(convert, tmp_path, "R", f"source={source}", f"out={tmp_path}/R.zarr", regex, "on_error=skip")
    table = f"pattern={{table: {tmp_path}/table.csv}}"
    convert.plan(load("convert", None, [f"source={source}", f"out={tmp_path}/Q.zarr", table]))
    second = tmp_path / "second"
    second.mkdir()
    tifffile.imwrite(second / "B02_1.tif", pixels)
    both = f"source=[{source},{second}]"
    convert.plan(load("convert", None, [both, f"out={tmp_path}/M.zarr", regex, "on_error=skip"]))
    assert keys_of("convert") - reads.keys == set()

    reads.keys.clear()
    plate = [f"plate={tmp_path}/P.zarr", "labels=drawn"]
    computed(annotate, tmp_path, "in", "action=import", *plate, f"source={masks}")
    drafts = ["action=draft", plate[0], "channel='1'"]
    computed(annotate, tmp_path, "draft", *drafts, "labels=drafted")
    computed(annotate, tmp_path, "draft2", *drafts, "labels=drafted2", "method=threshold")
    script = Path(__file__).parent / "support" / "threshold_program.py"
    command = json.dumps(
        {"predict": [sys.executable, str(script), "predict", "{images}", "{model}", "{out}"]}
    )
    computed(annotate, tmp_path, "draft3", *drafts, "labels=by", "method=command", f"command={command}")
    computed(annotate, tmp_path, "out", "action=export", *plate, f"out={tmp_path}/todo")
    computed(annotate, tmp_path, "next", "action=propose", plate[0], "labels=wanted", "n=1")
    assert keys_of("annotate") - reads.keys == set()


def test_every_key_of_sweeps_and_chains_is_read(reads: Reads, tmp_path: Path) -> None:
    sweep.sweep_request(None, ["stage=pretrain", "over={seed: [0, 1]}", *GIVEN["pretrain"]], Site(), None)
    assert keys_of("sweep") - reads.keys == set()

    reads.keys.clear()
    (tmp_path / "day.yaml").write_text(
        "steps:\n"
        "- {stage: convert, name: P01, set: {source: a, out: b.zarr}, site: laptop, site_set: {cpus: 1}}\n"
        "- {stop: look at it}\n"
    )
    console = Console(lambda text: None, tmp_path / "runs")
    chain.show_plan(tmp_path / "day.yaml", [], Site(), "day", console, False)
    assert keys_of("chain") - reads.keys == set()


# ---------------------------------------------------------------- keys that would change nothing


# For each that no verb reads another value than its default.
OTHER = {
    "predict.stain": "{finetune: true, segment: false}", "train.evaluate_every": "7", "train.patience": "3",
    "data.foreground": "{fraction: 0.1}", "data.normalize.target": "standard",
    "data.normalize.target_by": "field", "data.normalize.low": "1", "data.normalize.high": "90",
    "data.normalize.clip": "2",
}  # fmt: skip


@pytest.mark.parametrize("verb", RECIPES)
def test_a_key_of_a_shared_part_that_a_verb_has_no_use_for_is_no_key_of_it(verb: str) -> None:
    page = stage_manual(verb, "H")
    for key, why in RECIPES[verb].UNREAD.items():
        assert f" {key} " not in page
        value = yaml.safe_load(OTHER[key])
        given = json.dumps(value.get(verb, value) if isinstance(value, dict) else value)
        with pytest.raises(UserError, match=re.escape(f": no such key of {verb}: {why}")):
            load(verb, None, [*GIVEN[verb], f"{key}={given}"])


@pytest.mark.parametrize("verb", RECIPES)
def test_the_recipe_of_an_earlier_run_can_be_given_again(verb: str, tmp_path: Path) -> None:
    """A user who copies recipe.yaml from a run folder, which has every key, is not told of any."""
    more = {"annotate": ["action=draft", "channel=a"]}.get(verb, [])
    kept = load(verb, None, [*GIVEN[verb], *more])
    (tmp_path / "recipe.yaml").write_text(to_yaml(kept))
    assert load(verb, tmp_path / "recipe.yaml", []) == kept


@pytest.mark.parametrize(
    ("verb", "words", "messages"),
    [
        ("segment", ["predict.stain=false"], "predict.stain: no such key of segment"),
        ("finetune", ["predict.stain=true"], "predict.stain: no such key of finetune"),
        ("finetune", ["train.patience=3"], "annotations are not spent on stopping"),
        (
            "finetune",
            ["data.foreground={fraction: 0.1}"],
            "data.foreground.fraction: no such key of finetune",
        ),
        ("segment", ["predict.halo=64"], "predict.halo: changes nothing because predict.tile is null"),
        (
            "segment",
            ["reference_labels={labels: n, sigma: 3}"],
            "reference_labels.sigma: changes nothing because reference_labels.labels",
        ),
        ("finetune", ["objects={kind: nuclei, alpha: 3}"], "objects.alpha: .* objects.kind is nuclei"),
        ("finetune", ["objects={kind: cells, slope: 3}"], "objects.slope: "),
        ("finetune", ["train_on_all=true", "fold=1"], "fold: changes nothing because train_on_all"),
        ("pretrain", ["optim={schedule: constant, warmup: 0.3}"], "optim.warmup: .* is constant"),
        ("pretrain", ["split={file: s.csv, test: 0.5}"], "split.test: changes nothing because split.file"),
        ("pretrain", ["split={test_wells: [B02], test: 0.5}"], "split.test: .* split.test_wells"),
        ("pretrain", ["data.foreground={required: false, fraction: 0.1}"], "data.foreground.fraction"),
        ("pretrain", ["data.normalize={target: standard, low: 2}"], "data.normalize.low: "),
        ("convert", ["reader=harmony", "pattern={regex: a}"], "pattern: changes nothing because reader"),
        ("convert", ["codec={name: none, level: 9}"], "codec.level: .* because codec.name is none"),
        ("annotate", ["action=import", "source=S", "sigma=3"], "sigma: .* because action is import"),
        ("annotate", ["action=export", "out=O", "overwrite=true"], "overwrite: .* action is export"),
        ("annotate", ["action=draft", "channel=a", "accept=true"], "accept: .* action is draft"),
        ("annotate", ["action=propose", "channel=a"], "channel: .* action is propose"),
        ("annotate", ["action=draft", "channel=a", "threshold=li"], "threshold: .* method is local"),
        ("annotate", ["action=draft", "channel=a", "sigma=2"], "sigma: .* method is local"),
    ],
)
def test_a_key_that_means_nothing_beside_another_is_refused_with_both(
    verb: str, words: list[str], messages: str
) -> None:
    with pytest.raises(UserError, match=messages):
        load(verb, None, [*GIVEN[verb], *words])


def test_a_sweep_may_set_for_all_what_some_of_its_elements_use() -> None:
    words = ["stage=finetune", *GIVEN["finetune"], "objects.slope=5"]
    some = sweep.sweep_request(None, [*words, "over={objects.head: [same, paper]}"], Site(), None)
    assert len(some.elements or {}) == 2
    with pytest.raises(UserError, match=r"objects\.slope: changes nothing because objects\.head is same"):
        sweep.sweep_request(None, [*words, "over={seed: [0, 1]}"], Site(), None)


def test_a_stop_of_a_chain_runs_nothing(tmp_path: Path) -> None:
    day = tmp_path / "day.yaml"
    day.write_text("steps: [{stage: convert, set: {source: a, out: b.zarr}}, {stop: look, set: {a: 1}}]")
    with pytest.raises(UserError, match=r"steps\.1\.set: changes nothing because this step is a stop"):
        chain.show_plan(day, [], Site(), "day", Console(lambda text: None, tmp_path / "runs"), False)


def test_what_is_given_as_it_is_by_default_is_no_mistake() -> None:
    load("segment", None, [*GIVEN["segment"], "predict={halo: 128}"])
    load("finetune", None, [*GIVEN["finetune"], "objects={kind: nuclei, h_maxima: fit}"])
