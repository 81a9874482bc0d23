"""Tasks: calls that a stage hands out to processes which may die, and their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
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
