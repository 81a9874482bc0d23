"""The training loop: the same numbers however the work is shared, stopped or killed."""

import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hpc_isl.errors import UserError
from hpc_isl.learning.network.losses import loss_of
from hpc_isl.learning.network.unet import build
from hpc_isl.learning.training.batch_plan import check_micro_batches
from hpc_isl.learning.training.checkpoint import Checkpoints
from hpc_isl.learning.training.loop import Hooks, Progress, train
from hpc_isl.learning.training.optim import groups_of, optimizer_of, rate
from hpc_isl.learning.training.world import World
from hpc_isl.recipes.training import NetRecipe, OptimRecipe, TrainRecipe

SCRIPT = Path(__file__).with_name("ranks.py")
spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
ranks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ranks)


def start(folder, size, *settings):
    """`size` real processes, and their exit codes when all have ended."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), str(size), *settings],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in processes]
    return [process.returncode for process in processes], "\n".join(said)


def load(folder):
    return torch.load(folder / "result.pt", weights_only=True)


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, to compare with; threads as in the processes that tests start."""
    torch.set_num_threads(1)
    return ranks.run(tmp_path_factory.mktemp("alone"), World())


@pytest.fixture
def trained(tmp_path):
    """train(...) with small defaults and what it reported."""

    def run(network=None, *, loss=None, steps=6, optim=None, hooks=None, groups=None, **recipe):
        settings, default = ranks.recipes(steps=steps)
        settings = settings.model_copy(update=recipe)
        reported = {}
        hooks = {"report": lambda step, values: reported.update({step: values})} | (hooks or {})
        hooks = Hooks(ranks.batches(settings, steps, 0, 1), **hooks)
        network = network or ranks.network()
        checkpoints = Checkpoints(tmp_path / "checkpoints", "digest", log=lambda text: None)
        progress, finished = train(
            network, loss or loss_of("l1"), hooks, settings, optim or default, steps, World(), checkpoints,
            groups=groups,
        )  # fmt: skip
        assert finished == (progress.step == steps or progress.misses == recipe.get("patience"))
        return network, progress, reported

    return run


def test_training_lowers_the_loss(trained):
    *_, reported = trained(steps=60, optim=OptimRecipe(lr=3e-2))
    assert reported[60]["loss"] < 0.5 * reported[1]["loss"]
    assert reported[60].keys() == {"loss", "lr", "grad_norm", "step_s", "wait_s"}


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(trained):
    torch.manual_seed(0)
    network = nn.Conv2d(1, 1, 3, padding=1)
    twin = nn.Conv2d(1, 1, 3, padding=1)
    twin.load_state_dict(network.state_dict())
    found = []
    trained(network, steps=1, hooks={"report": lambda *_: found.extend(p.grad for p in network.parameters())},
            optim=OptimRecipe(clip_norm=None))  # fmt: skip
    sources, targets = (
        torch.cat(t) for t in zip(*(ranks.micro_batch(0, j, 2) for j in range(4)), strict=True)
    )
    (twin(sources) - targets).abs().mean().backward()
    for one, two in zip(found, twin.parameters(), strict=True):
        torch.testing.assert_close(one, two.grad, rtol=1e-5, atol=1e-7)


def test_the_norm_of_gradients_is_clipped(trained):
    network = nn.Conv2d(1, 1, 3, padding=1)
    *_, reported = trained(network, steps=1, optim=OptimRecipe(clip_norm=1e-3))
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in network.parameters()))
    assert reported[1]["grad_norm"] > 1e-3
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_running_statistics_move_once_per_step_towards_the_mean_of_the_micro_batches(trained):
    network = nn.Sequential(nn.BatchNorm2d(1, momentum=0.2), nn.Conv2d(1, 1, 1))
    trained(network, steps=1)
    sources = [ranks.micro_batch(0, j, 2)[0] for j in range(4)]
    variance = torch.stack([s.var() for s in sources]).mean()
    mean = torch.stack([s.mean() for s in sources]).mean()
    assert float(network[0].running_var) == pytest.approx(float(0.8 + 0.2 * variance), rel=1e-5)
    assert float(network[0].running_mean) == pytest.approx(float(0.2 * mean), rel=1e-4)
    assert int(network[0].num_batches_tracked) == 4
    assert network[0].momentum == 0.2


