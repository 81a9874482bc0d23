"""A sweep on a real Slurm: what fails, what waits for all others, what goes on, and what is added later."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hpc_isl.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.slurm.conftest import User

ENDS_BADLY = "{word: crashes, crash_rank: 0, mishaps: 1}, {word: dies, kill_rank: 0, mishaps: 1}"
BAD = {"word=crashes,crash_rank=0,mishaps=1", "word=dies,kill_rank=0,mishaps=1"}
FAST = ("site.memory=10M", "site.tracking=none", "site.cpus=1")


def sweep(user: User, seeds: int) -> str:
    over = f"over=[{{seed: {list(range(seeds))}}}, {ENDS_BADLY}]"
    words = ("stage=count", over, "steps=2", "final=true", "--site", str(user.cluster.site_file), *FAST)
    return user("sweep", *words, "--name", "nuc")


def elements(user: User) -> list[Run]:
    return Run(user.command_line.cwd / "runs" / "sweep" / "nuc").elements()


def attempts(user: User) -> dict[str, int]:
    """How often each element has been started."""
    return {one.name: len(one.attempt_numbers()) for one in elements(user)}


def written(run: Run) -> dict[Path, int]:
    """All files of the run, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.is_file()}


@pytest.mark.kill
def test_a_sweep_fails_in_part_is_retried_and_grows(user: User) -> None:
    assert "12 elements" not in sweep(user, seeds=10), "12, and the one that waits for them"
    assert user.becomes("nuc", "failed"), user("status", "nuc")
    assert {one.name for one in elements(user) if not one.summary()} == {*BAD, "final"}
    assert "nothing to add up for word=crashes" in user("status", "nuc"), "it never pends for ever"
    there = {one.name: written(one) for one in elements(user) if one.summary()}

    assert "is resumed with 3 of 13 elements" in user("retry", "nuc")
    assert user.becomes("nuc", "done"), user("status", "nuc")
    again = dict.fromkeys((*BAD, "final"), 2)
    assert attempts(user) == {one.name: again.get(one.name, 1) for one in elements(user)}
    assert "word: of 24" in elements(user)[-1].recipe.read_text()

    there |= {one.name: written(one) for one in elements(user) if one.name in BAD}
    said = sweep(user, seeds=14)
    assert "sweep 'nuc' is extended: 4 of 16 elements are new; then 'final' once more" in said
    assert "is resumed with 5 of 17 elements" in said
    assert user.becomes("nuc", "done"), user("status", "nuc")
    assert attempts(user) == {one.name: 2 if one.name in BAD else 1 for one in elements(user)}
    assert "word: of 32" in elements(user)[-1].recipe.read_text()
    assert {one.name: written(one) for one in elements(user) if one.name in there} == there


def test_elements_that_are_retried_while_others_run_are_waited_for_too(user: User) -> None:
    over = f"over=[{{steps: 1000, pause_s: 0.2}}, {ENDS_BADLY}]"
    words = ("stage=count", over, "final=true", "--site", str(user.cluster.site_file), *FAST)
    user("sweep", *words, "--name", "nuc")
    bad, final = [one for one in elements(user) if one.name in BAD], elements(user)[-1]
    assert user.cluster.eventually(lambda: "2 failed" in user("status", "nuc"), 90)
    assert "is resumed with 3 of 4 elements" in user("retry", "nuc")
    assert user.cluster.eventually(lambda: all(one.summary() for one in bad), 90)
    assert user.word("nuc/final") == "queued", "it waits for the one that goes on since the beginning"
    user("cancel", "nuc/steps=1000,pause_s=0.2")
    assert user.becomes("nuc", "failed")
    assert "nothing to add up for steps=1000" in user("status", "nuc")
    assert attempts(user)["final"] == 2
    assert not (final.attempts / "0" / "rank-0.json").exists(), "its first job never started"
