"""Corrections of counts before they are measured: dark, uneven illumination, and a local background.

Counts of fluorescence become (raw − dark) / gain − background; gain is (flat − dark) scaled to a mean of 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_isl.errors import UserError, many
from hpc_isl.files import read_json, write_atomic
from hpc_isl.learning.data.fields import field_view
from hpc_isl.learning.data.pixels import Box, Pixels, Profile, block_means, estimate, gain, vendor_profile
from hpc_isl.learning.data.rescale import resampled
from hpc_isl.learning.data.view import Role, View, counts, smallest
from hpc_isl.objects.types import Labels
from hpc_isl.plates.plate import FieldKey
from hpc_isl.plates.store import Index
from hpc_isl.recipes.segment import MeasureRecipe
from hpc_isl.run import Run
from hpc_isl.seeds import evenly_spread

if TYPE_CHECKING:
    from hpc_isl.stages.segment.inputs import PlateInput, SegmentInputs

ESTIMATES = "flat_field.json"
"""In a run folder: the estimated profiles."""
LEAST_FIELDS, MOST_FIELDS = 50, 200
DARKEST = 0.1  # of the mean of a flat field: below, dividing would only amplify noise
FREE = 0.02  # share of a square that lies outside of all objects, below which its neighbours decide
HALO = 3  # pixels around an object into which its light is blurred


@dataclass(frozen=True)
class Illumination:
    """How the counts of one plate are corrected.

    Attributes:
        keys: fields of the acquisitions that are segmented, all of the plate: a profile that is estimated
            does not depend on which of them a recipe chooses.
    """

    measure: MeasureRecipe
    index: Index
    keys: tuple[FieldKey, ...] = field(repr=False, default=())

    @cached_property
    def channels(self) -> list[str]:
        """The fluorescent channels that are measured."""
        names = self.measure.channels
        return [
            channel.name
            for channel in self.index.plate.channels
            if channel.fluorescent and (names is None or channel.name in names)
        ]

    @cached_property
    def corrected_before(self) -> list[str]:
        """The channels of which the vendor's metadata says that images were corrected as they were taken."""
        if stated := [c.name for c in self.index.plate.channels if c.corrected and c.name in self.channels]:
            return stated
        # Plates that earlier versions made of CellVoyager's exports hold the statement among their details.
        cameras = self.index.plate.details.get("channels", {})
        if self.index.plate.details.get("reader") != "cellvoyager":
            return []
        by_target = {facts.get("Target") or number: facts for number, facts in cameras.items()}
        names = {name: facts for name in self.channels for target, facts in by_target.items()
                 if name == target or name.startswith(f"{target} ")}  # fmt: skip
        return [name for name, facts in names.items() if facts.get("ShadingCorrectionSource")]

    @cached_property
    def name(self) -> str:
        """The correction of counts in words, for a column of the tables; empty: there is none."""
        measure = self.measure
        if not measure.corrects:
            return ""
        dark = f"dark {measure.dark_file.name}" if measure.dark_file else f"dark {measure.dark:g}"
        parts = [f"{measure.flat_field} flat field"] if measure.flat_field != "none" else []
        parts += [dark] if measure.dark or measure.dark_file else []
        if self.corrected_before and parts:
            parts.append(f"but {' and '.join(self.corrected_before)} as the instrument corrected them")
        return ", ".join(parts + ([f"background {edge} px"] if (edge := measure.background_px) else []))

    def facts(self) -> dict[str, str]:
        """Returns all that decides the correction beside the recipe, for fingerprints; empty: none."""
        if not self.measure.corrects:
            return {}
        facts: dict[str, Any] = {"name": self.name}
        paths = [path for path in (self.measure.dark_file, *self.measure.flat_field_files.values()) if path]
        facts["files"] = [hashlib.sha256(_image(path).tobytes()).hexdigest() for path in paths]
        if self.measure.flat_field == "estimated":
            digests = {
                str(key): self.index.statistics[key].digest
                for name in self.channels
                for key in self.sample(name)
            }
            facts["sample"] = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        return {"illumination": json.dumps(facts)}

    # ------------------------------------------------------------ profiles

    def sample(self, channel: str) -> list[FieldKey]:
        """Returns the fields that a profile is estimated from, spread evenly over the plate."""
        number = self.index.channel(channel)
        # Fields without light, or with too much, show no gain.
        bad_flags = {f"empty:{number}", f"saturated:{number}"}
        usable = [
            key
            for key in self.keys
            if self.index.planes(key, number, 0) and not bad_flags & {*self.index.statistics[key].flags}
        ]
        return evenly_spread(usable, MOST_FIELDS)

    def profile(self, channel: str, run: Path) -> Profile | Path | None:
        """Returns the flat field of a channel: a profile, or a file; None: there is nothing to correct."""
        measure = self.measure
        if measure.flat_field == "none" or channel in self.corrected_before:
            return None
        if measure.flat_field == "files":
            return measure.flat_field_files[channel]
        if measure.flat_field == "vendor":
            return vendor_profile(self.index.plate.channels[self.index.channel(channel)].flat_field, channel)
        profile: Profile = _estimates(run)[str(self.index.path)][channel]["profile"]
        return profile

    def corrected(
        self, channel: str, raw: NDArray[Any], shape: tuple[int, int], box: Box, labels: Labels, run: Path
    ) -> NDArray[Any]:
        """Returns the counts of a box of a field as they are measured: float32, negative ones kept.

        Args:
            raw: (y, x) of the box; shape: of the field.
            labels: of the box, by which the background is told from objects.
        """
        if not self.measure.corrects or channel not in self.channels:
            return raw
        pixels = raw.astype(np.float32)
        if channel not in self.corrected_before:
            dark = self._dark(shape)
            pixels -= dark[box] if isinstance(dark, np.ndarray) else np.float32(dark)
            flat = self.profile(channel, run)
            if isinstance(flat, Path):
                pixels /= _relative_light(flat, self.measure.dark_file, self.measure.dark, shape)[box]
            elif flat is not None:
                pixels /= gain(flat, shape, box)
        if self.measure.background_px:
            pixels -= background(pixels, labels, self.measure.background_px)
        return pixels

    def _dark(self, shape: tuple[int, int]) -> float | Pixels:
        return _image_of_shape(self.measure.dark_file, shape) if self.measure.dark_file else self.measure.dark

    def estimated(self, channel: str) -> dict[str, Any]:
        """Returns the profile of a channel, how many fields it is from, and how even they are with it.

        `before` and `after` are coefficients of variation over the field (standard deviation over mean of the
        medians of all fields in 16 × 16 squares); `squares` are these medians, over
        their mean.
        """
        view, planes = View((Role(channel, "max"),), ()), []
        for key in self.sample(channel):
            plane = smallest(field_view(view, self.index, key).sources[0])
            y, x = self.index.field(key).shape[-2:]
            dark = self._dark((y, x))
            if isinstance(dark, np.ndarray):
                dark = _interpolate(dark, plane.whole, 2.0**plane.level)
            planes.append(counts(plane, plane.whole) - dark)
        # Bright cells are rare in any one place: the median of fields leaves most of them out.
        profile = estimate(planes, np.median)
        even = [plane / gain(profile, plane.shape, _whole_box(plane.shape)) for plane in planes]
        before, after = (
            np.median([block_means(image)[0] for image in images], axis=0) for images in (planes, even)
        )
        return {
            "profile": profile, "fields": len(planes), "before": float(before.std() / before.mean()),
            "after": float(after.std() / after.mean()),
            "squares": [(medians / medians.mean()).tolist() for medians in (before, after)],
        }  # fmt: skip


