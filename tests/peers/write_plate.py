"""Writes a plate with another program: run by that program's own Python, which has no hpc_isl.

    python write_plate.py {ngio|ome-zarr|iohub} {0.4|0.5} PIXELS.npz OUT.zarr

PIXELS.npz holds `B02/1` -> pixels (t, c, z, y, x), and `facts`, JSON: channels, colors, pixel_um.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

Images = dict[str, np.ndarray]


def with_ngio(version: Any, images: Images, facts: dict[str, Any], out: Path) -> None:
    import ngio

    places = [(key[0], key[1:3], key.partition("/")[2]) for key in images]
    listed = [ngio.ImageInWellPath(row=row, column=column, path=path) for row, column, path in places]
    plate = ngio.create_empty_plate(out, facts["name"], images=listed, ngff_version=version)
    for (row, column, path), pixels in zip(places, images.values(), strict=True):
        ngio.create_ome_zarr_from_array(
            plate.get_image_store(row, column, path), pixels[0], facts["pixel_um"], levels=1,
            axes_names=["c", "z", "y", "x"], channels_meta=facts["channels"], ngff_version=version,
            overwrite=True,
        )  # fmt: skip


def with_ome_zarr(version: str, images: Images, facts: dict[str, Any], out: Path) -> None:
    import zarr
    from ome_zarr.format import FormatV04, FormatV05
    from ome_zarr.writer import write_image, write_plate_metadata, write_well_metadata

    fmt = FormatV05() if version == "0.5" else FormatV04()
    root = zarr.open_group(out, mode="w", zarr_format=fmt.zarr_format)
    wells = sorted({key.partition("/")[0] for key in images})
    rows, columns = sorted({well[0] for well in wells}), sorted({well[1:] for well in wells})
    write_plate_metadata(
        root, rows, columns, [f"{well[0]}/{well[1:]}" for well in wells], fmt=fmt, name=facts["name"]
    )
    for well in wells:
        group = root.require_group(f"{well[0]}/{well[1:]}")
        names = [key.partition("/")[2] for key in images if key.startswith(f"{well}/")]
        write_well_metadata(group, names, fmt=fmt)
        for name in names:
            shown = [
                {"label": label, "color": color, "window": {"min": 0, "max": 1, "start": 0, "end": 1}}
                for label, color in zip(facts["channels"], facts["colors"], strict=True)
            ]
            write_image(
                images[f"{well}/{name}"], group.require_group(name), axes="tczyx", fmt=fmt, scale_factors=(),
                scale=dict.fromkeys("yx", facts["pixel_um"]), axes_units=dict.fromkeys("yx", "micrometer"),
                omero={"channels": shown},
            )  # fmt: skip


def with_iohub(version: Any, images: Images, facts: dict[str, Any], out: Path) -> None:
    from iohub.ngff import TransformationMeta, open_ome_zarr

    with open_ome_zarr(
        out, layout="hcs", mode="w", channel_names=facts["channels"], version=version
    ) as plate:
        for key, pixels in images.items():
            position = plate.create_position(key[0], key[1:3], key.partition("/")[2])
            scale = TransformationMeta(
                type="scale", scale=[1.0, 1.0, 1.0, facts["pixel_um"], facts["pixel_um"]]
            )
            position.create_image("0", pixels, transform=[scale])


WRITERS = {"ngio": with_ngio, "ome-zarr": with_ome_zarr, "iohub": with_iohub}

if __name__ == "__main__":
    program, version, source, out = sys.argv[1:]
    content = dict(np.load(source))
    facts = json.loads(str(content.pop("facts")))
    WRITERS[program](version, content, facts, Path(out))
