"""When a run was worked on, as its attempts tell; of an array, as those of its elements do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from hpc_isl.cluster.run_folder.status import ranks
from hpc_isl.run import Run


def span(run: Run) -> tuple[int, int] | None:
    """Returns when work on the run began and when it ended, in milliseconds since 1970; None: it never began.

    The waits before the first attempt and after the last one belong to neither. A run that is done ended
    with its done record; one that was killed, with the last sign of life of its ranks.
    """
    spans = [times for one in run.elements() or [run] for times in _attempts(one)]
    if not spans:
        return None
    starts, ends = zip(*spans, strict=True)
    return _ms(min(starts)), max(_ms(max(ends)), _ms(min(starts)))


def _attempts(run: Run) -> Iterator[tuple[str, str]]:
    """Start and end of each rank of each attempt, as `files.now` writes them."""
    done = (run.summary() or {}).get("time")
    records = [record for number in run.attempt_numbers() for record in ranks(run, number)]
    for record in records:
        if "start" in record:
            yield record["start"], done or record.get("exit") or record["heartbeat"]
    if done and not records:
        yield done, done


def _ms(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)
