"""A process beside a run forwards it to MLflow; whatever befalls that process, the run does not notice."""

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
def forwarding(run: Run, where: Site) -> Iterator[None]:
    """Forwards the run's newest attempt while the block lasts, and what is left at its end."""
    if where.tracking_address(run.root) is None:
        yield
        return
    log_file = run.attempts / str(run.attempt_numbers()[-1]) / "forward.log"
    command = [sys.executable, "-m", "hpc_isl.submit", "sync", "--follow", str(run.folder)]
    environment = {**os.environ, "PYTHONPATH": import_path()}
    with log_file.open("ab") as stream:
        process = subprocess.Popen(
            ["nice", "-n", "15", *command], cwd=run.folder, env=environment, process_group=0,
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        yield
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(LAST_PASS_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def follow(run: Run) -> None:
    """Forwards every few seconds until the run has ended; imports MLflow once there is a metric."""
    while _goes_on(run) and not _measured(run):
        time.sleep(1)
    if not _measured(run):
        return
    from hpc_isl.cluster.tracking.mlflow_run import sync

    going = True
    while going:
        going = _goes_on(run)
        for one in [*_measured(run), *_arrays(run, going)]:
            try:
                print(sync(one, 0 if going else WAIT_S), flush=True)
            except Exception as error:  # whatever it is, the next pass or a later `sync` makes up for it
                print(f"not forwarded: {error}", flush=True)
        _pause(run, FOLLOW_S if going else 0)


def _measured(run: Run) -> list[Run]:
    """The run, or the elements of an array, that have metrics to forward."""
    return [one for one in run.elements() or [run] if one.metrics.exists()]


def _arrays(run: Run, going: bool) -> list[Run]:
    """The array that is followed; that of an element at its end alone, for many elements ask after it."""
    if run.elements():
        return [run]
    return [run.array] if run.array and not going else []


def _pause(run: Run, seconds: float) -> None:
    started = time.monotonic()
    while time.monotonic() - started < seconds and _goes_on(run):
        time.sleep(1)


def _goes_on(run: Run) -> bool:
    """Whether more is to come: looks at the run folder alone, for a queue is not to be asked each second."""
    if run.elements():
        return any(_goes_on(one) for one in run.elements())
    asked = submissions.newest(run)
    left = any(record.get("exit") for record in status.ranks(run)[:1])
    gone = asked.get("executor") == "local" and submissions.watcher(asked) is None
    return not (left or gone or run.summary() is not None)


def sync_all(runs: list[Run], log: Callable[[str], None], ask: bool = True) -> int:
    """Forwards each run once, and the elements of arrays; 1 where one could not be forwarded."""
    return sync_each([one for each in runs for one in _with_elements(each)], log, ask)


def sync_each(runs: list[Run], log: Callable[[str], None], ask: bool = True) -> int:
    """Forwards just these runs once; the exit code: 1 where one could not be forwarded. `ask`: as `sync`."""
    from hpc_isl.cluster.tracking.mlflow_run import sync
    from hpc_isl.cluster.tracking.store import Unreachable

    failed, away, told = 0, set[str](), set[str]()
    for run in runs:
        try:
            uri = site.kept(run.site).tracking_address(run.root)
            if uri not in away:
                log(sync(run, ask=ask))
        except Unreachable as error:
            away.add(str(uri))
            failed += 1
            log(f"{run.label}: {error}; everything stays in the run folder, sync again later")
        except UserError as mistake:  # what all runs of an experiment share is said once
            failed += 1
            if str(mistake) not in told:
                log(f"{run.label}: not forwarded: {mistake}")
            told.add(str(mistake))
        except Exception as error:
            failed += 1
            log(f"{run.label}: not forwarded: {type(error).__name__}: {error}")
    return int(failed > 0)


def _with_elements(run: Run) -> list[Run]:
    """An array has a run of its own in MLflow, above those of its elements; a chain has none."""
    members = run.elements()
    return [run, *members] if any(one.array == run for one in members) else members or [run]
