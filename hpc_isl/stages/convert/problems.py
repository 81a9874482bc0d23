"""What is wrong with an export, in one report: by kind and count, one screen of it, and all of it as CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.files import write_atomic
from hpc_isl.plates.plate import NOT_IMAGED, Export, FieldKey, Problem

SHOWN = 20  # fields on one screen
COLUMNS = ("well", "field", "acquisition", "kind", "problem")


def harmful(problems: Iterable[Problem]) -> list[Problem]:
    """Returns those that a person has to decide about: what the instrument did not image is no damage."""
    return [problem for problem in problems if problem.kind != NOT_IMAGED]


def report(problems: Sequence[Problem], of: int, table: Path | None = None) -> str:
    """Returns the message that names all damaged fields together.

    Args:
        of: number of fields of the export.
        table: where all of them are listed.
    """
    return "\n".join([
        f"{len(fields_of(problems))} of {of} fields are damaged: {counted(problems)}",
        *listing(problems),
        *([f"all of them: {table}"] if table else []),
        "repair these files and start again, or store the other planes with on_error=skip",
    ])  # fmt: skip


def counted(problems: Iterable[Problem]) -> str:
    """Returns how many fields have problems of each kind, as in "2 missing, 1 duplicate"."""
    counts = Counter(kind for _, kind in {(problem.key, problem.kind) for problem in problems})
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def listing(problems: Sequence[Problem]) -> list[str]:
    """Returns one screen of fields and what is wrong with each."""
    lines = [
        f"  {key}: {'; '.join(problem.text for problem in problems if problem.key == key)}"
        for key in fields_of(problems)[:SHOWN]
    ]
    more = len(fields_of(problems)) - SHOWN
    return lines + ([f"  … and {more} more"] if more > 0 else [])


def fields_of(problems: Iterable[Problem]) -> list[FieldKey]:
    """Returns the fields that have problems, each once, in plate order."""
    return sorted({problem.key for problem in problems}, key=lambda key: key.place)


def write_table(problems: Sequence[Problem], path: Path) -> Path | None:
    """Writes all problems as CSV and returns where; None where nothing can be written there."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for key, problem, kind in sorted(problems, key=lambda problem: (problem.key.place, problem.kind)):
        rows.writerow([key.well, key.name, key.acquisition, kind, problem])
    try:
        write_atomic(path, text.getvalue(), durable=False)
    except OSError:
        return None
    return path


def write_left_out(export: Export, path: Path) -> None:
    """Writes as CSV which files of the export are not stored, and why; nothing where all are."""
    if not export.left_out:
        return
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "kind", "well", "channel"))
    rows.writerows((left.path, left.kind, left.well, left.channel) for left in export.left_out)
    write_atomic(path, text.getvalue(), durable=False)


def refuse(problems: Sequence[Problem], of: int, table: Path) -> None:
    """Raises the report of these problems, all of which it writes to `table`.

    Raises:
        UserError: there are any.
    """
    if problems:
        raise UserError(report(problems, of, write_table(problems, table)))
