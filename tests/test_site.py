"""Sites: found by name, strict, and telling processes, times and addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_isl import site
from hpc_isl.errors import UserError
from hpc_isl.site import Site, load, minutes, runs_root


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("HPC_ISL_RUNS", raising=False)
    return tmp_path


def test_shipped_sites_are_legal(home: Path) -> None:
    assert load("laptop", []).executor == "local"
    assert load("slurm", ["gpus=2"]).ranks == 2


def test_a_users_site_comes_before_one_of_the_same_name_elsewhere(home: Path) -> None:
    for folder, nodes in ((home / "config/hpc_isl/sites", 2), (home / "sites", 3)):
        folder.mkdir(parents=True)
        (folder / "laptop.yaml").write_text(f"nodes: {nodes}\n")
        assert load("laptop", []).nodes == nodes
    (home / "other.yaml").write_text("nodes: 4\n")
    assert load("other.yaml", []).nodes == 4


def test_a_site_that_is_not_there_is_named_with_those_that_are(home: Path) -> None:
    (home / "sites").mkdir()
    (home / "sites" / "cluster.yaml").touch()
    known = r"did you mean 'cluster'\? There are: 'allocation', 'cluster', 'laptop', 'slurm'"
    with pytest.raises(UserError, match=known):
        load("clustr", [])
    with pytest.raises(UserError, match="there is no such file"):
        load("gone.yaml", [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90min", 90), ("12h", 720), ("2d", 2880), ("1d12h", 2160), ("12:00:00", 720), ("1-00:00:30", 1441)],
)
def test_times_are_minutes(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize(
    ("word", "messages"),
    [
        ("time=30", "with its unit"),
        ("time=43200", "with its unit"),
        ("time=soon", "a time is written as"),
        ("time=0min", "shorter than a minute"),
        ("memory=64", "a whole number and a unit"),
        ("memory=64 gigs", "a whole number and a unit"),
        ("tracking=mlflow.example.org", "starts with http"),
        ("tracking='https://me:secret@example.org'", "MLFLOW_TRACKING_PASSWORD"),
        ("executor=pbs", "'local', 'slurm' or 'allocation'"),
        ("processes=0", "greater than or equal to 1"),
        ("partion=gpu", "did you mean 'partition'"),
        ("{executor: slurm, time: 4min}", "too short to save 120 s before its end: 5min"),
    ],
)
def test_an_impossible_site_is_refused(word: str, messages: str) -> None:
    words = [word] if "{" not in word else ["executor=slurm", "time=4min"]
    with pytest.raises(UserError, match=messages):
        load("laptop", words)


def test_numbers_in_yaml_are_text_where_a_key_is_text(home: Path) -> None:
    """A user writes partitions, accounts and times as the cluster does, without thinking of YAML's types."""
    given = load("laptop", ["partition=01", "account=0042", "time=12:00:00", "qos=1e2"])
    assert (given.partition, given.account, given.time, given.qos) == ("01", "0042", "12:00:00", "1e2")
    assert given.minutes == 720


def test_one_process_per_gpu_unless_a_number_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert site.gpus_here() == ["3", "5"]
    assert Site().ranks == 2
    assert Site(gpus=0).ranks == 1
    assert Site(gpus=4, nodes=2).ranks == 8
    assert Site(processes=3, gpus=1).ranks == 3
    assert Site(executor="slurm").ranks == 1, "what the login node has says nothing about the nodes"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Site().ranks == 1


def test_a_stage_of_one_process_has_the_cpus_of_all() -> None:
    alone = Site(executor="slurm", gpus=4, cpus=8, nodes=2).alone()
    assert (alone.ranks, alone.cpus, alone.visible_gpus) == (1, 32, 0)
    assert Site(processes=2).alone().ranks == 2


def test_a_pooled_stage_has_one_process_per_node_and_workers() -> None:
    pooled = Site(executor="slurm", gpus=4, cpus=8, nodes=2).pooled()
    assert (pooled.ranks, pooled.cpus, pooled.gpus, pooled.workers) == (2, 32, 4, 0)
    asked = Site(executor="slurm", processes=3, cpus=2).pooled()
    assert (asked.ranks, asked.cpus, asked.workers) == (1, 6, 3), "processes are workers"
    folded = Site(nodes=2, workers=3).pooled()
    assert (folded.ranks, folded.workers) == (1, 6), "this machine has one node"
    for one in (pooled, asked, folded):
        assert one.pooled() == one, "asked again, as when a run goes on, it is the same"


def test_runs_lie_below_the_folder_unless_site_or_environment_say_else(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runs_root() == home / "runs"
    monkeypatch.setenv("HPC_ISL_RUNS", "/elsewhere/runs")
    assert runs_root(Site()) == Path("/elsewhere/runs")
    assert runs_root(Site(runs=Path("mine"))) == home / "mine"


def test_metrics_are_kept_beside_the_runs_by_default() -> None:
    assert Site().tracking_address(Path("/r")) == "sqlite:////r/mlflow.db"
    assert Site(tracking="none").tracking_address(Path("/r")) is None
    assert Site(tracking="http://mlflow:5000").tracking_address(Path("/r")) == "http://mlflow:5000"


def test_a_site_below_the_home_folder_is_named_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("nodes: 3\n")
    assert load("~/mine.yaml", []).nodes == 3


def test_a_database_of_a_site_is_one_wherever_it_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = load("laptop", ["tracking=sqlite:///mlflow.db"])
    assert chosen.tracking == f"sqlite:///{home}/mlflow.db"
    (home / "below").mkdir()
    monkeypatch.chdir("below")
    assert Site.model_validate_json(chosen.model_dump_json()) == chosen
