"""`--dry-run`: exactly what would be done, and nothing written."""

from __future__ import annotations

from collections.abc import Iterator

from hpc_isl.cluster.run_folder.create import RunRequest
from hpc_isl.cluster.run_folder.job import Job
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Plan, Run
from hpc_isl.site import Site


def plan_lines(request: RunRequest, plan: Plan, run: Run) -> Iterator[str]:
    """Yields recipe, inputs, resources, and on Slurm the sbatch file and the start that it expects."""
    yield f"# recipe of {request.stage}"
    yield to_yaml(plan.recipe).rstrip()
    yield from ("", "# what would be done", *request.messages, *plan.messages)
    if request.elements:
        names = [name for name in request.elements if name != request.final_element]
        yield f"{len(names)} times, with {'; '.join(names[:12])}" + (" …" if len(names) > 12 else "")
    if request.final_element:
        yield f"then {request.final_element}, when all of these have ended"
    yield from (f"reads {name}, fingerprint {fingerprint}" for name, fingerprint in plan.inputs.items())
    yield from (f"makes {path}" for path in plan.makes)
    yield from ("", "# where", resources(request.site), f"run folder {run.folder}")
    if request.site.executor != "slurm":
        return
    from hpc_isl.cluster.executors import slurm

    runs = [request.element(run, name) for name in request.elements or ()] or [run]
    jobs = tuple(Job.of(member, 0) for member in runs)
    batch = slurm.Batch(run, 0, jobs, last=request.final_element is not None)
    parts = slurm.parts(batch, request.site)
    more = f", the first of {len(parts)}" if len(parts) > 1 else ""
    yield from ("", f"# sbatch{more}", slurm.text(batch, request.site).rstrip())
    yield from ("", "# start", slurm.start_time(batch, request.site))


def resources(site: Site) -> str:
    """Returns `2 processes on this machine, 1 GPU, at most 12h`."""
    if site.workers is None:
        processes = count(site.ranks, "process", "es")
    elif site.workers:  # of a pooled stage its worker processes: as many as were asked for
        processes = count(site.workers, "worker process", "es") + (" each" if site.nodes > 1 else "")
    else:
        processes = f"a worker process for each {'GPU' if site.visible_gpus else 'CPU'}"
    parts = [
        f"{processes} on {'this machine' if site.executor == 'local' else count(site.nodes, 'Slurm node')}"
    ]
    parts += [f"{count(site.cpus, 'CPU')} each"] if site.cpus else []
    parts.append(f"{count(site.visible_gpus, 'GPU')} per node" if site.visible_gpus else "no GPU")
    parts += [f"{site.memory} per node"] if site.memory else []
    parts += [f"at most {site.time}"] if site.time else []
    return ", ".join(parts)


def count(number: int, noun: str, plural: str = "s") -> str:
    """Returns `1 GPU`, `2 GPUs`."""
    return f"{number} {noun}{plural if number > 1 else ''}"
