"""What a job asks of each of its nodes, held against the nodes of a partition."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hpc_isl.cluster.slurm.machines import Node, Partition
from hpc_isl.site import Site, minutes

UNITS_KB = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}


def eligible(partition: Partition, site: Site) -> list[Node]:
    """Nodes that the constraint admits; all where it is written in a way that only Slurm reads."""
    constraint = site.constraint or ""
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
        of: how much of it a node can give.
        unit: in which it is said.
        said: how the user wrote it, with the sum where it is one.
        typed: the most that a node gives -> what to type.
    """

    key: str
    amount: int
    of: Callable[[Node], int]
    unit: Callable[[int], str]
    said: str
    typed: Callable[[int], str]

    def met(self, node: Node) -> bool:
        return self.amount <= self.of(node)


def needs_of(partition: Partition, site: Site) -> list[NodeRequirement]:
    """GPUs, CPUs and memory, where the site asks for them."""
    # A cluster that does not tell jobs apart by memory may not have been told how much there is.
    known = any(node.memory > 1 for node in partition.nodes)
    needs = [
        NodeRequirement(
            "gpus", site.visible_gpus, lambda node: node.gpu_count, lambda most: f"{most} GPUs",
            f"site.gpus={site.gpus}", lambda most: f"site.gpus={most}",
        ),
        _cpus_needed(partition, site),
        NodeRequirement(
            "memory", megabytes(site.memory) if site.memory and known else 0, partition.memory, at_most,
            f"site.memory={site.memory}", lambda most: f"site.memory={at_most(most)}",
        ),
    ]  # fmt: skip
    return [need for need in needs if need.amount]


def _cpus_needed(partition: Partition, site: Site) -> NodeRequirement:
    each, processes = site.cpus or 1, site.per_node
    key = "cpus" if site.cpus else "processes" if site.processes else "gpus"
    said = f"site.{key}={getattr(site, key) or 1}"
    if each > 1 and processes > 1:
        said += f" × {processes} processes = {each * processes} CPUs"

    def typed(most: int) -> str:
        return f"site.cpus={most // processes}" if most >= processes else f"site.processes={most}"

    return NodeRequirement(key, each * processes, partition.cpus, lambda most: f"{most} CPUs", said, typed)


def too_much(partition: Partition, site: Site) -> str | None:
    """What no node of the partition can give, or too few of them, and what they can."""
    nodes, needs = eligible(partition, site), needs_of(partition, site)
    if not nodes:
        return None
    for need in needs:
        most = max(map(need.of, nodes))
        if need.amount > most:
            return _above(partition, site, need, most)
    count = len(fitting(partition, site))
    if not count:
        return _not_together(partition, nodes, needs)
    if site.nodes > count:
        what = " and ".join(need.said for need in needs)
        few = f"only {nodes_text(count)} of partition {partition.name!r} can give {what}"
        return f"site.nodes={site.nodes}: {few}; write site.nodes={count}"
    return None


def fitting(partition: Partition, site: Site) -> list[Node]:
    """Nodes that can give all that is asked of each, whether they are up or not."""
    needs = needs_of(partition, site)
    return [node for node in eligible(partition, site) if all(need.met(node) for need in needs)]


def _above(partition: Partition, site: Site, need: NodeRequirement, most: int) -> str:
    which = f" with {site.constraint}" if site.constraint else ""
    if not most:
        return f"{need.said}: no node of partition {partition.name!r}{which} has any; write {need.typed(0)}"
    whose = f"a node of partition {partition.name!r}{which} gives at most {need.unit(most)}"
    return f"{need.said}: {whose}; write {need.typed(most)}"


def _not_together(partition: Partition, nodes: Sequence[Node], needs: Sequence[NodeRequirement]) -> str:
    """Each thing alone some node can give: which of them to lower, and to what."""
    ways = list(_ways(nodes, needs))
    asked = [need for need, _ in ways] or list(needs)
    said = " with ".join(need.said for need in asked)
    wrong = f"{said}: no node of partition {partition.name!r} has them together"
    if ways:
        return f"{wrong}; write {' or '.join(typed for _, typed in ways)}"
    best = max(nodes, key=lambda node: (node.gpu_count, partition.memory(node)))
    lower = [need.typed(need.of(best)) for need in needs if not need.met(best)]
    return f"{wrong}; write {' '.join(lower)}"


def _ways(nodes: Sequence[Node], needs: Sequence[NodeRequirement]) -> Iterator[tuple[NodeRequirement, str]]:
    for need in needs:
        others = [one for one in needs if one is not need]
        rest = [node for node in nodes if all(other.met(node) for other in others)]
        most = max(map(need.of, rest), default=0)
        if most:
            yield need, need.typed(most)


# ---------------------------------------------------------------- in words, as a site writes them


def nodes_text(count: int) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count} node" + ("s" if count != 1 else "")


def duration(total: int) -> str:
    """Minutes as a site writes them: 2880 -> 2d, 90 -> 1h30min."""
    days, rest = divmod(total, 1440)
    hours, rest = divmod(rest, 60)
    text = "".join(f"{count}{unit}" for count, unit in ((days, "d"), (hours, "h"), (rest, "min")) if count)
    assert minutes(text) == total
    return text


def megabytes(memory: str) -> int:
    """MB of 2²⁰ bytes, as Slurm counts them, of a site's memory: 1G -> 1024."""
    number, unit = re.findall(r"\d+|[KMGT]", memory)
    return -(-int(number) * UNITS_KB[unit] // UNITS_KB["M"])


def at_most(mb: int) -> str:
    """MB as a site writes them, in whole G where that loses little."""
    return f"{mb // 1024}G" if mb >= 8192 or mb % 1024 == 0 else f"{mb}M"


def at_least(mb: int) -> str:
    """The same, rounded up."""
    return f"{-(-mb // 1024)}G" if mb >= 8192 or mb % 1024 == 0 else f"{mb}M"
