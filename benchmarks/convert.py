"""Conversion against its limit, decoding and codec alone, and against an earlier build, in seconds of CPU.

    python benchmarks/convert.py [--old CHECKOUT] [--real EXPORT] [--peers FOLDER] [--fields 6] [--edge 2160]
                                 [--rounds 3]
    python benchmarks/convert.py --plan     # only plans a plate of 31,104 files

Makes an export of LZW TIFFs and one of deflate TIFFs (9 planes a field), and converts each by the command
line as a user does, with one process and with two. `--old` is a checkout of an earlier build and `--real` a
Harmony export, which are converted in the same turns; so do ngio and ome-zarr-py (`convert_peers.py`), in
environments of their own, which uv makes in the folder `--peers` or finds there.

Seconds are those of all processes of a command, so that other jobs on the machine count little; memory is
that of the process that had most. Medians of the rounds. A field is what all fields take more than one does;
start-up and planning are what is left. The limit is a field's bytes read and decoded, its pyramid's chunks
compressed, and these bytes written, each alone and with nothing between.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median

# Nothing large is imported here, for a process that is started begins with the memory of this one.

OURS = Path(__file__).resolve().parents[1]
PLANES = 9
CHUNK, LEVEL = 256, 5
PARTS = ("decode", "codec", "write")
READING = ("tifffile==2026.3.3", "imagecodecs==2026.3.6")
PEERS = {"ngio": ("ngio==1.1.3", *READING), "ome-zarr": ("ome-zarr==0.18.0", *READING)}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    absolute: Callable[[str], Path] = lambda text: Path(text).resolve()  # noqa: E731
    words.add_argument("--old", type=absolute, help="checkout of an earlier build")
    words.add_argument("--real", type=absolute, help="a Harmony export, converted beside the made-up ones")
    words.add_argument("--made", type=absolute, help="keeps the made-up exports there")
    words.add_argument("--fields", type=int, default=6)
    words.add_argument("--edge", type=int, default=2160)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--peers", type=absolute, help="environments of ngio and ome-zarr-py")
    words.add_argument("--plan", action="store_true", help="only plans a plate of 31,104 files")
    words.add_argument("--parts", type=Path, help=argparse.SUPPRESS)
    words.add_argument("--make-large", type=Path, help=argparse.SUPPRESS)
    words.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.parts:
        print(json.dumps(_parts(given.parts)))
        return
    if given.make_large:
        _make_large(given.make_large)
        return
    if given.make:
        _make(given.make, given.fields, given.edge)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.plan:
            _plan(folder)
            return
        made = given.made or folder / "made"
        if not made.exists():
            _script(folder, "--make", str(made), "--fields", str(given.fields), "--edge", str(given.edge))
        for tree in filter(None, (OURS, given.old)):  # modules are compiled
            convert(tree, made / "lzw", folder / "warm.zarr", folder, 1, 1)
        for kind in ("lzw", "deflate"):
            _compare(kind, made / kind, folder, given, given.fields)
        if given.real:
            _compare(f"real, {given.real.name}", given.real, folder, given, 1)


def _compare(kind: str, export: Path, folder: Path, given: argparse.Namespace, fields: int) -> None:
    """Prints what one export takes."""
    builds = {"ours": OURS} | ({"earlier build": given.old} if given.old else {})
    rounds: list[dict[str, float]] = []
    for turn in range(given.rounds):
        took = json.loads(_script(folder, "--parts", str(export)))
        for build, tree in builds.items():
            for cpus, count in ((1, 1), (1, fields), (2, fields)) if fields > 1 else ((1, 1),):
                key, out = f"{build}, {cpus}, {count}", folder / f"{turn}.zarr"
                took[key], took[f"{key}, MB"] = convert(tree, export, out, folder, cpus, count)
        for peer in PEERS if given.peers else ():
            took[peer], took[f"{peer}, MB"] = _peer(peer, given.peers, export, folder / peer)
        rounds.append(took)
    found = {key: median(each[key] for each in rounds) for key in rounds[0]}
    limit = sum(found[part] for part in PARTS)
    parts = ", ".join(f"{part} {found[part]:.3f}" for part in PARTS)
    print(f"\n{kind}: {fields} fields; CPU seconds a field: {parts}; limit {limit:.3f}")
    by_tifffile = limit - found["decode"] + found["tifffile"]
    print(f"  with tifffile's decoding, {found['tifffile']:.3f}: limit {by_tifffile:.3f}")
    for build in builds:
        whole, one = found[f"{build}, 1, {fields}"], found[f"{build}, 1, 1"]
        line = f"  {build}, one process: {whole:.2f} s, {found[f'{build}, 1, {fields}, MB']:.0f} MB"
        if fields > 1:
            field, two = (whole - one) / (fields - 1), f"{build}, 2, {fields}"
            line += (
                f"; a field {field:.3f} s ({limit / field:.0%} of its limit, {by_tifffile / field:.0%} with "
            )
            line += f"tifffile's decoding), start {one - field:.2f} s"
            line += f"; two processes: {found[two]:.2f} s, {found[f'{two}, MB']:.0f} MB"
        print(line, flush=True)
    ours = found[f"ours, 1, {fields}"]
    others = {
        name: found[key]
        for key, name in ((f"earlier build, 1, {fields}", "earlier build"), *((peer, peer) for peer in PEERS))
        if key in found
    }
    for name, seconds in others.items():
        print(f"  {name}: {seconds:.2f} s, {seconds / ours:.2f} times ours", flush=True)


# ---------------------------------------------------------------- commands


def measured(command: list[str], environment: dict[str, str]) -> tuple[str, float, float]:
    """Returns what a command prints, its CPU seconds with its processes', and the MB of the largest."""
    # Elsewhere than in a checkout, which `python -m` would prefer to the build that PYTHONPATH names.
    elsewhere = tempfile.gettempdir()
    with subprocess.Popen(
        command, env=environment, cwd=elsewhere, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{printed}")
    return printed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


def environment_of(tree: Path, folder: Path) -> dict[str, str]:
    """Returns the environment of a build, with one place for its compiled modules."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(tree), "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}


def convert(tree: Path, export: Path, out: Path, folder: Path, cpus: int, fields: int) -> tuple[float, float]:
    """Returns CPU seconds of converting so many fields by the command line, and MB of its largest process."""
    keys = [f"source={export}", f"out={out}", f"site.cpus={cpus}", f"site.runs={folder}/runs"]
    if fields == 1:
        first = images_of(export)[0].name[:9]  # r02c02f01…
        keys.append(f"fields=[{chr(64 + int(first[1:3]))}{first[4:6]}/{int(first[7:9])}]")
    command = [sys.executable, "-m", "hpc_isl.submit", "convert", *keys, "site.tracking=none"]
    _, seconds, memory = measured(command, environment_of(tree, folder))
    shutil.rmtree(out)
    return seconds, memory


def _peer(peer: str, environments: Path, export: Path, out: Path) -> tuple[float, float]:
    """Returns CPU seconds of converting an export by another program, and MB of its process."""
    python = environments / peer / "bin" / "python"
    if not python.exists():
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "--python", sys.executable, environments / peer], check=True)
        subprocess.run(
            [uv, "pip", "install", "--compile-bytecode", "--python", python, *PEERS[peer]], check=True
        )
    script = str(Path(__file__).with_name("convert_peers.py"))
    _, seconds, memory = measured([str(python), script, peer, str(export), str(out)], dict(os.environ))
    shutil.rmtree(out)
    return seconds, memory


def _plan(folder: Path) -> None:
    """Prints what planning a plate of 384 wells × 9 fields × 9 planes takes; all files are links to one."""
    _script(folder, "--make-large", str(folder / "large"))
    words = [f"source={folder}/large", f"out={folder}/large.zarr", f"site.runs={folder}/runs", "--dry-run"]
    command = [sys.executable, "-m", "hpc_isl.submit", "convert", *words]
    for _ in range(2):  # modules are compiled by the first
        start = time.perf_counter()
        _, seconds, memory = measured(command, environment_of(OURS, folder))
    took = time.perf_counter() - start
    print(f"planning 31,104 files: {seconds:.1f} s of CPU, {took:.1f} s, {memory:.0f} MB")


def images_of(export: Path) -> list[Path]:
    """Returns the images of a Harmony export, in order; names begin with well and field, as r02c02f01."""
    return sorted(export.glob("[Ii]mages/r*.tiff"))


def _script(folder: Path, *words: str) -> str:
    return measured(
        [sys.executable, str(OURS / "benchmarks" / Path(__file__).name), *words], environment_of(OURS, folder)
    )[0]


# ---------------------------------------------------------------- exports


def _make(made: Path, fields: int, edge: int) -> None:
    """Writes the same planes as LZW, as the instrument does, and as deflate in strips."""
    import tifffile

    from hpc_isl.stages.synthetic import stage as synthetic

    partial = made.with_name(f"{made.name}.partial")
    synthetic.write(partial / "lzw", wells=fields, fields=1, size=edge, planes=PLANES // 3, empty=False)
    shutil.copytree(partial / "lzw", partial / "deflate", ignore=shutil.ignore_patterns("*.tiff"))
    for path in (partial / "lzw" / "Images").glob("*.tiff"):
        pixels = tifffile.imread(path)
        tifffile.imwrite(
            partial / "deflate" / "Images" / path.name, pixels,
            compression="zlib", rowsperstrip=16, metadata=None,
        )  # fmt: skip
    partial.rename(made)


def _make_large(folder: Path) -> None:
    """Writes the index of 384 wells × 9 fields × 3 planes × 3 channels, and links to one file for images."""
    import numpy as np
    import tifffile

    from hpc_isl.stages.synthetic import stage as synthetic
    from hpc_isl.stages.synthetic.layout import BRIGHTFIELD, CELLMASK, HOECHST, Well

    images = folder / "Images"
    images.mkdir(parents=True)
    plane = np.random.default_rng(0).poisson(300, (64, 64)).astype("uint16")
    tifffile.imwrite(folder / "plane.tiff", plane, compression="lzw", metadata=None)
    wells = [Well(row, column, "", 0.0, "") for row in range(16) for column in range(24)]
    channels = [BRIGHTFIELD, HOECHST, CELLMASK]
    (images / "Index.idx.xml").write_text(synthetic.index_text(wells, 384, 9, channels, [-4.0, 0.0, 4.0], 64))
    for well, field, z, channel in product(wells, range(1, 10), range(1, 4), range(1, 4)):
        os.link(folder / "plane.tiff", images / synthetic.file_name(well, field, z, channel))


# ---------------------------------------------------------------- the limit


def _parts(export: Path) -> dict[str, float]:
    """Returns CPU seconds of each part of one field alone, once it is warm."""
    import numpy as np
    import tensorstore as ts
    import tifffile
    from imagecodecs import blosc_encode

    images = [path for path in images_of(export) if path.name[:9] == images_of(export)[0].name[:9]]
    level = np.stack([tifffile.imread(path) for path in images])
    levels = [level]
    while max(levels[-1].shape[1:]) > CHUNK:
        levels.append(ts.downsample(ts.array(levels[-1]), [1, 2, 2], "mean").read().result())
    chunks = [chunk for level in levels for plane in level for chunk in _chunks(plane)]
    packed: list[bytes] = []

    def as_tifffile() -> None:
        for path in images:
            tifffile.imread(path, maxworkers=1)

    def encode() -> None:
        packed[:] = [blosc_encode(chunk, LEVEL, compressor="lz4", shuffle="bitshuffle") for chunk in chunks]

    def write() -> None:
        with tempfile.TemporaryFile() as file:
            for chunk in packed:
                file.write(chunk)

    works = {"tifffile": as_tifffile} | dict(zip(PARTS, (_decoding(images), encode, write), strict=True))
    return {name: _least(work) for name, work in works.items()}


def _decoding(images: list[Path]) -> Callable[[], None]:
    """Returns what reads these files and decodes them by the faster of libtiff and libdeflate."""
    import tifffile
    from imagecodecs import deflate_decode, tiff_decode

    with tifffile.TiffFile(images[0]) as tiff:
        page = tiff.pages[0]
        lzw, strip = page.compression == 5, page.rowsperstrip * page.shape[1] * page.dtype.itemsize
    places = {path: _segments(path) for path in images}

    def decode() -> None:
        for path, segments in places.items():
            content = path.read_bytes()
            if lzw:
                tiff_decode(content)
                continue
            for offset, count in segments:
                deflate_decode(content[offset : offset + count], out=strip)

    return decode


def _segments(path: Path) -> list[tuple[int, int]]:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        return list(zip(tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts, strict=True))


def _chunks(plane: object) -> Iterator[object]:
    """Yields the chunks of a plane, those at its edge padded with zeros."""
    import numpy as np

    padded = np.pad(plane, [(0, -length % CHUNK) for length in plane.shape])  # type: ignore[attr-defined]
    for y in range(0, padded.shape[0], CHUNK):
        for x in range(0, padded.shape[1], CHUNK):
            yield np.ascontiguousarray(padded[y : y + CHUNK, x : x + CHUNK])


def _least(work: Callable[[], None], repeats: int = 3) -> float:
    """Returns the CPU seconds of the quickest of some runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
