"""The embedding of a field: what an ISL encoder makes of it, or simple statistics of its images.

torch is imported by the functions that compute: a plan does without it.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.files import write_atomic
from hpc_isl.learning.data import samples
from hpc_isl.learning.data.pixels import choose_planes, known_box
from hpc_isl.learning.data.rescale import at_scale, read_sources
from hpc_isl.plates import store
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.pyramid import level_within
from hpc_isl.run import Attempt
from hpc_isl.stages.shared.plate_views import PlateView

Features = NDArray[np.float64]
QUANTILES = (1, 10, 25, 50, 75, 90, 99)
SCALES = 4  # gradients over 1, 2, 4 and 8 pixels
EDGE = 2048  # statistics are of the first level of the pyramid that is not larger
KEEP_S = 30.0  # embeddings are kept for a restart this often


@dataclass(frozen=True)
class Embedding:
    """The embedding of one field.

    Attributes:
        features: 1-D, of one length on all fields; NaN where the field lacks a channel.
        residual: 1 - PCC of the predicted stain, the mean over stains; NaN without a stain.
    """

    features: Features
    residual: float = float("nan")


Embed = Callable[[FieldKey], Embedding]


# ---------------------------------------------------------------- all fields, with a file for restarts


@dataclass
class KeptEmbeddings:
    """Embeddings in a file of the run folder, which appears complete or not at all.

    Attributes:
        inputs: what they were computed from; a file of anything else is not read.
        fields: name of a field -> its embedding.
    """

    path: Path
    inputs: str
    fields: dict[str, Embedding] = field(default_factory=dict)

    def load(self) -> None:
        """Reads what an earlier attempt has kept."""
        if not self.path.exists():
            return
        with np.load(self.path, allow_pickle=False) as archive:
            if str(archive["inputs"]) == self.inputs:
                rows = zip(archive["names"], archive["features"], archive["residuals"], strict=True)
                self.fields = {
                    str(name): Embedding(features, float(residual)) for name, features, residual in rows
                }

    def save(self) -> None:
        """Writes all embeddings."""
        if not self.fields:
            return
        content = io.BytesIO()
        np.savez(
            content, inputs=np.array(self.inputs), names=np.array(list(self.fields)),
            features=np.stack([embedding.features for embedding in self.fields.values()]),
            residuals=np.array([embedding.residual for embedding in self.fields.values()]),
        )  # fmt: skip
        write_atomic(self.path, content.getvalue())


def embed_all(
    keys: Sequence[FieldKey], make: Callable[[], Embed], kept: KeptEmbeddings, attempt: Attempt
) -> Mapping[str, Embedding] | None:
    """Returns the embedding of each field by its name; None where the run was asked to stop.

    Those that an earlier attempt has kept are not computed again.

    Args:
        make: returns the function that embeds a field; called if there are fields to embed.
    """
    kept.load()
    kept_count = sum(str(key) in kept.fields for key in keys)
    embed: Embed | None = None
    saved_at = time.monotonic()
    for number, key in enumerate((key for key in keys if str(key) not in kept.fields), kept_count + 1):
        if attempt.stopping.is_set():
            kept.save()
            attempt.log(f"stopped between fields; {number - 1} of {len(keys)} embeddings are kept")
            return None
        embed = embed or make()
        kept.fields[str(key)] = embed(key)
        attempt.progress(number, len(keys), "fields", kept_count)
        if time.monotonic() - saved_at > KEEP_S:
            kept.save()
            saved_at = time.monotonic()
    kept.save()
    return kept.fields


# ---------------------------------------------------------------- by the encoder of an ISL run


def by_network(model: Path, plate: PlateView, cpus: int, with_residual: bool) -> Embed:
    """Returns the function that embeds a field by the encoder of a model.

    Features are mean and standard deviation over each map of the encoder's deepest level: twice as many as
    it has channels.

    Args:
        model: folder of the model, `RUN/model`.
        with_residual: compare the predicted stain with the plate's, where it has it on the model's pixels.
    """
    import torch

    from hpc_isl.learning.inference.predict import Predictor
    from hpc_isl.learning.network.model import load

    network, contract = load(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    maps: list[Any] = []
    network.get_submodule("encoder").register_forward_hook(lambda _, __, levels: maps.append(levels[-1]))
    # One tile at a time: a batch would be filled up with zeros, which would count as pixels.
    predictor = Predictor.by_contract(network, contract, device, batch=1, threads=cpus)

    def embed(key: FieldKey) -> Embedding:
        sources, targets = read_field(plate, key)
        maps.clear()
        prediction = predictor(sources)
        # Where tiles overlap, their pixels count once for each.
        pixels = torch.cat([tile_map.double().flatten(2)[0] for tile_map in maps], 1)
        features = torch.cat([pixels.mean(1), pixels.std(1, correction=0)]).cpu().numpy()
        if targets is None or not with_residual:
            return Embedding(features)
        return Embedding(features, residual_of(prediction, targets))

    return embed


def read_field(plate: PlateView, key: FieldKey) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Returns what the network sees of a whole field, and its stains on the same grid (None: it has none)."""
    time, scale = plate.times(key)[0], plate.scale(key)
    if scale.factor == 1:
        return samples.read(at_scale(plate.view, scale), plate.index, key, time)
    # A plate with pixels of another size: only sources are resampled to the model's.
    return read_sources(plate.view, plate.index, key, time, scale), None


