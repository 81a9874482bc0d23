"""What is submitted: a `Job` names a stage's module, a run folder, an attempt; the folder holds the rest."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.run import Run
from hpc_isl.site import Site
from hpc_isl.stages.stage_table import is_pooled, stage_named

MISTAKE, FAILED, STOPPED = 2, 1, 3  # exit codes; 0 is done


@dataclass(frozen=True)
class Job:
    """One run, to be computed by all ranks of a job together.

    Attributes:
        module: where the stage is found, as the table says at submission.
        folder: of the run.
        attempt: number of the job's first start; each requeue by Slurm counts one up.
    """

    module: str
    folder: Path
    attempt: int

    @property
    def run(self) -> Run:
        return Run(self.folder)

    @property
    def attempt_folder(self) -> Path:
        return self.run.attempts / str(self.attempt)

    @classmethod
    def of(cls, run: Run, attempt: int | None = None) -> Job:
        """Returns the job that computes `run`, as the given attempt or as a new one."""
        number = run.next_attempt() if attempt is None else attempt
        return cls(stage_named(run.stage).module, run.folder, number)


@dataclass(frozen=True)
class Ending:
    """How the ranks of a job ended.

    Attributes:
        codes: rank -> exit code; a negative one is the signal that ended the rank.
        crashed: the rank that failed first; None: none did.
        interrupted: whether Ctrl-C asked for the stop.
        stopped, killed: whether the ranks were asked to stop, or were killed.
    """

    codes: Mapping[int, int]
    crashed: int | None = None
    interrupted: bool = False
    stopped: bool = False
    killed: bool = False


def interpreter(site: Site) -> str:
    """Returns the command that starts Python in a job, as a shell reads it; by default this Python.

    A container sees the home folder, the folder that it starts in and what the site binds.
    """
    if site.container is None:
        return site.python or shlex.quote(sys.executable)
    command = ["apptainer", "exec", *(["--nv"] if site.visible_gpus else [])]
    command += [part for folder in site.binds for part in ("--bind", folder)]
    return f"{shlex.join([*command, str(site.container)])} {site.python or 'python'}"


def srun_flags(stage: str) -> list[str]:
    """Returns how srun starts ranks: all end with one that fails, unless the stage is pooled."""
    # --export=ALL: in a job that was submitted with --export=NONE, srun would start them without environment.
    if is_pooled(stage):
        return ["--export=ALL", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"]
    return ["--export=ALL", "--kill-on-bad-exit=1", "--wait=60"]


def threads(cpus: int) -> Mapping[str, str]:
    """Returns variables that cap the thread pools of numerical libraries; they read it when imported."""
    libraries = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA")
    names = [*(f"{library}_NUM_THREADS" for library in libraries), "BLOSC_NTHREADS"]
    return dict.fromkeys(names, str(cpus))
