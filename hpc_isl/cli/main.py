"""The command line: all verbs in one table, those that compute, and one call from words to exit code."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import traceback
from argparse import ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import hpc_isl
from hpc_isl.cli import commands, export_command, setup_commands
from hpc_isl.cli.arguments import ASSIGNMENT, Command, console, log, option, parse, program, silence
from hpc_isl.errors import UserError, nearest
from hpc_isl.stages.stage_table import STAGES

COMMANDS: dict[str, Command] = {
    # In the order in which a newcomer needs them; --help lists them so.
    "site": setup_commands.site,
    "doctor": setup_commands.doctor,
    "inspect": setup_commands.inspect,
    "overview": setup_commands.overview,
    "validate": setup_commands.validate,
    "set": setup_commands.set_metadata,
    "pack": setup_commands.pack,
    "unpack": setup_commands.unpack,
    "status": commands.status,
    "logs": commands.logs,
    "cancel": commands.cancel,
    "resume": commands.resume,
    "retry": commands.retry,
    "remove": commands.remove,
    "report": commands.report,
    "export": export_command.export,
    "table": commands.table,
    "sync": commands.sync,
    "ui": commands.ui,
}
DISK_ERRORS = {
    errno.ENOSPC: "make room there", errno.EDQUOT: "make room there, or have your quota raised",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "ask its owner, or use another folder"),
}  # fmt: skip
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
        command_by_verb = verbs()
        if argv[0] not in command_by_verb:
            raise UserError(f"{argv[0]!r} is not a verb; {nearest(argv[0], command_by_verb)}")
        arguments = parse(command_by_verb, argv)
        return command_by_verb[arguments.verb].run(arguments) if arguments else 0
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
        print(_unexpected(error), file=sys.stderr)
        return 1


def _unexpected(error: Exception) -> str:
    """Returns what the user reads of an error that no message was written for."""
    if isinstance(error, OSError) and error.filename and (advice := DISK_ERRORS.get(error.errno or 0)):
        return f"{error.filename}: {error.strerror}; {advice}"
    # A traceback is of use to us alone: the user gets one line, and the file to send.
    text = "".join(traceback.format_exception(error))
    try:
        descriptor, path = tempfile.mkstemp(prefix="hpc_isl-", suffix=".txt")
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
    except OSError:  # no room for that file either
        return text.rstrip()
    return f"{type(error).__name__}: {error}\ntraceback: {path}"


def overview() -> str:
    """Returns the page of `--help`: every verb with one line."""

    def verb_lines(meanings: dict[str, str]) -> str:
        return "\n".join(f"  {verb:<10}{meaning}" for verb, meaning in meanings.items())

    meanings = {name: command.meaning for name, command in COMMANDS.items()}
    return OVERVIEW.format(
        program=program(), stages=verb_lines(_stages()), many=verb_lines(MANY), commands=verb_lines(meanings)
    )


# ---------------------------------------------------------------- the verbs that compute

MANY = {
    "sweep": "an array of runs of one stage that differ in what is swept over",
    "chain": "stages one after another, with stops where a person annotates",
}
USAGE = {
    "adopt": "PLATE.zarr",
    "annotate": "{import FOLDER | draft | export | edit | propose} [RECIPE.yaml]",
    "chain": "RECIPE.yaml",
}


def _fraction(text: str) -> float:
    """Reads `1%` or 0.01."""
    try:
        fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise ArgumentTypeError(f"{text}: write the share of fields to compute again, as in --verify 1%")
    return fraction


OPTIONS = (
    option("--site", default="laptop", metavar="NAME|FILE", help="where to compute; default laptop"),
    option("--name", metavar="RUN", help="name of the run; default the stage, the date and a number"),
    option("--dry-run", action="store_true", help="prints what would be done, and does nothing"),
    option("--time", action="store_true", help="with --dry-run: how long it takes, after ten seconds of it"),
    option("--wait", action="store_true", help="on Slurm: returns when the run has ended"),
    option("--after", action="append", default=[], metavar="RUN", help="starts when this run is done"),
)
OWN_OPTIONS = {
    "segment": option(
        "--verify", type=_fraction, default=0.0, metavar="SHARE",
        help="computes this share of the fields, as 1%%, again and compares",
    ),
    "sweep": option(
        "--update", action="store_true", help="computes again the elements whose inputs have changed"
    ),
}  # fmt: skip


def stage_command(verb: str, meaning: str) -> Command:
    """Returns the command of a stage, of sweep or of chain."""

    def description(every_key: bool) -> str:
        from hpc_isl.cli.help import stage_manual

        return stage_manual(verb, program(), every_key)

    usage = f"{USAGE.get(verb, '[RECIPE.yaml]')} [key=value …] [options]"
    verb_options = (OWN_OPTIONS[verb],) if verb in OWN_OPTIONS else ()
    return Command(_submit, meaning, usage, description=description, options=(*OPTIONS, *verb_options))


def _submit(arguments: Namespace) -> int:
    """Plans or starts what the arguments describe; the exit code."""
    # Imported here, so that help and errors about words do not wait for the cluster's modules.
    from hpc_isl import site
    from hpc_isl.cli.edit_command import edit
    from hpc_isl.cluster.run_folder import folders
    from hpc_isl.cluster.submit import chain, launch, planning, sweep
    from hpc_isl.recipes import load
    from hpc_isl.recipes.plates import AnnotateRecipe

    verb = arguments.verb
    path, keys, site_keys = split_words(verb, arguments.words)
    if arguments.time and (verb == "chain" or not arguments.dry_run):
        raise UserError(f"{verb}: --time goes with --dry-run, for one stage or a sweep: it tries ten seconds")
    chosen_site = site.load(arguments.site, site_keys)
    user_console = console(site.runs_root(chosen_site), argv=arguments.argv)
    after = tuple(folders.find(name, *user_console.roots) for name in arguments.after)
    if verb == "chain":
        if path is None or after:
            raise UserError(f"chain: name a recipe, as in {program()} chain chain.yaml; it takes no --after")
        start_or_show = chain.show_plan if arguments.dry_run else chain.start
        return start_or_show(path, keys, chosen_site, arguments.name, user_console, arguments.wait)
    if verb == "sweep":
        request = sweep.sweep_request(path, keys, chosen_site, arguments.name, after)
    else:
        recipe = load.load(verb, path, keys)
        if isinstance(recipe, AnnotateRecipe) and recipe.action == "edit":
            return edit(recipe, user_console, arguments)
        request = folders.RunRequest(verb, recipe, planning.site_of(verb, chosen_site), arguments.name, after)
    verify, update = getattr(arguments, "verify", 0.0), getattr(arguments, "update", False)
    request = replace(planning.with_run_folders(request, user_console.roots), verify=verify, update=update)
    if arguments.dry_run:
        return launch.show_plan(request, user_console, arguments.time)
    return launch.launch(request, user_console, arguments.wait)


def split_words(verb: str, words: list[str]) -> tuple[Path | None, list[str], list[str]]:
    """Returns the recipe file, if one is named, the assignments to the recipe and those to the site.

    Raises:
        UserError: a word that is neither, or a second recipe.
    """
    path: Path | None = None
    keys, site_keys = [], []
    for word in action_as_keys(verb, words):
        is_yaml = word.endswith((".yaml", ".yml"))
        if word.startswith("site."):
            site_keys.append(word.removeprefix("site."))
        elif ASSIGNMENT.match(word):
            keys.append(word)
        elif path is None and (is_yaml or Path(word).is_file()):
            path = Path(word)
        elif is_yaml:
            raise UserError(f"{word}: the recipe is {path} already; one call has one recipe")
        else:
            actions = f"; {nearest(word, _actions(verb))}" if _actions(verb) else ""
            raise UserError(
                f"{word!r}: neither a recipe (NAME.yaml) nor key=value{actions}; "
                f"see {program()} {verb} --help"
            )
    return path, keys, site_keys


def _actions(verb: str) -> tuple[str, ...]:
    """The words that may stand before the recipe."""
    return STAGES[verb].actions if verb in STAGES else ()


def action_as_keys(verb: str, words: list[str]) -> list[str]:
    """Returns words that stand for assignments as these, others as they are.

    `import FOLDER …` is action=import source=FOLDER, and `adopt PLATE` plate=PLATE.
    """
    if verb in STAGES and (key := STAGES[verb].word):
        return [word if _is_key_or_recipe(word) else f"{key}={json.dumps(word)}" for word in words]
    if not words or words[0] not in _actions(verb):
        return words
    action, *later_words = words
    keys = [f"action={action}"]
    for word in later_words:
        is_source = action == "import" and not _is_key_or_recipe(word)
        # Quoted, because a path may hold what YAML would read as something else, as `a: b` does.
        keys.append(f"source={json.dumps(word)}" if is_source else word)
    return keys


def _is_key_or_recipe(word: str) -> bool:
    return bool(ASSIGNMENT.match(word)) or word.endswith((".yaml", ".yml"))
