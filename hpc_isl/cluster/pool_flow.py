"""How tasks flow through the worker processes of a pool, which may die, and how answers come back."""

from __future__ import annotations

import pickle
import queue
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from hpc_isl.cluster.pool_processes import MEMORY
from hpc_isl.mistake import Mistake
from hpc_isl.run import Attempt
from hpc_isl.tasks import Answer, Task

TRIES = 3  # of a call that raises, and of one whose process dies
AHEAD = 2  # tasks under way for each thread that computes
LOOK_S = 0.5
TOGETHER_S = 0.02  # what ends within it is taken back, and what follows it given out, in one message
BEGUN = {"executing", "long-running", "memory", "error"}  # of Dask's states of a task in a worker process
BACK_S = 180.0  # for a worker process to come back when none is left
_numbers = count()


@dataclass(frozen=True)
class _Said:
    """What a worker process says of a call: its value, pickled; or why there is none."""

    value: bytes = b""
    problem: str = ""
    again: bool = False
    worker: str = ""


def _call(call: Callable[[Any], Any], argument: Any) -> _Said:
    """One task, in a thread of a worker process."""
    from distributed import get_worker

    try:
        return _Said(pickle.dumps(call(argument)))  # here, for what cannot be sent is a problem of this task
    except Mistake as mistake:
        return _Said(problem=str(mistake))
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        return _Said(b"", f"{type(error).__name__}: {error}", True, str(get_worker().address))


@dataclass
class _Turn:
    """A task on its way.

    Attributes:
        raised: how often its call has.
        died: how often the process that had it has died; from then on it is tried alone.
        avoid: the worker where it raised.
        place: the worker to which it was given alone.
    """

    task: Task
    raised: int = 0
    died: int = 0
    avoid: str = ""
    place: str = ""


@dataclass(frozen=True)
class DaskPool:
    """`hpc_isl.tasks.Pool`, of a scheduler of Dask in this process."""

    client: Any
    scheduler: Any
    attempt: Attempt
    share: int

    @property
    def workers(self) -> int:
        return len(self.scheduler.workers)

    def run(self, call: Callable[[Any], Any], tasks: Iterable[Task]) -> Iterator[Answer]:
        """See `Pool`."""
        flow = _Flow(self, call)
        try:
            yield from flow.answers(iter(tasks))
        finally:
            flow.leave()

    def addresses(self) -> list[str]:
        return list(self.scheduler.workers)


