"""The partitions and nodes of a cluster, read from Slurm, with the odd values of real clusters."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_isl.cluster.slurm.commands import ask

ALL = frozenset({"ALL"})
# Not among them: POWERED_DOWN, of which Slurm switches on what a job needs.
AWAY = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "FUTURE", "UNKNOWN", "ERROR"}


@dataclass(frozen=True)
class Node:
    """One machine.

    Attributes:
        cpus: that jobs may use.
        memory: MB that jobs may use.
        gpus: kind -> number; the kind is `gpu` where Slurm was told none.
        features: that a constraint may name.
        partitions: names of those it belongs to.
        state: Slurm's words, e.g. IDLE and DRAIN.
        host, address: of the machine.
    """

    name: str
    cpus: int
    memory: int
    gpus: Mapping[str, int]
    features: frozenset[str]
    partitions: frozenset[str]
    state: frozenset[str]
    host: str = ""
    address: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        names = {socket.gethostname(), socket.gethostname().split(".")[0], "localhost"}
        return self.host in names or self.address.startswith("127.")

    @property
    def gpu_count(self) -> int:
        return sum(self.gpus.values())

    @property
    def usable(self) -> bool:
        """Whether jobs can start there, now or when others have ended."""
        return not self.state & AWAY


@dataclass(frozen=True)
class Partition:
    """Nodes, and the limits under which they are given; None: no limit, or it is not known.

    Attributes:
        state: UP, DOWN, DRAIN (takes no more jobs) or INACTIVE.
        minutes, default_minutes: of a job: at most, and where it does not say.
        max_nodes: of a job.
        max_cpus, max_memory: of a job on each node; memory in MB.
        default_memory: what a job gets that does not say, as Slurm calls it -> MB.
        accounts, denied, qos, groups: who may use it; {ALL}: everyone.
    """

    name: str
    state: str
    nodes: tuple[Node, ...]
    default: bool = False
    hidden: bool = False
    root_only: bool = False
    minutes: int | None = None
    default_minutes: int | None = None
    max_nodes: int | None = None
    max_cpus: int | None = None
    max_memory: int | None = None
    default_memory: Mapping[str, int] = field(default_factory=dict)
    accounts: frozenset[str] = ALL
    denied: frozenset[str] = frozenset()
    qos: frozenset[str] = ALL
    groups: frozenset[str] = ALL

    @property
    def up(self) -> bool:
        return self.state == "UP"

    def cpus(self, node: Node) -> int:
        """Returns the CPUs of that node that one job may use."""
        return node.cpus if self.max_cpus is None else min(node.cpus, self.max_cpus)

    def memory(self, node: Node) -> int:
        """Returns the MB of that node that one job may use."""
        return node.memory if self.max_memory is None else min(node.memory, self.max_memory)


@dataclass(frozen=True)
class Cluster:
    """All partitions, with what Slurm's configuration says for those that say nothing."""

    name: str
    version: str
    partitions: tuple[Partition, ...]
    default_memory: Mapping[str, int] = field(default_factory=dict)

    def partition(self, name: str | None) -> Partition | None:
        """Returns the partition of that name; without a name, the cluster's default."""
        if name is None:
            return next((part for part in self.partitions if part.default), None)
        return next((part for part in self.partitions if part.name == name), None)


def read(conf: Path | None = None) -> Cluster | None:
    """Returns the whole cluster; None where Slurm does not answer."""
    answers = []
    for entity in ("partition", "node", "config"):
        # --all: without it Slurm leaves out hidden partitions, which a site may name all the same.
        code, out, _ = ask(["scontrol", "--all", "--oneliner", "show", entity], conf)
        if code:  # asked again it would only take as long again
            return None
        answers.append(out)
    return parsed(*answers)


def parsed(partitions: str, nodes: str, config: str = "") -> Cluster:
    """Reads Slurm's output: one line for each partition, one for each node, and the configuration."""
    machines = [_node(fields) for fields in map(_fields, nodes.splitlines()) if "NodeName" in fields]
    rows = [fields for fields in map(_fields, partitions.splitlines()) if "PartitionName" in fields]
    settings = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", config, re.MULTILINE))
    return Cluster(
        settings.get("ClusterName", ""),
        settings.get("SLURM_VERSION", ""),
        tuple(_partition(fields, machines) for fields in rows),
        _default_memory(settings),
    )


