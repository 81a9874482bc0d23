"""How long work takes: phases timed as a run goes, and what they say about a run that is planned."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

START, END = "start", "end"  # phases that every run has once, however many processes share the rest


@dataclass(frozen=True)
class Workload:
    """What a run will have to do.

    Attributes:
        like: all that the time of a unit hangs on, as plain JSON, but for the machine.
        units: phase -> its units, over all processes, as in {"micro-batches": 8000}.
    """

    like: Mapping[str, Any]
    units: Mapping[str, float]


Timed = Mapping[str, Sequence[float]]
"""Phase -> seconds and units that were timed."""


@dataclass
class Clock:
    """Times the phases of an attempt: whatever passes between two ticks belongs to the later one.

    Attributes:
        begun: when the process was started, in seconds since 1970.
        phases: what was timed of this process.
        firsts: the same of the first tick of each phase, which is slower: something is loaded, or compiled.
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
        """So many units of a phase are done now; the very first unit of all belongs to the start.

        What a run has once is told by `END`, with one unit at the last.
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
            self.firsts[phase] = [moment - self._last, units]
        self._last = moment

    def timed(self) -> Timed:
        """Phases without their first ticks, but for those that had no others."""
        return {**self.firsts, **self.phases}


@dataclass(frozen=True)
class Estimate:
    """How long a run will take.

    Attributes:
        seconds: by phase.
        sources: the runs whose steps were timed.
    """

    seconds: Mapping[str, float]
    sources: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def estimate(work: Workload, timed: Iterable[tuple[str, Timed]], processes: int) -> Estimate | None:
    """The time of a run, from phases that were timed in runs of the same `like`, the newest first.

    Args:
        timed: name of a run, and its phases.
        processes: among which units are shared out.

    Returns:
        None: a phase that the run will have was never timed.
    """
    sums: dict[str, list[float]] = {}
    sources: dict[str, None] = {}
    for name, phases in timed:
        for phase, (seconds, units) in phases.items():
            total = sums.setdefault(phase, [0.0, 0.0])
            total[0], total[1] = total[0] + seconds, total[1] + units
        sources[name] = None
    rates = {phase: seconds / units for phase, (seconds, units) in sums.items() if units > 0}
    wanted = {phase: units for phase, units in work.units.items() if units > 0}
    if not rates.keys() >= {START, *wanted}:
        return None
    found = {START: rates[START]}
    found |= {phase: rates[phase] * units / processes for phase, units in wanted.items()}
    return Estimate(found | {END: rates.get(END, 0.0)}, tuple(sources))
