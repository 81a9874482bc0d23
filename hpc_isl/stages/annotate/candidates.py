"""The fields of a plate among which `annotate propose` chooses, and those that it leaves alone, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc_isl.errors import UserError, many, nearest
from hpc_isl.learning.data.rescale import unlike_channels
from hpc_isl.learning.network.contract import Contract, read_contract
from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.run import Run
from hpc_isl.stages.annotate.label_files import chosen
from hpc_isl.stages.shared.plate_views import PlateView, resized_since

N = 5
TEST = "are test fields of the model and are not looked at"
NOT_IMAGED = "have no image of what the model sees"
TIMES = "have several times, which annotate export does not lend"
EMPTY = "show no structure in any channel that is looked at"
NOT_CHOSEN = "are not among fields="


@dataclass(frozen=True)
class Pool:
    """The fields of a plate that are embedded.

    Attributes:
        candidates: that may be proposed, in plate order.
        annotated: that people have annotated under this name: whatever lies near them is known.
        left_out: reason -> number of fields that are neither.
        contract: of the model, with `view`: how it sees the plate; None: there is no model.
    """

    candidates: tuple[FieldKey, ...]
    annotated: tuple[FieldKey, ...]
    left_out: Mapping[str, int]
    contract: Contract | None = None
    view: PlateView | None = None

    @property
    def keys(self) -> tuple[FieldKey, ...]:
        return self.candidates + self.annotated


def pool_of(recipe: AnnotateRecipe, index: store.Index) -> Pool:
    """Returns the fields to embed; reads no pixels, and nothing of the model's test fields.

    Raises:
        UserError: no such model, channel or plate map column; fewer fields are left than asked for.
    """
    contract, view = None, None
    if recipe.model is not None:
        contract = _contract(recipe.model)
        view = PlateView(recipe, contract.view, index)
        for role in contract.view.sources:
            index.channel(role.channel)
    chosen_keys = set(chosen(recipe.fields, index))
    candidates, annotated, left_out = [], [], Counter[str]()
    for field in index.plate.fields:
        key = field.key
        if reason := _unusable(index, key, contract, view):
            left_out[reason] += 1
        elif _is_annotated(index, key, recipe.labels):
            annotated.append(key)
        elif key in chosen_keys:
            candidates.append(key)
        else:
            left_out[NOT_CHOSEN] += 1
    if view is not None and candidates:
        view.scale(candidates[0])  # raises where the plate's pixels do not fit the model
    pool = Pool(tuple(candidates), tuple(annotated), left_out, contract, view)
    _check_columns(recipe, index)
    _check_number(recipe, index, pool)
    return pool


def _contract(run: Path) -> Contract:
    """Returns the contract of a run of pretrain."""
    try:
        contract = read_contract(Run(run).model)
    except UserError as error:
        raise UserError(f"model={run.name}: {error}") from None
    if contract.task is not None:
        raise UserError(f"model={run.name}: this model segments; name a run of pretrain")
    for line, _ in resized_since(contract):
        raise UserError(f"model={run.name}: {line}, after this model was trained there; train it again")
    return contract


def _unusable(index: store.Index, key: FieldKey, contract: Contract | None, view: PlateView | None) -> str:
    """Returns why a field can be neither proposed nor compared with; empty: it can."""
    # First of all, so that nothing else is asked of a test field.
    if contract is not None and contract.has_seen("test", index.plate.name, key):
        return TEST
    if index.field(key).shape[0] > 1:
        return TIMES
    if view is None:
        channels = {channel for _, channel, _ in index.statistics[key].planes}
        empty = {channel for channel in channels if f"empty:{channel}" in index.statistics[key].flags}
        return EMPTY if channels == empty else ""
    acquisition = view.view.sources[0].acquisition
    if acquisition not in (None, key.acquisition) or not view.times(key):
        return NOT_IMAGED
    return EMPTY if view.is_empty(key) else ""


def _is_annotated(index: store.Index, key: FieldKey, labels: str) -> bool:
    """Returns whether people drew the labels of a field, or whether nobody knows who made them."""
    provenance = store.label_provenance(index.image(key), labels)
    return provenance is not None and provenance.origin in ("human", "") and not provenance.fingerprint


def _check_columns(recipe: AnnotateRecipe, index: store.Index) -> None:
    columns = dict.fromkeys(name for row in index.plate_map.values() for name in row)
    for column in recipe.stratify or []:
        if column not in columns:
            raise UserError(
                f"stratify: the plate map of {index.plate.name} has no column {column!r}; "
                f"{nearest(column, columns)}"
            )


def _check_number(recipe: AnnotateRecipe, index: store.Index, pool: Pool) -> None:
    available, n = len(pool.candidates), recipe.n or N
    if n <= available:
        return
    parts = [f"{count} {reason}" for reason, count in pool.left_out.items()]
    if pool.annotated:
        parts.insert(0, f"{len(pool.annotated)} have labels {recipe.labels!r} of people")
    reasons = f"; of {len(index.plate.fields)} fields {', '.join(parts)}" if parts else ""
    advice = f"ask for n={available} or fewer" if available else "there is none to propose"
    raise UserError(f"n={n}: {many(available, 'field')} of {recipe.plate} can be proposed{reasons}; {advice}")


def remarks(recipe: AnnotateRecipe, index: store.Index, pool: Pool) -> Iterator[str]:
    """Yields what the user should know of the fields and of how they are compared."""
    for reason, count in pool.left_out.items():
        yield f"{count} of {len(index.plate.fields)} fields {reason}"
    if not pool.annotated:
        present = {name for key in pool.candidates for name in store.label_names(index.image(key))}
        if present and recipe.labels not in present:
            yield f"no field has labels {recipe.labels!r}; there are: {', '.join(sorted(present))}"
    contract = pool.contract
    if contract is None:
        yield (
            "no model is given: fields are compared by simple statistics of their images, and no field is "
            "held out as a test field; model=RUN of pretrain compares them by its encoder"
        )
        return
    if not any(index.plate.name in plates for plates in contract.wells.values()):
        yield f"the model was not trained on {index.plate.name}: no field is held out as a test field"
    for line in unlike_channels(contract.view, contract.stains, {}, index):
        yield f"warning: {line}"
    if recipe.residual_weight != 0 and (why := _without_residual(index, pool)):
        yield f"how well the stain is predicted does not count: {why}"


def _without_residual(index: store.Index, pool: Pool) -> str:
    """Returns why predictions of the model cannot be compared with stains of the plate; empty: they can."""
    if pool.view is None or pool.contract is None:
        return ""
    names = [channel.name for channel in index.plate.channels]
    missing_stains = [role.channel for role in pool.contract.view.targets if role.channel not in names]
    if missing_stains:
        return f"{index.plate.name} has no channel {', '.join(map(repr, missing_stains))}"
    if pool.view.scale(pool.candidates[0]).factor != 1:
        return "the plate's pixels are of another size than the model's"
    return ""
