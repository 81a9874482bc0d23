"""The parts of recipes that train: planes, split, data, network, loss, optimiser, length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field as Bound
from pydantic import field_validator, model_validator

from hpc_isl.recipes.base import Count, Fraction, Positive
from hpc_isl.recipes.strict import Strict


class PlaneRecipe(Strict):
    """One input or output plane: a channel and which of its z positions."""

    channel: str
    """channel name as the plate has it"""
    plane: int | list[int] | str = "focus"
    """a number; a list of numbers (one plane each); max, mean, min (projections); focus (the
    plane of this channel that scores sharpest, field by field), focus+2, focus-1 (planes), focus+4um,
    focus-4um (micrometres, to the nearest plane)"""
    acquisition: int | None = None
    """pass of imaging; null: the field's own, or the only one. Where a plate has several and one
    plane names its acquisition, all must"""

    @field_validator("plane")
    @classmethod
    def _known(cls, plane: int | list[int] | str) -> int | list[int] | str:
        if isinstance(plane, str) and not re.fullmatch(
            r"max|mean|min|focus([+-]\d+(\.\d+)?\s?um|[+-]\d+)?", plane
        ):
            raise ValueError(
                "a plane is a number, a list of numbers, max, mean, min, focus, focus+2 or focus-4um"
            )
        if isinstance(plane, list) and not plane:
            raise ValueError("the list of planes is empty")
        return plane


class SplitRecipe(Strict):
    """Which wells train, validate and test; drawn once, kept as a file, cited by digest."""

    by: Literal["well", "field"] = "well"
    """the unit that never straddles two parts; field only where wells are unknown"""
    test: Fraction = 0.15
    """share of units held out for the final scores; those of `hold_out` count towards it"""
    validation: Fraction = 0.1
    """share of units held out to watch training"""
    stratify: str | None = None
    """column of the plate map whose values are shared out evenly"""
    test_wells: list[str] | None = None
    """exactly these units (B03, or B03/1 by field) test; `test` is then not used"""
    validation_wells: list[str] | None = None
    """exactly these units validate; `validation` is then not used"""
    hold_out: dict[str, list[str]] = {}
    """plate-map column -> values that all go to test"""
    file: Path | None = None
    """an existing split file (CSV: plate, well, field, part) instead of drawing one"""
    seed: int = 0
    """of the draw"""


class ForegroundRecipe(Strict):
    """Only crops that hold something to learn from."""

    channel: str | None = None
    """channel that shows it; null: the first target's. A target is judged on its own plane, another
    channel on the maximum over its planes"""
    threshold: Literal["auto"] | float = "auto"
    """stored counts (before flat field) above which a pixel is foreground; auto: Otsu over the
    logarithm of the training wells' counts, or of each field's own where targets are normalised by
    field"""
    fraction: Fraction = 0.005
    """least share of foreground pixels in a crop; 0: one pixel is enough. Eight places are tried, then
    the crop is laid around a foreground pixel; fields that cannot hold so much are left out"""
    required: bool = True
    """false: any crop will do"""


class NormalizeRecipe(Strict):
    """What pixels become before the network sees them."""

    source: Literal["standard", "percentile", "none"] = "standard"
    """by field and plane: (x - mean) / sd, or (x - p1) / (p99 - p1). Numbers are the index's, of level
    0; for projections, and after flat field or box mean, those of the corrected plane at the first
    level of at most 1024 pixels"""
    local_px: Count = 0
    """sources: edge in pixels of a box mean that is subtracted first, against vignetting; 0: none"""
    target: Literal["standard", "percentile", "max16", "none"] = "percentile"
    """(x - mean) / sd; (x - low) / (high - low); x / 65535; raw counts"""
    target_by: Literal["wells", "field"] = "wells"
    """statistics of the training wells together (of the channel's planes and times, pooled), or of
    each field's own plane (stains that differ in brightness from field to field; predictions are
    then in relative units)"""
    low: Annotated[float, Bound(ge=0, le=100)] = 5
    """target percentile that becomes 0"""
    high: Annotated[float, Bound(ge=0, le=100)] = 99.5
    """target percentile that becomes 1"""
    clip: float | None = None
    """normalised targets are clipped to [-clip, clip]; null: not clipped"""


class DataRecipe(Strict):
    """From stored pixels to what the network sees."""

    level: Count = 0
    """level of the pyramid: 0 full resolution, 1 half, …"""
    flat_field: Literal["none", "vendor", "estimated"] = "none"
    """illumination correction when reading: the index's profile, one estimated from the training
    wells (of 20 fields or more: cells must average out), or none"""
    normalize: NormalizeRecipe = NormalizeRecipe()
    """of sources and targets"""
    foreground: ForegroundRecipe = ForegroundRecipe()
    """which crops are drawn"""
    workers: Count | None = None
    """loading processes per rank; null: by the CPUs of the job; 0: none. Changes no number"""


class AugmentRecipe(Strict):
    """Random changes of a crop; the same geometry for sources and targets."""

    flip: bool = True
    """mirror images and quarter turns, eight in all"""
    scale: Annotated[float, Bound(ge=0, lt=1)] = 0.0
    """zoom by a factor in [1 - scale, 1 + scale]"""
    brightness: Annotated[float, Bound(ge=0)] = 0.1
    """sources: add a number in [-b, b] (in units of the normalised source), per plane"""
    contrast: Annotated[float, Bound(ge=0, lt=1)] = 0.1
    """sources: multiply by a number in [1 - c, 1 + c], per plane"""
    noise: Annotated[float, Bound(ge=0)] = 0.0
    """sources: Gaussian noise with an sd drawn from [0, noise]"""
    blur: Annotated[float, Bound(ge=0)] = 0.0
    """sources: Gaussian blur with a sigma drawn from [0, blur] pixels"""


class NetRecipe(Strict):
    """A U-Net of segmentation_models_pytorch."""

    encoder: str = "densenet121"
    """any encoder of segmentation_models_pytorch (tu-… names of timm too)"""
    weights: str | None = "imagenet"
    """imagenet (or another name the library knows); the path of a .safetensors or .pth file of
    encoder weights; null: random"""
    decoder: list[Positive] | None = None
    """channels of the decoder, deepest first; null: the library's (256, 128, 64, 32, 16)"""
    channels_last: bool = True
    """memory layout; changes speed only"""


