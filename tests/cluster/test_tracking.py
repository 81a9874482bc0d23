"""Metrics in MLflow: each step once, whatever is killed; a server that is away changes nothing."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.conftest import CommandLine

LONG = ("steps=1000", "pause_s=0.2")


@pytest.fixture(scope="module")
def forwarded(
    tmp_path_factory: pytest.TempPathFactory, open_command_line: Callable[[Path], CommandLine]
) -> CommandLine:
    """A folder in which the run "a b" was done and forwarded."""
    command_line = open_command_line(tmp_path_factory.mktemp("forwarded"))
    (command_line.cwd / "data.txt").write_text("fingerprint-of-it")
    data = f"data={command_line.cwd / 'data.txt'}"
    for name in ("USER", "LOGNAME"):  # as in a container, or with `sbatch --export=NONE`
        command_line.environment.pop(name, None)
    done = command_line("count", "steps=7", data, "site.experiment=trial", "--name", "a b")
    assert done.returncode == 0, done.stdout
    assert command_line("sync").returncode == 0  # a machine that is busy may not have forwarded it by its end
    return command_line


def ask(command_line: CommandLine, query: str) -> list[tuple[Any, ...]]:
    """What MLflow's database holds, read without MLflow."""
    with closing(sqlite3.connect(command_line.cwd / "runs" / "mlflow.db")) as database:
        return database.execute(query).fetchall()


def losses(command_line: CommandLine) -> list[tuple[int, float]]:
    return ask(command_line, "select step, value from metrics where key = 'loss' order by step")


def test_a_run_is_forwarded_with_all_that_tells_what_it_was(forwarded: CommandLine) -> None:
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


def test_a_run_lasted_as_long_as_its_work(forwarded: CommandLine) -> None:
    """A user sees the start and the end of the work: neither the submission nor the time of `sync`."""
    rank = json.loads((forwarded.folder("a b") / "attempts" / "0" / "rank-0.json").read_text())
    done = json.loads((forwarded.folder("a b") / "done" / "count.json").read_text())
    times = [
        int(datetime.fromisoformat(moment).timestamp() * 1000) for moment in (rank["start"], done["time"])
    ]
    assert ask(forwarded, "select start_time, end_time from runs") == [tuple(times)]


def test_a_run_belongs_to_its_user_and_its_experiment_is_one_of_machine_learning(
    forwarded: CommandLine,
) -> None:
    """A user sees a name under "Created by", also where no variable holds it, and pages of training."""
    tags = dict(ask(forwarded, "select key, value from tags"))
    assert tags["mlflow.user"] == pwd.getpwuid(os.getuid()).pw_name
    assert ask(forwarded, "select key, value from experiment_tags") == [
        ("mlflow.experimentKind", "custom_model_development")
    ]
    assert tags["mlflow.source.name"] == "hpc_isl count", "MLflow shows what follows the last slash"
    assert tags["hpc_isl.command"].endswith("--name a b")


def test_a_run_that_is_forwarded_again_is_found_by_its_key(forwarded: CommandLine) -> None:
    before = ask(forwarded, "select count(*) from metrics")
    (forwarded.folder("a b") / "tracking.json").unlink()  # the memory of what was forwarded is lost
    assert forwarded("sync").returncode == 0
    assert ask(forwarded, "select count(*) from metrics") == before
    assert ask(forwarded, "select count(*) from runs") == [(1,)]
    assert "nothing new" in forwarded("sync", "a b").stdout


def test_ui_answers_on_loopback_until_ctrl_c(forwarded: CommandLine) -> None:
    """A user behind a proxy gets the pages too, which open as those of model training, not of agents."""
    forwarded.environment["http_proxy"] = "http://127.0.0.1:9"  # as on many clusters; knows nothing of here
    call = forwarded.open("ui")
    del forwarded.environment["http_proxy"]
    assert call.stdout is not None
    address = next(line for line in call.stdout if line.startswith("MLflow: ")).split()[1]
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address) as page:
        assert "MLflow" in page.read().decode()
    look_at(f"{address}/#/experiments/1")
    os.killpg(call.pid, signal.SIGINT)
    call.communicate(timeout=90)
    assert call.returncode == 0
    assert forwarded.eventually(lambda: forwarded.left() == [])


