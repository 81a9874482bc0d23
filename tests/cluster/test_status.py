"""What has become of a run, told from its folder alone; and how runs are named."""

from __future__ import annotations

import json
import os
import socket
from argparse import Namespace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from hpc_isl.cli.arguments import run_folders
from hpc_isl.cluster.monitor import status_table
from hpc_isl.cluster.run_folder import folders, status
from hpc_isl.cluster.submit import planning
from hpc_isl.errors import UserError
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Plan, Run

if TYPE_CHECKING:
    from tests.conftest import CommandLine


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return made(tmp_path, "count", "one")


def made(root: Path, stage: str, name: str) -> Run:
    run = Run(root / stage / name)
    run.folder.mkdir(parents=True)
    run.recipe.write_text("steps: 3\n")
    return run


def submitted(run: Run, **facts: Any) -> None:
    content = {"executor": "local", "host": socket.gethostname(), **facts}
    (run.attempts / str(run.next_attempt()) / "submission.json").write_text(json.dumps(content))


def me() -> dict[str, Any]:
    return {"pid": os.getpid(), "pid_started": psutil.Process().create_time()}


def test_a_run_lives_as_long_as_the_process_that_watches_over_it(run: Run) -> None:
    assert status.status_of(run).state == "new"
    submitted(run, **me())
    assert status.status_of(run) == status.RunStatus("running")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("3 problems:\n  B02/1: has other labels\n  B02/2: too", "3 problems: B02/1: has other labels"),
        ("recipe.yaml:\n  train.stepz: no such key", "recipe.yaml: train.stepz: no such key"),
        ("the disk is full\nmake room", "the disk is full"),
        ("nothing follows:", "nothing follows:"),
    ],
)
def test_the_one_line_of_a_failure_holds_its_reason(run: Run, message: str, shown: str) -> None:
    """A user who types `status` sees why a run failed, and not only how many problems there are."""
    submitted(run, host="elsewhere")
    with pytest.raises(UserError), Attempt(run).recorded():
        raise UserError(message)
    assert status.status_of(run).detail == f"rank 0: {shown}"
    assert shown in status_table.attempts(run)[0]


def test_a_process_of_the_same_number_that_began_later_is_another(run: Run) -> None:
    submitted(run, pid=os.getpid(), pid_started=1.0)
    assert status.status_of(run).state == "lost"


def test_a_run_of_another_machine_lives_while_its_heart_beats(run: Run) -> None:
    submitted(run, host="elsewhere", pid=1, pid_started=1.0)
    attempt = Attempt(run)
    moment = datetime.now(UTC)
    attempt.note(rank=0, start=moment.isoformat(), heartbeat=moment.isoformat())
    assert status.status_of(run).state == "running"
    attempt.note(heartbeat=(moment - timedelta(minutes=5)).isoformat())
    assert status.status_of(run).state == "lost"
    assert "last seen" in status.status_of(run).detail


def test_the_first_rank_to_fail_tells_why(run: Run) -> None:
    submitted(run)
    for rank, moment, message in (
        (0, "2026-01-01T00:00:02", "connection lost"),
        (1, "2026-01-01T00:00:01", "boom"),
    ):
        Attempt(run, rank=rank).note(
            rank=rank, heartbeat=moment, exit=moment, outcome="failed", message=message
        )
    assert status.status_of(run) == status.RunStatus("failed", "rank 1: boom")


def test_done_is_done_whatever_else_is_written(run: Run) -> None:
    submitted(run, **me())
    Attempt(run).finish({"pcc": 0.91234, "made": {"model": "x"}, "figures": {"steps": 7}})
    assert status.status_of(run).state == "done"
    assert status_table.main_figures(run.summary()) == {"pcc": "0.9123", "steps": "7"}


def test_runs_are_found_by_name_by_stage_and_name_and_by_path(tmp_path: Path) -> None:
    one, other = made(tmp_path, "convert", "P1"), made(tmp_path, "pretrain", "P1")
    alone = made(tmp_path, "pretrain", "it's S12")
    assert folders.find("it's S12", tmp_path) == alone
    assert folders.find("convert/P1", tmp_path) == one
    assert folders.find(str(other.folder), Path("/nowhere")) == other
    with pytest.raises(UserError, match="write convert/P1 or pretrain/P1"):
        folders.find("P1", tmp_path)
    with pytest.raises(UserError, match="did you mean"):
        folders.find("its S12", tmp_path)


