"""A pool's worker processes: real ones, which raise, die and are replaced while every task is answered."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from eventually import eventually

from hpc_isl.cluster.dask_pool import resources, scheduling
from hpc_isl.cluster.dask_pool.pool import pools
from hpc_isl.cluster.dask_pool.resources import Node, WorkerResources, lowered, memory_here, worker_resources
from hpc_isl.errors import AbortRun
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site
from hpc_isl.tasks import Answer, MemoryRequirement, Pool, Task

if TYPE_CHECKING:
    from tests.conftest import CommandLine

HERE = Path(__file__).parent
GB = 10**9
NOTHING = MemoryRequirement(0, 0)  # that a process is to hold
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def calls() -> Iterator[Any]:
    """The module of the calls, which worker processes import too: they get our path."""
    sys.path.insert(0, str(HERE))
    import calls

    yield calls
    sys.path.remove(str(HERE))


Opened = Callable[..., AbstractContextManager[Pool]]


def attempt_in(folder: Path, size: int = 1) -> Attempt:
    attempt = Attempt(Run(folder / "segment" / "one"), size=size, cpus=2)
    attempt.folder.mkdir(parents=True)
    return attempt


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two worker processes of two threads."""
    with pools(attempt_in(tmp_path_factory.mktemp("shared")), Site(workers=2))(NOTHING) as pool:
        assert eventually(lambda: pool.workers == 2)
        yield pool


def tasks_of(arguments: Any) -> Iterator[Task]:
    return (Task(str(number), argument) for number, argument in enumerate(arguments))


def trials(folder: Path) -> Counter[int]:
    """How often each number was tried."""
    return Counter(int(path.name.split("-")[0]) for path in folder.iterdir())


def worker_processes() -> list[psutil.Process]:
    """Worker processes of pools of this process."""
    living = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
    return [one for one in living if any("spawn_main" in word for word in one.cmdline())]


# ---------------------------------------------------------------- answers


def test_every_task_is_answered_once_in_any_order(shared: Pool, calls: Any) -> None:
    answers = list(shared.run(calls.doubled, tasks_of(range(100))))
    assert sorted(int(answer.name) for answer in answers) == list(range(100))
    assert all(answer == Answer(answer.name, 2 * int(answer.name)) for answer in answers)


def test_tasks_are_read_as_they_are_needed(shared: Pool, calls: Any) -> None:
    """There may be hundreds of thousands: a window of them is under way."""
    read = []

    def endless() -> Iterator[Task]:
        while True:
            read.append(len(read))
            yield Task(str(len(read)), len(read))

    answers = shared.run(calls.doubled, endless())
    for number in range(1, 30):
        next(answers)
        assert len(read) <= number + 100
    answers.close()  # type: ignore[attr-defined]
    assert len(list(shared.run(calls.doubled, tasks_of(range(3))))) == 3, "what was left is not in the way"


def test_no_tasks_have_no_answers(shared: Pool, calls: Any) -> None:
    assert list(shared.run(calls.doubled, [])) == []


def test_a_large_task_has_its_process_for_itself(shared: Pool, calls: Any) -> None:
    large = [Task(f"large {n}", 0.1, memory=10**15) for n in range(4)]
    small = [Task(f"small {n}", 0.1, memory=1) for n in range(8)]
    answers = list(shared.run(calls.who, [*small[:4], *large, *small[4:]]))
    assert len(answers) == 12
    for one in answers:
        if one.name.startswith("large"):
            others = [a.value for a in answers if a is not one and a.value[0] == one.value[0]]
            assert all(end <= one.value[1] or begin >= one.value[2] for _, begin, end in others)


# ---------------------------------------------------------------- what goes wrong


def test_a_call_that_raises_is_tried_three_times_and_reported(
    shared: Pool, calls: Any, tmp_path: Path
) -> None:
    answers = {a.name: a for a in shared.run(calls.refused, tasks_of((tmp_path, n) for n in range(6)))}
    assert {name for name, answer in answers.items() if answer.problem} == {"1", "3", "5"}
    assert answers["3"].problem == "ArithmeticError: 3 is odd"
    assert trials(tmp_path) == {0: 1, 1: 3, 2: 1, 3: 3, 4: 1, 5: 3}


