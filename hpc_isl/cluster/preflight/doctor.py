"""`doctor` checks this machine and, through a small job, compute nodes, before anything is run."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hpc_isl.cluster.preflight import findings, probe, visit
from hpc_isl.cluster.preflight.findings import Finding, ok
from hpc_isl.cluster.preflight.probe import Facts, Mount
from hpc_isl.cluster.preflight.visit import Outcome, Visit
from hpc_isl.cluster.slurm import limits, machines
from hpc_isl.cluster.slurm.commands import ask
from hpc_isl.cluster.slurm.demand import fitting, nodes_text
from hpc_isl.errors import UserError
from hpc_isl.files import only_writer
from hpc_isl.site import Site

Log = Callable[[str], None]
FAILED = 1


def doctor(site: Site, root: Path, patience_s: float, log: Log) -> int:
    """Prints a line for each check; returns the exit code: 0 where nothing failed, else 1."""
    reported: list[Finding] = []

    def report(new_findings: Iterable[Finding]) -> None:
        for finding in new_findings:
            reported.append(finding)
            log("\n".join(finding.lines()))

    log(f"on {socket.gethostname()}, where this was typed")
    report(_site_findings(site, root))
    with _folder(root) as folder:
        if isinstance(folder, OSError):
            if ("FAIL", "folder of runs") not in [(finding.level, finding.check) for finding in reported]:
                advice = "make room there, or set site.runs"
                report([Finding("FAIL", "disk", f"{root}: {folder.strerror}", advice)])
        else:
            report(_locks(folder))
            local_facts = probe.facts(folder, tracking=site.server)
            report(_machine_findings(site, local_facts))
            if site.executor == "slurm":
                log("on the compute nodes")
                # Slurm would refuse the small job as it would the real one, in words that say less.
                failed_checks = [finding.check for finding in reported if finding.level == "FAIL"]
                if blocking_checks := [check for check in failed_checks if check in ("Slurm", "limits")]:
                    log(f"        not asked: {blocking_checks[0]} comes first")
                else:
                    report(_nodes(site, folder, local_facts, patience_s, log))
    failures = sum(finding.level == "FAIL" for finding in reported)
    warnings = sum(finding.level == "warn" for finding in reported)
    failure_text = f"{failures} failed" if failures else "nothing failed"
    log(f"{failure_text}, {warnings or 'no'} warning{'s' * (warnings != 1)}")
    return FAILED if failures else 0


# ---------------------------------------------------------------- this machine


def _site_findings(site: Site, root: Path) -> Iterator[Finding]:
    if site.executor == "slurm":
        yield (slurm_finding := _slurm(site))
        if slurm_finding.level == "ok":
            try:
                limits.check(site)
                yield ok("limits", "the cluster can give what the site asks for")
            except UserError as error:
                complaint, _, remedy = str(error).partition("; write ")
                remedy = f"write {remedy}" if remedy else "change the site file"
                yield Finding("FAIL", "limits", complaint, remedy)
            yield from _nodes_out_of_service(site)
    yield _runs(site, root)
    address = site.tracking_address(root)
    if address and address.startswith("sqlite:///"):
        yield database(Path(address.removeprefix("sqlite:///")), probe.mounts())
    if site.container is not None and not site.container.exists():
        yield Finding(
            "FAIL", "container", f"{site.container} does not exist", "build it, or set site.container"
        )


def _slurm(site: Site) -> Finding:
    conf = site.slurm_conf
    if conf is not None and not conf.is_file():
        return Finding(
            "FAIL", "Slurm", f"site.slurm_conf={conf}: there is no such file", "name the cluster's own"
        )
    code, out, errors = ask(["scontrol", "show", "config"], conf)
    if not code:
        lines = dict(re.findall(r"^(ClusterName|SLURM_VERSION)\s*=\s*(.*?)\s*$", out, re.MULTILINE))
        name, version = lines.get("ClusterName", "it"), lines.get("SLURM_VERSION", "unknown")
        return ok("Slurm", f"{name} answers, version {version}")
    answer = [line for line in (errors or out).splitlines() if line][-1:] or ["it says nothing"]
    return Finding(
        "FAIL", "Slurm", answer[0], "type this on the cluster's login node, or set site.slurm_conf"
    )


def _nodes_out_of_service(site: Site) -> Iterator[Finding]:
    """Yields a warning where a job would wait until nodes are back in service."""
    cluster = machines.read(site.slurm_conf)
    partition = cluster.partition(site.partition) if cluster else None
    nodes = fitting(partition, site) if partition else []
    usable = [node for node in nodes if node.usable]
    if partition and len(usable) < site.nodes <= len(nodes):
        states = ", ".join(
            f"{node.name} is {'+'.join(sorted(node.state))}" for node in nodes[:4] if node not in usable
        )
        found = (
            f"{len(usable)} of {nodes_text(len(nodes))} of partition {partition.name!r} in service: {states}"
        )
        yield Finding("warn", "nodes", found, "jobs will wait until they are back; the staff know when")


def _runs(site: Site, root: Path) -> Finding:
    parent = probe.existing(root)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return Finding(
            "FAIL", "folder of runs", f"{parent} cannot be written to", "set site.runs, or $HPC_ISL_RUNS"
        )
    mount = probe.mount_of(root)
    found = f"{root} ({mount.kind}{'' if root.exists() else ', will be made'})"
    if site.executor == "slurm" and (mount.memory or probe.temporary(root)):
        advice = "each node has its own /tmp: set site.runs to a folder that all nodes see"
        return Finding("warn", "folder of runs", found, advice)
    return ok("folder of runs", found)


def _locks(folder: Path) -> Iterator[Finding]:
    try:
        with only_writer(folder / "lock"):
            return
    except UserError as error:
        yield Finding("FAIL", "locks", str(error).removeprefix(f"{folder}: "), "set site.runs")


def database(path: Path, mounts: Sequence[Mount]) -> Finding:
    """Checks where the MLflow database lies; sqlite needs locks that network file systems do not keep."""
    mount = probe.mount_of(path, mounts)
    if not mount.network:
        return ok("MLflow database", f"{path} ({mount.kind})")
    advice = (
        "use it from one machine at a time (`sync` and `ui` on the login node), or set site.tracking to the "
        "address of an MLflow server, or to an sqlite file on a local disk; the runs themselves are safe"
    )
    return Finding("warn", "MLflow database", f"{path} lies on a network file system ({mount.kind})", advice)


@contextmanager
def _folder(root: Path) -> Iterator[Path | OSError]:
    """Makes a folder below the runs, removed afterwards with all that was made for it.

    Yields why not where it cannot be made, or nothing can be written into it.
    """
    parent, folder = probe.existing(root), root
    try:
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=root))
            (folder / "written").write_bytes(bytes(4096))
        except OSError as error:
            yield error
        else:
            yield folder
    finally:
        if folder != root:
            shutil.rmtree(folder, ignore_errors=True)
        # A folder of runs that was made for this alone goes again, with those above it.
        while root != parent and not any(root.iterdir()):
            root.rmdir()
            root = root.parent


def _machine_findings(site: Site, local_facts: Facts) -> Iterator[Finding]:
    yield findings.installed(local_facts, "here")
    yield from findings.room([local_facts])
    if site.executor != "slurm":
        yield findings.gpus([local_facts], site)
        yield findings.cpus([local_facts], site)
    if site.server:
        yield findings.tracking([local_facts], site.server, "here")


# ---------------------------------------------------------------- the compute nodes


def _nodes(site: Site, folder: Path, local_facts: Facts, patience_s: float, log: Log) -> Iterator[Finding]:
    with visit.visiting(site, folder, site.server) as node_visit:
        if node_visit.refusal:
            lines = [line.removeprefix("sbatch: error: ") for line in node_visit.refusal.splitlines()]
            refusal = "\n".join(lines) or "sbatch refused it"
            yield Finding("FAIL", "job", refusal, "the site's partition, account or qos may be wrong")
            return
        outcome = visit.wait(node_visit, patience_s, lambda text: log(f"        {text}"))
    yield from of_nodes(node_visit, outcome, local_facts, site.server)


def of_nodes(
    node_visit: Visit, outcome: Outcome, local_facts: Facts, server: str | None
) -> Iterator[Finding]:
    """Yields the findings from the nodes' answers."""
    missing = node_visit.nodes - len(outcome.facts)
    if missing:
        yield _silent_nodes(node_visit, outcome, missing)
    if not outcome.facts:
        return
    nodes, site = outcome.facts, node_visit.site
    yield ok("folder of runs", f"{', '.join(node.host for node in nodes)} saw it and wrote to it")
    yield from findings.versions(local_facts, nodes, site)
    yield findings.gpus(nodes, site)
    yield findings.cpus(nodes, site)
    if not missing:  # a node that never came could not be reached either
        yield findings.ports(nodes, site)
    yield findings.clocks(local_facts, nodes, node_visit.submit_time, outcome.seen_times)
    yield from findings.room(nodes)
    if server:
        yield findings.tracking(nodes, server, "on the nodes")