@dataclass
class _Flow:
    """Tasks under way of one call of `run`, at most a window of them.

    Tasks that had their process die under them are suspects: which of those that it had under way killed
    it, no one knows. When all others are through they are tried again, one alone in each process.
    """

    pool: DaskPool
    call: Callable[[Any], Any]
    pending: dict[Any, _Turn] = field(default_factory=dict)
    again: deque[_Turn] = field(default_factory=deque)
    suspects: deque[_Turn] = field(default_factory=deque)
    ended: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    stopped: bool = False
    number: int = field(default_factory=lambda: next(_numbers))
    _alive: float = field(default_factory=time.monotonic)

    def answers(self, tasks: Iterator[Task]) -> Iterator[Answer]:
        more = True
        while True:
            if self.pool.attempt.stopping.is_set():
                self._stop()
            else:
                more = self._fill(tasks, more)
            if not self.pending and (self.stopped or not (more or self.again or self.suspects)):
                return
            yield from self._ended()
            self._check_workers()

    # ------------------------------------------------------------ giving out

    def _fill(self, tasks: Iterator[Task], more: bool) -> bool:
        """Gives out what fits into the window; whether `tasks` has more."""
        window = max(1, AHEAD * self.pool.scheduler.total_nthreads)
        turns: list[_Turn] = []
        while len(self.pending) + len(turns) < window and (self.again or more):
            if self.again:
                turns.append(self.again.popleft())
            elif task := next(tasks, None):
                turns.append(_Turn(task))
            else:
                more = False
        self._give(turns)
        if not more and not self.again:
            self._give_alone()
        return more

    def _give(self, turns: Sequence[_Turn]) -> None:
        """To any process, but for what has raised in one: to another, where there is one."""
        for avoid, some in _grouped(turns, lambda turn: turn.avoid):
            others = [address for address in self.pool.addresses() if address != avoid]
            self._submit(some, others if avoid and others else None, loose=True)

    def _give_alone(self) -> None:
        """One suspect to each process that has nothing else, once only suspects are left."""
        if any(not turn.place for turn in self.pending.values()):
            return
        taken = {turn.place for turn in self.pending.values()}
        for address in self.pool.addresses():
            if address not in taken and self.suspects:
                turn = self.suspects.popleft()
                turn.place = address
                self._submit([turn], [address], loose=False)

    def _submit(self, turns: Sequence[_Turn], workers: list[str] | None, loose: bool) -> None:
        """Tasks of one memory go together."""
        for memory, some in _grouped(turns, lambda turn: min(turn.task.memory, self.pool.share)):
            futures = self.pool.client.map(
                _call, [self.call] * len(some), [turn.task.argument for turn in some],
                key=[self._key(turn) for turn in some], pure=False, workers=workers,
                allow_other_workers=loose and workers is not None, resources={MEMORY: max(1, memory)},
            )  # fmt: skip
            for future, turn in zip(futures, some, strict=True):
                self.pending[future] = turn
                future.add_done_callback(self.ended.put)

    def _key(self, turn: _Turn) -> tuple[Any, ...]:
        """A key of its own each time; those that begin alike are counted together by Dask."""
        name = f"{self.call.__name__}-{self.number}"
        return name, turn.task.name, turn.raised, turn.died, time.monotonic_ns()

    # ------------------------------------------------------------ taking back

    def _ended(self) -> Iterator[Answer]:
        """Answers of the tasks that have ended by now; waits a moment for the first."""
        try:
            futures = [self.ended.get(timeout=LOOK_S)]
        except queue.Empty:
            self._take_back_stranded()
            return
        time.sleep(TOGETHER_S)
        while not self.ended.empty():
            futures.append(self.ended.get())
        futures = [future for future in futures if future in self.pending]
        found = self.pool.client.gather(dict(enumerate(futures)), errors="skip")
        for number, future in enumerate(futures):
            said = found[number] or _said_by_dask(future)
            answer = self._answer(self.pending.pop(future), said)
            future.release()
            if answer is not None:
                yield answer

    def _answer(self, turn: _Turn, said: _Said | None) -> Answer | None:
        """The answer, unless the task is tried again; `said` is None when its process died."""
        name = turn.task.name
        if said is None:
            return self._suspect(turn)
        if not said.problem:
            return Answer(name, pickle.loads(said.value))  # noqa: S301  (from our own process)
        turn.raised += 1
        if not said.again or turn.raised >= TRIES:
            return Answer(name, problem=said.problem)
        turn.avoid = said.worker
        (self.suspects if turn.place else self.again).append(turn)
        return None

    def _suspect(self, turn: _Turn) -> Answer | None:
        turn.died += 1
        turn.place = ""
        if turn.died >= TRIES:
            return Answer(turn.task.name, problem=f"its process died {turn.died} times")
        self.suspects.append(turn)
        return None

    def _take_back_stranded(self) -> None:
        """A suspect whose process went before it was given to it waits for an address that never comes."""
        known = self.pool.scheduler.tasks
        for future, turn in list(self.pending.items()):
            if turn.place and (task := known.get(future.key)) and task.state == "no-worker":
                self.pending.pop(future).place = ""
                future.cancel()
                self.suspects.append(turn)

    # ------------------------------------------------------------ ending

    def _stop(self) -> None:
        """Takes back all that no process has begun; no process begins another."""
        if self.stopped:
            return
        self.stopped = True
        begun: set[Any] = set()
        for keys in self.pool.client.run(_pause, on_error="ignore").values():
            begun |= set(keys)
        waiting = [future for future in self.pending if not future.done() and future.key not in begun]
        for future in waiting:
            del self.pending[future]
        self.pool.client.cancel(waiting)

    def _check_workers(self) -> None:
        if self.pool.workers:
            self._alive = time.monotonic()
        elif time.monotonic() - self._alive > BACK_S:
            raise RuntimeError(
                f"all worker processes have died and none has come back within {BACK_S:.0f} s; "
                f"their last words are in {self.pool.attempt.folder}/rank-*.log"
            )

    def leave(self) -> None:
        """What is still under way is not waited for."""
        if self.pending:
            self.pool.client.cancel(list(self.pending))
            self.pending.clear()


def _grouped(turns: Sequence[_Turn], of: Callable[[_Turn], Any]) -> Iterator[tuple[Any, list[_Turn]]]:
    """The turns of which something is the same, in the order in which they came."""
    groups: dict[Any, list[_Turn]] = {}
    for turn in turns:
        groups.setdefault(of(turn), []).append(turn)
    yield from groups.items()


def _said_by_dask(future: Any) -> _Said | None:
    """What became of a call that said nothing itself: None if its process died; else it could not be sent."""
    from distributed import KilledWorker

    error = future.exception() if future.status == "error" else None
    if error is None or isinstance(error, KilledWorker):
        return None
    return _Said(problem=f"{type(error).__name__}: {error}", again=True)


def _pause(dask_worker: Any) -> list[Any]:
    """In a worker process: it begins no more tasks; those that it has begun, ended ones among them."""
    from distributed.core import Status

    dask_worker.status = Status.paused
    return [key for key, task in dask_worker.state.tasks.items() if task.state in BEGUN]
