"""How long what is planned will take, from steps that were timed on the same machine."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_isl.cluster.executors import local
from hpc_isl.cluster.monitor.status_table import duration
from hpc_isl.cluster.rank.environment import cpus_here
from hpc_isl.cluster.run_folder.job import POOLED
from hpc_isl.cluster.submit.request import RunRequest
from hpc_isl.files import read_json, write_atomic
from hpc_isl.run import Attempt, Plan, Run
from hpc_isl.site import Site
from hpc_isl.timing import Estimate, Timed, estimate

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


# ---------------------------------------------------------------- what is planned


def lines(order: RunRequest, plans: Mapping[str, Plan], roots: Sequence[Path]) -> Iterator[str]:
    """What to say of the time that an order takes; nothing of stages that are not timed."""
    works = [plan.workload for plan in plans.values() if plan.workload]
    if not works:
        return
    here = machine(order.site, _cpus(order.site))
    alike = {json.dumps(work.like): work.like for work in works}  # often all elements of an array
    timed = {text: timings(roots, like, here) for text, like in alike.items()}
    found = [estimate(work, timed[json.dumps(work.like)], processes(order)) for work in works]
    known = [each for each in found if each is not None]
    yield said(order, known) if len(known) == len(found) else _unknown(order.site)


def _unknown(site: Site) -> str:
    way = "" if site.executor == "slurm" else "; --dry-run --time tries it for ten seconds"
    return f"time: not known, for nothing like it was timed on such a machine yet{way}"


def said(order: RunRequest, known: Sequence[Estimate]) -> str:
    """`time: about 12 min (…)`; of an array, of one element and of all."""
    sources = list(dict.fromkeys(source for each in known for source in each.sources))
    after = f"timed in {', '.join(map(repr, sources[:3]))}" if sources else "tried just now"
    after += ", without waiting in the queue" if order.site.executor == "slurm" else ""
    if not order.elements:
        parts = ", ".join(f"{phase} {duration(s)}" for phase, s in known[0].seconds.items() if s >= 1)
        return f"time: about {duration(known[0].total)} ({parts}; {after})"
    longest = max(each.total for each in known)
    final = longest if order.last else 0.0
    total = sum(each.total for each in known)
    at_once = min(len(known), _at_once(order.site, len(known)))
    each = f"{len(known)} elements, {duration(total / len(known))} each on average"
    return f"time: about {duration(total / at_once + final)}, {at_once} at once ({each}; {after})"


def processes(order: RunRequest) -> int:
    """Processes that share the units of a run."""
    site = order.site
    if order.stage not in POOLED:
        return site.ranks
    return site.nodes * (site.workers or site.visible_gpus or _cpus(site))


def _cpus(site: Site) -> int:
    """Per process."""
    if site.executor == "local":
        return site.cpus or max(1, cpus_here() // site.ranks)
    return site.cpus or 1


def _at_once(site: Site, elements: int) -> int:
    return local.slots(site) if site.executor == "local" else site.array or elements
