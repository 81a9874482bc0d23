"""No state leads to two submissions of one run: however its folder is reached, and whatever befalls whoever
hands it over."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mounts import bound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.slurm.conftest import User

HELD = "site.sbatch={hold: true}"


def jobs(user: User) -> list[str]:
    """The jobs in the queue, an array once."""
    return sorted(set(user.cluster.run("squeue", "-h", "-o", "%F").split()))


def is_refused(user: User, *words: str, cwd: Path | None = None) -> str:
    done = user.command_line(*words, cwd=cwd)
    assert done.returncode == 2, done.stdout
    return done.stdout


@contextmanager
def wrapped(user: User, **programs: str) -> Iterator[None]:
    """With programs of Slurm that do this instead."""
    folder, path = user.command_line.cwd / "bin", user.command_line.environment["PATH"]
    folder.mkdir(exist_ok=True)
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    user.command_line.environment["PATH"] = f"{folder}:{path}"
    try:
        yield
    finally:
        user.command_line.environment["PATH"] = path


@pytest.fixture
def linked(user: User) -> Path:
    """A link to the folder `real`, in which the user works."""
    (user.command_line.cwd / "real").mkdir()
    (user.command_line.cwd / "link").symlink_to("real")
    return user.command_line.cwd / "link"


def test_a_run_that_is_reached_through_a_link_is_the_one_that_was_submitted(user: User, linked: Path) -> None:
    job = user.submit(HELD, f"site.runs={linked}/runs", name="one")
    root = ("--root", str(user.command_line.cwd / "real" / "runs"))
    assert "queued" in user("status", "one", *root)
    assert "queued" in user.command_line("status", cwd=linked).stdout
    for verb in ("retry", "resume"):
        is_refused(user, verb, "one", cwd=linked)
    is_refused(user, "count", "--site", str(user.cluster.site_file), "site.memory=100M", "--name", "one",
               cwd=linked)  # fmt: skip
    assert jobs(user) == [job]
    user("count", "--after", "one", f"site.runs={linked}/../real/runs", "--site", str(user.cluster.site_file),
         "site.memory=100M", "site.tracking=none", "--name", "two")  # fmt: skip
    assert f"afterok:{job}" in user.cluster.run("squeue", "-h", "-o", "%E")
    assert user("cancel", "one", *root).startswith(f"job {job} ")
    assert user.cluster.eventually(lambda: not jobs(user))


def test_an_element_of_a_sweep_that_is_reached_through_a_link_is_its_own(user: User, linked: Path) -> None:
    user.submit(
        "stage=count", "over={seed: [0, 1]}", HELD, f"site.runs={linked}/runs", name="two", verb="sweep"
    )
    assert "2 queued" in user.command_line("status", "two", cwd=user.command_line.cwd / "real").stdout
    for words in (("retry", "two"), ("resume", "two/seed=0")):
        is_refused(user, *words, cwd=user.command_line.cwd / "real")
    assert len(jobs(user)) == 1


def test_a_run_that_is_reached_through_another_mount_is_the_one_that_was_submitted(user: User) -> None:
    (user.command_line.cwd / "real").mkdir()
    with bound(user.command_line.cwd / "real", user.command_line.cwd / "bound"):
        job = user.submit(HELD, f"site.runs={user.command_line.cwd}/bound/runs", name="one")
        is_refused(user, "retry", "one", cwd=user.command_line.cwd / "real")
    assert "queued" in user.command_line("status", "one", cwd=user.command_line.cwd / "real").stdout, (
        "and when that is gone"
    )
    assert jobs(user) == [job]


def test_a_run_that_was_moved_is_still_in_the_queue(user: User) -> None:
    job = user.submit(HELD, name="one")
    os.rename(user.folder("one"), user.folder("elsewhere"))
    assert user.word("elsewhere") == "queued"
    is_refused(user, "retry", "elsewhere")
    assert user("cancel", "elsewhere").startswith(f"job {job} ")


def test_runs_that_were_moved_together_wait_for_each_other(user: User) -> None:
    first = user.submit(HELD, name="first")
    second = user.submit("--after", "first", name="second")
    user("cancel", "second")
    assert user.cluster.eventually(lambda: jobs(user) == [first])
    assert user.becomes("second", "cancelled")
    os.rename(user.command_line.cwd / "runs", user.command_line.cwd / "moved")
    said = user("resume", "second", "--root", str(user.command_line.cwd / "moved"))
    third = said.split("submitted as Slurm job")[1].split()[0]
    assert third != second
    assert f"afterok:{first}" in user.cluster.run("squeue", "-h", "-j", third, "-o", "%E")


def test_a_copy_of_a_run_is_another_and_leaves_the_job_of_the_first_alone(user: User) -> None:
    job = user.submit(HELD, name="one")
    shutil.copytree(user.folder("one"), user.folder("copy"))
    assert user.word("copy") == "lost"
    assert "not running" in is_refused(user, "cancel", "copy")
    assert (jobs(user), user.word("one")) == ([job], "queued")


def test_a_job_in_a_folder_of_the_sites_choice_is_known_again(user: User) -> None:
    job = user.submit("site.sbatch={hold: true, chdir: /tmp, comment: mine, job-name: mine}", name="one")
    assert user.word("one") == "queued"
    is_refused(user, "retry", "one")
    user.cluster.run("scontrol", "release", job)
    assert user.becomes("one", "done")


def test_a_job_of_a_cluster_that_is_called_by_name_is_asked_for_there(user: User) -> None:
    job = user.submit("site.sbatch={hold: true, M: testcluster}", name="one")
    user.command_line.environment["SLURM_CLUSTERS"] = "elsewhere"
    assert user.word("one") == "queued"
    is_refused(user, "retry", "one")
    assert user("cancel", "one").startswith(f"job {job} ")
    assert user.cluster.eventually(lambda: not jobs(user))
    assert user.becomes("one", "cancelled"), "as the accounting tells"


# ---------------------------------------------------------------- whoever hands it over dies


DIES = '/usr/bin/sbatch "$@"; kill -9 $PPID'
CLAIMS_TO_FAIL = (
    '/usr/bin/sbatch "$@" >/dev/null\n'
    "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"
)
MUTE = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"


@pytest.mark.kill
@pytest.mark.parametrize(
    "words", [("count",), ("sweep", "stage=count", "over={seed: [0, 1, 2]}")], ids=["run", "sweep"]
)
def test_a_job_whose_number_nobody_could_note_is_found(user: User, words: tuple[str, ...]) -> None:
    """Killed as soon as Slurm has the job: `status` shows it as queued, and that nothing will come of it."""
    rest = ("--site", str(user.cluster.site_file), "site.memory=100M", "site.tracking=none", "--name", "one")
    with wrapped(user, sbatch=DIES):
        assert user.command_line(*words, HELD, *rest).returncode == -signal.SIGKILL
    [job] = jobs(user)
    said = user("status", "one").splitlines()
    assert " queued " in said[1]
    assert "cancel it, and resume" in said[-2 if len(words) > 1 else 1]
    is_refused(user, "retry", "one")
    assert f"job {job}" in user("cancel", "one")
    assert user.cluster.eventually(lambda: not jobs(user))
    user("resume", "one", "site.sbatch={}")
    assert user.cluster.eventually(lambda: " done " in user("status", "one").splitlines()[1], 120)


def test_a_job_that_slurm_has_taken_though_sbatch_failed_is_taken_back(user: User) -> None:
    """Whatever the site says of its folder and comment: what is refused leaves nothing in the queue."""
    own = "site.sbatch={hold: true, chdir: /tmp, comment: mine}"
    with wrapped(user, sbatch=CLAIMS_TO_FAIL):
        said = is_refused(
            user, "count", own, "--site", str(user.cluster.site_file), "site.memory=100M", "--name", "one"
        )
    assert "Socket timed out" in said
    assert user.cluster.eventually(lambda: not jobs(user))
    assert not user.folder("one").exists()


def test_a_job_that_slurm_may_have_taken_is_waited_for(user: User) -> None:
    """Neither sbatch nor squeue answers: the run is kept, and is in the queue as soon as Slurm says so."""
    words = ("count", HELD, "--site", str(user.cluster.site_file), "site.memory=100M", "--name", "one")
    with wrapped(user, sbatch=CLAIMS_TO_FAIL, squeue=MUTE):
        assert "may have jobs of this run" in is_refused(user, *words)
        assert "Slurm does not answer" in user("status", "one")
        assert "is not started" in is_refused(user, "resume", "one")
    assert user.word("one") == "queued"
    is_refused(user, "resume", "one")
    assert len(jobs(user)) == 1


def test_while_slurm_does_not_answer_nothing_is_started(user: User) -> None:
    """What has ended, by its folder, may wait in Slurm's queue for its next start."""
    user.submit("crash_rank=0", name="crash")
    assert user.becomes("crash", "failed")
    with wrapped(user, squeue=MUTE):
        assert "Slurm does not answer; rank 0: RuntimeError: boom" in user("status", "crash")
        for verb in ("retry", "resume"):
            assert "its job may be there" in is_refused(user, verb, "crash")
        assert user.command_line("resume", "crash", "--site", "laptop").returncode == 2
    user("retry", "crash")
    assert user.becomes("crash", "failed")


