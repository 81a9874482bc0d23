"""Forwards run folders to MLflow, one writer per run; the folder stays the truth."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from hpc_isl import site
from hpc_isl.cluster.run_folder import folders, status
from hpc_isl.cluster.run_folder.status import RunState, RunStatus, span
from hpc_isl.cluster.tracking.store import (
    RunDeleted,
    Summary,
    Unreachable,
    changed,
    check,
    client,
    experiment,
    file_stamp,
    log_model,
    restoring,
    results_of,
    summarise,
    usable,
)
from hpc_isl.errors import UserError
from hpc_isl.files import only_writer, read_json, share_with_group, write_atomic
from hpc_isl.recipes.strict import flatten, read_yaml
from hpc_isl.run import Run

# What MLflow takes at most: characters of a parameter's value and of a data set's digest, entries of a call.
VALUE, DIGEST, PARAMS, METRICS = 6000, 36, 100, 1000
PARENT_S = 30.0  # how long an element waits for another to make the MLflow run of their array
KINDS = {"done": "FINISHED", "failed": "FAILED", "running": "RUNNING", "queued": "SCHEDULED"}


def sync(run: Run, wait_s: float = 0, ask: bool = True, running: bool = False) -> str:
    """Forwards what is new in the run folder; returns a line that says what was done.

    Args:
        wait_s: how long another process that forwards it just now is waited for.
        ask: also where nothing is new, whether MLflow still has the run.
        running: the caller knows that the run computes; else Slurm is asked.

    Raises:
        Unreachable: no server answers.
        UserError: the experiment was deleted in MLflow.
    """
    uri = site.saved_site(run.site).tracking_address(run.root)
    if uri is None:
        return f"{run.label}: its site says tracking: none"
    if not (run.folder / "tracking.json").exists() and span(run) is None:
        return f"{run.label}: has not begun, there is nothing to forward yet"
    share_with_group(site.saved_site(run.site).group)
    with only_writer(run.folder / ".tracking.lock", wait_s) as has_lock:
        if not has_lock:
            return f"{run.label}: another process forwards it just now"
        known_status = RunStatus(RunState.RUNNING) if running else None
        nothing_new = _nothing_new(run, uri, known_status)
        if nothing_new and not ask:
            return f"{run.label}: nothing new for {uri}"
        check(uri)
        try:
            forward = _Forward(run, uri)
        except RunDeleted as deleted:
            return f"{run.label}: {deleted}"
        if nothing_new and not forward.is_new:
            return f"{run.label}: nothing new for {uri}"
        return f"{run.label}: {forward.all(known_status)} to {uri}"


def _nothing_new(run: Run, uri: str, known_status: RunStatus | None) -> bool:
    """Returns whether an earlier pass over the ended run forwarded all that its folder holds."""
    tracking = read_json(run.folder / "tracking.json") or {}
    size = run.metrics.stat().st_size if run.metrics.exists() else 0
    if tracking.get("uri") != uri or tracking["offset"] != size or changed(run, tracking["files"]):
        return False
    array_tracking = (read_json(run.array.folder / "tracking.json") or {}) if run.array else {}
    if tracking.get("parent") != array_tracking.get("run_id"):
        return False
    run_status = known_status or status.status_of(run)
    return tracking.get("ended") == _ending(run, run_status) and tracking.get("results") == results_of(run)


def _ending(run: Run, run_status: status.RunStatus) -> list[Any] | None:
    """Returns what identifies the end of a run; None: it has not ended."""
    times = span(run)
    return (
        None
        if run_status.alive or times is None
        else [run_status.state, len(run.attempt_numbers()), times[1]]
    )


def _mlflow() -> Any:
    """Imports and returns MLflow: quiet, with short time-outs and without telemetry."""
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
        self.tracking = read_json(run.folder / "tracking.json") or {}
        self.is_new = self.tracking.get("uri") != uri or not self._is_known()
        if self.is_new:
            self.tracking = {"uri": uri, "run_id": self._find_or_make(), "offset": 0, "last": {}, "files": {}}
            self._save_tracking()

    def all(self, known_status: RunStatus | None = None) -> str:
        """Forwards description, metrics, files, the model and the state; returns what was sent."""
        if self.run.recipe in changed(self.run, self.tracking["files"]):
            self._describe()
        if self.run.array:
            self._set_parent(self.run.array)
        run_status = known_status or status.status_of(self.run)
        ending = _ending(self.run, run_status)
        steps = self._metrics() + (self._summary(ending[-1]) if ending else 0)
        files = self._send_files()
        modelled = run_status.state == RunState.DONE and self._model()
        self._state(run_status, ending)
        return f"{steps} metric values, {files} files" + (", the model" if modelled else "")

    def _save_tracking(self) -> None:
        write_atomic(self.run.folder / "tracking.json", json.dumps(self.tracking, indent=1))

    # ------------------------------------------------------------ the MLflow run

    def _is_known(self) -> bool:
        """Returns whether MLflow has the run that the folder names; not where its database was replaced."""
        try:
            existing = self.client.get_run(self.tracking["run_id"])
        except self.mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        self._check(existing)
        return True

    def _find_or_make(self) -> str:
        """Returns the id of the MLflow run with our key, wherever it was made."""
        # The site's, or the stage: runs of an array are shown as a family where they share an experiment.
        members = [element for element in self.run.elements() if element.array == self.run]
        name = site.saved_site(self.run.site).experiment or (members[0].stage if members else self.run.stage)
        experiment_id = experiment(self.client, self.uri, self.run.root, name)
        query = f"tags.`hpc_isl.key` = '{self.record['key']}'"
        existing = self.client.search_runs(
            [experiment_id], query, run_view_type=self.mlflow.entities.ViewType.ALL
        )
        if existing:
            existing.sort(key=lambda run: str(run.info.lifecycle_stage))  # active before deleted
            self._check(existing[0])
            return str(existing[0].info.run_id)
        start, _ = span(self.run) or (None, None)
        tags = {"hpc_isl.key": self.record["key"]}
        new_run = self.client.create_run(experiment_id, start_time=start, tags=tags, run_name=self.run.label)
        return str(new_run.info.run_id)

    def _check(self, existing: Any) -> None:
        """Checks that no person has deleted it in MLflow.

        Raises:
            UserError: its experiment was deleted.
            RunDeleted: it was deleted.
        """
        usable(self.client, self.uri, self.client.get_experiment(existing.info.experiment_id))
        if existing.info.lifecycle_stage == "deleted":
            raise RunDeleted(
                f"was deleted in MLflow, and is left so; {restoring(self.uri)} runs restore --run-id "
                f"{existing.info.run_id} brings it back"
            )

    def _describe(self) -> None:
        """Sends parameters, tags and data sets."""
        entities = self.mlflow.entities
        values = {_mlflow_key(key): value for key, value in flatten(read_yaml(self.run.recipe)).items()}
        # A parameter never changes in MLflow; a wider sweep has more.
        existing = self.client.get_run(self.tracking["run_id"]).data.params
        params = [
            entities.Param(key, str(value)[:VALUE]) for key, value in values.items() if key not in existing
        ]
        for start in range(0, len(params), PARAMS):
            self.client.log_batch(self.tracking["run_id"], params=params[start : start + PARAMS])
        tags = {
            "hpc_isl.stage": self.run.stage, "hpc_isl.folder": str(self.run.folder),
            "hpc_isl.digest": self.record.get("digest"),
            "hpc_isl.array": self.run.array and self.run.array.name,
            "hpc_isl.executor": site.saved_site(self.run.site).executor,
            "mlflow.user": self.record.get("user"), "mlflow.source.git.commit": self.record.get("commit"),
            "mlflow.source.name": f"hpc_isl {self.run.stage}",  # the pages show what follows its last slash
            "hpc_isl.command": " ".join(self.record.get("argv", [])) or None,
        }  # fmt: skip
        self._tag({name: value for name, value in tags.items() if value})
        self._data_sets(self.record.get("inputs", {}))

    def _set_parent(self, array: Run) -> None:
        """Makes the run a child of its array's, which the first element to come makes."""
        array_tracking = read_json(array.folder / "tracking.json") or {}
        if array_tracking.get("uri") != self.uri:
            array_tracking = self._parent(array)
        if self.tracking.get("parent") != array_tracking["run_id"]:
            self._tag({"mlflow.parentRunId": array_tracking["run_id"]})
            self.tracking["parent"] = array_tracking["run_id"]
            self._save_tracking()

    def _parent(self, array: Run) -> dict[str, Any]:
        with only_writer(array.folder / ".tracking.lock", wait_s=PARENT_S) as has_lock:
            if not has_lock:
                raise Unreachable(f"{array.label} is being forwarded by another process just now")
            parent = _Forward(array, self.uri)
            parent.all()
            return parent.tracking

    def _tag(self, values: Mapping[str, object]) -> None:
        tags = [self.mlflow.entities.RunTag(name, str(value)) for name, value in values.items()]
        self.client.log_batch(self.tracking["run_id"], tags=tags)

    def _data_sets(self, inputs: Mapping[str, str]) -> None:
        entities = self.mlflow.entities
        data_sets = [
            entities.DatasetInput(
                entities.Dataset(
                    name=Path(name).name, digest=digest[:DIGEST], source_type="local",
                    source=json.dumps({"uri": name}),
                ),
                [entities.InputTag("mlflow.data.context", self.run.stage)],
            )
            for name, digest in inputs.items()
        ]  # fmt: skip
        if data_sets:
            self.client.log_inputs(self.tracking["run_id"], data_sets)

    # ------------------------------------------------------------ what grows

    def _metrics(self) -> int:
        """Sends new lines of metrics.jsonl, without (key, step) pairs that an earlier attempt reached."""
        sent, batch, end = 0, [], self.tracking["offset"]
        for line, end in self._new_lines():
            batch += self._new_metrics(line)
            if len(batch) >= 500:
                sent += self._send(batch, end)
                batch = []
        return sent + self._send(batch, end)

    def _new_metrics(self, line: dict[str, Any]) -> list[Any]:
        last_steps, metric = self.tracking["last"], self.mlflow.entities.Metric
        new_values = {
            key: value for key, value in line["values"].items() if line["step"] > last_steps.get(key, -1)
        }
        if not new_values:
            return []
        last_steps |= dict.fromkeys(new_values, line["step"])
        time_ms = int(datetime.fromisoformat(line["time"]).timestamp() * 1000)
        return [metric(_mlflow_key(key), value, time_ms, line["step"]) for key, value in new_values.items()]

    def _new_lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yields complete lines since the last pass, and where each ends; one torn by a kill is skipped."""
        with suppress(FileNotFoundError), self.run.metrics.open("rb") as stream:
            stream.seek(self.tracking["offset"])
            for raw in stream:
                if not raw.endswith(b"\n"):
                    return
                try:
                    yield json.loads(raw), stream.tell()
                except json.JSONDecodeError:
                    yield {"values": {}}, stream.tell()

    def _send(self, batch: list[Any], offset: int) -> int:
        """Sends metrics; what is sent twice, after a kill before the offset was kept, MLflow itself drops."""
        for start in range(0, len(batch), METRICS):
            self.client.log_batch(self.tracking["run_id"], metrics=batch[start : start + METRICS])
        self.tracking["offset"] = offset
        self._save_tracking()
        return len(batch)

    def _summary(self, ended_ms: int) -> int:
        """Sends the scores of an ended sweep by arm and N, once; its report is then among the files."""
        results = results_of(self.run)
        if results is None or results == self.tracking.get("results"):
            return 0
        try:
            summary = summarise(self.run, again="results" in self.tracking)
        except UserError as mistake:  # no element has scores
            summary = Summary({}, str(mistake))
        self._tag({"mlflow.note.content": summary.note})
        metric = self.mlflow.entities.Metric
        batch = [metric(_mlflow_key(name), value, ended_ms, boxes) for name, curve in summary.curves.items()
                 for boxes, value in curve.items() if math.isfinite(value)]  # fmt: skip
        self.tracking["results"] = results
        return self._send(batch, self.tracking["offset"])

    def _send_files(self) -> int:
        new_files = changed(self.run, self.tracking["files"])
        for path in new_files:
            name = path.relative_to(self.run.folder)
            stamp, folder = file_stamp(path), None if name.parent == Path() else str(name.parent)
            self.client.log_artifact(self.tracking["run_id"], str(path), folder)
            self.tracking["files"][str(name)] = stamp
        self._save_tracking()
        return len(new_files)

    def _model(self) -> bool:
        """Logs the model; of an array that ends with one model of all, only that: it has a hundred others."""
        if self.tracking.get("model") or not self.run.model.is_dir():
            return False
        if self.run.array and folders.final_element(self.run.array) not in (None, self.run):
            return False
        if (read_json(self.run.model / "contract.json") or {}).get("program"):
            return False  # another program, whose environment MLflow cannot serve
        self.mlflow.set_tracking_uri(self.uri)
        packages = self.record.get("packages", {})
        self.tracking["model"] = log_model(self.mlflow, self.run, self.tracking["run_id"], packages)
        self._save_tracking()
        return True

    def _state(self, run_status: status.RunStatus, ending: list[Any] | None) -> None:
        self._tag({"hpc_isl.state": run_status.state, "hpc_isl.attempts": len(self.run.attempt_numbers())})
        kind = KINDS.get(run_status.state, "KILLED")
        if ending is None:
            self.client.update_run(self.tracking["run_id"], status=kind)
        else:
            self.client.set_terminated(self.tracking["run_id"], kind, end_time=ending[-1])
        self.tracking["ended"] = ending
        self._save_tracking()


def _mlflow_key(key: str) -> str:
    """Returns the key in the characters that MLflow allows."""
    return re.sub(r"[^\w\-./: ]", "_", key)
