"""What clusters allow, on recorded answers of Slurm."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_isl.cluster.slurm import limits
from hpc_isl.cluster.slurm.demand import at_least, at_most, duration, megabytes
from hpc_isl.cluster.slurm.limits import Qos, complaint
from hpc_isl.cluster.slurm.machines import Cluster, parsed, read
from hpc_isl.errors import UserError
from hpc_isl.site import Site, load, minutes

RECORDED = Path(__file__).parent / "recorded"


def cluster(name: str) -> Cluster:
    text = (RECORDED / f"{name}.txt").read_text()
    return parsed(text, text, text)


def site(**keys: object) -> Site:
    return Site.model_validate({"executor": "slurm", **keys})


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """answering(command, script): from now on that command of Slurm answers as the script does."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def answer(command: str, script: str) -> None:
        (tmp_path / "bin" / command).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / "bin" / command).chmod(0o755)

    return answer


def answer_as(name: str) -> str:
    path = RECORDED / f"{name}.txt"
    return f"""case "${{@: -1}}" in
partition) grep ^PartitionName= '{path}';;
node) grep ^NodeName= '{path}';;
config) grep ' = ' '{path}';;
esac"""


# ---------------------------------------------------------------- what there is


def test_partitions_are_read_with_their_limits() -> None:
    found = {one.name: one for one in cluster("university").partitions}
    assert list(found) == ["cpu", "gpu", "gpu-long", "highmem", "debug", "old", "staff"]
    assert (found["cpu"].default, found["cpu"].minutes, found["cpu"].default_minutes) == (True, 7 * 1440, 120)
    assert (found["gpu"].minutes, found["gpu"].default_minutes, found["gpu"].max_nodes) == (2 * 1440, None, 4)
    assert (found["old"].minutes, found["old"].nodes, found["old"].up) == (None, (), False)
    assert (found["staff"].hidden, found["staff"].accounts) == (True, {"staff", "ops"})
    assert (found["gpu-long"].max_cpus, found["gpu-long"].max_memory) == (16, 65536)
    assert found["gpu"].default_memory == {"DefMemPerGPU": 100000}


def test_nodes_are_read_with_what_jobs_may_use_of_them() -> None:
    found = {node.name: node for one in cluster("university").partitions for node in one.nodes}
    assert found["g01"].gpus == {"a100": 4}
    assert found["g03"].gpus == {"a100": 4}, "commas within the brackets separate no GPUs"
    assert (found["g01"].cpus, found["g01"].memory) == (62, 500000), "without what the system keeps"
    assert "a100_80gb" in found["g01"].features
    assert [name for name in sorted(found) if not found[name].usable] == ["c03", "g03"]


def test_nodes_that_are_switched_off_can_be_used() -> None:
    [ml, _] = cluster("cloud").partitions
    assert all(node.usable for node in ml.nodes)
    assert [dict(node.gpus) for node in ml.nodes] == [{"gpu": 8}, {"h100": 8}]


def test_free_text_of_a_node_is_not_read_as_its_state() -> None:
    found = {node.name: node for node in cluster("university").partitions[0].nodes}
    assert found["c03"].state == {"DOWN", "DRAIN"}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("asked", "messages"),
    [
        ({"partition": "gpu", "time": "3d"}, "partition 'gpu' allows at most 2d; write site.time=2d"),
        ({"partition": "debug", "time": "1h"}, "write site.time=30min, or site.partition=cpu"),
        ({"partition": "gpus"}, "site.partition=gpus: there is no such partition; did you mean 'gpu'?"),
        ({"partition": "old"}, "site.partition=old: it is INACTIVE"),
        ({"partition": "gpu", "nodes": 5}, "gives a job at most 4 nodes; write site.nodes=4"),
        ({"nodes": 4}, "site.nodes=4: partition 'cpu' has 3 nodes; write site.nodes=3"),
        ({"memory": "300G"}, "a node of partition 'cpu' gives at most 250G; write site.memory=250G"),
        ({"memory": "300G"}, "or site.partition=gpu or site.partition=highmem, which allows it"),
        ({"memory": "4T"}, "write site.memory=250G"),
        ({"cpus": 129}, "site.cpus=129: a node of partition 'cpu' gives at most 128 CPUs; write"),
        ({"partition": "gpu", "gpus": 4, "cpus": 16}, "site.cpus=16 × 4 processes = 64 CPUs: "),
        ({"partition": "gpu", "gpus": 4, "cpus": 16}, "at most 62 CPUs; write site.cpus=15"),
        ({"partition": "debug", "processes": 200}, "write site.processes=128"),
        ({"partition": "gpu", "gpus": 8}, "a node of partition 'gpu' gives at most 4 GPUs; write"),
        ({"gpus": 1}, "no node of partition 'cpu' has any; write site.gpus=0, or site.partition=gpu"),
        ({"gpus": 8}, "partitions with GPUs: gpu (4 per node), gpu-long (2 per node)"),
        ({"partition": "gpu", "constraint": "a10"}, "has the feature 'a10'; did you mean 'a100'?"),
        ({"partition": "gpu", "constraint": "a100&skylake"}, "has these together"),
        ({"partition": "gpu", "constraint": "v100", "gpus": 4}, "'gpu' with v100 gives at most 2 GPUs"),
        ({"partition": "gpu-long", "memory": "100G"}, "gives at most 64G; write site.memory=64G, or "),
        ({"partition": "gpu-long", "gpus": 2, "cpus": 16}, "at most 16 CPUs; write site.cpus=8"),
        ({"partition": "gpu", "nodes": 4, "gpus": 4}, "only 3 nodes of partition 'gpu' can give site.gpus=4"),
        ({"partition": "gpu", "account": "guests"}, "site.account=guests: partition 'gpu' does not take it"),
        ({"partition": "staff", "account": "Stuff"}, "is for others; did you mean 'staff'?"),
        ({"partition": "highmem", "qos": "short"}, "site.qos=short: partition 'highmem' does not take it"),
        ({"partition": "gpu-long,debug", "time": "30d"}, "partition 'gpu-long' allows at most 14d"),
    ],
)  # fmt: skip
def test_what_a_cluster_can_never_give_is_named_with_what_it_can(
    asked: dict[str, object], messages: str
) -> None:
    assert messages in str(complaint(cluster("university"), site(**asked)))


