"""Forwards run folders to MLflow, one writer per run; the folder stays the truth."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from hpc_isl import site
from hpc_isl.cluster import last, status
from hpc_isl.cluster.tracked_files import changed, stamp
from hpc_isl.cluster.tracked_model import log_model
from hpc_isl.cluster.tracked_store import Unreachable, check, client, one_at_a_time
from hpc_isl.files import only_writer, read_json, share_with_group, write_atomic
from hpc_isl.run import Run
from hpc_isl.strict import flatten, read_yaml

PARENT_S = 30.0  # how long an element waits for another to make the MLflow run of their array
KINDS = {"done": "FINISHED", "failed": "FAILED", "running": "RUNNING", "queued": "SCHEDULED"}


# ---------------------------------------------------------------- one pass


def sync(run: Run, wait_s: float = 0) -> str:
    """Forwards what is new in the run folder; a line that says what was done.

    `wait_s`: how long another process that forwards it just now is waited for.

    Raises:
        Unreachable: no server answers.
    """
    uri = site.kept(run.site).tracking_address(run.root)
    if uri is None:
        return f"{run.label}: its site says tracking: none"
    share_with_group(site.kept(run.site).group)
    with only_writer(run.folder / ".tracking.lock", wait_s) as mine:
        if not mine:
            return f"{run.label}: another process forwards it just now"
        if _nothing_new(run, uri):
            return f"{run.label}: nothing new for {uri}"
        check(uri)
        return f"{run.label}: {_Forward(run, uri).all()} to {uri}"


def _nothing_new(run: Run, uri: str) -> bool:
    """Whether an earlier pass over the ended run forwarded all; MLflow need not be imported to know."""
    kept = read_json(run.folder / "tracking.json") or {}
    size = run.metrics.stat().st_size if run.metrics.exists() else 0
    if kept.get("uri") != uri or kept["offset"] != size or changed(run, kept["files"]):
        return False
    above = (read_json(run.array.folder / "tracking.json") or {}) if run.array else {}
    if kept.get("parent") != above.get("run_id"):
        return False
    return kept.get("ended") == [status.state(run).word, len(run.attempt_numbers())]


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
        self.client = client(self.mlflow, uri, run.root)
        self.record = read_json(run.record) or {}
        self.kept = read_json(run.folder / "tracking.json") or {}
        if self.kept.get("uri") != uri or not self._exists():
            self.kept = {"uri": uri, "run_id": self._find_or_make(), "offset": 0, "last": {}, "files": {}}
            self._keep()

    def all(self) -> str:
        """What it is, where it was changed; metrics, files, the model, the state."""
        if self.run.recipe in changed(self.run, self.kept["files"]):
            self._describe()
        if self.run.array:
            self._under(self.run.array)
        steps = self._metrics()
        files = self._send_files()
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
        """Its id, made by one process at a time."""
        members = [one for one in self.run.elements() if one.array == self.run]
        stage = members[0].stage if members else self.run.stage  # MLflow shows a family in one experiment
        name = site.kept(self.run.site).experiment or stage
        root = self.run.root
        with one_at_a_time(root):
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            # A server knows where it keeps files; beside a database of ours they lie beside it.
            place = None if self.uri.startswith("http") else (root / "mlflow-artifacts").as_uri()
            return str(self.client.create_experiment(name, artifact_location=place))

    def _describe(self) -> None:
        """Parameters, tags and data sets. A parameter never changes in MLflow; a wider sweep has more."""
        entities = self.mlflow.entities
        flat = {_plain(key): value for key, value in flatten(read_yaml(self.run.recipe)).items()}
        there = self.client.get_run(self.kept["run_id"]).data.params
        params = [entities.Param(key, str(value)[:6000]) for key, value in flat.items() if key not in there]
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

    def _under(self, array: Run) -> None:
        """The run is a child of its array's, which whoever comes first makes."""
        above = read_json(array.folder / "tracking.json") or {}
        if above.get("uri") != self.uri:
            above = self._parent(array)
        if self.kept.get("parent") != above["run_id"]:
            self._tag({"mlflow.parentRunId": above["run_id"]})
            self.kept["parent"] = above["run_id"]
            self._keep()

    def _parent(self, array: Run) -> dict[str, Any]:
        with only_writer(array.folder / ".tracking.lock", wait_s=PARENT_S) as mine:
            if not mine:
                raise Unreachable(f"{array.label} is being forwarded by another process just now")
            parent = _Forward(array, self.uri)
            parent.all()
            return parent.kept

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

    def _send_files(self) -> int:
        new = changed(self.run, self.kept["files"])
        for path in new:
            inside = path.relative_to(self.run.folder)
            seen, folder = stamp(path), None if inside.parent == Path() else str(inside.parent)
            self.client.log_artifact(self.kept["run_id"], str(path), folder)
            self.kept["files"][str(inside)] = seen
        self._keep()
        return len(new)

    def _model(self) -> bool:
        """Of an array that ends with one model of all, only that one: a sweep has a hundred others."""
        if self.kept.get("model") or not self.run.model.is_dir() or last.leads_to_another(self.run):
            return False
        self.mlflow.set_tracking_uri(self.uri)
        packages = self.record.get("packages", {})
        self.kept["model"] = log_model(self.mlflow, self.run, self.kept["run_id"], packages)
        self._keep()
        return True

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
