"""Notes in an attempt's folder: where it was submitted, what Slurm says about its job, and what it timed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hpc_isl.cluster.run_folder import provenance
from hpc_isl.cluster.slurm import commands
from hpc_isl.cluster.slurm.commands import MACHINES_OWN, ClusterId, QueuedJob, cluster_of, conf_here
from hpc_isl.errors import UserError
from hpc_isl.files import now, only_writer, read_json, same_place, write_atomic
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site, saved_site
from hpc_isl.tasks import Timed

FILE = "timing.json"  # of an attempt
NEWEST = 5  # timed runs that count
HIDDEN = "Slurm shows its job only to the user who submitted it"
Submission = dict[str, Any]
"""The content of `submission.json` in the folder of an attempt."""


class Unanswered(UserError):
    """sbatch has failed and Slurm does not answer: it may have taken a job."""


def note(run: Run, attempt: int, site: Site, **facts: object) -> None:
    """Writes where this attempt was submitted; from now on that is the site of the run."""
    content = {
        "time": now(), "host": socket.gethostname(), "user": os.getuid(), "code": provenance.code_digest(),
        "folder": str(run.folder), "executor": site.executor, **_cluster(site),
        "memory": site.memory, "limit": site.time, **facts,
    }  # fmt: skip
    write_atomic(run.attempts / str(attempt) / "submission.json", json.dumps(content, indent=1))
    # A run may be resumed on another site: it then belongs to that one.
    if saved_site(run.site) != site:
        write_atomic(run.site, to_yaml(site))


def _cluster(site: Site) -> Submission:
    """Returns the Slurm that is meant, also for those who ask it later from another shell."""
    conf, name = cluster_of(site)
    # `""` is the machine's own configuration; null that of the machine that asks, because what a node calls
    # its configuration means nothing elsewhere.
    if conf is None and site.executor == "slurm" and "SLURM_JOB_ID" not in os.environ:
        return {"slurm_conf": str(conf_here() or ""), "cluster": name}
    return {"slurm_conf": conf and str(conf), "cluster": name}


def cluster(submission: Mapping[str, Any]) -> ClusterId:
    """Returns the Slurm that has the job of a submission."""
    conf = submission.get("slurm_conf")
    return Path(conf) if conf else MACHINES_OWN if conf == "" else None, submission.get("cluster")


def is_on(submission: Mapping[str, Any], site: Site) -> bool:
    """Returns whether that site's Slurm has the job."""
    site_cluster = _cluster(site)
    confs = [submission.get("slurm_conf"), site_cluster["slurm_conf"]]
    same_conf = None in confs or same_place(*confs)
    return bool(submission.get("job")) and same_conf and submission.get("cluster") == site_cluster["cluster"]


def newest(run: Run) -> Submission:
    """Returns the newest submission: executor, host, process or job.

    Where the submitting process was ended before it could note the job, a rank's record tells it.
    """
    by_rank: Submission = {}
    for number in reversed(run.attempt_numbers()):
        content = read_json(run.attempts / str(number) / "submission.json")
        if content and not by_rank and content["executor"] == "slurm" and not content.get("job"):
            content = _rank_0_submission(run, number) | content
        if content:  # a later attempt with the same job was started again by Slurm
            return content if by_rank.get("job") in (None, content.get("job")) else by_rank
        by_rank = by_rank or _rank_0_submission(run, number)
    return by_rank


def _rank_0_submission(run: Run, number: int) -> Submission:
    record = read_json(run.attempts / str(number) / "rank-0.json") or {}
    if not record.get("job"):
        return {}
    return {"executor": "slurm", **{key: record.get(key) for key in ("job", "slurm_conf", "node")}}


def newest_of(runs: Iterable[Run]) -> dict[Run, Submission]:
    """Returns the newest submission of each run.

    It holds the job that Slurm has taken even if the submitting process was ended before it could note it.
    `torn`: that process was ended before it could give the job its content; `unheard`: Slurm does not
    answer, so it may have a job.
    """
    by_run = {run: newest(run) for run in runs}
    answers: dict[Any, Mapping[str, str] | None] = {}
    for run, submission in by_run.items():
        # Cut off: the job is not noted, and the process that would note it has ended.
        if submission.get("part") is None or submission.get("job") or watcher(submission) is not None:
            continue
        batch = Run(Path(os.path.normpath(run.folder / submission["batch"])))
        script = commands.script_of(batch.sbatch, submission["part"])
        if script is None:
            continue
        if script.is_symlink():  # submitit renames it once sbatch has printed the job's number
            _complete(submission, os.readlink(script).rpartition("/")[2].partition("_")[0])
            continue
        query = (script.stat().st_uid, *cluster(submission))
        if query not in answers:
            answers[query] = commands.jobs_of_scripts(*query)
        jobs = answers[query]
        submission["unheard"], submission["torn"] = jobs is None, True
        _complete(submission, (jobs or {}).get(script.name))
    return by_run


def _complete(submission: Submission, job: str | None) -> None:
    if job:
        submission["job"] = job if submission.get("task") is None else f"{job}_{submission['task']}"


def watcher(submission: Submission) -> psutil.Process | None:
    """Returns the living process that watches over a local run, or submits one; None: it has ended."""
    if submission.get("host") != socket.gethostname():
        return None
    with suppress(psutil.Error, KeyError):  # no key: the process noted its end
        process = psutil.Process(submission["pid"])
        # A later process may have the same id.
        is_same = abs(process.create_time() - submission["pid_started"]) < 1
        if is_same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


