"""What each attempt of a run was handed to, noted in its folder; one process at a time hands over."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hpc_isl.cluster.run_folder import provenance
from hpc_isl.cluster.slurm import queue
from hpc_isl.cluster.slurm.commands import MACHINES_OWN, ClusterId, cluster_of, conf_here
from hpc_isl.cluster.slurm.queue import Queued
from hpc_isl.errors import UserError
from hpc_isl.files import now, only_writer, read_json, same_place, write_atomic
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Run
from hpc_isl.site import Site, kept

Submission = dict[str, Any]


class Unanswered(UserError):
    """sbatch has failed and Slurm does not answer: it may have taken a job."""


def note(run: Run, attempt: int, site: Site, **facts: object) -> None:
    """What this attempt was handed to; the run's site is from now on this one."""
    content = {
        "time": now(), "host": socket.gethostname(), "user": os.getuid(), "code": provenance.code_digest(),
        "folder": str(run.folder), "executor": site.executor, **_cluster(site),
        "memory": site.memory, "limit": site.time, **facts,
    }  # fmt: skip
    write_atomic(run.attempts / str(attempt) / "submission.json", json.dumps(content, indent=1))
    if kept(run.site) != site:
        write_atomic(run.site, to_yaml(site))


def _cluster(site: Site) -> Submission:
    """Which Slurm is meant, also for those who ask it later from another shell.

    `""` is the machine's own; null that of whoever asks: what a node calls its configuration says nothing
    elsewhere.
    """
    conf, name = cluster_of(site)
    on_node = "SLURM_JOB_ID" in os.environ
    if conf is None and site.executor == "slurm" and not on_node:
        return {"slurm_conf": str(conf_here() or ""), "cluster": name}
    return {"slurm_conf": conf and str(conf), "cluster": name}


def cluster(asked: Mapping[str, Any]) -> ClusterId:
    """The same of the Slurm that has a job."""
    conf = asked.get("slurm_conf")
    return Path(conf) if conf else MACHINES_OWN if conf == "" else None, asked.get("cluster")


def is_on(asked: Mapping[str, Any], site: Site) -> bool:
    """Whether that site's Slurm has the job."""
    here = _cluster(site)
    confs = [asked.get("slurm_conf"), here["slurm_conf"]]
    same = None in confs or same_place(*confs)
    return bool(asked.get("job")) and same and asked.get("cluster") == here["cluster"]


# ---------------------------------------------------------------- the newest of a run


def newest(run: Run) -> Submission:
    """The newest submission: executor, host, process or job.

    Where the submitting process was ended before it could note it, what a rank says of its job.
    """
    said: Submission = {}
    for number in reversed(run.attempt_numbers()):
        content = read_json(run.attempts / str(number) / "submission.json")
        if content and not said and content["executor"] == "slurm" and not content.get("job"):
            content = _of_the_rank(run, number) | content
        if content:  # an attempt after it with the same job was started again by Slurm
            return content if said.get("job") in (None, content.get("job")) else said
        said = said or _of_the_rank(run, number)
    return said


def _of_the_rank(run: Run, number: int) -> Submission:
    record = read_json(run.attempts / str(number) / "rank-0.json") or {}
    if not record.get("job"):
        return {}
    return {"executor": "slurm", **{key: record.get(key) for key in ("job", "slurm_conf", "node")}}


def newest_of(runs: Iterable[Run]) -> dict[Run, Submission]:
    """The newest submission of each, with the job that Slurm has taken though the process that handed it over
    was ended before it could note it.

    `torn`: it was ended before it could give the job what it is to do; `unheard`: Slurm does not answer, so
    it may have a job.
    """
    found = {run: newest(run) for run in runs}
    answers: dict[Any, Mapping[str, str] | None] = {}
    for run, asked in found.items():
        script = _script(run, asked) if _is_cut_off(asked) else None
        if script is None:
            continue
        if script.is_symlink():  # submitit's name for it once sbatch has said the job's number
            _complete(asked, os.readlink(script).rpartition("/")[2].partition("_")[0])
            continue
        whom = (script.stat().st_uid, *cluster(asked))
        if whom not in answers:
            answers[whom] = queue.jobs_of_scripts(*whom)
        jobs = answers[whom]
        asked["unheard"], asked["torn"] = jobs is None, True
        _complete(asked, (jobs or {}).get(script.name))
    return found


