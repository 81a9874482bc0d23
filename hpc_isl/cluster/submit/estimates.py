"""How long what is planned will take, from steps that were timed on the same machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hpc_isl.cluster.executors import local
from hpc_isl.cluster.monitor.status_table import duration
from hpc_isl.cluster.run_folder.create import RunRequest
from hpc_isl.cluster.run_folder.timings import machine, timings
from hpc_isl.run import Plan
from hpc_isl.site import Site, cpus_here
from hpc_isl.stages.stage_table import is_pooled
from hpc_isl.timing import Estimate, estimate

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
    if not is_pooled(order.stage):
        return site.ranks
    return site.nodes * (site.workers or site.visible_gpus or _cpus(site))


def _cpus(site: Site) -> int:
    """Per process."""
    if site.executor == "local":
        return site.cpus or max(1, cpus_here() // site.ranks)
    return site.cpus or 1


def _at_once(site: Site, elements: int) -> int:
    return local.slots(site) if site.executor == "local" else site.array or elements
