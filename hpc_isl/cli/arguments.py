"""Parsing of the command line by argparse, with a subparser for each verb; shared options; printing."""

from __future__ import annotations

import argparse
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hpc_isl.errors import UserError, nearest

if TYPE_CHECKING:
    from hpc_isl.cluster.monitor.messages import Console

Option = tuple[tuple[str, ...], dict[str, Any]]
# How a key=value begins. Elements of sweeps (seeds/seed=0) and paths hold = too: with a slash before it, no
# key is meant.
ASSIGNMENT = re.compile(r"[A-Za-z_][\w.-]*=")


def option(*names: str, **settings: Any) -> Option:
    """Returns an option as `argparse.ArgumentParser.add_argument` takes it."""
    return names, settings


ROOT = option(
    "--root", type=Path, help="folder of runs; default $HPC_ISL_RUNS or ./runs, and those of your sites"
)
SITE = option("--site", help="the folder of runs of this site alone")
DRY_RUN = option("--dry-run", action="store_true", help="prints what would be done, and does nothing")
# Options of some verbs that people also try with others, and what these have instead.
INSTEAD = {
    "--root": "the folder of runs is given by site.runs=DIR, by `runs` in the site's file, or HPC_ISL_RUNS"
}


@dataclass(frozen=True)
class Command:
    """One verb of the command line.

    Attributes:
        run: does what the verb says and returns the exit code.
        meaning: one line for the overview.
        usage: what is typed after the verb.
        example: a call, after the verb.
        description: text of `VERB --help` above the options; with True that of `VERB --help all`.
    """

    run: Callable[[Namespace], int]
    meaning: str
    usage: str
    example: str = ""
    description: Callable[[bool], str] = lambda every_key: ""
    options: tuple[Option, ...] = ()


def command(
    meaning: str, usage: str, example: str, *options: Option, keys: Mapping[str, str] = {}
) -> Callable[[Callable[[Namespace], int]], Command]:
    """Makes a `Command` of the function below it, whose docstring describes it, with `keys` if any."""

    def decorated(run: Callable[[Namespace], int]) -> Command:
        lines = [cleandoc(run.__doc__ or ""), *([""] if keys else [])]
        lines += [f"  {key + '=…':<16}{meaning}" for key, meaning in keys.items()]
        return Command(run, meaning, usage, example, lambda every_key: "\n".join(lines), options)

    return decorated


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s of one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")


def parse(commands: Mapping[str, Command], argv: list[str]) -> Namespace | None:
    """Parses a call that begins with a verb; `words` are its arguments that belong to no option, in order.

    Returns None where help was asked for, which is then printed.

    Raises:
        UserError: an option that the verb does not have, or a value that does not suit its option.
    """
    parser = ArgumentParser(prog=program(), add_help=False)
    subparsers = parser.add_subparsers(dest="verb", parser_class=ArgumentParser)
    for verb, verb_command in commands.items():
        subparser = subparsers.add_parser(
            verb, usage=f"{program()} {verb} {verb_command.usage}", add_help=False, allow_abbrev=False,
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=110, max_help_position=28),
            epilog=verb_command.example and f"example: {program()} {verb} {verb_command.example}",
        )  # fmt: skip
        for names, settings in verb_command.options:
            subparser.add_argument(*names, **settings)
        subparser.add_argument(
            "-h", "--help", nargs="?", const="usual", metavar="all", help="this page; with all, every key"
        )
    # Words stand before, between and after options. argparse gives a positional argument the first group
    # of them alone, so there is none, and all words are taken from what is left over.
    arguments, words = parser.parse_known_args(argv)
    arguments.words = words
    arguments.argv = tuple(argv)
    options = [name for names, _ in commands[arguments.verb].options for name in names]
    if arguments.help:
        verb_parser = subparsers.choices[arguments.verb]
        verb_parser.description = commands[arguments.verb].description(arguments.help == "all")
        log(verb_parser.format_help())
        return None
    for word in arguments.words:
        if word.startswith("-"):
            hint = INSTEAD.get(word) or nearest(word, [*options, "--help"])
            raise UserError(f"{word}: no such option of {program()} {arguments.verb}; {hint}")
    return arguments


def take_keys(arguments: Namespace, meanings: Mapping[str, str]) -> dict[str, str]:
    """Returns the `key=value` of a call, and leaves its other words in `words`; `meanings`: key -> meaning.

    A run or path with = in its name has a slash before it, as in `seeds/seed=0` or `./seed=0.zarr`.

    Raises:
        UserError: a key that the verb does not have, or one without a value.
    """
    keys = dict(word.split("=", 1) for word in arguments.words if ASSIGNMENT.match(word))
    for key, value in keys.items():
        if key not in meanings:
            path = f"{key}={value}"
            hint = f"; a path is written ./{path}" if Path(path).exists() else ""
            raise UserError(f"{arguments.verb} {key}=: no such key; {nearest(key, meanings)}{hint}")
        if not value:
            raise UserError(
                f"{arguments.verb} {key}=: a value is missing; {key} is {meanings[key].split(';')[0]}"
            )
    arguments.words = [word for word in arguments.words if not ASSIGNMENT.match(word)]
    return keys


def names_in(text: str) -> list[str]:
    """Returns the names in `A,B C` or in a list of YAML, as `[A, "B, C"]`.

    Raises:
        UserError: a list that YAML cannot read.
    """
    if text.startswith("["):
        from yaml import YAMLError

        from hpc_isl.recipes.strict import value_of, written

        try:
            return [entry if isinstance(entry, str) else written(entry) for entry in value_of(text)]
        except YAMLError:
            raise UserError(f"{text}: is no list; write it as in [B03/1, D07]") from None
    return [name.strip() for name in text.split(",") if name.strip()]


def program() -> str:
    """Returns the command by which the user has called this program."""
    return "hpc-isl" if Path(sys.argv[0]).name == "hpc-isl" else "python -m hpc_isl.submit"


def run_folders(arguments: Namespace) -> tuple[Path, ...]:
    """Returns the folders of runs that `--root` and `--site` name; by default all that the user may have."""
    from hpc_isl.site import folders_of_runs, load, runs_root

    if arguments.root:
        return (Path(os.path.abspath(os.path.expanduser(arguments.root))),)
    return (runs_root(load(arguments.site, [])),) if arguments.site else tuple(folders_of_runs())


def console(root: Path, argv: tuple[str, ...] = ()) -> Console:
    """Returns the console of the user who typed this call and keeps runs in `root`."""
    from hpc_isl.cluster.monitor.messages import Console

    return Console(log, root, program(), argv)


def log(text: str) -> None:
    """Prints a text at once.

    A reader that has closed the pipe is no error: a run continues without it and keeps its exit code.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence()


def silence() -> None:
    """Sends all further output of this process nowhere."""
    # Python flushes standard output once more at its end, and would print an error there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
