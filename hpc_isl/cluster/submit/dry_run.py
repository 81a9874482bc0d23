"""`--dry-run`: exactly what would be done, and nothing written."""

from __future__ import annotations

from collections.abc import Iterator

from hpc_isl.cluster.run_folder.create import RunRequest
from hpc_isl.cluster.run_folder.job import Job
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Plan, Run
from hpc_isl.site import Site


def plan_lines(order: RunRequest, plan: Plan, run: Run) -> Iterator[str]:
    """Resolved recipe, inputs, resources, and on Slurm the sbatch file and the start that it expects."""
    yield f"# recipe of {order.stage}"
    yield to_yaml(plan.recipe).rstrip()
    yield from ("", "# what would be done", *order.messages, *plan.messages)
    if order.elements:
        names = [name for name in order.elements if name != order.last]
        yield f"{len(names)} times, with {'; '.join(names[:12])}" + (" …" if len(names) > 12 else "")
    if order.last:
        yield f"then {order.last}, when all of these have ended"
    yield from (f"reads {name}, fingerprint {fingerprint}" for name, fingerprint in plan.inputs.items())
    yield from (f"makes {path}" for path in plan.makes)
    yield from ("", "# where", resources(order.site), f"run folder {run.folder}")
    if order.site.executor == "slurm":
        yield from _slurm(order, run)


def _slurm(order: RunRequest, run: Run) -> Iterator[str]:
    from hpc_isl.cluster.executors import slurm

    folders = [run.folder / order.stage / name for name in order.elements or ()] or [run.folder]
    jobs = tuple(Job.of(Run(folder), 0) for folder in folders)
    batch = slurm.Batch(run, 0, jobs, last=order.last is not None)
    parts = slurm.parts(batch, order.site)
    more = f", the first of {len(parts)}" if len(parts) > 1 else ""
    yield from ("", f"# sbatch{more}", slurm.text(batch, order.site).rstrip())
    yield from ("", "# start", slurm.start_time(batch, order.site))


def resources(site: Site) -> str:
    """`2 processes on this machine, 1 GPU, at most 12h`."""
    machines = "this machine" if site.executor == "local" else some(site.nodes, "Slurm node")
    parts = [f"{_processes(site)} on {machines}"]
    parts += [f"{some(site.cpus, 'CPU')} each"] if site.cpus else []
    parts.append(f"{some(site.visible_gpus, 'GPU')} per node" if site.visible_gpus else "no GPU")
    parts += [f"{site.memory} per node"] if site.memory else []
    parts += [f"at most {site.time}"] if site.time else []
    return ", ".join(parts)


def _processes(site: Site) -> str:
    """Of a pooled stage its worker processes: as many as were asked for, or as there are GPUs or CPUs."""
    if site.workers is None:
        return some(site.ranks, "process", "es")
    if site.workers:
        return some(site.workers, "worker process", "es") + (" each" if site.nodes > 1 else "")
    return f"a worker process for each {'GPU' if site.visible_gpus else 'CPU'}"


def some(number: int, noun: str, plural: str = "s") -> str:
    """`1 GPU`, `2 GPUs`."""
    return f"{number} {noun}{plural if number > 1 else ''}"
