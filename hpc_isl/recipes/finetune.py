"""The recipe of fine-tuning: a network learns to segment from a few annotated boxes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field as Bound
from pydantic import field_validator, model_validator

from hpc_isl.errors import nearest
from hpc_isl.recipes.base import Count, Recipe, one_or_more
from hpc_isl.recipes.program import ProgramRecipe
from hpc_isl.recipes.strict import Strict
from hpc_isl.recipes.training import (
    AugmentRecipe,
    DataRecipe,
    NetRecipe,
    OptimRecipe,
    PlaneRecipe,
    PredictRecipe,
    SplitRecipe,
    TrainRecipe,
    unused_in_optim,
    unused_in_predict,
    unused_in_split,
    with_seed,
)

ARMS = ("random", "imagenet", "random+isl", "imagenet+isl", "drafted", "best")


class ObjectsRecipe(Strict):
    """What the network says of objects, and how its words become labels."""

    kind: Literal["nuclei", "cells"] = "nuclei"
    """nuclei: a mask, Jaccard loss, objects are what does not touch; cells: a distance map and a mask,
    squared error + alpha × cross entropy, objects by flooding"""
    head: Literal["same", "stain", "paper"] = "same"
    """same: one 3 × 3 convolution with fresh weights, whatever the arm; stain (nuclei): ISL arms begin as the
    predicted stain above a threshold, which is calibrated on fields held out of pretraining against labels
    drafted from their stain, plus a residual of zero; paper: ISL arms keep the stain's output (nuclei:
    shifted sigmoid of the scaled stain; cells: two convolutions that widen 1 to 2)"""
    slope: Annotated[float, Bound(gt=0)] = 10.0
    """a of the paper's head for nuclei, 1 / (1 + exp(-a (x - 0.5))), x the stain in [0, 1]"""
    map: Literal["geodesic", "euclidean"] = "geodesic"
    """cells: what the distance map says of a pixel. geodesic: how near it is to its object's centre, along
    paths inside the object: one peak, however long the cell. euclidean: how far it is from the edge, as the
    paper has it; long cells have several peaks"""
    scale: Literal["object", "pixels"] = "object"
    """unit of the distance map: the greatest of each object at 255, or pixels of the level read;
    h_maxima and alpha refer to it"""
    alpha: Annotated[float, Bound(gt=0)] = 2000.0
    """cells: weight of the mask's cross entropy beside the squared error of the distance map"""
    h_maxima: Annotated[float, Bound(ge=0)] | Literal["fit"] = "fit"
    """cells: height of peaks in map units, 0 to 255 (ImageJ's prominence): peaks of the distance map that
    rise less than this above the saddle between them are one object. fit: what parts the annotated objects
    best in boxes that a network did not learn from, for which two more networks learn from half the boxes
    and steps each; the smallest area and the mask's threshold are fitted with it. The paper has 10"""
    mask_threshold: Annotated[float, Bound(gt=0, lt=1)] | None = None
    """cells: probability from which a pixel is of an object; null: fitted with h_maxima, else 0.5"""
    min_area: Count | None = None
    """smaller objects are dropped, in pixels of the level read; null: fitted with h_maxima, else half the
    smallest annotated object that no edge cuts, in µm² where the size of a pixel is known. 0: none is
    dropped"""
    method: Literal["watershed", "reference"] = "watershed"
    """reference: the same watershed by scikit-image step by step, slow; to check"""

    def unused(self) -> Iterator[tuple[str, str]]:
        """Keys of the other kind, or of the other head."""
        if self.kind == "nuclei":
            names = ("alpha", "h_maxima", "map", "mask_threshold", "scale", "method")
            yield from ((f"objects.{name}", "objects.kind is nuclei") for name in names)
        if self.head != "paper":
            yield "objects.slope", f"objects.head is {self.head}"
        elif self.kind == "cells":
            yield "objects.slope", "objects.kind is cells"


class TransferRecipe(Strict):
    """What becomes of weights that were learnt before; arms without any ignore it."""

    frozen: Count = 0
    """steps at the beginning in which the encoder's weights rest"""
    layer_lr: Annotated[float, Bound(gt=0, le=1)] = 1.0
    """each level of the network, from the head down to the first convolution, has the learning rate of
    the one after it times this; 1: the same for all"""
    hold_norm: bool = False
    """BatchNorm keeps the running statistics that it came with; the arm random takes new ones anyway"""


