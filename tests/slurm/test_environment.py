"""Ranks have the environment of their job whole, whatever is exported to whom; and the site's flags win."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpc_isl.sbatch_flags import LONG, SHORT

if TYPE_CHECKING:
    from tests.slurm.conftest import Cluster, User

COMMAND_LINE = Path(__file__).parents[1] / "cluster" / "command_line.py"
# A rank that sees COUNT_FAST, which the job's shell sets, does not pause for a quarter of an hour.
SLOW = ("steps=2", "pause_s=999")


@pytest.mark.parametrize(
    ("shell", "site"),
    [
        ({}, ["sbatch={export: NONE}", "setup=[export COUNT_FAST=1]"]),
        ({"SBATCH_EXPORT": "NONE", "SLURM_EXPORT_ENV": "NONE"}, ["setup=[export COUNT_FAST=1]"]),
        ({}, ["setup=[export SLURM_EXPORT_ENV=NONE SRUN_EXPORT_ENV=NONE COUNT_FAST=1]"]),
    ],
    ids=["flag", "shell", "job"],
)
def test_ranks_have_the_environment_of_their_job(user: User, shell: dict[str, str], site: list[str]) -> None:
    user.command_line.environment.update(shell)
    user.submit("meet=true", *SLOW, *(f"site.{key}" for key in site), "site.nodes=2", name="one")
    assert user.becomes("one", "done"), user("logs", "one")
    assert user.cluster.eventually(lambda: all(user.record("one", rank).get("exit") for rank in (0, 1)))
    assert [user.record("one", rank)["outcome"] for rank in (0, 1)] == ["done", "done"]


def test_ranks_in_a_job_of_ones_own_have_its_environment(user: User) -> None:
    """As many sites advise it: nothing of the login node's shell comes along."""
    python = f"{sys.executable} {COMMAND_LINE}"
    file = user.command_line.cwd / "own.sbatch"
    file.write_text(
        "#!/bin/bash\n#SBATCH --export=NONE --nodes=2 --mem=100M --output=own.out\n"
        f"export COUNT_FAST=1 PYTHONPATH={user.command_line.environment['PYTHONPATH']}\n"
        f"exec {python} count meet=true {' '.join(SLOW)} --name own --site allocation site.tracking=none\n"
    )
    subprocess.run(["sbatch", file], cwd=user.command_line.cwd, env=user.cluster.environment, check=True)
    said = user.command_line.cwd / "own.out"
    assert user.becomes("own", "done") if user.cluster.eventually(user.folder("own").exists) else False, (
        said.read_text()
    )
    assert "the ranks add up to 1" in said.read_text()


def test_doctor_looks_at_nodes_to_which_nothing_is_exported(user: User) -> None:
    said = user("doctor", "--site", str(user.cluster.site_file), "site.sbatch={export: NONE}")
    assert "saw it and wrote to it" in said


def test_the_flags_that_are_known_are_those_of_sbatch(cluster: Cluster) -> None:
    told = cluster.run("sbatch", "--help").split()
    words = [word.rstrip(",").split("=")[0].split("[")[0] for word in told if word.startswith("-")]
    assert {word[2:] for word in words if word.startswith("--")} <= LONG
    assert {word[1:] for word in words if len(word) == 2} - {"-"} <= set(SHORT)


@pytest.mark.parametrize("flag", ["cpus-per-task", "cpus_per_task", "--cpus-per-task", "c", "cpus-per-t"])
def test_however_a_flag_of_the_site_is_spelled_slurm_hears_it(user: User, flag: str) -> None:
    job = user.submit(f"site.sbatch={{hold: true, '{flag}': 2}}", "site.cpus=1", name="one")
    assert user.cluster.run("squeue", "-h", "-j", job, "-o", "%C").strip() == "2"


def test_the_flags_of_the_site_replace_ours(user: User) -> None:
    flags = "{hold: true, J: mine, no-requeue: true, ntasks-per-node: 2, comment: of mine}"
    job = user.submit(f"site.sbatch={flags}", name="one")
    shown = user.cluster.run("scontrol", "--oneliner", "show", "job", job)
    assert " JobName=mine " in shown
    assert " Requeue=0 " in shown
    assert " NumTasks=2 " in shown
    assert " Comment=of mine " in shown


def test_what_a_job_waits_for_is_what_both_say(user: User) -> None:
    """A site's own dependency does not let a run start before the one that it is to wait for."""
    other = user.cluster.submit("true", "--hold")
    first = user.submit("site.sbatch={hold: true}", name="first")
    job = user.submit("--after", "first", f"site.sbatch={{d: 'afterany:{other}'}}", name="second")
    waits = user.cluster.run("squeue", "-h", "-j", job, "-o", "%E")
    assert f"afterok:{first}" in waits
    assert f"afterany:{other}" in waits


# ---------------------------------------------------------------- nodes without scontrol

PROGRAMS = ("bash", "cat", "env", "rm", "srun")


def test_ranks_without_scontrol_are_started_again_by_the_shell_around_them(user: User) -> None:
    job = user.submit(
        "steps=60", "pause_s=0.2", f"site.python=env PATH=/nowhere {sys.executable}", name="one"
    )
    assert user.cluster.eventually(lambda: user.counts("one"))
    user.cluster.run("scancel", "--signal=USR2", job)
    assert user.cluster.eventually(lambda: user.cluster.job_state(job) == "PENDING"), user("logs", "one")
    user.cluster.start_now(job)
    assert user.becomes("one", "done"), user("logs", "one")
    assert user.steps("one") == list(range(60))


def test_where_the_shell_has_no_scontrol_either_status_says_so(user: User) -> None:
    folder = user.command_line.cwd / "programs"
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).symlink_to(f"/usr/bin/{name}")
    user.submit("steps=1000", "pause_s=0.2", f"site.setup=[export PATH={folder}]", name="one")
    assert user.cluster.eventually(lambda: user.counts("one"))
    user.cluster.run("scancel", "--signal=USR2", "--state=RUNNING", "--me" if os.getuid() else "--user=root")
    assert user.becomes("one", "stopped")
    assert "not started again" in user("status", "one")
    assert "scontrol: command not found" in user("status", "one")
