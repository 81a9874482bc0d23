"""Words on the command line, and how a caller is spoken to."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hpc_isl.errors import UserError, nearest

if TYPE_CHECKING:
    from hpc_isl.cluster.monitor.messages import Console

Option = tuple[str, dict[str, Any]]
INSTEAD = {
    "--root": "where runs lie is said by site.runs=DIR, by `runs` in the site's file, or by HPC_ISL_RUNS"
}


ROOT: Option = (
    "--root",
    {"type": Path, "help": "folder of runs; default $HPC_ISL_RUNS or ./runs, and those your sites name"},
)
SITE: Option = ("--site", {"help": "the folder of runs of this site alone"})


def roots_of(given: Any) -> tuple[Path, ...]:
    """The folders of runs that `ROOT` and `SITE` mean; without them, all that may hold the user's."""
    from hpc_isl.site import folders_of_runs, load, runs_root

    if given.root:
        return (Path(os.path.abspath(given.root)),)
    named = [runs_root(load(given.site, []))] if given.site else []
    return tuple(named or folders_of_runs())


def program() -> str:
    """How the user calls us."""
    return "hpc-isl" if Path(sys.argv[0]).name == "hpc-isl" else "python -m hpc_isl.submit"


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose complaints are mistakes of one line."""

    def __init__(self, verb: str) -> None:
        super().__init__(prog=f"{program()} {verb}", add_help=False, allow_abbrev=False)
        self.add_argument("-h", "--help", action="store_true")
        self.add_argument("words", nargs="*")

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            options = [name for action in self._actions for name in action.option_strings]
            instead = INSTEAD.get(unknown[1]) or nearest(unknown[1], options)
            raise UserError(f"{unknown[1]}: no such option of {self.prog}; {instead}")
        raise UserError(f"{self.prog}: {message}")


def console(root: Path, argv: tuple[str, ...] = ()) -> Console:
    """Whoever typed this call: reads what is printed, keeps runs in `root`."""
    from hpc_isl.cluster.monitor.messages import Console

    return Console(log, root, program(), argv)


def log(text: str) -> None:
    """Prints; a run whose watcher has closed the pipe goes on, and its exit code stands."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence()


def silence() -> None:
    """From here on, nothing that is printed goes anywhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def parsed(verb: str, meaning: str, argv: list[str], *options: Option) -> Any:
    """The parsed words of a command; None where it was asked for help, which is then printed."""
    words = ArgumentParser(verb)
    for name, settings in options:
        words.add_argument(*name.split(), **settings)
    given = words.parse_intermixed_args(argv)
    if given.help:
        print(f"{words.prog} {meaning}\n")
        for name, settings in options:
            print(f"  {name.replace(' ', ', '):<16}{settings['help']}")
        return None
    return given
