"""annotate edit: fields of a plate whose labels a person draws, one after the other, saved into the plate.

This is the session, without a window: which field, what is shown of it, what is saved, and what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError
from hpc_isl.files import now
from hpc_isl.plates import packed, store
from hpc_isl.plates.atomic_directory import reserved
from hpc_isl.plates.label_groups import slug
from hpc_isl.plates.plate import FieldKey
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.stages.annotate.annotation import inside_boxes, outside
from hpc_isl.stages.annotate.export_manifest import labels_version, present_labels
from hpc_isl.stages.annotate.label_files import Box, chosen, raise_together
from hpc_isl.stages.shared.shown_plane import shown_plane

LOCKS = "index/edits"
LOW, HIGH = 0.5, 99.9  # percentiles of counts that are shown darkest and brightest


@dataclass(frozen=True)
class OpenField:
    """A field as a person sees it, and its labels as they lie in the plate.

    Attributes:
        images: channel -> (y, x), or (t, y, x) where the field has times; zeros where it was not imaged.
        labels: (y, x) or (t, y, x); uint32.
        boxes: annotation boxes.
        origin: who made the labels; empty: there are none.
        version: of the labels, as `labels_version` returns it.
    """

    key: FieldKey
    images: Mapping[str, NDArray[Any]]
    labels: NDArray[np.uint32]
    boxes: tuple[Box, ...]
    origin: str
    version: str


@dataclass(frozen=True)
class Saved:
    """The result of saving a field.

    Attributes:
        objects: that are in the plate now; `dropped`: that touched no annotation box, and are not.
        backup_name: under which the former labels are kept; empty: there were none, or they were saved by
            this session.
        changed_meanwhile: others changed the labels in the plate during the editing; the backup is theirs.
    """

    key: FieldKey
    objects: int
    dropped: int
    backup_name: str
    changed_meanwhile: bool


@dataclass
class EditSession:
    """The fields that a person goes through; one of them is open at a time, locked against other editors.

    Attributes:
        keys: the fields, in plate order.
        labels: name of the labels.
        box: annotation box of fields in which nobody has drawn yet; None: the whole field.
        refuse_writers: raises a `UserError` while a run may write these labels.
        saved: the fields saved, and what of them was saved last.
        backup_names: names under which former labels are kept.
        current: the field that is open.
    """

    index: store.Index
    keys: Sequence[FieldKey]
    labels: str
    box: Box | None = None
    refuse_writers: Callable[[], None] = lambda: None
    saved: dict[FieldKey, Saved] = field(default_factory=dict)
    backup_names: list[str] = field(default_factory=list)
    current: OpenField | None = None
    _started: str = field(default_factory=lambda: now()[:19].replace("T", " "))
    _lock: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def of_recipe(cls, recipe: AnnotateRecipe, refuse_writers: Callable[[], None]) -> EditSession:
        """Returns the session that a recipe describes; no field is open yet.

        Raises:
            UserError: there is no such plate or field; the box leaves a field; a run may write these labels.
        """
        index = store.open_plate(recipe.plate)
        keys = chosen(recipe.fields, index)
        raise_together(outside(recipe.box, keys, index))
        refuse_writers()
        return cls(index, keys, recipe.labels, recipe.box, refuse_writers)

    def __enter__(self) -> EditSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()
        self.current = None

    def described(self) -> list[str]:
        """Returns lines about what would be edited."""
        provenances = [store.label_provenance(self.index.image(key), self.labels) for key in self.keys]
        human = sum(provenance is not None and provenance.origin == "human" for provenance in provenances)
        others = sum(provenance is not None for provenance in provenances) - human
        return [
            f"{len(self.keys)} of {len(self.index.plate.fields)} fields of {self.index.path}",
            f"labels {self.labels!r}: on {human} a person's, on {others} a program's or drafted, "
            f"on {len(provenances) - human - others} none",
        ]

    def limits(self, channel: str) -> tuple[float, float] | None:
        """Returns the counts of a channel that are shown darkest and brightest; None: it has no counts."""
        dtype = self.index.field(self.keys[0]).dtype  # counts of different types have no one histogram
        keys = [key for key in self.keys if self.index.field(key).dtype == dtype]
        try:
            counts = self.index.histogram(keys, self.index.channel(channel))
        except UserError:
            return None
        low, high = counts.percentile(LOW), counts.percentile(HIGH)
        return (low, high) if low < high else None

    def open(self, key: FieldKey) -> OpenField:
        """Opens a field, and closes the one before; to open the present one again gives its labels anew.

        Raises:
            UserError: another process edits these labels of it, or a run may write them; the field before
                stays open then.
        """
        self.refuse_writers()
        if self.current is not None and self.current.key == key:
            self.current = self._read(key)
            return self.current
        with ExitStack() as stack:
            lock = f"{LOCKS}/{key.well}_{key.image}.{slug(self.labels)}.lock"
            home = packed.written_beside(self.index.path)
            stack.enter_context(reserved(home, lock, "fields", f"editing {self.labels!r} of {key} of"))
            opened = self._read(key)
            self._lock.close()
            self._lock = stack.pop_all()
        self.current = opened
        return opened

    def _read(self, key: FieldKey) -> OpenField:
        shape, plate = self.index.field(key).shape, self.index.plate
        images = {}
        for number, channel in enumerate(plate.channels):
            planes = [shown_plane(self.index, key, number, time=time) for time in range(shape[0])]
            dark = np.zeros(shape[-2:], self.index.field(key).dtype)
            frames = [dark if plane is None else plane for plane in planes]
            images[channel.name] = np.stack(frames) if len(frames) > 1 else frames[0]
        present = present_labels(self.index, key, self.labels, self.box)
        return OpenField(key, images, present.labels, present.boxes, present.origin, present.version)

    def is_changed(self, labels: NDArray[Any], boxes: Sequence[Box]) -> bool:
        """Returns whether labels or boxes of the open field differ from what was opened or saved last."""
        opened = self._current_field()
        return tuple(boxes) != opened.boxes or not np.array_equal(labels, opened.labels)

    def save(self, labels: NDArray[Any], boxes: Sequence[Box], accept: bool = False) -> Saved | None:
        """Saves the open field as a person's labels; the former ones are kept under another name first.

        Args:
            labels: (y, x) or (t, y, x), whole numbers; boxes: inside the field.
            accept: also where nothing was changed, because a person found the labels right as they are.

        Returns:
            What was saved; None: nothing was changed.

        Raises:
            UserError: there is no box, or the plate cannot be written.
        """
        opened, image = self._current_field(), self.index.image(self._current_field().key)
        if not accept and not self.is_changed(labels, boxes):
            return None
        if not boxes:
            raise UserError("draw the annotation box: without one nobody knows where the labels are complete")
        labels_inside, dropped = inside_boxes(labels, boxes)
        present_version = labels_version(image, self.labels)
        meanwhile = present_version != opened.version
        kept_name = ""
        if present_version and (meanwhile or opened.key not in self.saved):
            kept_name = self._back_up(opened.key)
        store.write_labels(
            image, self.labels, labels_inside, origin="human", boxes=boxes, overwrite=bool(present_version),
            made_from=store.labels_checksum(image, self.labels) if present_version else None,
        )  # fmt: skip
        saved = Saved(opened.key, len(np.setdiff1d(labels_inside, [0])), dropped, kept_name, meanwhile)
        self.saved[opened.key] = saved
        # The labels as they were drawn: those that were dropped are still seen, and are no new change.
        self.current = replace(
            opened, labels=np.array(labels), boxes=tuple(boxes), origin="human",
            version=labels_version(image, self.labels),
        )  # fmt: skip
        return saved

    def _back_up(self, key: FieldKey) -> str:
        """Copies the labels as they lie in the plate; returns the name of the copy, which `inspect` lists."""
        image = self.index.image(key)
        name, number, names = f"{self.labels} before {self._started} UTC", 1, store.label_names(image)
        while name in names:
            number += 1
            name = f"{self.labels} before {self._started} UTC, {number}"
        origin, boxes = store.annotation(image, self.labels)
        provenance = store.label_provenance(image, self.labels)
        store.write_labels(
            image, name, store.read_labels(image, self.labels), origin=origin, boxes=boxes,
            fingerprint=provenance.fingerprint if provenance else "",
        )  # fmt: skip
        if name not in self.backup_names:
            self.backup_names.append(name)
        return name

    def _current_field(self) -> OpenField:
        assert self.current is not None, "a field is opened before it is saved"
        return self.current