def look_at(address: str) -> None:
    """A browser that was never here before shows training, where there is one."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return
    with tempfile.TemporaryDirectory() as profile:
        shown = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}",
             "--virtual-time-budget=60000", "--dump-dom", address],
            capture_output=True, text=True, timeout=150, check=False,
        ).stdout  # fmt: skip
    assert ">a b<" in shown, "the run is listed"
    assert "Judges" not in shown
    assert "Agent versions" not in shown


def test_a_port_that_is_taken_is_reported_at_once(forwarded: CommandLine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = forwarded("ui", "--port", str(taken.getsockname()[1]))
    assert refused.returncode == 2
    assert "not free on this machine" in refused.stdout


def test_a_server_that_ends_is_reported_with_its_reason(command_line: CommandLine) -> None:
    """A user sees why MLflow did not start: the last lines of its log, which holds the reason too."""
    assert command_line("count", "site.tracking=none").returncode == 0
    database = command_line.cwd / "runs" / "mlflow.db"
    database.write_text("this is no database")
    with socket.socket() as probe:  # a port of its own: another test's server may answer on 5000
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    refused = command_line("ui", "--port", str(port))
    assert refused.returncode == 2, refused.stdout
    assert "its server ended with code" in refused.stdout
    assert "file is not a database" in refused.stdout
    assert "Traceback" not in refused.stdout.split("ends:")[0]
    assert "given up" in (command_line.cwd / "runs" / "mlflow.log").read_text()


def in_mlflow(command_line: CommandLine, *words: str) -> None:
    """What a person does there, with MLflow's own commands."""
    uri = f"sqlite:///{command_line.cwd}/runs/mlflow.db"
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", *words]
    subprocess.run(command, env={**command_line.environment, "MLFLOW_TRACKING_URI": uri}, check=True)


def test_what_was_deleted_in_mlflow_is_reported_with_what_restores_it(command_line: CommandLine) -> None:
    """A user who deleted an experiment there reads its name and the command that restores it, for old runs
    and new ones; a single run that was deleted is left so, and told."""
    assert command_line("count", "--name", "old").returncode == 0
    assert command_line("sync").returncode == 0
    ((experiment,),) = ask(command_line, "select experiment_id from experiments where name = 'count'")
    in_mlflow(command_line, "experiments", "delete", "--experiment-id", str(experiment))
    assert command_line("count", "--name", "new", "site.tracking=none").returncode == 0
    (command_line.folder("new") / "site.yaml").write_text("executor: local\n")
    gone = command_line("sync")
    assert gone.returncode == 1
    assert gone.stdout.count("the MLflow experiment 'count' was deleted") == 1, "once, not for each run"
    restore = f"mlflow experiments restore --experiment-id {experiment}"
    assert restore in gone.stdout
    in_mlflow(command_line, *restore.split()[1:])
    back = command_line("sync")
    assert back.returncode == 0
    assert "old: nothing new" in back.stdout
    assert "new: 3 metric values" in back.stdout
    ((run,),) = ask(command_line, "select run_uuid from runs where name = 'old'")
    in_mlflow(command_line, "runs", "delete", "--run-id", run)
    left = command_line("sync")
    assert left.returncode == 0, "it is what somebody wanted"
    assert f"mlflow runs restore --run-id {run}" in left.stdout
    assert ask(command_line, "select count(*) from runs") == [(2,)]


@pytest.mark.kill
def test_steps_that_a_resumed_run_does_again_are_not_doubled(command_line: CommandLine) -> None:
    call = command_line.open("count", *LONG, "--name", "kill")
    assert command_line.eventually(lambda: (command_line.folder("kill") / "tracking.json").exists(), 90)
    os.killpg(call.pid, signal.SIGKILL)
    call.communicate()
    assert command_line.eventually(lambda: command_line.left() == [], 90), "the forwarder ends with the run"
    for path in (command_line.folder("kill") / "checkpoints").iterdir():
        path.unlink()  # all steps are done again
    command_line.environment["COUNT_FAST"] = "1"
    assert command_line("resume", "kill").returncode == 0
    # The last pass of a run has a limit; what it left on a busy machine is forwarded now.
    assert command_line("sync").returncode == 0
    assert [step for step, _ in losses(command_line)] == list(range(1000))
    written = (command_line.folder("kill") / "metrics.jsonl").read_text().count('"loss"')
    assert written > 1000, "the run folder keeps both"


