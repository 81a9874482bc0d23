"""The verbs that keep a lab's data in order: what a plate says of itself mended, runs removed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_isl.cli.arguments import ROOT, SITE, log, parsed, program, roots_of
from hpc_isl.errors import UserError

if TYPE_CHECKING:
    from hpc_isl.run import Run

DRY_RUN = ("--dry-run", {"action": "store_true", "help": "says what would be done, and does nothing"})


def set_metadata(argv: list[str]) -> int:
    """`set PLATE pixel_um=… channels.OLD=NEW transmitted=[…]`."""
    from hpc_isl.stages.set_metadata import KEYS, setting

    keys = "\n".join(f"  {f'{key}=…':<16}{meaning}" for key, meaning in KEYS.items())
    given = parsed(
        "set", f"PLATE.zarr key=value …: mends what a plate says of its pixels and channels\n\n{keys}", argv,
        DRY_RUN, ROOT, SITE,
    )  # fmt: skip
    if given is None:
        return 0
    if not given.words:
        raise UserError(f"set: name a plate, as in {program()} set P01.zarr pixel_um=0.325")
    from hpc_isl.cluster.run_folder import names, uses

    asked = setting(Path(given.words[0]), given.words[1:])
    if not asked.lines:
        log(f"{asked.index.path}: nothing to do, it is so already")
        return 0
    runs = names.some([], *roots_of(given))
    log("\n".join(asked.described()))
    for line in _stale(asked.measures, uses.resting_on(asked.index.path, asked.index.fingerprint, runs)):
        log(line)
    uses.refuse_used(asked.index.path, runs)
    if given.dry_run:
        return 0
    index = asked.done()
    log(f"{index.path}: done, fingerprint {index.fingerprint}")
    return 0


def _stale(measures: bool, runs: list[Run]) -> Iterator[str]:
    """The runs that rest on what is changed, and what that means for them."""
    if not runs:
        yield "no run rests on it, in the folders that were looked through"
        return
    what = "figures in micrometres are wrong" if measures else "figures stay right, names differ"
    yield f"{len(runs)} runs were computed before ({what}); they will say so, and do not go on:"
    yield from (f"  {run.stage} {run.label}" for run in runs)


# ---------------------------------------------------------------- runs


def remove(argv: list[str]) -> int:
    """`remove RUN`."""
    given = parsed(
        "remove", "RUN: removes the files of a run; its record and its model's contract stay, and so do "
        "labels and plates that it made", argv,
        ("--force", {"action": "store_true", "help": "also where other runs use its model"}),
        ("--yes", {"action": "store_true", "help": "without asking"}),
        DRY_RUN, ROOT, SITE,
    )  # fmt: skip
    if given is None:
        return 0
    if len(given.words) != 1:
        raise UserError(f"remove: name one run, as in {program()} remove S12")
    from hpc_isl.cluster.run_folder import names, remove

    roots = roots_of(given)
    run = _removable(given.words[0], roots)
    found = remove.removal(run, names.some([], *roots))
    log(f"{run.stage} {run.name!r} in {run.folder}: {found.size / 1e9:.3g} GB")
    for line in ("these stay:", *(f"  {line}" for line in found.stays)):
        log(line)
    users = ", ".join(f"{user.stage} {user.name!r}" for user in found.users)
    if users and not given.force:
        raise UserError(
            f"{run.name!r} is not removed: it is used by {users}; --force removes it all the same"
        )
    if users:
        log(f"it is used by {users}: these keep what they have made, and cannot go on")
    if given.dry_run or not (given.yes or _agreed(run)):
        log("nothing was removed")
        return 0
    remove.remove(run)
    log(f"{run.stage} {run.name!r} is removed")
    return 0


def _removable(name: str, roots: tuple[Path, ...]) -> Run:
    """The run; also one whose removal was cut short, by its folder or by stage and name."""
    from hpc_isl.cluster.run_folder import names
    from hpc_isl.run import Run

    for folder in (Path(name), *(root / name for root in roots)):
        run = Run(folder.absolute())
        if run.removed is not None:
            return run
    return names.find(name, *roots)


def _agreed(run: Run) -> bool:
    """Whether a person at a terminal says so.

    Raises:
        UserError: there is none to ask.
    """
    if not sys.stdin.isatty():
        raise UserError("remove: there is no terminal to ask at; --yes removes without asking")
    return input(f"remove {run.stage} {run.name!r}? [y/N] ").strip().lower() in ("y", "yes")
