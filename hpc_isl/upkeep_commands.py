"""The verbs that keep a lab's data in order: what a plate says of itself mended, runs removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_isl.commandline import ROOT, SITE, parsed, program, roots_of, say
from hpc_isl.mistake import Mistake

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
        raise Mistake(f"set: name a plate, as in {program()} set P01.zarr pixel_um=0.325")
    from hpc_isl.cluster import names, uses

    asked = setting(Path(given.words[0]), given.words[1:])
    if not asked.lines:
        say(f"{asked.index.path}: nothing to do, it is so already")
        return 0
    runs = names.some([], *roots_of(given))
    say("\n".join(asked.described()))
    for line in _stale(asked.measures, uses.resting_on(asked.index.path, asked.index.fingerprint, runs)):
        say(line)
    uses.refuse_used(asked.index.path, runs)
    if given.dry_run:
        return 0
    index = asked.done()
    say(f"{index.path}: done, fingerprint {index.fingerprint}")
    return 0


def _stale(measures: bool, runs: list[Run]) -> Iterator[str]:
    """The runs that rest on what is changed, and what that means for them."""
    if not runs:
        yield "no run rests on it, in the folders that were looked through"
        return
    what = "figures in micrometres are wrong" if measures else "figures stay right, names differ"
    yield f"{len(runs)} runs were computed before ({what}); they will say so, and do not go on:"
    yield from (f"  {run.stage} {run.label}" for run in runs)
