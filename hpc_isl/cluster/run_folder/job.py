"""What is submitted: a `Job` names a stage's module, a run folder, an attempt; the folder has the rest."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from hpc_isl.errors import UserError, nearest
from hpc_isl.run import Run
from hpc_isl.site import Site

STAGES = {
    "convert": "hpc_isl.stages.convert.stage",
    "annotate": "hpc_isl.stages.annotate.stage",
    "pretrain": "hpc_isl.stages.pretrain.stage",
    "finetune": "hpc_isl.stages.finetune.stage",
    "segment": "hpc_isl.stages.segment.stage",
}
REPORTS = {"finetune": "hpc_isl.stages.report.stage"}  # what tells of all elements of a sweep together
ALONE = {"convert", "annotate"}  # one process, which starts others as it needs them
POOLED = {"segment"}  # one process per node; rank 0 computes the stage with the worker processes of all
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


def module_of(stage: str) -> str:
    """The name of the module of a stage."""
    if stage not in STAGES:
        raise UserError(f"{stage!r} is not a stage; {nearest(stage, STAGES)}")
    return STAGES[stage]


def stage_module(stage: str) -> ModuleType:
    """The module of a stage: it offers `plan` and a function called as the stage."""
    return importlib.import_module(module_of(stage))


def interpreter(site: Site) -> str:
    """The command that starts Python in a job, as a shell reads it; this Python, unless the site says.

    A container sees the home folder, the folder that it starts in and what the site binds.
    """
    if site.container is None:
        return site.python or shlex.quote(sys.executable)
    command = ["apptainer", "exec", *(["--nv"] if site.visible_gpus else [])]
    command += [part for folder in site.binds for part in ("--bind", folder)]
    return f"{shlex.join([*command, str(site.container)])} {site.python or 'python'}"


def srun_flags(stage: str) -> list[str]:
    """How srun starts ranks, and takes the end of one: all end with it, but where the stage can do without
    other nodes. In a job that was submitted with --export=NONE it would keep the environment from them.
    """
    if stage in POOLED:
        return ["--export=ALL", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"]
    return ["--export=ALL", "--kill-on-bad-exit=1", "--wait=60"]


def threads(cpus: int) -> Mapping[str, str]:
    """Environment that caps the thread pools of numerical libraries; they read it when imported."""
    libraries = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA")
    names = [*(f"{library}_NUM_THREADS" for library in libraries), "BLOSC_NTHREADS"]
    return dict.fromkeys(names, str(cpus))
