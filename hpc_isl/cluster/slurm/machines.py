"""What a cluster has: its partitions and nodes, as Slurm says, with the odd values of real clusters."""

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
        """Whether it is the machine on which this is asked."""
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
        """Of that node, for one job."""
        return node.cpus if self.max_cpus is None else min(node.cpus, self.max_cpus)

    def memory(self, node: Node) -> int:
        """MB of that node, for one job."""
        return node.memory if self.max_memory is None else min(node.memory, self.max_memory)


@dataclass(frozen=True)
class Cluster:
    """All partitions, with what Slurm's configuration says for those that say nothing."""

    name: str
    version: str
    partitions: tuple[Partition, ...]
    default_memory: Mapping[str, int] = field(default_factory=dict)

    def partition(self, name: str | None) -> Partition | None:
        """The one of that name; without a name, the cluster's default."""
        if name is None:
            return next((one for one in self.partitions if one.default), None)
        return next((one for one in self.partitions if one.name == name), None)


def read(conf: Path | None = None) -> Cluster | None:
    """The whole cluster; None where Slurm does not answer."""
    answers = []
    for what in ("partition", "node", "config"):
        code, out, _ = ask(["scontrol", "--all", "--oneliner", "show", what], conf)
        if code:  # asked again it would only take as long again
            return None
        answers.append(out)
    return parsed(*answers)


def parsed(partitions: str, nodes: str, config: str = "") -> Cluster:
    """From Slurm's own words: one line for each partition, one for each node, and the configuration."""
    machines = [_node(said) for said in map(_fields, nodes.splitlines()) if "NodeName" in said]
    lines = [said for said in map(_fields, partitions.splitlines()) if "PartitionName" in said]
    settings = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", config, re.MULTILINE))
    return Cluster(
        settings.get("ClusterName", ""),
        settings.get("SLURM_VERSION", ""),
        tuple(_partition(said, machines) for said in lines),
        _default_memory(settings),
    )


def _fields(line: str) -> dict[str, str]:
    """`Key=value` pairs. Values may hold blanks and `=`; free text comes last: the first of a key counts."""
    parts = re.split(r"(?:^|\s)([A-Z]\w*)=", line)
    found: dict[str, str] = {}
    for key, value in zip(parts[1::2], parts[2::2], strict=True):
        found.setdefault(key, value.strip().strip('"'))
    return found


def _node(said: Mapping[str, str]) -> Node:
    memory = (_number(said.get("RealMemory")) or 0) - (_number(said.get("MemSpecLimit")) or 0)
    return Node(
        name=said["NodeName"],
        cpus=_number(said.get("CPUEfctv")) or _number(said.get("CPUTot")) or 0,
        memory=max(0, memory),
        gpus=_gpus(said.get("Gres", "")),
        features=_names(said.get("AvailableFeatures")) or frozenset(),
        partitions=_names(said.get("Partitions")) or frozenset(),
        # IDLE*: it does not answer; IDLE~: it is switched off and will be switched on.
        state=frozenset(word.rstrip("*~#!%$@^-") for word in said.get("State", "").upper().split("+")),
        host=said.get("NodeHostName", ""),
        address=said.get("NodeAddr", ""),
    )


def _partition(said: Mapping[str, str], machines: list[Node]) -> Partition:
    name = said["PartitionName"]
    return Partition(
        name=name,
        state=said.get("State", "UP").upper(),
        nodes=tuple(node for node in machines if name in node.partitions and "FUTURE" not in node.state),
        default=said.get("Default") == "YES",
        hidden=said.get("Hidden") == "YES",
        root_only=said.get("RootOnly") == "YES",
        minutes=clock_minutes(said.get("MaxTime")),
        default_minutes=clock_minutes(said.get("DefaultTime")),
        max_nodes=_number(said.get("MaxNodes")),
        max_cpus=_number(said.get("MaxCPUsPerNode")),
        max_memory=_number(said.get("MaxMemPerNode")),
        default_memory=_default_memory(said),
        accounts=_names(said.get("AllowAccounts"), lower=True) or ALL,
        denied=_names(said.get("DenyAccounts"), lower=True) or frozenset(),
        qos=_names(said.get("AllowQos"), lower=True) or ALL,
        groups=_names(said.get("AllowGroups")) or ALL,
    )


def _default_memory(said: Mapping[str, str]) -> dict[str, int]:
    """Of a partition or of the configuration, e.g. {DefMemPerCPU: 4000}."""
    jobs = dict(re.findall(r"(\w+)=(\d+)", said.get("JobDefaults", "")))
    keys = ("DefMemPerNode", "DefMemPerCPU", "DefMemPerGPU")
    found = {key: _number({**said, **jobs}.get(key)) for key in keys}
    return {key: value for key, value in found.items() if value}


def _number(text: str | None) -> int | None:
    """None for UNLIMITED, INFINITE, (null), N/A and whatever else is no number."""
    return int(text) if text and text.isdigit() else None


def _names(text: str | None, lower: bool = False) -> frozenset[str] | None:
    """The names of a list; ALL stays one; None for an empty one."""
    if text is None or text in ("", "(null)", "N/A", "none", "None"):
        return None
    if text.upper() == "ALL":
        return ALL
    return frozenset((text.lower() if lower else text).split(","))


def clock_minutes(text: str | None) -> int | None:
    """Of `2-00:00:00`, `12:00:00` or `30:00`; None for UNLIMITED and NONE."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d\d)", text or "")
    if not found:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + minutes


def _gpus(gres: str) -> dict[str, int]:
    """`gpu:a100:4(S:0-1),gpu:v100:2` -> {a100: 4, v100: 2}; what else there is to ask for is not ours."""
    found: Counter[str] = Counter()
    for item in re.sub(r"\(.*?\)", "", gres).split(","):
        name, *rest = item.split(":")
        if name == "gpu":
            count = int(rest.pop()) if rest and rest[-1].isdigit() else 1
            found[rest[0] if rest else "gpu"] += count
    return dict(found)
