"""A process beside a run forwards it to MLflow; whatever happens to that process, the run does not notice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hpc_isl import site
from hpc_isl.cluster.run_folder import status, submissions
from hpc_isl.cluster.run_folder.provenance import import_path
from hpc_isl.errors import UserError
from hpc_isl.run import Run
from hpc_isl.site import Site

FOLLOW_S = 10.0
WAIT_S = 15.0  # at its end, for another process that forwards the same
LAST_PASS_S = 45.0  # how long the end of a run waits for the rest to be forwarded


@contextmanager
def forwarding(run: Run, run_site: Site) -> Iterator[None]:
    """Forwards the run's newest attempt while the block lasts, and what is left at its end."""
    if run_site.tracking_address(run.root) is None:
        yield
        return
    log_file = run.attempts / str(run.attempt_numbers()[-1]) / "forward.log"
    command = [sys.executable, "-m", "hpc_isl.submit", "sync", "--follow", str(run.folder)]
    environment = {**os.environ, "PYTHONPATH": import_path()}
    # nice: the CPUs are for the run. A process group of its own: Ctrl-C stops the run, not the forwarding.
    with log_file.open("ab") as stream:
        process = subprocess.Popen(
            ["nice", "-n", "15", *command], cwd=run.folder, env=environment, process_group=0,
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        yield
    finally:
        try:
            process.wait(LAST_PASS_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


def follow(run: Run) -> None:
    """Forwards every few seconds until the run has ended; imports MLflow once there is a metric."""
    while _continues(run) and not _runs_with_metrics(run):
        time.sleep(1)
    if not _runs_with_metrics(run):
        return
    from hpc_isl.cluster.tracking.mlflow_run import sync

    continues = True
    while continues:
        continues = _continues(run)
        # The array of an element is forwarded at the element's end alone: many elements ask after it.
        arrays = [run] if run.elements() else [run.array] if run.array and not continues else []
        for member in [*_runs_with_metrics(run), *arrays]:
            try:
                # Each running element of an array on Slurm has such a process: they ask no queue.
                running = continues and not run.elements()
                print(sync(member, 0 if continues else WAIT_S, running=running), flush=True)
            except Exception as error:  # whatever it is, the next pass or a later `sync` makes up for it
                print(f"not forwarded: {error}", flush=True)
        started = time.monotonic()
        while continues and time.monotonic() - started < FOLLOW_S and _continues(run):
            time.sleep(1)


def _runs_with_metrics(run: Run) -> list[Run]:
    """Returns the run, or the elements of an array, that have metrics to forward."""
    return [member for member in run.elements() or [run] if member.metrics.exists()]


def _continues(run: Run) -> bool:
    """Returns whether more is to come, by the run folder alone: a queue is not to be asked each second."""
    if run.elements():
        return any(_continues(member) for member in run.elements())
    submission = submissions.newest(run)
    has_exited = any(record.get("exit") for record in status.ranks(run)[:1])
    watcher_gone = submission.get("executor") == "local" and submissions.watcher(submission) is None
    return not (has_exited or watcher_gone or run.summary() is not None)


def sync_all(runs: list[Run], log: Callable[[str], None], ask: bool = True) -> int:
    """Forwards each run once, and the elements of arrays; returns 1 where one could not be forwarded."""
    all_runs: list[Run] = []
    for run in runs:
        members = run.elements()
        # An array has a run of its own in MLflow, above those of its elements; a chain has none.
        run_itself = [] if members and not any(member.array == run for member in members) else [run]
        all_runs += [*run_itself, *members]
    return sync_each(all_runs, log, ask)


def sync_each(runs: list[Run], log: Callable[[str], None], ask: bool = True) -> int:
    """Forwards just these runs once; returns 1 where one could not be forwarded. `ask`: as in `sync`."""
    from hpc_isl.cluster.tracking.mlflow_run import sync
    from hpc_isl.cluster.tracking.store import Unreachable

    failed, unreachable, reported = 0, set[str](), set[str]()
    for run in runs:
        try:
            uri = site.saved_site(run.site).tracking_address(run.root)
            if uri not in unreachable:
                log(sync(run, ask=ask))
        except Unreachable as error:
            unreachable.add(str(uri))
            failed += 1
            log(f"{run.label}: {error}; everything stays in the run folder, sync again later")
        except UserError as error:  # what all runs of an experiment share is reported once
            failed += 1
            if str(error) not in reported:
                log(f"{run.label}: not forwarded: {error}")
            reported.add(str(error))
        except Exception as error:
            failed += 1
            log(f"{run.label}: not forwarded: {type(error).__name__}: {error}")
    return int(failed > 0)
