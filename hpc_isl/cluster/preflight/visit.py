"""A small job that probes the compute nodes: submitted, waited for, ended, with what each node wrote."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hpc_isl.cluster.preflight import probe
from hpc_isl.cluster.preflight.probe import Facts
from hpc_isl.cluster.run_folder.job import interpreter
from hpc_isl.cluster.run_folder.provenance import python_path, snapshot
from hpc_isl.cluster.run_folder.status import STATE_OF_JOB, RunState
from hpc_isl.cluster.slurm.commands import QueuedJob, ask, cluster_of, queue, uninterrupted
from hpc_isl.cluster.slurm.demand import megabytes
from hpc_isl.sbatch_flags import merged
from hpc_isl.site import Site

NODES = 2  # enough to see whether nodes reach each other
MINUTES = 5
MEMORY = "2G"
POLL_S = 0.5
LATE_S = 20.0  # a network file system may show a file this long after it was written
ENDED = {
    "COMPLETED",
    *(
        job_state
        for job_state, state in STATE_OF_JOB.items()
        if state in (RunState.FAILED, RunState.CANCELLED)
    ),
}
# A job that waits for one of these waits for ever.
NEVER = {
    "PartitionTimeLimit", "PartitionNodeLimit", "PartitionInactive", "PartitionDown", "InvalidAccount",
    "InvalidQOS", "BadConstraints", "AccountNotAllowed", "QOSNotAllowed", "JobHeldAdmin", "JobHeldUser",
    "AssocMaxWallDurationPerJobLimit", "QOSMaxWallDurationPerJobLimit", "ReservationDeleted",
}  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """One job that probes nodes.

    Attributes:
        folder: in which the nodes write.
        nodes: how many are to write.
        job: Slurm's name of it; empty: it was refused.
        refusal: sbatch's output then.
        submit_time: when, by the clock of this machine.
    """

    site: Site
    folder: Path
    nodes: int
    job: str = ""
    refusal: str = ""
    submit_time: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a visit ended.

    Attributes:
        facts: of each node that wrote.
        seen_times: when each was seen here, by this machine's clock.
        state, reason: Slurm's last answer about the job.
        patient: whether it was waited for to its end.
        last_lines: of the job's own log.
    """

    facts: tuple[Facts, ...] = ()
    seen_times: tuple[float, ...] = ()
    state: str = ""
    reason: str = ""
    patient: bool = True
    last_lines: tuple[str, ...] = field(default=())


@contextmanager
def visiting(site: Site, folder: Path, tracking: str | None) -> Iterator[Visit]:
    """Submits the job, and leaves none behind, whenever it is interrupted."""
    visit: Visit | None = None
    try:
        with uninterrupted():
            visit = _submit(site, folder, tracking)
        yield visit
    finally:
        if visit is not None and visit.job:
            _end(visit)


def _submit(site: Site, folder: Path, tracking: str | None) -> Visit:
    """Submits the job: as the site says, but small. It runs the code that real jobs would run."""
    snapshot(folder / "code")
    nodes = min(site.nodes, NODES)
    command = ["sbatch", "--parsable", *_flags(site, folder, nodes)]
    submitted = time.time()
    code, out, errors = ask(command, site.slurm_conf, stdin=script(site, folder, tracking))
    if code:
        return Visit(site, folder, nodes, refusal=errors or out or f"sbatch ended with {code}")
    job = out.splitlines()[-1].split(";")[0]
    return Visit(site, folder, nodes, job, submit_time=submitted)


def _flags(site: Site, folder: Path, nodes: int) -> Iterator[str]:
    """Yields the flags of sbatch; the site's own replace ours."""
    # Little memory, so that the job starts soon; by default the cluster's.
    memory = site.memory and min(site.memory, MEMORY, key=megabytes)
    flags: dict[str, object] = {
        "job-name": "hpc-isl-doctor", "nodes": nodes, "ntasks-per-node": 1, "cpus-per-task": site.cpus or 1,
        "time": MINUTES, "mem": memory, "gpus-per-node": site.visible_gpus or None,
        "partition": site.partition, "account": site.account, "qos": site.qos,
        "constraint": site.constraint, "reservation": site.reservation, "chdir": folder,
        "output": str(folder / "job.log").replace("%", "%%"), "no-requeue": True,
    }  # fmt: skip
    for key, value in merged(flags, site.sbatch).items():
        yield f"--{key}" if value is True else f"--{key}={value}"


