"""What a cluster allows, held against a site before submission; and how much more a retry may ask for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.cluster.slurm import machines
from hpc_isl.cluster.slurm.commands import ask
from hpc_isl.cluster.slurm.demand import (
    at_least,
    at_most,
    duration,
    eligible,
    megabytes,
    needs_of,
    nodes_text,
    too_much,
)
from hpc_isl.cluster.slurm.machines import ALL, Cluster, Node, Partition
from hpc_isl.errors import UserError, nearest
from hpc_isl.site import Site

ARRAY_SIZE = 1001  # Slurm's default
# Where a site gives sbatch one of these itself, sbatch knows best what the job asks for.
OWN_FLAGS = {
    "partition", "time", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "cpus-per-gpu", "mem",
    "mem-per-cpu", "mem-per-gpu", "gres", "gpus", "gpus-per-node", "gpus-per-task", "constraint", "clusters",
    "qos", "account",
}  # fmt: skip


def max_array_size(conf: Path | None = None) -> int:
    """Elements that one array may have; Slurm's default where it does not answer."""
    _, out, _ = ask(["scontrol", "show", "config"], conf)
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", out, re.MULTILINE)
    return max(1, int(found[1])) if found else ARRAY_SIZE


def check(site: Site) -> None:
    """Lets pass what the cluster can give, and what is not known: that sbatch decides.

    Raises:
        UserError: the site asks for what it never can; says the nearest that it can.
    """
    cluster = machines.read(site.slurm_conf) if _knowable(site) else None
    wrong = cluster and complaint(cluster, site, _qos(site))
    if wrong:
        raise UserError(wrong)


def _knowable(site: Site) -> bool:
    own = set(site.sbatch) & OWN_FLAGS
    # A reservation brings a partition and nodes of its own.
    return site.executor == "slurm" and not own and not (site.reservation and not site.partition)


@dataclass(frozen=True)
class Qos:
    """What a quality of service says of time and nodes: its flags may lift the partition's limits."""

    name: str = ""
    flags: frozenset[str] = frozenset()
    minutes: int | None = None


def _qos(site: Site) -> Qos | None:
    """That of the site; None: it is not known."""
    if site.qos is None:
        return Qos()
    command = ["sacctmgr", "-n", "-P", "show", "qos", site.qos, "format=Flags,MaxWall"]
    code, out, _ = ask(command, site.slurm_conf)
    if code or out.count("|") != 1:
        return None
    flags, wall = out.split("|")
    return Qos(site.qos, frozenset(flags.split(",")), machines.clock_minutes(wall))


# ---------------------------------------------------------------- what is wrong


def complaint(cluster: Cluster, site: Site, qos: Qos | None = Qos()) -> str | None:
    """What the cluster can never give, and what to type instead; None: nothing is known against the site."""
    asked = _asked_partitions(cluster, site)
    if isinstance(asked, str):
        return asked
    # Of several partitions, Slurm takes whichever can.
    wrong = [_wrong(partition, site, qos) for partition in asked]
    if not wrong or None in wrong:
        return None
    return f"{wrong[0]}{_elsewhere(cluster, site, qos, asked)}"


def _asked_partitions(cluster: Cluster, site: Site) -> list[Partition] | str:
    names = site.partition.split(",") if site.partition else [None]
    found = [cluster.partition(name) for name in names]
    for name, partition in zip(names, found, strict=True):
        if partition is None and cluster.partitions:
            known = nearest(name, (one.name for one in _open(cluster)))
            if name is None:
                return f"site.partition: the cluster has no default partition, so name one; {known}"
            return f"site.partition={name}: there is no such partition; {known}"
    return [partition for partition in found if partition is not None]


def _open(cluster: Cluster) -> list[Partition]:
    return [one for one in cluster.partitions if one.up and not one.hidden and not one.root_only]


def _elsewhere(cluster: Cluster, site: Site, qos: Qos | None, asked: Sequence[Partition]) -> str:
    """The partitions that would allow all of it; for GPUs, else, those that have any."""
    others = [one for one in _open(cluster) if one not in asked]
    fitting = [one.name for one in others if _wrong(one, site, qos) is None]
    if fitting:
        return ", or " + " or ".join(f"site.partition={name}" for name in fitting[:3]) + ", which allows it"
    if site.visible_gpus and not _most_gpus(asked[0].nodes):
        having = [f"{one.name} ({most} per node)" for one in others if (most := _most_gpus(one.nodes))]
        return f"; partitions with GPUs: {', '.join(having)}" if having else "; the cluster has none"
    return ""


def _most_gpus(nodes: Sequence[Node]) -> int:
    return max((node.gpu_count for node in nodes), default=0)


def _wrong(partition: Partition, site: Site, qos: Qos | None) -> str | None:
    """The first complaint: about who may, then how long, how many, and what on each node."""
    rules: list[Callable[[], str | None]] = [
        lambda: _closed(partition, site),
        lambda: _not_allowed(partition, site),
        lambda: _too_long(partition, site, qos),
        lambda: _too_many(partition, site, qos),
        lambda: _no_such_feature(partition, site),
        lambda: too_much(partition, site),
    ]
    return next((wrong for rule in rules if (wrong := rule())), None)


def _closed(partition: Partition, site: Site) -> str | None:
    if partition.up:
        return None
    which = "it" if site.partition else "the default partition"
    return f"site.partition={partition.name}: {which} is {partition.state} and starts no jobs"


