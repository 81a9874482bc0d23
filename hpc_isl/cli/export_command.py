"""The verb that takes labels and models to other programs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from hpc_isl.cli.arguments import command, log, names_in, program, take_keys
from hpc_isl.errors import UserError

KEYS = {
    "plate": "labels: the plate that holds them",
    "labels": "labels: their name on the plate",
    "fields": "labels: as in B03/1,C04 (C04: the whole well); default all that have them",
    "format": "labels: geojson (QuPath) | roi (ImageJ); default geojson",
    "out": "a new folder",
}


@command(
    "labels as outlines for QuPath or ImageJ", "labels key=value …",
    "labels plate=P01.zarr labels=nuclei out=outlines/", keys=KEYS,
)  # fmt: skip
def export(given: Namespace) -> int:
    """Writes objects of a plate as outlines for other programs, a file for each field.

    To lend labels for correction, and have them back, use annotate export.
    """
    keys = take_keys(given, KEYS)
    if given.words != ["labels"]:
        raise UserError(
            f"export: say what, as in {program()} export labels plate=P01.zarr labels=nuclei out=outlines/"
        )
    if missing := [key for key in ("plate", "labels", "out") if key not in keys]:
        raise UserError(f"export labels: {missing[0]}= must be given: {KEYS[missing[0]]}")
    from tqdm import tqdm

    from hpc_isl.stages.export.labels import export_labels

    with tqdm(unit=" fields", disable=None, leave=False) as bar:  # None: where nobody sees it

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        made = export_labels(
            Path(keys["plate"]), keys["labels"], Path(keys["out"]).expanduser(),
            keys.get("format", "geojson"), names_in(keys.get("fields", "")), progress,
        )  # fmt: skip
    lacking = f"; {made.without} fields have no such labels" if made.without else ""
    log(f"{made.objects} objects of {made.fields} fields{lacking}")
    log(f"  outlines  {made.out}")
    return 0
