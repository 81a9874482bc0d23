"""The verb that takes labels and models to other programs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from hpc_isl.cli.arguments import ROOT, SITE, command, log, names_in, program, run_folders, take_keys
from hpc_isl.errors import UserError, many, nearest

KEYS = {
    "plate": "labels: the plate that holds them",
    "labels": "labels: their name on the plate",
    "fields": "labels: as in B03/1,C04 (C04: the whole well); default all that have them",
    "model": "model: a run of pretrain or finetune; of a sweep its last element, `final`",
    "format": "labels: geojson (QuPath) | roi (ImageJ), default geojson; model: onnx | bioimageio, default\n"
    "                  onnx; both need pip install 'hpc-isl[onnx]'",
    "out": "a new folder",
}
NEEDED = {"labels": ("plate", "labels", "out"), "model": ("model", "out")}


@command(
    "labels as outlines for QuPath or ImageJ; models as ONNX or bioimage.io", "{labels | model} key=value …",
    "labels plate=P01.zarr labels=nuclei out=outlines/", ROOT, SITE, keys=KEYS,
)  # fmt: skip
def export(arguments: Namespace) -> int:
    """Writes what other programs read: `labels`, objects of a plate as outlines, a file for each field, or
    `model`, a network with its contract and its decoding.

    To lend labels for correction, and have them back, use annotate export.
    """
    keys = take_keys(arguments, KEYS)
    kinds = arguments.words or (["model"] if "model" in keys else [])
    if len(kinds) != 1 or kinds[0] not in NEEDED:
        raise UserError(
            f"export: say what, as in {program()} export labels plate=P01.zarr labels=nuclei out=outlines/, "
            f"or {program()} export model=nuc format=onnx out=nuc/"
        )
    required_keys = NEEDED[kinds[0]]
    if missing_keys := [key for key in required_keys if key not in keys]:
        raise UserError(f"export {kinds[0]}: {missing_keys[0]}= must be given: {KEYS[missing_keys[0]]}")
    allowed_keys = (*required_keys, "format", *(["fields"] if kinds == ["labels"] else []))
    if extra_keys := [key for key in keys if key not in allowed_keys]:
        raise UserError(
            f"export {kinds[0]}: {extra_keys[0]}= means nothing here; {nearest(extra_keys[0], allowed_keys)}"
        )
    return _export_labels(keys) if kinds == ["labels"] else _export_model(keys, run_folders(arguments))


def _export_labels(keys: dict[str, str]) -> int:
    from tqdm import tqdm

    from hpc_isl.stages.export.labels import export_labels

    with tqdm(unit=" fields", disable=None, leave=False) as bar:  # None: where nobody sees it

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        output = export_labels(
            Path(keys["plate"]), keys["labels"], Path(keys["out"]).expanduser(),
            keys.get("format", "geojson"), names_in(keys.get("fields", "")), progress,
        )  # fmt: skip
    lacking = (
        f"; {many(output.unlabelled, 'field', 'has', 'have')} no such labels" if output.unlabelled else ""
    )
    log(f"{many(output.objects, 'object')} of {many(output.fields, 'field')}{lacking}")
    log(f"  outlines  {output.out}")
    return 0


def _export_model(keys: dict[str, str], roots: tuple[Path, ...]) -> int:
    from hpc_isl.cluster.run_folder import folders

    run = folders.find(keys["model"], *roots)  # first, because the imports take seconds
    from hpc_isl.stages.export.model import export_model

    output = export_model(run, Path(keys["out"]).expanduser(), keys.get("format", "onnx"))
    log(f"onnxruntime differs from PyTorch by at most {output.difference:.1g} of a map's range")
    log(f"  model     {output.out}")
    return 0