def test_a_job_of_a_run_that_was_cancelled_without_slurm_leaves_at_once(user: User) -> None:
    """Where Slurm cannot be told to end it, the run folder can."""
    job = user.submit(HELD, name="one")
    silent = "echo 'scancel: error: Unable to contact slurm controller' >&2; exit 1"
    with wrapped(user, squeue=MUTE, scancel=silent):
        assert "marked as cancelled" in is_refused(user, "cancel", "one")
        assert user.word("one") == "cancelled"
    user.cluster.run("scontrol", "release", job)
    assert user.cluster.eventually(lambda: user.cluster.job_state(job) == "FAILED")
    assert user.word("one") == "cancelled"
    assert "leaves it alone" in _output(user.command_line.cwd, job)


def _output(folder: Path, job: str) -> str:
    logs = [*folder.rglob(f"{job}_0_log.*"), *folder.rglob("rank-0.log")]
    return "\n".join(path.read_text() for path in logs)


# ---------------------------------------------------------------- what a user has set for their own eyes

SQUEUE = {
    "SQUEUE_ACCOUNT": "x", "SQUEUE_LICENSES": "x", "SQUEUE_NAMES": "x", "SQUEUE_PARTITION": "short",
    "SQUEUE_QOS": "x", "SQUEUE_STATES": "RUNNING", "SQUEUE_USERS": "nobody", "SQUEUE_FORMAT": "%i",
    "SQUEUE_SORT": "i", "SLURM_CLUSTERS": "elsewhere", "SLURM_TIME_FORMAT": "relative", "SQUEUE_ARRAY": "1",
}  # fmt: skip
SCANCEL = {
    "SCANCEL_USER": "nobody", "SCANCEL_NAME": "x", "SCANCEL_PARTITION": "short", "SCANCEL_STATE": "RUNNING",
    "SCANCEL_INTERACTIVE": "1",
}  # fmt: skip


def test_options_in_the_users_environment_hide_no_job(user: User) -> None:
    job = user.submit(HELD, name="one")
    user.command_line.environment.update(SQUEUE)
    assert user.word("one") == "queued"
    is_refused(user, "retry", "one")
    user.command_line.environment.update(SCANCEL)
    assert user("cancel", "one").startswith(f"job {job} ")
    assert user.cluster.eventually(lambda: not jobs(user)), "it is ended, and not only said to be"
