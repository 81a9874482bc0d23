"""The inputs of a segmentation: its models, its plates with the fields to segment, and their fingerprints."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from hpc_isl.errors import UserError
from hpc_isl.learning.data.drift import FAR, drift
from hpc_isl.learning.data.fields import field_view, image_key, imaged_times, seen_as
from hpc_isl.learning.data.rescale import Scale, at_scale, scale_on
from hpc_isl.learning.data.view import View
from hpc_isl.learning.network.contract import Contract
from hpc_isl.plates.label_groups import LabelProvenance, slug
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index, label_provenance, open_plate, stamp
from hpc_isl.recipes.load import digests, load_kept
from hpc_isl.recipes.segment import SegmentRecipe
from hpc_isl.run import Run
from hpc_isl.stages.segment.illumination import Illumination
from hpc_isl.stages.segment.models import Models, models_of

# Keys that change no figure of an object; those of MEASURED change figures, and no labels.
AROUND = {
    "plates": [], "labels": None, "fields": None, "outputs": ["labels"], "overlap": None,
    "max_pixels_in_memory": 1, "block_size": 1, "overwrite": False,
}  # fmt: skip
MEASURED = {"stain": None, "measure": None, "cells": None, "nuclei": None, "reference_labels": None}
PROCESS_MEMORY = 900 * 2**20  # bytes: Python with torch, the network, and what libraries keep
HELD = 24  # bytes a pixel of each further time of a field: its prediction, stain and labels
LABELLING = 60  # bytes a pixel of level 0: prediction and its interpolation, watershed, labels, features


# ---------------------------------------------------------------- plates


@dataclass(frozen=True)
class PlateInput:
    """A plate to segment, as the models see it.

    Attributes:
        name: in tables, unique among the plates of the run; `slug` is the same for files.
        keys: fields to segment, in plate order.
        without: fields that are left out, because a source of the model was not imaged in them.
    """

    recipe: SegmentRecipe
    models: Models
    index: Index
    name: str = ""
    keys: tuple[FieldKey, ...] = ()
    keys_without_source: tuple[FieldKey, ...] = ()

    @property
    def slug(self) -> str:
        return slug(self.name)

    def image(self, key: FieldKey) -> Path:
        return self.index.image(key)

    def megapixels(self, key: FieldKey) -> float:
        """Returns the pixels of a field at full resolution, over all its times."""
        times, _, _, y, x = self.index.field(key).shape
        return times * y * x / 1e6

    def scale(self, key: FieldKey) -> Scale:
        """Returns how the pixels of a field and those of the model relate."""
        return scale_on(self.models.view, self.index, key, self.recipe.pixel_um)

    def stain_scale(self, key: FieldKey) -> Scale:
        """Returns how they relate for the model of the stain, which may know its own size of pixels."""
        assert self.models.stain_view is not None
        view = self.models.stain_view
        return scale_on(view, self.index, key, view.pixel_um or self.recipe.pixel_um)

    def reasons_unseen(self, view: View, keys: Sequence[FieldKey]) -> Iterator[str]:
        """Yields why fields cannot be predicted, as far as it is known without their pixels."""
        checked = set[Hashable]()
        for key in keys:
            try:
                if (kind := seen_as(view, self.index, key)) in checked:
                    continue
                scale = scale_on(view, self.index, key, self.recipe.pixel_um)
                time = next(iter(imaged_times(view, self.index, key)), 0)
                field_view(at_scale(view, scale), self.index, key, time)
                checked.add(kind)
            except UserError as error:
                yield str(error)

    def is_empty(self, key: FieldKey) -> bool:
        """Returns whether a field has no objects because no source of it shows any structure."""
        has_structure = (
            f"empty:{self.index.channel(role.channel)}"
            not in self.index.statistics[image_key(key, role)].flags
            for role in self.models.view.sources
        )
        return self.recipe.empty_fields == "zero" and not any(has_structure)

    def is_large(self, key: FieldKey) -> bool:
        """Returns whether a field has more pixels than the recipe holds in memory."""
        y, x = self.index.field(key).shape[-2:]
        return y * x > self.recipe.max_pixels_in_memory

    def was_trained_on(self, key: FieldKey) -> bool:
        """Returns whether the model learnt from a field's objects, or from the stain they are counted by."""
        reference = self.recipe.reference_labels
        parts = ["train", *(["stain"] if reference and reference.channel else [])]
        return any(self.models.contract.has_seen(part, self.index.plate.name, key) for part in parts)

    def memory(self, key: FieldKey) -> int:
        """Returns the bytes at most while a field is computed, beside what the process holds anyway.

        It decides how many processes a machine holds, and which fields are computed beside each other.
        """
        times, *_, y, x = self.index.field(key).shape
        channels = self.recipe.measure.channels
        measured = 4 * (len(self.index.plate.channels) if channels is None else len(channels))
        labelling = min(y * x, self.recipe.max_pixels_in_memory) * (LABELLING + measured)
        further_times = 0 if self.is_large(key) else (times - 1) * y * x * HELD
        views = [(self.models.contract, self.models.view)]
        if self.models.stain_contract and self.models.stain_view:
            views.append((self.models.stain_contract, self.models.stain_view))
        return labelling + further_times + max(self._forward_memory(key, *pair) for pair in views)

    def _forward_memory(self, key: FieldKey, contract: Contract, view: View) -> int:
        """Returns the bytes of one forward pass, or of one call of a program."""
        if contract.program is not None:
            return round(contract.program.memory_gb * 1e9)
        from hpc_isl.learning.inference.predict import footprint  # brings torch

        tiling = self.recipe.predict or contract.predict
        try:
            shape = scale_on(view, self.index, key, self.recipe.pixel_um).shape
        except ValueError:  # the field will fail, and takes nothing
            return 0
        pixels = shape[0] * shape[1]
        if tiling.tile is not None and max(shape) > tiling.tile:
            pixels = tiling.batch * (tiling.tile + 2 * tiling.halo) ** 2
        return footprint(contract.net, pixels)

    @cached_property
    def illumination(self) -> Illumination:
        """How counts are corrected before they are measured."""
        acquisition = self.models.view.sources[0].acquisition
        keys = [
            field.key for field in self.index.plate.fields if acquisition in (None, field.key.acquisition)
        ]
        return Illumination(self.recipe.measure, self.index, tuple(keys))

    @cached_property
    def confidence(self) -> str | None:
        """The column that says how far an object may be trusted; None: models of earlier versions know none.

        `confidence` is the probability that the object is found. Where none was learnt, or the images of a
        new well are unlike those that it was learnt on, there is only a `score`.
        """
        task = self.models.contract.task
        if task is None or task.confidence is None:
            return None
        if not task.confidence:
            return "score"
        wells = self.drift([field.key for field in self.index.plate.fields])
        far = any(well["largest"] > FAR for well in wells if not well["in_training"])
        return "confidence" if wells and not far else "score"

    def drift(self, keys: Sequence[FieldKey]) -> list[dict[str, Any]]:
        """Returns how far each well lies from the training images; none where the model has no statistics.

        To the columns of `learning.data.drift` come `plate`, and `in_training`: yes for wells that the
        model's reference was made of.
        """
        contract, name = self.models.contract, self.index.plate.name
        if not contract.reference:
            return []
        # Models of earlier versions do not name the wells of their reference, only those that trained.
        part = "reference" if "reference" in contract.wells else "train"
        wells = {key.well for key in keys if contract.has_seen(part, name, key)}
        rows = drift(contract.reference, self.models.view, self.index, keys)
        return [
            {"plate": self.name, "well": row["well"], "in_training": "yes" if row["well"] in wells else ""}
            | row
            for row in rows
        ]

    # ------------------------------------------------------------ fingerprints

    @cached_property
    def illumination_facts(self) -> dict[str, str]:
        return self.illumination.facts()

    @cached_property
    def provenance(self) -> Mapping[FieldKey, LabelProvenance]:
        """Field -> where its labels of the run's name come from; read once."""
        provenances = (
            (field.key, label_provenance(self.image(field.key), self.models.labels))
            for field in self.index.plate.fields
        )
        return {key: provenance for key, provenance in provenances if provenance is not None}

    @cached_property
    def _digests(self) -> tuple[Callable[[Mapping[str, str]], str], Callable[[Mapping[str, str]], str]]:
        """The digests of the recipe as far as it decides labels, and as far as it decides measurements."""
        recipe = self.recipe
        changes = (AROUND | MEASURED, AROUND)
        of_labels, of_measures = (digests(recipe.model_copy(update=change)) for change in changes)
        return of_labels, of_measures

    def labels_fingerprint(self, key: FieldKey, index: Index | None = None) -> str:
        """Returns the hash of all that decides the labels of a field: recipe, model, pixels; not their place.

        `index`: of the plate as it was before its metadata changed.
        """
        index = index or self.index
        plate = index.plate
        sizes = [plate.pixel_um, plate.plane_um, [channel.flat_field for channel in plate.channels]]
        facts = {"model": self.models.model_hashes[0], "plate": json.dumps(sizes), "field": str(key)}
        keys = [image_key(key, role) for role in self.models.contract.view.sources]
        return self._digests[0](facts | _pixels(index, keys))

    def fingerprint(
        self, key: FieldKey, of_labels: str, labels_stamp: Callable[[Path, str], str] = stamp
    ) -> str:
        """Returns the hash of `of_labels` and all that decides measurements: channels, models, other labels.

        Args:
            of_labels: `labels_fingerprint`.
            labels_stamp: tells the cells' labels, or the reference labels, from others; `former_stamp` as
                earlier versions did.
        """
        index, recipe = self.index, self.recipe
        facts = {
            "labels": of_labels, "models": " ".join(self.models.model_hashes),
            "channels": str([channel.name for channel in index.plate.channels]),
        }  # fmt: skip
        facts |= {"revision": index.revision} if index.revision else {}
        facts |= {"confidence": self.confidence} if self.confidence else {}
        facts |= self.illumination_facts
        reference = recipe.reference_labels
        for kind, name in (
            ("cells", recipe.cells), ("nuclei", recipe.nuclei), ("truth", reference and reference.labels)
        ):  # fmt: skip
            provenance = label_provenance(self.image(key), name) if name else None
            # Labels that this run itself wrote are neither.
            if name and provenance and provenance.fingerprint != facts["labels"]:
                facts[kind] = labels_stamp(self.image(key), name)
        keys = [key]
        if self.models.stain_contract:
            keys += [image_key(key, role) for role in self.models.stain_contract.view.sources]
        if reference and reference.acquisition is not None:
            keys.append(replace(key, acquisition=reference.acquisition))
        return self._digests[1](facts | _pixels(index, keys))