def test_one_that_goes_well_at_last_is_like_any_other(shared: Pool, calls: Any, tmp_path: Path) -> None:
    answers = list(shared.run(calls.at_the_third, tasks_of((tmp_path, n) for n in range(3))))
    assert {answer.value for answer in answers} == {0, 1, 2}
    assert not any(answer.problem for answer in answers)


def test_a_mistake_is_not_tried_again(shared: Pool, calls: Any, tmp_path: Path) -> None:
    [answer] = shared.run(calls.mistaken, tasks_of([(tmp_path, 7)]))
    assert answer.problem == "well 7 is wrong"
    assert trials(tmp_path) == {7: 1}


def test_what_every_other_task_would_meet_too_ends_the_run(shared: Pool, calls: Any, tmp_path: Path) -> None:
    answers = []
    with pytest.raises(AbortRun, match="the disk is full"):
        answers += shared.run(calls.blocked, tasks_of((tmp_path, number) for number in range(1000)))
    assert len(list(tmp_path.iterdir())) < 100, "it is not tried again with all of them"
    assert len(list(shared.run(calls.doubled, tasks_of(range(3))))) == 3, "what was left is not in the way"


def test_an_answer_that_cannot_be_sent_is_a_problem_of_its_task(shared: Pool, calls: Any) -> None:
    [answer] = shared.run(calls.unsendable, tasks_of([None]))
    assert "TypeError" in answer.problem


@pytest.mark.kill
def test_a_task_that_kills_its_process_is_reported_and_its_neighbours_are_not_blamed(
    shared: Pool, calls: Any, tmp_path: Path
) -> None:
    deadly = {5, 6, 17}
    arguments = [(tmp_path, n, n in deadly) for n in range(24)]
    answers = {int(a.name): a for a in shared.run(calls.deadly, tasks_of(arguments))}
    assert sorted(answers) == list(range(24))
    assert {n for n, answer in answers.items() if answer.problem} == deadly
    assert answers[17].problem == "its process died 3 times"
    assert all(answers[n].value == n for n in answers if n not in deadly)
    tried = trials(tmp_path)
    assert all(tried[n] <= 3 for n in deadly)


@pytest.mark.kill
def test_a_process_that_is_killed_is_replaced(shared: Pool, calls: Any) -> None:
    assert eventually(lambda: shared.workers == 2)
    before = {process.pid for process in worker_processes()}
    found = []
    for answer in shared.run(calls.who, tasks_of([0.02] * 60)):
        found.append(answer)
        if len(found) in (10, 30):
            worker_processes()[-1].kill()
    assert sorted(int(answer.name) for answer in found) == list(range(60))
    assert not any(answer.problem for answer in found)
    assert eventually(lambda: shared.workers == 2)
    assert {process.pid for process in worker_processes()} != before


@pytest.mark.kill
def test_an_answer_that_dies_with_its_process_is_no_reason_to_wait(
    shared: Pool, calls: Any, tmp_path: Path
) -> None:
    arguments = [(tmp_path, n, n in (2, 9)) for n in range(12)]
    answers = {int(a.name): a for a in shared.run(calls.dies_after_answering, tasks_of(arguments))}
    assert sorted(answers) == list(range(12))
    assert all(answers[n].value == n for n in answers if n not in (2, 9))
    assert all(answers[n].value == n or "died" in answers[n].problem for n in (2, 9))


@pytest.mark.kill
def test_a_process_whose_gpu_is_spoilt_gives_way_to_another(shared: Pool, calls: Any, tmp_path: Path) -> None:
    """A CUDA context is unusable after an illegal access: in that process all further calls would fail."""
    before = {process.pid for process in worker_processes()}
    answers = list(shared.run(calls.spoilt_once, tasks_of((tmp_path, n) for n in range(8))))
    assert sorted(answer.value for answer in answers) == list(range(8))
    assert eventually(lambda: shared.workers == 2)
    assert {process.pid for process in worker_processes()} != before


@pytest.mark.kill
def test_a_pool_without_processes_that_none_comes_back_to_says_so(
    calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "BACK_S", 2.0)
    with pools(attempt_in(tmp_path), Site(workers=1))(NOTHING) as pool:
        multiprocessing.set_executable("/bin/false")
        try:
            with pytest.raises(RuntimeError, match="all worker processes have died"):
                list(pool.run(calls.deadly, tasks_of([(tmp_path, 1, True)])))
        finally:
            multiprocessing.set_executable(sys.executable)


# ---------------------------------------------------------------- ending


