"""What a 384-well plate costs: operations of the network, seconds of CPU for the rest, bytes and files.

    python benchmarks/scale.py [--objects 500] [--repeats 7]

One field of 2160² in two channels is measured on one CPU, times 384 wells of 9 fields. The network
is not run: its operations are counted, which are the same on any machine, and what follows it is given the
maps that a perfect network would say of so many round cells. Seconds are those of the CPU, of all threads.
`segment.py` measures whole runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from segment import flops, held_to

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from made_up_screen import save_model, write_screen

from hpc_isl.objects.distance import distance_map
from hpc_isl.plates.store import Index, open_plate
from hpc_isl.recipes.load import load
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.recipes.training import NetRecipe
from hpc_isl.run import Run
from hpc_isl.stages.segment import files
from hpc_isl.stages.segment.field import _facts, _keep, measured
from hpc_isl.stages.segment.inputs import segment_inputs
from hpc_isl.stages.segment.segmenter import FieldPrediction, Segmenter, load_segmenter
from hpc_isl.stages.segment.stage import _write_schema, plan
from hpc_isl.stages.shared.decoding import decode

EDGE, FIELDS = 2160, 384 * 9
ENCODERS = ("densenet121", "resnet34", "resnet18", "tu-mobilenetv1_100")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--objects", type=int, default=500)
    words.add_argument("--repeats", type=int, default=7)
    given = words.parse_args()
    megapixels = EDGE**2 / 1e6
    for encoder in ENCODERS:
        each = flops(NetRecipe(encoder=encoder, weights=None)) / 1e12
        plate = each * megapixels * FIELDS / 1e3
        print(f"{encoder:<20}{each:6.2f} TFLOP a megapixel   {plate:6.1f} PFLOP a plate")
    with tempfile.TemporaryDirectory() as name, held_to(1):
        folder = Path(name)
        save_model(folder / "runs" / "finetune" / "cells")
        write_screen(folder / "P.zarr", ["B02"], 1, (EDGE, EDGE), spacing=96)
        bench, index, work = _bench(folder)
        maps = cells(given.objects)
        rounds = [_round(bench, index, work, maps) for _ in range(given.repeats)]
        found = {what: median(each[what] for each in rounds[1:]) for what in rounds[0]}
        print(f"one field of {EDGE}², {found.pop('objects'):.0f} objects, one CPU:")
        for what, seconds in found.items():
            print(f"  {what:<18}{1000 * seconds:8.0f} ms   {seconds * FIELDS / 3600:6.2f} CPU hours a plate")
        total = sum(found.values())
        print(f"  {'all of it':<18}{1000 * total:8.0f} ms   {total * FIELDS / 3600:6.2f} CPU hours a plate")
        _sizes(index, work)


def _bench(folder: Path) -> tuple[Segmenter, Index, files.FieldTask]:
    keys = [f"model={folder}/runs/finetune/cells", f"plates=[{folder}/P.zarr]", "labels=found"]
    run = Run(folder / "runs" / "segment" / "one")
    run.folder.mkdir(parents=True)
    recipe = plan(load("segment", None, keys)).recipe
    run.recipe.write_text(to_yaml(recipe))
    _write_schema(segment_inputs(recipe), run.folder)
    index = open_plate(folder / "P.zarr")
    work = files.FieldTask(run.folder, index.path, "P", "P", index.plate.fields[0].key, "0", "0")
    return load_segmenter(run.folder), index, work


def cells(count: int) -> NDArray[np.float32]:
    """Distance map and logit of the mask (2, y, x) of round cells that touch here and there."""
    rng = np.random.default_rng(0)
    labels = np.zeros((EDGE, EDGE), np.uint32)
    ys, xs = np.ogrid[:EDGE, :EDGE]
    for number, (y, x) in enumerate(rng.uniform(0, EDGE, (count, 2)), start=1):
        radius = rng.uniform(20, 32)
        box = tuple(slice(max(int(v - radius), 0), int(v + radius) + 2) for v in (y, x))
        inside = (ys[box[0]] - y) ** 2 + (xs[:, box[1]] - x) ** 2 < radius**2
        labels[box][inside & (labels[box] == 0)] = number
    return np.stack([distance_map(labels), np.where(labels > 0, 5, -5)]).astype(np.float32)


def _round(
    bench: Segmenter, index: Index, work: files.FieldTask, maps: NDArray[np.float32]
) -> dict[str, float]:
    times: dict[str, float] = {}

    def timed(what: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = call()
        times[what] = time.process_time() - start
        return result

    reader = bench.reader(index.path, work.key)
    timed("reading", lambda: reader.sources(0))
    labels = timed("watershed", lambda: decode(maps, bench.rule)[0])
    seen = [FieldPrediction(maps, None, labels)]
    table = timed("features", lambda: measured(bench, reader, work, seen))
    timed("focus", lambda: reader.focus(0))
    timed("writing", lambda: _keep(bench, reader, work, seen, table))
    timed("hash and record", lambda: files.write_record(work, _facts(bench, reader, work, seen, table)))
    return {"objects": float(labels.max()), **times}


def _sizes(index: Index, work: files.FieldTask) -> None:
    labels = index.image(work.key) / "labels" / "found"
    of_labels = [path.stat().st_size for path in labels.rglob("*") if path.is_file()]
    of_run = [path.stat().st_size for path in (work.table, work.record)]
    for what, sizes in {"labels": of_labels, "table and record": of_run}.items():
        print(
            f"{what:<18}{sum(sizes) / 1e3:8.0f} kB in {len(sizes)} files a field   "
            f"{sum(sizes) * FIELDS / 1e9:6.2f} GB in {len(sizes) * FIELDS:,} files a plate"
        )


if __name__ == "__main__":
    main()
