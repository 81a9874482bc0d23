"""The recipe of segmentation: plates and a fine-tuned model become labels and tables of objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field as Bound
from pydantic import field_validator, model_validator

from hpc_isl.recipes.base import Count, PixelSize, Positive, Recipe, one_or_more
from hpc_isl.recipes.strict import Strict
from hpc_isl.recipes.training import PredictRecipe, unused_in_predict


class ReferenceRecipe(Strict):
    """Ground truth that counts of objects are compared with, where a field has it: labels, or a stain."""

    labels: str | None = None
    """labels that exist already, e.g. drawn by people"""
    channel: str | None = None
    """a nuclear stain, of which objects are drafted as `annotate draft` does"""
    acquisition: int | None = None
    """of the stain: pass of imaging that has it; null: the field's own"""
    threshold: Literal["otsu", "triangle", "li"] | float = "otsu"
    """of the stain: rule, or a value in counts"""
    sigma: Annotated[float, Bound(ge=0)] = 1.5
    """of the stain: Gaussian smoothing before the threshold, in pixels"""
    min_area: Positive = 50
    """of the stain: smaller objects are dropped, in pixels"""

    @model_validator(mode="after")
    def _one(self) -> ReferenceRecipe:
        if (self.labels is None) == (self.channel is None):
            raise ValueError("give either labels or channel")
        return self


class MeasureRecipe(Strict):
    """What is measured of each object, and what becomes of counts before: fluorescent channels alone.

    Corrected counts are (raw − dark) / gain − background, with negative values kept; gain is the flat field
    without its dark, scaled to a mean of 1. As it is by default, counts are those of the camera.
    """

    channels: list[str] | None = None
    """whose intensity is measured, fluorescent ones as the maximum over planes, others as the mean; null:
    all fluorescent channels"""
    features: list[Literal["shape", "intensity", "correlation", "radial", "texture", "granularity"]] = [
        "shape", "intensity"
    ]  # fmt: skip
    """groups: position and area are always there; texture and granularity need hpc-isl[features], and take
    far longer than all else"""
    white: Annotated[float, Bound(gt=0)] = 65535
    """texture, granularity: counts that become 1, as 0 becomes 0; what lies beyond is cut. As CellProfiler
    scales 16-bit images; with much less light, less: else few grey levels are left"""
    texture_px: Positive = 3
    """texture: distance of the pixels that are compared; less than an object is wide"""
    grey_levels: Annotated[int, Bound(ge=2, le=256)] = 256
    """texture: that pixels are rounded to"""
    flat_field: Literal["none", "vendor", "estimated", "files"] = "none"
    """uneven illumination that counts are divided by: the vendor's profile, which Harmony states; one that is
    estimated for each plate from 50 fields or more of each channel; or files. One for all plates of a run"""
    flat_field_files: dict[str, Path] = {}
    """channel -> image of even light (TIFF, of the size of a field), for flat_field=files"""
    dark: Annotated[float, Bound(ge=0)] = 0
    """the camera's offset in counts, which is subtracted first"""
    dark_file: Path | None = None
    """an image without light in its place (TIFF, of the size of a field)"""
    background_px: Annotated[int, Bound(ge=16)] | None = None
    """edge of the squares in which the median of the pixels outside of all objects is the background; between
    their middles it is interpolated. Some times wider than an object. null: none is subtracted"""

    @model_validator(mode="after")
    def _files(self) -> MeasureRecipe:
        if self.flat_field == "files" and not self.flat_field_files:
            raise ValueError("flat_field is files; name them, as in flat_field_files={DAPI: flat.tif}")
        if self.dark and self.dark_file is not None:
            raise ValueError("give either dark or dark_file")
        return self

    @property
    def corrects(self) -> bool:
        """Returns whether counts are changed before they are measured."""
        return self.flat_field != "none" or bool(self.dark or self.dark_file or self.background_px)


