"""Metrics in MLflow: each step once, whatever is killed; a server that is away changes nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Door

LONG = ("steps=1000", "pause_s=0.2")


@pytest.fixture(scope="module")
def forwarded(tmp_path_factory: pytest.TempPathFactory, open_door: Callable[[Path], Door]) -> Door:
    """A folder in which the run "a b" was done and forwarded."""
    door = open_door(tmp_path_factory.mktemp("forwarded"))
    (door.cwd / "data.txt").write_text("fingerprint-of-it")
    data = f"data={door.cwd / 'data.txt'}"
    done = door("count", "steps=7", data, "site.experiment=trial", "--name", "a b")
    assert done.returncode == 0, done.stdout
    return door


def ask(door: Door, query: str) -> list[tuple[Any, ...]]:
    """What MLflow's database holds, read without MLflow."""
    with closing(sqlite3.connect(door.cwd / "runs" / "mlflow.db")) as database:
        return database.execute(query).fetchall()


def losses(door: Door) -> list[tuple[int, float]]:
    return ask(door, "select step, value from metrics where key = 'loss' order by step")


def test_a_run_is_forwarded_with_all_that_tells_what_it_was(forwarded: Door) -> None:
    assert dict(losses(forwarded)) == {step: pytest.approx(1 / (step + 1)) for step in range(7)}
    runs = "select r.name, r.status, e.name from runs r join experiments e using (experiment_id)"
    assert ask(forwarded, runs) == [("a b", "FINISHED", "trial")]
    params = dict(ask(forwarded, "select key, value from params"))
    assert (params["steps"], params["word"], params["data"]) == ("7", "", str(forwarded.cwd / "data.txt"))
    tags = dict(ask(forwarded, "select key, value from tags"))
    record = json.loads((forwarded.folder("a b") / "record.json").read_text())
    assert (tags["hpc_isl.key"], tags["hpc_isl.state"]) == (record["key"], "done")
    assert ask(forwarded, "select name, digest from datasets") == [("data.txt", "fingerprint-of-it")]
    kept = {path.name for path in (forwarded.cwd / "runs" / "mlflow-artifacts").rglob("*.*")}
    assert {"recipe.yaml", "record.json"} <= kept


def test_a_run_that_is_forwarded_again_is_found_by_its_key(forwarded: Door) -> None:
    before = ask(forwarded, "select count(*) from metrics")
    (forwarded.folder("a b") / "tracking.json").unlink()  # the memory of what was forwarded is lost
    assert forwarded("sync").returncode == 0
    assert ask(forwarded, "select count(*) from metrics") == before
    assert ask(forwarded, "select count(*) from runs") == [(1,)]
    assert "nothing new" in forwarded("sync", "a b").stdout


def test_ui_answers_on_loopback_until_ctrl_c(forwarded: Door) -> None:
    call = forwarded.open("ui")
    assert call.stdout is not None
    address = next(line for line in call.stdout if line.startswith("MLflow: ")).split()[1]
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address) as page:
        assert b"MLflow" in page.read()
    os.killpg(call.pid, signal.SIGINT)
    call.communicate(timeout=90)
    assert call.returncode == 0
    assert forwarded.eventually(lambda: forwarded.left() == [])


@pytest.mark.kill
def test_steps_that_a_resumed_run_does_again_are_not_doubled(door: Door) -> None:
    call = door.open("count", *LONG, "--name", "kill")
    assert door.eventually(lambda: (door.folder("kill") / "tracking.json").exists(), 90)
    os.killpg(call.pid, signal.SIGKILL)
    call.communicate()
    assert door.eventually(lambda: door.left() == [], 90), "the forwarder ends with the run"
    for path in (door.folder("kill") / "checkpoints").iterdir():
        path.unlink()  # all steps are done again
    door.environment["COUNT_FAST"] = "1"
    assert door("resume", "kill").returncode == 0
    assert [step for step, _ in losses(door)] == list(range(1000))
    written = (door.folder("kill") / "metrics.jsonl").read_text().count('"loss"')
    assert written > 1000, "the run folder keeps both"


