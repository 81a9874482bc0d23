"""One rank of a small training run, for tests that need real processes.

python ranks.py FOLDER RANK SIZE KEY=VALUE …

Rank 0 leaves `result.pt`: losses by step, gradients of the first step, final weights and progress.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from hpc_isl import seeds
from hpc_isl.learning.network.losses import loss_of
from hpc_isl.learning.training.checkpoint import Checkpoints
from hpc_isl.learning.training.loop import Hooks, train
from hpc_isl.learning.training.world import World, open_world
from hpc_isl.recipes.training import OptimRecipe, TrainRecipe
from hpc_isl.run import Attempt, Run

SETTINGS = {"steps": 6, "batch": 8, "micro_batch": 2, "checkpoint_every": 2, "kill_at": 0, "stop_at": 0}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout2d(0.3),
        nn.Conv2d(4, 1, 3, padding=1),
    )


def micro_batch(step, micro, size):
    """A function of its place alone; the target is the negative of the source, smoothed."""
    source = torch.from_numpy(seeds.stream(1, step, micro).standard_normal((size, 1, 32, 32), "float32"))
    return source, -nn.functional.avg_pool2d(source, 3, stride=1, padding=1)


def batches(recipe, steps, rank, size):
    def from_step(first):
        for step in range(first, steps):
            for micro in range(rank, recipe.batch // recipe.micro_batch, size):
                yield step, micro, *micro_batch(step, micro, recipe.micro_batch)

    return from_step


def recipes(**settings):
    values = SETTINGS | settings
    recipe = TrainRecipe(
        steps=values["steps"], batch=values["batch"], micro_batch=values["micro_batch"],
        crop=32, checkpoint_every=values["checkpoint_every"], precision="fp32",
    )  # fmt: skip
    return recipe, OptimRecipe(lr=1e-2, schedule="cosine")


def run(folder: Path, world: World, **settings):
    """Trains; returns what `result.pt` holds."""
    values = SETTINGS | settings
    recipe, optim = recipes(**settings)
    net, result = network(), {"losses": {}, "gradients": None}

    def report(step, told):
        result["losses"][step] = told["loss"]
        if step == 1:
            result["gradients"] = [p.grad.clone() for p in net.parameters()]
        if step == values["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    def stopping():
        return bool(values["stop_at"]) and world.rank == 1 and len(result["losses"]) + 1 == values["stop_at"]

    hooks = Hooks(batches(recipe, values["steps"], world.rank, world.size), stopping=stopping, report=report)
    checkpoints = Checkpoints(folder / "checkpoints", "digest", log=lambda text: None)
    progress, _ = train(net, loss_of("l1"), hooks, recipe, optim, values["steps"], world, checkpoints)
    return result | {"weights": net.state_dict(), "step": progress.step}


def main():
    folder, rank, size, *assignments = sys.argv[1:]
    settings = {key: json.loads(value) for key, value in (text.split("=") for text in assignments)}
    nodes = settings.pop("nodes", 1)
    attempt = Attempt(
        Run(Path(folder)), rank=int(rank), size=int(size), local_rank=0 if nodes > 1 else int(rank),
        local_size=int(size) // nodes,
    )  # fmt: skip
    with open_world(attempt, timeout_s=60) as world:
        assert world.gather(world.rank) == list(range(world.size))
        assert world.broadcast(f"from {world.rank}") == "from 0"
        result = run(Path(folder), world, **settings)
        if world.rank == 0:
            torch.save(result, Path(folder) / "result.pt")


if __name__ == "__main__":
    main()
