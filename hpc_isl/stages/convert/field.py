"""One field of a conversion: read, measured and written, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.errors import UserError
from hpc_isl.plates.assemble import assemble, inputs_digest
from hpc_isl.plates.metadata import read_group
from hpc_isl.plates.plate import Field, FieldKey, PlaneFile, Plate
from hpc_isl.plates.statistics import measure, repeated
from hpc_isl.plates.store import image_path, write_field
from hpc_isl.recipes.plates import CodecRecipe


@dataclass(frozen=True)
class FieldTask:
    """One field to convert; `plate` comes without its fields.

    Attributes:
        skip: planes that cannot be read are left out, and the others stored.
        types: dtype of each channel's planes all over the plate.
    """

    out: Path
    plate: Plate
    field: Field
    files: tuple[PlaneFile, ...]
    codec: CodecRecipe
    levels: int | None
    skip: bool = False
    types: Mapping[int, str] | None = None

    @property
    def image(self) -> Path:
        return image_path(self.out, self.plate, self.field.key)

    @property
    def inputs(self) -> str:
        """Digest of all that the image is made of."""
        return inputs_digest(self.field, self.files, self.codec.model_dump(), self.levels)


@dataclass(frozen=True)
class Outcome:
    """The result of converting a field.

    Attributes:
        is_kept: its image existed, made of the same files in the same way.
        failed: it could not be stored at all.
        problems: why it, or some of its planes, could not be stored.
        repeated: number of planes that equal another one of the field bit for bit.
    """

    key: FieldKey
    is_kept: bool = False
    failed: bool = False
    problems: tuple[str, ...] = ()
    repeated: int = 0


def convert_field(task: FieldTask) -> Outcome:
    """Converts one field, unless its image exists and was made of the same files in the same way.

    Raises:
        UserError: it cannot be written. That it cannot be read is in the outcome.
    """
    key, inputs = task.field.key, task.inputs
    if (problems := recorded_problems(task.image, inputs)) is not None:
        return Outcome(key, is_kept=True, problems=problems)
    names = [channel.name for channel in task.plate.channels]
    try:
        content = assemble(task.field, task.files, names, task.skip, task.types)
    except UserError as error:
        return Outcome(key, failed=True, problems=(str(error),))
    if task.inputs != inputs:  # sizes and times of its files are part of the inputs
        reason = "its files changed while they were read: is the instrument, or a copy, still writing them?"
        return Outcome(key, failed=True, problems=(reason,))
    write_field(
        task.out, task.plate, content.field, content.pixels, measure(content.pixels, content.places),
        task.codec, task.levels, inputs=inputs, problems=content.problems, overwrite=True,
    )  # fmt: skip
    return Outcome(key, problems=content.problems, repeated=repeated(content.pixels, content.places))


def recorded_problems(image: Path, inputs: str) -> tuple[str, ...] | None:
    """Returns why planes of an image made of these inputs are missing; None: it is not made of them."""
    try:
        facts = read_group(image)["hpc_isl"]
        return tuple(facts.get("problems", ())) if facts["inputs"] == inputs else None
    except (UserError, KeyError, TypeError):  # a record that is no mapping
        return None
