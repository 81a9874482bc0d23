"""Pretraining inside the job: trains, saves the model; scores, pictures and a virtual stain of test wells."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.learning.data.calibrate import view_of
from hpc_isl.learning.data.drift import reference_of
from hpc_isl.learning.data.fields import field_view
from hpc_isl.learning.data.samples import crops_of
from hpc_isl.learning.data.split import PARTS, draw
from hpc_isl.learning.data.split import read as read_split
from hpc_isl.learning.data.split import write as write_split
from hpc_isl.learning.data.view import View
from hpc_isl.learning.network.losses import loss_of, title_of
from hpc_isl.learning.network.unet import build
from hpc_isl.learning.training.batch_plan import check_micro_batches
from hpc_isl.learning.training.world import World, open_world
from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate
from hpc_isl.plates.plate_map import described
from hpc_isl.plates.statistics import measure
from hpc_isl.plates.store import finalise, write_field
from hpc_isl.recipes.load import digest
from hpc_isl.recipes.plates import CodecRecipe
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.run import Attempt
from hpc_isl.stages.shared import held_out, pictures
from hpc_isl.stages.shared.following import after_pretraining
from hpc_isl.stages.shared.held_out import (
    FieldPrediction,
    Row,
    main_scores,
    predict_field,
    score,
    write_scores,
)
from hpc_isl.stages.shared.plate_views import PlateField, PlateView, PlateViews, name_of, open_plates
from hpc_isl.stages.shared.training_run import TrainingRun
from hpc_isl.stages.shared.workloads import TEST, TRIAL_S, VALIDATION, ended_after, megapixels

# Range of a normalised target's values, to which the constants of SSIM as a loss refer.
SPAN = {"percentile": 1.0, "standard": 4.0, "max16": 1.0, "none": 65535.0}
EXAMPLES = 4
ORDER = ("plate", "well", "field", "acquisition", "time", "target")

Run = TrainingRun[PretrainRecipe]
Stains = Mapping[str, tuple[Path, Plate]]
"""Plate -> the path of its virtual stain, and the plate that is written there."""
NumberedExample = tuple[int, pictures.Example]
"""A picture's row, and the number of its field among all test fields."""


def pretrain(recipe: PretrainRecipe, attempt: Attempt) -> None:
    """Trains, saves the model, scores the test wells, draws pictures, writes the virtual stain.

    A run that is asked to stop saves a checkpoint (or drops the scores it has so far) and returns;
    the next attempt resumes there.
    """
    results, step = None, 0
    with open_world(attempt) as world:
        run = _open_run(recipe, attempt, world)
        progress, finished = run.train(run.study.fields("validation"))
        if finished:
            # With patience the network holds the weights of the best step, not those of the last one.
            step = progress.best_step if recipe.train.patience and progress.best_step else progress.step
            wells = {part: _wells(run.study, part, recipe.split.by) for part in PARTS}
            training = [run.study.keys(index, "train") for index in run.study.indices]
            run.save_model(step, wells, reference_of(run.study.view, run.study.indices, training))
            results = make_results(run)
    if results is None:
        attempt.stopping.set()  # one rank was asked to stop; now all of them know
        return
    rows, outputs = results
    attempt.metric(step, **{f"test/{name}": value for name, value in held_out.main_scores(rows).items()})
    if constant := held_out.figures(rows).get(held_out.CONSTANT):
        attempt.log(f"test wells: {held_out.constant_text(constant)}")
    arm = "imagenet+isl" if recipe.net.weights else "random+isl"
    attempt.finish({
        "figures": held_out.figures(rows) | {"steps": step},
        "by": held_out.by_plate_map(run.study, rows),
        "made": {"model": str(attempt.run.model), **outputs},
        "next": after_pretraining(run.study, arm) if run.world.rank == 0 else [],
    })  # fmt: skip


def trial(recipe: PretrainRecipe, attempt: Attempt) -> None:
    """Trains for a while, then scores a validation field and a test field; keeps nothing."""
    with open_world(attempt) as world:
        run = _open_run(recipe, attempt, world)
        with ended_after(attempt, TRIAL_S):
            run.train(run.study.fields("validation"))
        for part, phase in (("validation", VALIDATION), ("test", TEST)):
            attempt.clock.tick("between", 1)
            for field in run.study.fields(part)[:1]:
                for predicted in held_out.predict_field(run.predictor(), field):
                    held_out.score(predicted, recipe.labels)
                attempt.clock.tick(phase, megapixels([field]))


