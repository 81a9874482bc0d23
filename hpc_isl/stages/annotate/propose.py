"""annotate propose (experimental): which fields are most worth annotating next, as a table and a picture."""

from __future__ import annotations

import hashlib
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_isl.errors import many
from hpc_isl.files import write_atomic
from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.plate_map import described
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.run import Attempt, Plan, Run
from hpc_isl.stages.annotate.candidates import N, Pool, pool_of, remarks
from hpc_isl.stages.annotate.embeddings import (
    Embed,
    Embedding,
    KeptEmbeddings,
    by_network,
    by_statistics,
    embed_all,
    sharpest_image,
)
from hpc_isl.stages.annotate.ranking import Pick, ranked, scaled_residuals, standardised
from hpc_isl.stages.shared.following import word
from hpc_isl.stages.shared.plate_views import PlateView

RESIDUAL_WEIGHT = 0.25
MOST_PANELS = 100
COLUMNS_OF_PANELS = 5
PANEL_EDGE = 512
KEPT = "embeddings.npz"
PANEL_CHARACTERS = 46
BY_NETWORK = (
    "SD: root mean square difference of the encoder's features, each in its standard deviations over fields; "
    "PCC: Pearson's correlation with the true stain"
)
BY_STATISTICS = (
    "SD: root mean square difference of image statistics, each in its standard deviations over fields"
)


def plan(recipe: AnnotateRecipe, index: store.Index) -> Plan:
    """Returns how many fields may be proposed.

    Raises:
        UserError: no such model, channel or plate map column; fewer fields are left than asked for.
    """
    pool = pool_of(recipe, index)
    inputs = {index.plate.name: index.fingerprint}
    if pool.contract is not None:
        inputs["model"] = pool.contract.weights
    names = " ".join(map(str, pool.annotated))
    inputs["annotated fields"] = hashlib.sha256(names.encode()).hexdigest()[:16]
    messages = (
        *remarks(recipe, index, pool),
        f"{many(len(pool.annotated), 'field', 'has', 'have')} labels {recipe.labels!r} of people",
        f"{recipe.n or N} of {len(pool.candidates)} fields of {recipe.plate} are proposed (experimental: "
        "it is not measured yet how many annotations that saves)",
    )
    return Plan(recipe, messages, inputs)


def propose(recipe: AnnotateRecipe, index: store.Index, attempt: Attempt) -> None:
    """Writes `proposed.csv` and `pictures/proposed.png`; a run that was stopped continues where it was."""
    pool = pool_of(recipe, index)
    weight = RESIDUAL_WEIGHT if recipe.residual_weight is None else recipe.residual_weight
    weights = pool.contract.weights if pool.contract else ""
    inputs = f"{index.fingerprint} {weights} {'with' if weight else 'without'} residual"

    def make() -> Embed:
        if recipe.model is None or pool.view is None:
            return by_statistics(index)
        return by_network(Run(recipe.model).model, pool.view, attempt.cpus, with_residual=weight > 0)

    kept = KeptEmbeddings(attempt.run.folder / KEPT, inputs)
    embeddings = embed_all(pool.keys, make, kept, attempt)
    if embeddings is None:
        return
    proposals = proposals_of(recipe, index, pool, embeddings, weight)
    table = attempt.run.folder / "proposed.csv"
    write_atomic(table, table_text(proposals, index))
    picture = attempt.run.pictures / "proposed.png"
    caption = BY_NETWORK if pool.view else BY_STATISTICS
    draw(proposals, index, picture, _shown_channel(index, pool.view), caption)
    for proposal in proposals:
        attempt.log(f"{proposal.rank:>3}  {proposal.key}  {proposal.reason}")
    if len(proposals) > MOST_PANELS:
        attempt.log(f"the picture shows the first {MOST_PANELS}")
    fields = [str(proposal.key) for proposal in proposals]
    keys = {"plate": str(recipe.plate), "labels": recipe.labels, "fields": fields, "out": "todo"}
    attempt.finish({
        "fields": len(proposals),
        "made": {"proposed fields": str(table), "picture of them": str(picture)},
        "next": [" ".join(["annotate export", *(word(key, value) for key, value in keys.items())])],
    })  # fmt: skip
    kept.path.unlink(missing_ok=True)


# ---------------------------------------------------------------- the list


@dataclass(frozen=True)
class Proposal:
    """A line of the list; `score` is NaN for the first field where nothing is annotated yet."""

    rank: int
    key: FieldKey
    score: float
    reason: str


