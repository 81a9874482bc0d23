"""Labels in plates that are no longer those that a run wrote: a person, or another run, has been there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq

from hpc_isl.errors import UserError
from hpc_isl.files import read_json
from hpc_isl.plates.store import label_bands, label_provenance, labels_checksum
from hpc_isl.run import Run
from hpc_isl.stages.segment.checks import THREADS
from hpc_isl.stages.segment.files import FieldTask, content_hash, labels_name
from hpc_isl.stages.segment.inputs import (
    Models,
    PlateInput,
    labels_fingerprint,
    models_of,
    plate_inputs,
    recipe_of,
    view_of,
)

SHOWN = 20


def differing(run: Run) -> list[str]:
    """`labels 'found' were edited …: S1 B03/1, S1 B03/2`: fields whose labels differ from their records."""
    try:
        recipe = recipe_of(run)
        if "labels" not in recipe.outputs:
            return []
        models = models_of(recipe)
        targets = plate_inputs(recipe, view_of(recipe, models.contract))
    except UserError as mistake:
        return [f"labels cannot be compared with the records: {mistake}"]
    places = [
        (target, FieldTask(run.folder, target.index.path, target.name, target.slug, key,
                      labels_fingerprint=labels_fingerprint(recipe, models, target.index, key)))
        for target in targets for key in target.keys
    ]  # fmt: skip
    fields: dict[str, list[str]] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda place: _difference(models, *place), places)
        for (_, work), text in zip(places, found, strict=True):
            fields.setdefault(text, []).append(f"{work.name} {work.key}")
    fields.pop("", None)
    return [f"labels {models.labels!r} {text}: {_some(names)}" for text, names in fields.items()]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _difference(models: Models, target: PlateInput, work: FieldTask) -> str:
    record = read_json(work.record)
    if record is None or "problem" in record:
        return ""
    image = target.index.image(work.key)
    name = labels_name(image, models.labels)
    made = label_provenance(image, name)
    if made is None:
        return "are gone"
    if made[1] != work.labels_fingerprint:
        return "are of another run by now"
    try:
        if "labels" in record:
            same = labels_checksum(image, name) == record["labels"]
        else:  # of an earlier version
            same = content_hash(label_bands(image, name), pq.read_table(work.table)) == record["hash"]
    except (UserError, OSError) as error:
        return f"cannot be compared: {error}"
    return "" if same else "were edited (or damaged) since they were computed; they are not replaced"
