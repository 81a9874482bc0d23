"""The ranks of a run, started and supervised: processes of this machine, or srun in an allocation.

All ranks end together, and nothing that they started is left behind.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

import psutil

from hpc_isl.cluster.run_folder import status
from hpc_isl.cluster.run_folder.job import (
    ASK,
    FAILED,
    MISTAKE,
    STOPPED,
    Ending,
    Job,
    interpreter,
    job_here,
    requeue_from_outside,
    srun_flags,
    threads,
)
from hpc_isl.cluster.run_folder.provenance import import_path
from hpc_isl.cluster.slurm.commands import step_environment
from hpc_isl.site import Site, cpus_here, gpus_here

LOOK_S = 0.1
CRASH_GRACE_S = 3.0  # for the other ranks to say what they saw, after one has died
SWEEP_S = 1.0  # for helpers of a rank that has ended to end by themselves
TWICE_S = 0.5
REMIND_S = 2.0  # a TERM that came while Python was starting is lost: say it again


@dataclass
class StopRequests:
    """Signals since the ranks started: the first asks for a stop, the second for a kill."""

    times: int = 0
    interrupted: bool = False
    _last: float = -1e9

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or number == signal.SIGINT
        # `timeout`, `make` and some shells send a signal twice at once; that counts once.
        if time.monotonic() - self._last > TWICE_S:
            self.times += 1
        self._last = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[StopRequests]:
        # What nohup or a shell's & has us ignore stays ignored.
        numbers = [
            signal_number
            for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(signal_number) != signal.SIG_IGN
        ]
        previous_handlers = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)


def start(
    command: Sequence[str], environments: Sequence[Mapping[str, str]], logs: Sequence[Path], folder: Path
) -> list[subprocess.Popen[bytes]]:
    """Starts one process per environment, each in a process group of its own: Ctrl-C reaches us alone."""
    # A session of its own would do that too, but where the kernel shares out the CPUs by session, a user's
    # `nice` would then mean nothing.
    ranks = []
    for variables, log_file in zip(environments, logs, strict=True):
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as stream:
            ranks.append(
                subprocess.Popen(
                    command, env=dict(variables), cwd=folder, process_group=0,
                    stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
    return ranks


@dataclass
class Watch:
    """The loop over the living ranks, until the last has ended.

    Attributes:
        limit_s: after which they are asked to stop; None: no limit.
        stop_signal, kill_signal: the signals with which they are asked to stop, and are killed.
    """

    ranks: Sequence[subprocess.Popen[bytes]]
    requests: StopRequests
    log: Callable[[str], None]
    limit_s: float | None = None
    stop_signal: int = signal.SIGTERM
    kill_signal: int = signal.SIGKILL
    crashed: int | None = None
    stopping: bool = False
    killed: bool = False
    _codes: dict[int, int] = field(default_factory=dict)
    _reminder_time: float = -1e9
    _crash_time: float = 0.0
    _start: float = field(default_factory=time.monotonic)

    def until_ended(self, tick: Callable[[], None]) -> Ending:
        try:
            while len(self._codes) < len(self.ranks):
                time.sleep(LOOK_S)
                with suppress(OSError, ValueError):  # the watching process has left: no reason to end the run
                    tick()
                self._look()
                self._stop_if_asked()
                crash_is_old = (
                    self.crashed is not None and time.monotonic() - self._crash_time > CRASH_GRACE_S
                )
                if self.requests.times >= 2 or crash_is_old:
                    self.killed = self.requests.times >= 2
                    self._send(self.kill_signal)
        finally:
            self._end()
        return Ending(self._codes, self.crashed, self.requests.interrupted, self.stopping, self.killed)

    def _look(self) -> None:
        """Notes which ranks have ended."""
        for number, rank in enumerate(self.ranks):
            if number in self._codes:
                continue
            # NOWAIT: they stay unreaped, so that their process groups keep their ids.
            ended = os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                continue
            code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            self._codes[number] = code
            stopped = self.stopping and (code == STOPPED or -code in (signal.SIGTERM, signal.SIGKILL))
            if self.crashed is None and code != 0 and not stopped:
                self.crashed, self._crash_time = number, time.monotonic()

    def _stop_if_asked(self) -> None:
        overdue = self.limit_s is not None and time.monotonic() - self._start > self.limit_s
        if not (self.requests.times or overdue):
            return
        if not self.stopping:
            self.stopping = True
            reason = "the time limit is reached" if overdue else "stopping"
            self.log(
                f"{reason}: saving at the next boundary (Ctrl-C {'twice' if overdue else 'again'} kills)"
            )
        if time.monotonic() - self._reminder_time > REMIND_S:
            self._reminder_time = time.monotonic()
            self._send(self.stop_signal)

    def _send(self, number: int) -> None:
        """Sends a signal to the ranks, not to what they started: loading processes end with their rank."""
        for index, rank in enumerate(self.ranks):
            if index not in self._codes:
                with suppress(ProcessLookupError):
                    os.kill(rank.pid, number)

    def _end(self) -> None:
        """Kills every rank and every process of a rank's group that is left."""
        self._send(signal.SIGKILL)
        leaders = {rank.pid for rank in self.ranks}
        deadline = time.monotonic() + SWEEP_S
        while _members(leaders) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        for pid in _members(leaders):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for rank in self.ranks:
            rank.wait()


