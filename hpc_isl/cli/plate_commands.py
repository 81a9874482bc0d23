"""The verbs that look at plates and correct what these state about themselves: inspect, validate, set."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from hpc_isl.cli.arguments import DRY_RUN, ROOT, SITE, command, log, option, program, run_folders
from hpc_isl.errors import UserError
from hpc_isl.metadata_changes import SETTABLE


def _plates(given: Namespace) -> list[Path]:
    if not given.words:
        raise UserError(f"{given.verb}: name a plate, as in {program()} {given.verb} P01.zarr")
    return [Path(word) for word in given.words]


@command("what is on a plate", "PLATE.zarr …", "P01.zarr")
def inspect(given: Namespace) -> int:
    """Prints the layout, channels, flags, labels and omissions of plates."""
    plates = _plates(given)  # first, because the import takes a second
    from hpc_isl.stages.inspect import inspect as described

    for path in plates:
        log("\n".join(described(path)))
    return 0


@command(
    "checks a plate against the specification", "PLATE.zarr … [--deep]", "P01.zarr --deep",
    option("--deep", action="store_true", help="every pixel against its recorded digest too"),
)  # fmt: skip
def validate(given: Namespace) -> int:
    """Checks plates against the specification of OME-Zarr and against their own index."""
    plates = _plates(given)
    from hpc_isl.stages.inspect import validate as problems_of

    problems = [f"{path}: {problem}" for path in plates for problem in problems_of(path, given.deep)]
    log("\n".join(problems) if problems else "valid")
    return int(bool(problems))


@command(
    "corrects what a plate states about its pixels and channels", "PLATE.zarr key=value … [options]",
    "P01.zarr pixel_um=0.325", DRY_RUN, ROOT, SITE, keys=SETTABLE,
)  # fmt: skip
def set_metadata(given: Namespace) -> int:
    """Corrects what a plate states about its pixels and channels, and names the runs that rest on it."""
    from hpc_isl.cluster.run_folder import names, uses
    from hpc_isl.stages.set_metadata import metadata_edit

    if not given.words:
        raise UserError(f"set: name a plate, as in {program()} set P01.zarr pixel_um=0.325")
    edit = metadata_edit(Path(given.words[0]), given.words[1:])
    if not edit.lines:
        log(f"{edit.index.path}: nothing to do, it has these values already")
        return 0
    runs = names.some([], *run_folders(given))
    log("\n".join(edit.described()))
    stale = uses.resting_on(edit.index.path, edit.index.fingerprint, runs)
    if stale:
        what = "figures in micrometres are wrong" if edit.measures else "figures stay right, names differ"
        log(f"{len(stale)} runs were computed before ({what}); they report it, and cannot be resumed:")
        log("\n".join(f"  {run.stage} {run.label}" for run in stale))
    else:
        log("no run rests on it, in the folders of runs that were searched")
    # After the description, so that a user who is refused has read what would change, and for which runs.
    uses.refuse_used(edit.index.path, runs)
    if not given.dry_run:
        index = edit.apply()
        log(f"{index.path}: done, fingerprint {index.fingerprint}")
    return 0