def script(site: Site, folder: Path, tracking: str | None) -> str:
    """Returns the job's script: the site's own lines, then the probe on each node."""
    path = python_path(folder / "code")
    command = ["-m", "hpc_isl.cluster.preflight.probe", str(folder), *([tracking] if tracking else [])]
    lines = [
        "#!/bin/bash",
        *site.setup,
        f"export PYTHONPATH={shlex.quote(path)} SRUN_CPUS_PER_TASK={site.cpus or 1}",
        f"srun --export=ALL {interpreter(site)} {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- until it ends


def wait(visit: Visit, patience_s: float, log: Callable[[str], None]) -> Outcome:
    """Waits for all nodes to write, and logs what Slurm says meanwhile."""
    start_time, logged_state, seen_times = time.monotonic(), "", dict[int, float]()
    job: QueuedJob | None = None
    while len(seen_times) < visit.nodes:
        if job and (job.state in ENDED or (job.state == "PENDING" and job.reason.split(",")[0] in NEVER)):
            break
        if time.monotonic() - start_time > patience_s:
            return _outcome(visit, seen_times, job, patient=False)
        job = _ask_slurm(visit) or job
        job_state = f"{job.state} ({job.reason})" if job and job.reason else job.state if job else ""
        if job_state and job_state != logged_state:
            log(f"job {visit.job}: {job_state}")
            logged_state = job_state
        _look(visit, seen_times)
        time.sleep(POLL_S)
    if job is not None and job.state in ENDED:
        # What was written in the job's last moments comes late on a network file system.
        deadline = time.monotonic() + (LATE_S if seen_times or not _log(visit) else 1.0)
        while len(seen_times) < visit.nodes and time.monotonic() < deadline:
            _look(visit, seen_times)
            time.sleep(POLL_S)
    return _outcome(visit, seen_times, job)


def _ask_slurm(visit: Visit) -> QueuedJob | None:
    """Returns what Slurm says about the job; one that it has forgotten has ended."""
    answer = queue([visit.job], *cluster_of(visit.site))
    if answer is None:
        return None
    return answer.get(visit.job, QueuedJob("COMPLETED"))


def _look(visit: Visit, seen_times: dict[int, float]) -> None:
    os.listdir(visit.folder)  # makes a network file system look again
    for rank in range(visit.nodes):
        if rank not in seen_times and _report(visit, rank).exists():
            seen_times[rank] = time.time()


def _report(visit: Visit, rank: int) -> Path:
    return visit.folder / f"node-{rank}.json"


def _outcome(
    visit: Visit, seen_times: dict[int, float], job: QueuedJob | None, patient: bool = True
) -> Outcome:
    answers = {rank: probe.read(_report(visit, rank)) for rank in sorted(seen_times)}
    facts = {rank: answer for rank, answer in answers.items() if answer is not None}
    return Outcome(
        tuple(facts.values()), tuple(seen_times[rank] for rank in facts),
        job.state if job else "", job.reason if job else "", patient, tuple(_log(visit)[-8:]),
    )  # fmt: skip


def _log(visit: Visit) -> list[str]:
    try:
        text = (visit.folder / "job.log").read_text(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]


def _end(visit: Visit) -> None:
    """Waits a moment for a job that has reported; any other is cancelled."""
    deadline = time.monotonic() + 5.0
    while all(_report(visit, rank).exists() for rank in range(visit.nodes)) and time.monotonic() < deadline:
        job = _ask_slurm(visit)
        if job is None or job.state in ENDED:
            return
        time.sleep(POLL_S)
    conf, cluster = cluster_of(visit.site)
    ask(["scancel", visit.job], conf, cluster=cluster)