def _pixels(index: Index, keys: Sequence[FieldKey]) -> dict[str, str]:
    """Returns hashes of the images, as they were measured when the plate was made, and planes' heights."""
    hashes = {}
    for number, key in enumerate(key for key in dict.fromkeys(keys) if key in index.statistics):
        field = index.field(key)
        heights = [field.z_um, field.details.get("z_um"), field.details.get("planes")]
        hashes[f"pixels {number}"] = f"{index.statistics.digest(key)} {json.dumps(heights)}"
    return hashes


@dataclass(frozen=True)
class SegmentInputs:
    """A recipe with its models and its plates."""

    recipe: SegmentRecipe
    models: Models
    plates: tuple[PlateInput, ...]

    @property
    def fields(self) -> list[tuple[PlateInput, FieldKey]]:
        """Returns the fields of all plates, in order."""
        return [(plate, key) for plate in self.plates for key in plate.keys]

    @property
    def keeps_labels(self) -> bool:
        return "labels" in self.recipe.outputs

    def with_labels(self, name: str) -> SegmentInputs:
        """Returns the inputs with another name of the labels."""
        recipe, models = self.recipe.model_copy(update={"labels": name}), replace(self.models, labels=name)
        plates = (replace(plate, recipe=recipe, models=models) for plate in self.plates)
        return SegmentInputs(recipe, models, tuple(plates))


