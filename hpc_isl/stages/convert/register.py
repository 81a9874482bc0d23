"""How later acquisitions of a plate are shifted against the first: measured field by field, and modelled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.plates import metadata, shifts
from hpc_isl.plates.plate import FORMATS, WELL_DISTANCE_UM, Field, FieldKey, Plate, well_position
from hpc_isl.plates.pyramid import level_within
from hpc_isl.plates.registration import FieldShift, Registration, State
from hpc_isl.plates.shifts import Image, PlateModel
from hpc_isl.plates.store import image_path, read_box
from hpc_isl.run import Attempt
from hpc_isl.stages.shared.parallel import in_parallel

EDGE = 1100  # pixels: a field is measured at the first level that is no larger
PLANES = 5  # of each channel, spread over its stack
STRANGERS = 2  # other fields with which a pair is compared
# Measured on synthetic fields of 256 pixels: pairs have ratios of 1.5 (bright field and nuclei) to 14 (bright
# field twice) and gains above 0.1; strangers have ratios up to 1.46, and gains around 0.
RATIO, GAIN = 1.5, 0.05
CERTAIN = 2.5  # ratio from which a shift counts though the model of the plate says otherwise
SUPPORT = 5.0  # standard deviations of the correlation at the model's shift that images of one place have
ROUND = "registration 1"  # part of the hash of a pair; another way to measure has another number


@dataclass(frozen=True)
class ImageFacts:
    """A stored image, and which of its channels and planes are compared.

    Attributes:
        channels: number of each channel imaged at `time` -> its planes.
        empty: the channels that show no structure, as convert has flagged them.
    """

    path: Path
    field: Field
    level: int
    time: int
    channels: Mapping[int, tuple[int, ...]]
    empty: frozenset[int]
    digest: str

    @property
    def kind(self) -> object:
        """Equal for images that can be compared with one and the same other image."""
        return self.field.key.acquisition, tuple(self.channels), self.field.shape[-2:], self.level


@dataclass(frozen=True)
class PairTask:
    """A field of a later acquisition and its partner in the first.

    Attributes:
        strangers: images of other fields of the later acquisition.
        shared: channels that both acquisitions have; of none, outlines and stains are compared.
        stains: the fluorescent channels.
    """

    first: ImageFacts
    second: ImageFacts
    strangers: tuple[ImageFacts, ...]
    shared: tuple[int, ...]
    stains: frozenset[int]
    shift: tuple[int, int] | None = None

    @property
    def images(self) -> str:
        text = f"{ROUND} {self.first.digest} {self.second.digest}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def is_empty(self) -> bool:
        """Whether one of the images holds nothing that could be compared."""
        # A well without cells is dark in its stains; its bright field may show debris.
        return any(
            image.empty >= (image.channels.keys() & self.stains or image.channels.keys())
            for image in (self.first, self.second)
        )


@dataclass(frozen=True)
class PairMeasurement:
    """The outcome of a `PairTask`; `shift` is in pixels of level 0."""

    key: FieldKey
    shift: tuple[float, float]
    ratio: float
    pcc: float
    gain: float


def register(out: Path, plate: Plate, known: Registration | None, attempt: Attempt) -> Registration | None:
    """Returns the shifts of all fields of later acquisitions that have a partner; None if it was stopped.

    Args:
        plate: with the fields that are stored at `out`.
        known: the shifts of the same plate before; those of images that have not changed are kept.
    """
    tasks = list(_tasks(out, plate))
    earlier_shifts = known.shifts if known else {}
    measured = {
        task.second.field.key: PairMeasurement(
            earlier.key, earlier.measured, earlier.ratio, earlier.pcc, earlier.gain
        )
        for task in tasks
        if (earlier := earlier_shifts.get(task.second.field.key)) is not None
        and earlier.images == task.images
    }
    todo = [task for task in tasks if task.second.field.key not in measured]
    for done, outcome in enumerate(in_parallel(measure, todo, attempt.cpus, attempt.stopping), 1):
        measured[outcome.key] = outcome
        attempt.progress(done, len(todo), "shifts")
    if len(measured) < len(tasks):
        return None
    field_shifts: dict[FieldKey, FieldShift] = {}
    models: dict[int, Mapping[str, Any] | None] = {}
    for number in sorted({task.second.field.key.acquisition for task in tasks}):
        pairs = [task for task in tasks if task.second.field.key.acquisition == number]
        decision = _decide(plate, pairs, measured, attempt)
        if decision is None:
            return None
        model, decided = decision
        models[number] = model.facts() if model else None
        field_shifts |= {shift.key: shift for shift in decided}
    return Registration(field_shifts, models)


# ---------------------------------------------------------------- what is compared


def _tasks(out: Path, plate: Plate) -> Iterator[PairTask]:
    """Yields the pairs of fields, in plate order."""
    fields = {field.key: field for field in plate.fields}
    pairs = [
        (first, field)
        for key, field in fields.items()
        if key.acquisition
        and (first := fields.get(replace(key, acquisition=0))) is not None
        and first.shape[-2:] == field.shape[-2:]
    ]
    keys = list(dict.fromkeys(field.key for pair in pairs for field in pair))
    with ThreadPoolExecutor(8) as pool:  # thousands of small files wait for the file system together
        facts = dict(zip(keys, pool.map(partial(_facts, out, plate), keys), strict=True))
    stains = frozenset(number for number, channel in enumerate(plate.channels) if channel.fluorescent)
    images_by_kind: dict[object, list[ImageFacts]] = {}
    for _, second in pairs:
        images_by_kind.setdefault(facts[second.key].kind, []).append(facts[second.key])
    places = {
        image.field.key: place for group in images_by_kind.values() for place, image in enumerate(group)
    }
    for first, second in pairs:
        a, b = facts[first.key], facts[second.key]
        # A third of the plate apart, and so of other wells: neighbours in a well may overlap.
        group, place = images_by_kind[b.kind], places[second.key]
        steps = (place + step * len(group) // (STRANGERS + 1) for step in range(1, STRANGERS + 1))
        strangers = tuple(stranger for step in steps if (stranger := group[step % len(group)]) is not b)
        yield PairTask(a, b, strangers, tuple(sorted(a.channels.keys() & b.channels.keys())), stains)


def _facts(out: Path, plate: Plate, key: FieldKey) -> ImageFacts:
    path = image_path(out, plate, key)
    facts = metadata.read_group(path)["hpc_isl"]
    field = metadata.field_from(facts["field"])
    imaged: dict[int, dict[int, list[int]]] = {}
    for time, channel, plane, *_ in facts["statistics"]["planes"]:
        imaged.setdefault(time, {}).setdefault(channel, []).append(plane)
    time = min(imaged)
    channels = {
        channel: tuple(sorted(planes)[:: -(-len(planes) // PLANES)])
        for channel, planes in sorted(imaged[time].items())
    }
    flags = (flag.partition(":") for flag in facts["statistics"]["flags"])
    empty = frozenset(int(channel) for word, _, channel in flags if word == "empty")
    level = level_within(field.shape, facts["levels"], EDGE)
    return ImageFacts(path, field, level, time, channels, empty, facts["statistics"]["digest"])


Kind = tuple[int | None, int | None, bool]
"""A comparison: of each image outlines (None) or the brightness of a stain; whether either sign counts."""


def measure(task: PairTask) -> PairMeasurement:
    """Returns the shift between two images of a field, and how far it can be trusted."""
    pictures = _pictures(task)
    peaks = [(shifts.best_shift(first, second, kind[2]), kind) for kind, (first, second) in pictures.items()]
    peak, kind = max(peaks, key=lambda item: item[0].ratio)
    pixel_shift = (round(peak.shift[0]), round(peak.shift[1]))
    gain = _gain(task, kind, pictures[kind][0], peak.pcc, pixel_shift)
    scale = 1 << task.first.level
    # As the plate's table keeps them, so that a plate that takes in further fields decides in the same way.
    shift = (round(peak.shift[0] * scale, 2), round(peak.shift[1] * scale, 2))
    return PairMeasurement(
        task.second.field.key, shift, round(peak.ratio, 3), round(peak.pcc, 4), round(gain, 4)
    )


def verify(task: PairTask) -> tuple[FieldKey, float]:
    """Returns how high the correlation of two images is at a given shift, in standard deviations."""
    assert task.shift is not None
    scale = 1 << task.first.level
    pixel_shift = (round(task.shift[0] / scale), round(task.shift[1] / scale))
    supports = [
        shifts.Correlation.of(first, second, kind[2]).support(pixel_shift)
        for kind, (first, second) in _pictures(task).items()
    ]
    return task.second.field.key, max(supports)


def _gain(task: PairTask, kind: Kind, first: Image, pcc: float, shift: tuple[int, int]) -> float:
    """Returns by how much a correlation exceeds those with other fields under the same shift."""
    stranger_pccs = [
        abs(shifts.pcc_at(first, _picture(task, stranger, kind[1]), shift)) for stranger in task.strangers
    ]
    return abs(pcc) - max(stranger_pccs, default=0.0)


def _pictures(task: PairTask) -> dict[Kind, tuple[Image, Image]]:
    """Returns the comparisons of two images, each of two pictures (y, x) that may be alike."""
    kinds: list[Kind] = [(None, None, False)]
    if not task.shared:
        kinds += [(None, channel, True) for channel in sorted(task.stains & task.second.channels.keys())]
        kinds += [(channel, None, True) for channel in sorted(task.stains & task.first.channels.keys())]
    firsts = {stain: _picture(task, task.first, stain) for stain in {kind[0] for kind in kinds}}
    seconds = {stain: _picture(task, task.second, stain) for stain in {kind[1] for kind in kinds}}
    return {kind: (firsts[kind[0]], seconds[kind[1]]) for kind in kinds}


def _picture(task: PairTask, image: ImageFacts, stain: int | None) -> Image:
    """Returns the brightness of a stain, or the outlines of all channels that are compared: (y, x)."""
    if stain is not None:
        return shifts.brightness(_stack(image, stain))
    outlines = [shifts.outlines(_stack(image, channel)) for channel in task.shared or image.channels]
    return shifts.standardised(np.sum(outlines, axis=0, dtype=np.float32))


def _stack(image: ImageFacts, channel: int) -> NDArray[Any]:
    planes, every = list(image.channels[channel]), slice(None)
    return read_box(image.path, image.level, image.time, channel, planes, every, every)


# ---------------------------------------------------------------- which shift counts


def _decide(
    plate: Plate, tasks: Sequence[PairTask], measured: Mapping[FieldKey, PairMeasurement], attempt: Attempt
) -> tuple[PlateModel | None, list[FieldShift]] | None:
    """Returns the model of one acquisition and the shift of each of its fields; None if it was stopped."""
    outcomes = [measured[task.second.field.key] for task in tasks]
    trusted = np.array([outcome.ratio >= RATIO and outcome.gain >= GAIN for outcome in outcomes])
    if not trusted.any():
        return None, []  # nothing is known of it: its fields are paired as they lie
    places = places_of(plate, [task.first.field for task in tasks])
    expected = np.array([_by_position(task, plate.pixel_um) for task in tasks])
    deviations = np.array([outcome.shift for outcome in outcomes]) - expected
    model = shifts.plate_model(places[trusted], deviations[trusted])
    residuals = shifts.residuals(model, places, deviations) if model else np.zeros(len(outcomes))
    accepted = trusted & (
        (residuals <= shifts.RESIDUAL) | np.array([outcome.ratio >= CERTAIN for outcome in outcomes])
    )
    modelled: dict[FieldKey, tuple[int, int]] = {}
    if model is not None:
        doubtful = [
            replace(task, shift=(round(float(y)), round(float(x))))
            for task, (y, x), is_accepted in zip(tasks, expected + model.at(places), accepted, strict=True)
            if not is_accepted
        ]
        supports = dict(in_parallel(verify, doubtful, attempt.cpus, attempt.stopping))
        if len(supports) < len(doubtful):
            return None
        for task in doubtful:
            if task.shift is not None and (task.is_empty or supports[task.second.field.key] >= SUPPORT):
                modelled[task.second.field.key] = task.shift
    decided = []
    for task, outcome, is_accepted, residual in zip(
        tasks, outcomes, accepted, residuals.tolist(), strict=True
    ):
        state: State = "measured" if residual <= shifts.RESIDUAL else "far"
        shift: tuple[int, int] | None = (round(outcome.shift[0]), round(outcome.shift[1]))
        if not is_accepted:
            shift = modelled.get(outcome.key)
            state = "model" if shift else "rejected"
        decided.append(
            FieldShift(outcome.key, state, shift, outcome.shift, outcome.ratio, outcome.pcc, outcome.gain,
                       residual if model else None, task.images)
        )  # fmt: skip
    return model, decided


def _by_position(task: PairTask, pixel_um: float | None) -> tuple[float, float]:
    """Returns the shift in pixels that the stage positions of two images state."""
    first, second = task.first.field.position_um, task.second.field.position_um
    if first is None or second is None or pixel_um is None:
        return 0.0, 0.0
    return (first[0] - second[0]) / pixel_um, (first[1] - second[1]) / pixel_um


def places_of(plate: Plate, fields: Sequence[Field]) -> NDArray[np.float64]:
    """Returns where the middles of fields lie on the plate: (n, 2), (y, x) in pixels; 0 where not known.

    Where positions are those within the wells, the wells' own, by the distances of ANSI SLAS 4, are added.
    """
    formats = {shape: wells for wells, shape in FORMATS.items()}
    apart_um = WELL_DISTANCE_UM.get(formats.get((len(plate.rows), len(plate.columns)), 0))
    if plate.pixel_um is None or any(field.position_um is None for field in fields):
        return np.zeros((len(fields), 2))
    middles = [np.subtract(field.shape[-2:], 1) / 2 * plate.pixel_um for field in fields]
    positions = np.array([field.position_um for field in fields]) + np.array(middles)
    wells = np.array([well_position(field.key.well) for field in fields])
    names = [field.key.well for field in fields]
    centers = np.array(
        [np.mean(positions[[name == well for name in names]], axis=0) for well in sorted(set(names))]
    )
    if len(centers) > 1 and apart_um and np.ptp(centers, axis=0).max() < apart_um / 2:
        positions += wells * apart_um
    on_plate: NDArray[np.float64] = positions / plate.pixel_um
    return on_plate