@pytest.mark.kill
def test_a_database_whose_making_is_ended_is_made_again(door: Door) -> None:
    assert door("count", "site.tracking=none", "--name", "one").returncode == 0
    (door.folder("one") / "site.yaml").write_text("executor: local\n")
    call = door.open("sync", "one")
    assert door.eventually((door.cwd / "runs/.mlflow.db.new/mlflow.db").exists)
    os.killpg(call.pid, signal.SIGKILL)
    call.communicate()
    again = door("sync", "one")
    assert again.returncode == 0, again.stdout
    assert [step for step, _ in losses(door)] == [0, 1, 2]


def test_a_server_that_is_away_neither_stops_nor_delays_a_run(door: Door) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # a port on which no one listens
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
        done = door("count", f"site.tracking={uri}", "--name", "alone")
        assert done.returncode == 0, done.stdout
        log = door.folder("alone") / "attempts" / "0" / "forward.log"
        assert log.read_text().count("does not answer") == 1, "tried once, and that was that"
        synced = door("sync")
        assert synced.returncode == 1
        assert "does not answer" in synced.stdout
        assert "Traceback" not in synced.stdout


def test_a_server_that_accepts_and_never_answers_delays_a_run_by_its_last_pass_at_most(door: Door) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        door.environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "2"
        done = door("count", f"site.tracking=http://127.0.0.1:{mute.getsockname()[1]}", "--name", "mute")
    assert done.returncode == 0, done.stdout
    assert (door.folder("mute") / "done" / "count.json").exists()
    assert door.left() == []


def test_an_address_with_a_password_is_refused_before_it_is_recorded(door: Door) -> None:
    done = door("count", "site.tracking=https://me:secret@mlflow.example.org")
    assert done.returncode == 2
    assert "MLFLOW_TRACKING_PASSWORD" in done.stdout
    assert not (door.cwd / "runs").exists()


@pytest.mark.journey
def test_a_pretrained_model_comes_back_from_mlflow_and_predicts_the_same(
    door: Door, write_stained_plate: Callable[..., Any]
) -> None:
    plate = door.cwd / "P1.zarr"
    write_stained_plate(plate)
    done = door(
        "pretrain", f"plates=[{plate}]", "sources=[{channel: Brightfield, plane: focus}]",
        "targets=[{channel: Hoechst, plane: max}]", "net.encoder=resnet18", "net.weights=null",
        "net.decoder=[32,16,16,8,8]", "train.steps=2", "train.batch=2", "train.micro_batch=2",
        "train.crop=32", "data.workers=0", "predict.stain=false", "--name", "net",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    run = door.cwd / "runs" / "pretrain" / "net"
    model = json.loads((run / "tracking.json").read_text())["model"]
    script = door.cwd / "ask.py"
    uri = f"sqlite:///{door.cwd}/runs/mlflow.db"
    script.write_text(LOADED.format(uri=uri, model=model, run=str(run), plate=str(plate)))
    asked = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)], env=door.environment, capture_output=True, text=True
    )
    assert asked.returncode == 0, asked.stderr
    assert float(asked.stdout.splitlines()[-1]) < 1e-3
    artifacts = Path(door.cwd / "runs" / "mlflow-artifacts")
    assert [path.name for path in artifacts.rglob("*.pkl")] == [], "nothing is pickled"
    assert {"scores.csv", "split.csv", "examples.png"} <= {path.name for path in artifacts.rglob("*")}


LOADED = """
import mlflow, numpy as np
from pathlib import Path
from hpc_isl.learning import model, predict, samples
from hpc_isl.learning.fields import field_view
from hpc_isl.learning.planes import counts
from hpc_isl.plates.store import open_plate

mlflow.set_tracking_uri({uri!r})
served = mlflow.pyfunc.load_model({model!r})
network, contract = model.load(Path({run!r}) / "model")
index = open_plate(Path({plate!r}))
key = index.plate.fields[0].key
stored = [counts(plane, plane.whole) for plane in field_view(contract.view, index, key, 0).sources]
seen, _ = samples.read(contract.view, index, key)
offset, scale = contract.view.targets[0].numbers
wanted = predict.predict(network, seen) * scale + offset
got = served.predict(np.stack(stored)[None])[0]
assert got.shape == wanted.shape and wanted.std() > 0
print(abs(got - wanted).max() / wanted.std())
"""