def test_a_run_and_a_root_below_the_home_folder_are_named_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell expands it in a recipe, or in `--root=~/runs`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    run = made(tmp_path / "runs", "pretrain", "S12")
    assert folders.find("~/runs/pretrain/S12", Path("/nowhere")) == run
    assert run_folders(Namespace(root=Path("~/runs"), site=None)) == (tmp_path / "runs",)


def test_a_link_to_a_run_is_that_run(tmp_path: Path) -> None:
    """What it is called there is neither its name nor that of its stage."""
    run = made(tmp_path / "runs", "count", "one")
    (tmp_path / "best").symlink_to(run.folder)
    assert folders.find(str(tmp_path / "best"), tmp_path / "runs") == run
    (tmp_path / "there").symlink_to("runs")
    through = tmp_path / "there" / "count" / "one"
    assert folders.find(str(through), tmp_path).folder == through, (
        "as it is typed, for nodes that see no other"
    )


def test_the_same_recipe_is_the_same_through_another_path(tmp_path: Path) -> None:
    run = made(tmp_path, "convert", "P1")
    (tmp_path / "export").mkdir()
    (tmp_path / "link").symlink_to("export")
    run.recipe.write_text(to_yaml(ConvertRecipe(source=tmp_path / "export", out=tmp_path / "P1.zarr")))
    same = ConvertRecipe(source=tmp_path / "link", out=tmp_path / "P1.zarr")
    assert planning.differences(run, Plan(same)) == []
    other = ConvertRecipe(source=tmp_path / "other", out=tmp_path / "P1.zarr")
    assert len(planning.differences(run, Plan(other))) == 1


def test_an_address_is_the_shortest_that_finds_the_run(tmp_path: Path) -> None:
    made(tmp_path, "convert", "P1")
    other, alone = made(tmp_path, "pretrain", "P1"), made(tmp_path, "pretrain", "it's S12")
    assert folders.address(alone, tmp_path) == "'it'\"'\"'s S12'"
    assert folders.address(other, tmp_path) == "pretrain/P1"
    assert folders.address(made(tmp_path, "pretrain", "lr=1"), tmp_path) == "pretrain/lr=1", "no key"
    assert folders.address(other, Path("/nowhere")) == str(other.folder)


@pytest.mark.parametrize("name", ["S12", "a b", "it's", '"x"', "ä$;&", "x" * 100])
def test_names_may_hold_spaces_and_quotes(name: str) -> None:
    assert folders.valid_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "-f", "a\nb", "%j", " a", "a ", "x" * 101])
def test_names_that_would_break_a_path_or_a_command_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        folders.valid_name(name)


def test_durations_are_for_people() -> None:
    assert [status_table.duration(s) for s in (4.4, 192, 18120)] == ["4 s", "3 min 12 s", "5 h 02 min"]


def test_status_says_when_a_run_began_and_tells_programs_everything(command_line: CommandLine) -> None:
    """A person sees a date for each run, where they are; a program gets a list with times in UTC, states,
    figures and the elements of arrays, and nothing else on its standard output."""
    assert command_line("count", "site.tracking=none", "--name", "S12").returncode == 0
    swept = command_line(
        "sweep", "stage=count", "over={steps: [2, 3]}", "site.tracking=none", "--name", "two"
    )
    assert swept.returncode == 0
    one, many = json.loads(command_line("status", "--json").stdout)
    assert (one["stage"], one["name"], one["state"], one["attempts"]) == ("count", "S12", "done", 1)
    assert one["folder"] == str(command_line.cwd / "runs" / "count" / "S12")
    assert one["made"] == {"nothing": "at all"}
    began, ended = (datetime.fromisoformat(one[key]) for key in ("began", "ended"))
    assert began.tzinfo is not None
    assert (ended - began).total_seconds() == pytest.approx(one["took_s"], abs=0.1)
    assert [element["name"] for element in many["elements"]] == ["two/steps=2", "two/steps=3"]
    assert [element["progress"]["total"] for element in many["elements"]] == [2, 3]
    lines = command_line("status").stdout.splitlines()
    assert began.astimezone().strftime("%Y-%m-%d %H:%M") in next(line for line in lines if "S12" in line)
    assert json.loads(command_line("status", "S12", "--json").stdout)[0]["name"] == "S12"
    assert json.loads(command_line("status", "--json", "--root", "nowhere").stdout) == []