def test_two_processes_compute_what_one_does(alone, tmp_path):
    codes, said = start(tmp_path, 2)
    assert codes == [0, 0], said
    both = load(tmp_path)
    for one, two in zip(alone["gradients"], both["gradients"], strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    assert both["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for name, tensor in alone["weights"].items():
        torch.testing.assert_close(both["weights"][name], tensor, rtol=1e-3, atol=1e-5)
    assert both["weights"]["1.num_batches_tracked"] == alone["weights"]["1.num_batches_tracked"] == 24


def test_one_rank_asked_to_stop_stops_all_after_the_same_step(alone, tmp_path):
    codes, said = start(tmp_path, 2, "stop_at=3", "nodes=2")
    assert codes == [0, 0], said
    assert load(tmp_path)["step"] == 3
    assert (tmp_path / "checkpoints" / "step-00000003.pt").exists()
    resumed = ranks.run(tmp_path, World())
    assert list(resumed["losses"]) == [4, 5, 6]
    assert resumed["losses"][6] == pytest.approx(alone["losses"][6], rel=1e-4)


@pytest.mark.kill
def test_killed_and_resumed_gives_the_same_weights_to_the_bit(alone, tmp_path):
    codes, _ = start(tmp_path, 1, "kill_at=5")
    assert codes == [-signal.SIGKILL]
    resumed = ranks.run(tmp_path, World())
    assert list(resumed["losses"]) == [5, 6]
    assert equal(resumed["weights"], alone["weights"])


def test_a_finished_run_is_not_trained_again(trained):
    first, *_ = trained()
    second, progress, reported = trained()
    assert progress.step == 6
    assert reported == {}
    assert equal(first.state_dict(), second.state_dict())


def test_a_loss_that_is_not_finite_names_the_step_and_changes_nothing(trained, tmp_path):
    before = {name: tensor.clone() for name, tensor in ranks.network().state_dict().items()}
    network = ranks.network()
    calls = []

    def loss(prediction, target):
        calls.append(1)
        value = (prediction - target).abs().mean()
        return value * float("nan") if len(calls) == 3 else value

    with pytest.raises(UserError, match=r"step 1: the loss is nan in B03/1 crop 2.*optim.lr"):
        trained(network, loss=loss, hooks={"describe": lambda step, micro: f"B03/1 crop {micro}"})
    learnt = [name for name, _ in network.named_parameters()]
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in learnt)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_an_infinite_gradient_of_a_finite_loss_is_noticed_too(trained):
    def loss(prediction, target):
        return torch.sqrt((prediction * 0).abs()).mean()

    with pytest.raises(UserError, match="step 1: the gradient is not finite"):
        trained(loss=loss)


def test_a_gpu_too_small_for_a_micro_batch_is_reported(trained):
    def loss(prediction, target):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=r"too little memory for 2 crops at once: lower train.micro_batch"):
        trained(loss=loss)


@pytest.mark.parametrize("patience", [None, 2])
def test_the_best_weights_are_kept_only_with_patience(trained, patience):
    scores = {2: 0.5, 4: 0.9, 6: 0.7, 8: 0.8, 10: 0.1}
    network, progress, _ = trained(
        steps=10, evaluate_every=2, patience=patience, hooks={"evaluate": lambda step: scores[step]}
    )
    assert (progress.best, progress.best_step) == (0.9, 4)
    assert progress.step == (10 if patience is None else 8)
    twin, *_ = trained(steps=10, evaluate_every=2, patience=patience, hooks={"evaluate": scores.get})
    assert equal(network.state_dict(), twin.state_dict())


def test_an_evaluation_interrupted_by_a_stop_is_repeated(trained):
    asked = []

    def evaluate(step):
        asked.append(step)
        return None if len(asked) == 1 else 0.5

    hooks = {"evaluate": evaluate}
    _, progress, _ = trained(evaluate_every=3, hooks=hooks)
    assert progress.step == 3
    _, progress, _ = trained(evaluate_every=3, hooks=hooks)
    assert asked == [3, 3, 6]
    assert progress == Progress(step=6, evaluated=6, best=0.5, best_step=3, misses=1)


def test_a_score_that_is_not_a_number_is_no_better():
    progress = Progress(step=4).scored(float("nan"))
    assert (progress.best, progress.misses) == (None, 1)


def test_bf16_runs_on_a_cpu(trained):
    *_, reported = trained(steps=2, precision="bf16")
    assert math.isfinite(reported[2]["loss"])


def test_fp16_on_a_cpu_is_refused(trained):
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        trained(precision="fp16")