def kept_recipe(run: Run) -> SegmentRecipe:
    """Returns the recipe that a run of segment keeps."""
    recipe = load_kept("segment", run.recipe)
    assert isinstance(recipe, SegmentRecipe)
    return recipe


def segment_inputs(recipe: SegmentRecipe, models: Models | None = None) -> SegmentInputs:
    """Returns the plates in the order of the recipe, with the fields that the model can predict.

    Raises:
        UserError: models, channels or fields that do not exist.
    """
    models = models or models_of(recipe)
    indices = [open_plate(path) for path in recipe.plates]
    names = unique_names([(index.plate.name, index.path.stem) for index in indices])
    plates = [PlateInput(recipe, models, *pair) for pair in zip(indices, names, strict=True)]
    return SegmentInputs(recipe, models, tuple(map(_with_fields, plates)))


def _with_fields(plate: PlateInput) -> PlateInput:
    index, sources = plate.index, plate.models.view.sources
    for role in sources:
        index.channel(role.channel)
    keys = _keys(plate.recipe, sources[0].acquisition, index)
    imaged_keys = tuple(key for key in keys if imaged_times(plate.models.view, index, key))
    if not imaged_keys:
        names = ", ".join(f"{role.channel!r} {role.plane}" for role in sources)
        raise UserError(f"{index.path}: none of {len(keys)} fields has all sources of the model ({names})")
    imaged = set(imaged_keys)  # of thousands
    return replace(
        plate, keys=imaged_keys, keys_without_source=tuple(key for key in keys if key not in imaged)
    )


def unique_names(plates: Sequence[tuple[str, str]]) -> list[str]:
    """Returns names by name and folder: where several plates share a name, the folder's; then numbered."""
    plate_names = [name for name, _ in plates]
    names = [name if plate_names.count(name) == 1 else folder for name, folder in plates]
    unique: list[str] = []
    for name in names:
        candidates = (f"{name} ({number})" for number in count(1))
        used_names = {*names, *unique}
        unique.append(
            name
            if names.count(name) == 1
            else next(candidate for candidate in candidates if candidate not in used_names)
        )
    return unique


def _keys(recipe: SegmentRecipe, acquisition: int | None, index: Index) -> tuple[FieldKey, ...]:
    """Returns the fields of the acquisition of the first source that the recipe chooses."""
    chosen = index.plate.choose(recipe.fields) if recipe.fields is not None else None
    keys = [field.key for field in index.plate.fields if acquisition in (None, field.key.acquisition)]
    selection = tuple(keys) if chosen is None else tuple(key for key in keys if key in chosen)
    if not keys:
        raise UserError(
            f"{index.path}: none of its fields is of acquisition {acquisition}, which the model looks at"
        )
    if not selection:
        remark = f"; the model looks at those of acquisition {acquisition}" if acquisition is not None else ""
        raise UserError(f"{index.path}: fields={recipe.fields} leaves none of its {len(keys)} fields{remark}")
    return selection
