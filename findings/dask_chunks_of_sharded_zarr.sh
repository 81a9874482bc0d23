#!/usr/bin/env bash
# 2026-11-29, dask 2026.8.0, zarr 3.1.6.
# Believed: dask takes the shards of a Zarr 3 array as its chunks, since a shard is the unit that is written.
# Seen: `from_zarr` takes the inner chunks: one shard of 512 × 512 pixels becomes 64 tasks. `da.store` of such
#   chunks into a sharded array with `lock=False`, which is safe for plain chunks, loses more than a tenth of the
#   pixels without a word: each task reads the shard, adds its chunk and writes the shard back. `to_zarr`, and
#   `store` with its default lock, keep all of them.
# It matters because converting plates to sharded arrays is where `lock=False` is typed for speed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check dask==2026.8.0 zarr==3.1.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import dask
import dask.array as da
import numpy as np
import zarr

dask.config.set(scheduler="threads", num_workers=4)
pixels = np.arange(1, 1024 * 1024 + 1, dtype="u4").reshape(1024, 1024)
image = da.from_array(pixels, chunks=(64, 64))


def array(name, **shards):
    return zarr.create_array(name, shape=(1024, 1024), chunks=(64, 64), dtype="u4", **shards)


def kept(target, write):
    write(target)
    return float((target[:] == pixels).mean())


sharded = {"shards": (512, 512)}
assert da.from_zarr(array("chunks.zarr", **sharded)).chunksize == (64, 64), "dask takes shards by now"
shares = {
    "plain chunks, store without a lock": kept(array("a.zarr"), lambda a: da.store(image, a, lock=False)),
    "shards, store without a lock": kept(array("b.zarr", **sharded), lambda a: da.store(image, a, lock=False)),
    "shards, store": kept(array("c.zarr", **sharded), lambda a: da.store(image, a)),
    "shards, to_zarr": kept(array("d.zarr", **sharded), image.to_zarr),
}
for how, share in shares.items():
    print(f"{how}: {share:.2%} of the pixels are there")
lost = shares.pop("shards, store without a lock")
assert lost < 0.9, "no pixel is lost by now"
assert set(shares.values()) == {1.0}
PYTHON
