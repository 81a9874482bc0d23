"""The first day on a real Slurm: a site is drafted, and a job looks at the nodes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc_isl.cluster.preflight.doctor import doctor
from hpc_isl.site import load


@pytest.fixture
def on_the_login_node(cluster: Any, tmp_path: Path) -> tuple[list[str], dict[str, Any]]:
    """How a user of that cluster calls, standing in a folder of their own."""
    environment = {**cluster.environment, "XDG_CONFIG_HOME": str(tmp_path / "config")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("HPC_ISL_RUNS", None)
    return [sys.executable, "-m", "hpc_isl.submit"], {"cwd": tmp_path, "env": environment, "text": True}


def call(at: tuple[list[str], dict[str, Any]], *words: str) -> subprocess.CompletedProcess[str]:
    command, settings = at
    return subprocess.run(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=180, **settings
    )


def levels(text: str) -> dict[str, str]:
    """check -> ok, warn or FAIL; of nodes, where there is one of this machine too."""
    return {check: level for level, check in re.findall(r"^  (ok|warn|FAIL) +(\S+(?: \S+)*)  ", text, re.M)}


def test_both_nodes_answer(cluster: Any, on_the_login_node: Any, tmp_path: Path) -> None:
    done = call(on_the_login_node, "doctor", "--site", str(cluster.site_file), "site.nodes=2")
    assert done.returncode == 0, done.stdout
    assert "node1, node2 saw it and wrote to it" in done.stdout
    assert "node2 reached node1 at " in done.stdout
    assert {check for check, level in levels(done.stdout).items() if level == "ok"} >= {
        "Slurm", "limits", "folder of runs", "Python", "GPUs", "between nodes", "clocks",
    }  # fmt: skip
    assert not (tmp_path / "runs").exists(), "it leaves nothing behind"
    assert cluster.eventually(lambda: "hpc-isl-doctor" not in cluster.run("squeue", "-h", "-o", "%j"))


def test_folders_with_blanks_and_quotes_are_fine(
    cluster: Any, on_the_login_node: Any, tmp_path: Path
) -> None:
    runs = tmp_path / "the lab's 100% runs"
    done = call(on_the_login_node, "doctor", "--site", str(cluster.site_file), f"site.runs={runs}")
    assert done.returncode == 0, done.stdout
    assert "node1 saw it and wrote to it" in done.stdout or "node2 saw it" in done.stdout


def test_a_missing_python_is_reported_with_the_jobs_own_output(cluster: Any, on_the_login_node: Any) -> None:
    done = call(on_the_login_node, "doctor", "--site", str(cluster.site_file), "site.python=/nowhere/python")
    assert done.returncode == 1
    assert re.search(r"\| .*/nowhere/python: No such file", done.stdout), done.stdout


def test_what_the_cluster_never_gives_is_reported_and_no_job_is_submitted(
    cluster: Any, on_the_login_node: Any
) -> None:
    done = call(on_the_login_node, "doctor", "--site", str(cluster.site_file), "site.time=9d")
    assert done.returncode == 1
    assert "to do: write site.time=1d" in done.stdout
    assert "not asked: limits comes first" in done.stdout


def test_a_refusal_is_reported_in_the_words_of_sbatch(cluster: Any, on_the_login_node: Any) -> None:
    done = call(on_the_login_node, "doctor", "--site", str(cluster.site_file), "site.sbatch={licenses: none}")
    assert done.returncode == 1
    assert "Invalid license specification" in done.stdout


@pytest.mark.parametrize("slow", [False, True])
def test_ctrl_c_takes_the_job_back(cluster: Any, on_the_login_node: Any, tmp_path: Path, slow: bool) -> None:
    """Also while sbatch, which has submitted the job, has not said so yet."""
    command, settings = on_the_login_node
    if slow:
        wrapper = tmp_path / "bin" / "sbatch"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/bash\n{shutil.which("sbatch")} "$@"\nsleep 5\n')
        wrapper.chmod(0o755)
        path = f"{wrapper.parent}:{settings['env']['PATH']}"
        settings = {**settings, "env": {**settings["env"], "PATH": path}}
    later = "site.sbatch={begin: now+1hour}"
    waiting = subprocess.Popen(
        [*command, "doctor", "--site", str(cluster.site_file), later],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings,
    )  # fmt: skip

    def queued() -> bool:
        return "hpc-isl-doctor" in cluster.run("squeue", "-h", "-o", "%j")

    assert cluster.eventually(queued)
    waiting.send_signal(signal.SIGINT)
    said, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 130, said
    assert cluster.eventually(lambda: not queued())
    assert not (tmp_path / "runs").exists()


def test_a_job_that_does_not_start_in_time_is_a_warning(cluster: Any, tmp_path: Path) -> None:
    site = load(str(cluster.site_file), ["sbatch={begin: now+1hour}"])
    said: list[str] = []
    assert doctor(site, tmp_path / "runs", 3.0, said.append) == 0
    text = "\n".join(said)
    assert "PENDING (BeginTime)" in text, "what it waits for"
    assert levels(text)["job"] == "warn"
    assert "hpc-isl-doctor" not in cluster.run("squeue", "-h", "-o", "%j")


def test_nodes_that_are_out_of_service_are_reported_before_a_job_waits(cluster: Any, tmp_path: Path) -> None:
    cluster.run("scontrol", "update", "nodename=node2", "state=drain", "reason=test")
    try:
        said: list[str] = []
        doctor(load(str(cluster.site_file), ["nodes=2"]), tmp_path / "runs", 1.0, said.append)
        assert levels("\n".join(said))["nodes"] == "warn"
        assert any("1 of 2 nodes of partition 'main' in service: node2 is DRAIN" in line for line in said), (
            said
        )
    finally:
        cluster.run("scontrol", "update", "nodename=node2", "state=resume")


def test_slurm_takes_jobs_of_a_drafted_site(cluster: Any, on_the_login_node: Any, tmp_path: Path) -> None:
    done = call(on_the_login_node, "site", "init", "tc")
    assert done.returncode == 0, done.stdout
    site = load(str(tmp_path / "config" / "hpc_isl" / "sites" / "tc.yaml"), [])
    assert (site.partition, site.gpus, site.memory) == ("main", 0, "4000M")
    assert site.cpus == min(4, len(os.sched_getaffinity(0))), "Slurm counts 4, whatever this machine has"
    flags = [f"--partition={site.partition}", f"--cpus-per-task={site.cpus}", f"--mem={site.memory}"]
    flags += [f"--account={site.account}"] if site.account else []
    taken = subprocess.run(
        ["sbatch", "--test-only", f"--time={site.minutes}", f"--nodes={site.nodes}", *flags],
        env=cluster.environment, input="#!/bin/bash\n", capture_output=True, text=True,
    )  # fmt: skip
    assert taken.returncode == 0, taken.stderr


def test_a_drafted_site_asks_for_no_more_than_doctor_finds(on_the_login_node: Any, tmp_path: Path) -> None:
    """On a machine with fewer CPUs than its cluster was told."""
    assert call(on_the_login_node, "site", "init", "tc", "--out", str(tmp_path / "tc.yaml")).returncode == 0
    done = call(on_the_login_node, "doctor", "--site", str(tmp_path / "tc.yaml"))
    assert done.returncode == 0, done.stdout
    assert levels(done.stdout)["CPUs"] == "ok"
