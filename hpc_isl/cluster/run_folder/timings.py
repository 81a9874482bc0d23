"""The timed steps of runs: kept in the folders of their attempts, and found again for runs that are alike."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_isl.files import read_json, write_atomic
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site
from hpc_isl.timing import Timed

FILE = "timing.json"  # of an attempt
NEWEST = 5  # timed runs that count


def machine(site: Site, cpus: int) -> dict[str, Any]:
    """What decides how fast a run computes, beside what it computes. Of Slurm, nodes of one partition are
    taken to be alike."""
    where = [socket.gethostname(), None]
    if site.executor == "slurm":
        where = [str(site.slurm_conf), site.partition, site.constraint]
    elif site.executor == "allocation":
        where = [os.environ.get("SLURM_CLUSTER_NAME"), os.environ.get("SLURM_JOB_PARTITION")]
    return {
        "where": [site.executor, *where], "nodes": site.nodes, "processes": site.per_node, "cpus": cpus,
        "gpus": site.visible_gpus, "workers": site.workers,
    }  # fmt: skip


def note(attempt: Attempt, site: Site) -> None:
    """Keeps what the attempt has timed in its folder; nothing of stages that are not timed."""
    like = (read_json(attempt.run.record) or {}).get("like")
    if like and (timed := attempt.clock.timed()):
        content = {"like": like, "machine": machine(site, attempt.cpus), "phases": timed}
        write_atomic(attempt.folder / FILE, json.dumps(content, indent=1))


# ---------------------------------------------------------------- what was timed


def timings(
    roots: Sequence[Path], like: Mapping[str, Any], machine_: Mapping[str, Any]
) -> list[tuple[str, Timed]]:
    """The newest timings of runs that were alike, on such a machine."""
    found: list[tuple[str, Timed]] = []
    for path in _files(roots):
        content = read_json(path) or {}
        if content.get("like") == _plain(like) and content.get("machine") == _plain(machine_):
            run = Run(path.parents[2])
            found.append((run.label, content["phases"]))
        if len(found) == NEWEST:
            break
    return found


def _files(roots: Sequence[Path]) -> list[Path]:
    """Of runs and of elements of arrays, the newest first."""
    depths = ("*/*", "*/*/*/*")
    paths = [p for root in roots for depth in depths for p in root.glob(f"{depth}/attempts/*/{FILE}")]
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def _plain(value: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(value))
