"""How tasks flow through the worker processes of a pool, which may die, and how answers come back."""

from __future__ import annotations

import math
import pickle
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from hpc_isl.cluster.dask_pool.call import CallOutcome, call_here, pause
from hpc_isl.cluster.dask_pool.processes import MEMORY
from hpc_isl.errors import AbortRun
from hpc_isl.run import Attempt
from hpc_isl.tasks import Answer, Task

TRIES = 3  # of a call that raises, and of one whose process dies
AHEAD = 2  # tasks under way for each thread that computes
LOOK_S = 0.5
TOGETHER_S = 0.02  # what ends within it is taken back, and what follows it given out, in one message
BACK_S = 180.0  # for a worker process to come back when none is left
_numbers = count()


@dataclass
class TaskState:
    """A task on its way.

    Attributes:
        raised: how often its call has.
        died: how often the process that had it has died; from then on it is tried alone.
        avoid: the worker where it raised.
        place: the worker to which it was given alone.
        booked: bytes that it has of its worker's share.
    """

    task: Task
    raised: int = 0
    died: int = 0
    avoid: str = ""
    place: str = ""
    booked: int = 0


@dataclass(frozen=True)
class DaskPool:
    """`hpc_isl.tasks.Pool`, of a scheduler of Dask in this process.

    Attributes:
        patience_s: for what is under way when the attempt is asked to stop.
    """

    client: Any
    scheduler: Any
    attempt: Attempt
    patience_s: float = 60.0

    @property
    def workers(self) -> int:
        return len(self.scheduler.workers)

    def run(self, call: Callable[[Any], Any], tasks: Iterable[Task]) -> Iterator[Answer]:
        """See `Pool`."""
        flow = _Scheduling(self, call)
        try:
            yield from flow.answers(iter(tasks))
        finally:
            flow.leave()

    def shares(self) -> dict[str, int]:
        """Address of each worker process -> bytes that its tasks may take together."""

        async def in_its_loop() -> dict[str, int]:
            return {address: int(one.resources[MEMORY]) for address, one in self.scheduler.workers.items()}

        found: dict[str, int] = self.client.sync(in_its_loop)
        return found

    def said(self, futures: Sequence[Any]) -> dict[Any, CallOutcome | None]:
        """What calls that have ended say; None: their process has died, with what they said.

        What is lost is not waited for: Dask would compute it again, wherever it finds a place.
        """
        found = {future: _said_by_dask(future) for future in futures if future.status != "finished"}
        there = [future for future in futures if future not in found]
        while there:
            answer = self.client.sync(self.client.scheduler.gather, keys=[future.key for future in there])
            if answer["status"] == "OK":
                return found | {future: answer["data"][future.key] for future in there}
            lost = set(answer["keys"])
            found |= {future: None for future in there if future.key in lost}
            there = [future for future in there if future.key not in lost]
        return found


