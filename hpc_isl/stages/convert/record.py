"""The records of a conversion: in the plate's folder which one writes it, and the problems of its export."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hpc_isl import __version__
from hpc_isl.errors import UserError
from hpc_isl.files import read_json, write_atomic
from hpc_isl.plates.atomic_directory import MARK, reserved, translate_write_errors
from hpc_isl.plates.plate import NOT_IMAGED, Export, FieldKey, Problem
from hpc_isl.recipes.plates import ConvertRecipe

RECORD = "index/conversion.json"
LOCK = "index/conversion.lock"
SHOWN = 20  # fields on one screen
State = Literal["new", "unfinished", "finished"]


def state_of(out: Path, digest: str) -> State:
    """Returns how far the plate of this digest is at `out`.

    Raises:
        UserError: `out` holds something else.
    """
    if not out.exists():
        return "new"
    record = read_json(out / RECORD) if out.is_dir() else None
    if record is None:
        # A conversion that was killed before its record leaves nothing but these.
        lock_paths = {out / "index", out / LOCK}
        foreign = any(path not in lock_paths and MARK not in path.name for path in out.rglob("*"))
        if out.is_dir() and not foreign:
            return "new"
        raise UserError(f"out: {out} exists already and was not made by convert; choose another out")
    finished = (out / "zarr.json").exists()  # written last
    if record["digest"] != digest:
        content = "another plate" if finished else "a half-converted plate"
        raise UserError(
            f"out: {out} holds {content}, from {record['source']} or by another recipe; choose another out"
        )
    return "finished" if finished else "unfinished"


def recorded_digest(out: Path) -> str | None:
    """Returns the digest of the plate that was begun at `out`; None: convert has begun none."""
    return (read_json(out / RECORD) or {}).get("digest") if out.is_dir() else None


@contextmanager
def locked(out: Path, digest: str, recipe: ConvertRecipe) -> Iterator[None]:
    """Reserves `out` for this process, until it ends, and records which conversion writes it."""
    with reserved(out, LOCK, "out", "converting to"):
        recipe_facts = recipe.model_dump(mode="json", exclude={"out"})
        source = " and ".join(map(str, recipe.sources))
        record = {"digest": digest, "source": source, "recipe": recipe_facts, "hpc_isl": __version__}
        with translate_write_errors(out, 4096):
            write_atomic(out / RECORD, json.dumps(record, indent=1))
        yield


# ---------------------------------------------------------------- problems of the export


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
    written_table = write_table(problems, table)
    raise UserError("\n".join([
        f"{len(_fields(problems))} of {fields} fields are damaged: {counted(problems)}",
        *listing(problems),
        *([f"all of them: {written_table}"] if written_table else []),
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
        rows = ((file.path, file.kind, file.well, file.channel) for file in export.left_out)
        _write_csv(path, ("path", "kind", "well", "channel"), rows)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomic(path, stream.getvalue(), durable=False)
