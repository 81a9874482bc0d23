"""The demands of a job on each of its nodes, compared with the nodes of a partition."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpc_isl.cluster.slurm.machines import Node, Partition
from hpc_isl.site import Site, minutes

UNITS_KB = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}


def eligible(partition: Partition, site: Site) -> list[Node]:
    """Returns the nodes that the constraint admits; all where it is written so that only Slurm reads it."""
    constraint = site.constraint or ""
    # Brackets, counts and mixtures of & and |, as in [a|b] and a*2, mean more than names do.
    if not re.fullmatch(r"[\w.:+-]+([&,][\w.:+-]+)*|[\w.:+-]+(\|[\w.:+-]+)*", constraint):
        return list(partition.nodes)
    enough = any if "|" in constraint else all
    names = re.split(r"[&|,]", constraint)
    return [node for node in partition.nodes if enough(name in node.features for name in names)]


@dataclass(frozen=True)
class NodeRequirement:
    """One thing that a job asks of each of its nodes.

    Attributes:
        key: of the site, with which it was asked for.
        amount: of the thing.
        available: how much of it a node can give.
        text: an amount in words.
        request_text: how the user wrote it, with the sum where it is one.
        assignment: the most that a node gives -> what to type.
    """

    key: str
    amount: int
    available: Callable[[Node], int]
    text: Callable[[int], str]
    request_text: str
    assignment: Callable[[int], str]

    def met(self, node: Node) -> bool:
        return self.amount <= self.available(node)


def requirements(partition: Partition, site: Site) -> list[NodeRequirement]:
    """Returns GPUs, CPUs and memory, where the site asks for them."""
    cpus_per_process, processes = site.cpus or 1, site.per_node
    key = "cpus" if site.cpus else "processes" if site.processes else "gpus"
    cpus = f"site.{key}={getattr(site, key) or 1}"
    if cpus_per_process > 1 and processes > 1:
        cpus += f" × {processes} processes = {cpus_per_process * processes} CPUs"

    def cpu_key(amount: int) -> str:
        return f"site.cpus={amount // processes}" if amount >= processes else f"site.processes={amount}"

    # A cluster that does not tell jobs apart by memory may not have been told how much there is.
    memory_counted = any(node.memory > 1 for node in partition.nodes)
    memory = megabytes(site.memory) if site.memory and memory_counted else 0
    candidates = [
        NodeRequirement(
            "gpus", site.visible_gpus, lambda node: node.gpu_count, lambda amount: f"{amount} GPUs",
            f"site.gpus={site.gpus}", lambda amount: f"site.gpus={amount}",
        ),
        NodeRequirement(
            key, cpus_per_process * processes, partition.cpus, lambda amount: f"{amount} CPUs", cpus, cpu_key,
        ),
        NodeRequirement(
            "memory", memory, partition.memory, at_most,
            f"site.memory={site.memory}", lambda amount: f"site.memory={at_most(amount)}",
        ),
    ]  # fmt: skip
    return [requirement for requirement in candidates if requirement.amount]


def fitting(partition: Partition, site: Site) -> list[Node]:
    """Returns the nodes that can give all that is asked of each, whether they are up or not."""
    needs = requirements(partition, site)
    return [node for node in eligible(partition, site) if all(need.met(node) for need in needs)]


def too_much(partition: Partition, site: Site) -> str | None:
    """Returns what no node of the partition can give, or too few of them, and what they can."""
    nodes, needs = eligible(partition, site), requirements(partition, site)
    if not nodes:
        return None
    name = f"partition {partition.name!r}"
    subject = f"{name} with {site.constraint}" if site.constraint else name
    for need in needs:
        max_amount = max(map(need.available, nodes))
        if not max_amount:
            return f"{need.request_text}: no node of {subject} has any; write {need.assignment(0)}"
        if need.amount > max_amount:
            limit = f"a node of {subject} gives at most {need.text(max_amount)}"
            return f"{need.request_text}: {limit}; write {need.assignment(max_amount)}"
    count = len(fitting(partition, site))
    if not count:
        return _joint_complaint(partition, nodes, needs)
    if site.nodes > count:
        needs_text = " and ".join(need.request_text for need in needs)
        shortage = f"only {nodes_text(count)} of {name} can give {needs_text}"
        return f"site.nodes={site.nodes}: {shortage}; write site.nodes={count}"
    return None


def _joint_complaint(partition: Partition, nodes: Sequence[Node], needs: Sequence[NodeRequirement]) -> str:
    """Returns which requirements to lower, and to what: each alone some node can give."""
    ways: list[tuple[NodeRequirement, str]] = []
    for need in needs:
        candidates = [node for node in nodes if all(other.met(node) for other in needs if other is not need)]
        if most := max(map(need.available, candidates), default=0):
            ways.append((need, need.assignment(most)))
    needs_text = " with ".join(need.request_text for need in [need for need, _ in ways] or needs)
    complaint = f"{needs_text}: no node of partition {partition.name!r} has them together"
    if ways:
        return f"{complaint}; write {' or '.join(assignment for _, assignment in ways)}"
    # No single requirement to lower mends it: what the best node has is proposed as a whole.
    best = max(nodes, key=lambda node: (node.gpu_count, partition.memory(node)))
    assignments = [need.assignment(need.available(best)) for need in needs if not need.met(best)]
    return f"{complaint}; write {' '.join(assignments)}"


# ---------------------------------------------------------------- in words, as a site writes them


def nodes_text(count: int) -> str:
    """Returns `1 node`, `2 nodes`."""
    return f"{count} node" + ("s" if count != 1 else "")


def duration(total: int) -> str:
    """Returns minutes as a site writes them: 2880 -> 2d, 90 -> 1h30min."""
    days, rest = divmod(total, 1440)
    hours, rest = divmod(rest, 60)
    text = "".join(f"{count}{unit}" for count, unit in ((days, "d"), (hours, "h"), (rest, "min")) if count)
    assert minutes(text) == total
    return text


def megabytes(memory: str) -> int:
    """Returns MB of 2²⁰ bytes, as Slurm counts them, of a site's memory: 1G -> 1024."""
    number, unit = re.findall(r"\d+|[KMGT]", memory)
    return -(-int(number) * UNITS_KB[unit] // UNITS_KB["M"])


def at_most(mb: int) -> str:
    """Returns MB as a site writes them, rounded down to whole G where that loses little."""
    return f"{mb // 1024}G" if mb >= 8192 or mb % 1024 == 0 else f"{mb}M"


def at_least(mb: int) -> str:
    """Returns MB as a site writes them, rounded up to whole G where that adds little."""
    return f"{-(-mb // 1024)}G" if mb >= 8192 or mb % 1024 == 0 else f"{mb}M"
