"""The verbs that follow runs, end, resume and remove them, and forward or tabulate what they have found."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_isl.cli.arguments import (
    ASSIGNMENT,
    DRY_RUN,
    ROOT,
    SITE,
    command,
    console,
    log,
    option,
    program,
    run_folders,
    take_keys,
)
from hpc_isl.errors import UserError

if TYPE_CHECKING:
    from hpc_isl.run import Run
    from hpc_isl.site import Site

RESUMED = (
    ROOT,
    option("--site", help="another site than the run's own"),
    option("--wait", action="store_true", help="on Slurm: returns when the run has ended"),
)


def _named_run(arguments: Namespace, roots: tuple[Path, ...] = ()) -> Run:
    from hpc_isl.cluster.run_folder import folders

    if len(arguments.words) != 1:
        call = program()
        raise UserError(
            f"{arguments.verb}: name one run, as in {call} {arguments.verb} S12; {call} status lists all"
        )
    return folders.find(arguments.words[0], *(roots or run_folders(arguments)))


# ---------------------------------------------------------------- following


@command(
    "all runs: state, progress, figures", "[RUN …] [options]", "S12", ROOT, SITE,
    option("--json", action="store_true", help="for programs: a list, times in UTC, all figures"),
)  # fmt: skip
def status(arguments: Namespace) -> int:
    """Prints a table of all runs, or of these.

    Of a segmentation it also names the labels that are no longer those that it wrote.
    """
    from hpc_isl.cluster.monitor import status_table
    from hpc_isl.cluster.run_folder import folders

    roots = run_folders(arguments)
    runs = folders.some(arguments.words, *roots)
    # For programs: figures without words, and nothing else on standard output.
    if arguments.json:
        log(json.dumps(status_table.facts(runs), indent=1))
        return 0
    if not runs:
        log(f"there are no runs in {folders.listed(roots)}. {folders.ELSEWHERE}")
    run_roots = list(dict.fromkeys(run.root for run in runs))
    for folder in run_roots:
        if len(run_roots) > 1 or folder != roots[0]:
            log(f"runs in {folders.listed([folder])}")
        root_runs = [run for run in runs if run.root == folder]
        log("\n".join(status_table.table(root_runs, elements=bool(arguments.words))))
    if len(arguments.words) == 1:
        log("\n".join(status_table.attempts(runs[0])))
    for line in (line for run in runs if arguments.words for line in _edited_labels(run)):
        log(line)
    return 0


def _edited_labels(run: Run) -> list[str]:
    """Returns a line for labels in plates that are no longer those that runs of segment, now ended, wrote."""
    from hpc_isl.cluster.run_folder import status

    started = [
        member for member in run.elements() or [run] if member.stage == "segment" and member.attempt_numbers()
    ]
    # While a run writes, its labels differ from one moment to the next.
    ended = [member for member, run_status in status.statuses(started).items() if not run_status.alive]
    if not ended:
        return []
    from hpc_isl.stages.segment.checks import changed_labels  # here, because it reads plates

    return [line for member in ended for line in changed_labels(member)]


@command(
    "what a run wrote; -f follows it", "RUN [options]", "S12 -f", ROOT, SITE,
    option("-f", "--follow", action="store_true", help="until it ends"),
    option("--rank", type=int, help="of this rank; default 0"),
)  # fmt: skip
def logs(arguments: Namespace) -> int:
    """Prints what the run wrote; of one that failed, the traceback first."""
    from hpc_isl.cluster.monitor import follow, status_table
    from hpc_isl.cluster.run_folder import status

    run = _named_run(arguments)
    if arguments.follow and status.status_of(run).alive:  # one that has ended is printed like any other
        return follow.follow(run, console(run.root), arguments.rank or 0, everything=True)
    for line in status_table.log_lines(run, arguments.rank):
        log(line)
    return 0


# ---------------------------------------------------------------- ending and resuming


@command("tells a run to save and stop", "RUN [options]", "S12", ROOT, SITE)
def cancel(arguments: Namespace) -> int:
    """Tells a run to save and stop."""
    from hpc_isl.cluster.run_folder import status

    run = _named_run(arguments)
    log(status.cancel(run))
    log(f"next: {console(run.root).command('resume', run)}")
    return 0


@command(
    "resumes a run that stopped or failed", "RUN [site.key=value …] [options]", "S12 site.time=12h",
    *RESUMED,
    option("--after", action="append", default=[], metavar="RUN", help="a run that must be done before"),
)  # fmt: skip
def resume(arguments: Namespace) -> int:
    """Resumes a run from its newest checkpoint, the open elements of an array, a chain beyond the stop."""
    from hpc_isl.cluster.run_folder import folders
    from hpc_isl.cluster.submit import chain, launch

    run, keys = _run_and_site_keys(arguments)
    user_console = console(run.root)
    if run.stage == "chain":
        _refuse_for_chains(run, keys, arguments)
        return chain.resume(run, user_console, arguments.wait)
    after = tuple(folders.find(name, *user_console.roots) for name in arguments.after)
    return launch.resume(run, _site(run, arguments.site, keys), user_console, arguments.wait, after)


@command(
    "starts again what failed, of an array that alone", "RUN [site.key=value …] [options]",
    "nuc site.memory=64G", *RESUMED,
)  # fmt: skip
def retry(arguments: Namespace) -> int:
    """Starts what failed or got lost again, in the same folders.

    It gets more memory or time where that was missing.
    """
    from hpc_isl.cluster.submit import chain, launch

    run, keys = _run_and_site_keys(arguments)
    user_console = console(run.root)
    if run.stage == "chain":
        _refuse_for_chains(run, keys, arguments)
        return chain.continue_chain(run, user_console, arguments.wait)
    # None: each element on its own site, with more memory or time if that was why it failed.
    chosen_site = _site(run, arguments.site, keys) if arguments.site or keys else None
    return launch.retry(run, chosen_site, user_console, arguments.wait)


def _run_and_site_keys(arguments: Namespace) -> tuple[Run, list[str]]:
    from hpc_isl.site import folders_of_runs

    keys = [word.removeprefix("site.") for word in arguments.words if word.startswith("site.")]
    arguments.words = [word for word in arguments.words if not word.startswith("site.")]
    for word in arguments.words[1:]:
        if ASSIGNMENT.match(word):
            raise UserError(
                f"{arguments.verb} {word}: a run keeps its recipe; what may change is where it computes, by "
                "site.key=value, as in site.time=12h"
            )
    # --site says here where to compute; the run may lie in the folders of another site.
    other_roots = folders_of_runs() if arguments.site and not arguments.root else ()
    return _named_run(arguments, tuple(dict.fromkeys((*other_roots, *run_folders(arguments))))), keys


def _refuse_for_chains(run: Run, keys: list[str], arguments: Namespace) -> None:
    """Checks that a chain is resumed as it is: its recipe says where and after what each step computes."""
    if keys or arguments.site or getattr(arguments, "after", ()):
        raise UserError(
            f"{arguments.verb} {run.name}: a chain takes no site.key=value, --site or --after; give them to "
            f"the run of a step, as in {program()} {arguments.verb} STEP site.time=12h, and resume the chain"
        )


def _site(run: Run, name: str | None, keys: list[str]) -> Site:
    from hpc_isl.recipes.strict import override, parse, read_yaml
    from hpc_isl.site import Site, load

    return load(name, keys) if name else parse(Site, override(read_yaml(run.site), keys), str(run.site))


@command(
    "removes the files of a run; its record and contract stay", "RUN [options]", "OLD-RUN --dry-run",
    option("--force", action="store_true", help="also where other runs use its model"),
    option("--yes", action="store_true", help="without asking"),
    DRY_RUN, ROOT, SITE,
)  # fmt: skip
def remove(arguments: Namespace) -> int:
    """Removes the files of a run, after a question.

    Its record and its model's contract stay, and so do labels and plates that it made.
    """
    from hpc_isl.cluster.run_folder import folders, remove
    from hpc_isl.run import Run

    roots = run_folders(arguments)
    # A run whose removal was cut short is not found by its name any more, but its folder has the mark.
    candidates = [root / word for word in arguments.words for root in (Path(), *roots)]
    removed_runs = [run for folder in candidates if (run := Run(folder.absolute())).removed is not None]
    run = removed_runs[0] if removed_runs and len(arguments.words) == 1 else _named_run(arguments)
    removal = remove.removal(run, folders.some([], *roots))
    log(f"{run.stage} {run.name!r} in {run.folder}: {removal.size / 1e9:.3g} GB")
    log("\n".join(["these stay:", *(f"  {line}" for line in removal.remaining)]))
    users = ", ".join(f"{user.stage} {user.name!r}" for user in removal.users)
    if users and not arguments.force:
        raise UserError(
            f"{run.name!r} is not removed: it is used by {users}; --force removes it all the same"
        )
    if users:
        log(f"it is used by {users}: these keep what they have made, and cannot be resumed")
    agreed = arguments.yes or arguments.dry_run
    if not agreed and not sys.stdin.isatty():
        raise UserError("remove: there is no terminal to ask at; --yes removes without asking")
    if not agreed:
        with suppress(EOFError):  # Ctrl-D is no
            agreed = input(f"remove {run.stage} {run.name!r}? [y/N] ").strip().lower() in ("y", "yes")
    if arguments.dry_run or not agreed:
        log("nothing was removed")
        return 0
    remove.remove(run)
    log(f"{run.stage} {run.name!r} is removed")
    return 0


# ---------------------------------------------------------------- MLflow


@command(
    "forwards runs to MLflow", "[RUN …] [options]", "S12", ROOT, SITE,
    option("--follow", action="store_true", help="one run, until it ends"),
)  # fmt: skip
def sync(arguments: Namespace) -> int:
    """Forwards what is new in run folders to MLflow."""
    from hpc_isl.cluster.run_folder import folders
    from hpc_isl.cluster.tracking import forward

    if arguments.follow:
        forward.follow(_named_run(arguments))
        return 0
    return forward.sync_all(folders.some(arguments.words, *run_folders(arguments)), log)


@command(
    "opens MLflow on this machine", "[options]", "--port 5001", ROOT, SITE,
    option("--port", type=int, help="default 5000, or a free one"),
)  # fmt: skip
def ui(arguments: Namespace) -> int:
    """Opens MLflow on this machine until Ctrl-C, and syncs all runs again each minute."""
    from hpc_isl.cluster.run_folder import folders
    from hpc_isl.cluster.tracking import ui

    # One server shows one folder: the first that holds runs.
    roots = run_folders(arguments)
    root = next((folder for folder in roots if folders.all_runs(folder)), roots[0])
    return ui.serve(root, arguments.port, log)


# ---------------------------------------------------------------- results


@command(
    "one page about a sweep of finetune: curves, annotated objects saved, pictures", "RUN [options]", "nuc",
    ROOT, SITE,
)  # fmt: skip
def report(arguments: Namespace) -> int:
    """Makes one page about a sweep of finetune, as far as it is done."""
    run = _named_run(arguments)  # before imports that take seconds: a wrong name is reported at once
    from hpc_isl import site
    from hpc_isl.cluster.run_folder import uses
    from hpc_isl.cluster.tracking import forward
    from hpc_isl.stages.report.stage import report

    output = report(run)
    for line in uses.changed(run):
        log(f"warning: {line}, after this run was planned")
    log("\n".join([*output.headline, f"  report      {_short_path(output.page)}"]))
    if site.saved_site(run.site).tracking_address(run.root) is not None:
        forward.sync_each([run], log)
    return 0


TABLE_KEYS = {
    "out": "a file, .csv or .parquet (anndata: .h5ad); default wells.csv, fields.csv, … in the run folder",
    "per": "a row for each well | field | plate | object; default well",
    "normalise": "readouts of wells as (value - median) / (1.4826 MAD) of negative_controls (wells that the\n"
    "                  plate map's column `control` calls `negative`) | plate | none; default: by negative\n"
    "                  controls where each plate has two, beside the readouts, as normalised_…",
    "exclude": "a CSV of fields to leave out: well, field, and any of plate and reason",
    "qc": "a YAML file of rules: which flags leave fields out, and from where on fields are flagged; none:\n"
    "                  no field is left out; default: incomplete and out of focus",
    "format": "plain | pycytominer: names of columns that it and R read | anndata: one .h5ad for scanpy, by\n"
    "                  pip install 'hpc-isl[anndata]'; default plain",
    "heatmap": "what is drawn of each plate: count, a column of the table of wells, or a feature of\n"
    "                  objects, whose median is drawn; several with commas; default count, and of cells\n"
    "                  confluence",
}


@command(
    "objects of segmented plates per well, with the plate map; heat maps", "RUN [key=value …] [options]",
    "nuc-P out=wells.csv", ROOT, SITE, keys=TABLE_KEYS,
)  # fmt: skip
def table(arguments: Namespace) -> int:
    """Writes a table of all plates of a run of segment, joined with their plate maps, and heat maps."""
    keys = take_keys(arguments, TABLE_KEYS)
    run = _named_run(arguments)
    from hpc_isl.cluster.run_folder import uses
    from hpc_isl.stages.table.stage import table

    for line in uses.changed(run):
        log(f"warning: {line}, after this run was planned: its figures are those of before")
    heat_maps = keys["heatmap"].split(",") if "heatmap" in keys else None
    out = Path(keys["out"]).expanduser() if "out" in keys else None
    output = table(
        run, out, keys.get("per", "well"), heat_maps, keys.get("normalise"),
        keys.get("format", "plain"), Path(keys["exclude"]).expanduser() if "exclude" in keys else None,
        Path(keys["qc"]).expanduser() if "qc" in keys else None,
    )  # fmt: skip
    width = max(map(len, output.paths))
    log(
        "\n".join(
            [
                output.headline,
                *(f"  {kind:<{width}}  {_short_path(path)}" for kind, path in output.paths.items()),
            ]
        )
    )
    for note in output.notes:
        log(note)
    if "per" not in keys:
        log(f"next: {console(run.root).command('table', run)} per=object out=objects.parquet")
    return 0


def _short_path(path: Path) -> str:
    """Returns the path as it is typed from here, where it lies below."""
    return str(path.relative_to(os.getcwd())) if path.is_relative_to(os.getcwd()) else str(path)
