"""Checkpoints, from which training resumes: files that are complete or absent; the newest complete counts."""

from __future__ import annotations

import errno
import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpc_isl.errors import UserError
from hpc_isl.files import write_atomic

State = dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, `step-00001000.pt` and so on, and the best weights beside them.

    Attributes:
        folder: of the run's checkpoints; one process (rank 0) writes there.
        digest: of the recipe and its inputs; a state of another digest is refused.
        keep: newest checkpoints kept.
        log: called with a message for each damaged file that is skipped.
    """

    folder: Path
    digest: str
    keep: int = 3
    log: Callable[[str], None] = print

    def save(self, step: int, state: State) -> Path:
        """Writes `state` (tensors, numbers, strings in dicts and lists) and removes the oldest files.

        Raises:
            UserError: a full disk, or numbers in the state that are not finite; older checkpoints stay.
        """
        path = self._path(step)
        _write(path, {**state, "step": step, "digest": self.digest})
        for old_path in self._newest_first()[self.keep :]:
            old_path.unlink(missing_ok=True)
        return path

    def newest(self) -> State | None:
        """Returns the newest complete state, or None; torn and damaged files are skipped.

        Raises:
            UserError: it belongs to another recipe, or to other data.
        """
        for path in self._newest_first():
            state = _read(path)
            if state is not None:
                self._check_digest(path, state)
                return state
            self.log(f"{path} is torn or damaged and is passed over")
        return None

    def read(self, step: int) -> State:
        """Returns the state of one step, which rank 0 has found complete."""
        state = _read(self._path(step))
        assert state is not None, f"{self._path(step)} is complete for rank 0 and not for this one"
        return state

    def save_best(self, state: State) -> None:
        """Keeps `state` as the best so far, in place of the one before."""
        _write(self.folder / "best.pt", {**state, "digest": self.digest})

    def best(self) -> State | None:
        """Returns the best state that was kept, or None."""
        state = _read(self.folder / "best.pt")
        if state is not None:
            self._check_digest(self.folder / "best.pt", state)
        return state

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"), reverse=True)

    def _check_digest(self, path: Path, state: State) -> None:
        if state.get("digest") != self.digest:
            raise UserError(
                f"{path} belongs to another recipe or other data (digest {state.get('digest')}, this run has "
                f"{self.digest}): start a run of another name, or give the recipe that it was made with"
            )


def _write(path: Path, state: State) -> None:
    # `isfinite` is true for integers, such as BatchNorm's counters.
    non_finite = [name for name, tensor in state["network"].items() if not torch.isfinite(tensor).all()]
    if non_finite:
        raise UserError(
            f"step {state.get('step')}: weights are no longer finite ({', '.join(non_finite[:3])}); no "
            "checkpoint is written. Try a lower optim.lr, or train.precision=fp32"
        )
    # Serialised in memory first, so that the file is written in one piece.
    stream = io.BytesIO()
    torch.save(state, stream)
    try:
        write_atomic(path, stream.getvalue())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        megabytes = len(stream.getvalue()) / 1e6
        raise UserError(f"{path}: the disk is full ({megabytes:.0f} MB are needed)") from None


def _read(path: Path) -> State | None:
    """Returns the state in a file, or None where the file is absent or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # every byte is checked, which torch.load does not do
                return None
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (FileNotFoundError, zipfile.BadZipFile, EOFError, RuntimeError, pickle.UnpicklingError):
        return None
