"""Forwards run folders to MLflow, one writer per run; the folder stays the truth."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from hpc_isl import site
from hpc_isl.cluster import status
from hpc_isl.cluster.record import PACKAGE
from hpc_isl.files import only_writer, read_json, share_with_group, write_atomic
from hpc_isl.run import Run
from hpc_isl.strict import flatten, read_yaml

ANSWER_S = 3.0
KINDS = {"done": "FINISHED", "failed": "FAILED", "running": "RUNNING", "queued": "SCHEDULED"}


class Unreachable(RuntimeError):
    """The tracking server does not answer; the run folder keeps everything until it does."""


# ---------------------------------------------------------------- one pass


def sync(run: Run) -> str:
    """Forwards what is new in the run folder; a line that says what was done.

    Raises:
        Unreachable: no server answers.
    """
    uri = site.kept(run.site).tracking_address(run.root)
    if uri is None:
        return f"{run.label}: its site says tracking: none"
    share_with_group(site.kept(run.site).group)
    with only_writer(run.folder / ".tracking.lock", wait_s=0) as mine:
        if not mine:
            return f"{run.label}: another process forwards it just now"
        if _nothing_new(run, uri):
            return f"{run.label}: nothing new for {uri}"
        _check(uri)
        return f"{run.label}: {_Forward(run, uri).all()} to {uri}"


def _nothing_new(run: Run, uri: str) -> bool:
    """Whether an earlier pass over the ended run forwarded all; MLflow need not be imported to know."""
    kept = read_json(run.folder / "tracking.json") or {}
    size = run.metrics.stat().st_size if run.metrics.exists() else 0
    ended = kept.get("ended") == [status.state(run).word, len(run.attempt_numbers())]
    return ended and kept.get("uri") == uri and kept["offset"] == size


def _check(uri: str) -> None:
    """A server that is not there is found out in seconds, before MLflow is imported and retries."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.scheme in urllib.request.getproxies():
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), ANSWER_S).close()
    except OSError as error:
        raise Unreachable(f"{uri} does not answer ({error})") from None


