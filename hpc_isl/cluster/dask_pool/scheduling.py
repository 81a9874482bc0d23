"""Tasks go to the worker processes of a pool, which may die, and answers come back."""

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

from hpc_isl.cluster.dask_pool.processes import MEMORY, CallOutcome, call_here, pause
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
    """A task and how its tries went.

    Attributes:
        errors: how often its call has raised.
        deaths: how often its process has died; after the first time it is tried alone.
        avoided_worker: the worker where it raised.
        worker: the worker that computes it alone.
        reserved: bytes of its worker's share that it takes.
    """

    task: Task
    errors: int = 0
    deaths: int = 0
    avoided_worker: str = ""
    worker: str = ""
    reserved: int = 0


@dataclass(frozen=True)
class DaskPool:
    """`hpc_isl.tasks.Pool`, with a Dask scheduler in this process.

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
        scheduling = _Scheduling(self, call)
        try:
            yield from scheduling.answers(iter(tasks))
        finally:
            if scheduling.pending:  # what is still under way is not waited for
                self.client.cancel(list(scheduling.pending))
                scheduling.pending.clear()

    def shares(self) -> dict[str, int]:
        """Returns the address of each worker process -> bytes that its tasks may take together."""

        async def in_its_loop() -> dict[str, int]:
            return {
                address: int(worker.resources[MEMORY]) for address, worker in self.scheduler.workers.items()
            }

        shares: dict[str, int] = self.client.sync(in_its_loop)
        return shares

    def outcomes(self, futures: Sequence[Any]) -> dict[Any, CallOutcome | None]:
        """Returns the outcomes of calls that have ended; None: their process has died, with the outcome.

        What is lost is not waited for: Dask would compute it again on any process.
        """
        outcomes = {future: _outcome_by_dask(future) for future in futures if future.status != "finished"}
        unanswered = [future for future in futures if future not in outcomes]
        while unanswered:
            answer = self.client.sync(
                self.client.scheduler.gather, keys=[future.key for future in unanswered]
            )
            if answer["status"] == "OK":
                return outcomes | {future: answer["data"][future.key] for future in unanswered}
            lost_keys = set(answer["keys"])
            outcomes |= {future: None for future in unanswered if future.key in lost_keys}
            unanswered = [future for future in unanswered if future.key not in lost_keys]
        return outcomes


@dataclass
class _Scheduling:
    """The tasks of one call of `run` that are under way, at most a window of them.

    Tasks whose process died are suspects: which of those that it computed killed it is not known. When all
    others are done they are tried again, one alone in each process.
    """

    pool: DaskPool
    call: Callable[[Any], Any]
    pending: dict[Any, TaskState] = field(default_factory=dict)
    retries: deque[TaskState] = field(default_factory=deque)
    suspects: deque[TaskState] = field(default_factory=deque)
    ended_futures: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    stopped: bool = False
    deadline: float = math.inf
    number: int = field(default_factory=lambda: next(_numbers))
    _alive: float = field(default_factory=time.monotonic)

    def answers(self, tasks: Iterator[Task]) -> Iterator[Answer]:
        has_more = True
        while True:
            if self.pool.attempt.stopping.is_set():
                self._stop()
            else:
                has_more = self._fill(tasks, has_more)
            finished = self.stopped or not (has_more or self.retries or self.suspects)
            if (finished and not self.pending) or time.monotonic() > self.deadline:
                return
            yield from self._ended_answers()
            self._check_workers()

    # ------------------------------------------------------------ giving out

    def _fill(self, tasks: Iterator[Task], has_more: bool) -> bool:
        """Submits what fits into the window; returns whether `tasks` has more."""
        window = max(1, AHEAD * self.pool.scheduler.total_nthreads)
        states: list[TaskState] = []
        while len(self.pending) + len(states) < window and (self.retries or has_more):
            if self.retries:
                states.append(self.retries.popleft())
            elif task := next(tasks, None):
                states.append(TaskState(task))
            else:
                has_more = False
        if states:
            shares = self.pool.shares()
            for avoid, group in _groups_by(states, lambda state: state.avoided_worker):
                # What has raised in one process goes to another, where one can hold it.
                other_addresses = [address for address in shares if address != avoid] if avoid else None
                self._submit(group, shares, other_addresses)
        if not has_more and not self.retries:
            self._submit_suspects()
        return has_more

    def _submit_suspects(self) -> None:
        """Submits one suspect to each idle process that can hold it, once only suspects are left."""
        if not self.suspects or any(not state.worker for state in self.pending.values()):
            return
        busy_addresses, shares = {state.worker for state in self.pending.values()}, self.pool.shares()
        for address, share in shares.items():
            if address not in busy_addresses and self.suspects:
                state = self.suspects.popleft()
                if share < _reserved_memory(state, shares):
                    self.suspects.append(state)
                    continue
                state.worker = address
                self._submit([state], shares, [address])

    def _submit(
        self, states: Sequence[TaskState], shares: Mapping[str, int], allowed: list[str] | None
    ) -> None:
        """Submits tasks; `allowed`: the workers that may compute them, if one of these can."""
        for memory, group in _groups_by(states, lambda state: _reserved_memory(state, shares)):
            workers = [address for address in allowed or () if shares[address] >= memory] or None
            futures = self.pool.client.map(
                call_here, [self.call] * len(group), [state.task.argument for state in group],
                key=[self._key(state) for state in group], pure=False, workers=workers,
                resources={MEMORY: memory},
            )  # fmt: skip
            for future, state in zip(futures, group, strict=True):
                state.reserved = memory
                self.pending[future] = state
                future.add_done_callback(self.ended_futures.put)

    def _key(self, state: TaskState) -> tuple[Any, ...]:
        """Returns a new key; Dask counts together those that begin alike."""
        name = f"{self.call.__name__}-{self.number}"
        return name, state.task.name, state.errors, state.deaths, time.monotonic_ns()

    # ------------------------------------------------------------ taking back

    def _ended_answers(self) -> Iterator[Answer]:
        """Yields answers of the tasks that have ended by now; waits a moment for the first."""
        try:
            futures = [self.ended_futures.get(timeout=LOOK_S)]
        except queue.Empty:
            self._take_back_stranded()
            return
        time.sleep(TOGETHER_S)
        while not self.ended_futures.empty():
            futures.append(self.ended_futures.get())
        futures = [future for future in futures if future in self.pending]
        outcomes = self.pool.outcomes(futures)
        if died := sum(outcome is None for outcome in outcomes.values()):
            self.pool.attempt.log(f"a process died; what it had begun is computed again: {died} tasks")
        for future, outcome in outcomes.items():
            answer = self._answer(self.pending.pop(future), outcome)
            future.release()
            if answer is not None:
                yield answer

    def _answer(self, state: TaskState, outcome: CallOutcome | None) -> Answer | None:
        """Returns the answer; None: the task is tried again."""
        name = state.task.name
        if outcome is None:  # its process died
            state.deaths += 1
            state.worker = ""
            if state.deaths >= TRIES:
                return Answer(name, problem=f"its process died {state.deaths} times")
            self.suspects.append(state)
            return None
        if not outcome.problem:
            return Answer(name, pickle.loads(outcome.value))  # noqa: S301  (from our own process)
        if outcome.blocked:
            raise AbortRun(outcome.problem)
        state.errors += 1
        if not outcome.can_retry or state.errors >= TRIES:
            return Answer(name, problem=outcome.problem)
        state.avoided_worker = outcome.worker
        (self.suspects if state.worker else self.retries).append(state)
        return None

    def _take_back_stranded(self) -> None:
        """Takes back what waits for worker processes that have gone: its own, or all that can hold it."""
        dask_tasks, shares = self.pool.scheduler.tasks, self.pool.shares()
        for future, state in list(self.pending.items()):
            task, is_bound = dask_tasks.get(future.key), state.worker or state.avoided_worker
            if task is None or task.state != "no-worker":
                continue
            if self.stopped or is_bound or state.reserved > max(shares.values(), default=state.reserved):
                self.pending.pop(future)
                future.cancel()
                (self.suspects if state.worker else self.retries).append(state)
                state.worker = state.avoided_worker = ""

    # ------------------------------------------------------------ ending

    def _stop(self) -> None:
        """Takes back all that no process has begun; no process begins another task."""
        if self.stopped:
            return
        self.stopped = True
        self.deadline = time.monotonic() + self.pool.patience_s
        begun_keys: set[Any] = set()
        for keys in self.pool.client.run(pause, on_error="ignore").values():
            begun_keys |= set(keys)
        waiting = [future for future in self.pending if not future.done() and future.key not in begun_keys]
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


def _reserved_memory(state: TaskState, shares: Mapping[str, int]) -> int:
    """Returns the memory that a task takes of a share: all of the greatest, if it needs more."""
    return max(1, min(state.task.memory, max(shares.values(), default=state.task.memory)))


def _groups_by(
    states: Sequence[TaskState], key: Callable[[TaskState], Any]
) -> Iterator[tuple[Any, list[TaskState]]]:
    """Yields the turns with the same key, in the order in which they came."""
    groups: dict[Any, list[TaskState]] = {}
    for state in states:
        groups.setdefault(key(state), []).append(state)
    yield from groups.items()


def _outcome_by_dask(future: Any) -> CallOutcome | None:
    """Returns the outcome of a call that Dask did not finish; None: its process died."""
    from distributed import KilledWorker

    error = future.exception() if future.status == "error" else None
    if error is None or isinstance(error, KilledWorker):
        return None
    return CallOutcome(problem=f"{type(error).__name__}: {error}", can_retry=True)
