"""Recipes that make plates and bring labels to them: convert, adopt, annotate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field as Bound
from pydantic import field_validator, model_validator

from hpc_isl.recipes.base import Count, Fraction, PixelSize, PlaneDistance, Positive, Recipe
from hpc_isl.recipes.program import CommandRecipe
from hpc_isl.recipes.strict import Strict


class PatternRecipe(Strict):
    """How file names (or a table) tell well, field, channel, plane, time and acquisition."""

    regex: str | list[str] | None = None
    """regular expression that matches the whole path below `source`, or a list of them, of which
    the first that matches a file counts; named groups: well (B03, or a running number, see
    wells_on_plate), or row and column (numbers or letters), or image (each image becomes a well of
    its own, in natural order); field, channel, plane, time, acquisition. Planes are numbers, or
    heights in micrometres where they have a decimal point"""
    ignore: str | list[str] = []
    """regular expressions of images that are no planes, as thumbnails: they are counted; of other
    images that no regex matches there may not be more than of those that one does"""
    table: Path | None = None
    """CSV instead of a regex: columns path, well (or row and column), field, channel, plane, time,
    acquisition (path and well are needed; path is relative to `source`)"""
    channels: dict[str, str] = {}
    """name of a channel as the files write it -> name to store, e.g. {w1: DAPI}; the stored order
    is that of this mapping; several names may lead to one channel; empty: names as written"""
    transmitted: list[str] = []
    """stored names of the channels that are label-free (bright-field, phase, DIC)"""
    pixel_um: PixelSize | None = None
    """edge of a pixel in micrometres; null: unknown, and no micrometre is invented"""
    plane_um: PlaneDistance | None = None
    """distance between neighbouring planes in micrometres; null: unknown"""
    wells_on_plate: Literal[6, 12, 24, 48, 96, 384, 1536] | None = None
    """plate format; null: the smallest of 96, 384, 1536 that holds the wells; needed where wells
    are running numbers, which count along the rows from 1"""

    @model_validator(mode="after")
    def _one_way(self) -> PatternRecipe:
        if (self.regex in (None, [])) == (self.table is None):
            raise ValueError("give either regex or table")
        return self


class CodecRecipe(Strict):
    """How pixels are compressed: lossless, measured in docs/performance.md."""

    name: Literal["zstd", "lz4", "none"] = "lz4"
    """compressor inside blosc with bit shuffle; none: no compression"""
    level: Annotated[int, Bound(ge=0, le=9)] = 5
    """effort of the compressor, 0 to 9"""
    chunk: Annotated[int, Bound(ge=32)] = 256
    """edge of a chunk, the unit of reads, in pixels; a shard is a whole field"""


class ConvertRecipe(Recipe):
    """A vendor's export to one OME-Zarr 0.5 plate."""

    PLATES = ("out",)  # a finished one may take in further fields

    source: Path | list[Path]
    """folder of the export; or several, as [LIVE, STAINED]: exports of one plate, each an acquisition of it,
    in this order. How far the later ones are shifted is measured, and pixels are paired by it"""
    out: Path
    """the plate to write, NAME.zarr"""
    reader: Literal[
        "auto",
        "harmony",
        "imagexpress",
        "imagexpress_ai",
        "cellvoyager",
        "scanr",
        "cellomics",
        "gen5",
        "incell",
        "ome_zarr",
        "pattern",
    ] = "auto"
    """which vendor's layout; auto looks at the folder"""
    pattern: PatternRecipe | None = None
    """for the pattern reader"""
    name: str | None = None
    """the plate's name; null: as the export says, or the folder's name"""
    plate_map: Path | None = None
    """CSV with a column well and any of treatment, dose, control, cell_line"""
    on_error: Literal["stop", "skip"] = "stop"
    """what is missing or damaged: stop after naming all of it, or skip those planes, record them and
    store the others"""
    levels: Positive | None = None
    """levels of the pyramid; null: until the longer edge is at most 256 pixels"""
    codec: CodecRecipe = CodecRecipe()
    """compression and chunk"""
    resample: bool = False
    """channels of another size than most that show the same area, and later sources with pixels of another
    size, are resampled to those of the others; false: such a channel is left out, such a source refused"""
    match: Literal["position", "name"] = "position"
    """several sources: fields are one place of the plate where the stage was there, or where they have one
    name (as where no positions are known)"""
    fields: list[str] | None = None
    """only these, e.g. [B03/1, D07] (a well means all its fields); null: all"""
    channels: list[str] | None = None
    """only these, by name, in the order of the export; null: all"""
    times: list[Count] | None = None
    """only these, e.g. [0, 12, 24], counted from 0 as in the plate of all, and numbered anew; null: all"""
    planes: list[Count] | None = None
    """only these z positions, counted from 0 as in the plate of all, and numbered anew; null: all"""

    @field_validator("fields", "channels", "times", "planes", mode="before")
    @classmethod
    def _some(cls, selection: Any) -> Any:
        if isinstance(selection, (str, int)):
            return [selection]
        if isinstance(selection, list) and not selection:
            raise ValueError("an empty list would leave out everything; null means all")
        return selection

    @property
    def sources(self) -> list[Path]:
        """The folders of all exports."""
        return self.source if isinstance(self.source, list) else [self.source]

    @model_validator(mode="after")
    def _a_plate_of_its_own(self) -> ConvertRecipe:
        out, *sources = (path.expanduser().absolute() for path in (self.out, *self.sources))
        if out.suffix != ".zarr":
            raise ValueError(f"out: {out}: the name of a plate ends in .zarr, as in {out.name}.zarr")
        # Readers search the whole export: a plate inside it would be read as more of its images.
        for source in sources:
            if out == source or source in out.parents:
                raise ValueError(f"out: {out} lies inside the export {source}; choose another folder")
        if not sources or len(set(sources)) < len(sources):
            raise ValueError("source: one folder, or several different ones, as in source=[LIVE,STAINED]")
        return self

    def unused(self) -> Iterator[tuple[str, str]]:
        if self.reader not in ("auto", "pattern"):
            yield "pattern", f"reader is {self.reader}"
        if self.codec.name == "none":
            yield "codec.level", "codec.name is none"
        if len(self.sources) == 1:
            yield "match", "there is one source"