@pytest.mark.kill
def test_a_database_whose_making_is_ended_is_made_again(command_line: CommandLine) -> None:
    assert command_line("count", "site.tracking=none", "--name", "one").returncode == 0
    (command_line.folder("one") / "site.yaml").write_text("executor: local\n")
    call = command_line.open("sync", "one")
    assert command_line.eventually((command_line.cwd / "runs/.mlflow.db.new/mlflow.db").exists)
    os.killpg(call.pid, signal.SIGKILL)
    call.communicate()
    again = command_line("sync", "one")
    assert again.returncode == 0, again.stdout
    assert [step for step, _ in losses(command_line)] == [0, 1, 2]


def test_a_server_that_is_away_neither_stops_nor_delays_a_run(command_line: CommandLine) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # a port on which no one listens
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
        done = command_line("count", f"site.tracking={uri}", "--name", "alone")
        assert done.returncode == 0, done.stdout
        log = command_line.folder("alone") / "attempts" / "0" / "forward.log"
        assert log.read_text().count("does not answer") == 1, "tried once, and that was that"
        synced = command_line("sync")
        assert synced.returncode == 1
        assert "does not answer" in synced.stdout
        assert "Traceback" not in synced.stdout


def test_a_server_that_accepts_and_never_answers_delays_a_run_by_its_last_pass_at_most(
    command_line: CommandLine,
) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        command_line.environment["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "2"
        done = command_line(
            "count", f"site.tracking=http://127.0.0.1:{mute.getsockname()[1]}", "--name", "mute"
        )
    assert done.returncode == 0, done.stdout
    assert (command_line.folder("mute") / "done" / "count.json").exists()
    assert command_line.left() == []


def test_an_address_with_a_password_is_refused_before_it_is_recorded(command_line: CommandLine) -> None:
    done = command_line("count", "site.tracking=https://me:secret@mlflow.example.org")
    assert done.returncode == 2
    assert "MLFLOW_TRACKING_PASSWORD" in done.stdout
    assert not (command_line.cwd / "runs").exists()


TINY = (
    "net.encoder=resnet18", "net.weights=null", "net.decoder=[32,16,16,8,8]", "train.steps=2",
    "train.batch=2", "train.micro_batch=2", "train.crop=32", "data.workers=0", "predict.stain=false",
)  # fmt: skip


def pretrained(command_line: CommandLine, plate: Path, *keys: str) -> tuple[Path, str]:
    """The folder of a run "net" on a stained plate, and the address of its model in MLflow."""
    done = command_line(
        "pretrain", f"plates=[{plate}]", "sources=[{channel: Brightfield, plane: focus}]",
        "targets=[{channel: Hoechst, plane: max}]", *TINY, "--name", "net", *keys,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    synced = command_line("sync", "net").stdout
    run = command_line.cwd / "runs" / "pretrain" / "net"
    assert "Warning" not in synced + (run / "attempts" / "0" / "forward.log").read_text()
    return run, json.loads((run / "tracking.json").read_text())["model"]


def asked(command_line: CommandLine, script: str, **names: object) -> str:
    """What a program prints that knows MLflow alone, and our package to compare with."""
    program = command_line.cwd / "ask.py"
    program.write_text(script.format(uri=f"sqlite:///{command_line.cwd}/runs/mlflow.db", **names))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)],
        env=command_line.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.journey
def test_a_pretrained_model_comes_back_from_mlflow_and_predicts_the_same(
    command_line: CommandLine, write_stained_plate: Callable[..., Any]
) -> None:
    plate = command_line.cwd / "P1.zarr"
    write_stained_plate(plate)
    run, model = pretrained(command_line, plate)
    assert (
        float(asked(command_line, LOADED, model=model, run=str(run), plate=str(plate)).splitlines()[-1])
        < 1e-3
    )
    artifacts = Path(command_line.cwd / "runs" / "mlflow-artifacts")
    assert [path.name for path in artifacts.rglob("*.pkl")] == [], "nothing is pickled"
    assert {"scores.csv", "split.csv", "examples.png"} <= {path.name for path in artifacts.rglob("*")}


