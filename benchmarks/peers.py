"""Training on CPUs against a peer: crops against VisCy's loader; and what starting a process costs.

    python benchmarks/peers.py [--peers FOLDER] [--python python3.12] [--edge 2160] [--crop 256] [--rounds 5]

Four minutes of two free CPUs. The environment of VisCy (viscy-data 0.1.0) is made by uv in the folder
`--peers`, or found there. What several processes gain is measured by `ddp.py`.

**Crops.** Both read one and the same plate, which hpc_isl writes: OME-Zarr 0.5, sharded, bright field and
Hoechst in one plane, cells with photon noise, uint16. It is a time series of two, because VisCy indexes five
axes (t, c, z, y, x), and a plate of one time has no axis t. Both yield batches of 8 pairs of crops, a source
and a target each, float32, without augmentation, from a warm cache, in one process held to one CPU:

- hpc_isl: the loader of training (`batches`, no loading processes): a random place of a random field, drawn
  again while the target shows no foreground there; tensorstore reads the chunks that the crop touches; the
  source is normalised by the field's statistics, the target by the plate's.
- VisCy: `HCSDataModule.train_dataloader()` with num_workers=0. Of each sample it reads both planes whole
  (zarr-python, float32), and MONAI's transforms cut crops out of them. "one crop": RandSpatialCropd, a random
  place. "two crops": RandWeightedCropd with num_samples=2, as in VisCy's own recipes: places drawn by the
  target's brightness. "staged": one crop, with mmap_preload: before, all pixels were copied without
  compression to a file in memory, of which planes are copies. Nothing is normalised.

Rounds are in turns; seconds of CPU are those of all threads of the process; ratios are within a round.

**Start.** Seconds of CPU, and memory that no other process shares, once a process has imported what a rank or
a worker process imports; and of one that is forked from a server (multiprocessing's forkserver) that has
imported the same. To show that it works, the forked process then takes two threads, where the server has read
OMP_NUM_THREADS=1, and computes a convolution. Compiled modules are in place, unless Python may not keep them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

# Nothing large is imported here: the Python of VisCy has nothing of hpc_isl, and starts are measured.

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "HPC_ISL_IO_THREADS")
VISCY = ("viscy-data[mmap]==0.1.0", "viscy-transforms==0.1.0", "torch==2.15.0")
CHANNELS = ("Brightfield", "Hoechst")
FIELDS, TIMES = 5, 2  # VisCy keeps a fifth of the fields for validation
BATCH, STEPS = 8, 64
OURS, PEER = "hpc_isl", ("VisCy, one crop", "VisCy, two crops", "VisCy, staged")
IMPORTS = {
    "torch": "torch",
    "torch, smp, timm": "torch segmentation_models_pytorch timm",
    "a rank of pretrain": "hpc_isl.cluster.rank hpc_isl.stages.pretrain.pretraining",
    "a worker of segment": "distributed hpc_isl.stages.segment.field",
}
Round = Callable[[], int]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--peers", type=lambda text: Path(text).resolve(), help="environment of VisCy")
    words.add_argument("--python", default="python3.12", help="the Python of that environment")
    words.add_argument("--edge", type=int, default=2160, help="of a field, in pixels")
    words.add_argument("--crop", type=int, default=256)
    words.add_argument("--rounds", type=int, default=5, help="of crops; of starts half as many")
    for hidden in ("--role", "--plate", "--imports"):
        words.add_argument(hidden, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.role:
        ROLES[given.role](given)
        return
    with tempfile.TemporaryDirectory() as name:
        compare_crops(given, Path(name))
    compare_starts((given.rounds + 1) // 2)


def command(role: str, *more: object, python: str = sys.executable) -> dict[str, Any]:
    """Returns how a process of this script is started: with this checkout, and one thread."""
    code = {"PYTHONPATH": str(Path(__file__).parents[1])}
    return {
        "args": [python, __file__, "--role", role, *map(str, more)],
        "env": os.environ | code | dict.fromkeys(THREADS, "1"),
        "text": True, "stdout": subprocess.PIPE,
    }  # fmt: skip


def spread(values: Sequence[float], digits: int) -> str:
    texts = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
    return "{} ({} to {})".format(*texts)


# ---------------------------------------------------------------- crops


def compare_crops(given: argparse.Namespace, folder: Path) -> None:
    own = ("--plate", folder / "plate.zarr", "--crop", given.crop, "--edge", given.edge)
    python = environment(given.peers or folder, given.python)
    subprocess.run(**command("write", *own), check=True)
    starts = (command("ours", *own), command("viscy", *own, python=python))
    ours, viscy = (subprocess.Popen(**start, stdin=subprocess.PIPE) for start in starts)
    rounds = []
    for _ in range(given.rounds + 1):
        found = {}
        for kind in (OURS, *PEER):
            reader: Any = ours if kind == OURS else viscy
            print(kind, file=reader.stdin, flush=True)
            if not (line := reader.stdout.readline()):
                sys.exit(f"{kind}: the process has ended")
            found[kind] = json.loads(line)
        rounds.append(found)
    for reader in (ours, viscy):
        reader.communicate()
    print(f"crops of {given.crop}² from fields of {given.edge}², batches of {BATCH}, {given.rounds} rounds")
    columns = ("crops/s of CPU", "ours / it", "crops/s", "ours / it")
    print(f"{'median (least to greatest)':<28}" + "".join(f"{name:>24}" for name in columns))
    for kind in (OURS, *PEER):
        texts = []
        for i in range(2):
            values = [each[kind][i] for each in rounds[1:]]  # the first round warms up
            ratios = [each[OURS][i] / each[kind][i] for each in rounds[1:]]
            texts += [spread(values, 1), spread(ratios, 1)]
        print(f"{kind:<28}" + "".join(f"{text:>24}" for text in texts), flush=True)


def environment(folder: Path, version: str) -> str:
    """Returns the Python of an environment with VisCy, which uv makes unless it exists."""
    python = folder / "viscy" / "bin" / "python"
    if not python.exists():
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "--python", version, folder / "viscy"], check=True)
        subprocess.run([uv, "pip", "install", "--compile-bytecode", "--python", python, *VISCY], check=True)
    return str(python)


def answer(kinds: dict[str, Round]) -> None:
    """Computes a round for each line that comes in; prints its crops per second, of CPU and of the clock."""
    import torch

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    for line in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        crops = kinds[line.strip()]()
        print(
            json.dumps([crops / (time.process_time() - cpu), crops / (time.perf_counter() - wall)]),
            flush=True,
        )


def read_ours(given: argparse.Namespace) -> None:
    from hpc_isl.learning.data.calibrate import view_of
    from hpc_isl.learning.data.samples import crops_of
    from hpc_isl.learning.data.split import draw
    from hpc_isl.learning.training.batches import batches
    from hpc_isl.plates.store import open_plate
    from hpc_isl.recipes.pretrain import PretrainRecipe
    from hpc_isl.recipes.training import SplitRecipe

    source, target = ([{"channel": name, "plane": 0}] for name in CHANNELS)
    train = {"steps": 1, "batch": BATCH, "micro_batch": BATCH, "crop": given.crop}
    augment = {"flip": False, "brightness": 0, "contrast": 0}
    recipe = PretrainRecipe.model_validate(
        {"plates": [given.plate], "sources": source, "targets": target, "train": train, "augment": augment}
    )
    indices = [open_plate(Path(given.plate))]
    split = draw(indices, SplitRecipe(test=0, validation=0))
    crops = crops_of(view_of(indices, split, recipe), indices, split, recipe.train, recipe.augment)
    firsts = iter(range(0, 10**9, STEPS))  # other crops in each round

    def one_round() -> int:
        first = next(firsts)
        micros = batches(crops, recipe.train, first_step=first, last_step=first + STEPS)
        shapes = [(sources.shape, targets.shape) for _, _, sources, targets in micros]
        assert {*shapes} == {((BATCH, 1, given.crop, given.crop),) * 2}
        return BATCH * len(shapes)

    answer({OURS: one_round})


def read_viscy(given: argparse.Namespace) -> None:
    from viscy_data.hcs import HCSDataModule
    from viscy_transforms import RandSpatialCropd, RandWeightedCropd

    size = (1, given.crop, given.crop)

    def loader(crop: Any, **more: Any) -> Round:
        data = HCSDataModule(
            given.plate, *CHANNELS, z_window_size=1, batch_size=BATCH, num_workers=0, pin_memory=False,
            yx_patch_size=size[1:], augmentations=[crop], **more,
        )  # fmt: skip
        data.prepare_data()
        data.setup("fit")

        def one_round() -> int:
            epochs = (batch for _ in range(2) for batch in data.train_dataloader())
            shapes = [(batch["source"].shape, batch["target"].shape) for batch in epochs]
            assert {*shapes} == {((BATCH, 1, *size),) * 2}
            return BATCH * len(shapes)

        return one_round

    one = RandSpatialCropd(CHANNELS, roi_size=size, random_size=False)
    two = RandWeightedCropd(CHANNELS, w_key=CHANNELS[1], spatial_size=size, num_samples=2)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        staged = loader(one, mmap_preload=True, scratch_dir=scratch)
        answer(dict(zip(PEER, (loader(one), loader(two), staged), strict=True)))


def write(given: argparse.Namespace) -> None:
    import crops

    crops.EDGE, crops.DEPTH = given.edge, 1
    crops.write_plate(Path(given.plate), FIELDS, TIMES)


# ---------------------------------------------------------------- starting a process


def compare_starts(rounds: int) -> None:
    print(f"\nstart of a process, {rounds} rounds: seconds of CPU, and MB of its own memory")
    print(f"{'median (least to greatest)':<28}{'fresh':>22}{'MB':>6}{'server':>22}{'forked':>22}{'MB':>6}")
    for name, modules in IMPORTS.items():
        found = []
        for turn in range(rounds + 1):
            values = [
                value
                for role in ("fresh", "server")
                for value in json.loads(
                    subprocess.run(**command(role, "--imports", modules), check=True).stdout
                )
            ]
            found += [values] * bool(turn)  # the first warms up
        columns = zip(*found, strict=True)
        texts = [f"{median(v):6.0f}" if i in (1, 4) else f"{spread(v, 2):>22}" for i, v in enumerate(columns)]
        print(f"{name:<28}{''.join(texts)}", flush=True)


def imported(modules: str) -> list[float]:
    """Imports modules; returns the seconds of CPU of this process so far, and MB that it does not share."""
    for name in modules.split():
        importlib.import_module(name)
    seconds = time.process_time()
    import psutil

    return [seconds, psutil.Process().memory_full_info().uss / 1e6]


def fork_from_server(given: argparse.Namespace) -> None:
    """Prints seconds of the server; seconds and MB of processes forked from it, the median of four."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(given.imports.split())
    results = context.SimpleQueue()
    answers = []
    for _ in range(4):
        process = context.Process(target=forked, args=(given.imports, results))
        process.start()
        answers.append(results.get())
        process.join()
    print(json.dumps([median(column) for column in zip(*answers, strict=True)]))


def forked(modules: str, results: Any) -> None:
    own = imported(modules)
    import psutil
    import torch

    server = psutil.Process(os.getppid()).cpu_times()
    torch.set_num_threads(2)
    torch.nn.functional.conv2d(torch.ones(1, 3, 256, 256), torch.ones(8, 3, 3, 3)).sum().item()
    assert torch.get_num_threads() == 2
    results.put([server.user + server.system, *own])


ROLES: dict[str, Callable[[argparse.Namespace], None]] = {
    "write": write, "ours": read_ours, "viscy": read_viscy, "server": fork_from_server,
    "fresh": lambda given: print(json.dumps(imported(given.imports))),
}  # fmt: skip

if __name__ == "__main__":
    main()
