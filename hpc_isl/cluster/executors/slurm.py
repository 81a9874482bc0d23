"""A Slurm cluster as a site: submitit packs the jobs and writes the sbatch file; jobs are detached."""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core import utils

from hpc_isl.cluster.rank import work
from hpc_isl.cluster.run_folder.job import ASK, Job, interpreter, srun_flags, threads
from hpc_isl.cluster.run_folder.provenance import python_path, snapshot
from hpc_isl.cluster.run_folder.submissions import Unanswered
from hpc_isl.cluster.slurm import commands, limits
from hpc_isl.cluster.slurm.commands import ask, cluster_of, environment
from hpc_isl.errors import UserError
from hpc_isl.run import Run
from hpc_isl.sbatch_flags import merged
from hpc_isl.site import Site
from hpc_isl.stages.stage_table import is_pooled

NEVER_REACHED = "Unable to contact slurm controller"  # nothing was submitted then


@dataclass(frozen=True)
class Batch:
    """Jobs that are submitted together: that of one run, or those of the elements of an array.

    Attributes:
        run: in whose folder sbatch files, logs and the code lie: the run's own, or the array's.
        attempt: of that run; the code is kept below it.
        jobs: one, or one for each element.
        after: Slurm's jobs that must have ended well before these start.
        has_final_job: whether the last job waits until all others have ended, however they end.
        final_job_after: Slurm's jobs that the last one waits for too.
    """

    run: Run
    attempt: int
    jobs: tuple[Job, ...]
    after: tuple[str, ...] = ()
    has_final_job: bool = False
    final_job_after: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        """The stage of the jobs: an array's own run has none."""
        return self.jobs[0].run.stage

    @property
    def code(self) -> Path:
        return self.run.attempts / str(self.attempt) / "code"


@dataclass(frozen=True)
class Part:
    """Jobs of one call of sbatch.

    Attributes:
        number: among the parts of the batch.
        throttle: how many of the jobs run at once.
        after_parts: numbers of the parts that must have ended before.
        after_jobs: other jobs of Slurm's that must have ended, too.
    """

    number: int
    jobs: tuple[Job, ...]
    throttle: int
    after_parts: tuple[int, ...] = ()
    after_jobs: tuple[str, ...] = ()

    def label(self, batch: Batch) -> str:
        """Returns a text that no other sbatch file of the run holds."""
        return f"part {self.number} of attempt {batch.attempt}"

    def facts(self, batch: Batch, site: Site) -> Iterator[tuple[Job, dict[str, object]]]:
        """Yields each job with what is noted about it, by which it is found in Slurm's queue again."""
        workdir = os.path.abspath(str(site.sbatch.get("chdir") or batch.run.folder))
        for task, job in enumerate(self.jobs):
            yield job, {
                "workdir": workdir, "part": self.label(batch),
                "task": task if len(self.jobs) > 1 else None,
                "batch": os.path.relpath(batch.run.folder, job.folder),
            }  # fmt: skip


