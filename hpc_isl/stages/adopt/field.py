"""One field of a plate that is adopted: its pixels are read and measured where they lie, never copied."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.plates import adopted, metadata, nodes
from hpc_isl.plates.adopted import PixelSource
from hpc_isl.plates.plate import Field, FieldKey, Plate
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import image_path, write_adopted_field


@dataclass(frozen=True)
class AdoptTask:
    """One field to measure; `plate` comes without its fields.

    Attributes:
        home: folder that gets index and labels.
        other: the plate that holds the pixels.
        description_digest: digest of what the other plate says of the field.
    """

    home: Path
    other: Path
    plate: Plate
    field: Field
    source: PixelSource
    description_digest: str


@dataclass(frozen=True)
class AdoptOutcome:
    """The result for one field.

    Attributes:
        is_kept: it was measured before, and its files have not changed since.
        problem: why it cannot be measured; empty: it is.
    """

    key: FieldKey
    is_kept: bool = False
    problem: str = ""


def adopt_field(task: AdoptTask) -> AdoptOutcome:
    """Measures one field and records it, unless that was done and its files are the same.

    Raises:
        UserError: the record cannot be written. That pixels cannot be read is in the outcome.
    """
    key, image = task.field.key, image_path(task.home, task.plate, task.field.key)
    try:
        source = with_files(task.other, task.source)
        text = json.dumps([task.description_digest, source.facts()], sort_keys=True)
        inputs = hashlib.sha256(text.encode()).hexdigest()[:32]
        if _recorded_digest(image) == inputs:
            return AdoptOutcome(key, is_kept=True)
        pixels = np.asarray(source.array(task.other, 0).read().result())
        channels = task.source.channels  # None: the image lacks it
        planes = [place for place in np.ndindex(*task.field.shape[:3]) if channels[place[1]] is not None]
        statistics = measure(pixels, planes)
        if with_files(task.other, task.source) != source:
            raise UserError("its files changed while they were read: is another program still writing them?")
    except (ValueError, OSError) as error:  # tensorstore's errors are ValueErrors, as a UserError is
        return AdoptOutcome(key, problem=f"{task.other / task.source.image}: {error}")
    write_adopted_field(task.home, task.plate, task.field, source, statistics, inputs)
    return AdoptOutcome(key)


def with_files(other: Path, source: PixelSource) -> PixelSource:
    """Returns where pixels lie with a hash of the files of each array as they are now."""
    paths = dict.fromkeys(path for path in source.levels if path is not None)
    return replace(source, files={path: nodes.files_digest(other / source.image / path) for path in paths})


def describe_field(plate: Plate, field: Field) -> str:
    """Returns a digest of all that another plate says of a field, and of its channels and sizes."""
    text = json.dumps([metadata.image_facts(plate), metadata.field_facts(field)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _recorded_digest(image: Path) -> str | None:
    """Returns the digest of what was measured before; None: nothing was."""
    try:
        facts = metadata.read_group(image)["hpc_isl"]
        return str(facts["inputs"]) if adopted.KEY in facts else None
    except (UserError, KeyError, TypeError):
        return None
