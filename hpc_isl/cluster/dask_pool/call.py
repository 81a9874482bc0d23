"""One call in a worker process of a pool: what it says, though it fails, and how the process is paused."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpc_isl.errors import AbortRun, UserError

BEGUN = {"executing", "long-running", "memory", "error"}  # of Dask's states of a task in a worker process


@dataclass(frozen=True)
class CallOutcome:
    """What a worker process says of a call: its value, pickled; or why there is none.

    Attributes:
        again: another try may go well; `blocked`: no other task would go well either.
        worker: where it was tried.
    """

    value: bytes = b""
    problem: str = ""
    again: bool = False
    blocked: bool = False
    worker: str = ""


def call_here(call: Callable[[Any], Any], argument: Any) -> CallOutcome:
    """One task, in a thread of a worker process."""
    from distributed import get_worker

    try:
        return CallOutcome(
            pickle.dumps(call(argument))
        )  # here, for what cannot be sent is a problem of this task
    except UserError as mistake:
        return CallOutcome(problem=str(mistake), blocked=isinstance(mistake, AbortRun))
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        if _spoilt(error):
            os._exit(1)
        text = f"{type(error).__name__}: {error}"
        return CallOutcome(problem=text, again=True, worker=str(get_worker().address))


def _spoilt(error: BaseException) -> bool:
    """Whether no later call in this process can use its GPU: another process can."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def pause(dask_worker: Any) -> list[Any]:
    """In a worker process: it begins no more tasks; those that it has begun, ended ones among them."""
    from distributed.core import Status

    dask_worker.status = Status.paused
    return [key for key, task in dask_worker.state.tasks.items() if task.state in BEGUN]