def _mlflow() -> Any:
    """MLflow, quiet, impatient, and silent towards its makers."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow
    import mlflow.entities

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


class _Forward:
    """One pass over one run folder. `tracking.json` there says what has been forwarded before."""

    def __init__(self, run: Run, uri: str) -> None:
        self.run, self.uri, self.mlflow = run, uri, _mlflow()
        self.client = self.mlflow.MlflowClient(tracking_uri=uri)
        self.record = read_json(run.record) or {}
        self.kept = read_json(run.folder / "tracking.json") or {}
        if self.kept.get("uri") != uri or not self._exists():
            self.kept = {"uri": uri, "run_id": self._find_or_make(), "offset": 0, "last": {}, "files": {}}
            self._describe()
            self._keep()

    def all(self) -> str:
        """Metrics, files, the model, the state."""
        steps = self._metrics()
        files = self._files()
        found = status.state(self.run)
        modelled = found.word == "done" and self._model()
        self._state(found)
        return f"{steps} metric values, {files} files" + (", the model" if modelled else "")

    def _keep(self) -> None:
        write_atomic(self.run.folder / "tracking.json", json.dumps(self.kept, indent=1))

    # ------------------------------------------------------------ the MLflow run

    def _exists(self) -> bool:
        with suppress(self.mlflow.MlflowException):
            return bool(self.client.get_run(self.kept["run_id"]).info.lifecycle_stage == "active")
        return False

    def _find_or_make(self) -> str:
        """The MLflow run with our key, wherever it was made."""
        experiment = self._experiment()
        query = f"tags.`hpc_isl.key` = '{self.record['key']}'"
        found = self.client.search_runs([experiment], query, max_results=1)
        if found:
            return str(found[0].info.run_id)
        started = int(self.run.origin() * 1000)
        tags = {"hpc_isl.key": self.record["key"]}
        made = self.client.create_run(experiment, start_time=started, tags=tags, run_name=self.run.label)
        return str(made.info.run_id)

    def _experiment(self) -> str:
        """Its id. Made by one process at a time: eight that create one database together fail."""
        name = site.kept(self.run.site).experiment or self.run.stage
        root = self.run.root
        with only_writer(root / ".mlflow.lock", wait_s=120):
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            # A server knows where it keeps files; beside a database of ours they lie beside it.
            place = None if self.uri.startswith("http") else (root / "mlflow-artifacts").as_uri()
            return str(self.client.create_experiment(name, artifact_location=place))

    def _describe(self) -> None:
        """Parameters, tags and data sets: what does not change after submission."""
        entities = self.mlflow.entities
        flat = flatten(read_yaml(self.run.recipe))
        params = [entities.Param(_plain(key), str(value)[:6000]) for key, value in flat.items()]
        for first in range(0, len(params), 100):
            self.client.log_batch(self.kept["run_id"], params=params[first : first + 100])
        facts = {
            "hpc_isl.stage": self.run.stage, "hpc_isl.folder": str(self.run.folder),
            "hpc_isl.digest": self.record.get("digest"),
            "hpc_isl.array": self.run.array and self.run.array.name,
            "hpc_isl.executor": site.kept(self.run.site).executor,
            "mlflow.user": self.record.get("user"), "mlflow.source.git.commit": self.record.get("commit"),
            "mlflow.source.name": " ".join(self.record.get("argv", [])) or None,
        }  # fmt: skip
        self._tag({name: value for name, value in facts.items() if value})
        self._data_sets(self.record.get("inputs", {}))

    def _tag(self, facts: Mapping[str, object]) -> None:
        tags = [self.mlflow.entities.RunTag(name, str(value)) for name, value in facts.items()]
        self.client.log_batch(self.kept["run_id"], tags=tags)

    def _data_sets(self, inputs: Mapping[str, str]) -> None:
        entities = self.mlflow.entities
        sets = [
            entities.DatasetInput(
                entities.Dataset(
                    name=Path(name).name, digest=digest[:36], source_type="local",
                    source=json.dumps({"uri": name}),
                ),
                [entities.InputTag("mlflow.data.context", self.run.stage)],
            )
            for name, digest in inputs.items()
        ]  # fmt: skip
        if sets:
            self.client.log_inputs(self.kept["run_id"], sets)

    # ------------------------------------------------------------ what grows

    def _metrics(self) -> int:
        """New lines of metrics.jsonl; a (key, step) that an earlier attempt reached is not sent again."""
        sent, batch, end = 0, [], self.kept["offset"]
        for line, end in self._new_lines():
            batch += self._fresh(line)
            if len(batch) >= 500:
                sent += self._send(batch, end)
                batch = []
        return sent + self._send(batch, end)

    def _fresh(self, line: dict[str, Any]) -> list[Any]:
        last, metric = self.kept["last"], self.mlflow.entities.Metric
        new = {key: value for key, value in line["values"].items() if line["step"] > last.get(key, -1)}
        if not new:
            return []
        last |= dict.fromkeys(new, line["step"])
        moment = int(datetime.fromisoformat(line["time"]).timestamp() * 1000)
        return [metric(_plain(key), value, moment, line["step"]) for key, value in new.items()]

    def _new_lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Complete lines since the last pass, and where each ends; one torn by a kill is passed over."""
        with suppress(FileNotFoundError), self.run.metrics.open("rb") as stream:
            stream.seek(self.kept["offset"])
            for raw in stream:
                if not raw.endswith(b"\n"):
                    return
                try:
                    yield json.loads(raw), stream.tell()
                except json.JSONDecodeError:
                    yield {"values": {}}, stream.tell()

    def _send(self, batch: list[Any], offset: int) -> int:
        """What is sent twice because we died before the offset was kept, MLflow itself drops."""
        for first in range(0, len(batch), 1000):
            self.client.log_batch(self.kept["run_id"], metrics=batch[first : first + 1000])
        self.kept["offset"] = offset
        self._keep()
        return len(batch)

    def _files(self) -> int:
        """Recipe, records, tables and pictures that are new or have changed."""
        names = ("recipe.yaml", "site.yaml", "record.json", "code.diff", "split.csv", "scores.csv")
        paths = [self.run.folder / name for name in names] + sorted(self.run.pictures.glob("*.png"))
        sent = 0
        for path in filter(Path.is_file, paths):
            inside = str(path.relative_to(self.run.folder))
            seen = [path.stat().st_mtime_ns, path.stat().st_size]
            if self.kept["files"].get(inside) != seen:
                folder = str(Path(inside).parent) if "/" in inside else None
                self.client.log_artifact(self.kept["run_id"], str(path), folder)
                self.kept["files"][inside] = seen
                sent += 1
        self._keep()
        return sent

    def _model(self) -> bool:
        """The model as code that reads safetensors: nothing is pickled."""
        if self.kept.get("model") or not self.run.model.is_dir():
            return False
        self.mlflow.set_tracking_uri(self.uri)
        with warnings.catch_warnings(), self.mlflow.start_run(run_id=self.kept["run_id"]):
            warnings.simplefilter("ignore")  # advice to whoever writes a model, not to who trained one
            made = self.mlflow.pyfunc.log_model(
                name="model",
                python_model=str(PACKAGE / "learning" / "served.py"),
                artifacts={"model": str(self.run.model)},
                signature=self._signature(),
                code_paths=[str(PACKAGE)],
                pip_requirements=[f"{name}=={self.record['packages'][name]}" for name in self._needs()],
            )
        self.kept["model"] = made.model_uri
        self._keep()
        return True

    def _signature(self) -> Any:
        """Arrays (image, source, y, x) to arrays (image, target, y, x), of the contract's channels."""
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        view = (read_json(self.run.model / "contract.json") or {})["view"]
        sides = [
            Schema([TensorSpec(np.dtype("float32"), (-1, len(view[roles]), -1, -1))])
            for roles in ("sources", "targets")
        ]
        return ModelSignature(*sides)

    def _needs(self) -> list[str]:
        needed = (
            "torch segmentation_models_pytorch safetensors numpy scipy pydantic PyYAML tensorstore pyarrow"
        )
        return [name for name in needed.split() if name in self.record.get("packages", {})]

    def _state(self, found: status.State) -> None:
        self._tag({"hpc_isl.state": found.word, "hpc_isl.attempts": len(self.run.attempt_numbers())})
        kind = KINDS.get(found.word, "KILLED")
        if found.alive:
            self.client.update_run(self.kept["run_id"], status=kind)
        else:
            self.client.set_terminated(self.kept["run_id"], kind)
        self.kept["ended"] = None if found.alive else [found.word, len(self.run.attempt_numbers())]
        self._keep()


def _plain(key: str) -> str:
    """A key of the characters that MLflow allows."""
    return re.sub(r"[^\w\-./: ]", "_", key)