@contextmanager
def serving(command_line: CommandLine, model: str) -> Iterator[str]:
    """The address at which `mlflow models serve` answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model,
               "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    environment = {
        **command_line.environment,
        "MLFLOW_TRACKING_URI": f"sqlite:///{command_line.cwd}/runs/mlflow.db",
    }
    # MLflow looks for its server's programs there, as in an activated environment.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    log = command_line.cwd / "serve.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, cwd=command_line.cwd, process_group=0
        )
    try:
        address = f"http://127.0.0.1:{port}"
        assert command_line.eventually(lambda: process.poll() is not None or answers(address), 300), (
            log.read_text()
        )
        assert process.poll() is None, log.read_text()
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(address: str) -> bool:
    with suppress(OSError):
        urllib.request.urlopen(f"{address}/ping", timeout=5).close()
        return True
    return False


@pytest.mark.journey
def test_a_served_model_takes_images_that_the_vendors_flat_field_corrected(
    command_line: CommandLine, write_stained_plate: Callable[..., Any]
) -> None:
    """A user of `mlflow models serve` sends corrected images to a model with data.flat_field=vendor, as
    its metadata say, and gets the stain that the run itself predicts."""
    plate = command_line.cwd / "P1.zarr"
    write_stained_plate(plate, flat_field={"Profile": SLOPE})
    run, model = pretrained(command_line, plate, "data.flat_field=vendor")
    told = asked(command_line, CORRECTED, model=model, run=str(run), plate=str(plate), slope=SLOPE)
    about, sent, wanted = map(json.loads, told.splitlines()[-3:])
    assert about == {
        "sources": ["Brightfield focus"], "targets": ["Hoechst max"], "um_per_pixel": 0.6,
        "images": "counts divided by the vendor's flat field (of mean 1)",
    }  # fmt: skip
    body = json.dumps({"inputs": sent}).encode()
    with serving(command_line, model) as address:
        request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            got = json.loads(answer.read())["predictions"]
    assert np.shape(got) == np.shape(wanted) == (1, 1, 96, 96)
    assert np.std(wanted) > 0
    assert np.abs(np.subtract(got, wanted)).max() / np.std(wanted) < 1e-3


SLOPE = {"Type": "Polynomial", "Coefficients": [[1.0], [0.3, 0.2]], "Origin": [47.5, 47.5],
         "Scale": [0.01, 0.01], "Dims": [96, 96]}  # fmt: skip
CORRECTED = """
import json, mlflow, numpy as np
from pathlib import Path
from hpc_isl.learning.data import samples
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network import model
from hpc_isl.learning.data.fields import field_view
from hpc_isl.learning.data.pixels import gain
from hpc_isl.plates.store import open_plate, read_box

mlflow.set_tracking_uri({uri!r})
print(json.dumps(mlflow.models.get_model_info({model!r}).metadata))
network, contract = model.load(Path({run!r}) / "model")
index = open_plate(Path({plate!r}))
key = index.plate.fields[0].key
seen, _ = samples.read(contract.view, index, key)
offset, scale = contract.view.targets[0].numbers
(plane,) = field_view(contract.view, index, key, 0).sources[0].planes
whole = (slice(0, 96), slice(0, 96))
counts = read_box(index.image(key), 0, 0, index.channel("Brightfield"), [plane], *whole)[0]
print(json.dumps((counts / gain({slope!r}, (96, 96), whole))[None, None].tolist()))
print(json.dumps((Predictor(network)(seen) * scale + offset)[None].tolist()))
"""

LOADED = """
import mlflow, numpy as np
from pathlib import Path
from hpc_isl.learning.data import samples
from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.network import model
from hpc_isl.learning.data.fields import field_view
from hpc_isl.learning.data.view import counts
from hpc_isl.plates.store import open_plate

mlflow.set_tracking_uri({uri!r})
served = mlflow.pyfunc.load_model({model!r})
network, contract = model.load(Path({run!r}) / "model")
index = open_plate(Path({plate!r}))
key = index.plate.fields[0].key
stored = [counts(plane, plane.whole) for plane in field_view(contract.view, index, key, 0).sources]
seen, _ = samples.read(contract.view, index, key)
offset, scale = contract.view.targets[0].numbers
wanted = Predictor(network)(seen) * scale + offset
got = served.predict(np.stack(stored)[None])[0]
assert got.shape == wanted.shape and wanted.std() > 0
print(abs(got - wanted).max() / wanted.std())
"""
