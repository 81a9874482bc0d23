"""An order becomes a run folder, or an array of them, and is handed over; runs that ended go on."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hpc_isl.cluster.monitor import follow, messages
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.cluster.rank import environment
from hpc_isl.cluster.run_folder import arrays, create, names, provenance, status, submissions, uses
from hpc_isl.cluster.run_folder.create import RunRequest
from hpc_isl.cluster.run_folder.status import RunState
from hpc_isl.cluster.submit import dry_run, estimates, extend_sweep, request, trial
from hpc_isl.cluster.submit.dispatch import check_dispatch, dispatch
from hpc_isl.errors import UserError
from hpc_isl.files import read_json, write_atomic
from hpc_isl.run import Plan, Run
from hpc_isl.site import Site


def show_plan(order: RunRequest, console: Console, tries: bool = False) -> int:
    """Says exactly what would be done, and writes nothing; `tries`: also how long it takes, after a trial."""
    order, run, plans = _prepared(order, console)
    there, finished = run.folder.exists(), False
    wider = _wider(run, order, plans, console) if there and order.elements else extend_sweep.Extension()
    if wider:
        _refuse_living(run, console)
    elif there:
        finished = _is_finished(run, order, next(iter(plans.values())), console)
    left = _left(order, run, wider) if wider else order
    for line in dry_run.plan_lines(left, next(iter(plans.values())), run):
        console.log(line)
    ahead = {
        name: plan for name, plan in plans.items() if not order.elements or name in (left.elements or {})
    }
    for line in [trial.line(left, ahead, console)] if tries else estimates.lines(left, ahead, console.roots):
        console.log(line)
    if wider:
        console.log(
            f"{extend_sweep.extension_messages(run, order, wider)}: "
            + "; ".join((*wider.new, *wider.changed)[:12])
        )
    if finished:
        console.log(f"nothing would be done: {run.stage} {run.name!r} is finished, with this recipe")
    return 0


def launch(order: RunRequest, console: Console, wait: bool) -> int:
    """Plans, makes the run folder, hands it over; the exit code."""
    order, run, plans = _prepared(order, console)
    plan = next(iter(plans.values()))
    for line in (*order.messages, *plan.messages):
        console.log(line)
    if run.folder.exists():
        extend_sweep.finish_interrupted(run)
        if order.elements and (wider := _wider(run, order, plans, console)):
            return _widened(run, order, plans, wider, console, wait)
        if _is_finished(run, order, plan, console):
            if not order.verify:
                console.log("nothing to do: this run is finished, with this recipe")
                return messages.done(run, console)
            _ask(run, order)
            return start_attempts(run, [run], order.site, console, wait)
        _ask(run, order)
        return resume(run, order.site, console, wait)  # in an allocation that Slurm has started again
    check_dispatch(order.site, order.after)
    for line in estimates.lines(order, plans, console.roots):
        console.log(line)
    if order.elements:
        create.make_array(run, order, plans, console.argv)
    else:
        create.make(run, order, plan, console.argv)
        _ask(run, order)
    console.log(f"{run.stage} {run.name!r}: {dry_run.resources(order.site)}")
    with submissions.alone(run):
        try:
            code = dispatch(run, run.elements() or [run], order.site, console, order.after)
        except UserError:
            _forget(run)
            raise
    return _ended(code, run, console, wait)


def _ask(run: Run, order: RunRequest) -> None:
    """Leaves word in the run folder of the share that is to be computed again."""
    if order.verify:
        write_atomic(run.folder / "verify.json", json.dumps({"share": order.verify}))


def _prepared(order: RunRequest, console: Console) -> tuple[RunRequest, Run, dict[str, Plan]]:
    """What is asked for, as the stage arranges it, where it will lie, and the plan of each part."""
    order = replace(order, after=request.unfinished(order.after))
    run = order.run(console.root)
    names.refuse_removed(run)
    order = request.arranged(order, run)
    return order, run, request.plans(order)


def _wider(
    run: Run, order: RunRequest, plans: Mapping[str, Plan], console: Console
) -> extend_sweep.Extension:
    """What the sweep that is there would take in."""
    wider = extend_sweep.compare(run, order, plans)
    extend_sweep.refuse_changed(run, order, wider, f"{console.program} {shlex.join(console.argv)}")
    return wider


def _widened(
    run: Run,
    order: RunRequest,
    plans: Mapping[str, Plan],
    wider: extend_sweep.Extension,
    console: Console,
    wait: bool,
) -> int:
    """The sweep takes in new elements and changed ones, and goes on with what is not done."""
    _refuse_living(run, console)
    check_dispatch(order.site, order.after)
    with submissions.alone(run):
        _refuse_living(run, console)  # it may have been started just now
        extend_sweep.extend(run, order, plans, wider, console.argv)
    console.log(extend_sweep.extension_messages(run, order, wider))
    return resume(run, order.site, console, wait, order.after)


def _refuse_living(run: Run, console: Console) -> None:
    found = status.status_of(run)
    if found.alive:
        raise UserError(
            f"{run.label!r} is {found.state}; wait for it ({console.command('status', run)}) or "
            f"{console.command('cancel', run)}, and widen it then"
        )


def _left(order: RunRequest, run: Run, wider: extend_sweep.Extension) -> RunRequest:
    """The elements that a wider sweep would compute: new and changed ones, and those that are not done."""
    done = {one.name for one in arrays.other_elements(run) if one.summary() is not None} - {*wider.changed}
    return replace(order, elements={k: v for k, v in (order.elements or {}).items() if k not in done})


def _forget(run: Run) -> None:
    """A run that was refused is as if it had not been asked for; one in which anything began stays."""
    if not any(one.attempt_numbers() for one in (run, *run.elements())):
        shutil.rmtree(run.folder, ignore_errors=True)


def _ended(code: int | None, run: Run, console: Console, wait: bool) -> int:
    if code is not None:
        return code
    return follow.follow(run, console) if wait else 0


def _is_finished(run: Run, order: RunRequest, plan: Plan, console: Console) -> bool:
    """Whether just this was computed under this name; False: an allocation may go on with it."""
    if not order.elements:  # those of an array have been looked at one by one
        request.refuse_another(run, plan)
    found = status.status_of(run)
    if found.state == RunState.DONE:
        return True
    if order.site.executor == "allocation" and (not found.alive or _is_ours(run)):
        return False
    _refuse_alive(run, found, console)
    raise UserError(
        f"{run.stage} {run.name!r} is there and {found.state}; go on with {console.command('resume', run)}, "
        "or choose another --name"
    )


def _is_ours(run: Run) -> bool:
    """Whether the job that works on the run, as Slurm says, is the one we stand in."""
    return environment.job_here() is not None and submissions.newest(run).get("job") == environment.job_here()


def _refuse_alive(run: Run, found: status.RunStatus, console: Console) -> None:
    """What is at work is not started a second time, and what may be is not either."""
    if found.unheard:
        raise UserError(
            f"{run.label!r} is not started, its job may be there: {found.unheard}. Again when that is known; "
            f"where it never will be, as of a cluster that is gone, first {console.command('cancel', run)}"
        )
    if found.alive:
        raise UserError(
            f"{run.label!r} is {found.state} already; follow it: {console.command('logs', run, '-f')}"
        )


# ---------------------------------------------------------------- runs that ended


def resume(run: Run, site: Site, console: Console, wait: bool, after: tuple[Run, ...] = ()) -> int:
    """A new attempt in the same folder, with its recipe; of an array, of the elements that are not done."""
    extend_sweep.finish_interrupted(run)
    found = status.statuses(run.elements() or [run])
    if all(each.state == RunState.DONE for each in found.values()):
        console.log("nothing to do: this run is finished")
        return messages.done(run, console)
    left = [
        one
        for one, each in found.items()
        if each.state != RunState.DONE and (not each.alive or _is_ours(one))
    ]
    if not left:
        _refuse_alive(run, status.status_of(run), console)
    return start_attempts(run, arrays.along(run, left), site, console, wait, after)


def start_attempts(
    run: Run, members: Sequence[Run], site: Site, console: Console, wait: bool, after: tuple[Run, ...] = ()
) -> int:
    """New attempts of these members of the run; what one that is done has computed stays."""
    site = request.site_of(members[0].stage, site)  # another one than it began in, perhaps
    if site.executor == "allocation" and run.elements():
        raise UserError(
            "an array does not go on inside of a job; type it on a login node, or name an element"
        )
    after = request.unfinished(after or _kept_after(run))
    check_dispatch(site, after)
    for one in members:
        uses.refuse_changed(one)
    if (read_json(run.record) or {}).get("code") != provenance.code_digest():
        console.log("the code has changed since this run was made; it goes on with the present code")
    which = f" with {len(members)} of {len(run.elements())} elements" if run.elements() else ""
    console.log(f"{run.stage} {run.label!r} goes on{which}: {dry_run.resources(site)}")
    with submissions.alone(run):
        _refuse_started(members, console)
        for one in members:
            one.cancelled.unlink(missing_ok=True)
        with _reopened(members):
            code = dispatch(run, members, site, console, after)
    return _ended(code, run, console, wait)


@contextmanager
def _reopened(members: Sequence[Run]) -> Iterator[None]:
    """Those that are done are so no more, unless they are refused."""
    records = {one.done / f"{one.stage}.json": one.summary() for one in members}
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


def _refuse_started(members: Sequence[Run], console: Console) -> None:
    """What another process has started since we looked."""
    for one, each in status.statuses(members).items():
        waits = arrays.is_final_element(one) and not each.unheard and submissions.newest(one).get("job")
        if not _is_ours(one) and not waits:  # that waits for elements which have ended, and is replaced
            _refuse_alive(one, each, console)


def _kept_after(run: Run) -> tuple[Run, ...]:
    """The runs that this one was to wait for when it was made."""
    folders = (read_json(run.record) or {}).get("after", [])
    return tuple(Run(Path(os.path.normpath(run.folder / folder))) for folder in folders)
