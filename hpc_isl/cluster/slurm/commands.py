"""Calls of Slurm's own programs, with a clean environment and a time limit, and what they say about jobs.

They take options from variables (SQUEUE_USERS, SCANCEL_STATE, SBATCH_EXPORT …), which a user sets for
interactive work: what we see and do must not depend on them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.errors import UserError, many
from hpc_isl.site import Site

ANSWER_S = 30.0
PATIENCE_S = 10.0  # a controller that is away is not waited for: the run folder holds much
NAMED = 5  # jobs that a message names one by one
FORGOTTEN = "Invalid job id specified"
MACHINES_OWN = Path()  # the configuration that Slurm finds here by itself, whatever SLURM_CONF says
# Options of Slurm's programs; and what a job that is submitted from inside another would inherit.
INHERITED = re.compile(
    r"(SLURM|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SINFO|SCONTROL|SCANCEL|PMI|MASTER|SUBMITIT)\w*"
    r"|HPC_ISL_(WATCHER|EXECUTOR|RANK|SIZE|CPUS|REQUEUE)"
)
KEPT = {"SLURM_CONF", "SLURM_JWT"}  # which Slurm is meant, and who asks
# What changes how srun starts ranks, and what they are given. Not among them: what Slurm itself has told the
# job, and what decides about its CPUs, GPUs and MPI.
OF_A_STEP = re.compile(
    r"(SRUN|SALLOC|SBATCH)_\w+|SLURM_(EXPORT_ENV|CLUSTERS|DEBUG|DEPENDENCY|EXACT|EXCLUSIVE|EXIT_ERROR|"
    r"EXIT_IMMEDIATE|IMMEDIATE|KILL_BAD_EXIT|LABELIO|MULTI_PROG|NO_KILL|OPEN_MODE|OVERLAP|REMOTE_CWD|SIGNAL|"
    r"STD(IN|OUT|ERR)MODE|TEST_EXEC|THREADS|TIMELIMIT|WAIT|WORKING_DIR)"
)


ClusterId = tuple[Path | None, str | None]
"""Configuration file and name of a Slurm cluster; None: the default of this machine."""


def cluster_of(site: Site) -> ClusterId:
    """Returns the cluster on which a site computes."""
    name = site.sbatch.get("clusters")
    return site.slurm_conf, str(name) if name else None


def conf_here() -> Path | None:
    """Returns the configuration that SLURM_CONF names, as an absolute path; None: the machine's own."""
    path = os.environ.get("SLURM_CONF")
    return Path(os.path.abspath(path)) if path else None


def environment(conf: Path | None, cluster: str | None = None) -> Mapping[str, str]:
    """Returns the environment without what a user or another job has set for Slurm's programs.

    Args:
        conf: names the configuration that is meant; None: the one of SLURM_CONF, else the machine's own.
        cluster: its name, where one configuration knows several.
    """
    variables = {
        name: value for name, value in os.environ.items() if name in KEPT or not INHERITED.fullmatch(name)
    }
    if conf == MACHINES_OWN:
        variables.pop("SLURM_CONF", None)
    elif conf := conf or conf_here():
        variables["SLURM_CONF"] = str(conf)
    return variables | ({"SLURM_CLUSTERS": cluster} if cluster else {})


def step_environment() -> Mapping[str, str]:
    """Returns the environment of an srun inside this job, without what would change how it starts ranks."""
    return {name: value for name, value in os.environ.items() if not OF_A_STEP.fullmatch(name)}


def ask(
    command: list[str],
    conf: Path | None = None,
    stdin: str | None = None,
    patience_s: float = ANSWER_S,
    cluster: str | None = None,
) -> tuple[int, str, str]:
    """Returns exit code, output and errors of a command of Slurm.

    The code is 127 where the command does not exist, 124 where it does not answer in time.
    """
    try:
        process = subprocess.run(
            command, env=environment(conf, cluster), input=stdin, capture_output=True, text=True,
            errors="replace", timeout=patience_s, cwd="/",  # staff type reasons in any encoding
        )  # fmt: skip
    except FileNotFoundError:
        return 127, "", f"there is no {command[0]} on this machine"
    except subprocess.TimeoutExpired:
        return 124, "", f"{command[0]}: Slurm did not answer within {patience_s:.0f} s"
    return process.returncode, process.stdout.strip(), process.stderr.strip()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays Ctrl-C until after the block: a job that Slurm has taken is also noted."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


# ---------------------------------------------------------------- jobs