def _is_cut_off(asked: Submission) -> bool:
    """Whether whoever handed the run to Slurm has not told its job, and tells no more."""
    return asked.get("part") is not None and not asked.get("job") and watcher(asked) is None


def _script(run: Run, asked: Submission) -> Path | None:
    folder = Path(os.path.normpath(run.folder / asked["batch"]))
    return queue.script_of(Run(folder).sbatch, asked["part"])


def _complete(asked: Submission, job: str | None) -> None:
    if job:
        asked["job"] = job if asked.get("task") is None else f"{job}_{asked['task']}"


def watcher(asked: Submission) -> psutil.Process | None:
    """The living process that watches over a local run, or hands one over; a later one with the same id is
    not it."""
    if asked.get("host") != socket.gethostname():
        return None
    with suppress(psutil.Error, KeyError):  # no key: it has said that it ended
        process = psutil.Process(asked["pid"])
        started = abs(process.create_time() - asked["pid_started"]) < 1
        if started and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


# ---------------------------------------------------------------- one job for each


def superseded(run: Run, attempt: int, job: str) -> bool:
    """Whether the run was handed over again, to whomever: this job is one that nobody knows of any more."""
    later = (number for number in run.attempt_numbers() if number > attempt)
    contents = (read_json(run.attempts / str(number) / "submission.json") for number in later)
    return any(content is not None and content.get("job") != job for content in contents)


@contextmanager
def alone(run: Run) -> Iterator[None]:
    """Only one process at a time hands the run, or its array, over; another is told so."""
    folder = (run.array or run).folder
    with only_writer(folder / ".submit.lock") as mine:
        if not mine:
            raise UserError(f"{run.label!r} is being started by another process just now; see `status`")
        yield


# ---------------------------------------------------------------- what Slurm says

HIDDEN = "Slurm shows its job to nobody but whoever submitted it"


@dataclass(frozen=True)
class Silence:
    """Nothing is heard of a job, which may be there all the same: the run's folder alone can tell."""

    why: str = "Slurm does not answer"


def job_states(asked: Mapping[Run, Submission]) -> dict[Run, Queued | Silence]:
    """Slurm's word on each run that was handed to it, where it has one."""
    said: dict[Run, Queued | Silence] = {
        run: Silence() for run, content in asked.items() if content.get("unheard")
    }
    for identity, names in by_cluster(asked).items():
        answer = queue.queue(names.values(), *identity)
        if answer is None:
            said |= dict.fromkeys(names, Silence())
            continue
        # Slurm counts its jobs anew now and then: one of that number that works elsewhere is another.
        known = {run: answer[name] for run, name in names.items() if name in answer}
        said |= {run: job for run, job in known.items() if _is_of(run, asked[run], job.folder)}
        others = [run for run in names if asked[run].get("user", os.getuid()) != os.getuid()]
        if (missing := set(others) - set(known)) and queue.hides_jobs_of_others(*identity):
            said |= dict.fromkeys(missing, Silence(HIDDEN))
    return said


def by_cluster(asked: Mapping[Run, Submission]) -> dict[ClusterId, dict[Run, str]]:
    """The jobs of those runs that Slurm has, by configuration and name of its cluster."""
    jobs: dict[ClusterId, dict[Run, str]] = {}
    for run, content in asked.items():
        if content.get("job"):
            jobs.setdefault(cluster(content), {})[run] = str(content["job"])
    return jobs


def _is_of(run: Run, asked: Submission, folder: str) -> bool:
    """Whether a job that works in a folder is the one that was handed over.

    Slurm keeps the folder as sbatch was told it: that is compared, however the run is reached now, and if it
    was moved since. A copy of a run is another run.
    """
    if not folder or asked["executor"] == "allocation":
        return True
    if "workdir" not in asked:
        return any(same_place(folder, one.folder) for one in (run, run.array or run))
    return same_place(folder, asked["workdir"]) and not _is_copied(run, asked)


def _is_copied(run: Run, asked: Submission) -> bool:
    """Whether the folder from which it was handed over is still there, and is another than this."""
    return os.path.exists(asked["folder"]) and not same_place(asked["folder"], run.folder)