def test_what_is_possible_alone_and_not_together_is_named_with_what_to_lower() -> None:
    lines = [line if "v100:2" not in line else line.replace("RealMemory=187000", "RealMemory=900000")
             for line in (RECORDED / "university.txt").read_text().splitlines()]  # fmt: skip
    text = "\n".join(lines)
    mixed = parsed(text, text, text)
    asked = site(partition="gpu", gpus=4, memory="700G", cpus=2)
    said = "site.gpus=4 with site.memory=700G: no node of partition 'gpu' has them together; "
    assert complaint(mixed, asked) == f"{said}write site.gpus=2 or site.memory=488G"


@pytest.mark.parametrize(
    "asked",
    [
        {"partition": "gpu", "gpus": 4, "cpus": 15, "memory": "488G", "time": "2d", "nodes": 3},
        {"partition": "gpu", "constraint": "a100|v100", "nodes": 4},
        {"partition": "gpu", "constraint": "[a100*2&v100*1]"},
        {"partition": "staff", "time": "400d"},
        {"partition": "cpu,highmem", "memory": "1T"},
        {"partition": "staff", "account": "OPS"},
        {"cpus": 128, "memory": "250G", "time": "7d"},
        {"memory": "0G"},
        {"reservation": "course", "gpus": 4},
        {"gpus": 4, "sbatch": {"partition": "gpu"}},
        {"executor": "local", "partition": "none", "time": "90d"},
    ],
)
def test_what_it_can_give_passes(asked: dict[str, object], answering: Callable[[str, str], None]) -> None:
    answering("scontrol", answer_as("university"))
    limits.check(site(**asked))


@pytest.mark.parametrize(
    "asked",
    [
        {"partition": "gpu", "time": "3d"}, {"partition": "gpu", "nodes": 5}, {"gpus": 2},
        {"partition": "gpu", "gpus": 3, "cpus": 40}, {"partition": "gpu-long", "cpus": 17},
        {"memory": "300G"}, {"partition": "debug", "time": "90min"},
        {"partition": "gpu", "nodes": 4, "gpus": 4, "memory": "100G"}, {"partition": "highmem", "time": "4d"},
    ],
)  # fmt: skip
def test_what_it_says_to_type_is_accepted(
    asked: dict[str, object], answering: Callable[[str, str], None], tmp_path: Path
) -> None:
    answering("scontrol", answer_as("university"))
    with pytest.raises(UserError) as refused:
        limits.check(site(**asked))
    proposals = re.findall(r"site\.(\w+=[^\s,;]+)", str(refused.value).split("; write ")[1])
    assert proposals
    (tmp_path / "asked.yaml").write_text("executor: slurm\n")
    given = [f"{key}={value}" for key, value in asked.items()]
    for proposal in proposals:
        limits.check(load(str(tmp_path / "asked.yaml"), [*given, proposal]))


@pytest.mark.parametrize(
    ("asked", "passes"),
    [
        ({"partition": "ml", "memory": "500G", "time": "90d", "gpus": 8}, True),  # memory was told to no one
        ({"partition": "spot", "gpus": 4, "nodes": 7}, True),  # nodes come when they are needed
        ({"partition": "ml", "gpus": 16}, False),
        ({}, False),  # there is no default partition
    ],
)
def test_what_is_not_known_is_left_to_sbatch(asked: dict[str, object], passes: bool) -> None:
    assert (complaint(cluster("cloud"), site(**asked)) is None) is passes


