"""A small job that looks at the compute nodes: submitted, waited for, ended, with what each node wrote."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpc_isl.cluster.preflight import probe
from hpc_isl.cluster.preflight.probe import Facts
from hpc_isl.cluster.run_folder.job import interpreter
from hpc_isl.cluster.run_folder.provenance import python_path, snapshot
from hpc_isl.cluster.run_folder.status import STATE_OF_JOB, RunState
from hpc_isl.cluster.slurm.commands import ask, cluster_of
from hpc_isl.cluster.slurm.demand import megabytes
from hpc_isl.cluster.slurm.queue import QueuedJob, queue
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
    """One such job.

    Attributes:
        folder: in which the nodes write.
        nodes: that are to write.
        job: Slurm's name of it; empty: it was refused.
        refused: sbatch's words then.
        submitted: when, by the clock of this machine.
    """

    site: Site
    folder: Path
    nodes: int
    job: str = ""
    refused: str = ""
    submitted: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a visit ended.

    Attributes:
        facts: of each node that wrote.
        seen: when each was seen here, by this machine's clock.
        state, reason: Slurm's last word on the job.
        patient: whether it was waited for to its end.
        log: the job's own last lines.
    """

    facts: tuple[Facts, ...] = ()
    seen: tuple[float, ...] = ()
    state: str = ""
    reason: str = ""
    patient: bool = True
    last_lines: tuple[str, ...] = field(default=())


def visit(site: Site, folder: Path, tracking: str | None) -> Visit:
    """Submits the job: as the site says, but small. It runs the code that real jobs would run."""
    snapshot(folder / "code")
    nodes = min(site.nodes, NODES)
    command = ["sbatch", "--parsable", *_flags(site, folder, nodes)]
    submitted = time.time()
    code, out, errors = ask(command, site.slurm_conf, given=script(site, folder, tracking))
    if code:
        return Visit(site, folder, nodes, refused=errors or out or f"sbatch ended with {code}")
    job = out.splitlines()[-1].split(";")[0]
    return Visit(site, folder, nodes, job, submitted=submitted)


def _flags(site: Site, folder: Path, nodes: int) -> Iterator[str]:
    """Of sbatch; given as arguments, where names with blanks need no quotes. The site's own win."""
    given: dict[str, object] = {
        "job-name": "hpc-isl-doctor", "nodes": nodes, "ntasks-per-node": 1, "cpus-per-task": site.cpus or 1,
        "time": MINUTES, "mem": _memory(site), "gpus-per-node": site.visible_gpus or None,
        "partition": site.partition, "account": site.account, "qos": site.qos,
        "constraint": site.constraint, "reservation": site.reservation, "chdir": folder,
        "output": str(folder / "job.log").replace("%", "%%"), "no-requeue": True,
    }  # fmt: skip
    for key, value in merged(given, site.sbatch).items():
        yield f"--{key}" if value is True else f"--{key}={value}"


def _memory(site: Site) -> str | None:
    """Little, so that the job starts soon; as the site says where that is less, or the cluster's default."""
    if site.memory is None:
        return None
    return min(site.memory, MEMORY, key=megabytes)


def script(site: Site, folder: Path, tracking: str | None) -> str:
    """What the job does: the site's own lines, then the probe on each node."""
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


def wait(made: Visit, patience_s: float, log: Callable[[str], None]) -> Outcome:
    """Waits for all nodes to write, says what Slurm says meanwhile, and leaves no job behind."""
    began, said, seen = time.monotonic(), "", dict[int, float]()
    word: QueuedJob | None = None
    try:
        while not _over(made, seen, word):
            if time.monotonic() - began > patience_s:
                return _outcome(made, seen, word, patient=False)
            word = _word(made) or word
            now = f"{word.state} ({word.reason})" if word and word.reason else word.state if word else ""
            if now and now != said:
                log(f"job {made.job}: {now}")
                said = now
            _look(made, seen)
            time.sleep(POLL_S)
        if word is not None and word.state in ENDED:
            _look_late(made, seen)
        return _outcome(made, seen, word)
    finally:
        _end(made)


def _over(made: Visit, seen: dict[int, float], word: QueuedJob | None) -> bool:
    hopeless = word is not None and word.state == "PENDING" and word.reason.split(",")[0] in NEVER
    return len(seen) == made.nodes or hopeless or (word is not None and word.state in ENDED)


def _word(made: Visit) -> QueuedJob | None:
    """Slurm's; a job that it has forgotten has ended."""
    answer = queue([made.job], *cluster_of(made.site))
    if answer is None:
        return None
    return answer.get(made.job, QueuedJob("COMPLETED"))


def _look(made: Visit, seen: dict[int, float]) -> None:
    os.listdir(made.folder)  # a network file system looks again
    for rank in range(made.nodes):
        if rank not in seen and _report(made, rank).exists():
            seen[rank] = time.time()


def _look_late(made: Visit, seen: dict[int, float]) -> None:
    """What was written in the job's last moments comes late on a network file system."""
    deadline = time.monotonic() + (LATE_S if seen or not _log(made) else 1.0)
    while len(seen) < made.nodes and time.monotonic() < deadline:
        _look(made, seen)
        time.sleep(POLL_S)


def _report(made: Visit, rank: int) -> Path:
    return made.folder / f"node-{rank}.json"


def _outcome(made: Visit, seen: dict[int, float], word: QueuedJob | None, patient: bool = True) -> Outcome:
    read = {rank: probe.read(_report(made, rank)) for rank in sorted(seen)}
    facts = {rank: one for rank, one in read.items() if one is not None}
    return Outcome(
        tuple(facts.values()), tuple(seen[rank] for rank in facts),
        word.state if word else "", word.reason if word else "", patient, tuple(_log(made)[-8:]),
    )  # fmt: skip


def _log(made: Visit) -> list[str]:
    try:
        text = (made.folder / "job.log").read_text(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]


def _end(made: Visit) -> None:
    """A job that has reported ends by itself in a moment; any other is cancelled."""
    deadline = time.monotonic() + 5.0
    while all(_report(made, rank).exists() for rank in range(made.nodes)) and time.monotonic() < deadline:
        word = _word(made)
        if word is None or word.state in ENDED:
            return
        time.sleep(POLL_S)
    conf, cluster = cluster_of(made.site)
    ask(["scancel", made.job], conf, cluster=cluster)