def _members(leaders: set[int]) -> list[int]:
    """Returns the living processes in the groups of `leaders`, without these."""
    members = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            is_member = pid not in leaders and os.getpgid(pid) in leaders
            if is_member and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                members.append(pid)
    return members


# ---------------------------------------------------------------- computing a run


def command(job: Job, site: Site, launcher: Sequence[str] = ()) -> list[str]:
    """Returns the command of a rank, in a shell that runs the site's setup; `launcher` starts that shell."""
    python = [*shlex.split(interpreter(site)), "-u", "-m", "hpc_isl.cluster.rank"]
    script = "\n".join(["set -e", *site.setup, 'exec "$@"'])
    return [*launcher, "bash", "-c", script, "rank", *python, job.module, str(job.folder), str(job.attempt)]


def environments(site: Site, gpus: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Returns one environment per rank: rank, share of the CPUs, visible GPUs (default: the site's)."""
    cpus = site.cpus or max(1, cpus_here() // site.ranks)
    common = {
        **os.environ, **threads(cpus),
        "HPC_ISL_EXECUTOR": "local",
        "HPC_ISL_SIZE": str(site.ranks),
        "HPC_ISL_CPUS": str(cpus),
        "HPC_ISL_WATCHER": str(os.getpid()),
        "PYTHONPATH": import_path(),
    }  # fmt: skip
    if gpus is None and site.gpus is not None:
        gpus = gpus_here()[: site.gpus]
    if gpus is not None:
        common["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return [common | {"HPC_ISL_RANK": str(rank)} for rank in range(site.ranks)]


def compute(
    job: Job,
    site: Site,
    requests: StopRequests,
    log: Callable[[str], None],
    tick: Callable[[], None],
    gpus: Sequence[str] | None = None,
) -> Ending:
    """Computes the whole run, until its last rank has ended; `tick` is called a few times a second."""
    if site.nodes > 1:
        log(f"one machine: the processes of {site.nodes} nodes run here, {site.ranks} in all")
    rank_environments = environments(site, gpus)
    logs = [job.attempt_folder / f"rank-{rank}.log" for rank in range(len(rank_environments))]
    limit_s = site.minutes * 60.0 if site.minutes else None
    ranks = start(command(job, site), rank_environments, logs, job.folder)
    return Watch(ranks, requests, log, limit_s).until_ended(tick)


def slots(site: Site) -> int:
    """Returns how many runs compute on this machine at once; a site without CPUs and GPUs takes it whole."""
    fits = [site.array] if site.array else []
    if site.cpus:
        fits.append(cpus_here() // (site.cpus * site.ranks))
    if site.gpus:
        fits.append(len(gpus_here()) // site.gpus)
    return max(1, min(fits, default=1))


# ---------------------------------------------------------------- in a job of Slurm that has begun


def compute_in_allocation(
    job: Job, site: Site, requests: StopRequests, log: Callable[[str], None], tick: Callable[[], None]
) -> Ending:
    """Computes the whole run through srun, which ends all ranks when one of them fails."""
    cpus = site.cpus or 1
    requeue_file, log_file = job.attempt_folder / "requeue", job.attempt_folder / "srun.log"
    variables = {
        **step_environment(), **threads(cpus),
        ASK: str(requeue_file),
        "HPC_ISL_EXECUTOR": "allocation",
        "SRUN_CPUS_PER_TASK": str(cpus),
        "PYTHONPATH": import_path(),
    }  # fmt: skip
    srun = ["srun", *srun_flags(job.run.stage), f"--nodes={site.nodes}", f"--ntasks={site.ranks}"]
    processes = start(command(job, site, srun), [variables], [log_file], job.folder)
    # srun passes USR1 on to the ranks; TERM it takes for itself, and kills them.
    watch = Watch(processes, requests, log, stop_signal=signal.SIGUSR1, kill_signal=signal.SIGTERM)
    ending = watch.until_ended(tick)
    if refusal := requeue_from_outside(requeue_file, job_here() or ""):
        log(f"not started again: {refusal}")
    # srun has one code for all ranks; their records, or its own output, tell which of them it was.
    [code] = ending.codes.values()
    by_rank = status.ranks(job.run, job.attempt)
    failure = status.first_failure(by_rank)
    death = status.DIED.search(log_file.read_text(errors="replace"))
    if failure is not None:  # ranks that were ended with it may have code 3
        code = MISTAKE if failure["outcome"] == "mistake" else FAILED
        return replace(ending, codes=dict.fromkeys(range(site.ranks), code), crashed=int(failure["rank"]))
    if ending.stopped or status.all_stopped(by_rank):
        return replace(ending, codes=dict.fromkeys(range(site.ranks), STOPPED), crashed=None)
    codes = dict.fromkeys(range(site.ranks), 128 - code if code > 128 else code)
    return replace(ending, codes=codes, crashed=int(death["rank"]) if code and death else ending.crashed)
