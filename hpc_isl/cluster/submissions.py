"""What each attempt of a run was handed to, noted in its folder; one process at a time hands over."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hpc_isl.cluster import record
from hpc_isl.files import now, only_writer, read_json, write_atomic
from hpc_isl.mistake import Mistake
from hpc_isl.run import Run
from hpc_isl.site import Site, kept
from hpc_isl.strict import to_yaml


def note(run: Run, attempt: int, site: Site, **facts: object) -> None:
    """What this attempt was handed to; the run's site is from now on this one."""
    content = {
        "time": now(), "host": socket.gethostname(), "code": record.code_digest(),
        "executor": site.executor, "slurm_conf": site.slurm_conf and str(site.slurm_conf),
        "memory": site.memory, "limit": site.time, **facts,
    }  # fmt: skip
    write_atomic(run.attempts / str(attempt) / "submission.json", json.dumps(content, indent=1))
    if kept(run.site) != site:
        write_atomic(run.site, to_yaml(site))


def newest(run: Run) -> dict[str, Any]:
    """The newest submission: executor, host, process or job.

    Where the submitting process was ended before it could note it, what a rank says of its job.
    """
    said: dict[str, Any] = {}
    for number in reversed(run.attempt_numbers()):
        content = read_json(run.attempts / str(number) / "submission.json")
        if content and not said and content["executor"] == "slurm" and not content.get("job"):
            content |= _of_the_rank(run, number)
        if content:  # an attempt after it with the same job was started again by Slurm
            return content if said.get("job") in (None, content.get("job")) else said
        said = said or _of_the_rank(run, number)
    return said


def _of_the_rank(run: Run, number: int) -> dict[str, Any]:
    record = read_json(run.attempts / str(number) / "rank-0.json") or {}
    if not record.get("job"):
        return {}
    return {"executor": "slurm", **{key: record.get(key) for key in ("job", "slurm_conf", "node")}}


def overtaken(run: Run, attempt: int, job: str) -> bool:
    """Whether a later submission took the run over: this job is one that nobody knew of any more."""
    for number in run.attempt_numbers():
        content = read_json(run.attempts / str(number) / "submission.json") or {}
        if number > attempt and content.get("job", job) != job:
            return True
    return False


@contextmanager
def alone(run: Run) -> Iterator[None]:
    """Only one process at a time hands the run, or its array, over; another is told so."""
    folder = (run.array or run).folder
    with only_writer(folder / ".submit.lock") as mine:
        if not mine:
            raise Mistake(f"{run.label!r} is being started by another process just now; see `status`")
        yield
