"""Problems of an export in one report: by kind and count, one screen of them, and all as CSV."""

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


def harmful(problems: Iterable[Problem]) -> list[Problem]:
    """Returns those that a person has to decide about: what the instrument did not image is no damage."""
    return [problem for problem in problems if problem.kind != NOT_IMAGED]


def refuse(problems: Sequence[Problem], fields: int, table: Path) -> None:
    """Raises a `UserError` that names the damaged fields, if there are any, and writes all to `table`.

    Args:
        fields: number of fields of the export.
    """
    if not problems:
        return
    written = write_table(problems, table)
    raise UserError("\n".join([
        f"{len(_fields(problems))} of {fields} fields are damaged: {counted(problems)}",
        *listing(problems),
        *([f"all of them: {written}"] if written else []),
        "repair these files and start again, or store the other planes with on_error=skip",
    ]))  # fmt: skip


def counted(problems: Iterable[Problem]) -> str:
    """Returns how many fields have problems of each kind, as in "2 missing, 1 duplicate"."""
    counts = Counter(kind for _, kind in {(problem.key, problem.kind) for problem in problems})
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def listing(problems: Sequence[Problem]) -> list[str]:
    """Returns one screen of fields and what is wrong with each."""
    fields = _fields(problems)
    lines = [
        f"  {key}: {'; '.join(problem.text for problem in problems if problem.key == key)}"
        for key in fields[:SHOWN]
    ]
    more = len(fields) - SHOWN
    return lines + ([f"  … and {more} more"] if more > 0 else [])


def _fields(problems: Iterable[Problem]) -> list[FieldKey]:
    return sorted({problem.key for problem in problems}, key=lambda key: key.place)


def write_table(problems: Sequence[Problem], path: Path) -> Path | None:
    """Writes all problems as CSV and returns the path; None where nothing can be written there."""
    columns = ("well", "field", "acquisition", "kind", "problem")
    ordered = sorted(problems, key=lambda problem: (problem.key.place, problem.kind))
    try:
        _write_csv(
            path, columns, ((key.well, key.name, key.acquisition, kind, text) for key, text, kind in ordered)
        )
    except OSError:  # the folder may not be writable; the message then does without the table
        return None
    return path


def write_left_out(export: Export, path: Path) -> None:
    """Writes as CSV which files of the export are not stored, and why; nothing where all are."""
    if export.left_out:
        rows = ((left.path, left.kind, left.well, left.channel) for left in export.left_out)
        _write_csv(path, ("path", "kind", "well", "channel"), rows)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomic(path, text.getvalue(), durable=False)