def background(pixels: Pixels, labels: Labels, edge: int) -> Pixels:
    """Returns the background of each pixel (y, x): medians of squares outside of objects, interpolated.

    A square without enough pixels outside of objects, or of their halo of three pixels, takes the value of
    the nearest that has; where all of a field is objects nothing is subtracted.
    """
    from scipy import ndimage  # here, because a plan does without it

    object_mask = ndimage.maximum_filter(labels > 0, 2 * HALO + 1)
    rows, columns = (-(-length // edge) for length in pixels.shape)
    grid = np.full((rows, columns), np.nan, np.float32)
    for y, x in np.ndindex(rows, columns):
        square = (slice(y * edge, (y + 1) * edge), slice(x * edge, (x + 1) * edge))
        free = pixels[square][~object_mask[square]]
        if free.size > FREE * object_mask[square].size:
            grid[y, x] = np.median(free)
    if np.isnan(grid).all():
        return np.zeros_like(pixels)
    nearest = ndimage.distance_transform_edt(np.isnan(grid), return_distances=False, return_indices=True)
    grid = grid[tuple(nearest)]
    return _interpolate(grid, _whole_box(pixels.shape), 1 / edge)


def _interpolate(image: Pixels, box: Box, step: float) -> Pixels:
    """Returns a box (y, x) of the image on a grid whose pixels are as long as `step` of its own."""
    pixels: Pixels = resampled(lambda part: image[None][:, *part], box, step, image.shape)[0]
    return pixels


def _whole_box(shape: Sequence[int]) -> Box:
    return slice(0, shape[0]), slice(0, shape[1])


# ---------------------------------------------------------------- files


@lru_cache(maxsize=16)
def _image(path: Path) -> Pixels:
    """Returns an image (y, x) of a file; raises a `UserError` where it is none."""
    import tifffile

    try:
        pixels = tifffile.imread(path)
    except (OSError, tifffile.TiffFileError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a TIFF: {error}") from None
    if pixels.ndim != 2:
        raise UserError(f"{path}: holds {pixels.shape}; one image (y, x) is expected")
    return np.asarray(pixels, np.float32)


def _image_of_shape(path: Path, shape: tuple[int, int]) -> Pixels:
    pixels = _image(path)
    if pixels.shape != tuple(shape):
        raise UserError(f"{path}: has {pixels.shape} pixels (y, x), and fields have {tuple(shape)}")
    return pixels


@lru_cache(maxsize=16)
def _relative_light(flat: Path, dark_file: Path | None, dark: float, shape: tuple[int, int]) -> Pixels:
    light = _image_of_shape(flat, shape) - (
        _image_of_shape(dark_file, shape) if dark_file else np.float32(dark)
    )
    mean = light.mean(dtype=np.float64)
    if not mean > 0:
        raise UserError(f"{flat}: is no brighter than the dark")
    relative: Pixels = np.maximum(light / np.float32(mean), np.float32(DARKEST))
    return relative


@lru_cache(maxsize=4)
def _estimates(run: Path) -> Mapping[str, Any]:
    return read_json(run / ESTIMATES) or {}


# ---------------------------------------------------------------- before a run, and as it starts


def check_illumination(plates: Sequence[PlateInput]) -> Iterator[str]:
    """Refuses a correction that a plate lacks; yields what the user should know.

    Raises:
        UserError: with the plates and channels that lack it, and what there is for all plates.
    """
    reasons: list[str] = []
    measure = plates[0].recipe.measure
    for plate in plates:
        illumination = plate.illumination
        if (
            measure.corrects
            and illumination.corrected_before
            and (measure.flat_field != "none" or measure.dark)
        ):
            names = " and ".join(map(repr, illumination.corrected_before))
            yield f"{plate.name}: the instrument has corrected {names}: no dark or flat field is used there"
        reasons += [
            f"{plate.name} {name!r}: {reason}"
            for name in illumination.channels
            if name not in illumination.corrected_before and (reason := _lacks(illumination, name))
        ]
        paths = [file for file in (measure.dark_file, *measure.flat_field_files.values()) if file]
        for path in paths:
            _image_of_shape(path, plate.index.field(plate.keys[0]).shape[-2:])
    if reasons:
        more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise UserError(
            f"measure.flat_field={measure.flat_field}: {'; '.join(reasons[:3])}{more}. One correction is for "
            f"all plates of a run: measure.flat_field=none, or estimated where each has {LEAST_FIELDS} fields"
        )
    if measure.flat_field in ("estimated", "files") and not (measure.dark or measure.dark_file):
        yield (
            "warning: measure.dark is 0: the offset of a camera, often 100 to 500 counts, is uneven after "
            "dividing by a flat field"
        )


def _lacks(illumination: Illumination, channel: str) -> str:
    """Returns why a channel has no flat field as asked for; empty: it has one."""
    kind = illumination.measure.flat_field
    if kind == "files" and channel not in illumination.measure.flat_field_files:
        return "no file in measure.flat_field_files"
    if kind == "estimated" and (count := len(illumination.sample(channel))) < LEAST_FIELDS:
        return f"{many(count, 'field', 'shows', 'show')} light, and an estimate needs {LEAST_FIELDS}"
    if kind == "vendor":
        try:
            illumination.profile(channel, Path())
        except UserError:
            return "the plate states no flat field"
    return ""


def prepare_illumination(inputs: SegmentInputs, run: Run) -> Iterator[str]:
    """Estimates the flat fields of a run, where asked for, and draws them; yields a line for each.

    What an earlier attempt has estimated from the same fields stays.
    """
    if inputs.recipe.measure.flat_field != "estimated":
        return
    estimates = dict(_estimates(run.folder))
    _estimates.cache_clear()
    for plate in inputs.plates:
        illumination, path = plate.illumination, str(plate.index.path)
        facts = illumination.facts()["illumination"]
        if estimates.get(path, {}).get("facts") != facts:
            channels = [name for name in illumination.channels if name not in illumination.corrected_before]
            estimates[path] = {"facts": facts} | {name: illumination.estimated(name) for name in channels}
            write_atomic(run.folder / ESTIMATES, json.dumps(estimates))
            _draw(estimates[path], plate.name, run.pictures / f"flat_field-{plate.slug}.png")
        for name, figures in estimates[path].items():
            if name != "facts":
                yield (
                    f"{plate.name} {name!r}: flat field estimated from {figures['fields']} fields; light "
                    f"varies by {figures['before']:.1%} over the field before, "
                    f"by {figures['after']:.1%} after"
                )


def _draw(estimates: Mapping[str, Any], title: str, path: Path) -> None:
    """Draws for each channel the median of its fields before, the gain, and the mean after."""
    from matplotlib.figure import Figure

    from hpc_isl.stages.shared.pictures import INK, save

    channels = {name: figures for name, figures in estimates.items() if name != "facts"}
    if not channels:
        return
    figure = Figure(figsize=(10, 3.3 * len(channels)), layout="constrained", dpi=110)
    for axes, (name, figures) in zip(
        figure.subplots(len(channels), 3, squeeze=False), channels.items(), strict=True
    ):
        before, after = map(np.array, figures["squares"])
        gain_map = gain(figures["profile"], before.shape, _whole_box(before.shape))
        captions = (f"{name}\nmedian of {figures['fields']} fields, varies by {figures['before']:.1%}",
                    "gain", f"after the correction, {figures['after']:.1%}")  # fmt: skip
        low, high = min(before.min(), gain_map.min()), max(before.max(), gain_map.max())
        for axis, image, caption in zip(axes, (before, gain_map, after), captions, strict=True):
            mappable = axis.imshow(image, vmin=low, vmax=high, cmap="viridis")
            axis.set_axis_off()
            axis.set_title(caption, fontsize=9, color=INK, loc="left")
        figure.colorbar(mappable, ax=list(axes), shrink=0.8).set_label("relative to the mean", fontsize=8)
    figure.suptitle(f"{title}: illumination", fontsize=11, color=INK, x=0.01, ha="left")
    save(figure, path)
