from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from hpc_isl.errors import UserError
from hpc_isl.learning.data.calibrate import view_of
from hpc_isl.learning.data.fields import FieldView
from hpc_isl.learning.data.samples import Crops, crops_of
from hpc_isl.learning.data.split import draw
from hpc_isl.learning.training.batch_plan import loading_processes, micro_batches
from hpc_isl.learning.training.batches import batches
from hpc_isl.plates.store import Index
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.training import SplitRecipe, TrainRecipe

MakePlate = Callable[..., Index]
Given = dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]
TRAIN = TrainRecipe(steps=4, batch=8, micro_batch=2, crop=32, crops_per_field=3)


@pytest.fixture
def crops(make_plate: MakePlate) -> Crops:
    index = make_plate()
    asked = PretrainRecipe.model_validate(
        {
            "plates": [index.path],
            "sources": [{"channel": "Phase", "plane": 1}],
            "targets": [{"channel": "Hoechst", "plane": "max"}],
            "train": TRAIN.model_dump(),
        }
    )
    split = draw([index], SplitRecipe(test=0, validation=0))
    return crops_of(view_of([index], split, asked), [index], split, asked.train, asked.augment)


def given(crops: Crops, size: int = 1, workers: int = 0, first: int = 0, last: int = 3) -> Given:
    """All that `size` ranks are given, by (step, micro-batch)."""
    found: Given = {}
    for rank in range(size):
        for step, micro, sources, targets in batches(crops, TRAIN, rank, size, first, last, workers):
            assert (step, micro) not in found
            found[step, micro] = sources.clone(), targets.clone()
    return found


def same(one: Given, other: Given) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(a, b) for key in one for a, b in zip(one[key], other[key], strict=True)
    )


def loading() -> list[psutil.Process]:
    """The loading processes there are: not our children, but those of the server that forks them."""
    return [each for each in psutil.Process().children(recursive=True) if each.ppid() != os.getpid()]


def ended(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return not alive


def test_sample_numbers_follow_from_step_and_micro_batch() -> None:
    assert [(s, m, list(n)) for s, m, n in micro_batches(TRAIN, 1, 2, 5, 6)] == [
        (5, 1, [42, 43]),
        (5, 3, [46, 47]),
    ]


@pytest.mark.parametrize(("size", "workers"), [(2, 0), (4, 0), (1, 2), (2, 2)])
def test_ranks_and_workers_change_no_sample_and_no_place(crops: Crops, size: int, workers: int) -> None:
    alone = given(crops)
    assert list(alone) == [(step, micro) for step in range(3) for micro in range(4)]
    assert alone[0, 0][0].shape == (2, 1, 32, 32)
    assert alone[0, 0][0].dtype == torch.float32
    assert same(given(crops, size, workers), alone)


def test_a_resumed_run_gets_the_samples_that_remain(crops: Crops) -> None:
    alone = given(crops)
    assert same(given(crops, first=2), {key: pair for key, pair in alone.items() if key[0] >= 2})


def test_loading_leaves_torchs_random_numbers_alone(crops: Crops) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    given(crops)
    given(crops, workers=1, last=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_processes_end_when_the_reader_stops_early(crops: Crops) -> None:
    iterator = batches(crops, TRAIN, 0, 1, 0, 1000, workers=2)
    next(iterator)
    started = loading()
    assert len(started) == 2
    iterator.close()
    assert ended(started)


def test_loading_processes_leave_the_jobs_signals_to_the_one_that_trains(crops: Crops) -> None:
    iterator = batches(crops, TRAIN, 0, 1, 0, 30, workers=1)
    next(iterator)
    started = loading()
    for process in [*started, *(process.parent() for process in started)]:
        for each in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            process.send_signal(each)
    assert len(list(iterator)) == 30 * 4 - 1
    assert ended(started)


def test_loading_processes_run_the_code_of_the_one_that_trains(crops: Crops, tmp_path: Path) -> None:
    """Even where another checkout lies in the current folder."""
    (tmp_path / "here" / "hpc_isl").mkdir(parents=True)
    (tmp_path / "here" / "hpc_isl" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (tmp_path / "crops.pickle").write_bytes(pickle.dumps((crops, TRAIN)))
    (tmp_path / "train.py").write_text(
        "import pickle\n"
        "from hpc_isl.learning.training.batches import batches\n"
        "if __name__ == '__main__':\n"
        "    crops, train = pickle.load(open('../crops.pickle', 'rb'))\n"
        "    print(len(list(batches(crops, train, workers=1))))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "train.py")], cwd=tmp_path / "here", capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(root)}, timeout=120,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("4\n", "")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_or_damaged_shard_is_reported_with_its_field(crops: Crops, workers: int) -> None:
    for path in _shards(crops.fields[1]):
        path.write_bytes(b"no shard")
    with pytest.raises(UserError, match=r"^P01 B03/1 '(Phase|Hoechst)': .*level 0 cannot be read") as caught:
        given(crops, workers=workers)
    assert "Traceback" not in str(caught.value)


def test_a_missing_shard_is_not_read_as_a_dark_image(crops: Crops) -> None:
    for path in _shards(crops.fields[0]):
        path.unlink()
    with pytest.raises(UserError, match=r"^P01 B02/1 .*level 0 cannot be read"):
        given(crops)


def _shards(field: FieldView) -> list[Path]:
    return [path for path in (field.sources[0].image / "0" / "c").rglob("*") if path.is_file()]


def test_a_rank_loads_with_the_cpus_it_does_not_train_on() -> None:
    assert [loading_processes(None, cpus) for cpus in (1, 2, 8, 64)] == [0, 1, 7, 12]
