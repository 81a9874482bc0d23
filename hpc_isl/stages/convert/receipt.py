"""A receipt of a conversion: every file of the export, and whether, and where, the plate holds it.

It trusts neither the conversion nor the libraries that it used: source files are decoded by Pillow, where it
can, and pixels are read back from the finished plate by zarr-python.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hpc_isl import __version__
from hpc_isl.errors import UserError, many
from hpc_isl.files import now, read_json, write_atomic
from hpc_isl.plates import packed
from hpc_isl.plates.index import Index
from hpc_isl.plates.readers import detect
from hpc_isl.plates.readers.folder import IMAGES
from hpc_isl.plates.store import open_plate
from hpc_isl.recipes.plates import ConvertRecipe
from hpc_isl.stages.convert.read_back import FieldCheck, FieldResult, compare_field
from hpc_isl.stages.convert.record import RECORD, harmful
from hpc_isl.stages.convert.survey import Survey, survey_export
from hpc_isl.stages.shared.parallel import in_parallel

VERBATIM = "source"  # the folder of the plate that holds the export's small files
MOST_VERBATIM = 64 << 20  # bytes
EQUAL, COPIED, ABSENT, WRONG = "stored equal", "stored verbatim", "not stored", "FAILED"
RESAMPLED = "stored resampled"  # equal after the resampling that convert does too: no original
# Images that an export holds beside its planes, and that nobody misses in a plate.
BY_DESIGN = {
    "copy", "copy as TIFF", "thumbnail", "projection", "overlay", "shading image", "montage", "ignored image"
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A file of the export.

    Attributes:
        file: its path below the export.
        state: `EQUAL`, `RESAMPLED`, `COPIED`, `ABSENT` or `WRONG`.
        where: the planes of it that the plate holds, or the copy.
        why: the reason where it is not stored, or wrong.
        decoder: what decoded it for the comparison; "own" is what the conversion used too.
        assignment: "independent" where the file itself states its well, and it is that of the plate; else
            "index only".
    """

    file: str = ""
    bytes: int = 0
    sha256: str = ""
    state: str = ABSENT
    where: str = ""
    why: str = ""
    decoder: str = ""
    assignment: str = ""


def receipt_paths(plate: Path) -> tuple[Path, Path]:
    """Returns where the receipt of a plate lies: its table of files, and its verdict.

    A packed plate has the receipt of the folder that it was made of.
    """
    base = plate.resolve()
    base = base.with_suffix(".zarr") if packed.split(base) else base
    return base.with_name(f"{base.name}.receipt.csv"), base.with_name(f"{base.name}.receipt.json")