def test_an_error_about_processes_that_cannot_share_a_batch_names_the_nearest_numbers():
    recipe = TrainRecipe(steps=1, batch=64, micro_batch=16)
    assert check_micro_batches(recipe, 2) == 2
    with pytest.raises(
        UserError, match=r"3 processes cannot share the 4 micro-batches.*take 2 or 4 processes"
    ):
        check_micro_batches(recipe, 3)
    with pytest.raises(UserError, match=r"take 4 processes, or train.batch=128"):
        check_micro_batches(recipe, 8)


@pytest.mark.parametrize("steps", [10, 100, 1001])
def test_one_cycle_is_that_of_torch(steps):
    optimizer = optimizer_of(
        [{"params": [nn.Parameter(torch.zeros(1))], "scale": 1.0, "rests": 0}],
        OptimRecipe(name="adam", lr=0.5),
    )
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.5, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    for step in range(steps):
        assert 0.5 * rate(step, steps, "one_cycle", 0.2) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-9
        )
        optimizer.step()
        if step < steps - 1:
            theirs.step()


def test_cosine_rises_and_falls_to_nothing():
    rates = [rate(step, 100, "cosine", 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert rate(50, 100, "constant", 0.1) == 1


# ---------------------------------------------------------------- levels of a network with rates of their own


ENCODERS = ["resnet18", "tu-mobilenetv1_100", "tu-resnet10t", "densenet121"]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_each_level_learns_more_slowly_than_the_next_from_the_head_down(encoder):
    network = build(NetRecipe(encoder=encoder, weights=None), 2, 1)
    groups = groups_of(network, layer_lr=0.5, frozen=7)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}
    rests = {id(p): group["rests"] for group in groups for p in group["params"]}
    along = [(name, scale[id(p)]) for name, p in network.named_parameters() if p.requires_grad]
    scales = [value for _, value in along]
    assert scales == sorted(scales)
    assert len(set(scales)) == len(groups) > 8
    first = next(m for m in network.encoder.modules() if isinstance(m, nn.Conv2d))
    assert scale[id(first.weight)] == min(scales) == 0.5 ** (len(groups) - 1)
    head = {value for name, value in along if name.startswith("segmentation_head")}
    assert head == {1.0}
    parts = {name.split(".")[0]: rests[id(p)] for name, p in network.named_parameters() if p.requires_grad}
    assert parts == {"encoder": 7, "decoder": 0, "segmentation_head": 0}


class Parts(nn.Module):
    """A network of two parts, of which one is called as an encoder is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.segmentation_head = nn.Conv2d(3, 1, 1)

    def forward(self, x):
        return self.segmentation_head(self.encoder(x))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_frozen_encoder_learns_only_after_so_many_steps(trained, name):
    network, seen = Parts(), []

    def report(step, values):
        seen.append({n: p.detach().clone() for n, p in network.named_parameters()})

    trained(network, steps=4, hooks={"report": report}, groups=groups_of(network, frozen=2),
            optim=OptimRecipe(name=name, lr=0.05, weight_decay=0.1, schedule="constant"))  # fmt: skip
    first = dict(Parts().named_parameters())
    moved = [
        {n.split(".")[0] for n in now if not torch.equal(now[n], before[n])}
        for before, now in zip([first, *seen[:-1]], seen, strict=True)
    ]
    head, both = {"segmentation_head"}, {"encoder", "segmentation_head"}
    assert moved == [head, head, both, both]


def test_groups_without_options_train_to_the_same_weights_to_the_bit(trained, tmp_path):
    plain, *_ = trained()
    shutil.rmtree(tmp_path / "checkpoints")
    network = ranks.network()
    grouped, *_ = trained(network, groups=groups_of(network))
    assert equal(plain.state_dict(), grouped.state_dict())


def test_a_checkpoint_of_a_version_without_groups_resumes_to_the_same_weights(alone, tmp_path):
    """Its optimiser knows of no scale and no rest."""
    ranks.run(tmp_path, World(), steps=6)
    for path in sorted((tmp_path / "checkpoints").glob("*.pt"))[1:]:
        path.unlink()
    [path] = (tmp_path / "checkpoints").glob("*.pt")
    state = torch.load(path, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        del group["scale"], group["rests"]
    torch.save(state, path)
    resumed = ranks.run(tmp_path, World())
    assert len(resumed["losses"]) < 6
    assert equal(resumed["weights"], alone["weights"])