@pytest.mark.parametrize("script", ["exit 1", "echo Unable to contact >&2; exit 1", "echo what"])
def test_a_slurm_that_does_not_answer_refuses_nothing(
    script: str, answering: Callable[[str, str], None]
) -> None:
    answering("scontrol", script)
    limits.check(site(partition="gpus", time="900d"))
    assert limits.max_array_size() == 1001


@pytest.mark.parametrize(
    ("qos", "time", "passes"),
    [
        (Qos(), "3d", False),
        (Qos("long", frozenset({"DenyOnLimit", "PartitionTimeLimit"}), 7 * 1440), "7d", True),
        (Qos("long", frozenset({"DenyOnLimit", "PartitionTimeLimit"}), 7 * 1440), "8d", False),
        (Qos("short", frozenset(), 60), "2h", False),
        (None, "90d", True),  # it did not answer
    ],
)
def test_a_qos_may_lift_or_tighten_the_time_of_a_partition(qos: Qos | None, time: str, passes: bool) -> None:
    said = complaint(
        cluster("university"), site(partition="gpu", qos=(qos and qos.name) or None, time=time), qos
    )
    assert (said is None) is passes


def test_the_qos_is_asked_of_the_accounting(answering: Callable[[str, str], None]) -> None:
    answering("scontrol", answer_as("university"))
    answering("sacctmgr", "echo 'DenyOnLimit,PartitionTimeLimit|7-00:00:00'")
    limits.check(site(partition="gpu", qos="long", time="5d"))
    with pytest.raises(UserError, match=r"qos 'long' allows at most 7d; write site.time=7d"):
        limits.check(site(partition="gpu", qos="long", time="8d"))


def test_a_cluster_is_read_with_three_questions(answering: Callable[[str, str], None]) -> None:
    answering("scontrol", answer_as("university"))
    assert read() == cluster("university")


# ---------------------------------------------------------------- more for a retry


@pytest.mark.parametrize(
    ("asked", "memory", "time"),
    [
        ({"partition": "gpu", "memory": "64G", "time": "12h"}, "96G", "1d"),
        ({"partition": "gpu", "memory": "64G", "time": "36h"}, "96G", "2d"),
        ({"partition": "gpu", "memory": "400G", "time": "2d"}, "488G", "2d"),
        ({"partition": "gpu", "memory": "488G"}, "488G", None),
        ({"partition": "gpu", "memory": "170G", "nodes": 4}, "182G", None),
        ({"partition": "gpu", "gpus": 2}, "293G", None),  # 2 × DefMemPerGPU × 1.5
        ({"cpus": 8}, "24G", "4h"),  # 8 × DefMemPerCPU × 1.5, and the default time
        ({"partition": "highmem"}, "24G", "2h"),
        ({"partition": "gpu-long", "time": "90min"}, None, "3h"),  # a job has the whole node
    ],
)
def test_a_retry_asks_for_more_as_far_as_there_is_any(
    asked: dict[str, object], memory: str | None, time: str | None, answering: Callable[[str, str], None]
) -> None:
    answering("scontrol", answer_as("university"))
    more = limits.raised(site(**asked), memory_factor=1.5, time_factor=2)
    # Without a time of its own, a job of a partition without a default has the most there is.
    assert (more.memory, more.time) == (memory, time)
    limits.check(more)


def test_without_slurm_a_retry_raises_what_is_written(
    answering: Callable[[str, str], None],
) -> None:
    answering("scontrol", "exit 1")
    more = limits.raised(site(memory="1G", time="90min"), memory_factor=1.5, time_factor=1.5)
    assert (more.memory, more.time) == ("1536M", "2h15min")
    assert limits.raised(site(), 2, 2) == site()


@pytest.mark.parametrize("total", [1, 59, 60, 90, 1439, 1440, 2160, 20160, 1501])
def test_a_duration_is_written_as_a_site_reads_it(total: int) -> None:
    assert minutes(duration(total)) == total


@pytest.mark.parametrize(
    ("mb", "least", "most"), [(4000, "4000M", "4000M"), (2048, "2G", "2G"), (515000, "503G", "502G")]
)
def test_memory_is_written_as_a_site_reads_it(mb: int, least: str, most: str) -> None:
    assert (at_least(mb), at_most(mb)) == (least, most)
    assert megabytes(site(memory=most).memory or "") <= mb <= megabytes(site(memory=least).memory or "")


@pytest.mark.parametrize(("memory", "mb"), [("64G", 65536), ("64GB", 65536), ("1T", 1048576), ("1K", 1)])
def test_memory_counts_as_slurm_counts(memory: str, mb: int) -> None:
    assert megabytes(memory) == mb
