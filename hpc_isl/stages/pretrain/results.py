"""Results of pretraining on the test wells: scores, pictures and a virtual stain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hpc_isl.learning.network.losses import title_of
from hpc_isl.plates.plate import Plate
from hpc_isl.plates.plate_map import described
from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.stages.pretrain.virtual_stain import (
    finish_stain,
    remove_partial_stains,
    stain_paths,
    stain_plate,
    write_stain,
)
from hpc_isl.stages.shared import pictures
from hpc_isl.stages.shared.held_out import (
    FieldPrediction,
    Row,
    main_scores,
    predict_field,
    score,
    write_scores,
)
from hpc_isl.stages.shared.plate_views import PlateField, name_of
from hpc_isl.stages.shared.training_run import TrainingRun
from hpc_isl.stages.shared.workloads import TEST, megapixels

EXAMPLES = 4
ORDER = ("plate", "well", "field", "acquisition", "time", "target")

Run = TrainingRun[PretrainRecipe]
Stains = Mapping[str, tuple[Path, Plate]]
"""Plate -> the path of its virtual stain, and the plate that is written there."""
NumberedExample = tuple[int, pictures.Example]
"""A picture's row, and the number of its field among all test fields."""


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
        remove_partial_stains([path for path, _ in stains.values()])
    # No rank writes a field before the remains of an earlier attempt are gone.
    world.barrier()
    rows, examples = _own_share(run, fields, stains)
    gathered = world.gather((run.attempt.stopping.is_set(), rows, examples))
    if any(stopped for stopped, _, _ in gathered):
        return None
    ordered = sorted(
        (row for _, own, _ in gathered for row in own), key=lambda row: [row[name] for name in ORDER]
    )
    made: dict[str, str] = {}
    if world.rank == 0:
        numbered = sorted((pair for _, _, own in gathered for pair in own), key=lambda pair: pair[0])
        made = _write(run, stains, ordered, [example for _, example in numbered])
    return ordered, world.broadcast(made)


def _own_share(
    run: Run, fields: Sequence[PlateField], stains: Stains
) -> tuple[list[Row], list[NumberedExample]]:
    """Predicts this rank's fields; returns their rows, and examples for the picture."""
    # Examples are spread evenly over all test fields, so that they do not depend on the number of ranks.
    shown = {round(n * (len(fields) - 1) / (EXAMPLES - 1)) for n in range(EXAMPLES)}
    predictor = run.predictor()
    rows: list[Row] = []
    examples: list[NumberedExample] = []
    own = range(run.world.rank, len(fields), run.world.size)
    for done, number in enumerate(own, 1):
        if run.attempt.stopping.is_set():
            break
        times = list(predict_field(predictor, fields[number]))
        found = [row for predicted in times for row in score(predicted, run.recipe.labels)]
        rows += found
        if stains:
            write_stain(*stains[times[0].plate.name], times)
        run.attempt.clock.tick(TEST, megapixels([fields[number]]))
        if number in shown:
            examples.append((number, _example(times[0], found)))
        run.attempt.progress(done, len(own), "test fields", **main_scores(rows))
    return rows, examples


def _example(predicted: FieldPrediction, rows: Sequence[Row]) -> pictures.Example:
    view = predicted.plate.view
    return pictures.Example(
        title=", ".join([str(predicted.key), *described(predicted.plate.plate_map(predicted.key))]),
        sources=predicted.sources,
        targets=predicted.targets,
        prediction=predicted.prediction,
        source_names=tuple(map(name_of, view.sources)),
        target_names=tuple(map(name_of, view.targets)),
        pccs=tuple(row["pcc"] for row in rows if row["time"] == predicted.time),
        pixel_um=view.pixel_um,
    ).cropped()


def _write(
    run: Run, stains: Stains, rows: Sequence[Row], examples: Sequence[pictures.Example]
) -> dict[str, str]:
    folder, loss = run.attempt.run, run.recipe.loss
    made: dict[str, Path] = {}
    for index in run.study.indices:
        if index.plate.name in stains:
            path, plate = stains[index.plate.name]
            finish_stain(path, plate, index)
            made["virtual stain" if len(stains) == 1 else f"virtual stain of {index.plate.name}"] = path
    if rows:
        made["scores"] = folder.folder / "scores.csv"
        write_scores(rows, made["scores"])
    if examples:
        made["source, target, prediction"] = folder.pictures / "examples.png"
        pictures.draw_examples(examples, made["source, target, prediction"])
    made["training curves"] = folder.pictures / "training.png"
    title = title_of(loss.name, loss.pearson, loss.ssim)
    pictures.draw_training(folder.metric_lines(), made["training curves"], title)
    return {name: str(path) for name, path in made.items()}
