"""What a cluster allows: compared with a site before submission, told after a refusal, used by a retry."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
        UserError: the site asks for what it never can; names the nearest that it can.
    """
    # A reservation brings a partition and nodes of its own.
    known = not set(site.sbatch) & OWN_FLAGS and not (site.reservation and not site.partition)
    cluster = machines.read(site.slurm_conf) if site.executor == "slurm" and known else None
    if cluster and (wrong := complaint(cluster, site, _qos(site))):
        raise UserError(wrong)


@dataclass(frozen=True)
class Qos:
    """What a quality of service says about time and nodes: its flags may lift the partition's limits."""

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
    asked = []
    usable = [part for part in cluster.partitions if part.up and not part.hidden and not part.root_only]
    for name in site.partition.split(",") if site.partition else [None]:
        if partition := cluster.partition(name):
            asked.append(partition)
        elif cluster.partitions:
            known = nearest(name, (partition.name for partition in usable))
            if name is None:
                return f"site.partition: the cluster has no default partition, so name one; {known}"
            return f"site.partition={name}: there is no such partition; {known}"
    wrong = [_wrong(partition, site, qos) for partition in asked]
    if not wrong or None in wrong:  # of several partitions, Slurm takes one that can
        return None
    others = [partition for partition in usable if partition not in asked]
    return f"{wrong[0]}{_elsewhere(others, site, qos, asked[0])}"


def _elsewhere(others: Sequence[Partition], site: Site, qos: Qos | None, asked: Partition) -> str:
    """Returns the partitions that would allow all of it; for GPUs, else, those that have any."""
    fitting = [f"site.partition={part.name}" for part in others if _wrong(part, site, qos) is None]
    if fitting:
        return f", or {' or '.join(fitting[:3])}, which allows it"

    def most_gpus(partition: Partition) -> int:
        return max((node.gpu_count for node in partition.nodes), default=0)

    if site.visible_gpus and not most_gpus(asked):
        having = [f"{part.name} ({most} per node)" for part in others if (most := most_gpus(part))]
        return f"; partitions with GPUs: {', '.join(having)}" if having else "; the cluster has none"
    return ""


def _wrong(partition: Partition, site: Site, qos: Qos | None) -> str | None:
    """Returns the first complaint: about who may, then how long, how many, and what on each node."""
    if not partition.up:
        which = "it" if site.partition else "the default partition"
        return f"site.partition={partition.name}: {which} is {partition.state} and starts no jobs"
    rules: list[Callable[[], str | None]] = [
        lambda: _not_allowed(partition, site),
        lambda: _too_long(partition, site, qos),
        lambda: _too_many(partition, site, qos),
        lambda: _no_such_feature(partition, site),
        lambda: too_much(partition, site),
    ]
    return next((wrong for rule in rules if (wrong := rule())), None)


def _not_allowed(partition: Partition, site: Site) -> str | None:
    where = f"partition {partition.name!r}"
    # Slurm keeps the names of accounts and qos in small letters, however they were typed.
    account, qos = (site.account or "").lower(), (site.qos or "").lower()
    if account and partition.accounts != ALL and account not in partition.accounts:
        known = nearest(account, sorted(partition.accounts))
        return f"site.account={site.account}: {where} is for others; {known}"
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
    has, most = len(partition.nodes), partition.max_nodes
    name = f"site.nodes={site.nodes}: partition {partition.name!r}"
    if has and site.nodes > has:
        return f"{name} has {nodes_text(has)}; write site.nodes={has}"
    lifted = qos is None or "PartitionMaxNodes" in qos.flags
    if lifted or most is None or site.nodes <= most:
        return None
    return f"{name} gives a job at most {nodes_text(most)}; write site.nodes={most}"


def _no_such_feature(partition: Partition, site: Site) -> str | None:
    if not partition.nodes or eligible(partition, site):
        return None
    known = frozenset().union(*(node.features for node in partition.nodes))
    missing = [name for name in re.split(r"[&|,]", site.constraint or "") if name not in known]
    what = f"the feature {missing[0]!r}" if missing else "these together"
    near = nearest(missing[0] if missing else "", sorted(known))
    return f"site.constraint={site.constraint}: no node of partition {partition.name!r} has {what}; {near}"


# ---------------------------------------------------------------- more of it, for a retry


def raised(site: Site, memory_factor: float = 1.0, time_factor: float = 1.0) -> Site:
    """Returns the site with more memory and time, as far as the partition allows.

    What the site leaves to the partition is taken from its defaults; without any it stays as it is.
    """
    if site.executor != "slurm":
        return site
    cluster = machines.read(site.slurm_conf)
    partition = cluster.partition(site.partition and site.partition.split(",")[0]) if cluster else None
    more: dict[str, str] = {}
    if memory_factor > 1:
        mb = megabytes(site.memory) if site.memory else _default_memory(site, cluster, partition)
        most = _most_memory(site, partition) if partition else None
        if mb and (most is None or mb < most):
            wanted = at_least(math.ceil(mb * memory_factor))
            more["memory"] = wanted if most is None or megabytes(wanted) <= most else at_most(most)
    if time_factor > 1:
        # Without a default time, Slurm gives a job the most it may.
        default = (partition.default_minutes or partition.minutes) if partition else None
        now, most = site.minutes or default, _most_minutes(partition, _qos(site)) if partition else None
        if now and (most is None or now < most):
            minutes = math.ceil(now * time_factor)
            more["time"] = duration(minutes if most is None else min(minutes, most))
    return site.model_copy(update=more)


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
    times = {
        "DefMemPerGPU": site.visible_gpus,
        "DefMemPerCPU": (site.cpus or 1) * site.per_node,
        "DefMemPerNode": 1,
    }
    return next((defaults[key] * n for key, n in times.items() if defaults.get(key) and n), None)


# ---------------------------------------------------------------- how many jobs at once


def explained(errors: str, site: Site, jobs: int) -> str:
    """Returns what to do where sbatch refused these `jobs` for their number; else an empty text."""
    limit = next((limit for name, limit in LIMITS.items() if name in errors), None)
    if limit is None:
        return ""
    name, table, column, who = limit
    most = _most(table, column, site)
    conf, cluster = cluster_of(site)
    _, out, _ = ask(["squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i|"], conf, cluster=cluster)
    queued = out.count("|")
    allowed = f"{who} {most if most is not None else 'only so many'} jobs in Slurm at once ({name})"
    if jobs == 1:
        return f"{allowed}, and {queued} of yours are there: wait until one has ended"
    room = f"at most {max(0, most - queued)}" if most is not None else "fewer"
    return (
        f"{allowed}; {queued} of yours are there, and this sweep is {jobs} more: each element counts, also "
        f"with site.array. Lower their number: {room}, by fewer values in `over`. The same command with more "
        "values extends the sweep when these have ended"
    )


def _most(table: str, column: str, site: Site) -> int | None:
    """Returns the limit; None: it is not known, or there are several such."""
    if table == "qos":
        which = [f"name={site.qos}"] if site.qos else []
    else:
        whose = f"user={user_name()}" if column == "MaxSubmit" else "user="
        which = [whose, *([f"account={site.account}"] if site.account else [])]
    command = ["sacctmgr", "-n", "-P", "show", table, *which, f"format={column}"]
    code, out, _ = ask(command, site.slurm_conf)
    # A user has a row for each account and partition: the limit is known where they agree.
    values = {int(line) for line in out.splitlines() if line.isdecimal()}
    return values.pop() if not code and len(values) == 1 else None