def _silent_nodes(node_visit: Visit, outcome: Outcome, missing: int) -> Finding:
    """Returns why nodes did not report: the job never started, or it ended before."""
    if outcome.state in ("PENDING", "CONFIGURING", ""):
        cause = f"job {node_visit.job} did not start: {outcome.reason or 'Slurm gave no reason'}"
        never_starts = outcome.reason.split(",")[0] in visit.NEVER
        if never_starts:
            return Finding("FAIL", "job", cause, "change the site file: with this it waits for ever")
        return Finding("warn", "job", cause, "again when the cluster is less busy, or with --patience 1h")
    subject = "no node" if missing == node_visit.nodes else f"{missing} of {node_visit.nodes} nodes never"
    end = f"is {outcome.state} and was given up" if not outcome.patient else f"ended as {outcome.state}"
    cause = f"{subject} wrote to {node_visit.folder.parent}; job {node_visit.job} {end}"
    if outcome.last_lines:
        advice = "the job's own words say why; site.setup, site.python and site.container decide what runs"
        return Finding(
            "FAIL", "job", "\n".join([cause, *(f"| {line}" for line in outcome.last_lines)]), advice
        )
    return Finding(
        "FAIL", "job", cause, "the nodes may not see that folder: set site.runs to one that they see"
    )