# ---------------------------------------------------------------- one job for each run


def superseded(run: Run, attempt: int, job: str) -> bool:
    """Returns whether the run was submitted again as another job: nothing knows of this one any more."""
    later_numbers = (number for number in run.attempt_numbers() if number > attempt)
    contents = (read_json(run.attempts / str(number) / "submission.json") for number in later_numbers)
    return any(content is not None and content.get("job") != job for content in contents)


@contextmanager
def alone(run: Run) -> Iterator[None]:
    """Holds the lock under which the run, or its array, is submitted.

    Raises:
        UserError: another process holds it.
    """
    with only_writer((run.array or run).folder / ".submit.lock") as has_lock:
        if not has_lock:
            raise UserError(f"{run.label!r} is being started by another process just now; see `status`")
        yield


# ---------------------------------------------------------------- what Slurm says


@dataclass(frozen=True)
class NoAnswer:
    """Slurm does not report a job, which may exist all the same: the run's folder alone can tell."""

    reason: str = "Slurm does not answer"


def job_states(by_run: Mapping[Run, Submission]) -> dict[Run, QueuedJob | NoAnswer]:
    """Returns what Slurm says about each run that was submitted to it, where it says something."""
    answers: dict[Run, QueuedJob | NoAnswer] = {
        run: NoAnswer() for run, submission in by_run.items() if submission.get("unheard")
    }
    for cluster_id, names in by_cluster(by_run).items():
        queued_jobs = commands.queue(names.values(), *cluster_id)
        if queued_jobs is None:
            answers |= dict.fromkeys(names, NoAnswer())
            continue
        # Slurm restarts its numbers now and then: a job of that number in another folder is another job.
        known_jobs = {run: queued_jobs[name] for run, name in names.items() if name in queued_jobs}
        answers |= {run: job for run, job in known_jobs.items() if _is_job_of(run, by_run[run], job.folder)}
        runs_of_others = [run for run in names if by_run[run].get("user", os.getuid()) != os.getuid()]
        if (hidden := set(runs_of_others) - set(known_jobs)) and commands.hides_jobs_of_others(*cluster_id):
            answers |= dict.fromkeys(hidden, NoAnswer(HIDDEN))
    return answers


def by_cluster(by_run: Mapping[Run, Submission]) -> dict[ClusterId, dict[Run, str]]:
    """Returns the jobs of those runs that Slurm has, by its cluster."""
    jobs: dict[ClusterId, dict[Run, str]] = {}
    for run, submission in by_run.items():
        if submission.get("job"):
            jobs.setdefault(cluster(submission), {})[run] = str(submission["job"])
    return jobs


def _is_job_of(run: Run, submission: Submission, folder: str) -> bool:
    """Returns whether the job that works in `folder` is the one that was submitted.

    Slurm keeps the folder as sbatch was given it: that is compared, however the run is reached now, and even
    if it was moved since.
    """
    if not folder or submission["executor"] == "allocation":
        return True
    if "workdir" not in submission:
        return any(same_place(folder, candidate.folder) for candidate in (run, run.array or run))
    # A copy of a run is another run: the folder that was submitted still exists beside it.
    source = submission["folder"]
    copied = os.path.exists(source) and not same_place(source, run.folder)
    return same_place(folder, submission["workdir"]) and not copied


# ---------------------------------------------------------------- timed steps


def machine(site: Site, cpus: int) -> dict[str, Any]:
    """Returns what decides how fast a run computes; nodes of one Slurm partition count as alike."""
    location = [socket.gethostname(), None]
    if site.executor == "slurm":
        location = [str(site.slurm_conf), site.partition, site.constraint]
    elif site.executor == "allocation":
        location = [os.environ.get("SLURM_CLUSTER_NAME"), os.environ.get("SLURM_JOB_PARTITION")]
    return {
        "where": [site.executor, *location], "nodes": site.nodes, "processes": site.per_node, "cpus": cpus,
        "gpus": site.visible_gpus, "workers": site.workers,
    }  # fmt: skip


def note_timing(attempt: Attempt, site: Site) -> None:
    """Writes what the attempt has timed into its folder; nothing for stages that are not timed."""
    like = (read_json(attempt.run.record) or {}).get("like")
    if like and (phases := attempt.clock.timed()):
        content = {"like": like, "machine": machine(site, attempt.cpus), "phases": phases}
        write_atomic(attempt.folder / FILE, json.dumps(content, indent=1))


def timings(
    roots: Sequence[Path], like: Mapping[str, Any], machine_: Mapping[str, Any]
) -> list[tuple[str, Timed]]:
    """Returns the newest timings of runs that were alike, on such a machine."""
    depths = ("*/*", "*/*/*/*")  # of runs, and of elements of arrays
    paths = [file for root in roots for depth in depths for file in root.glob(f"{depth}/attempts/*/{FILE}")]
    expected = json.loads(json.dumps([like, machine_]))  # as they are read back
    newest_timings: list[tuple[str, Timed]] = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        content = read_json(path) or {}
        if [content.get("like"), content.get("machine")] == expected:
            newest_timings.append((Run(path.parents[2]).label, content["phases"]))
        if len(newest_timings) == NEWEST:
            break
    return newest_timings