class SegmentRecipe(Recipe):
    """Every object of whole plates: labels beside the images, features in tables, counts per well."""

    RUNS = ("model", "stain")
    PLATES = ("plates",)
    UNREAD = {"predict.stain": "outputs=[stain] keeps the predicted stain"}

    model: Path
    """run of finetune that segments; of a sweep its last element, `final`, is meant. A run of pretrain will
    do too: then objects are drafted from the stain that it predicts"""
    plates: list[Path]
    """plates to segment; globs are allowed"""
    labels: str | None = None
    """name of the labels that are written; null: as those that the model learnt from"""
    fields: list[str] | None = None
    """only these of each plate, e.g. [B03/1, D07] (a well means all its fields); null: all"""
    outputs: list[Literal["labels", "stain", "distance", "mask"]] = ["labels"]
    """what is kept: labels in the plates; predicted stain, distance map and mask (as logits) in plates of
    their own in the run folder, at the size that the model sees"""
    channels: dict[str, str] = {}
    """the model's channel -> the plate's, where they are called differently"""
    pixel_um: PixelSize | None = None
    """µm per pixel that the model was trained at, where its contract does not know"""
    stain: Path | None = None
    """run of pretrain: the stain that it predicts is measured for each object too"""
    measure: MeasureRecipe = MeasureRecipe()
    """what is measured of each object; a list means measure.channels"""
    cells: str | None = None
    """labels of cells on the same images: each object is assigned to the cell that holds most of it"""
    nuclei: str | None = None
    """labels of nuclei on the same images as cells: for each cell, how many are its, and its cytoplasm, which
    is what lies outside of all nuclei"""
    reference_labels: ReferenceRecipe | None = None
    """ground truth that counts per well are compared with"""
    empty_fields: Literal["zero", "segment"] = "zero"
    """fields without any structure in what the model sees, as flagged when the plate was made. zero:
    they have no objects, because a network finds some in bare noise; segment: as all others"""
    overlap: Annotated[float, Bound(gt=0, le=1)] | None = 0.3
    """IoU from which an object that two overlapping fields show counts once; null: fields are not compared"""
    predict: PredictRecipe | None = None
    """whole fields, or tiles; null: as the model was scored"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """of the forward pass; null: as the model was scored where a GPU computes so natively, else fp32"""
    threads: Positive = 1
    """of a forward pass on a CPU: it decides the order of sums, so that results are bit-identical"""
    compile: bool = False
    """torch.compile the network"""
    h_maxima: Annotated[float, Bound(ge=0)] | None = None
    """cells: height of peaks in map units, 0 to 255 (ImageJ's prominence): peaks of the distance map that
    rise less than this above the saddle between them are one object; null: the model's"""
    min_area: Count | None = None
    """smaller objects are dropped, in pixels that the model sees; null: the model's. 0: none is dropped"""
    max_pixels_in_memory: Positive = 2**27
    """an image of more pixels is predicted and labelled in bounded memory, to the same labels"""
    block_size: Positive = 4096
    """edge of the blocks in which that is done; changes no label"""
    overwrite: bool = False
    """replace labels of this name that another run of segment made; never those that a person edited since"""

    _one_or_more = field_validator("plates", mode="before")(one_or_more)

    @field_validator("measure", mode="before")
    @classmethod
    def _channels(cls, measure: Any) -> Any:
        return {"channels": measure} if measure is None or isinstance(measure, list) else measure

    @model_validator(mode="after")
    def _something(self) -> SegmentRecipe:
        if not self.plates:
            raise ValueError("plates is empty")
        if not self.outputs:
            raise ValueError("outputs is empty; say what is kept, as in outputs=[labels]")
        return self

    def unused(self) -> Iterator[tuple[str, str]]:
        yield from unused_in_predict(self.predict)
        if self.reference_labels is not None and self.reference_labels.labels is not None:
            names = ("acquisition", "threshold", "sigma", "min_area")
            yield from (
                (f"reference_labels.{name}", "reference_labels.labels are counted as they are")
                for name in names
            )
        if self.measure.flat_field != "files":
            yield "measure.flat_field_files", f"measure.flat_field is {self.measure.flat_field}"
        features = self.measure.features
        if "texture" not in features:
            yield from (
                (f"measure.{name}", "measure.features has no texture")
                for name in ("texture_px", "grey_levels")
            )
        if not {"texture", "granularity"} & {*features}:
            yield "measure.white", "measure.features has neither texture nor granularity"