class LossRecipe(Strict):
    """What is minimised, over pixels of the normalised target."""

    name: Literal["l1", "mse", "smooth_l1", "huber", "charbonnier"] = "l1"
    """regression loss per pixel, averaged"""
    pearson: Annotated[float, Bound(ge=0)] = 0.0
    """weight of 1 - PCC per crop, added"""
    ssim: Annotated[float, Bound(ge=0)] = 0.0
    """weight of 1 - SSIM per crop, added"""


class OptimRecipe(Strict):
    """The optimiser and its schedule."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """of torch.optim"""
    lr: Annotated[float, Bound(gt=0)] = 1e-3
    """peak learning rate"""
    betas: tuple[float, float] = (0.9, 0.999)
    """of Adam; the first is SGD's momentum"""
    weight_decay: Annotated[float, Bound(ge=0)] = 0.01
    """decoupled for adamw"""
    schedule: Literal["constant", "one_cycle", "cosine"] = "one_cycle"
    """of the learning rate over all steps"""
    warmup: Fraction = 0.1
    """share of the steps in which the rate rises (not for constant)"""
    clip_norm: Annotated[float, Bound(gt=0)] | None = 1.0
    """gradients are scaled down to this norm; null: never"""


class TrainRecipe(Strict):
    """How long, in which portions, and what is kept."""

    steps: Positive | None = None
    """optimiser steps; give steps or epochs"""
    epochs: Positive | None = None
    """passes over all training fields × crops_per_field"""
    batch: Positive = 64
    """crops per step, over all ranks together"""
    micro_batch: Positive = 16
    """crops per forward pass, the span of BatchNorm; divides batch"""
    crop: Positive = 512
    """edge of a crop in pixels of the level read; a multiple of 32; smaller fields are reflected"""
    crops_per_field: Positive = 5
    """crops drawn from each field (and time of a field) in an epoch"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """of the forward pass; auto: bf16 on GPUs that compute in it natively, else fp32. Where a CPU or an older
    GPU only emulates bf16 or fp16, it takes many times as long: the plan says so"""
    compile: bool = False
    """torch.compile the network"""
    checkpoint_every: Positive = 500
    """steps between checkpoints"""
    keep: Positive = 3
    """newest checkpoints kept"""
    evaluate_every: Positive = 1000
    """steps between scores on the validation wells"""
    patience: Positive | None = None
    """stop after so many validations without a better PCC, and keep the best weights; null: never
    stop, and keep the last ones"""
    seed: int = 0
    """of weights, crops and augmentation; at the top of a recipe, `seed` alone is short for it"""

    @model_validator(mode="after")
    def _fits(self) -> TrainRecipe:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch {self.batch}")
        if self.crop % 32:  # the encoder halves it five times
            raise ValueError(f"crop {self.crop} is not a multiple of 32")
        return self


class PredictRecipe(Strict):
    """Predicting whole fields."""

    tile: Positive | None = None
    """edge of a tile on a fixed global grid, a multiple of 32; null: one field is one tile"""
    halo: Count = 128
    """pixels read around a tile, at least; only with `tile`"""
    batch: Positive = 4
    """tiles per forward pass; only with `tile`"""
    stain: bool = True
    """write the virtual stain of the test wells as an OME-Zarr plate"""


def unused_in_predict(predict: PredictRecipe | None) -> Iterator[tuple[str, str]]:
    """Keys of `predict` that are for tiles alone."""
    if predict is not None and predict.tile is None:
        yield from dict.fromkeys(("predict.halo", "predict.batch"), "predict.tile is null").items()


def unused_in_split(split: SplitRecipe | None) -> Iterator[tuple[str, str]]:
    """Keys of `split` that an existing file, or wells named one by one, leave nothing to decide."""
    if split is None:
        return
    if split.file is not None:
        names = ("test", "validation", "stratify", "test_wells", "validation_wells", "hold_out", "seed")
        yield from ((f"split.{name}", "split.file has all parts") for name in names)
        return
    for part in ("test", "validation"):
        if getattr(split, f"{part}_wells") is not None:
            yield f"split.{part}", f"split.{part}_wells names them"


def unused_in_optim(optim: OptimRecipe) -> Iterator[tuple[str, str]]:
    """The warm-up of a learning rate that stays as it is."""
    if optim.schedule == "constant":
        yield "optim.warmup", "optim.schedule is constant"


def with_seed(content: Any, **defaults: Any) -> Any:
    """A recipe's keys in which `seed: 1` is short for `train: {seed: 1}`; the split has its own.

    `defaults`: of `train`, where nothing is given but the seed.
    """
    if not isinstance(content, dict) or "seed" not in content:
        return content
    other_keys = {key: value for key, value in content.items() if key != "seed"}
    # pydantic does not use the default of `train` once one of its keys is given.
    train = other_keys.get("train") or defaults
    if not isinstance(train, dict) or train.get("seed", content["seed"]) != content["seed"]:
        raise ValueError("seed is short for train.seed; give one of them")
    return {**other_keys, "train": {**train, "seed": content["seed"]}}
