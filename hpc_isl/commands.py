"""The verbs that compute nothing: runs and plates looked at, followed, ended, forwarded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_isl.commandline import caller, parsed, program
from hpc_isl.mistake import Mistake

if TYPE_CHECKING:
    from hpc_isl.run import Run
    from hpc_isl.site import Site

ROOT = ("--root", {"type": Path, "help": "folder of all runs; default $HPC_ISL_RUNS, or ./runs"})


def _root(given: Any) -> Path:
    from hpc_isl.site import runs_root

    return Path(os.path.abspath(given.root)) if given.root else runs_root()


def _one_run(verb: str, given: Any) -> Run:
    from hpc_isl.cluster import names

    if len(given.words) != 1:
        raise Mistake(f"{verb}: name one run, as in {program()} {verb} S12")
    return names.find(given.words[0], _root(given))


def _status(argv: list[str]) -> int:
    given = parsed("status", "[RUN …]: a table of all runs, or of these", argv, ROOT)
    if given is None:
        return 0
    from hpc_isl.cluster import names, status

    runs = names.some(given.words, _root(given))
    print("\n".join(status.table(runs)) if runs else f"there are no runs in {_root(given)}")
    return 0


def _logs(argv: list[str]) -> int:
    given = parsed(
        "logs", "RUN: what the run wrote; of one that failed, the traceback first", argv, ROOT,
        ("-f --follow", {"action": "store_true", "help": "until it ends"}),
        ("--rank", {"type": int, "help": "of this rank; default 0"}),
    )  # fmt: skip
    if given is None:
        return 0
    from hpc_isl.cluster import launch, status

    run = _one_run("logs", given)
    if given.follow and status.state(run).alive:
        return launch.follow(run, caller(run.root), given.rank or 0, everything=True)
    for line in status.log_lines(run, given.rank):
        print(line)
    return 0


def _cancel(argv: list[str]) -> int:
    given = parsed("cancel", "RUN: tells it to save and stop", argv, ROOT)
    if given is None:
        return 0
    from hpc_isl.cluster import status

    run = _one_run("cancel", given)
    print(status.cancel(run))
    print(f"next: {caller(_root(given)).command('resume', run)}")
    return 0


def _resume(argv: list[str]) -> int:
    given = parsed(
        "resume", "RUN [site.key=value …]: goes on from the newest checkpoint", argv, ROOT,
        ("--site", {"help": "another site than the run's own"}),
        ("--wait", {"action": "store_true", "help": "on Slurm: until it ends"}),
    )  # fmt: skip
    if given is None:
        return 0
    from hpc_isl.cluster import launch

    keys = [word.removeprefix("site.") for word in given.words if word.startswith("site.")]
    given.words = [word for word in given.words if not word.startswith("site.")]
    run = _one_run("resume", given)
    return launch.resume(run, _site(run, given.site, keys), caller(_root(given)), given.wait)


def _site(run: Run, name: str | None, keys: list[str]) -> Site:
    from hpc_isl.site import Site, load
    from hpc_isl.strict import override, parse, read_yaml

    return load(name, keys) if name else parse(Site, override(read_yaml(run.site), keys), str(run.site))


def _sync(argv: list[str]) -> int:
    given = parsed(
        "sync", "[RUN …]: forwards what is new in run folders to MLflow", argv, ROOT,
        ("--follow", {"action": "store_true", "help": "one run, until it ends"}),
    )  # fmt: skip
    if given is None:
        return 0
    from hpc_isl.cluster import forward, names

    if given.follow:
        forward.follow(_one_run("sync", given))
        return 0
    return forward.sync_all(names.some(given.words, _root(given)), print)


def _ui(argv: list[str]) -> int:
    given = parsed(
        "ui", ": syncs all runs and opens MLflow on this machine, until Ctrl-C", argv, ROOT,
        ("--port", {"type": int, "help": "default 5000, or a free one"}),
    )  # fmt: skip
    if given is None:
        return 0
    from hpc_isl.cluster import ui

    return ui.serve(_root(given), given.port, lambda text: print(text, flush=True))


# ---------------------------------------------------------------- commands over plates


def _plates(verb: str, given: Any) -> list[Path]:
    if not given.words:
        raise Mistake(f"{verb}: name a plate, as in {program()} {verb} P01.zarr")
    return [Path(word) for word in given.words]


def _inspect(argv: list[str]) -> int:
    given = parsed("inspect", "PLATE.zarr …: what is on a plate", argv)
    if given is None:
        return 0
    plates = _plates("inspect", given)
    from hpc_isl.stages.inspect import inspect

    for path in plates:
        print("\n".join(inspect(path)))
    return 0


def _validate(argv: list[str]) -> int:
    given = parsed(
        "validate", "PLATE.zarr …: checks plates against the specification", argv,
        ("--deep", {"action": "store_true", "help": "every pixel against its recorded digest too"}),
    )  # fmt: skip
    if given is None:
        return 0
    plates = _plates("validate", given)
    from hpc_isl.stages.inspect import validate

    problems = [f"{path}: {one}" for path in plates for one in validate(path, given.deep)]
    print("\n".join(problems) if problems else "valid")
    return int(bool(problems))


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "inspect": ("what is on a plate", _inspect),
    "validate": ("checks a plate against the specification", _validate),
    "status": ("all runs: state, progress, figures", _status),
    "logs": ("what a run wrote; -f follows it", _logs),
    "cancel": ("tells a run to save and stop", _cancel),
    "resume": ("goes on with a run that stopped or failed", _resume),
    "sync": ("forwards runs to MLflow", _sync),
    "ui": ("opens MLflow on this machine", _ui),
}
