"""The verbs that compute nothing: runs and plates looked at, followed, ended, forwarded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_isl.cli import setup_commands, upkeep_commands
from hpc_isl.cli.arguments import ROOT, SITE, console, parsed, program, roots_of
from hpc_isl.errors import UserError, nearest

if TYPE_CHECKING:
    from hpc_isl.run import Run
    from hpc_isl.site import Site


def _one_run(verb: str, given: Any, roots: tuple[Path, ...] = ()) -> Run:
    from hpc_isl.cluster.run_folder import names

    if len(given.words) != 1:
        raise UserError(f"{verb}: name one run, as in {program()} {verb} S12")
    return names.find(given.words[0], *(roots or roots_of(given)))


def _status(argv: list[str]) -> int:
    given = parsed(
        "status", "[RUN …]: a table of all runs, or of these; of a segmentation also the labels that are no "
        "longer those that it wrote", argv, ROOT, SITE,
        ("--json", {"action": "store_true", "help": "for programs: a list, times in UTC, all figures"}),
    )  # fmt: skip
    if given is None:
        return 0
    from hpc_isl.cluster.monitor import status_table
    from hpc_isl.cluster.run_folder import names

    roots = roots_of(given)
    runs = names.some(given.words, *roots)
    if given.json:
        print(json.dumps(status_table.facts(runs), indent=1))
        return 0
    if not runs:
        print(f"there are no runs in {names.listed(roots)}. {names.ELSEWHERE}")
    folders = list(dict.fromkeys(run.root for run in runs))
    for folder in folders:
        if len(folders) > 1 or folder != roots[0]:
            print(f"runs in {names.listed([folder])}")
        own = [run for run in runs if run.root == folder]
        print("\n".join(status_table.table(own, elements=bool(given.words))))
    if len(given.words) == 1:
        print("\n".join(status_table.attempts(runs[0])))
    for line in (line for run in runs if given.words for line in _edits(run)):
        print(line)
    return 0


def _edits(run: Run) -> list[str]:
    """The labels in plates that are no longer those that runs of segment wrote, once these have ended."""
    from hpc_isl.cluster.monitor import status

    runs = [one for one in run.elements() or [run] if one.stage == "segment" and one.attempt_numbers()]
    ended = [one for one, state in status.states(runs).items() if not state.alive]
    if not ended:
        return []
    from hpc_isl.stages.segment.existing_labels import changed_labels

    return [line for one in ended for line in changed_labels(one)]


def _logs(argv: list[str]) -> int:
    given = parsed(
        "logs", "RUN: what the run wrote; of one that failed, the traceback first", argv, ROOT, SITE,
        ("-f --follow", {"action": "store_true", "help": "until it ends"}),
        ("--rank", {"type": int, "help": "of this rank; default 0"}),
    )  # fmt: skip
    if given is None:
        return 0
    from hpc_isl.cluster.monitor import follow, status, status_table

    run = _one_run("logs", given)
    if given.follow and status.state(run).alive:
        return follow.follow(run, console(run.root), given.rank or 0, everything=True)
    for line in status_table.log_lines(run, given.rank):
        print(line)
    return 0


def _cancel(argv: list[str]) -> int:
    given = parsed("cancel", "RUN: tells it to save and stop", argv, ROOT, SITE)
    if given is None:
        return 0
    from hpc_isl.cluster.monitor import status

    run = _one_run("cancel", given)
    print(status.cancel(run))
    print(f"next: {console(run.root).command('resume', run)}")
    return 0


AGAIN = (
    ("--site", {"help": "another site than the run's own"}),
    ("--wait", {"action": "store_true", "help": "on Slurm: until it ends"}),
)


def _resume(argv: list[str]) -> int:
    given = parsed(
        "resume", "RUN [site.key=value …]: goes on from the newest checkpoint; of an array, with the "
        "elements that are not done; of a chain, beyond the stop", argv, ROOT, *AGAIN,
        ("--after", {"action": "append", "default": [], "help": "a run that must be done before"}),
    )  # fmt: skip
    if given is None:
        return 0
    from hpc_isl.cluster.run_folder import names
    from hpc_isl.cluster.submit import chain, launch

    keys, run = _keys_and_run("resume", given)
    who = console(run.root)
    if run.stage == "chain":
        return chain.resume(run, who, given.wait)
    after = tuple(names.find(name, *who.roots) for name in given.after)
    return launch.resume(run, _site(run, given.site, keys), who, given.wait, after)


def _retry(argv: list[str]) -> int:
    given = parsed(
        "retry", "RUN [site.key=value …]: what failed or got lost starts again, in the same folders; with "
        "more memory or time where that was missing", argv, ROOT, *AGAIN,
    )  # fmt: skip
    if given is None:
        return 0
    from hpc_isl.cluster.submit import chain, retry

    keys, run = _keys_and_run("retry", given)
    if run.stage == "chain":
        return chain.continue_chain(run, console(run.root), given.wait)
    chosen = _site(run, given.site, keys) if given.site or keys else None
    return retry.retry(run, chosen, console(run.root), given.wait)


def _roots_beside_site(given: Any) -> tuple[Path, ...]:
    """The folders of runs where `--site` says where to compute: the run may lie elsewhere."""
    if given.root or not given.site:
        return roots_of(given)
    from hpc_isl.site import folders_of_runs

    return tuple(dict.fromkeys((*folders_of_runs(), *roots_of(given))))


def _keys_and_run(verb: str, given: Any) -> tuple[list[str], Run]:
    keys = [word.removeprefix("site.") for word in given.words if word.startswith("site.")]
    given.words = [word for word in given.words if not word.startswith("site.")]
    return keys, _one_run(verb, given, _roots_beside_site(given))


def _site(run: Run, name: str | None, keys: list[str]) -> Site:
    from hpc_isl.recipes.strict import override, parse, read_yaml
    from hpc_isl.site import Site, load

    return load(name, keys) if name else parse(Site, override(read_yaml(run.site), keys), str(run.site))


def _sync(argv: list[str]) -> int:
    given = parsed(
        "sync", "[RUN …]: forwards what is new in run folders to MLflow", argv, ROOT, SITE,
        ("--follow", {"action": "store_true", "help": "one run, until it ends"}),
    )  # fmt: skip
    if given is None:
        return 0
    from hpc_isl.cluster.run_folder import names
    from hpc_isl.cluster.tracking import forward

    if given.follow:
        forward.follow(_one_run("sync", given))
        return 0
    return forward.sync_all(names.some(given.words, *roots_of(given)), print)


def _ui(argv: list[str]) -> int:
    given = parsed(
        "ui", ": opens MLflow on this machine until Ctrl-C, and syncs all runs again each minute", argv, ROOT,
        SITE,
        ("--port", {"type": int, "help": "default 5000, or a free one"}),
    )  # fmt: skip
    if given is None:
        return 0
    from hpc_isl.cluster.run_folder import names
    from hpc_isl.cluster.tracking import ui

    roots = roots_of(given)
    root = next((folder for folder in roots if names.all_runs(folder)), roots[0])
    return ui.serve(root, given.port, lambda text: print(text, flush=True))


# ---------------------------------------------------------------- commands over plates


def _plates(verb: str, given: Any) -> list[Path]:
    if not given.words:
        raise UserError(f"{verb}: name a plate, as in {program()} {verb} P01.zarr")
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


# ---------------------------------------------------------------- what a sweep has found


def _report(argv: list[str]) -> int:
    given = parsed(
        "report", "RUN: one page about a sweep of finetune, as far as it is done", argv, ROOT, SITE
    )
    if given is None:
        return 0
    run = _one_run("report", given)
    from hpc_isl.cluster.run_folder import uses
    from hpc_isl.stages.report.stage import report

    made = report(run)
    for line in uses.changed_of(run):
        print(f"warning: {line}, after this run was planned")
    print("\n".join([*made.headline, f"  report      {_short(made.page)}"]), flush=True)
    _forward(run)
    return 0


TABLE_KEYS = {
    "out": "a file, .csv or .parquet; default wells.csv, fields.csv, … in the run folder",
    "per": "a row for each well | field | plate | object; default well",
    "heatmap": "what is drawn of each plate: count, a column of the table of wells, or a feature of\n"
    "                objects, whose median is drawn; several with commas; default count, and of cells\n"
    "                confluence",
}


def _table(argv: list[str]) -> int:
    manual = "\n".join(f"  {key + '=…':<14}{meaning}" for key, meaning in TABLE_KEYS.items())
    given = parsed(
        "table", "RUN [key=value …]: one table of all plates of a run of segment, joined with their plate "
        f"maps, and heat maps of the plates\n\n{manual}", argv, ROOT, SITE,
    )  # fmt: skip
    if given is None:
        return 0
    keys = _table_keys([word for word in given.words if "=" in word])
    given.words = [word for word in given.words if "=" not in word]
    run = _one_run("table", given)
    from hpc_isl.cluster.run_folder import uses
    from hpc_isl.stages.table.stage import table

    for line in uses.changed_of(run):
        print(f"warning: {line}, after this run was planned: its figures are those of before")
    heat_maps = keys["heatmap"].split(",") if "heatmap" in keys else None
    out = Path(keys["out"]).expanduser() if "out" in keys else None
    made = table(run, out, keys.get("per", "well"), heat_maps)
    width = max(map(len, made.made))
    lines = (f"  {what:<{width}}  {_short(path)}" for what, path in made.made.items())
    print("\n".join([made.headline, *lines]))
    if "per" not in keys:
        print(f"next: {console(run.root).command('table', run)} per=object out=objects.parquet")
    return 0


def _table_keys(words: list[str]) -> dict[str, str]:
    keys = dict(word.split("=", 1) for word in words)
    for key, value in keys.items():
        if key not in TABLE_KEYS:
            raise UserError(f"table {key}=: no such key; {nearest(key, TABLE_KEYS)}")
        if not value:
            raise UserError(f"table {key}=: a value is missing; {key} is {TABLE_KEYS[key].split(';')[0]}")
    return keys


def _forward(run: Run) -> None:
    """The page reaches MLflow too, where the run has a place there."""
    from hpc_isl import site
    from hpc_isl.cluster.tracking import forward

    if site.kept(run.site).tracking_address(run.root) is not None:
        forward.sync_each([run], print)


def _short(path: Path) -> str:
    """As it is typed from here, where it lies below."""
    return str(path.relative_to(os.getcwd())) if path.is_relative_to(os.getcwd()) else str(path)


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "site": ("init NAME: a site file drafted for this cluster; list: all sites", setup_commands.site),
    "doctor": ("a pre-flight of a site, on this machine and on compute nodes", setup_commands.doctor),
    "inspect": ("what is on a plate", _inspect),
    "validate": ("checks a plate against the specification", _validate),
    "set": ("mends what a plate says of its pixels and channels", upkeep_commands.set_metadata),
    "status": ("all runs: state, progress, figures", _status),
    "logs": ("what a run wrote; -f follows it", _logs),
    "cancel": ("tells a run to save and stop", _cancel),
    "resume": ("goes on with a run that stopped or failed", _resume),
    "retry": ("starts again what failed, of an array that alone", _retry),
    "remove": ("removes the files of a run; its record and contract stay", upkeep_commands.remove),
    "report": ("one page about a sweep of finetune: curves, annotations saved, pictures", _report),
    "table": ("objects of segmented plates per well, with the plate map; heat maps", _table),
    "sync": ("forwards runs to MLflow", _sync),
    "ui": ("opens MLflow on this machine", _ui),
}
