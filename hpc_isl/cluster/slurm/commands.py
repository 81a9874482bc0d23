"""Calls of Slurm's own programs, with a clean environment and a time limit.

They take options from variables (SQUEUE_USERS, SCANCEL_STATE, SBATCH_EXPORT …), which a user sets for
interactive work: what we see and do must not depend on them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from hpc_isl.site import Site

ANSWER_S = 30.0
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
    named = os.environ.get("SLURM_CONF")
    return Path(os.path.abspath(named)) if named else None


def environment(conf: Path | None, cluster: str | None = None) -> Mapping[str, str]:
    """Returns the environment without what a user or another job has set for Slurm's programs.

    Args:
        conf: names the configuration that is meant; None: the one of SLURM_CONF, else the machine's own.
        cluster: its name, where one configuration knows several.
    """
    clean = {k: v for k, v in os.environ.items() if k in KEPT or not INHERITED.fullmatch(k)}
    if conf == MACHINES_OWN:
        clean.pop("SLURM_CONF", None)
    elif conf := conf or conf_here():
        clean["SLURM_CONF"] = str(conf)
    return clean | ({"SLURM_CLUSTERS": cluster} if cluster else {})


def step_environment() -> Mapping[str, str]:
    """Returns the environment of an srun inside this job, without what would change how it starts ranks."""
    return {name: value for name, value in os.environ.items() if not OF_A_STEP.fullmatch(name)}


def ask(
    command: list[str],
    conf: Path | None = None,
    given: str | None = None,
    patience_s: float = ANSWER_S,
    cluster: str | None = None,
) -> tuple[int, str, str]:
    """Returns exit code, output and errors of a command of Slurm.

    The code is 127 where the command does not exist, 124 where it does not answer in time.
    """
    try:
        done = subprocess.run(
            command, env=environment(conf, cluster), input=given, capture_output=True, text=True,
            timeout=patience_s, cwd="/",
        )  # fmt: skip
    except FileNotFoundError:
        return 127, "", f"there is no {command[0]} on this machine"
    except subprocess.TimeoutExpired:
        return 124, "", f"{command[0]}: Slurm did not answer within {patience_s:.0f} s"
    return done.returncode, done.stdout.strip(), done.stderr.strip()
