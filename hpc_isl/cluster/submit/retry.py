"""`retry`: what failed or got lost starts again, with more memory or time where that was missing."""

from __future__ import annotations

from hpc_isl import site as sites
from hpc_isl.cluster.monitor import follow
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.run_folder import create, status
from hpc_isl.cluster.run_folder.status import RunState
from hpc_isl.cluster.submit import extend_sweep, launch
from hpc_isl.errors import UserError
from hpc_isl.run import Run
from hpc_isl.site import Site

AGAIN = (RunState.FAILED, RunState.LOST, RunState.CANCELLED, RunState.STOPPED, RunState.NEW)
MORE = 2.0  # times the memory, or the time, that was not enough


def retry(run: Run, chosen: Site | None, console: Console, wait: bool) -> int:
    """Starts new attempts of those members of the run that are neither done nor alive, or done with losses.

    They keep their folders, seeds and runs in MLflow. `chosen`: a site given by hand, taken as it is.
    Returns the exit code.
    """
    extend_sweep.finish_interrupted(run)
    by_site: dict[str, list[Run]] = {}
    for member, run_status in status.statuses(run.elements() or [run]).items():
        # Done but for some fields, say, whose files may be whole by now.
        has_losses = bool((member.summary() or {}).get("lost"))
        if run_status.state in AGAIN or has_losses:
            site = chosen or _raised(sites.saved_site(member.site), run_status.cause)
            by_site.setdefault(site.model_dump_json(), []).append(member)
    if not by_site:
        now = status.status_of(run)
        raise UserError(
            f"{run.label!r} has nothing to retry: {', '.join(filter(None, [now.state, now.detail]))}"
        )
    code = 0
    for text, members in _final_element_last(run, by_site).items():
        site = Site.model_validate_json(text)
        code = launch.start_attempts(run, members, site, console, wait=False) or code
    return follow.follow(run, console) if wait and not code and status.status_of(run).alive else code


def _final_element_last(run: Run, by_site: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """Adds what waits for all other elements: it starts after them, with the site it has or gets."""
    final = create.final_element(run)
    if final is None or final.summary() is not None:
        return by_site
    own = next((site for site, members in by_site.items() if final in members), None)
    own = own or sites.saved_site(final.site).model_dump_json()
    members = [member for member in by_site.pop(own, []) if member != final]
    return {**by_site, own: [*members, final]}


def _raised(site: Site, cause: str) -> Site:
    """Returns the site with more of what was missing, up to what the partition gives."""
    if site.executor != "slurm" or cause not in ("out_of_memory", "timeout"):
        return site
    from hpc_isl.cluster.slurm import limits

    memory, time = (MORE, 1.0) if cause == "out_of_memory" else (1.0, MORE)
    return limits.raised(site, memory, time)
