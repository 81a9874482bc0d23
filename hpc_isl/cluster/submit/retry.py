"""`retry`: what failed or got lost starts again, with more memory or time where that was missing."""

from __future__ import annotations

from collections.abc import Mapping

from hpc_isl import site as sites
from hpc_isl.cluster.monitor import follow
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.run_folder import arrays, status
from hpc_isl.cluster.run_folder.status import RunStatus
from hpc_isl.cluster.submit import extend_sweep, launch
from hpc_isl.errors import UserError
from hpc_isl.run import Run
from hpc_isl.site import Site

AGAIN = ("failed", "lost", "cancelled", "stopped", "new")
MORE = 2.0  # times the memory, or the time, that was not enough


def retry(run: Run, chosen: Site | None, console: Console, wait: bool) -> int:
    """New attempts of those members of the run that are neither done nor alive, or done with losses: same
    folders, same seeds, same runs in MLflow.

    `chosen`: a site given by hand, which is taken as it is.
    """
    extend_sweep.finish_interrupted(run)
    found = status.statuses(run.elements() or [run])
    left = {one: each for one, each in found.items() if each.state in AGAIN or _has_losses(one)}
    if not left:
        now = status.status_of(run)
        raise UserError(
            f"{run.label!r} has nothing to retry: {', '.join(filter(None, [now.state, now.detail]))}"
        )
    code = 0
    for site, members in _last_at_the_end(run, _by_site(left, chosen)).items():
        code = (
            launch.start_attempts(run, members, Site.model_validate_json(site), console, wait=False) or code
        )
    return follow.follow(run, console) if wait and not code and status.status_of(run).alive else code


def _has_losses(run: Run) -> bool:
    """Whether it is done but for some, such as fields whose files may be whole by now."""
    return bool((run.summary() or {}).get("lost"))


def _last_at_the_end(run: Run, groups: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """What waits for all other elements starts after them, with the site it has or gets."""
    final = arrays.of(run)
    if final is None or final.summary() is not None:
        return groups
    own = next((site for site, members in groups.items() if final in members), None)
    own = own or sites.kept(final.site).model_dump_json()
    members = [one for one in groups.pop(own, []) if one != final]
    return {**groups, own: [*members, final]}


def _by_site(left: Mapping[Run, RunStatus], chosen: Site | None) -> dict[str, list[Run]]:
    """The members by what they get; those that lacked memory or time get more than the others."""
    groups: dict[str, list[Run]] = {}
    for run, each in left.items():
        site = chosen or _raised(sites.kept(run.site), each.cause)
        groups.setdefault(site.model_dump_json(), []).append(run)
    return groups


def _raised(site: Site, cause: str) -> Site:
    """More of what was missing, up to what the partition gives."""
    if site.executor != "slurm" or cause not in ("out_of_memory", "timeout"):
        return site
    from hpc_isl.cluster.slurm import limits

    memory, time = (MORE, 1.0) if cause == "out_of_memory" else (1.0, MORE)
    return limits.raised(site, memory, time)