def test_a_stop_begins_none_and_waits_for_those_under_way(calls: Any, tmp_path: Path) -> None:
    attempt = attempt_in(tmp_path)
    marks = tmp_path / "marks"
    marks.mkdir()
    with pools(attempt, Site(workers=2))(NOTHING) as pool:
        stop = threading.Thread(
            target=lambda: eventually(lambda: any(marks.iterdir())) and attempt.stopping.set()
        )
        stop.start()
        answers = list(pool.run(calls.slow, tasks_of((marks, n) for n in range(100))))
        stop.join()
        assert list(pool.run(calls.doubled, tasks_of(range(3)))) == []
    begun = {path.name.split("-")[1] for path in marks.glob("begun-*")}
    assert 0 < len(begun) < 100
    assert begun == {path.name.split("-")[1] for path in marks.glob("ended-*")} == {a.name for a in answers}


def test_what_takes_longer_than_is_left_is_given_up(calls: Any, tmp_path: Path) -> None:
    """A job that waited on would be killed at its limit, and not go back into the queue."""
    attempt, marks = attempt_in(tmp_path), tmp_path / "marks"
    marks.mkdir()
    with pools(attempt, Site(workers=1, signal_s=2))(NOTHING) as pool:
        timer = threading.Timer(2.0, attempt.stopping.set)
        timer.start()
        began = time.monotonic()
        assert list(pool.run(calls.who, tasks_of([60.0]))) == []
    assert time.monotonic() - began < 30


def test_a_pool_that_is_stopped_while_it_starts_begins_nothing(calls: Any, tmp_path: Path) -> None:
    attempt, never = attempt_in(tmp_path), tmp_path / "never"
    never.write_text("#!/bin/sh\nexec sleep 600\n")
    never.chmod(0o755)
    multiprocessing.set_executable(str(never))
    timer = threading.Timer(1.0, attempt.stopping.set)
    timer.start()
    began = time.monotonic()
    try:
        with pools(attempt, Site(workers=1))(NOTHING) as pool:
            assert list(pool.run(calls.doubled, tasks_of(range(3)))) == []
    finally:
        multiprocessing.set_executable(sys.executable)
    assert time.monotonic() - began < 60, "no process has started, and none is waited for"


def test_a_gpu_that_pytorch_does_not_see_is_not_replaced_by_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "999")
    messages = (
        "no worker process could be started: RuntimeError: GPU 999 is none to PyTorch .*; site.gpus=0 does"
    )
    with pytest.raises(RuntimeError, match=messages), pools(attempt_in(tmp_path), Site())(NOTHING):
        pass


