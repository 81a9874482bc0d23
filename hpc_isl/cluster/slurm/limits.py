"""Limits of a cluster: compared with a site before submission, named after a refusal, used by a retry."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_isl.cluster.slurm import machines
from hpc_isl.cluster.slurm.commands import ask, cluster_of
from hpc_isl.cluster.slurm.demand import (
    at_least,
    at_most,
    duration,
    eligible,
    megabytes,
    nodes_text,
    requirements,
    too_much,
)
from hpc_isl.cluster.slurm.machines import ALL, Cluster, Partition
from hpc_isl.errors import UserError, nearest
from hpc_isl.site import Site, user_name

ARRAY_SIZE = 1001  # Slurm's default: indices 0 to 1000
# Where a site gives sbatch one of these itself, sbatch knows best what the job asks for.
OWN_FLAGS = {
    "partition", "time", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "cpus-per-gpu", "mem",
    "mem-per-cpu", "mem-per-gpu", "gres", "gpus", "gpus-per-node", "gpus-per-task", "constraint", "clusters",
    "qos", "account",
}  # fmt: skip
MEMORY_SHARES = ("mem-per-cpu", "mem-per-gpu")  # flags that count instead of a site's memory
# What sbatch prints -> name as the staff set it, where sacctmgr shows it, who may have how many jobs.
LIMITS = {
    "AssocMaxSubmitJobLimit": ("MaxSubmitJobs", "assoc", "MaxSubmit", "you may have"),
    "AssocGrpSubmitJobsLimit": (
        "GrpSubmitJobs", "assoc", "GrpSubmit", "all users of your account together may have",
    ),
    "QOSMaxSubmitJobPerUserLimit": (
        "MaxSubmitJobsPerUser of the qos", "qos", "MaxSubmitPU", "a user may have",
    ),
    "MaxSubmitJobsPerAccount": (
        "MaxSubmitJobsPerAccount of the qos", "qos", "MaxSubmitPA", "an account may have",
    ),
    "QOSGrpSubmitJobsLimit": ("GrpSubmitJobs of the qos", "qos", "GrpSubmit", "all users together may have"),
}  # fmt: skip


def max_array_size(conf: Path | None = None) -> int:
    """Returns how many elements one array may have; Slurm's default where it does not answer."""
    _, out, _ = ask(["scontrol", "show", "config"], conf)
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", out, re.MULTILINE)
    return max(1, int(match[1])) if match else ARRAY_SIZE


def check(site: Site) -> None:
    """Checks that the cluster can give what the site asks for; what is not known is left to sbatch.

    Raises:
        UserError: the site asks for what the cluster never can give; names the nearest that it can.
    """
    # A reservation brings a partition and nodes of its own.
    comparable = not set(site.sbatch) & OWN_FLAGS and not (site.reservation and not site.partition)
    cluster = machines.read(site.slurm_conf) if site.executor == "slurm" and comparable else None
    if cluster and (problem := complaint(cluster, site, _qos(site))):
        raise UserError(problem)


@dataclass(frozen=True)
class Qos:
    """The limits of a quality of service on time and nodes; its flags may lift those of the partition."""

    name: str = ""
    flags: frozenset[str] = frozenset()
    minutes: int | None = None


def _qos(site: Site) -> Qos | None:
    """Returns the site's; None: it is not known."""
    if site.qos is None:
        return Qos()
    command = ["sacctmgr", "-n", "-P", "show", "qos", site.qos, "format=Flags,MaxWall"]
    code, out, _ = ask(command, site.slurm_conf)
    if code or out.count("|") != 1:  # sacctmgr prints no row for a name that it does not know
        return None
    flags, wall = out.split("|")
    return Qos(site.qos, frozenset(flags.split(",")), machines.clock_minutes(wall))


# ---------------------------------------------------------------- what is wrong


def complaint(cluster: Cluster, site: Site, qos: Qos | None = Qos()) -> str | None:
    """Returns what the cluster can never give, and what to type instead; None: it may pass."""
    site_partitions = []
    usable = [part for part in cluster.partitions if part.up and not part.hidden and not part.root_only]
    for name in site.partition.split(",") if site.partition else [None]:
        if partition := cluster.partition(name):
            site_partitions.append(partition)
        elif cluster.partitions:
            hint = nearest(name, (partition.name for partition in usable))
            if name is None:
                return f"site.partition: the cluster has no default partition, so name one; {hint}"
            return f"site.partition={name}: there is no such partition; {hint}"
    complaints = [_first_complaint(partition, site, qos) for partition in site_partitions]
    if not complaints or None in complaints:  # of several partitions, Slurm takes one that can
        return None
    other_partitions = [partition for partition in usable if partition not in site_partitions]
    return f"{complaints[0]}{_partitions_that_allow(other_partitions, site, qos, site_partitions[0])}"


