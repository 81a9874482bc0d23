"""`remove` deletes the files of a run; its record and its model's contract stay, and tell what it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.cluster.run_folder import status, submissions, uses
from hpc_isl.cluster.run_folder.status import RunStatus
from hpc_isl.errors import UserError
from hpc_isl.files import now, read_json, write_atomic
from hpc_isl.run import Run
from hpc_isl.site import user_name

# What stays, wherever it lies below the run folder: small, and cited by other runs, their reports and MLflow.
KEPT = {
    "record.json", "recipe.yaml", "site.yaml", "elements.json", "removed.json", "tracking.json",
    "split.csv", "boxes.csv",
}  # fmt: skip
KEPT_BELOW = {"done": None, "model": "contract.json"}


@dataclass(frozen=True)
class Removal:
    """The effects of removing a run.

    Attributes:
        users: runs, arrays and chains that use its model, or that it is a step of.
        size: bytes that become free.
        remaining: what it made elsewhere, and what is not touched.
    """

    run: Run
    users: tuple[Run, ...]
    size: int
    remaining: tuple[str, ...]


def removal(run: Run, runs: Iterable[Run]) -> Removal:
    """Returns what there is to remove, and which of these runs use it.

    Raises:
        UserError: the run is queued or running, or is an element, which goes with its array.
    """
    if run.array is not None:
        raise UserError(f"{run.label!r} is an element of {run.array.name!r}, and is removed with all of it")
    refuse_living(run, status.status_of(run))
    size = sum(path.lstat().st_size for path in _removable_files(run))
    return Removal(run, tuple(_users(run, runs)), size, tuple(dict.fromkeys(_remaining(run))))


def refuse_living(run: Run, run_status: RunStatus) -> None:
    """Checks that the run is neither queued nor running.

    Raises:
        UserError: it is.
    """
    if run_status.alive:
        raise UserError(
            f"{run.stage} {run.label!r} is {run_status.state}: it is not removed; cancel it first, or wait"
        )


def remove(run: Run) -> None:
    """Marks the run as removed, then removes it; called again, it continues where it was ended."""
    with submissions.alone(run):
        refuse_living(run, status.status_of(run))
        facts = {"time": now(), "user": user_name()}
        if run.removed is None:  # first of all, because a removal that is cut short is continued by this mark
            write_atomic(run.removed_file, json.dumps(facts, indent=1))
        for path in _removable_files(run):
            path.unlink(missing_ok=True)
        for folder, _, _ in os.walk(run.folder, topdown=False):
            if not os.listdir(folder):
                os.rmdir(folder)


def _removable_files(run: Run) -> Iterator[Path]:
    """Yields the files and links of the run that do not stay; what links lead to stays."""
    for folder, folders, names in os.walk(run.folder):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*links, *names):
            parent = Path(folder).name
            stays = name in KEPT or (parent in KEPT_BELOW and KEPT_BELOW[parent] in (None, name))
            if not stays:
                yield Path(folder, name)


def _users(run: Run, runs: Iterable[Run]) -> Iterator[Run]:
    """Yields the runs that use the run: each array once, and none of its own elements."""
    seen, own_folder = {run}, os.path.realpath(run.folder)
    for candidate in runs:
        steps = candidate.elements() if candidate.stage == "chain" else []
        model_folders = [
            folder for member in uses.computing_runs([candidate]) for folder in uses.models_used(member)
        ]
        if candidate not in seen and any(
            Path(os.path.realpath(folder)).is_relative_to(own_folder)
            for folder in (*(step.folder for step in steps), *model_folders)
        ):
            seen.add(candidate)
            yield candidate


def _remaining(run: Run) -> Iterator[str]:
    if run.stage == "chain":  # its runs lie beside it, not in it
        yield from (f"{step.stage} {step.name}, a step of it" for step in run.elements())
        return
    for member in uses.computing_runs([run]):
        for label, path in (member.summary() or {}).get("made", {}).items():
            if not Path(path).is_relative_to(run.folder):
                yield f"{label}: {path}"
        yield from _labels(member)
    yield f"record, recipe and contract: {run.folder}"
    if (run.folder / "tracking.json").exists():
        yield "its copy in MLflow"


def _labels(run: Run) -> Iterator[str]:
    """Yields the labels that a run of segment has written into plates."""
    if run.stage != "segment":
        return
    recipe = uses.recipe_of(run)
    contract = read_json(Path(str(recipe.get("model"))) / "model" / "contract.json") or {}
    name = str(recipe.get("labels") or (contract.get("task") or {}).get("labels"))
    for plate in uses.plates_of(run) if "labels" in recipe.get("outputs", ["labels"]) else ():
        yield f"labels {name!r} (beside labels of people: {name + ' predicted'!r}) in {plate}"