class _Executor(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's executor, whose sbatch file can be had without Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def text(self, elements: int) -> str:
        """Returns the sbatch file for that many jobs."""
        if elements > 1:
            self.parameters["map_count"] = elements
        return str(self._make_submission_file_text(self._submitit_command_str, "0"))


def _executor(batch: Batch, site: Site, part: Part, after: str | None) -> _Executor:
    # A requeued job is the same submitit job: submitit's own count of time-outs must not end it.
    executor = _Executor(batch.run.sbatch, max_num_timeout=1000, python=interpreter(site))
    flags = merged(_flags(batch, site, after), site.sbatch)
    executor.update_parameters(
        time=site.minutes, wckey=None, signal_delay_s=site.signal_s, array_parallelism=part.throttle,
        # So spelled, a flag replaces the line that submitit would write, and is not a second line.
        additional_parameters={
            flag if flag == "open-mode" else flag.replace("-", "_"): value for flag, value in flags.items()
        },
        srun_args=srun_flags(batch.stage), setup=_setup(batch, site, part),
    )  # fmt: skip
    return executor


def _flags(batch: Batch, site: Site, after: str | None) -> dict[str, object]:
    """Returns the flags of sbatch; None: none of that name."""
    return {
        "partition": site.partition, "account": site.account, "qos": site.qos, "time": site.minutes,
        "constraint": site.constraint, "reservation": site.reservation, "nodes": site.nodes,
        "ntasks-per-node": site.per_node, "cpus-per-task": site.cpus or 1, "mem": site.memory,
        "gpus-per-node": site.gpus or None,
        "mail-user": site.mail, "mail-type": "END,FAIL" if site.mail else None,
        "job-name": f"{batch.run.stage}-{batch.run.name}", "comment": f"hpc_isl attempt {batch.attempt}",
        "chdir": str(batch.run.folder), "requeue": True,
        "no-kill": True if is_pooled(batch.stage) else None,  # continues without a lost node
        # What waits for a job that failed would wait for ever.
        "dependency": after, "kill-on-invalid-dep": "yes" if after else None,
    }  # fmt: skip


def _setup(batch: Batch, site: Site, part: Part) -> list[str]:
    """Returns the shell lines before srun: the site's, the code that was submitted, the CPUs of each rank."""
    cpus, per_gpu = site.cpus or 1, site.sbatch.get("cpus-per-gpu")
    exports = {"HPC_ISL_EXECUTOR": "slurm", "PYTHONPATH": python_path(batch.code)}
    if per_gpu is None:
        exports["SRUN_CPUS_PER_TASK"] = str(cpus)
    exports |= threads(cpus if per_gpu is None else int(per_gpu))
    requeue = '(unset SLURM_CLUSTERS; scontrol requeue "$SLURM_JOB_ID")'
    return [
        f"# {part.label(batch)}",
        *site.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        # Ranks that have no scontrol, as in a container, ask for their requeue with a file: this shell does
        # it. The file names another one, into which goes why it could not be done.
        f'export {ASK}={shlex.quote(str(batch.run.sbatch))}/"$SLURM_JOB_ID".requeue',
        f"""trap 'why=$(cat "${ASK}" 2>/dev/null) && rm "${ASK}" && {requeue} 2>"$why"' EXIT""",
    ]


# ---------------------------------------------------------------- before it is handed over


def text(batch: Batch, site: Site) -> str:
    """Returns the sbatch file of the first part of the batch; writes nothing and needs no Slurm."""
    first_part = parts(batch, site)[0]
    executor = _executor(batch, site, first_part, _dependency(batch.after, first_part.after_jobs))
    return executor.text(len(first_part.jobs))


def start_time(batch: Batch, site: Site) -> str:
    """Returns when Slurm says that the job would start, or the reason why it would refuse it."""
    _, out, errors = ask(["sbatch", "--test-only"], site.slurm_conf, stdin=text(batch, site))
    explanation = limits.explained(errors, site, len(batch.jobs))
    return "\n".join(filter(None, [(errors or out).removeprefix("sbatch: "), explanation]))


def parts(batch: Batch, site: Site) -> list[Part]:
    """Returns the batch in arrays of no more elements than the cluster takes, which share the throttle.

    Where there are more arrays than elements may run at once, one waits for another; the last job waits for
    all of them.
    """
    jobs = batch.jobs[:-1] if batch.has_final_job else batch.jobs
    size = limits.max_array_size(site.slurm_conf) if len(jobs) > 1 else 1
    pieces = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    throttle = site.array or len(jobs)
    lanes = min(len(pieces), throttle)
    shares = [throttle // lanes + (lane < throttle % lanes) for lane in range(lanes)]
    arrays = [
        Part(number, piece, shares[number % lanes], (number - lanes,) if number >= lanes else ())
        for number, piece in enumerate(pieces)
    ]
    last_part = Part(len(arrays), batch.jobs[-1:], 1, tuple(range(len(arrays))), batch.final_job_after)
    return [*arrays, last_part] if batch.has_final_job else arrays


def _dependency(after: Sequence[str], jobs_before: Sequence[str]) -> str | None:
    """Returns `afterok:7:8,afterany:9`."""
    kinds = (("afterok", after), ("afterany", jobs_before))
    return ",".join(f"{kind}:{':'.join(jobs)}" for kind, jobs in kinds if jobs) or None


# ---------------------------------------------------------------- submission

Taken = Callable[[Part, list[str]], object]


def submit(
    batch: Batch,
    site: Site,
    pieces: Sequence[Part] | None = None,
    on_submitted: Taken = lambda part, jobs: None,
) -> list[str]:
    """Submits the jobs to Slurm, all or none; returns its names of them, in their order.

    Args:
        pieces: the parts of the batch, where they are known.
        on_submitted: called as soon as Slurm has taken a part, with it and the names of its jobs.

    Raises:
        Unanswered: it is not known whether Slurm has some of them.
    """
    # A queued job runs the code of now, whatever the checkout holds when it starts.
    snapshot(batch.code)
    names: list[list[str]] = []
    for part in parts(batch, site) if pieces is None else pieces:
        jobs_before = [*(names[number][0].split("_")[0] for number in part.after_parts), *part.after_jobs]
        executor = _executor(batch, site, part, _dependency(batch.after, jobs_before))
        try:
            with _environment(site.slurm_conf), redirect_stderr(io.StringIO()):  # submitit prints errors
                submitted: list[Any] = executor.map_array(work, part.jobs)
        except (utils.FailedJobError, utils.FailedSubmissionError) as error:
            _take_back(batch, site, part, [jobs[0].split("_")[0] for jobs in names], str(error))
            reasons = [f"sbatch refused the job: {error}"]
            reasons.append(limits.explained(str(error), site, len(batch.jobs)))
            # Options in the user's environment, on which a job may have depended elsewhere.
            if options := sorted(name for name in os.environ if name.startswith("SBATCH_")):
                reasons.append(
                    f"{', '.join(options)} of your shell: not read; write it into the site, as site.account "
                    "or site.sbatch"
                )
            raise UserError("\n".join(filter(None, reasons))) from None
        names.append([str(job.job_id) for job in submitted])
        on_submitted(part, names[-1])
    return [name for part_names in names for name in part_names]


def _take_back(batch: Batch, site: Site, part: Part, jobs: list[str], error: str) -> None:
    """Ends the jobs of the parts before, and one that a busy Slurm has taken although sbatch failed."""
    script = commands.script_of(batch.run.sbatch, part.label(batch))
    try:
        scripts = commands.jobs_of_scripts(os.getuid(), *cluster_of(site))
        if scripts is None and (jobs or NEVER_REACHED not in error):
            raise UserError("Slurm does not answer")
        doubtful_job = (scripts or {}).get(script.name) if script else None
        if jobs_to_cancel := [*jobs, *([doubtful_job] if doubtful_job else [])]:
            commands.cancel(jobs_to_cancel, *cluster_of(site))
        if script:  # the number of this attempt will be another's
            script.unlink()
    except UserError as reason:
        raise Unanswered(
            f"sbatch: {error}\n{reason}; it may have jobs of this run, which `status` shows once it answers"
        ) from None


@contextmanager
def _environment(conf: Path | None) -> Iterator[None]:
    """Replaces the environment by a clean one while submitit calls sbatch with it."""
    previous, clean = dict(os.environ), environment(conf)
    os.environ.clear()
    os.environ.update(clean)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(previous)
