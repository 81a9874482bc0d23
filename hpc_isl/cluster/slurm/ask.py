"""Slurm's own commands, asked with patience that ends, of the cluster that is meant."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

ANSWER_S = 30.0
# A job that is submitted from inside another would inherit what was meant for that one.
INHERITED = re.compile(
    r"(SLURM|SBATCH|SRUN|PMI|MASTER|SUBMITIT)\w*|HPC_ISL_(WATCHER|EXECUTOR|RANK|SIZE|CPUS|REQUEUE)"
)
KEPT = {"SLURM_CONF"}


def environment(conf: Path | None) -> Mapping[str, str]:
    """The environment without what another job has left in it; `conf` names the cluster, if not the only."""
    clean = {k: v for k, v in os.environ.items() if k in KEPT or not INHERITED.fullmatch(k)}
    return {**clean, "SLURM_CONF": str(conf)} if conf else clean


def ask(
    command: list[str], conf: Path | None = None, given: str | None = None, patience_s: float = ANSWER_S
) -> tuple[int, str, str]:
    """Exit code, output and errors of a command of Slurm; code 127 where it is not there, 124 where it
    does not answer in time."""
    try:
        done = subprocess.run(
            command, env=environment(conf), input=given, capture_output=True, text=True,
            timeout=patience_s, cwd="/",
        )  # fmt: skip
    except FileNotFoundError:
        return 127, "", f"there is no {command[0]} on this machine"
    except subprocess.TimeoutExpired:
        return 124, "", f"{command[0]}: Slurm did not answer within {patience_s:.0f} s"
    return done.returncode, done.stdout.strip(), done.stderr.strip()
