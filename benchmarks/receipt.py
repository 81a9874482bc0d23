"""What `validate --receipt` costs beside plain reading of both sides, in seconds of CPU.

    python benchmarks/receipt.py [--old CHECKOUT] [--made FOLDER] [--fields 6] [--edge 2160] [--rounds 3]

Converts made-up Harmony exports of LZW and of deflate (9 planes a field; `convert.py` makes them), and writes
their receipts by the command line, with one process. `--old` is a checkout of an earlier build, whose
receipts are written in the same turns.

Plain reading is what nothing can do without: each source file is decoded once by Pillow, each field of the
plate once by zarr-python, and both are hashed. It is measured in a process of its own, warm, by the part.
A field is what all fields take more than one does; the rest is start-up and the export's index. Medians of
the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from convert import OURS, environment_of, images_of, measured

PARTS = ("decode the files", "decode the shards", "hash the files", "hash the pixels")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    absolute: Callable[[str], Path] = lambda text: Path(text).resolve()  # noqa: E731
    words.add_argument("--old", type=absolute, help="checkout of an earlier build")
    words.add_argument("--made", type=absolute, help="keeps the made-up exports there")
    words.add_argument("--fields", type=int, default=6)
    words.add_argument("--edge", type=int, default=2160)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--parts", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.parts:
        print(json.dumps(_parts(*given.parts)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = given.made or folder / "made"
        if not made.exists():
            size = ["--make", str(made), "--fields", str(given.fields), "--edge", str(given.edge)]
            _run(OURS, folder, str(OURS / "benchmarks" / "convert.py"), *size)
        for kind in ("lzw", "deflate"):
            _compare(kind, made / kind, folder / kind, given)


def _compare(kind: str, export: Path, folder: Path, given: argparse.Namespace) -> None:
    """Prints what the receipts of one export cost."""
    folder.mkdir()
    builds = {"ours": OURS} | ({"earlier build": given.old} if given.old else {})
    plates = {count: folder / f"{count}.zarr" for count in (1, given.fields)}
    first = images_of(export)[0].name  # r02c02f01…
    one = f"fields=[{chr(64 + int(first[1:3]))}{first[4:6]}/{int(first[7:9])}]"
    for count, out in plates.items():
        keys = [f"source={export}", f"out={out}", f"site.runs={folder}/runs", "site.tracking=none"]
        _run(OURS, folder, "-m", "hpc_isl.submit", "convert", *keys, *([one] if count == 1 else []))
    rounds = []
    for _ in range(given.rounds):
        took = json.loads(_run(OURS, folder, __file__, "--parts", str(export), str(plates[given.fields]))[0])
        for build, tree in builds.items():
            for count, out in plates.items():
                words = ("-m", "hpc_isl.submit", "validate", str(out), "--receipt")
                # A part of an export is no complete receipt, which is an exit code of its own.
                took[f"{build} {count}"] = _run(tree, folder, *words, codes=(0, 1))[1]
        rounds.append(took)
    found = {key: median(each[key] for each in rounds) for key in rounds[0]}
    plain = sum(found[part] for part in PARTS) / given.fields
    parts = ", ".join(f"{part} {found[part] / given.fields:.3f}" for part in PARTS)
    print(f"\n{kind}: {given.fields} fields; CPU seconds a field: {parts}; plain reading {plain:.3f}")
    for build in builds:
        whole, alone = found[f"{build} {given.fields}"], found[f"{build} 1"]
        field = (whole - alone) / max(given.fields - 1, 1)
        share = f"{field / plain:.2f} of plain reading"
        start = f"start and index {alone - field:.2f} s"
        print(f"  {build}: {whole:.2f} s; a field {field:.3f} s, {share}; {start}", flush=True)


def _run(tree: Path, folder: Path, *words: str, codes: tuple[int, ...] = (0,)) -> tuple[str, float]:
    """Returns what a command of one process prints, and its CPU seconds."""
    one_cpu = ["taskset", "-c", "0"]  # a receipt takes a process for each CPU that it may use
    command = [*one_cpu, sys.executable, *words]
    if codes == (0,):
        return measured(command, environment_of(tree, folder))[:2]
    shell = f'"$@"; test $? -le {max(codes)}'
    return measured(["sh", "-c", shell, "sh", *command], environment_of(tree, folder))[:2]


def _parts(export: Path, plate: Path) -> dict[str, float]:
    """Returns CPU seconds of each part of plain reading, over all fields."""
    import numpy as np
    import zarr
    from PIL import Image

    def decode_file(path: Path) -> None:
        with Image.open(path) as image:
            np.asarray(image)

    def hash_file(path: Path) -> None:
        with path.open("rb") as stream:
            hashlib.file_digest(stream, "sha256")

    def decode_shards(path: Path) -> np.ndarray:
        return np.asarray(zarr.open_array(path, mode="r")[...])

    images = images_of(export)
    arrays = sorted(path.parent for path in plate.glob("[A-Z]/*/*/0/zarr.json"))
    pixels = [decode_shards(arrays[0])] * len(arrays)
    works = (decode_file, images), (decode_shards, arrays), (hash_file, images), (_hash, pixels)
    return {name: _least(*work) for name, work in zip(PARTS, works, strict=True)}


def _hash(pixels: Any) -> None:
    hashlib.sha256(pixels.data)


def _least(work: Callable[[Any], object], things: Sequence[Any]) -> float:
    """Returns the CPU seconds of work on all things, the second time, when it is warm, or the first."""
    times = []
    for _ in range(2):
        start = time.process_time()
        for thing in things:
            work(thing)
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