class FinetuneRecipe(Recipe):
    """A segmentation network from N annotation boxes, started from one arm's weights."""

    RUNS = ("pretrained", "drafted")
    PLATES = ("plates",)
    UNREAD = {
        "predict.stain": "it writes no virtual stain",
        "train.evaluate_every": "it is scored once, in the end",
        "train.patience": "annotations are not spent on stopping; give train.steps",
        "data.foreground": "crops are laid in annotation boxes",
        **dict.fromkeys(
            (f"data.normalize.{name}" for name in ("target", "target_by", "low", "high", "clip")),
            "what it learns are objects, not a stain",
        ),
    }

    plates: list[Path]
    """plates that hold the labels; globs are allowed"""
    labels: str
    """labels to learn from: the objects inside their annotation boxes"""
    reference_labels: list[str] = []
    """ground truth: labels that score, each reported apart; empty: `labels`. Drafted labels may train; what
    scores should be drawn by people"""
    objects: ObjectsRecipe = ObjectsRecipe()
    """what is predicted, and how it becomes objects"""
    pretrained: list[Path] = []
    """ISL runs (names or folders): they say what the network sees, its encoder and the split, and start
    the arms random+isl (of random weights) and imagenet+isl (of other weights)"""
    drafted: Path | None = None
    """finetune run on labels drafted in all training wells: it starts the arm drafted"""
    programs: list[ProgramRecipe] = []
    """other programs that segment, such as Cellpose in an environment of its own: each is an arm of its name,
    and ignores all keys of networks and their training"""
    arm: str = "imagenet+isl"
    """random; imagenet (weights of net.weights); random+isl, imagenet+isl; drafted; the name of one of
    `programs`; best: in a sweep, the arm that scored best"""
    n: Count | Literal["all"] = "all"
    """annotation boxes to learn from, drawn from those of the training fields; objects are counted
    beside them. 0: no annotation at all: the stain that the ISL model predicts is thresholded, a program
    segments as it is"""
    draw: Count = 0
    """which N boxes, and with `train.seed` all chance in training: the N of one draw hold those of
    every smaller N, and are the same for all arms"""
    train_where: dict[str, list[str]] = {}
    """column of the plate map -> values: boxes to learn from are of such wells alone, as in
    {cell_line: [HeLa]}"""
    within: str | None = None
    """column of the plate map: scores of test fields whose value of it the boxes of the draw hold (within)
    are told from those of the others (across)"""
    fold: Count | None = None
    """leave one out: the annotated field of this number tests, all others train, whatever the split says"""
    left_out: Literal["auto", "never"] = "auto"
    """whether boxes are left out in turn, and predicted by two more networks of the same start that learn
    from the others, in as many steps together. auto: to fit objects.h_maxima; to keep the start
    (objects.head=stain, arm=drafted) unless training is better there by more than one standard error; and at
    n=all, so that a sweep chooses its final model without test fields"""
    train_on_all: bool = False
    """all annotation boxes learn, those of test fields too, and nothing is scored: the last step before a
    model is used"""
    test_wells_seen_in_pretraining: Literal["refuse", "allow"] = "refuse"
    """test wells on whose stain the ISL model was trained: refuse, or allow and say so"""
    sources: list[PlaneRecipe] = []
    """without `pretrained`: what the network sees"""
    split: SplitRecipe | None = None
    """train, validation, test; null: that of the ISL run, or drawn"""
    data: DataRecipe | None = None
    """without `pretrained`: from stored pixels to what the network sees; null: as the ISL run"""
    net: NetRecipe | None = None
    """the network; null: that of the ISL run. net.weights serves the arm imagenet"""
    transfer: TransferRecipe = TransferRecipe()
    """care for weights learnt before"""
    augment: AugmentRecipe = AugmentRecipe(scale=0.1)
    """random changes of crops"""
    optim: OptimRecipe = OptimRecipe()
    """the optimiser"""
    train: TrainRecipe = TrainRecipe(steps=400, batch=8, micro_batch=8)
    """how long and in which portions: a fixed number of steps, because no annotation is spent on stopping"""
    predict: PredictRecipe = PredictRecipe(stain=False)
    """whole fields after training"""
    among: list[Path] = []
    """arm best: the runs from which the best is taken; a sweep fills it in"""

    _one_or_more = field_validator("plates", "pretrained", "reference_labels", mode="before")(one_or_more)

    @model_validator(mode="before")
    @classmethod
    def _seed_of_training(cls, content: Any) -> Any:
        return with_seed(content, steps=400, batch=8, micro_batch=8)

    @model_validator(mode="after")
    def _fits(self) -> FinetuneRecipe:
        if not self.plates:
            raise ValueError("plates is empty")
        if self.pretrained and (self.sources or self.data):
            raise ValueError("sources and data are those of the pretrained model; leave out either")
        if self.objects.head == "stain" and self.objects.kind == "cells":
            raise ValueError("objects.head=stain: is for nuclei; a nuclear stain says nothing of whole cells")
        names = [program.name for program in self.programs]
        if taken_names := [name for name in names if name in ARMS or names.count(name) > 1]:
            raise ValueError(
                f"programs: {taken_names[0]!r} is the name of another arm; give each a name of its own"
            )
        if self.arm not in (*ARMS, *names):
            raise ValueError(f"arm={self.arm}: there is no such arm; {nearest(self.arm, (*ARMS, *names))}")
        return self

    @property
    def program(self) -> ProgramRecipe | None:
        """The program that is the arm; None: the arm is a network."""
        return next((program for program in self.programs if program.name == self.arm), None)

    @property
    def is_zero_shot(self) -> bool:
        """Whether the arm is a program that learns nothing."""
        return self.program is not None and self.program.train is None

    def unused(self) -> Iterator[tuple[str, str]]:
        yield from unused_in_split(self.split)
        yield from unused_in_optim(self.optim)
        yield from unused_in_predict(self.predict)
        yield from self.objects.unused()
        if self.programs and self.program is None and self.arm != "best":
            yield "programs", f"arm is {self.arm}"
        if self.train_on_all:
            yield from dict.fromkeys(
                ("fold", "reference_labels"), "train_on_all is true, and nothing is scored"
            ).items()