def write_receipt(path: Path, recipe: ConvertRecipe | None, processes: int) -> dict[str, Any]:
    """Compares a plate with the export it was made of, and writes the receipt beside it; returns the verdict.

    Small files that are no images are copied into the plate, below `VERBATIM`.

    Args:
        recipe: of the conversion, where the plate does not hold it.

    Raises:
        UserError: the plate was not made by convert, is not finished, or its export is not there, is another
            one, or is OME-Zarr.
    """
    packed.refuse_packed(path, "validate --receipt")  # files of the export are copied into it
    index = open_plate(path)
    conversion = recipe or _recipe_of(index)
    survey = survey_export(conversion.model_copy(update={"out": index.path}))  # it may have been moved
    if survey.state != "finished" or survey.todo:
        raise UserError(
            f"{path}: {many(len(survey.todo), 'field', 'is', 'are')} not stored yet; "
            "the same convert command resumes"
        )
    if any(file.path.is_dir() for field_files in survey.export.files.values() for file in field_files):
        source = " and ".join(map(str, survey.recipe.sources))
        raise UserError(f"{source} is OME-Zarr itself: receipts are of instruments' files")
    names, files = tuple(channel.name for channel in index.plate.channels), survey.export.files
    results = _compare(
        [
            FieldCheck(field.key, index.image(field.key) / "0", files.get(field.key, ()), names)
            for field in index.plate.fields
        ],
        processes,
    )
    rows = list(_rows(index, survey, results, processes))
    verdict = _verdict(index, survey, rows, results)
    table, summary = receipt_paths(path)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(asdict(rows[0])) if rows else ["file"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    write_atomic(table, stream.getvalue())
    write_atomic(summary, json.dumps(verdict, indent=1))
    return verdict


def check_receipt(path: Path, processes: int) -> list[str]:
    """Returns in what a plate differs from its receipt; nothing where the receipt still holds.

    Pixels and copied files alone count: metadata may be corrected by `set`, and labels come and go.

    Raises:
        UserError: there is no receipt beside the plate.
    """
    table, summary = receipt_paths(path)
    verdict = read_json(summary)
    if verdict is None or not table.is_file():
        raise UserError(f"{path}: no receipt ({summary.name} and {table.name}) lies beside it")
    index = open_plate(path)
    tasks = [FieldCheck(field.key, index.image(field.key) / "0") for field in index.plate.fields]
    digests = {str(result.key): result.digest for result in _compare(tasks, processes)}
    problems = []
    for key, digest in verdict["fields"].items():
        if key not in digests:
            problems.append(f"{key}: the field is gone")
        elif digests[key] != digest:
            problems.append(f"{key}: its pixels are others than when the receipt was written")
    problems += [
        f"{key}: a field that the receipt does not know" for key in digests.keys() - verdict["fields"].keys()
    ]
    with table.open(newline="") as stream:
        for row in csv.DictReader(stream):
            if row["state"] == COPIED and _sha256(index.path / VERBATIM / row["file"]) != row["sha256"]:
                problems.append(f"{VERBATIM}/{row['file']}: gone, or another file")
    return problems


def _recipe_of(index: Index) -> ConvertRecipe:
    record = (read_json(index.path / RECORD) or {}).get("recipe") if index.adopted is None else None
    if record is None:
        raise UserError(f"{index.path} does not say how it was converted; name the run of convert: --run RUN")
    return ConvertRecipe(**record, out=index.path)


def _compare(tasks: list[FieldCheck], processes: int) -> list[FieldResult]:
    results = in_parallel(compare_field, tasks, processes, threading.Event())
    hidden = not sys.stderr.isatty()
    return list(tqdm(results, total=len(tasks), unit=" fields", leave=False, disable=hidden))


# ---------------------------------------------------------------- the files


def _rows(index: Index, survey: Survey, results: list[FieldResult], threads: int) -> Iterator[Row]:
    """Yields a row for each file below the export; copies small files that are no images into the plate."""
    sources = [source.resolve() for source in survey.recipe.sources]
    # Exports that were merged may hold files of one name.
    root = sources[0] if len(sources) == 1 else Path(os.path.commonpath(sources))
    compared = _by_file(results)
    reasons = {entry.path.resolve(): entry.kind for entry in survey.export.left_out}
    recipe = survey.recipe
    if any(part is not None for part in (recipe.fields, recipe.channels, recipe.times, recipe.planes)):
        whole = detect.read(recipe).files.values()  # the survey has what was asked for alone
        reasons |= dict.fromkeys((file.path.resolve() for files in whole for file in files), "not asked for")
    paths = [(path, path.resolve(), folder) for folder in sources for path in _files_below(folder)]
    outside = {
        path for path, resolved, folder in paths if path.is_symlink() and not resolved.is_relative_to(folder)
    }
    inside = [path for path, *_ in paths if path not in outside]
    with ThreadPoolExecutor(threads) as pool:  # hashing leaves Python to other threads
        digests = dict(zip(inside, pool.map(_sha256, inside), strict=True))
    for path, resolved, _ in paths:
        row = Row(path.relative_to(root).as_posix(), path.lstat().st_size, digests.get(path, ""))
        if path in outside:
            yield replace(row, why="a link that leads out of the export")
            continue
        if resolved in compared:
            yield replace(compared[resolved], file=row.file, bytes=row.bytes, sha256=row.sha256)
        elif resolved in reasons:
            yield replace(row, why=reasons[resolved])
        elif path.suffix.lower() in IMAGES:
            yield replace(row, why="an image of no plane")
        elif row.bytes > MOST_VERBATIM:
            yield replace(row, why="no image, and large")
        else:
            yield _copy_verbatim(row, path, index.path / VERBATIM / row.file)


def _by_file(results: list[FieldResult]) -> dict[Path, Row]:
    """Returns what comparing fields has shown of each file."""
    by_path: dict[Path, list[FieldResult]] = defaultdict(list)  # a file may hold planes of several fields
    for result in results:
        for path in result.stored.keys() | result.faults.keys():
            by_path[path].append(result)
    return {path.resolve(): _compared_file(path, parts) for path, parts in by_path.items()}


def _compared_file(path: Path, parts: list[FieldResult]) -> Row:
    """Returns what comparing the fields of which a file holds planes has shown of it."""
    places = [place for part in parts for place in part.stored.get(path, ())]
    pages = max(part.pages.get(path, 0) for part in parts)
    unstored = f"{pages - len(places)} of its {pages} planes are not stored" if pages > len(places) else ""
    why = next((part.faults[path] for part in parts if path in part.faults), unstored)
    return Row(
        state=WRONG if why else RESAMPLED if any(path in part.resampled for part in parts) else EQUAL,
        where="; ".join(places),
        why=why,
        decoder=next((part.decoders[path] for part in parts if path in part.decoders), ""),
        assignment="independent" if all(path in part.independent for part in parts) else "index only",
    )


def _copy_verbatim(row: Row, path: Path, copy: Path) -> Row:
    """Copies a file into the plate, unless it is there, and reads it back."""
    if _sha256(copy) != row.sha256:
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(copy, path.read_bytes())
    read_back = _sha256(copy) == row.sha256
    where = copy.relative_to(copy.parents[len(Path(row.file).parts)]).as_posix()
    return replace(row, state=COPIED if read_back else WRONG, where=where)


def _files_below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders.sort()
        linked = [name for name in folders if (Path(root) / name).is_symlink()]
        yield from (Path(root) / name for name in sorted([*files, *linked]))


def _sha256(path: Path) -> str:
    """Returns the digest of a file; "" where there is none."""
    try:
        content = packed.opened(path)
        with content if isinstance(content, io.BytesIO) else path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return ""


# ---------------------------------------------------------------- the verdict


def _verdict(index: Index, survey: Survey, rows: list[Row], results: list[FieldResult]) -> dict[str, Any]:
    """Returns what the receipt says as a whole: complete only if nothing failed and nothing was skipped."""
    states = Counter(row.state for row in rows)
    reasons = Counter(row.why for row in rows if row.state == ABSENT)
    open_points = [f"{row.file}: {row.why or row.state}" for row in rows if row.state == WRONG]
    open_points += [
        f"{many(n, 'file')} not stored: {why}" for why, n in sorted(reasons.items()) if why not in BY_DESIGN
    ]
    if states[RESAMPLED]:
        count = many(states[RESAMPLED], "file")
        open_points.append(f"{count} {RESAMPLED}: the plate does not hold the pixels of the file")
    open_points += [f"{problem.key}: {problem.text}" for problem in harmful(index.problems)]
    fields = {
        str(result.key): result.digest for result in sorted(results, key=lambda result: str(result.key))
    }
    losses = ["the names, dates and headers of the image files, but for what the plate's metadata hold"]
    if states[RESAMPLED]:
        losses.append(f"{many(states[RESAMPLED], 'file')}: pixels before they were resampled")
    losses += [f"{many(n, 'file')}: {why}" for why, n in sorted(reasons.items())]
    return {
        "verdict": "INCOMPLETE" if open_points else "COMPLETE",
        "open": open_points,
        "files": dict(states),
        "not stored": dict(reasons),
        "decoders": dict(Counter(row.decoder for row in rows if row.decoder)),
        "assignment": dict(Counter(row.assignment for row in rows if row.assignment)),
        "only the originals hold": losses,
        "source": " and ".join(map(str, survey.recipe.sources)),
        "plate": str(index.path),
        "written": now(),
        "hpc_isl": __version__,
        "digest": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest(),
        "fields": fields,
    }
