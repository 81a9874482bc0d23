"""How long `status` of many runs takes, and `segment` over many plates until its first field is computed.

    python benchmarks/planning.py [--runs 1000] [--plates 100] [--wells 384] [--fields 9]

The runs are folders of jobs that a Slurm has, and then of runs that are done; a program that prints a queue
stands in for Slurm, and counts how often it is asked. The process that hands out fields is measured with
the task of each field, and with what it keeps of each that is done. The plates have an index and folders
for their images, and no pixels; all share one set of folders, so what the disk has to look up is in its
cache: a network disk takes longer. Seconds of CPU hold better than seconds where others compute too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from made_up_screen import save_model, write_screen

from hpc_isl.files import now
from hpc_isl.plates import index as plate_index
from hpc_isl.plates import index_table, metadata, ngff
from hpc_isl.plates.plate import FieldKey, Plate
from hpc_isl.plates.store import open_plate

# The queue that stands in for Slurm's: every job runs, and each question is a line in a file.
SQUEUE = """#!{python}
import sys
with open({asked!r}, "a") as stream:
    stream.write("squeue\\n")
if "-j" in sys.argv:
    for job in sys.argv[sys.argv.index("-j") + 1].split(","):
        print(f"{{job}}|RUNNING|None|node{{job}}|1:00:00|{folder}/segment/run{{job}}")
