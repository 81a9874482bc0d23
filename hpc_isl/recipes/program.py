"""Commands of other programs that segment, each installed in an environment of its own."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field as Bound
from pydantic import field_validator, model_validator

from hpc_isl.errors import nearest
from hpc_isl.recipes.base import Positive
from hpc_isl.recipes.strict import Strict

PLACES = {
    "train": {"images", "labels", "model", "seed"},
    "predict": {"images", "model", "out"},
}
"""command -> the names that it may write in braces, and that are filled in when it is called"""
NEEDED = {"train": ("images", "labels", "model"), "predict": ("images", "out")}


def check_command(name: str, command: list[str]) -> list[str]:
    """Returns a command that names all folders that it needs, and nothing else in braces; else ValueError."""
    if not command:
        raise ValueError("the list is empty; a program and its arguments are expected")
    places = {place for argument in command for place in re.findall(r"\{(\w+)\}", argument)}
    for place in sorted(places - PLACES[name]):
        legal_places = [f"{{{legal}}}" for legal in sorted(PLACES[name])]
        raise ValueError(f"{{{place}}} is nothing that is filled in; {nearest(f'{{{place}}}', legal_places)}")
    for place in NEEDED[name]:
        if place not in places:
            raise ValueError(f"no argument has {{{place}}}, and so the program would not be told that folder")
    return command


class CommandRecipe(Strict):
    """A program that segments images: called with a list of arguments, never through a shell."""

    predict: list[str]
    """program and arguments. {images}: folder of 00000.tif, 00001.tif, …, float32 in stored counts, (y, x) or
    (source, y, x) of several sources. {out}: empty folder into which it writes labels of the same names,
    whole numbers (y, x), 0 background. {model}: folder that `train` has filled, or an empty one. A path with
    a slash that exists where this is typed becomes absolute"""
    env: dict[str, str] = {}
    """environment variables of the program, beside those of the job without PYTHONPATH and PYTHONHOME"""
    time_limit_s: Positive = 3600
    """seconds after which a call is ended, with all processes that it has started, and has failed"""

    @field_validator("env")
    @classmethod
    def _names_variables(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not name or "=" in name or "\0" in name + value:
                raise ValueError(f"{name!r} cannot be the name of a variable, or its value has a zero byte")
        return env

    @field_validator("predict")
    @classmethod
    def _predicts(cls, predict: list[str]) -> list[str]:
        return check_command("predict", predict)


class ProgramRecipe(CommandRecipe):
    """An arm of fine-tuning that is another program: it learns from the same boxes, and is scored alike."""

    name: Annotated[str, Bound(pattern=r"^[A-Za-z0-9][\w.-]*$")]
    """of the arm"""
    train: list[str] | None = None
    """program and arguments, which learn. {images}: as for `predict`, one image for each annotation box, cut
    at it. {labels}: folder of label images of the same names, uint16 or uint32 (y, x). {model}: empty folder
    into which it writes what `predict` needs, without its own place: runs are moved. {seed}: a number below
    2^31, of draw and train.seed. null: it learns nothing, and n must be 0"""
    memory_gb: Annotated[float, Bound(gt=0)] = 4.0
    """GB of main memory of a call of `predict`: segment starts no more at once than there is memory for"""

    @field_validator("train")
    @classmethod
    def _trains(cls, train: list[str] | None) -> list[str] | None:
        return train and check_command("train", train)

    @model_validator(mode="after")
    def _uses_its_model(self) -> ProgramRecipe:
        if self.train and not any("{model}" in argument for argument in self.predict):
            raise ValueError(
                "predict: no argument has {model}, and so what `train` makes would never be used"
            )
        return self
