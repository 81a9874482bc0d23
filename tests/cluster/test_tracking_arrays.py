"""Arrays in MLflow: a run for the array, one below it for each element, none of them twice."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import CommandLine

SWEEP = ("sweep", "stage=count", "final=true", "--name", "nuc")


@pytest.fixture(scope="module")
def forwarded(
    tmp_path_factory: pytest.TempPathFactory, open_command_line: Callable[[Path], CommandLine]
) -> CommandLine:
    """A folder in which the sweep "nuc" was done and forwarded."""
    command_line = open_command_line(tmp_path_factory.mktemp("forwarded"))
    done = command_line(*SWEEP, "over={steps: [3, 4]}")
    assert done.returncode == 0, done.stdout
    assert (
        command_line("sync").returncode == 0
    )  # a machine that is busy may not have forwarded all by its end
    return command_line


def ask(command_line: CommandLine, query: str) -> list[tuple[Any, ...]]:
    """What MLflow's database holds, read without MLflow."""
    with closing(sqlite3.connect(command_line.cwd / "runs" / "mlflow.db")) as database:
        return database.execute(query).fetchall()


def runs(command_line: CommandLine) -> dict[str, str]:
    """Name -> status; each name is there once."""
    found = ask(command_line, "select name, status from runs where lifecycle_stage = 'active'")
    assert [name for name, count in Counter(name for name, _ in found).items() if count > 1] == []
    return dict(found)


def families(command_line: CommandLine) -> dict[str, list[str]]:
    """Parent -> its children, by name."""
    pairs = ask(
        command_line,
        "select parent.name, child.name from tags t join runs child on child.run_uuid = t.run_uuid "
        "join runs parent on parent.run_uuid = t.value where t.key = 'mlflow.parentRunId' order by 2",
    )
    return {parent: [child for other, child in pairs if other == parent] for parent, _ in pairs}


def of_nuc(command_line: CommandLine, table: str) -> dict[str, str]:
    """Parameters or tags of the array's run."""
    query = f"select t.key, t.value from {table} t join runs r using (run_uuid) where r.name = 'nuc'"
    return dict(ask(command_line, query))


def copies(command_line: CommandLine) -> set[str]:
    """The files that MLflow holds of the array's run."""
    run_id = json.loads((command_line.cwd / "runs/sweep/nuc/tracking.json").read_text())["run_id"]
    folder = command_line.cwd / "runs" / "mlflow-artifacts" / run_id / "artifacts"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_an_array_has_a_run_above_those_of_its_elements(forwarded: CommandLine) -> None:
    assert runs(forwarded) == dict.fromkeys(("nuc", "nuc/steps=3", "nuc/steps=4", "nuc/final"), "FINISHED")
    assert families(forwarded) == {"nuc": ["nuc/final", "nuc/steps=3", "nuc/steps=4"]}
    assert ask(forwarded, "select count(distinct experiment_id) from runs") == [(1,)], (
        "else it shows no family"
    )
    params = of_nuc(forwarded, "params")
    assert (params["stage"], params["over.steps.0"], params["base.final"]) == ("count", "3", "True")
    tags = of_nuc(forwarded, "tags")
    record = json.loads((forwarded.cwd / "runs/sweep/nuc/record.json").read_text())
    assert (tags["hpc_isl.key"], tags["hpc_isl.state"]) == (record["key"], "done")
    assert tags["hpc_isl.folder"] == str(forwarded.cwd / "runs/sweep/nuc")
    assert {"recipe.yaml", "record.json", "elements.json"} <= copies(forwarded)
    told = ask(forwarded, "select distinct value from tags where key = 'hpc_isl.array'")
    assert told == [("nuc",)]


def test_a_report_that_is_written_later_is_forwarded_and_nothing_is_doubled(forwarded: CommandLine) -> None:
    report = forwarded.cwd / "runs/sweep/nuc/report"
    (report / "panels").mkdir(parents=True)
    for name in ("report.html", "curves.csv", "panels/first.png", "notes.tmp"):
        (report / name).write_text(name)
    said = forwarded("sync", "nuc").stdout
    assert "nuc: 0 metric values, 3 files" in said
    assert said.count("nothing new") == 3, said
    assert {"report/report.html", "report/curves.csv", "report/panels/first.png"} <= copies(forwarded)
    assert forwarded("sync", "nuc").stdout.count("nothing new") == 4
    (report / "report.html").write_text("another")
    assert "nuc: 0 metric values, 1 files" in forwarded("sync", "nuc").stdout
    assert len(runs(forwarded)) == 4


def test_mlflow_itself_finds_the_children(forwarded: CommandLine) -> None:
    script = f"""
import mlflow
client = mlflow.MlflowClient(tracking_uri="sqlite:///{forwarded.cwd}/runs/mlflow.db")
[experiment] = [e for e in client.search_experiments() if e.name == "count"]
[parent] = client.search_runs([experiment.experiment_id], "attributes.run_name = 'nuc'")
query = f"tags.mlflow.parentRunId = '{{parent.info.run_id}}'"
print(sorted(run.info.run_name for run in client.search_runs([experiment.experiment_id], query)))
"""
    asked = subprocess.run([sys.executable, "-W", "ignore", "-c", script], env=forwarded.environment,
                           capture_output=True, text=True)  # fmt: skip
    assert asked.stdout.splitlines()[-1:] == ["['nuc/final', 'nuc/steps=3', 'nuc/steps=4']"], asked.stderr


def test_elements_that_are_forwarded_at_once_make_one_run_for_their_array(command_line: CommandLine) -> None:
    assert command_line(*SWEEP, "over={steps: [3, 4]}", "site.tracking=none").returncode == 0
    members = [command_line.cwd / "runs/sweep/nuc/count" / name for name in ("steps=3", "steps=4", "final")]
    for folder in (*members, members[0].parents[1]):
        (folder / "site.yaml").write_text("executor: local\n")  # now they are forwarded
    calls = [command_line.open("sync", str(folder)) for folder in members]
    said = [call.communicate(timeout=120)[0] for call in calls]
    assert [call.returncode for call in calls] == [0, 0, 0], said
    assert set(runs(command_line)) == {"nuc", "nuc/steps=3", "nuc/steps=4", "nuc/final"}
    assert families(command_line) == {"nuc": ["nuc/final", "nuc/steps=3", "nuc/steps=4"]}


def test_what_fails_and_what_is_added_keeps_its_runs(command_line: CommandLine) -> None:
    over = "{steps: 4, crash_rank: 0, mishaps: 1}"
    assert command_line(*SWEEP, f"over=[{{steps: 3}}, {over}]").returncode == 1
    assert runs(command_line)["nuc"] == "FAILED"
    before = set(ask(command_line, "select name, run_uuid from runs"))
    assert command_line(*SWEEP, f"over=[{{steps: [3, 5]}}, {over}]").returncode == 0
    after = ask(command_line, "select name, run_uuid from runs")
    assert before <= set(after), "old elements, and the array, keep theirs"
    assert Counter(name for name, _ in after)["nuc/final"] == 1, "one that never measured anything had none"
    assert runs(command_line)["nuc"] == "FINISHED"
    assert of_nuc(command_line, "params")["over.0.steps.1"] == "5"