@dataclass
class _Scheduling:
    """Tasks under way of one call of `run`, at most a window of them.

    Tasks that had their process die under them are suspects: which of those that it had under way killed
    it, no one knows. When all others are through they are tried again, one alone in each process.
    """

    pool: DaskPool
    call: Callable[[Any], Any]
    pending: dict[Any, TaskState] = field(default_factory=dict)
    again: deque[TaskState] = field(default_factory=deque)
    suspects: deque[TaskState] = field(default_factory=deque)
    ended: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    stopped: bool = False
    leaves: float = math.inf
    number: int = field(default_factory=lambda: next(_numbers))
    _alive: float = field(default_factory=time.monotonic)

    def answers(self, tasks: Iterator[Task]) -> Iterator[Answer]:
        more = True
        while True:
            if self.pool.attempt.stopping.is_set():
                self._stop()
            else:
                more = self._fill(tasks, more)
            through = self.stopped or not (more or self.again or self.suspects)
            if (through and not self.pending) or time.monotonic() > self.leaves:
                return
            yield from self._ended()
            self._check_workers()

    # ------------------------------------------------------------ giving out

    def _fill(self, tasks: Iterator[Task], more: bool) -> bool:
        """Gives out what fits into the window; whether `tasks` has more."""
        window = max(1, AHEAD * self.pool.scheduler.total_nthreads)
        turns: list[TaskState] = []
        while len(self.pending) + len(turns) < window and (self.again or more):
            if self.again:
                turns.append(self.again.popleft())
            elif task := next(tasks, None):
                turns.append(TaskState(task))
            else:
                more = False
        self._give(turns)
        if not more and not self.again:
            self._give_alone()
        return more

    def _give(self, turns: Sequence[TaskState]) -> None:
        """To any process, but for what has raised in one: to another, where one can hold it."""
        if not turns:
            return
        shares = self.pool.shares()
        for avoid, some in _grouped(turns, lambda turn: turn.avoid):
            others = {address: share for address, share in shares.items() if address != avoid}
            self._submit(some, shares, list(others) if avoid else None)

    def _give_alone(self) -> None:
        """One suspect to each process that has nothing else and can hold it, once only suspects are left."""
        if not self.suspects or any(not turn.place for turn in self.pending.values()):
            return
        taken, shares = {turn.place for turn in self.pending.values()}, self.pool.shares()
        for address, share in shares.items():
            if address not in taken and self.suspects:
                turn = self.suspects.popleft()
                if share < _booked(turn, shares):
                    self.suspects.append(turn)
                    continue
                turn.place = address
                self._submit([turn], shares, [address])

    def _submit(self, turns: Sequence[TaskState], shares: Mapping[str, int], among: list[str] | None) -> None:
        """Tasks of one memory go together; `among`: the workers that may have them, if one of these can."""
        for memory, some in _grouped(turns, lambda turn: _booked(turn, shares)):
            workers = [address for address in among or () if shares[address] >= memory] or None
            futures = self.pool.client.map(
                call_here, [self.call] * len(some), [turn.task.argument for turn in some],
                key=[self._key(turn) for turn in some], pure=False, workers=workers,
                resources={MEMORY: memory},
            )  # fmt: skip
            for future, turn in zip(futures, some, strict=True):
                turn.booked = memory
                self.pending[future] = turn
                future.add_done_callback(self.ended.put)

    def _key(self, turn: TaskState) -> tuple[Any, ...]:
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
        said_of = self.pool.said(futures)
        if died := sum(said is None for said in said_of.values()):
            self.pool.attempt.log(f"a process died; what it had begun is computed again: {died} tasks")
        for future, said in said_of.items():
            answer = self._answer(self.pending.pop(future), said)
            future.release()
            if answer is not None:
                yield answer

    def _answer(self, turn: TaskState, said: CallOutcome | None) -> Answer | None:
        """The answer, unless the task is tried again; `said` is None when its process died."""
        name = turn.task.name
        if said is None:
            return self._suspect(turn)
        if not said.problem:
            return Answer(name, pickle.loads(said.value))  # noqa: S301  (from our own process)
        if said.blocked:
            raise AbortRun(said.problem)
        turn.raised += 1
        if not said.again or turn.raised >= TRIES:
            return Answer(name, problem=said.problem)
        turn.avoid = said.worker
        (self.suspects if turn.place else self.again).append(turn)
        return None

    def _suspect(self, turn: TaskState) -> Answer | None:
        turn.died += 1
        turn.place = ""
        if turn.died >= TRIES:
            return Answer(turn.task.name, problem=f"its process died {turn.died} times")
        self.suspects.append(turn)
        return None

    def _take_back_stranded(self) -> None:
        """What waits for worker processes that have gone: those it was given to, or all that can hold it."""
        known, shares = self.pool.scheduler.tasks, self.pool.shares()
        for future, turn in list(self.pending.items()):
            task, bound = known.get(future.key), turn.place or turn.avoid
            if task is None or task.state != "no-worker":
                continue
            if self.stopped or bound or turn.booked > max(shares.values(), default=turn.booked):
                self.pending.pop(future)
                future.cancel()
                (self.suspects if turn.place else self.again).append(turn)
                turn.place = turn.avoid = ""

    # ------------------------------------------------------------ ending

    def _stop(self) -> None:
        """Takes back all that no process has begun; no process begins another."""
        if self.stopped:
            return
        self.stopped = True
        self.leaves = time.monotonic() + self.pool.patience_s
        begun: set[Any] = set()
        for keys in self.pool.client.run(pause, on_error="ignore").values():
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


def _booked(turn: TaskState, shares: Mapping[str, int]) -> int:
    """What a task has of a share: all of the greatest, if it takes more."""
    return max(1, min(turn.task.memory, max(shares.values(), default=turn.task.memory)))


def _grouped(
    turns: Sequence[TaskState], of: Callable[[TaskState], Any]
) -> Iterator[tuple[Any, list[TaskState]]]:
    """The turns of which something is the same, in the order in which they came."""
    groups: dict[Any, list[TaskState]] = {}
    for turn in turns:
        groups.setdefault(of(turn), []).append(turn)
    yield from groups.items()


def _said_by_dask(future: Any) -> CallOutcome | None:
    """What became of a call that said nothing itself: None if its process died; else it could not be sent."""
    from distributed import KilledWorker

    error = future.exception() if future.status == "error" else None
    if error is None or isinstance(error, KilledWorker):
        return None
    return CallOutcome(problem=f"{type(error).__name__}: {error}", again=True)
