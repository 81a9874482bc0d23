"""The timed steps of runs: kept in the folders of their attempts, and read again for runs that are alike."""

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
    """Returns what decides how fast a run computes; nodes of one Slurm partition count as alike."""
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
    """Writes what the attempt has timed into its folder; nothing for stages that are not timed."""
    like = (read_json(attempt.run.record) or {}).get("like")
    if like and (timed := attempt.clock.timed()):
        content = {"like": like, "machine": machine(site, attempt.cpus), "phases": timed}
        write_atomic(attempt.folder / FILE, json.dumps(content, indent=1))


def timings(
    roots: Sequence[Path], like: Mapping[str, Any], machine_: Mapping[str, Any]
) -> list[tuple[str, Timed]]:
    """Returns the newest timings of runs that were alike, on such a machine."""
    depths = ("*/*", "*/*/*/*")  # of runs, and of elements of arrays
    paths = [p for root in roots for depth in depths for p in root.glob(f"{depth}/attempts/*/{FILE}")]
    wanted = json.loads(json.dumps([like, machine_]))  # as they are read back
    alike: list[tuple[str, Timed]] = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        content = read_json(path) or {}
        if [content.get("like"), content.get("machine")] == wanted:
            alike.append((Run(path.parents[2]).label, content["phases"]))
        if len(alike) == NEWEST:
            break
    return alike