class AdoptRecipe(Recipe):
    """An OME-Zarr plate of another program: measured once, used where it lies. Nothing is written into it,
    but labels where that is asked for."""

    PLATES = ("plate",)

    plate: Path
    """an OME-Zarr plate, 0.1 to 0.5; the word after the verb"""
    index: Path | None = None
    """the folder that gets index and labels; null: PLATE.hpc_isl beside PLATE.zarr, where every verb finds
    it; another one is itself what other verbs take as the plate"""
    transmitted: list[str] | None = None
    """names of the channels that are label-free (bright-field, phase, DIC); null: those whose names say so"""
    labels: Literal["beside", "inside"] | None = None
    """where new labels go: beside the plate, into index; or inside, into its images, as OME-Zarr 0.5 has it,
    for other programs to see; null: as it was adopted before, else beside"""
    wells: Path | None = None
    """CSV with columns image (folder below PLATE, or its name in OME-XML), well and perhaps field; for images
    of bioformats2raw that lie side by side and that no metadata put into wells"""
    plate_map: Path | None = None
    """CSV with a column well and any of treatment, dose, control, cell_line"""
    on_error: Literal["stop", "skip"] = "stop"
    """images that cannot be read: stop after naming all of them, or record them and adopt the others"""


class AnnotateRecipe(Recipe):
    """Labels and annotation boxes brought to a plate, or lent to a person who corrects them."""

    PLATES = ("plate",)
    RUNS = ("model",)

    action: Literal["import", "draft", "export", "edit", "propose"]
    """import label images, draft labels from a stain, export images and labels to be corrected, edit them in
    napari, or propose which fields to annotate next (experimental)"""
    plate: Path
    """the plate that gets, or lends, the labels"""
    labels: str
    """name of the labels, e.g. nuclei"""
    source: Path | None = None
    """import: label images (TIFF, PNG), Cellpose masks, ImageJ ROIs, QuPath GeoJSON or COCO JSON: a folder, a
    file, or a CSV with columns path, well (or image), field and optionally y0, x0, y1, x1 (annotation box in
    pixels); of a folder that export wrote, only labels that were changed become human, under any name"""
    objects: Literal["values", "pieces"] | None = None
    """import: of label images with few values in many pieces, whether each value is an object or
    each connected piece; null: they are refused"""
    overlaps: Literal["smaller_on_top"] | None = None
    """import: to which of two overlapping outlines (ROIs, polygons) shared pixels go; null: refused"""
    accept: bool = False
    """import of a folder that export wrote: a person has looked at the unchanged labels too, and
    they are right as they are: they become human"""
    regex: str | None = None
    """import from a folder: regular expression over the whole path below `source` with groups well
    and field (or image, the name kept in the plate map); null: B03_1.tif, B03/1.png,
    B03_1_cp_masks.png, B03_1_RoiSet.zip, B03_1.geojson; in COCO files, names of images"""
    fields: list[str] | None = None
    """only these, e.g. [B03/1, D07]; null: all"""
    out: Path | None = None
    """export: the folder to write, new or empty"""
    box: tuple[Count, Count, Count, Count] | None = None
    """export, edit: annotation box (y0, x0, y1, x1 in pixels) of the fields in which a person has drawn
    nothing yet; null: the box of the labels that are there, or the whole field"""
    channel: str | None = None
    """draft: the fluorescent channel, of several planes the brightest at each pixel; for method command also
    a label-free one, of which the sharpest plane is shown"""
    method: Literal["local", "threshold", "command"] = "local"
    """draft: local: a threshold for each object, by its brightness above the background around it; threshold:
    one for the image; command: another program"""
    threshold: Literal["otsu", "triangle", "li"] | float = "otsu"
    """draft, method threshold: rule, or a value in counts"""
    sigma: Annotated[float, Bound(ge=0)] = 1.5
    """draft, method threshold: Gaussian smoothing before the threshold, in pixels"""
    min_area: Positive = 50
    """draft: smaller objects are dropped, in pixels"""
    split: bool = True
    """draft: separate touching objects, by a watershed on peaks of the stain (local) or of the
    distance to the background (threshold)"""
    overwrite: bool = False
    """replace labels of this name; never those that a person drew or edited"""
    # Null where not given: recipes that earlier versions kept are then no other recipes.
    command: CommandRecipe | None = None
    """draft, method command: another program that segments, such as Cellpose in an environment of its own"""
    model: Path | None = None
    """propose: run of pretrain whose encoder tells fields apart; its test fields are never used. null: by
    simple statistics of the images"""
    n: Positive | None = None
    """propose: number of fields; null: 5"""
    stratify: list[str] | None = None
    """propose: columns of the plate map, e.g. [treatment]: no group of wells gets a second field while
    another has none"""
    residual_weight: Fraction | None = None
    """propose: share in the score of how badly the model predicts a field's stain, where the plate has it;
    the rest is how unlike a field is to those annotated or proposed before it; null: 0.25"""

    @field_validator("stratify", mode="before")
    @classmethod
    def _one_or_more(cls, stratify: Any) -> Any:
        return [stratify] if isinstance(stratify, str) else stratify

    @model_validator(mode="after")
    def _what_the_action_needs(self) -> AnnotateRecipe:
        needed_key = {"import": "source", "draft": "channel", "export": "out"}.get(self.action)
        if needed_key and getattr(self, needed_key) is None:
            raise ValueError(f"annotate {self.action}: {needed_key} must be given")
        if self.action == "draft" and self.method == "command" and self.command is None:
            raise ValueError("method=command: command must be given, as in command='{predict: [PROGRAM, …]}'")
        # Whether it leaves a field is known once that is read; an empty one is wrong on every field.
        if self.box and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError(f"box: {self.box} (y0, x0, y1, x1) is empty")
        return self

    def unused(self) -> Iterator[tuple[str, str]]:
        draft_keys = {"channel", "method", "threshold", "sigma", "min_area", "split", "command"}
        keys = {
            "import": {"source", "accept", "regex", "overwrite", "fields", "objects", "overlaps"},
            "draft": {"fields", "overwrite", *draft_keys},
            "export": {"fields", "out", "box"},
            "edit": {"fields", "box"},
            "propose": {"fields", "model", "n", "stratify", "residual_weight"},
        }
        if self.action == "propose" and self.model is None:
            yield "residual_weight", "without a model no stain is predicted"
        keys_read = {"action", "plate", "labels"} | keys[self.action]
        for key in type(self).model_fields:
            # An earlier version kept its only method, threshold, in recipes of every action.
            if key not in keys_read and (key, getattr(self, key)) != ("method", "threshold"):
                yield key, f"action is {self.action}"
        if self.action == "draft":
            if self.method != "command":
                yield "command", f"method is {self.method}"
            if self.method != "threshold":
                yield from (
                    (key, f"method is {self.method}, not threshold") for key in ("threshold", "sigma")
                )
            if self.method == "command":
                yield from ((key, "method is command") for key in ("min_area", "split"))
