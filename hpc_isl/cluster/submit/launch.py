"""A request becomes a run folder, or an array of them, and starts; runs that ended are resumed or retried."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from hpc_isl import site as sites
from hpc_isl.cluster.monitor import follow, messages
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.run_folder import folders, provenance, status, submissions, uses
from hpc_isl.cluster.run_folder.folders import RunRequest
from hpc_isl.cluster.run_folder.job import job_here
from hpc_isl.cluster.run_folder.status import RunState
from hpc_isl.cluster.submit import planning, sweep
from hpc_isl.cluster.submit.dispatch import check_dispatch, dispatch
from hpc_isl.cluster.submit.sweep import Extension
from hpc_isl.errors import UserError
from hpc_isl.files import read_json, write_atomic
from hpc_isl.run import Plan, Run
from hpc_isl.site import Site

AGAIN = (RunState.FAILED, RunState.LOST, RunState.CANCELLED, RunState.STOPPED, RunState.NEW)
MORE = 2.0  # times the memory, or the time, that was not enough


def show_plan(request: RunRequest, console: Console, try_it: bool = False) -> int:
    """Prints exactly what would be done, and writes nothing; returns the exit code.

    `try_it`: prints also how long it takes, after a trial of ten seconds.
    """
    request, run, plans = _prepare(request, console)
    plan, finished, extension = next(iter(plans.values())), False, Extension()
    exists = run.folder.exists()
    if exists:
        planning.refuse_no_run(run)
    if exists and request.elements:
        extension = _extension(run, request, plans, console)
    if extension:
        _refuse_extending_alive(run, console)
    elif exists:
        finished = _is_finished(run, request, plan, console)
    remaining_request = request
    if extension:  # those that are new, have changed or are not done
        done = {element.name for element in folders.other_elements(run) if element.summary() is not None}
        skipped = done - {*extension.changed_names}
        elements = {name: recipe for name, recipe in (request.elements or {}).items() if name not in skipped}
        remaining_request = replace(request, elements=elements)
    for line in planning.plan_lines(remaining_request, plan, run):
        console.log(line)
    names_left = remaining_request.elements or plans
    remaining_plans = {name: plan for name, plan in plans.items() if name in names_left}
    times = planning.time_lines(remaining_request, remaining_plans, console.roots)
    for line in [planning.try_it(remaining_request, remaining_plans, console)] if try_it else times:
        console.log(line)
    if extension:
        new_and_changed = "; ".join((*extension.new_names, *extension.changed_names)[:12])
        console.log(f"{sweep.extension_message(run, request, extension)}: {new_and_changed}")
    if finished:
        console.log(f"nothing would be done: {run.stage} {run.name!r} is finished, with this recipe")
    return 0


def launch(request: RunRequest, console: Console, wait: bool) -> int:
    """Plans, makes the run folder, starts the run; returns the exit code."""
    original_request = request
    request, run, plans = _prepare(request, console)
    plan = next(iter(plans.values()))
    for line in (*request.messages, *plan.messages):
        console.log(line)
    # A name that nobody gave was free when it was chosen: what has it now is the run of another process.
    if request.name and run.folder.exists():
        return _launch_existing(run, request, plans, console, wait)
    check_dispatch(request.site, request.after)
    for line in planning.time_lines(request, plans, console.roots):
        console.log(line)
    try:
        if request.elements:
            folders.make_array(run, request, plans, console.argv)
        else:
            folders.make(run, request, plan, console.argv)
            _write_verify(run, request)
    except folders.NameTaken:
        if request.name:
            raise
        console.log(f"{run.name} was made by another process just now; the next number is taken")
        return launch(original_request, console, wait)
    console.log(f"{run.stage} {run.name!r}: {planning.resources(request.site)}")
    with submissions.alone(run):
        try:
            code = dispatch(run, run.elements() or [run], request.site, console, request.after)
        except UserError:  # refused: no trace is left, unless some element has begun
            if not any(member.attempt_numbers() for member in (run, *run.elements())):
                shutil.rmtree(run.folder, ignore_errors=True)
            raise
    return _exit_code(code, run, console, wait)


def _prepare(request: RunRequest, console: Console) -> tuple[RunRequest, Run, dict[str, Plan]]:
    """Returns the request as the stage arranges it, where it will lie, and the plan of each part."""
    request = replace(request, after=planning.unfinished(request.after))
    run = request.run(console.root)
    folders.refuse_removed(run)
    request = planning.arranged(request, run)
    return request, run, planning.plans(request)


def _launch_existing(
    run: Run, request: RunRequest, plans: Mapping[str, Plan], console: Console, wait: bool
) -> int:
    """Extends a sweep, verifies a finished run, or resumes one in an allocation that Slurm has restarted."""
    planning.refuse_no_run(run)
    sweep.finish_interrupted(run)
    if request.elements and (extension := _extension(run, request, plans, console)):
        _refuse_extending_alive(run, console)
        check_dispatch(request.site, request.after)
        with submissions.alone(run):
            _refuse_extending_alive(run, console)  # it may have been started just now
            sweep.extend(run, request, plans, extension, console.argv)
        console.log(sweep.extension_message(run, request, extension))
        return resume(run, request.site, console, wait, request.after)
    if not _is_finished(run, request, next(iter(plans.values())), console):
        _write_verify(run, request)
        return resume(run, request.site, console, wait)
    if not request.verify:
        console.log("nothing to do: this run is finished, with this recipe")
        return messages.done(run, console)
    _write_verify(run, request)
    return start_attempts(run, [run], request.site, console, wait)


def _write_verify(run: Run, request: RunRequest) -> None:
    """Writes into the run folder which share is to be computed again."""
    if request.verify:
        write_atomic(run.folder / "verify.json", json.dumps({"share": request.verify}))


def _extension(run: Run, request: RunRequest, plans: Mapping[str, Plan], console: Console) -> Extension:
    extension = sweep.compare(run, request, plans)
    sweep.refuse_changed(run, request, extension, f"{console.program} {shlex.join(console.argv)}")
    return extension


def _exit_code(code: int | None, run: Run, console: Console, wait: bool) -> int:
    if code is not None:
        return code
    return follow.follow(run, console) if wait else 0


def _refuse_extending_alive(run: Run, console: Console) -> None:
    run_status = status.status_of(run)
    if run_status.alive:
        raise UserError(
            f"{run.label!r} is {run_status.state}; wait for it ({console.command('status', run)}) or "
            f"{console.command('cancel', run)}, and extend it then"
        )


def _is_finished(run: Run, request: RunRequest, plan: Plan, console: Console) -> bool:
    """Returns whether just this was computed under this name; False: an allocation may resume it."""
    if not request.elements:  # those of an array have been compared one by one
        planning.refuse_other_run(run, plan)
    run_status = status.status_of(run)
    if run_status.state == RunState.DONE:
        return True
    if request.site.executor == "allocation" and (not run_status.alive or _is_ours(run)):
        return False
    _refuse_starting_alive(run, run_status, console)
    raise UserError(
        f"{run.stage} {run.name!r} exists and is {run_status.state}; resume it with "
        f"{console.command('resume', run)}, or choose another --name"
    )


def _is_ours(run: Run) -> bool:
    """Returns whether the job that computes the run is the one in which this process stands."""
    this_job = job_here()
    return this_job is not None and submissions.newest(run).get("job") == this_job


def _refuse_starting_alive(run: Run, run_status: status.RunStatus, console: Console) -> None:
    """Checks that a run is not, and cannot be, at work: it is not started a second time."""
    if run_status.unheard:
        raise UserError(
            f"{run.label!r} is not started, its job may be there: {run_status.unheard}. Again when that is "
            "known; where it never will be, as of a cluster that is gone, first "
            f"{console.command('cancel', run)}"
        )
    if run_status.alive:
        raise UserError(
            f"{run.label!r} is {run_status.state} already; follow it: {console.command('logs', run, '-f')}"
        )


# ---------------------------------------------------------------- runs that ended


def resume(run: Run, site: Site, console: Console, wait: bool, after: tuple[Run, ...] = ()) -> int:
    """Starts a new attempt in the same folder, with its recipe; of an array, of the elements not done.

    Returns the exit code.
    """
    sweep.finish_interrupted(run)
    statuses = status.statuses(run.elements() or [run])
    unfinished = {
        member: run_status for member, run_status in statuses.items() if run_status.state != RunState.DONE
    }
    if not unfinished:
        console.log("nothing to do: this run is finished")
        return messages.done(run, console)
    to_start = [
        member for member, run_status in unfinished.items() if not run_status.alive or _is_ours(member)
    ]
    if not to_start:
        _refuse_starting_alive(run, status.status_of(run), console)
    return start_attempts(run, folders.with_final_element(run, to_start), site, console, wait, after)


def start_attempts(
    run: Run, members: Sequence[Run], site: Site, console: Console, wait: bool, after: tuple[Run, ...] = ()
) -> int:
    """Starts new attempts of these members of the run; what one that is done has computed stays.

    Returns the exit code.
    """
    site = planning.site_of(members[0].stage, site)  # another one than it began in, perhaps
    if site.executor == "allocation" and run.elements():
        raise UserError("an array is not resumed inside a job; type it on a login node, or name an element")
    record = read_json(run.record) or {}
    saved_after = tuple(Run(Path(os.path.normpath(run.folder / path))) for path in record.get("after", []))
    after = planning.unfinished(after or saved_after)
    check_dispatch(site, after)
    for member in members:
        uses.refuse_changed(member)
    if record.get("code") != provenance.code_digest():
        console.log("the code has changed since this run was made; it continues with the present code")
    elements_text = f" with {len(members)} of {len(run.elements())} elements" if run.elements() else ""
    console.log(f"{run.stage} {run.label!r} is resumed{elements_text}: {planning.resources(site)}")
    # Under the lock, because two calls of `resume` may have passed the checks above together.
    with submissions.alone(run):
        for member, run_status in status.statuses(members).items():  # another process may have started some
            # A final element that waits for elements which have ended is replaced.
            waits = folders.is_final_element(member) and not run_status.unheard
            if not _is_ours(member) and not (waits and submissions.newest(member).get("job")):
                _refuse_starting_alive(member, run_status, console)
        for member in members:
            member.cancelled.unlink(missing_ok=True)
        with _without_done_records(members):
            code = dispatch(run, members, site, console, after)
    return _exit_code(code, run, console, wait)


@contextmanager
def _without_done_records(members: Sequence[Run]) -> Iterator[None]:
    """Removes the done records of members; they come back where the new attempts are refused."""
    records = {member.done / f"{member.stage}.json": member.summary() for member in members}
    for path in records:
        path.unlink(missing_ok=True)
    try:
        yield
    except submissions.Unanswered:
        raise
    except Exception:
        for path, summary in records.items():
            if summary is not None:
                write_atomic(path, json.dumps(summary, indent=1))
        raise


# ---------------------------------------------------------------- a retry


def retry(run: Run, chosen: Site | None, console: Console, wait: bool) -> int:
    """Starts new attempts of those members of the run that are neither done nor alive, or done with losses.

    They keep their folders, seeds and runs in MLflow. `chosen`: a site given by hand, taken as it is.
    Returns the exit code.
    """
    sweep.finish_interrupted(run)
    by_site: dict[str, list[Run]] = {}
    raised_site = cache(_with_raised_limits)  # elements fail alike: Slurm is asked once, not for each of them
    for member, run_status in status.statuses(run.elements() or [run]).items():
        # Done but for some fields, say, whose files may be whole by now.
        has_losses = bool((member.summary() or {}).get("lost"))
        if run_status.state in AGAIN or has_losses:
            saved_json = sites.saved_site(member.site).model_dump_json()
            site_json = chosen.model_dump_json() if chosen else raised_site(saved_json, run_status.cause)
            by_site.setdefault(site_json, []).append(member)
    if not by_site:
        overall = status.status_of(run)
        raise UserError(
            f"{run.label!r} has nothing to retry: {', '.join(filter(None, [overall.state, overall.detail]))}"
        )
    code = 0
    for site_json, members in _final_element_last(run, by_site).items():
        site = Site.model_validate_json(site_json)
        code = start_attempts(run, members, site, console, wait=False) or code
    return follow.follow(run, console) if wait and not code and status.status_of(run).alive else code


def _final_element_last(run: Run, by_site: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """Adds what waits for all other elements: it starts after them, with the site it has or gets."""
    final = folders.final_element(run)
    if final is None or final.summary() is not None:
        return by_site
    final_site = next((site for site, members in by_site.items() if final in members), None)
    final_site = final_site or sites.saved_site(final.site).model_dump_json()
    members = [member for member in by_site.pop(final_site, []) if member != final]
    return {**by_site, final_site: [*members, final]}


def _with_raised_limits(site_json: str, cause: str) -> str:
    """Returns a site, as JSON, with more of what was missing, up to what the partition gives."""
    site = Site.model_validate_json(site_json)
    if site.executor != "slurm" or cause not in ("out_of_memory", "timeout"):
        return site_json
    from hpc_isl.cluster.slurm import limits

    memory, time = (MORE, 1.0) if cause == "out_of_memory" else (1.0, MORE)
    return limits.raised(site, memory, time).model_dump_json()
