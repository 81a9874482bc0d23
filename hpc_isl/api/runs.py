"""Runs and what they have made: recipe, metrics, scores, tables and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_isl import run as run_folder
from hpc_isl.cluster.run_folder import folders
from hpc_isl.errors import UserError
from hpc_isl.recipes.load import read_kept
from hpc_isl.site import folders_of_runs

if TYPE_CHECKING:
    import pandas as pd


def find_run(run: str | Path | Run) -> run_folder.Run:
    """Returns the run of a folder, or of a name as the commands take it: `nuc`, `nuc/final`.

    Raises:
        UserError: there is none, with the folders that were searched.
    """
    if isinstance(run, Run):
        return run._run
    # A folder is a run by its recipe; any other text is a name, even where a folder is called so.
    if (Path(run) / "recipe.yaml").is_file():
        return run_folder.Run(Path(run).absolute())
    return folders.find(str(run), *folders_of_runs())


class Run:
    """A run of a stage, of a sweep or of a chain, found by its name or its folder."""

    def __init__(self, run: str | Path) -> None:
        self._run = find_run(run)

    def __repr__(self) -> str:
        return f"<Run {self.stage} {self.name!r} in {self.folder}>"

    @property
    def name(self) -> str:
        return self._run.label

    @property
    def stage(self) -> str:
        return self._run.stage

    @property
    def folder(self) -> Path:
        return self._run.folder

    @property
    def recipe(self) -> dict[str, Any]:
        """Its keys and values, with the names that this version gives them."""
        return read_kept(self.stage, self._run.recipe)

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the stage reported when it was done; None: it is not done."""
        return self._run.summary()

    @property
    def elements(self) -> tuple[Run, ...]:
        """The runs of a sweep or of a chain, in order."""
        return tuple(Run(element.folder) for element in self._run.elements())

    @property
    def pictures(self) -> dict[str, Path]:
        """Name -> file of each picture."""
        return {path.stem: path for path in sorted(self._run.pictures.glob("*.png"))}

    def metrics(self) -> pd.DataFrame:
        """Returns a row for each line of `metrics.jsonl`: step, loss, learning rate, scores."""
        import pandas as pd  # here, because a script that opens a run may make no table

        return pd.DataFrame(list(self._run.metric_lines()))

    def scores(self) -> pd.DataFrame:
        """Returns the scores of each held-out field (pretrain) or test box (finetune).

        Raises:
            UserError: the run has scored nothing.
        """
        import pandas as pd

        path = self.folder / "scores.csv"
        if not path.is_file():
            raise UserError(f"{self!r} has no scores: it is of another stage, or not done")
        return pd.read_csv(path, dtype={"field": str})  # a field's name may be 007


def read_table(run: str | Path | Run, per: str = "well") -> pd.DataFrame:
    """Returns the table of a run of segment, of all its plates, as the command `table` writes it by default.

    Args:
        per: well, field, plate or object; all objects of a run must fit into memory.

    Raises:
        UserError: the run is of another stage, or not done; no such `per`.
    """
    from hpc_isl.stages.table.stage import data_frame  # brings pandas

    return data_frame(find_run(run), per)
