"""The door: python -m hpc_isl.submit VERB [RECIPE.yaml] [key=value …] [--site NAME|FILE] [--name RUN]."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import hpc_isl
from hpc_isl.cli.arguments import ArgumentParser, console, program, silence
from hpc_isl.cli.commands import COMMANDS
from hpc_isl.errors import UserError, nearest
from hpc_isl.stages import stage_table

STAGES = {name: stage.summary for name, stage in stage_table.STAGES.items()}
MANY = {
    "sweep": "an array of runs of one stage that differ in what is swept over",
    "chain": "stages one after another, with stops where a person annotates",
}
ACTIONS = {name: stage.actions for name, stage in stage_table.STAGES.items() if stage.actions}
ASSIGNMENT = re.compile(r"[A-Za-z_][\w.-]*=")


def main() -> NoReturn:
    """Entry point of `hpc-isl` and of `python -m hpc_isl.submit`."""
    sys.exit(door(sys.argv[1:]))


def door(argv: list[str]) -> int:
    """One call; the exit code: 0 done, 2 the user's mistake, 1 failure, 3 stopped, 130 Ctrl-C."""
    try:
        return _verb(argv)
    except UserError as mistake:
        print(mistake, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` say, has left
        silence()
        return 0
    except Exception as error:
        print(f"{type(error).__name__}: {error}\ntraceback: {_keep_traceback()}", file=sys.stderr)
        return 1


def _keep_traceback() -> str:
    import tempfile

    descriptor, path = tempfile.mkstemp(prefix="hpc_isl-", suffix=".txt")
    with os.fdopen(descriptor, "w") as stream:
        traceback.print_exc(file=stream)
    return path


def _verb(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    verb, *rest = argv
    if verb == "--version":
        print(f"hpc_isl {hpc_isl.__version__}")
        return 0
    if verb in STAGES or verb in MANY:
        return _stage(verb, rest)
    if verb in COMMANDS:
        return COMMANDS[verb][1](rest)
    raise UserError(f"{verb!r} is not a verb; {nearest(verb, [*STAGES, *MANY, *COMMANDS])}")


def _overview() -> str:
    def listed(rows: dict[str, str]) -> str:
        return "\n".join(f"  {verb:<10}{meaning}" for verb, meaning in rows.items())

    return f"""In silico labeling of high-content screening plates.

{program()} VERB [RECIPE.yaml] [key=value …] [--site NAME|FILE] [--name RUN] [--after RUN]
    [--dry-run [--time]] [--wait]

stages
{listed(STAGES)}

many runs
{listed(MANY)}

commands
{listed({verb: meaning for verb, (meaning, _) in COMMANDS.items()})}

A recipe says what to compute: without one, the shipped recipe of the stage. key=value overrides its keys and
site.key=value those of the site; values are YAML. VERB --help lists all keys with their meaning.
--dry-run says what would be done, and --time with it how long, after ten seconds of the real work.
"""


# ---------------------------------------------------------------- stages


def _stage(verb: str, argv: list[str]) -> int:
    words = ArgumentParser(verb)
    words.add_argument("--site", default="laptop")
    words.add_argument("--name")
    words.add_argument("--dry-run", action="store_true")
    words.add_argument("--time", action="store_true")
    words.add_argument("--wait", action="store_true")
    words.add_argument("--after", action="append", default=[])
    if verb == "segment":
        words.add_argument("--verify", type=_share, default=0.0)
    if verb == "sweep":
        words.add_argument("--update", action="store_true")
    given = words.parse_intermixed_args(argv)
    if given.help:
        from hpc_isl.cli.help import stage_manual

        print(stage_manual(verb, program()))
        return 0
    return _submitted(verb, given, tuple(argv))


def _share(text: str) -> float:
    """`1%` or 0.01."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ArgumentTypeError(f"{text}: write the share of fields to compute again, as in --verify 1%")
    return share


def _submitted(verb: str, given: Any, argv: tuple[str, ...]) -> int:
    """A stage, an array or a chain, as the words ask for it."""
    from hpc_isl import site
    from hpc_isl.cluster.run_folder import create, names
    from hpc_isl.cluster.submit import launch, planning, sweep
    from hpc_isl.recipes import load

    path, keys, site_keys = _sorted_words(verb, given.words)
    if given.time and (verb == "chain" or not given.dry_run):
        raise UserError(f"{verb}: --time goes with --dry-run, for one stage or a sweep: it tries ten seconds")
    where = site.load(given.site, site_keys)
    who = console(site.runs_root(where), argv=(verb, *argv))
    after = tuple(names.find(name, *who.roots) for name in given.after)
    if verb == "chain":
        if path is None or after:
            raise UserError(f"chain: name a recipe, as in {program()} chain chain.yaml; it takes no --after")
        from hpc_isl.cluster.submit import chain

        begin = chain.show_plan if given.dry_run else chain.start
        return begin(path, keys, where, given.name, who, given.wait)
    if verb == "sweep":
        order = sweep.sweep_request(path, keys, where, given.name, after)
    else:
        order = create.RunRequest(
            verb, load.load(verb, path, keys), planning.site_of(verb, where), given.name, after
        )
    order = replace(
        planning.with_run_folders(order, who.roots),
        verify=getattr(given, "verify", 0.0), update=getattr(given, "update", False),
    )  # fmt: skip
    if given.dry_run:
        return launch.show_plan(order, who, given.time)
    return launch.launch(order, who, given.wait)


def _sorted_words(verb: str, words: list[str]) -> tuple[Path | None, list[str], list[str]]:
    """The recipe file, if any, the assignments to the recipe and those to the site."""
    path: Path | None = None
    keys, site_keys, rest = [], [], _action(verb, words)
    for word in rest:
        if word.startswith("site."):
            site_keys.append(word.removeprefix("site."))
        elif ASSIGNMENT.match(word):
            keys.append(word)
        elif path is None and (word.endswith((".yaml", ".yml")) or Path(word).is_file()):
            path = Path(word)
        else:
            raise UserError(_stray(verb, word, path))
    return path, keys, site_keys


def _stray(verb: str, word: str, path: Path | None) -> str:
    if path is not None and word.endswith((".yaml", ".yml")):
        return f"{word}: the recipe is {path} already; one call has one recipe"
    actions = f"; {nearest(word, ACTIONS[verb])}" if verb in ACTIONS else ""
    return f"{word!r}: neither a recipe (NAME.yaml) nor key=value{actions}; see {program()} {verb} --help"


def _action(verb: str, words: list[str]) -> list[str]:
    """`import FOLDER …` as the assignments action=import source=FOLDER; paths are not read as YAML."""
    if verb not in ACTIONS or not words or words[0] not in ACTIONS[verb]:
        return words
    action, *rest = words
    found = [f"action={action}"]
    for word in rest:
        is_source = action == "import" and not ASSIGNMENT.match(word) and not word.endswith((".yaml", ".yml"))
        found.append(f"source={json.dumps(word)}" if is_source else word)
    return found


if __name__ == "__main__":
    main()
