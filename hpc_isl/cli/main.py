"""All verbs in one table, and one call of the command line from its words to its exit code."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from typing import NoReturn

import hpc_isl
from hpc_isl.cli import commands, setup_commands
from hpc_isl.cli.arguments import Command, log, parse, program, silence
from hpc_isl.cli.stage_commands import MANY, stage_command
from hpc_isl.errors import UserError, nearest
from hpc_isl.stages.stage_table import STAGES

COMMANDS: dict[str, Command] = {
    # In the order in which a newcomer needs them; --help lists them so.
    "site": setup_commands.site,
    "doctor": setup_commands.doctor,
    "inspect": setup_commands.inspect,
    "validate": setup_commands.validate,
    "set": setup_commands.set_metadata,
    "status": commands.status,
    "logs": commands.logs,
    "cancel": commands.cancel,
    "resume": commands.resume,
    "retry": commands.retry,
    "remove": commands.remove,
    "report": commands.report,
    "table": commands.table,
    "sync": commands.sync,
    "ui": commands.ui,
}
OVERVIEW = """\
In silico labeling of high-content screening plates.

{program} VERB [RECIPE.yaml] [key=value …] [--site NAME|FILE] [--name RUN] [--after RUN]
    [--dry-run [--time]] [--wait]

stages
{stages}

many runs
{many}

commands
{commands}

A recipe says what to compute: without one, the shipped recipe of the stage. key=value overrides its keys and
site.key=value those of the site; values are YAML. VERB --help lists the usual keys, VERB --help all all of
them. --dry-run says what would be done, and --time with it how long, after ten seconds of the real work."""


def _stages() -> dict[str, str]:
    """Verb -> one line about it."""
    return {name: stage.summary for name, stage in STAGES.items()}


def verbs() -> dict[str, Command]:
    """Returns all verbs by name: stages, sweep and chain, and the commands that compute nothing."""
    stages = {name: stage_command(name, meaning) for name, meaning in (_stages() | MANY).items()}
    return stages | COMMANDS


def main() -> NoReturn:
    """Runs the command line of this process and exits with its code."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(argv: list[str]) -> int:
    """Runs one call; returns 0 if done, 1 failed, 2 the user's error, 3 stopped, 130 Ctrl-C."""
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            log(overview())
            return 0
        if argv[0] == "--version":
            log(f"hpc_isl {hpc_isl.__version__}")
            return 0
        known = verbs()
        if argv[0] not in known:
            raise UserError(f"{argv[0]!r} is not a verb; {nearest(argv[0], known)}")
        given = parse(known, argv)
        return known[given.verb].run(given) if given else 0
    except UserError as error:
        print(error, file=sys.stderr)  # no traceback: the message says what to do
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        silence()
        return 0
    except Exception as error:
        # A traceback is of use to us alone: the user gets one line, and the file to send.
        descriptor, path = tempfile.mkstemp(prefix="hpc_isl-", suffix=".txt")
        with os.fdopen(descriptor, "w") as stream:
            traceback.print_exc(file=stream)
        print(f"{type(error).__name__}: {error}\ntraceback: {path}", file=sys.stderr)
        return 1


def overview() -> str:
    """Returns the page of `--help`: every verb with one line."""

    def listed(meanings: dict[str, str]) -> str:
        return "\n".join(f"  {verb:<10}{meaning}" for verb, meaning in meanings.items())

    meanings = {name: command.meaning for name, command in COMMANDS.items()}
    return OVERVIEW.format(
        program=program(), stages=listed(_stages()), many=listed(MANY), commands=listed(meanings)
    )