def proposals_of(
    recipe: AnnotateRecipe,
    index: store.Index,
    pool: Pool,
    embeddings: Mapping[str, Embedding],
    weight: float,
) -> list[Proposal]:
    """Returns the fields to annotate, the first ones first."""
    keys = pool.keys
    features = standardised(np.stack([embeddings[str(key)].features for key in keys]))
    number_of_candidates = len(pool.candidates)
    residuals = np.array([embeddings[str(key)].residual for key in keys])
    # Annotated fields are never chosen: their stain is not to change the scale of the others.
    candidate_residuals = residuals[:number_of_candidates]
    has_residuals = bool(weight) and bool(np.isfinite(candidate_residuals).any())
    scaled = np.concatenate([scaled_residuals(candidate_residuals), np.zeros(len(pool.annotated))])
    columns = recipe.stratify or []
    strata = [tuple(index.plate_map.get(key.well, {}).get(name, "") for name in columns) for key in keys]
    picks = ranked(
        features, range(number_of_candidates, len(keys)), recipe.n or N, strata,
        scaled if has_residuals else None, weight if has_residuals else 0.0,
    )  # fmt: skip
    return [
        Proposal(
            rank, keys[pick.number], pick.score,
            "; ".join([
                _distance_text(pick, keys),
                *_residual_text(pick, candidate_residuals if has_residuals else candidate_residuals[:0]),
                *_stratum_text(pick, columns, strata),
                *_flags_text(index, keys[pick.number]),
            ]),
        )
        for rank, pick in enumerate(picks, 1)
    ]  # fmt: skip


def _distance_text(pick: Pick, keys: Sequence[FieldKey]) -> str:
    if pick.nearest is None:
        return "in the middle of all fields, of which none is annotated"
    # The root mean square over features, each in its standard deviations over fields.
    return f"{pick.distance:.2f} SD from the nearest field annotated or listed before, {keys[pick.nearest]}"


def _residual_text(pick: Pick, residuals: np.ndarray) -> Iterator[str]:
    if pick.nearest is not None and len(residuals) and np.isfinite(residuals[pick.number]):
        residual, others = residuals[pick.number], np.delete(residuals, pick.number)
        less = int((others < residual).sum())
        yield f"PCC of its predicted stain {1 - residual:.2f}, worse than in {less} of {len(others)} others"


def _stratum_text(pick: Pick, columns: Sequence[str], strata: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if columns and pick.opens:
        values = (f"{name}={value}" for name, value in zip(columns, strata[pick.number], strict=True))
        yield f"the first of {', '.join(values)}"


def _flags_text(index: store.Index, key: FieldKey) -> Iterator[str]:
    """Yields what convert found odd: what is unlike all others may be a bad image."""
    for flag in index.statistics[key].flags:
        kind, _, channel = flag.partition(":")
        yield f"{kind} in {index.plate.channels[int(channel)].name}"


# ---------------------------------------------------------------- files


def table_text(proposals: Sequence[Proposal], index: store.Index) -> str:
    """Returns the CSV: rank, well, field, acquisition, score, reason, and the plate map's columns."""
    import csv

    columns = list(dict.fromkeys(name for row in index.plate_map.values() for name in row))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["rank", "well", "field", "acquisition", "score", "reason", *columns])
    for proposal in proposals:
        key, score = proposal.key, "" if np.isnan(proposal.score) else f"{proposal.score:.4f}"
        values = index.plate_map.get(key.well, {})
        writer.writerow([
            proposal.rank, key.well, key.name, key.acquisition, score, proposal.reason,
            *(values.get(name, "") for name in columns),
        ])  # fmt: skip
    return stream.getvalue()


def _shown_channel(index: store.Index, view: PlateView | None) -> int:
    """Returns the channel of the picture: the model's first source, or the first that is label-free."""
    if view is not None:
        return index.channel(view.view.sources[0].channel)
    label_free = [n for n, channel in enumerate(index.plate.channels) if not channel.fluorescent]
    return label_free[0] if label_free else 0


def draw(proposals: Sequence[Proposal], index: store.Index, path: Path, channel: int, caption: str) -> None:
    """Draws a panel for each proposed field: its sharpest plane, rank, and reason; below all, a caption."""
    from matplotlib.figure import Figure

    from hpc_isl.stages.shared import pictures

    panels = proposals[:MOST_PANELS]
    columns = min(COLUMNS_OF_PANELS, len(panels))
    rows = -(-len(panels) // columns)
    titles = [_title(proposal, index) for proposal in panels]
    # Titles of axes that are off get no room from the layout: 0.14 inches for each line.
    height = 3.4 + 0.14 * max(title.count("\n") + 1 for title in titles)
    figure = Figure(figsize=(3.2 * columns, height * rows + 0.4), layout="constrained", dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
        axis.set_anchor("S")  # the room of a taller figure lies above the image, where its title is
    for axis, proposal, title in zip(axes, panels, titles, strict=False):
        image = sharpest_image(index, proposal.key, channel, PANEL_EDGE)
        if image is not None:
            pictures.show_grey(axis, image)
        # A plate map may hold a dollar sign, which would begin a formula.
        axis.set_title(title, fontsize=8, color=pictures.INK, loc="left", parse_math=False)
    figure.supxlabel(textwrap.fill(caption, PANEL_CHARACTERS * columns), fontsize=8, color=pictures.INK)
    pictures.save(figure, path)


def _title(proposal: Proposal, index: store.Index) -> str:
    """Returns rank, place and plate map of a field, and its reason, in lines as wide as a panel."""
    facts = described(index.plate_map.get(proposal.key.well, {}))
    texts = ", ".join([f"{proposal.rank}. {proposal.key}", *facts]), proposal.reason
    return "\n".join(line for text in texts for line in textwrap.wrap(text, PANEL_CHARACTERS))