"""


def main(argv: list[str] | None = None) -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--runs", type=int, default=1000)
    words.add_argument("--plates", type=int, default=100)
    words.add_argument("--wells", type=int, default=384)
    words.add_argument("--fields", type=int, default=9, help="of each well")
    given = words.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plates = write_plates(folder / "plates", given.plates, given.wells, given.fields)
        save_model(folder / "runs" / "finetune" / "cells")
        keys = [f"model={folder}/runs/finetune/cells", "labels=found"]
        print(f"{'':<40}{'s':>8}{'CPU s':>8}{'MB':>7}")
        for what, (command, last) in {
            "segment --dry-run": ((*CLI, "segment", *keys), ("--dry-run",)),
            "until fields are handed out": (("-c", DRIVER, *keys), ()),
        }.items():
            one, every = (
                called(folder, *command, f"plates={folder}/plates/{names}.zarr", *last)
                for names in ("P000", "*")
            )
            line(f"{what}, 1 plate", one)
            line(f"{what}, {given.plates} plates", every)
            each = [(whole - start) / (given.plates - 1) for whole, start in zip(every, one, strict=True)]
            line("  each further plate", each)
            fields = given.wells * given.fields
            print(f"  each further field: {1e6 * each[1] / fields:.0f} µs, {1e3 * each[2] / fields:.1f} kB")
        asked = write_runs(folder, given.runs, plates)
        for what in ("running", "done"):
            line(f"status, {given.runs:,} runs, {what}", called(folder, *CLI, "status"))
            print(f"  Slurm was asked {len(asked.read_text().splitlines())} times")
            asked.write_text("")
            for run in (folder / "runs" / "segment").iterdir():
                done = {"attempt": 0, "time": now(), "figures": {"objects": 500, "fields": 9}, "made": {}}
                (run / "done").mkdir(exist_ok=True)
                (run / "done" / "segment.json").write_text(json.dumps(done))


CLI = ("-m", "hpc_isl.submit")
Cost = tuple[float, float, float]
"""Seconds, seconds of CPU, and the peak of memory in MB."""
# What a run does before its first field is computed, and what it keeps of fields that are done.
DRIVER = """
import sys
from pathlib import Path
from hpc_isl.recipes.load import load
from hpc_isl.stages.segment.files import brief
from hpc_isl.stages.segment.inputs import segment_inputs
from hpc_isl.stages.segment.stage import _tasks, plan
inputs = segment_inputs(plan(load("segment", None, sys.argv[1:])).recipe)
tasks = list(_tasks(inputs, Path("run")))
facts = {"objects": 500, "dropped": [3], "device": "cpu AVX2 fp32", "hash": "0" * 64, "focus": [{}]}
rows = [brief(task, facts | {"fingerprint": task.fingerprint}) for _, task in tasks]
"""


def line(what: str, cost: Sequence[float]) -> None:
    print(f"{what:<40}{cost[0]:>8.2f}{cost[1]:>8.2f}{cost[2]:>7.0f}", flush=True)


# A process counts the memory of the one that started it as its own: so a small one is between.
STARTER = """
import resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)
"""


def called(folder: Path, *words: str) -> Cost:
    """Returns what a call of Python costs."""
    path = f"{folder}/bin:{os.environ['PATH']}"
    environment = os.environ | {"HPC_ISL_RUNS": f"{folder}/runs", "PATH": path}
    command = [sys.executable, "-c", STARTER, sys.executable, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    code, took, cpu, peak = done.stdout.split()
    if code != "0":
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    return float(took), float(cpu), float(peak)


# ---------------------------------------------------------------- plates without pixels


def write_plates(folder: Path, count: int, wells: int, fields: int) -> list[Path]:
    """Writes one plate whose fields are all measured alike, and links of its images for the others."""
    real = write_screen(folder / "one", ["B02"], 1)
    rows = "ABCDEFGHIJKLMNOP"
    names = [f"{row}{column:02}" for row in rows for column in range(1, 25)][:wells]
    keys = [FieldKey(well, str(field)) for well in names for field in range(1, fields + 1)]
    made = tuple(replace(real.plate.fields[0], key=key) for key in keys)
    plate = replace(real.plate, rows=tuple(rows), columns=tuple(f"{n:02}" for n in range(1, 25)), fields=made)
    first = folder / "P000.zarr"
    (first / "index").mkdir(parents=True)
    table = pq.read_table(real.path / index_table.FILE).take([0] * len(keys))
    for column, texts in {"well": [k.well for k in keys], "name": [k.name for k in keys]}.items():
        table = table.set_column(table.schema.get_field_index(column), column, pa.array(texts))
    pq.write_table(table, first / index_table.FILE, compression="zstd")
    _write_group(first, plate)
    for key in keys:
        (plate_index.image_path(first, plate, key) / "0").mkdir(parents=True)
    shutil.rmtree(folder / "one")
    paths = [first]
    for number in range(1, count):
        path = folder / f"P{number:03}.zarr"
        shutil.copytree(first / "index", path / "index")
        _write_group(path, replace(plate, name=path.stem))
        for row in {key.well[0] for key in keys}:
            (path / row).symlink_to(first / row)
        paths.append(path)
    assert len(open_plate(paths[-1]).plate.fields) == len(keys)
    return paths


def _write_group(path: Path, plate: Plate) -> None:
    ours = {"plate": metadata.plate_facts(plate), "plate_map": {}, "problems": []}
    metadata.write_group(path, ngff.attributes(ngff.plate_group(plate)), ours)


# ---------------------------------------------------------------- runs


def write_runs(folder: Path, count: int, plates: list[Path]) -> Path:
    """Writes folders of runs that a queue says are running; returns the file that counts its questions."""
    runs, asked, program = folder / "runs", folder / "asked.txt", folder / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(SQUEUE.format(python=sys.executable, asked=str(asked), folder=runs))
    program.chmod(0o755)
    asked.write_text("")
    for number in range(1, count + 1):
        run, plate = runs / "segment" / f"run{number}", plates[number % len(plates)]
        attempt = run / "attempts" / "0"
        attempt.mkdir(parents=True)
        recipe = f"model: {runs}/finetune/cells\nplates: [{plate}]\nlabels: found{number}\n"
        (run / "recipe.yaml").write_text(recipe)
        record = {"inputs": {plate.stem: "a fingerprint"}, "plates": [str(plate)], "made": now()}
        (run / "record.json").write_text(json.dumps(record))
        sent = {"executor": "slurm", "job": str(number), "folder": str(run), "workdir": str(run), "host": "n"}
        (attempt / "submission.json").write_text(json.dumps(sent | {"slurm_conf": None, "cluster": None}))
        progress = {"done": 5, "total": 9, "unit": "fields", "metrics": {}}
        rank = {"rank": 0, "job": str(number), "node": "n", "start": now(), "heartbeat": now()}
        (attempt / "rank-0.json").write_text(json.dumps(rank | {"progress": progress}))
    return asked


if __name__ == "__main__":
    main()
