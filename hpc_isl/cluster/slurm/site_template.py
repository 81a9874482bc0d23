"""A first site file for a cluster, drafted from what Slurm reports, for a person to read and change."""

from __future__ import annotations

import grp
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.cluster.slurm import machines
from hpc_isl.cluster.slurm.commands import ask
from hpc_isl.cluster.slurm.demand import at_most, duration
from hpc_isl.cluster.slurm.machines import ALL, Cluster, Node, Partition
from hpc_isl.errors import UserError
from hpc_isl.site import cpus_here, user_name

TIME = 12 * 60  # minutes: long enough for one attempt, short enough to start soon
FOR_EVER = "no limit"


@dataclass(frozen=True)
class User:
    """The user, as Slurm and the machine know them; None: the accounting does not answer."""

    name: str
    groups: frozenset[str]
    accounts: tuple[str, ...] | None = None
    qos: tuple[str, ...] = ()

    def may_use(self, partition: Partition) -> bool:
        """Returns whether the partition is open to the user, as far as it is known."""
        if partition.root_only or (partition.groups != ALL and not partition.groups & self.groups):
            return self.name == "root"
        return self.accounts is None or bool(self.accounts_of(partition))

    def accounts_of(self, partition: Partition) -> list[str]:
        """Returns the user's accounts that the partition takes."""
        allowed = [account for account in self.accounts or () if account.lower() not in partition.denied]
        return [name for name in allowed if partition.accounts == ALL or name.lower() in partition.accounts]


def draft_site(name: str, conf: Path | None = None) -> str:
    """Returns the text of a site file for the cluster that answers.

    Raises:
        UserError: no Slurm answers here, or no partition can be used.
    """
    cluster = machines.read(conf)
    if cluster is None:
        raise UserError(_no_slurm(conf))
    return text(name, cluster, user(conf), conf)


def _no_slurm(conf: Path | None) -> str:
    code, _, errors = ask(["sinfo", "--version"], conf)
    if code == 127:
        return (
            "site init: there is no Slurm on this machine; type this on the cluster's login node "
            "(or copy configs/sites/slurm.yaml and fill it in)"
        )
    code, out, errors = ask(["scontrol", "show", "partition"], conf)
    reasons = (errors or out).splitlines()[-1:] or ["it says nothing"]
    return (
        f"site init: Slurm does not answer here: {reasons[0]}\n"
        "where it is configured elsewhere, name its slurm.conf: --slurm-conf FILE"
    )


def user(conf: Path | None = None) -> User:
    """Returns the user of this process."""
    login_name = user_name()
    groups = frozenset(name for number in os.getgroups() if (name := _group(number)))
    command = ["sacctmgr", "-n", "-P", "show", "assoc", f"user={login_name}", "format=account,partition,qos"]
    code, out, _ = ask(command, conf)
    rows = [line.split("|") for line in out.splitlines() if line.count("|") == 2]
    if code or not rows:
        return User(login_name, groups)
    qos = {word for _, _, words in rows for word in words.split(",") if word}
    return User(login_name, groups, tuple(dict.fromkeys(row[0] for row in rows)), tuple(sorted(qos)))


def _group(number: int) -> str | None:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return None


# ---------------------------------------------------------------- what is chosen


def chosen(cluster: Cluster, person: User) -> Partition:
    """Returns the open partition with the most nodes with GPUs; without any, the cluster's default."""
    candidates = usable(cluster, person)
    if not candidates:
        raise UserError("site init: no partition of this cluster is up, has nodes and is open to you")
    return max(
        candidates,
        key=lambda partition: (len(_gpu_nodes(partition)), partition.default, len(partition.nodes)),
    )


def usable(cluster: Cluster, person: User) -> list[Partition]:
    """Returns the partitions that the user may choose from."""
    return [
        partition
        for partition in cluster.partitions
        if partition.up and partition.nodes and not partition.hidden and person.may_use(partition)
    ]


def _gpu_nodes(partition: Partition) -> list[Node]:
    return [node for node in partition.nodes if node.usable and node.gpu_count]


def common(partition: Partition) -> list[Node]:
    """Returns the nodes of the commonest kind: those that have GPUs before those that have none."""
    nodes = (
        _gpu_nodes(partition) or [node for node in partition.nodes if node.usable] or list(partition.nodes)
    )
    kinds = Counter(node.gpu_count for node in nodes)
    # A partition may mix machines: a draft suits most of them, not the best.
    [(gpus, _)] = kinds.most_common(1)
    return [node for node in nodes if node.gpu_count == gpus]


# ---------------------------------------------------------------- in words


