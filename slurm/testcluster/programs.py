"""The programs that a test cluster consists of, and where they come from."""

from __future__ import annotations

import os
import shutil

PACKAGES = "slurm-wlm slurmdbd mariadb-server munge"
_SLURM = ("slurmctld", "slurmd", "slurmstepd", "sinfo", "squeue", "scancel", "scontrol", "munged")
_ACCOUNTING = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")


def path() -> str:
    """Returns PATH with the folders of daemons, which an ordinary user's lacks."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def missing(accounting: bool) -> list[str]:
    needed = (*_SLURM, *_ACCOUNTING) if accounting else _SLURM
    return [each for each in needed if not shutil.which(each, path=path())]