def _not_allowed(partition: Partition, site: Site) -> str | None:
    where = f"partition {partition.name!r}"
    account, qos = (site.account or "").lower(), (site.qos or "").lower()
    known = sorted(partition.accounts)
    if account and partition.accounts != ALL and account not in partition.accounts:
        return f"site.account={site.account}: {where} is for others; {nearest(account, known)}"
    if account in partition.denied:
        return f"site.account={site.account}: {where} does not take it; name another account"
    if qos and partition.qos != ALL and qos not in partition.qos:
        return f"site.qos={site.qos}: {where} does not take it; {nearest(qos, sorted(partition.qos))}"
    return None


def _too_long(partition: Partition, site: Site, qos: Qos | None) -> str | None:
    most = _most_minutes(partition, qos)
    if site.minutes is None or most is None or site.minutes <= most:
        return None
    by_qos = qos is not None and qos.minutes == most
    who = f"qos {site.qos!r}" if by_qos else f"partition {partition.name!r}"
    return f"site.time={site.time}: {who} allows at most {duration(most)}; write site.time={duration(most)}"


def _most_minutes(partition: Partition, qos: Qos | None) -> int | None:
    if qos is None:
        return None
    own = None if "PartitionTimeLimit" in qos.flags else partition.minutes
    return min((limit for limit in (own, qos.minutes) if limit), default=None)


def _too_many(partition: Partition, site: Site, qos: Qos | None) -> str | None:
    has = len(partition.nodes)
    if has and site.nodes > has:
        of = f"partition {partition.name!r} has {nodes_text(has)}"
        return f"site.nodes={site.nodes}: {of}; write site.nodes={has}"
    lifted = qos is None or "PartitionMaxNodes" in qos.flags
    if lifted or partition.max_nodes is None or site.nodes <= partition.max_nodes:
        return None
    most = partition.max_nodes
    return (
        f"site.nodes={site.nodes}: partition {partition.name!r} gives a job at most {nodes_text(most)}; "
        f"write site.nodes={most}"
    )


def _no_such_feature(partition: Partition, site: Site) -> str | None:
    if not partition.nodes or eligible(partition, site):
        return None
    having = frozenset().union(*(node.features for node in partition.nodes))
    missing = [name for name in re.split(r"[&|,]", site.constraint or "") if name not in having]
    said = f"site.constraint={site.constraint}: no node of partition {partition.name!r} has "
    if not missing:
        return f"{said}these together; {nearest('', sorted(having))}"
    return f"{said}the feature {missing[0]!r}; {nearest(missing[0], sorted(having))}"


# ---------------------------------------------------------------- more of it, for a retry


def raised(site: Site, memory_factor: float = 1.0, time_factor: float = 1.0) -> Site:
    """The site with more memory and time, as far as the partition allows; an equal one where it has all.

    What the site leaves to the partition is taken from its defaults; without any it stays as it is.
    """
    if site.executor != "slurm":
        return site
    cluster = machines.read(site.slurm_conf)
    partition = cluster.partition(site.partition and site.partition.split(",")[0]) if cluster else None
    more = {}
    if memory_factor > 1:
        more["memory"] = _more_memory(site, cluster, partition, memory_factor)
    if time_factor > 1:
        more["time"] = _more_time(site, partition, time_factor)
    return site.model_copy(update={key: value for key, value in more.items() if value})


def _more_memory(
    site: Site, cluster: Cluster | None, partition: Partition | None, factor: float
) -> str | None:
    now = megabytes(site.memory) if site.memory else _default_memory(site, cluster, partition)
    most = _most_memory(site, partition)
    if not now or (most is not None and now >= most):
        return None
    wanted = at_least(math.ceil(now * factor))
    return wanted if most is None or megabytes(wanted) <= most else at_most(most)


def _most_memory(site: Site, partition: Partition | None) -> int | None:
    """MB that as many nodes can give as the site asks for, beside all else that it asks for."""
    if partition is None:
        return None
    needs = [need for need in needs_of(partition, site) if need.key != "memory"]
    fitting = [node for node in eligible(partition, site) if all(need.met(node) for need in needs)]
    sizes = sorted(map(partition.memory, fitting), reverse=True)
    return sizes[site.nodes - 1] if len(sizes) >= site.nodes else None


def _default_memory(site: Site, cluster: Cluster | None, partition: Partition | None) -> int | None:
    """MB per node of a job that does not say; None: the whole node, or it is not known."""
    defaults = (partition and partition.default_memory) or (cluster and cluster.default_memory) or {}
    times = {
        "DefMemPerNode": 1,
        "DefMemPerCPU": (site.cpus or 1) * site.per_node,
        "DefMemPerGPU": site.visible_gpus,
    }
    # Slurm looks at GPUs first, where the job has some.
    for key in ("DefMemPerGPU", "DefMemPerCPU", "DefMemPerNode"):
        if defaults.get(key) and times[key]:
            return defaults[key] * times[key]
    return None


def _more_time(site: Site, partition: Partition | None, factor: float) -> str | None:
    now = site.minutes or (default_minutes(partition) if partition else None)
    most = _most_minutes(partition, _qos(site)) if partition else None
    if not now or (most is not None and now >= most):
        return None
    wanted = math.ceil(now * factor)
    return duration(wanted if most is None else min(wanted, most))


def default_minutes(partition: Partition) -> int | None:
    """Of a job that does not say: without a default, Slurm gives the most it may; None: for ever."""
    return partition.default_minutes or partition.minutes
