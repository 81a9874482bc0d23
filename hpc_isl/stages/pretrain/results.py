"""What a trained network makes of the test wells: scores, pictures and a virtual stain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.learning.inference.predict import Predictor
from hpc_isl.learning.training.world import World
from hpc_isl.plates.plate import Plate
from hpc_isl.plates.plate_map import described
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.pretrain.virtual_stain import (
    finish_stain,
    stain_paths,
    stain_plate,
    start_stain,
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
from hpc_isl.stages.shared.plate_views import PlateField, PlateViews, name_of
from hpc_isl.stages.shared.workloads import TEST, megapixels

EXAMPLES = 4

Stains = Mapping[str, tuple[Path, Plate]]
"""Plate -> where its virtual stain is written, and as which plate."""


@dataclass(frozen=True)
class Results:
    """Of the test wells, the same on all ranks.

    Attributes:
        rows: one for each field, time and target, sorted.
        made: what it is -> where it lies.
    """

    rows: tuple[Row, ...]
    made: Mapping[str, str]


def make_results(
    study: PlateViews,
    predictor: Predictor,
    attempt: Attempt,
    world: World,
    labels: str | None,
    stain: bool,
    loss: str,
) -> Results | None:
    """Predicts each test field once, shared out among ranks; None if the run is stopping.

    In the run folder appear `scores.csv`, `pictures/` and, with `stain`, `stain.zarr`. `loss`: its name.
    """
    places = study.places("test")
    stains = _stains(study, places, attempt.run) if stain else {}
    if world.rank == 0:
        start_stain([path for path, _ in stains.values()])
    world.barrier()
    rows, examples = _own_share(study, predictor, attempt, world, places, stains, labels)
    gathered = world.gather((attempt.stopping.is_set(), rows, examples))
    if any(stopped for stopped, _, _ in gathered):
        return None
    by = ("plate", "well", "field", "acquisition", "time", "target")
    ordered = sorted(
        (row for _, own, _ in gathered for row in own), key=lambda row: [row[name] for name in by]
    )
    made: dict[str, str] = {}
    if world.rank == 0:
        shown = dict(pair for _, _, own in gathered for pair in own)
        pairs = [shown[number] for number in sorted(shown)]
        made = _write(study, attempt.run, stains, ordered, pairs, loss)
    return Results(tuple(ordered), world.broadcast(made))


def _stains(study: PlateViews, places: Sequence[PlateField], run: Run) -> Stains:
    paths = stain_paths(study, places, run.folder) if places else {}
    by_name = {index.plate.name: index for index in study.indices}
    return {name: (path, stain_plate(study, by_name[name], places)) for name, path in paths.items()}


def _own_share(
    study: PlateViews,
    predictor: Predictor,
    attempt: Attempt,
    world: World,
    places: Sequence[PlateField],
    stains: Stains,
    labels: str | None,
) -> tuple[list[Row], list[tuple[int, pictures.Example]]]:
    """This rank's rows, and its examples by their number among all test fields."""
    shown = {round(n * (len(places) - 1) / (EXAMPLES - 1)) for n in range(EXAMPLES)}
    rows: list[Row] = []
    examples: list[tuple[int, pictures.Example]] = []
    own = range(world.rank, len(places), world.size)
    for done, number in enumerate(own, 1):
        if attempt.stopping.is_set():
            break
        seen = list(predict_field(study, predictor, places[number]))
        found = [row for each in seen for row in score(study, each, labels)]
        rows += found
        if stains:
            path, plate = stains[seen[0].index.plate.name]
            write_stain(path, plate, study, seen)
        attempt.clock.tick(TEST, megapixels(study.view, [places[number]]))
        if number in shown:
            examples.append((number, _example(study, seen[0], found)))
        attempt.progress(done, len(own), "test fields", **main_scores(rows))
    return rows, examples


def _example(study: PlateViews, seen: FieldPrediction, rows: Sequence[Row]) -> pictures.Example:
    about = described(seen.index.plate_map.get(seen.key.well, {}))
    return pictures.Example(
        title=", ".join([str(seen.key), *about]),
        sources=seen.sources,
        targets=seen.targets,
        prediction=seen.prediction,
        source_names=tuple(map(name_of, study.view.sources)),
        target_names=tuple(map(name_of, study.view.targets)),
        pccs=tuple(row["pcc"] for row in rows if row["time"] == seen.time),
        pixel_um=study.view.pixel_um,
    ).cropped()


def _write(
    study: PlateViews,
    run: Run,
    stains: Stains,
    rows: Sequence[Row],
    examples: Sequence[pictures.Example],
    loss: str,
) -> dict[str, str]:
    made: dict[str, Path] = {}
    for index in study.indices:
        if index.plate.name in stains:
            path, plate = stains[index.plate.name]
            finish_stain(path, plate, index)
            made["virtual stain" if len(stains) == 1 else f"virtual stain of {index.plate.name}"] = path
    if rows:
        made["scores"] = run.folder / "scores.csv"
        write_scores(rows, made["scores"])
    if examples:
        made["source, target, prediction"] = run.pictures / "examples.png"
        pictures.draw_examples(examples, made["source, target, prediction"])
    made["training curves"] = run.pictures / "training.png"
    pictures.draw_training(run.metric_lines(), made["training curves"], loss)
    return {label: str(path) for label, path in made.items()}