def _open_run(recipe: PretrainRecipe, attempt: Attempt, world: World) -> TrainingRun[PretrainRecipe]:
    """Opens plates and network. Rank 0 decides the split and the view; the other ranks receive them."""
    check_micro_batches(recipe.train, world.size)
    indices = open_plates(recipe.plates)
    path = attempt.run.folder / "split.csv"
    if world.rank == 0 and not path.exists():
        write_split(draw(indices, recipe.split), path)
    world.barrier()
    split = read_split(path)
    # One rank decides: percentiles must be the same bits on all.
    view = view_of(indices, split, recipe).to_dict() if world.rank == 0 else {}
    study = PlateViews(recipe, View.from_dict(world.broadcast(view)), split, indices)
    crops = crops_of(study.view, indices, split, recipe.train, recipe.augment, recipe.control)
    for line in crops.messages:
        attempt.log(line)
    network = build(recipe.net, len(study.view.sources), len(study.view.targets), recipe.train.seed)
    span = SPAN[recipe.data.normalize.target]
    return TrainingRun(
        recipe, attempt, world, study, recipe.net, network, crops,
        loss_of(recipe.loss.name, recipe.loss.pearson, recipe.loss.ssim, span),
        digest(recipe, study.fingerprints | {"split": split.digest}),
    )  # fmt: skip


def _wells(study: PlateViews, part: str, by: str) -> dict[str, list[str]]:
    """Returns plate -> wells of a part, or fields as in B03/1 where the split is by field."""
    units: dict[str, set[str]] = {index.plate.name: set() for index in study.indices}
    for plate, key in study.fields(part):
        units[plate.name].add(key.well if by == "well" else f"{key.well}/{key.name}")
    return {name: sorted(plate_units) for name, plate_units in units.items()}


# ---------------------------------------------------------------- results on the test wells


def make_results(run: Run) -> tuple[list[Row], dict[str, str]] | None:
    """Predicts each test field once, shared among ranks; returns None if the run is stopping.

    Writes `scores.csv`, `pictures/` and, if the recipe asks for it, `stain.zarr` into the run folder.

    Returns:
        A row for each field, time and target, sorted; and title -> path of what was written. Both are the
        same on all ranks.
    """
    study, world = run.study, run.world
    fields = study.fields("test")
    stains: Stains = {}
    if run.recipe.predict.stain and fields:
        plates = {plate.name: plate for plate in study.plates}
        paths = stain_paths(study, fields, run.attempt.run.folder)
        stains = {name: (path, stain_plate(plates[name], fields)) for name, path in paths.items()}
    if world.rank == 0:
        for path, _ in stains.values():
            # An interrupted attempt left it; it is written again, with the same pixels.
            shutil.rmtree(path, ignore_errors=True)
    # No rank writes a field before the remains of an earlier attempt are gone.
    world.barrier()
    rows, examples = _own_share(run, fields, stains)
    gathered = world.gather((run.attempt.stopping.is_set(), rows, examples))
    if any(stopped for stopped, _, _ in gathered):
        return None
    # Sorted, so that the table does not depend on the number of ranks.
    ordered_rows = sorted(
        (row for _, share, _ in gathered for row in share), key=lambda row: [row[name] for name in ORDER]
    )
    outputs: dict[str, str] = {}
    if world.rank == 0:
        numbered = sorted((pair for _, _, share in gathered for pair in share), key=lambda pair: pair[0])
        outputs = _write(run, stains, ordered_rows, [example for _, example in numbered])
    return ordered_rows, world.broadcast(outputs)


def _own_share(
    run: Run, fields: Sequence[PlateField], stains: Stains
) -> tuple[list[Row], list[NumberedExample]]:
    """Predicts this rank's fields; returns their rows, and examples for the picture."""
    # Examples are spread evenly over all test fields, so that they do not depend on the number of ranks.
    example_numbers = {round(index * (len(fields) - 1) / (EXAMPLES - 1)) for index in range(EXAMPLES)}
    predictor = run.predictor()
    rows: list[Row] = []
    examples: list[NumberedExample] = []
    numbers = range(run.world.rank, len(fields), run.world.size)
    for done, number in enumerate(numbers, 1):
        if run.attempt.stopping.is_set():
            break
        predictions = list(predict_field(predictor, fields[number]))
        scores = [row for predicted in predictions for row in score(predicted, run.recipe.labels)]
        rows += scores
        if stains:
            write_stain(*stains[predictions[0].plate.name], predictions)
        run.attempt.clock.tick(TEST, megapixels([fields[number]]))
        if number in example_numbers:
            examples.append((number, _example(predictions[0], scores)))
        run.attempt.progress(done, len(numbers), "test fields", **main_scores(rows))
    return rows, examples


def _example(predicted: FieldPrediction, rows: Sequence[Row]) -> pictures.Example:
    view = predicted.plate.view
    scored = predicted.scored() or predicted
    return pictures.Example(
        title=", ".join([str(predicted.key), *described(predicted.plate.plate_map(predicted.key))]),
        sources=scored.sources,
        targets=scored.targets,
        prediction=scored.prediction,
        source_names=tuple(map(name_of, view.sources)),
        target_names=tuple(map(name_of, view.targets)),
        pccs=tuple(row["pcc"] for row in rows if row["time"] == predicted.time),
        pixel_um=view.pixel_um,
    ).cropped()


