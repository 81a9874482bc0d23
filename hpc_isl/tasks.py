"""The work of a stage: tasks for processes that may die, and timed phases that predict a planned run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Task:
    """One call, which any process may compute, also again after a crash: it writes the same files each time.

    Attributes:
        name: unique among the tasks that are handed out together.
        argument: small and picklable: coordinates and paths, never arrays.
        memory: bytes that the call takes at most.
    """

    name: str
    argument: Any
    memory: int = 0


@dataclass(frozen=True)
class Answer:
    """The result of a task.

    Attributes:
        value: what the call returned; small.
        problem: why there is no value: what the call raised each time, or that its processes died.
    """

    name: str
    value: Any = None
    problem: str = ""


class Pool(Protocol):
    """Processes that wait for tasks, on one machine or several."""

    @property
    def workers(self) -> int:
        """The present number of processes."""

    def run(self, call: Callable[[Any], Any], tasks: Iterable[Task]) -> Iterator[Answer]:
        """Yields answers in the order of completion, one for each task that was begun.

        A task that fails, or loses its process, is tried again elsewhere; one that fails each time is
        answered with its problem. Once the attempt is asked to stop no task is begun, those under way are
        waited for a while, and the rest is left out.

        Args:
            call: a function at the top of a module.
            tasks: read as they are begun.

        Raises:
            AbortRun: a call has raised it; tasks under way are not waited for.
        """


@dataclass(frozen=True)
class MemoryRequirement:
    """Memory that the processes of a pool need, in bytes.

    Attributes:
        process: of each process, before its first task and between tasks.
        task: of the largest task, beside that.
    """

    process: int
    task: int

    @property
    def whole(self) -> int:
        return self.process + self.task


Pools = Callable[[MemoryRequirement], AbstractContextManager[Pool]]
"""Starts processes with the memory that is needed, as many as CPUs (or GPUs) and memory allow."""


# ---------------------------------------------------------------- how long work takes

START, END = "start", "end"  # phases that every run has once, however many processes share the rest
Timed = Mapping[str, Sequence[float]]
"""Phase -> seconds and units that were timed."""


@dataclass(frozen=True)
class Workload:
    """The work that a run will do.

    Attributes:
        like: all that the time of a unit depends on, as plain JSON, apart from the machine.
        units: phase -> its units, over all processes, as in {"micro-batches": 8000}.
    """

    like: Mapping[str, Any]
    units: Mapping[str, float]


@dataclass
class Clock:
    """Times the phases of an attempt: the time between two ticks belongs to the later one.

    Attributes:
        begun: when the process was started, in seconds since 1970.
        phases: the seconds and units of this process.
        firsts: those of the first tick of each phase, which is slower: something is loaded, or compiled.
    """

    begun: float = field(default_factory=time.time)
    phases: dict[str, list[float]] = field(default_factory=dict)
    firsts: dict[str, list[float]] = field(default_factory=dict)
    _started: float | None = None
    _last: float = 0.0

    @property
    def lasted_s(self) -> float:
        """Seconds since the first unit was done; 0 until it is."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    def tick(self, phase: str, units: float) -> None:
        """Records that so many units of a phase are done; the very first unit of all belongs to the start.

        Work that a run does once ends with a last tick of the phase `END`, of one unit.
        """
        moment = time.monotonic()
        if self._started is None:
            self._started = moment
            self.phases[START] = [time.time() - self.begun, 1.0]
        elif phase in self.firsts or phase == END:
            total = self.phases.setdefault(phase, [0.0, 0.0])
            total[0] += moment - self._last
            total[1] += units
        else:
            # The first tick of a phase is kept apart, because it loads or compiles something.
            self.firsts[phase] = [moment - self._last, units]
        self._last = moment

    def timed(self) -> Timed:
        """Returns the phases without their first ticks, except for those that had no others."""
        return {**self.firsts, **self.phases}


@dataclass(frozen=True)
class Estimate:
    """The predicted time of a run: seconds by phase, and the names of the runs that were timed for it."""

    seconds: Mapping[str, float]
    sources: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def estimate(work: Workload, timed: Iterable[tuple[str, Timed]], processes: int) -> Estimate | None:
    """Predicts the time of a run from phases that were timed in runs of the same `like`.

    Args:
        timed: names of runs, and their phases.
        processes: that share the units.

    Returns:
        None if a phase of the run was never timed.
    """
    sums: dict[str, list[float]] = {}
    sources: dict[str, None] = {}  # an ordered set: several attempts of a run may have been timed
    for name, phases in timed:
        sources[name] = None
        for phase, (seconds, units) in phases.items():
            total = sums.setdefault(phase, [0.0, 0.0])
            total[0], total[1] = total[0] + seconds, total[1] + units
    rates = {phase: seconds / units for phase, (seconds, units) in sums.items() if units > 0}
    planned_units = {phase: units for phase, units in work.units.items() if units > 0}
    if not rates.keys() >= {START, *planned_units}:
        return None
    shared = {phase: rates[phase] * units / processes for phase, units in planned_units.items()}
    return Estimate({START: rates[START]} | shared | {END: rates.get(END, 0.0)}, tuple(sources))
