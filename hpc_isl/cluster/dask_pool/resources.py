"""The CPUs, GPUs and memory of a node are divided among the worker processes of a pool."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import psutil

from hpc_isl.cluster.run_folder.job import threads
from hpc_isl.cluster.slurm.demand import megabytes
from hpc_isl.site import Site, gpus_here
from hpc_isl.tasks import MemoryRequirement

# PyTorch then asks for large pages, where the kernel gives them: on a CPU the kernel took a tenth and more of
# a forward pass to lay out the memory of each layer.
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
SHARING = "HPC_ISL_GPU_SHARING"  # how many worker processes have this one's GPU
CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


class CgroupFiles(NamedTuple):
    """The files in which a version of the kernel's control groups reports memory."""

    controller: str
    mount: str
    limit: str
    used: str
    cached: str


CGROUP_FILES = (
    CgroupFiles("", "", "memory.max", "memory.current", "inactive_file"),
    CgroupFiles("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True)
class WorkerResources:
    """The resources of one worker process.

    Attributes:
        cpus: that its libraries may use.
        memory: bytes that its tasks may take together, beside what the process holds anyway.
        gpu: the one that it sees, as CUDA_VISIBLE_DEVICES names it; empty: none.
        sharing: worker processes on that GPU.
    """

    cpus: int
    memory: int
    gpu: str = ""
    sharing: int = 1

    @property
    def threads(self) -> int:
        """Tasks at once: one is read or written while others compute."""
        return 1 + self.cpus

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            **threads(self.cpus), **LARGE_PAGES, "CUDA_VISIBLE_DEVICES": self.gpu, SHARING: str(self.sharing),
        }  # fmt: skip


@dataclass(frozen=True)
class Node:
    """The resources of a node, memory in bytes; `workers`: how many processes were asked for, if any."""

    cpus: int
    memory: int
    gpus: Sequence[str] = ()
    workers: int | None = None

    @property
    def requested_workers(self) -> int:
        return self.workers or len(self.gpus) or self.cpus


def node_here(site: Site, cpus: int) -> Node:
    """Returns this node, by the site and the machine."""
    return Node(cpus, memory_here(site), gpus_here()[: site.visible_gpus], site.workers)


def worker_resources(node: Node, need: MemoryRequirement) -> list[WorkerResources]:
    """Returns a share for each worker process: as many as are wanted and fit with their largest task.

    There is at least one. They are spread over the GPUs; several on one GPU have a part of its memory each,
    so that what fits does not depend on the others.
    """
    max_count = node.memory // need.whole if need.whole else node.requested_workers
    count = max(1, min(node.requested_workers, max_count))
    cpus = max(1, node.cpus // count)
    gpus = list(node.gpus) or [""]
    memory = max(1, node.memory // count - need.process)
    assigned = [gpus[number % len(gpus)] for number in range(count)]
    return [WorkerResources(cpus, memory, gpu, assigned.count(gpu) if gpu else 1) for gpu in assigned]


def lowered(node: Node, need: MemoryRequirement) -> str:
    """Returns a message where memory holds fewer worker processes than were wanted; else empty."""
    count = len(worker_resources(node, need))
    if count == node.requested_workers:
        return ""
    plural = "process" if count == 1 else "processes"
    return (
        f"{count} worker {plural} per node, not {node.requested_workers}: one takes up to "
        f"{need.whole / 1e9:.3g} GB of the {node.memory / 1e9:.3g} GB that are free"
    )


# ---------------------------------------------------------------- memory


def memory_here(site: Site) -> int:
    """Returns the bytes that the worker processes of this node may take: the site's, or what is free.

    To Slurm, `0G` is all that the node has.
    """
    if site.memory is not None and (mb := megabytes(site.memory)):
        return mb * 2**20
    limits = [psutil.virtual_memory().available, _memory_of_job(os.environ)]
    # What the control groups of this process leave, as of a container or of Slurm; 0: no limit.
    limits += (_memory_left(folder, files) for files in CGROUP_FILES for folder in _groups(files))
    return min(limit for limit in limits if limit)


def _memory_of_job(variables: Mapping[str, str]) -> int:
    """Returns what Slurm has given the job on this node; 0: it does not say, or all."""
    if variables.get("HPC_ISL_EXECUTOR") not in ("slurm", "allocation"):
        return 0
    if per_node := int(variables.get("SLURM_MEM_PER_NODE", 0)):
        return per_node * 2**20
    cpus = int(variables.get("SLURM_CPUS_ON_NODE", 0))
    return int(variables.get("SLURM_MEM_PER_CPU", 0)) * cpus * 2**20


def _groups(files: CgroupFiles) -> Iterator[Path]:
    """Yields the folder of the group, and of each that it lies in: it has no more than those have left."""
    mount = CGROUP / files.mount
    rows = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    paths = [path for _, controllers, path in rows if files.controller in controllers.split(",")]
    group_path = PurePosixPath(*paths[:1]).relative_to("/") if paths else PurePosixPath()
    yield from (mount / folder for folder in (group_path, *group_path.parents))


def _memory_left(folder: Path, files: CgroupFiles) -> int:
    with suppress(OSError, ValueError):  # `max` is no limit; a container may show none of its outer groups
        limit = int((folder / files.limit).read_text())
        used = int((folder / files.used).read_text())
        counters = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used -= int(counters.get(files.cached, 0))  # of files read before, which the kernel lets go
        # Without a limit the older kernels say nearly 2⁶³.
        return max(1, limit - used) if limit < 2**60 else 0
    return 0