def _write(
    run: Run, stains: Stains, rows: Sequence[Row], examples: Sequence[pictures.Example]
) -> dict[str, str]:
    saved_run, loss = run.attempt.run, run.recipe.loss
    outputs: dict[str, Path] = {}
    for index in run.study.indices:
        if index.plate.name in stains:
            path, plate = stains[index.plate.name]
            map_rows = {well: index.plate_map[well] for well in plate.wells if well in index.plate_map}
            finalise(path, plate, map_rows)
            outputs["virtual stain" if len(stains) == 1 else f"virtual stain of {index.plate.name}"] = path
    if rows:
        outputs["scores"] = saved_run.folder / "scores.csv"
        write_scores(rows, outputs["scores"])
    if examples:
        outputs["source, target, prediction"] = saved_run.pictures / "examples.png"
        pictures.draw_examples(examples, outputs["source, target, prediction"])
    outputs["training curves"] = saved_run.pictures / "training.png"
    title = title_of(loss.name, loss.pearson, loss.ssim)
    pictures.draw_training(saved_run.metric_lines(), outputs["training curves"], title)
    return {name: str(path) for name, path in outputs.items()}


# ---------------------------------------------------------------- the virtual stain as a plate


def stain_paths(study: PlateViews, fields: Sequence[PlateField], run: Path) -> dict[str, Path]:
    """Returns plate -> the path of its virtual stain: `stain.zarr`, or a folder of several plates."""
    names = list(dict.fromkeys(plate.name for plate, _ in fields))
    if len(names) == 1:
        return {names[0]: run / "stain.zarr"}
    paths = {index.plate.name: index.path for index in study.indices}
    # Two plates may lie in folders of one name.
    unique = len({paths[name].name for name in names}) == len(names)
    return {
        name: run / "stain" / (paths[name].name if unique else f"{number}-{paths[name].name}")
        for number, name in enumerate(names, 1)
    }


def stain_plate(plate: PlateView, fields: Sequence[PlateField]) -> Plate:
    """Returns the plate to write: its fields at the level that the model sees, a channel for each target."""
    keys = [key for other_plate, key in fields if other_plate.index is plate.index]
    index, pixel_um = plate.index, plate.index.plate.pixel_um
    return replace(
        index.plate,
        channels=tuple(_channel(plate, number) for number in range(len(plate.view.targets))),
        fields=tuple(_field(plate, key) for key in keys),
        pixel_um=None if pixel_um is None else pixel_um * 2 ** plate.level(keys[0]),
        plane_um=None,
        details={"virtual stain of": plate.name, "fingerprint": index.fingerprint},
    )


def _channel(plate: PlateView, number: int) -> Channel:
    role = plate.view.targets[number]
    names = [target.channel for target in plate.view.targets]
    name = role.channel if names.count(role.channel) == 1 else name_of(role)
    channels = [channel for channel in plate.index.plate.channels if channel.name == role.channel]
    plate_channel = channels[0] if channels else Channel(name)
    return replace(plate_channel, name=f"{name} (predicted)", exposure_s=None, flat_field=None)


def _field(plate: PlateView, key: FieldKey) -> Field:
    plate_field, pixel_um = plate.index.field(key), plate.index.plate.pixel_um
    y, x = field_view(plate.view, plate.index, key, plate.times(key)[0]).shape
    integer = np.dtype(plate_field.dtype).kind in "iu" and all(role.numbers for role in plate.view.targets)
    position = plate_field.position_um
    if position is not None and pixel_um is not None:
        # Positions are of the first pixel's centre, which lies further inside where pixels are larger.
        inward = pixel_um * (plate_field.shape[3] // y - 1) / 2
        position = position[0] + inward, position[1] + inward
    return Field(
        key=key,
        shape=(plate_field.shape[0], len(plate.view.targets), 1, y, x),
        dtype=plate_field.dtype if integer else "float32",
        position_um=position,
    )


def write_stain(path: Path, plate: Plate, predictions: Sequence[FieldPrediction]) -> None:
    """Writes the predictions of one field at all times that were imaged, as counts (see `in_counts`)."""
    field = next(field for field in plate.fields if field.key == predictions[0].key)
    pixels = np.zeros(field.shape, field.dtype)
    for predicted in predictions:
        pixels[predicted.time, :, 0] = in_counts(predicted.plate.view, predicted.prediction, field.dtype)
    planes = [(predicted.time, channel, 0) for predicted in predictions for channel in range(field.shape[1])]
    field = field.with_planes(planes, [channel.name for channel in plate.channels])
    write_field(path, plate, field, pixels, measure(pixels, planes), CodecRecipe())


def in_counts(view: View, prediction: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Returns the prediction (target, y, x) before normalisation, rounded and clipped to an integer type.

    Counts are flat-field corrected where the view corrects them. Targets that were normalised field by
    field have no counts: they stay float32, in relative units.
    """
    numbers = [role.numbers or (0.0, 1.0) for role in view.targets]
    offset, scale = (np.array(column, np.float32)[:, None, None] for column in zip(*numbers, strict=True))
    counts = prediction * scale + offset
    if np.dtype(dtype).kind == "f":
        return np.asarray(counts, dtype)
    limits = np.iinfo(dtype)
    clipped: NDArray[Any] = np.clip(np.rint(counts), limits.min, limits.max)
    return clipped.astype(dtype)