def _partitions_that_allow(
    partitions: Sequence[Partition], site: Site, qos: Qos | None, site_partition: Partition
) -> str:
    """Returns the partitions that would allow all of it; else, for a site with GPUs, those that have any."""
    fitting = [
        f"site.partition={part.name}" for part in partitions if _first_complaint(part, site, qos) is None
    ]
    if fitting:
        return f", or {' or '.join(fitting[:3])}, which allows it"

    def most_gpus(partition: Partition) -> int:
        return max((node.gpu_count for node in partition.nodes), default=0)

    if site.visible_gpus and not most_gpus(site_partition):
        with_gpus = [f"{part.name} ({gpus} per node)" for part in partitions if (gpus := most_gpus(part))]
        return f"; partitions with GPUs: {', '.join(with_gpus)}" if with_gpus else "; the cluster has none"
    return ""


def _first_complaint(partition: Partition, site: Site, qos: Qos | None) -> str | None:
    """Returns the first complaint: about who may, then how long, how many, and what on each node."""
    if not partition.up:
        subject = "it" if site.partition else "the default partition"
        return f"site.partition={partition.name}: {subject} is {partition.state} and starts no jobs"
    rules: list[Callable[[], str | None]] = [
        lambda: _not_allowed(partition, site),
        lambda: _too_long(partition, site, qos),
        lambda: _too_many(partition, site, qos),
        lambda: _no_such_feature(partition, site),
        lambda: too_much(partition, site),
    ]
    return next((problem for rule in rules if (problem := rule())), None)


def _not_allowed(partition: Partition, site: Site) -> str | None:
    subject = f"partition {partition.name!r}"
    # Slurm keeps the names of accounts and qos in small letters, however they were typed.
    account, qos = (site.account or "").lower(), (site.qos or "").lower()
    if account and partition.accounts != ALL and account not in partition.accounts:
        hint = nearest(account, sorted(partition.accounts))
        return f"site.account={site.account}: {subject} is for others; {hint}"
    if account in partition.denied:
        return f"site.account={site.account}: {subject} does not take it; name another account"
    if qos and partition.qos != ALL and qos not in partition.qos:
        return f"site.qos={site.qos}: {subject} does not take it; {nearest(qos, sorted(partition.qos))}"
    return None


def _too_long(partition: Partition, site: Site, qos: Qos | None) -> str | None:
    limit = _most_minutes(partition, qos)
    if site.minutes is None or limit is None or site.minutes <= limit:
        return None
    by_qos = qos is not None and qos.minutes == limit
    owner = f"qos {site.qos!r}" if by_qos else f"partition {partition.name!r}"
    return (
        f"site.time={site.time}: {owner} allows at most {duration(limit)}; write site.time={duration(limit)}"
    )


def _most_minutes(partition: Partition, qos: Qos | None) -> int | None:
    if qos is None:
        return None
    partition_limit = None if "PartitionTimeLimit" in qos.flags else partition.minutes
    return min((limit for limit in (partition_limit, qos.minutes) if limit), default=None)


def _too_many(partition: Partition, site: Site, qos: Qos | None) -> str | None:
    node_count, max_nodes = len(partition.nodes), partition.max_nodes
    name = f"site.nodes={site.nodes}: partition {partition.name!r}"
    if node_count and site.nodes > node_count:
        return f"{name} has {nodes_text(node_count)}; write site.nodes={node_count}"
    lifted = qos is None or "PartitionMaxNodes" in qos.flags
    if lifted or max_nodes is None or site.nodes <= max_nodes:
        return None
    return f"{name} gives a job at most {nodes_text(max_nodes)}; write site.nodes={max_nodes}"


def _no_such_feature(partition: Partition, site: Site) -> str | None:
    if not partition.nodes or eligible(partition, site):
        return None
    features = frozenset().union(*(node.features for node in partition.nodes))
    missing = [name for name in re.split(r"[&|,]", site.constraint or "") if name not in features]
    feature = f"the feature {missing[0]!r}" if missing else "these together"
    hint = nearest(missing[0] if missing else "", sorted(features))
    return f"site.constraint={site.constraint}: no node of partition {partition.name!r} has {feature}; {hint}"


# ---------------------------------------------------------------- more of it, for a retry


