"""The pre-flight: this machine for real, compute nodes by what they would have said."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpc_isl.cluster.dask_pool import pool
from hpc_isl.cluster.preflight import findings, probe
from hpc_isl.cluster.preflight.doctor import database, doctor, of_nodes
from hpc_isl.cluster.preflight.findings import Finding
from hpc_isl.cluster.preflight.probe import Facts, Mount, mount_of
from hpc_isl.cluster.preflight.visit import Outcome, Visit, script
from hpc_isl.site import Site

if TYPE_CHECKING:
    from tests.conftest import CommandLine

PACKAGES = {"torch": "2.6.0", "zarr": "3.1.3"}
HERE = Facts(host="login1", python="3.11.7", version="0.1.0", code="abc", packages=PACKAGES, cpus=64,
             memory_gb=500, runs_gb=900, temporary="/tmp", temporary_gb=90, wrote=100.0)  # fmt: skip
NODE1 = replace(HERE, host="node1", cpus=8)
NODE2 = replace(NODE1, rank=1, host="node2", reached="10.0.0.1", tried="10.0.0.1 port 5")
SITE = Site(executor="slurm", nodes=2, cpus=8)


def of(*nodes: Facts, site: Site = SITE, server: str | None = None) -> dict[str, Finding]:
    visit = Visit(site, Path("/runs/.doctor"), 2, "17", submit_time=90.0)
    outcome = Outcome(nodes, tuple(101.0 for _ in nodes), "COMPLETED")
    return {one.check: one for one in of_nodes(visit, outcome, HERE, server)}


# ---------------------------------------------------------------- this machine


def test_a_laptop_is_looked_at_without_slurm(command_line: CommandLine) -> None:
    done = command_line("doctor", "site.gpus=0")
    assert done.returncode == 0, done.stdout
    checks = ["folder of runs", "MLflow database", "Python", "disk", "temporary files", "GPUs", "CPUs"]
    assert [check for check in checks if f"  {check}  " not in done.stdout] == []
    assert "failed" in done.stdout.splitlines()[-1]
    assert not (command_line.cwd / "runs").exists(), "it leaves nothing behind"


def test_a_failure_is_reported_with_what_to_do_and_exits_with_1(command_line: CommandLine) -> None:
    done = command_line("doctor", "site.gpus=64")
    assert done.returncode == 1
    assert "  FAIL  GPUs" in done.stdout
    assert "to do: set site.gpus to what there is" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 failed")


def test_runs_that_nobody_may_write_fail(command_line: CommandLine) -> None:
    (command_line.cwd / "runs").touch()
    done = command_line("doctor", f"site.runs={command_line.cwd / 'runs' / 'mine'}")
    assert done.returncode == 1
    assert "FAIL  folder of runs" in done.stdout


def test_a_disk_without_room_for_a_file_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    lines: list[str] = []
    assert doctor(Site(tracking="none"), tmp_path / "runs", 1.0, lines.append) == 1
    assert "runs: No space left on device" in " ".join("\n".join(lines).split())
    assert not (tmp_path / "runs").exists(), "it leaves nothing behind"


def test_a_tracking_server_that_is_silent_is_a_warning(command_line: CommandLine) -> None:
    done = command_line("doctor", "site.tracking=http://127.0.0.1:9", "site.gpus=0")
    assert done.returncode == 0, done.stdout
    assert "warn  tracking" in done.stdout
    assert "`sync`" in done.stdout


def test_a_slurm_that_is_not_there_fails_and_no_node_is_asked(command_line: CommandLine) -> None:
    (command_line.cwd / "cluster.yaml").write_text("executor: slurm\ntime: 1h\n")
    done = command_line("doctor", "--site", "cluster.yaml", f"site.slurm_conf={command_line.cwd}/none.conf")
    assert done.returncode == 1
    assert "FAIL  Slurm" in done.stdout
    assert "not asked: Slurm comes first" in done.stdout


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--patience", "10"], "--patience 10: a time is written as"),
        (["tc"], "a site is named with --site NAME"),
        (["--site", "none"], "no such site"),
    ],
)
def test_mistakes_are_named(words: list[str], messages: str, command_line: CommandLine) -> None:
    done = command_line("doctor", *words)
    assert (done.returncode, messages in done.stdout) == (2, True), done.stdout


# ---------------------------------------------------------------- file systems

MOUNTS = [
    Mount("/", "xfs"), Mount("/tmp", "tmpfs"), Mount("/home", "autofs"), Mount("/home", "nfs4"),
    Mount("/scratch", "lustre"), Mount("/scratch/local", "ext4"), Mount("/mnt/cloud", "fuse.s3fs"),
    Mount("/mnt/usb", "fuseblk"), Mount("/project", "gpfs"), Mount("/bee", "beegfs_nodev"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/var/runs", "xfs", False),
        ("/tmp/runs", "tmpfs", False),
        ("/home/me/runs/mlflow.db", "nfs4", True),
        ("/homes/runs", "xfs", False),
        ("/scratch/me", "lustre", True),
        ("/scratch/local/me", "ext4", False),
        ("/mnt/cloud/a", "fuse.s3fs", True),
        ("/mnt/usb/a", "fuseblk", False),
        ("/project", "gpfs", True),
        ("/bee/runs", "beegfs_nodev", True),
    ],
)
def test_network_file_systems_are_recognised(path: str, kind: str, network: bool) -> None:
    mount = mount_of(Path(path), MOUNTS)
    assert (mount.kind, mount.network) == (kind, network)


def test_a_database_on_a_network_file_system_is_a_warning_with_advice() -> None:
    found = database(Path("/home/me/runs/mlflow.db"), MOUNTS)
    assert found.level == "warn"
    assert "nfs4" in found.found
    assert "site.tracking" in found.advice
    assert database(Path("/scratch/local/mlflow.db"), MOUNTS).level == "ok"


# ---------------------------------------------------------------- compute nodes


def test_nodes_that_agree_are_fine() -> None:
    found = of(NODE1, NODE2)
    assert {one.level for one in found.values()} == {"ok"}
    assert found["between nodes"].found == "node2 reached node1 at 10.0.0.1"


@pytest.mark.parametrize(
    ("first", "second", "check", "level", "messages"),
    [
        ({}, {"code": "xyz"}, "code", "FAIL", "node2 ran another hpc_isl"),
        ({}, {"packages": {"torch": "2.5.0"}}, "versions", "FAIL", "node2: torch 2.5.0 and not 2.6.0"),
        ({"packages": {"torch": ""}}, {}, "Python", "FAIL", "torch not installed on the nodes"),
        ({"cpus": 2}, {}, "CPUs", "warn", "asked for 8 per process, and one may use 2"),
        ({}, {"reached": ""}, "between nodes", "FAIL", "node2 does not reach node1 (10.0.0.1 port 5)"),
        ({}, {"ahead_s": 7.2}, "clocks", "warn", "that of node2 is 7 s off"),
        ({"wrote": 40.0}, {}, "clocks", "warn", "that of node1 is 50 s off"),  # before it was submitted
        ({"wrote": 161.0}, {}, "clocks", "warn", "that of node1 is 60 s off"),  # after it was seen
        ({"runs_gb": 3}, {}, "disk", "warn", "only 3 GB free for runs"),
        ({}, {"temporary_gb": 1}, "temporary files", "warn", "only 1 GB free in /tmp of node2"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_nodes_is_named(
    first: dict[str, object], second: dict[str, object], check: str, level: str, messages: str
) -> None:
    found = of(replace(NODE1, **first), replace(NODE2, **second))[check]  # type: ignore[arg-type]
    assert (found.level, messages in found.found) == (level, True), found
    assert found.advice


@pytest.mark.parametrize(
    ("gpus", "torch", "level"),
    [(("A100",) * 4, "2.6.0", "ok"), (("A100",) * 4, "2.6.0+cpu", "FAIL"), ((), "2.6.0", "FAIL")],
)
def test_gpus_must_be_seen_by_a_torch_that_can_use_them(
    gpus: tuple[str, ...], torch: str, level: str
) -> None:
    node = replace(NODE1, gpus=gpus, packages={**PACKAGES, "torch": torch})
    assert findings.gpus([node], Site(executor="slurm", gpus=4)).level == level


def test_other_packages_than_here_are_a_warning_unless_the_site_chose_them() -> None:
    older = [replace(node, packages={**PACKAGES, "torch": "2.5.0"}) for node in (NODE1, NODE2)]
    assert of(*older)["versions"].level == "warn"
    assert "versions" not in of(*older, site=SITE.model_copy(update={"setup": ["module load torch"]}))


def test_a_server_that_nodes_do_not_reach_is_a_warning() -> None:
    found = of(replace(NODE1, tracking="timed out"), NODE2, server="http://mlflow:5000")["tracking"]
    assert (found.level, "http://mlflow:5000 does not answer on the nodes" in found.found) == ("warn", True)


@pytest.mark.parametrize(
    ("outcome", "level", "messages"),
    [
        (Outcome(state="PENDING", reason="Priority", patient=False), "warn", "did not start: Priority"),
        (Outcome(state="PENDING", reason="PartitionTimeLimit"), "FAIL", "did not start: PartitionTimeLimit"),
        (Outcome(state="FAILED", last_lines=("no module named x",)), "FAIL", "| no module named x"),
        (Outcome(state="COMPLETED"), "FAIL", "no node wrote to /runs"),
        (Outcome((NODE1,), (101.0,), "FAILED"), "FAIL", "1 of 2 nodes never wrote"),
    ],
)
def test_a_job_that_reports_nothing_is_shown_with_its_own_output(
    outcome: Outcome, level: str, messages: str
) -> None:
    visit = Visit(SITE, Path("/runs/.doctor"), 2, "17")
    found = next(iter(of_nodes(visit, outcome, HERE, None)))
    assert (found.level, messages in found.found) == (level, True), found
    assert found.advice


def test_the_job_quotes_what_holds_blanks(tmp_path: Path) -> None:
    site = Site(executor="slurm", setup=["module load cuda"], container=Path("/my images/a.sif"), gpus=1)
    lines = script(site, tmp_path / "my runs", "http://mlflow:5000").splitlines()
    assert lines[1] == "module load cuda"
    assert lines[-1] == (
        "srun --export=ALL apptainer exec --nv '/my images/a.sif' python -m hpc_isl.cluster.preflight.probe "
        f"'{tmp_path / 'my runs'}' http://mlflow:5000"
    )


def test_two_machines_meet_through_the_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURMD_NODENAME": "node1"}
    first = subprocess.Popen(
        [sys.executable, "-m", "hpc_isl.cluster.preflight.probe", str(tmp_path)], env=environment
    )
    probe.main(tmp_path, None, 1, 2)
    assert first.wait(timeout=60) == 0
    found = [probe.read(tmp_path / f"node-{rank}.json") for rank in (0, 1)]
    assert found[0] is not None
    assert found[1] is not None
    assert (found[0].host, found[1].rank) == ("node1", 1)
    assert found[1].reached in pool.addresses()


def test_a_gpu_is_named_as_its_driver_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("""#!/bin/bash
echo 'GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-1)'
echo 'GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-2)'
""")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert probe.gpus() == ["NVIDIA A100-SXM4-80GB"] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert probe.gpus() == ["NVIDIA A100-SXM4-80GB"]