def test_a_closed_pool_leaves_no_process_and_no_file(
    calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = set(worker_processes())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pools(attempt_in(tmp_path), Site(workers=1))(NOTHING) as pool:
        assert len(list(pool.run(calls.doubled, tasks_of(range(3))))) == 3
        assert set(worker_processes()) - others
    assert set(worker_processes()) <= others
    assert [path.name for path in tmp_path.iterdir()] == ["segment"]


@pytest.mark.kill
def test_nothing_outlives_a_killed_rank(command_line: CommandLine) -> None:
    words = ("square", "numbers=1000", "pause_s=0.2", "site.workers=2", "site.tracking=none")
    call = command_line.open(*words, "--name", "killed")
    folder = command_line.cwd / "runs" / "square" / "killed"
    assert command_line.eventually(lambda: len(list(folder.glob("squares/*"))) > 3)
    assert len(command_line.left()) > 3
    rank = next(process for process in command_line.left() if "hpc_isl.cluster.rank" in process.cmdline())
    call.kill()
    rank.kill()
    assert command_line.eventually(lambda: command_line.left() == []), [
        one.cmdline() for one in command_line.left()
    ]
    call.communicate()


@pytest.mark.kill
def test_a_pooled_run_is_stopped_and_resumed(command_line: CommandLine) -> None:
    words = ("square", "numbers=60", "pause_s=0.1", "site.processes=2", "site.tracking=none")
    call = command_line.open(*words, "--name", "on")
    folder = command_line.cwd / "runs" / "square" / "on"
    assert command_line.eventually(lambda: len(list(folder.glob("squares/*"))) > 3)
    os.killpg(call.pid, signal.SIGINT)
    output, _ = call.communicate(timeout=90)
    assert call.returncode == 130, output
    before = len(list((folder / "squares").iterdir()))
    assert 0 < before < 60
    done = command_line("resume", "on")
    assert done.returncode == 0, done.stdout
    assert {path.name: path.read_text() for path in (folder / "squares").iterdir()} == {
        str(n): str(n * n) for n in range(60)
    }
    assert command_line.left() == []


def test_on_one_node_nothing_listens_beyond_it(shared: Pool) -> None:
    """Neither scheduler and workers, which ask for a certificate, nor the pages they show, which do not."""
    processes = [psutil.Process(), *worker_processes()]
    sockets = [one for process in processes for one in process.net_connections("inet")]
    listening = {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


# ---------------------------------------------------------------- several nodes


def test_another_rank_lends_its_processes_until_rank_0_has_left(calls: Any, tmp_path: Path) -> None:
    attempt = attempt_in(tmp_path, size=2)
    path = attempt.folder / "scheduler.json"
    with ExitStack() as stack:
        with attempt.recorded():
            other = subprocess.Popen([sys.executable, str(HERE / "serving.py"), str(attempt.run.folder)])
            stack.callback(other.kill)
            with pools(attempt, Site(workers=1))(NOTHING) as pool:
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, "who can read it can run code as we"
                assert eventually(lambda: pool.workers == 2)
                answers = list(pool.run(calls.who, tasks_of([0.02] * 40)))
                assert len({answer.value[0] for answer in answers}) == 2
            assert not path.exists()
            with pools(attempt, Site(workers=1))(NOTHING) as pool:
                assert eventually(lambda: pool.workers == 2), "a second pool of the stage finds it too"
            assert other.poll() is None
        assert other.wait(60) == 0


@pytest.mark.kill
def test_tasks_that_a_small_node_cannot_hold_are_computed_on_the_large_one(
    calls: Any, tmp_path: Path
) -> None:
    """Also those that have raised, or had their process die under them."""
    attempt = attempt_in(tmp_path, size=2)
    marks = tmp_path / "marks"
    marks.mkdir()
    with ExitStack() as stack:
        with attempt.recorded():
            command = [sys.executable, str(HERE / "serving.py"), str(attempt.run.folder), "64M"]
            other = subprocess.Popen(command)
            stack.callback(other.kill)
            with pools(attempt, Site(workers=1, memory="2G"))(NOTHING) as pool:
                assert eventually(lambda: pool.workers == 2)
                third = [Task(f"third {n}", (marks, n), memory=GB) for n in range(2)]
                assert not any(answer.problem for answer in pool.run(calls.at_the_third, third))
                deadly = [Task(f"deadly {n}", (marks, n, n == 7), memory=GB) for n in range(5, 9)]
                found = {answer.name: answer.problem for answer in pool.run(calls.deadly, deadly)}
        assert other.wait(60) == 0
    assert found == {f"deadly {n}": "its process died 3 times" if n == 7 else "" for n in range(5, 9)}


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize(
    ("node", "need", "expected"),
    [
        (Node(8, 64 * GB), MemoryRequirement(0, GB), 8),
        (Node(8, 64 * GB, ("0", "1")), MemoryRequirement(0, GB), 2),
        (Node(8, 64 * GB, ("0", "1"), workers=3), MemoryRequirement(0, GB), 3),
        (Node(8, 64 * GB, workers=3), MemoryRequirement(0, GB), 3),
        (Node(8, 64 * GB), MemoryRequirement(0, 20 * GB), 3),
        (Node(8, 64 * GB), MemoryRequirement(10 * GB, 10 * GB), 3),
        (Node(8, 64 * GB), MemoryRequirement(GB, 100 * GB), 1),
        (Node(8, 64 * GB), NOTHING, 8),
    ],
)
def test_workers_are_as_many_as_gpus_or_cpus_and_as_memory_holds(
    node: Node, need: MemoryRequirement, expected: int
) -> None:
    found = worker_resources(node, need)
    assert len(found) == expected
    assert sum(share.cpus for share in found) <= node.cpus
    assert sum(share.memory + need.process for share in found) <= node.memory
    assert bool(lowered(node, need)) == (expected < node.requested_workers)


def test_a_lower_number_of_processes_is_reported() -> None:
    said = lowered(Node(8, 64 * GB), MemoryRequirement(GB, 19 * GB))
    assert said == "3 worker processes per node, not 8: one takes up to 20 GB of the 64 GB that are free"


def test_each_worker_sees_one_gpu_and_its_threads() -> None:
    found = [share.environment for share in worker_resources(Node(8, GB, ("2", "GPU-7f")), NOTHING)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["2", "GPU-7f"]
    assert {each["OMP_NUM_THREADS"] for each in found} == {"4"}
    two_on_each = worker_resources(Node(8, GB, ("0", "1"), workers=4), NOTHING)
    assert [share.gpu for share in two_on_each] == ["0", "1", "0", "1"]
    assert {share.environment["HPC_ISL_GPU_SHARING"] for share in two_on_each} == {"2"}
    assert {each["HPC_ISL_GPU_SHARING"] for each in found} == {"1"}
    assert WorkerResources(2, GB).environment["CUDA_VISIBLE_DEVICES"] == "", (
        "without a GPU of its own it takes none"
    )


def test_a_worker_process_has_this_environment(shared: Pool, calls: Any) -> None:
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HPC_ISL_IO_THREADS")
    answers = {a.name: a.value for a in shared.run(calls.environment, (Task(n, n) for n in names))}
    assert answers == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HPC_ISL_IO_THREADS": "1"}


def test_files_that_were_read_before_do_not_count_as_memory_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    for name, text in {
        "memory.max": "1000",
        "memory.current": "900",
        "memory.stat": "anon 1\ninactive_file 700\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert memory_here(Site()) == 800
    (tmp_path / "memory.max").write_text("max")
    assert memory_here(Site()) > 10**6


@pytest.mark.parametrize("limited", ["system.slice", "system.slice/slurmstepd.scope/job_7"])
def test_memory_is_no_more_than_a_group_has_in_which_this_one_lies(
    limited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 2 of control groups, as in a job of Slurm on a current system."""
    own = "system.slice/slurmstepd.scope/job_7/step_0"
    (tmp_path / "groups").mkdir()
    (tmp_path / "own").write_text(f"0::/{own}\n")
    (tmp_path / "groups" / own).mkdir(parents=True)
    for name, text in {
        "memory.max": "1000",
        "memory.current": "900",
        "memory.stat": "inactive_file 7\n",
    }.items():
        (tmp_path / "groups" / limited / name).write_text(text)
        (tmp_path / "groups" / own / name).write_text(text.replace("1000", "max"))
    monkeypatch.setattr(resources, "CGROUP", tmp_path / "groups")
    monkeypatch.setattr(resources, "OWN_GROUPS", tmp_path / "own")
    assert memory_here(Site()) == 107


LIMITED = """
import os, sys
from hpc_isl.cluster.dask_pool.resources import memory_here
from hpc_isl.site import Site
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
print(memory_here(Site()))
"""


def test_memory_is_no_more_than_the_kernel_gives() -> None:
    """A real group inside of a limited one; a process that took more would be killed."""
    outer = _new_group(300 * 2**20)
    try:
        inner = outer / "inner"
        inner.mkdir()
        done = subprocess.run([sys.executable, "-c", LIMITED, inner], capture_output=True, text=True)
        inner.rmdir()
    finally:
        outer.rmdir()
    assert 0 < int(done.stdout) < 300 * 2**20, done.stderr


def _new_group(limit: int) -> Path:
    """A control group of its own, of whichever version there is."""
    for root, file in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup") / root / f"hpc-isl-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            if (group / file).exists():
                (group / file).write_text(str(limit))
                return group
            group.rmdir()
    pytest.skip("no control group can be made here")


def test_memory_is_what_the_site_the_job_or_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_here(Site(memory="3G")) == 3 * 2**30
    # What is free changes from one look to the next, where other programs run.
    near = pytest.approx(memory_here(Site()), rel=0.2)
    assert memory_here(Site(memory="0G")) == near, "to Slurm that is all of a node"
    free = psutil.virtual_memory().available
    assert 0 < memory_here(Site()) < 1.5 * free
    for name, value in {"HPC_ISL_EXECUTOR": "slurm", "SLURM_MEM_PER_NODE": "100"}.items():
        monkeypatch.setenv(name, value)
    assert memory_here(Site()) == 100 * 2**20
    monkeypatch.delenv("SLURM_MEM_PER_NODE")
    for name, value in {"SLURM_MEM_PER_CPU": "10", "SLURM_CPUS_ON_NODE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert memory_here(Site()) == 40 * 2**20