@dataclass(frozen=True)
class QueuedJob:
    """State of a job, why it waits, where it runs, the time it has left, and in which folder it works."""

    state: str
    reason: str = ""
    node: str = ""
    left: str = ""
    folder: str = ""


def queue(
    jobs: Iterable[str], conf: Path | None = None, cluster: str | None = None
) -> Mapping[str, QueuedJob] | None:
    """Returns job (`17`, or `17_3` for an element) -> what Slurm says; None: Slurm does not answer.

    Without accounting, Slurm forgets a job some minutes after its end.
    """
    job_names = set(jobs)
    if not job_names:
        return {}
    families = sorted({job.split("_")[0] for job in job_names})
    # -r: a row for each element of an array; the folder comes last, because it may hold a `|`.
    command = ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N|%L|%Z", "-j", ",".join(families)]
    code, out, errors = ask(command, conf, patience_s=PATIENCE_S, cluster=cluster)
    if code and FORGOTTEN not in errors:
        return None
    queued_jobs = _parse_jobs(out)
    if forgotten_families := sorted({job.split("_")[0] for job in job_names - set(queued_jobs)}):
        # -X: the jobs, without a row for each of their steps.
        command = ["sacct", "-X", "-n", "-P", "--array", "-j", ",".join(forgotten_families)]
        command += [
            "-o",
            "JobID,State,Reason,NodeList,Timelimit,WorkDir",
            *(["-M", cluster] if cluster else []),
        ]
        code, out, _ = ask(command, conf, patience_s=PATIENCE_S)
        queued_jobs = {**({} if code else _parse_jobs(out)), **queued_jobs}
    return {job: queued_job for job, queued_job in queued_jobs.items() if job in job_names}


def _parse_jobs(answer: str) -> dict[str, QueuedJob]:
    """Reads lines of job|state|reason|nodes|time|folder; `CANCELLED by 1000` is the state CANCELLED."""
    rows = [line.split("|", 5) for line in answer.splitlines() if line.count("|") >= 5]
    entries = [(job, *map(_word, words), folder) for job, *words, folder in rows]
    return {job: QueuedJob(state.split()[0], *details) for job, state, *details in entries if state}


def _word(text: str) -> str:
    text = text.strip("() ")
    return "" if text in ("None", "None assigned", "INVALID", "UNLIMITED", "NOT_SET") else text


def script_of(folder: Path, label: str) -> Path | None:
    """Returns the script with this label that sbatch was given, or was to be; None: there is none yet."""
    for path in folder.glob(".submission_file_*.sh"):
        with suppress(OSError):
            if f"# {label}\n" in path.read_text():
                return path
    return None


def jobs_of_scripts(
    user: int, conf: Path | None = None, cluster: str | None = None
) -> Mapping[str, str] | None:
    """Returns script that sbatch was given -> job, of all jobs of a user; None: Slurm does not answer."""
    command = ["squeue", "-h", "-t", "all", "-u", str(user), "-o", "%F|%o"]
    code, out, _ = ask(command, conf, patience_s=PATIENCE_S, cluster=cluster)
    if code:
        return None
    rows = [line.split("|", 1) for line in out.splitlines() if "|" in line]
    return {script.rpartition("/")[2]: job for job, script in rows}


def hides_jobs_of_others(conf: Path | None = None, cluster: str | None = None) -> bool:
    """Returns whether users see their own jobs alone; root sees all."""
    _, out, _ = ask(["scontrol", "show", "config"], conf, patience_s=PATIENCE_S, cluster=cluster)
    match = re.search(r"^PrivateData\s*=\s*(.*)", out, re.MULTILINE)
    return bool(os.getuid() and match and re.search(r"\b(jobs|all)\b", match[1]))


def jobs_text(jobs: Sequence[str]) -> str:
    """Returns `job 17_3, job 17_4`; of many jobs only how many: `1,000 jobs of 17`."""
    if len(jobs) <= NAMED:
        return ", ".join(f"job {job}" for job in jobs)
    families = list(dict.fromkeys(job.split("_")[0] for job in jobs))
    return f"{many(len(jobs), 'job')} of {', '.join(families[:NAMED])}{' …' * (len(families) > NAMED)}"


def cancel(jobs: Sequence[str], conf: Path | None = None, cluster: str | None = None) -> None:
    """Tells Slurm to end the jobs: TERM first, so that they can save."""
    code, _, errors = ask(["scancel", *jobs], conf, cluster=cluster)
    if code:
        raise UserError(f"scancel of {jobs_text(jobs)}: {errors}")