def text(name: str, cluster: Cluster, person: User, conf: Path | None = None) -> str:
    """Returns the file: what is chosen, from what, and what else there is."""
    partition = chosen(cluster, person)
    rows = [
        ("executor: slurm", ""),
        *([(f"slurm_conf: {_yaml_word(os.path.abspath(conf))}", "")] if conf is not None else []),
        *_user_rows(person, partition),
        *_partition_rows(partition),
        *_node_rows(partition),
    ]
    width = max(len(left) for left, meaning in rows if meaning)
    other_partitions = [part for part in usable(cluster, person) if part is not partition]
    cluster_text = f"{cluster.name or 'a cluster'} (Slurm {cluster.version or 'of unknown version'})"
    lines = [
        f"# {name}: {cluster_text}, drafted by `site init`; yours to change.",
        "# `pretrain --help all` explains every key.",
        *(f"{left:<{width}}  # {meaning}" if meaning else left for left, meaning in rows),
        *_table(other_partitions),
    ]
    return "\n".join(lines) + "\n"


Row = tuple[str, str]


def _user_rows(person: User, partition: Partition) -> Iterator[Row]:
    accounts = person.accounts_of(partition)
    if len(accounts) == 1:
        yield f"account: {_yaml_word(accounts[0])}", ""
    elif accounts:
        yield f"# account: {_yaml_word(accounts[0])}", f"one of yours: {', '.join(accounts)}"
    if len(person.qos) > 1:
        yield f"# qos: {_yaml_word(person.qos[0])}", f"yours are {', '.join(person.qos)}"


def _partition_rows(partition: Partition) -> Iterator[Row]:
    limit = partition.minutes
    time = duration(min(TIME, limit or TIME))
    yield f"partition: {_yaml_word(partition.name)}", kinds(partition)
    yield f"time: {time}", f"of one attempt; {'at most ' + duration(limit) if limit else FOR_EVER} here"
    features = sorted(frozenset().union(*(node.features for node in partition.nodes)))
    if features:
        ellipsis = ", …" if len(features) > 8 else ""
        yield f"# constraint: {_yaml_word(features[0])}", f"nodes have {', '.join(features[:8])}{ellipsis}"


def _node_rows(partition: Partition) -> Iterator[Row]:
    nodes = common(partition)
    gpus = nodes[0].gpu_count
    cpus, meaning = _cpus(partition, nodes)
    memory = min(map(partition.memory, nodes))
    yield "nodes: 1", ""
    yield f"gpus: {gpus}", "per node, one process for each" if gpus else "this partition has none"
    yield f"cpus: {max(1, cpus // max(1, gpus))}", f"per process, {meaning}"
    if memory > 1:  # a cluster that does not count memory says 1 MB
        yield f"memory: {at_most(memory)}", "per node; less starts sooner"
    yield "setup: []", "shell lines before Python, e.g. [module load cuda]"


def _cpus(partition: Partition, nodes: Sequence[Node]) -> tuple[int, str]:
    """Returns the CPUs of a node that a process may use, and how to describe them."""
    # Slurm may count more than a machine has: where a node is this machine, that is known.
    slurm_cpus = min(map(partition.cpus, nodes))
    if any(node.is_here for node in nodes) and cpus_here() < slurm_cpus:
        return cpus_here(), f"of {cpus_here()} on this machine; Slurm counts {slurm_cpus} on a node"
    return slurm_cpus, f"of {slurm_cpus} on a node"


def kinds(partition: Partition) -> str:
    """Returns `2 nodes with 4 × a100, 2 nodes with 2 × v100`."""
    counts = Counter(gpus_text(node) for node in partition.nodes)
    return ", ".join(
        f"{count} node{'s' * (count > 1)} {f'with {gpus}' if gpus else 'without GPUs'}"
        for gpus, count in counts.items()
    )


def gpus_text(node: Node) -> str:
    """Returns `4 × a100`; empty where there are none."""
    return " + ".join(f"{count} × {kind if kind != 'gpu' else 'GPU'}" for kind, count in node.gpus.items())


def _table(partitions: Sequence[Partition]) -> Iterator[str]:
    """Yields the other partitions, as comments."""
    if not partitions:
        return
    yield "#"
    yield "# What else there is (CPUs and memory are of the largest node):"
    names = [f"partition: {_yaml_word(partition.name)}" for partition in partitions]
    width = max(map(len, names))
    for name, partition in zip(names, partitions, strict=True):
        cpus, memory = max(map(partition.cpus, partition.nodes)), max(map(partition.memory, partition.nodes))
        time_limit = duration(partition.minutes) if partition.minutes else FOR_EVER
        size = f"{cpus} CPUs, {at_most(memory)}" if memory > 1 else f"{cpus} CPUs"
        yield f"# {name:<{width}}  # {time_limit}; {size}; {kinds(partition)}"


def _yaml_word(word: str) -> str:
    """Returns the word as YAML reads it back: plain where that is safe."""
    return word if re.fullmatch(r"[A-Za-z][\w-]*", word) and word.lower() not in _WORDS else json.dumps(word)


_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}
