"""The findings of a pre-flight, one line each, from what the machines report about themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from hpc_isl.cluster.preflight.probe import Facts
from hpc_isl.site import Site

RUNS_GB, TEMPORARY_GB = 20.0, 5.0
SKEW_S = 2.0
CHECK_WIDTH = 17
WIDTH = 110


@dataclass(frozen=True)
class Finding:
    """One line: level, what was checked, what was found, and what to do about it."""

    level: Literal["ok", "warn", "FAIL"]
    check: str
    found: str
    advice: str = ""

    def lines(self) -> list[str]:
        """Returns it as it is printed, with the advice below."""
        indent = " " * (8 + CHECK_WIDTH)
        text_lines: list[str] = []
        for line in self.found.splitlines() or [""]:  # `|` marks output of another program
            text_lines += [line] if line.startswith("|") else _wrap(line, len(indent))
        if self.advice:
            first, *continuation = _wrap(f"to do: {self.advice}", len(indent) + 7)
            text_lines += [first, *("       " + line for line in continuation)]
        head = f"  {self.level:<4}  {self.check:<{CHECK_WIDTH}}"
        return [head + text_lines[0].lstrip(), *(indent + line for line in text_lines[1:])]


def _wrap(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDTH - indent, break_on_hyphens=False, break_long_words=False) or [""]


def ok(check: str, found: str) -> Finding:
    """Returns a finding with nothing to do."""
    return Finding("ok", check, found)


def versions_text(facts: Facts) -> str:
    """Returns `Python 3.11.7, hpc_isl 0.1.0, torch 2.6.0, …`."""
    packages = [f"{name} {version}" for name, version in facts.packages.items() if version]
    return ", ".join([f"Python {facts.python}", f"hpc_isl {facts.version}", *packages])


def installed(facts: Facts, where: str) -> Finding:
    """Checks that the packages of one machine are all installed."""
    missing = [name for name, version in facts.packages.items() if not version]
    if missing:
        advice = (
            f"install hpc_isl with what it needs {where}, or set site.python, site.setup or site.container"
        )
        return Finding("FAIL", "Python", f"{', '.join(missing)} not installed {where}", advice)
    return ok("Python", versions_text(facts))


def room(facts: Sequence[Facts]) -> Iterator[Finding]:
    """Checks disk for runs and for temporary files, of the machine that has least."""
    least = min(facts, key=lambda node: node.runs_gb)
    found = f"{least.runs_gb:.0f} GB free for runs"
    yield _amount_finding(
        "disk", found, least.runs_gb >= RUNS_GB, "make room there, or set site.runs to another folder"
    )
    least = min(facts, key=lambda node: node.temporary_gb)
    advice = "name a larger folder, e.g. site.setup='[export TMPDIR=/scratch]'"
    found = f"{least.temporary_gb:.0f} GB free in {least.temporary} of {least.host}"
    yield _amount_finding("temporary files", found, least.temporary_gb >= TEMPORARY_GB, advice)


def _amount_finding(check: str, found: str, is_enough: bool, advice: str) -> Finding:
    return ok(check, found) if is_enough else Finding("warn", check, f"only {found}", advice)


def gpus(facts: Sequence[Facts], site: Site) -> Finding:
    """Checks the GPUs that each machine sees against what is asked of each."""
    gpu_count = site.visible_gpus
    short_nodes = [node for node in facts if len(node.gpus) < gpu_count]
    if short_nodes:
        found = "; ".join(f"{node.host} sees {len(node.gpus)}" for node in short_nodes)
        advice = "look at `nvidia-smi` in a job there; a module may be missing in site.setup"
        if site.executor == "local":
            advice = "set site.gpus to what there is"
        return Finding("FAIL", "GPUs", f"asked for {gpu_count} on each node: {found}", advice)
    if gpu_count and any(node.packages.get("torch", "").endswith("+cpu") for node in facts):
        return Finding(
            "FAIL", "GPUs", "torch is built without CUDA", "install the torch that is built with it"
        )
    names = sorted({name for node in facts for name in node.gpus[:gpu_count]})
    no_gpus = "none here" if site.executor == "local" and site.gpus is None else "none asked for"
    return ok("GPUs", f"{gpu_count} on each node: {', '.join(names)}" if gpu_count else no_gpus)


def cpus(facts: Sequence[Facts], site: Site) -> Finding:
    """Checks the CPUs that a process may use against what is asked for it."""
    cpu_count, least = site.cpus or 1, min(node.cpus for node in facts)
    if least < cpu_count:
        found = f"asked for {cpu_count} per process, and one may use {least}"
        return Finding(
            "warn", "CPUs", found, f"set site.cpus={least}, or ask why Slurm does not bind to more"
        )
    memory = min(node.memory_gb for node in facts)
    return ok("CPUs", f"{least} that one process may use; a node of {memory:.0f} GB")


def versions(local_facts: Facts, nodes: Sequence[Facts], site: Site) -> Iterator[Finding]:
    """Checks versions: everywhere this code; on all nodes the same packages."""
    # The job was given a copy of this code: another one means that the job's environment comes first.
    other_hosts = [node.host for node in nodes if node.code != local_facts.code]
    if other_hosts:
        found = f"{', '.join(other_hosts)} ran another hpc_isl than this one"
        yield Finding(
            "FAIL", "code", found, "look for an installed hpc_isl that site.setup puts first on PYTHONPATH"
        )
    first_node = nodes[0]
    node_finding = installed(first_node, "on the nodes")
    same_versions = node_finding.level == "ok" and not _differences(first_node, local_facts)
    yield ok("Python", "versions as here") if same_versions else node_finding
    node_differences = [
        f"{node.host}: {difference}" for node in nodes[1:] if (difference := _differences(node, first_node))
    ]
    if node_differences:
        yield Finding("FAIL", "versions", "\n".join(node_differences), "give all nodes the same environment")
    # A site with an environment of its own is meant to differ from the one in which this was typed.
    own_environment = site.container or site.python or site.setup
    differences_from_here = "" if own_environment else _differences(first_node, local_facts)
    if differences_from_here:
        advice = "start runs from the environment in which the jobs run, or set site.python"
        yield Finding("warn", "versions", f"nodes have {differences_from_here}", advice)


def _differences(node: Facts, reference: Facts) -> str:
    """Returns `torch 2.5.0 and not 2.6.0`."""
    pairs = {"Python": (node.python, reference.python)}
    pairs |= {name: (version, reference.packages.get(name, "")) for name, version in node.packages.items()}
    return ", ".join(
        f"{name} {actual or 'none'} and not {expected or 'none'}"
        for name, (actual, expected) in pairs.items()
        if actual != expected
    )


def ports(nodes: Sequence[Facts], site: Site) -> Finding:
    """Checks that processes on different nodes reach each other, as training needs it."""
    clients = [node for node in nodes if node.rank > 0]
    isolated = [node for node in clients if not node.reached]
    if isolated:
        found = f"{isolated[0].host} does not reach {nodes[0].host} ({isolated[0].tried})"
        return Finding(
            "FAIL", "between nodes", found, "a firewall between nodes? Ask the staff; until then site.nodes=1"
        )
    if not clients:
        return ok("between nodes", "the site asks for one node" if site.nodes == 1 else "one node answered")
    addresses = ", ".join(sorted({str(node.reached) for node in clients}))
    return ok("between nodes", f"{clients[0].host} reached {nodes[0].host} at {addresses}")


def clocks(
    local_facts: Facts, nodes: Sequence[Facts], submitted: float, seen_times: Sequence[float]
) -> Finding:
    """Checks how far clocks differ, by the file system's clock and by the order of events."""
    # A node cannot have written before the job was submitted, or after its file was seen here.
    skews = {}
    for node, seen_time in zip(nodes, seen_times, strict=True):
        by_order = max(0.0, node.wrote - seen_time) + max(0.0, submitted - node.wrote)
        skews[node.host] = max(abs(node.ahead_s - local_facts.ahead_s), by_order)
    worst_host = max(skews, key=lambda host: skews[host])
    if skews[worst_host] < SKEW_S:
        return ok("clocks", f"within {SKEW_S:.0f} s")
    advice = "tell the staff: heartbeats and times of runs will look wrong"
    return Finding("warn", "clocks", f"that of {worst_host} is {skews[worst_host]:.0f} s off", advice)


def tracking(facts: Sequence[Facts], uri: str, where: str) -> Finding:
    """Checks that the tracking server answers."""
    failing_node = next((node for node in facts if node.tracking), None)
    if failing_node is None:
        return ok("tracking", f"{uri} answers {where}")
    advice = "runs keep all they measure; `sync`, typed where the server answers, forwards it"
    return Finding("warn", "tracking", f"{uri} does not answer {where}: {failing_node.tracking}", advice)
