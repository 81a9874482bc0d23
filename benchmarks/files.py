"""How many files plates and the runs that segment them are, before and after they are gathered and packed.

    python benchmarks/files.py [--fields 3456] [--plates 2000] [--together 20]

Three small runs are segmented through the command line: of one plate, of one with more fields, and of two
plates. Files grow with runs, plates and fields alone, so three counts tell what each of them adds, and what
whole plates of so many fields are: `--together` of them to a run. A run with files of each field, as earlier
versions left it, is the same run with its gathered files taken apart.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from field_files import spread
from made_up_screen import save_model, write_screen

RUNS = ((1, 2), (1, 6), (2, 2))  # plates, and fields of each
Counts = dict[str, int]
"""What the files are -> how many there are."""


def main(argv: list[str] | None = None) -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--fields", type=int, default=3456, help="of a plate")
    words.add_argument("--plates", type=int, default=2000, help="of a campaign")
    words.add_argument("--together", type=int, default=20, help="plates to a run")
    given = words.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        save_model(Path(name) / "runs" / "finetune" / "cells")
        counts = [counted(Path(name) / f"{p} of {f}", Path(name), p, f) for p, f in RUNS]
    factors = np.array([(1, plates, plates * fields) for plates, fields in RUNS])
    print(
        f"{'':<44}{'a run':>8}{'a plate':>9}{'a field':>9}{given.fields:>10,} fields{given.plates:>9,} plates"
    )
    runs = given.plates / given.together
    for what in counts[0]:
        parts = np.linalg.solve(factors, [own[what] for own in counts])
        one = parts @ (1, 1, given.fields)
        all_of_them = parts @ (runs, given.plates, given.plates * given.fields)
        adds = "".join(f"{part:>9.1f}" for part in parts)
        print(f"{what:<43}{adds}{one:>17,.0f}{all_of_them:>16,.0f}")


def counted(folder: Path, root: Path, plates: int, fields: int) -> Counts:
    """Segments so many plates of so many fields, and counts files."""
    paths = [folder / f"P{number}.zarr" for number in range(1, plates + 1)]
    for path in paths:
        write_screen(path, ["B02", "C03"], fields // 2)
    images = sum(map(files, paths))
    name = folder.name.replace(" ", "-")
    keys = ("model=cells", f"plates={folder}/P*.zarr", "labels=found", "--name", name, "site.workers=1")
    submit(root, "segment", *keys, "site.memory=3G", "site.tracking=none")
    labels, run = sum(map(files, paths)) - images, root / "runs" / "segment" / name
    counts = {"images": images, "labels": labels, "the run": files(run)}
    for path in paths:
        submit(root, "pack", str(path))
    counts["plates with labels, packed"] = len(list(folder.glob("*.ozx")))
    counts["packed plates and the run"] = counts["plates with labels, packed"] + counts["the run"]
    spread(run)
    counts["the run, with files of each field"] = files(run)
    counts["plates as folders, with files of each field"] = images + labels + files(run)
    return counts


def files(folder: Path) -> int:
    # Without changes of the code that nobody has committed yet, which a run keeps too.
    return sum(path.is_file() and path.name != "code.diff" for path in folder.rglob("*"))


def submit(root: Path, *words: str) -> None:
    command = [sys.executable, "-m", "hpc_isl.submit", *words]
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"HPC_ISL_RUNS": f"{root}/runs"}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