def _fields(line: str) -> dict[str, str]:
    """Reads `Key=value` pairs, whose values may hold blanks and `=`."""
    # Free text comes last: the first of a key counts.
    parts = re.split(r"(?:^|\s)([A-Z]\w*)=", line)
    values: dict[str, str] = {}
    for key, value in zip(parts[1::2], parts[2::2], strict=True):
        values.setdefault(key, value.strip().strip('"'))
    return values


def _node(fields: Mapping[str, str]) -> Node:
    memory = (_number(fields.get("RealMemory")) or 0) - (_number(fields.get("MemSpecLimit")) or 0)
    return Node(
        name=fields["NodeName"],
        cpus=_number(fields.get("CPUEfctv")) or _number(fields.get("CPUTot")) or 0,
        memory=max(0, memory),
        gpus=_gpus(fields.get("Gres", "")),
        features=_names(fields.get("AvailableFeatures")) or frozenset(),
        partitions=_names(fields.get("Partitions")) or frozenset(),
        # IDLE*: it does not answer; IDLE~: it is switched off and will be switched on.
        state=frozenset(word.rstrip("*~#!%$@^-") for word in fields.get("State", "").upper().split("+")),
        host=fields.get("NodeHostName", ""),
        address=fields.get("NodeAddr", ""),
    )


def _partition(fields: Mapping[str, str], machines: list[Node]) -> Partition:
    name = fields["PartitionName"]
    return Partition(
        name=name,
        state=fields.get("State", "UP").upper(),
        # FUTURE: a name in the configuration for a machine that does not exist yet.
        nodes=tuple(node for node in machines if name in node.partitions and "FUTURE" not in node.state),
        default=fields.get("Default") == "YES",
        hidden=fields.get("Hidden") == "YES",
        root_only=fields.get("RootOnly") == "YES",
        minutes=clock_minutes(fields.get("MaxTime")),
        default_minutes=clock_minutes(fields.get("DefaultTime")),
        max_nodes=_number(fields.get("MaxNodes")),
        max_cpus=_number(fields.get("MaxCPUsPerNode")),
        max_memory=_number(fields.get("MaxMemPerNode")),
        default_memory=_default_memory(fields),
        accounts=_names(fields.get("AllowAccounts"), lower=True) or ALL,
        denied=_names(fields.get("DenyAccounts"), lower=True) or frozenset(),
        qos=_names(fields.get("AllowQos"), lower=True) or ALL,
        groups=_names(fields.get("AllowGroups")) or ALL,
    )


def _default_memory(fields: Mapping[str, str]) -> dict[str, int]:
    """Returns e.g. {DefMemPerCPU: 4000}, of a partition or of the configuration."""
    jobs = dict(re.findall(r"(\w+)=(\d+)", fields.get("JobDefaults", "")))
    keys = ("DefMemPerNode", "DefMemPerCPU", "DefMemPerGPU")
    values = {key: _number({**fields, **jobs}.get(key)) for key in keys}
    return {key: value for key, value in values.items() if value}


def _number(text: str | None) -> int | None:
    """Returns a number; None for UNLIMITED, INFINITE, (null), N/A and all else that is none."""
    return int(text) if text and text.isdigit() else None


def _names(text: str | None, lower: bool = False) -> frozenset[str] | None:
    """Returns the names of a list; ALL stays one name; None for an empty list."""
    if text is None or text in ("", "(null)", "N/A", "none", "None"):
        return None
    if text.upper() == "ALL":
        return ALL
    return frozenset((text.lower() if lower else text).split(","))


def clock_minutes(text: str | None) -> int | None:
    """Returns the minutes of `2-00:00:00`, `12:00:00` or `30:00`; None for UNLIMITED and NONE."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d\d)", text or "")
    if not match:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes


def _gpus(gres: str) -> dict[str, int]:
    """Returns `gpu:a100:4(S:0-1),gpu:v100:2` as {a100: 4, v100: 2}; other resources are ignored."""
    counts: Counter[str] = Counter()
    for item in re.sub(r"\(.*?\)", "", gres).split(","):
        name, *qualifiers = item.split(":")
        if name == "gpu":
            count = int(qualifiers.pop()) if qualifiers and qualifiers[-1].isdigit() else 1
            counts[qualifiers[0] if qualifiers else "gpu"] += count
    return dict(counts)
