"""The element of an array that waits until all others have ended, where its stage has arranged one."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_isl.files import read_json
from hpc_isl.run import Run


def of(run: Run) -> Run | None:
    """The last element of the array, if it has one."""
    name = (read_json(run.elements_file) or {}).get("last")
    return Run(run.folder / name) if name else None


def other_elements(run: Run) -> list[Run]:
    """The elements of the array that it waits for."""
    final = of(run)
    return [one for one in run.elements() if one != final]


def is_final_element(run: Run) -> bool:
    """Whether the run is the last element of its array."""
    return run.array is not None and of(run.array) == run


def leads_to_another(run: Run) -> bool:
    """Whether the run is an element of an array that has a last one, which is not this one."""
    return run.array is not None and of(run.array) not in (None, run)


def along(run: Run, members: Sequence[Run]) -> list[Run]:
    """These elements of the array, and after them the last one, unless it is done."""
    final = of(run)
    first = [one for one in members if one != final]
    return [*first, final] if final and final.summary() is None else first