def residual_of(prediction: NDArray[Any], targets: NDArray[Any]) -> float:
    """Returns 1 - PCC, the mean over stains that are not constant; NaN where all are."""
    from hpc_isl.objects.scores import pcc  # scikit-image, which a plan does without

    box = known_box(targets)  # another acquisition may show less of the field
    prediction, targets = prediction[:, *box], targets[:, *box]
    scores = np.array([pcc(predicted, stain) for predicted, stain in zip(prediction, targets, strict=True)])
    return float(1 - scores[np.isfinite(scores)].mean()) if np.isfinite(scores).any() else float("nan")


# ---------------------------------------------------------------- without a model


def by_statistics(index: store.Index) -> Embed:
    """Returns the function that embeds a field by statistics of all its channels (`image_statistics`)."""

    def embed(key: FieldKey) -> Embedding:
        channels = range(len(index.plate.channels))
        images = [sharpest_image(index, key, channel, EDGE) for channel in channels]
        return Embedding(np.concatenate([image_statistics(image) for image in images]))

    return embed


def image_statistics(image: NDArray[Any] | None) -> Features:
    """Returns quantiles of an image's counts, and log root mean square gradients at four scales.

    The image (y, x) is halved, by means of 2 × 2 pixels, from scale to scale. NaN where there is no image.
    """
    if image is None:
        return np.full(len(QUANTILES) + SCALES, np.nan)
    pixels = image.astype(np.float64)
    features = list(np.percentile(pixels, QUANTILES))
    for _ in range(SCALES):
        y, x = (length // 2 * 2 for length in pixels.shape)
        steps = [np.diff(pixels, axis=axis) for axis in (0, 1)]
        squares = [float((step**2).mean()) if step.size else 0.0 for step in steps]
        features.append(float(np.log1p(np.sqrt(sum(squares)))))
        if min(y, x) >= 2:
            pixels = pixels[:y, :x].reshape(y // 2, 2, x // 2, 2).mean((1, 3))
    return np.array(features)


def sharpest_image(index: store.Index, key: FieldKey, channel: int, edge: int) -> NDArray[Any] | None:
    """Returns the sharpest plane (y, x) of a channel, in counts; None where it was not imaged.

    It is read at the first level of the pyramid whose longer edge is at most `edge`, or the last one.
    """
    focus = index.focus(key, channel, 0)
    if not focus:
        return None
    planes = list(choose_planes("focus", focus))
    level = level_within(index.field(key).shape, index.levels(key), edge)
    stack = store.read_box(index.image(key), level, 0, channel, planes, slice(None), slice(None))
    image: NDArray[Any] = stack[0]
    return image