def raised(site: Site, memory_factor: float = 1.0, time_factor: float = 1.0) -> Site:
    """Returns the site with more memory and time, as far as the partition allows.

    What the site leaves to the partition is taken from its defaults; without any it stays as it is.
    """
    if site.executor != "slurm":
        return site
    cluster = machines.read(site.slurm_conf)
    partition = cluster.partition(site.partition and site.partition.split(",")[0]) if cluster else None
    changes: dict[str, Any] = {}
    if memory_factor > 1 and (flag := next((flag for flag in MEMORY_SHARES if flag in site.sbatch), None)):
        changes["sbatch"] = {**site.sbatch, flag: _more_memory(str(site.sbatch[flag]), memory_factor)}
    elif memory_factor > 1:
        mb = megabytes(site.memory) if site.memory else _default_memory(site, cluster, partition)
        limit = _most_memory(site, partition) if partition else None
        if mb and (limit is None or mb < limit):
            memory = at_least(math.ceil(mb * memory_factor))
            changes["memory"] = memory if limit is None or megabytes(memory) <= limit else at_most(limit)
    if time_factor > 1:
        # Without a default time, Slurm gives a job the most it may.
        default = (partition.default_minutes or partition.minutes) if partition else None
        current, limit = site.minutes or default, _most_minutes(partition, _qos(site)) if partition else None
        if current and (limit is None or current < limit):
            minutes = math.ceil(current * time_factor)
            changes["time"] = duration(minutes if limit is None else min(minutes, limit))
    return site.model_copy(update=changes)


def _more_memory(text: str, factor: float) -> str:
    """Returns a size as sbatch reads it, such as 4G or 4000 (MB), times the factor; what is none as it is."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text, re.IGNORECASE)
    return f"{math.ceil(int(match[1]) * factor)}{match[2] or 'M'}" if match else text


def _most_memory(site: Site, partition: Partition) -> int | None:
    """Returns MB that as many nodes can give as the site asks for, beside all else that it asks for."""
    needs = [need for need in requirements(partition, site) if need.key != "memory"]
    fitting = [node for node in eligible(partition, site) if all(need.met(node) for need in needs)]
    sizes = sorted(map(partition.memory, fitting), reverse=True)
    return sizes[site.nodes - 1] if len(sizes) >= site.nodes else None


def _default_memory(site: Site, cluster: Cluster | None, partition: Partition | None) -> int | None:
    """Returns MB per node of a job that does not say; None: the whole node, or it is not known."""
    defaults = (partition and partition.default_memory) or (cluster and cluster.default_memory) or {}
    # Slurm looks at GPUs first, where the job has some.
    factors = {
        "DefMemPerGPU": site.visible_gpus,
        "DefMemPerCPU": (site.cpus or 1) * site.per_node,
        "DefMemPerNode": 1,
    }
    return next(
        (defaults[key] * factor for key, factor in factors.items() if defaults.get(key) and factor), None
    )


# ---------------------------------------------------------------- how many jobs at once


def explained(errors: str, site: Site, jobs: int) -> str:
    """Returns what to do where sbatch refused these `jobs` for their number; else an empty text."""
    limit = next((limit for name, limit in LIMITS.items() if name in errors), None)
    if limit is None:
        return ""
    name, table, column, subject = limit
    max_jobs = _sacctmgr_limit(table, column, site)
    conf, cluster = cluster_of(site)
    _, out, _ = ask(["squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i|"], conf, cluster=cluster)
    queued = out.count("|")
    rule = f"{subject} {max_jobs if max_jobs is not None else 'only so many'} jobs in Slurm at once ({name})"
    if jobs == 1:
        return f"{rule}, and {queued} of yours are there: wait until one has ended"
    room = f"at most {max(0, max_jobs - queued)}" if max_jobs is not None else "fewer"
    return (
        f"{rule}; {queued} of yours are there, and this sweep is {jobs} more: each element counts, also "
        f"with site.array. Lower their number: {room}, by fewer values in `over`. The same command with more "
        "values extends the sweep when these have ended"
    )


def _sacctmgr_limit(table: str, column: str, site: Site) -> int | None:
    """Returns the limit; None: it is not known, or there are several such."""
    if table == "qos":
        filters = [f"name={site.qos}"] if site.qos else []
    else:
        user_filter = f"user={user_name()}" if column == "MaxSubmit" else "user="
        filters = [user_filter, *([f"account={site.account}"] if site.account else [])]
    command = ["sacctmgr", "-n", "-P", "show", table, *filters, f"format={column}"]
    code, out, _ = ask(command, site.slurm_conf)
    # A user has a row for each account and partition: the limit is known where they agree.
    values = {int(line) for line in out.splitlines() if line.isdecimal()}
    return values.pop() if not code and len(values) == 1 else None
