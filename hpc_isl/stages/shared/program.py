"""Another program that segments: called on folders of TIFF files, and its labels checked before they count.

A call is a list of arguments, never a shell. Its images and results lie in a folder of its own, which is gone
after the call: nothing is kept of one that failed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpc_isl.errors import UserError
from hpc_isl.learning.data.view import View
from hpc_isl.objects.types import AnyLabels, Labels, Pixels
from hpc_isl.recipes.program import CommandRecipe, ProgramRecipe

POLL_S = 0.05
SHOWN_LINES, SHOWN = 12, 2000  # of what a program that failed has printed
OWN_PYTHON = ("PYTHONPATH", "PYTHONHOME")
READ_WHOLE = 2**24  # bytes; of larger files that a command names, such as weights, the size alone is noted

# Run by Python around the program: a program whose caller was killed must not go on computing, with a GPU,
# for nobody, and neither must what it has started. A function between fork and exec (preexec_fn) could lock
# up threads.
DIES_WITH_CALLER = """
import ctypes, os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):  # it was killed before
        sys.exit(1)
try:
    code = subprocess.call(sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]} cannot be started: {error.strerror}")
if code < 0:  # ended by a signal: so is this
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class ProgramStopped(Exception):
    """Raised when a program was ended because the attempt is to stop."""


def in_counts(view: View) -> View:
    """Returns the view that gives stored counts, corrected for illumination: programs normalise them."""
    rule = view.normalize.model_copy(update={"source": "none", "local_px": 0})
    return replace(view, normalize=rule, targets=(), foreground=None)


# ---------------------------------------------------------------- what is called


def located(program: CommandRecipe) -> CommandRecipe:
    """Returns the program with absolute paths: a job may start in another folder.

    Raises:
        UserError: a command with a path that does not exist.
    """
    commands = {"predict": program.predict, "train": getattr(program, "train", None)}
    changes = {
        name: [_absolute_argument(word) for word in command] for name, command in commands.items() if command
    }
    for name, command in changes.items():
        if "/" in command[0] and not os.access(command[0], os.X_OK):
            raise UserError(f"{_name(program)}{name}: {command[0]} is no program that can be started here")
    return program.model_copy(update=changes)


def _absolute_argument(argument: str) -> str:
    # Links stay as they are: a Python that is a link finds its environment by the place of the link.
    path = Path(argument).expanduser()
    return str(path.absolute()) if "/" in argument and path.exists() else argument


def _name(program: CommandRecipe) -> str:
    return f"{program.name}: " if isinstance(program, ProgramRecipe) else ""


def missing(program: CommandRecipe, command: Sequence[str]) -> bool:
    """Returns whether this machine has no program of the command's name."""
    return shutil.which(command[0], path=_environment(program).get("PATH")) is None


def command_fingerprint(program: CommandRecipe) -> str:
    """Returns a hash of the files that the commands name, such as scripts and weights."""
    total = hashlib.sha256()
    for argument in [*(getattr(program, "train", None) or []), *program.predict]:
        path = Path(argument)
        if path.is_absolute() and path.is_file():
            size = path.stat().st_size
            content = path.read_bytes() if size <= READ_WHOLE else str(size).encode()
            total.update(hashlib.sha256(content).digest())
    return total.hexdigest()[:32]


def folder_fingerprint(folder: Path) -> str:
    """Returns a hash of the names and contents of all files below a folder."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder)} {content}\n".encode())
    return total.hexdigest()


def needs_training(arm: str) -> str:
    """Returns why a program that learns nothing has no boxes."""
    return f"the program {arm} has no command `train`, and learns from no annotation"


# ---------------------------------------------------------------- learning and segmenting


def train(
    program: ProgramRecipe, pairs: Iterable[tuple[Pixels, AnyLabels]], model: Path, scratch: Path, seed: int,
    stopping: threading.Event | None = None,
) -> str:  # fmt: skip
    """Lets a program learn from images (source, y, x) and their labels (y, x); it fills the folder `model`.

    Args:
        model: is made, or emptied.
        scratch: folder for the exchanged files, which are removed.

    Returns:
        The last lines that the program has printed.

    Raises:
        UserError: the program failed, or has written nothing.
        ProgramStopped: it was ended.
    """
    from hpc_isl.objects.draft_labels import drop_small  # scikit-image, which a plan does without

    assert program.train is not None
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir(parents=True)
    with _scratch(scratch) as folder:
        images, labels = folder / "images", folder / "labels"
        for number, (image, label_image) in enumerate(pairs):
            _write(images / _file(number), _without_single_axis(image))
            numbered = drop_small(label_image, 0)[0]  # from 1 on, so that 16 bits are enough for most images
            _write(labels / _file(number), numbered.astype(np.uint16) if numbered.max() < 2**16 else numbered)
        slots = {"images": images, "labels": labels, "model": model, "seed": seed % 2**31}
        output = _call(program, "train", program.train, slots, folder, stopping)
    if not any(model.iterdir()):
        raise UserError(f"{_name(program)}train: ended well, and has written nothing into {{model}}")
    return output


def predict(
    program: CommandRecipe, images: Iterable[Pixels], model: Path | None, scratch: Path | None = None,
    stopping: threading.Event | None = None,
) -> list[Labels]:  # fmt: skip
    """Returns the labels (y, x) uint32 of images (source, y, x), numbered by the objects' first pixels.

    Args:
        model: folder that `train` has filled; None: the program finds an empty one.
        scratch: folder for the exchanged files, which are removed; None: the system's.

    Raises:
        UserError: the program failed, or what it wrote are no labels of these images.
        ProgramStopped: it was ended.
    """
    with _scratch(scratch) as folder:
        folders = {name: folder / name for name in ("images", "model", "out")}
        for subfolder in folders.values():
            subfolder.mkdir()
        shapes = {}
        for number, image in enumerate(images):
            shapes[_file(number)] = image.shape[1:]
            _write(folders["images"] / _file(number), _without_single_axis(image))
        slots = folders | ({"model": model} if model else {})
        _call(program, "predict", program.predict, slots, folder, stopping)
        return list(_labels(program, shapes, folders["out"]))


@contextmanager
def _scratch(parent: Path | None) -> Iterator[Path]:
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="program-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder).absolute()


def _file(number: int) -> str:
    return f"{number:05d}.tif"


def _without_single_axis(image: Pixels) -> Pixels:
    return image[0] if len(image) == 1 else image


def _write(path: Path, pixels: AnyLabels | Pixels) -> None:
    import tifffile  # a plan does without

    path.parent.mkdir(exist_ok=True)
    # Without metadata of tifffile's own: a stack of three sources is no RGB image.
    tifffile.imwrite(path, pixels, photometric="minisblack", metadata=None)


def _labels(program: CommandRecipe, shapes: Mapping[str, tuple[int, ...]], out: Path) -> Iterator[Labels]:
    """Yields the labels that a program has written, in the order of its images."""
    from hpc_isl.objects.draft_labels import drop_small

    prefix = f"{_name(program)}predict"
    written = {path.name for path in out.glob("*.tif")}
    if written != shapes.keys():
        absent, extra_names = sorted(shapes.keys() - written), sorted(written - shapes.keys())
        problem = f"{absent[0]} is missing" if absent else f"{extra_names[0]} belongs to no image"
        other_names = sorted(path.name for path in out.iterdir() if path.suffix != ".tif")
        other_text = f"; it has written {', '.join(other_names[:3])}" if absent and other_names else ""
        raise UserError(
            f"{prefix}: ended well, with {len(written)} label images in {{out}} for {len(shapes)} images: "
            f"{problem}{other_text}"
        )
    for name, shape in shapes.items():
        labels = _read(f"{prefix}: {name}", out / name)
        if labels.dtype.kind not in "iub":
            raise UserError(
                f"{prefix}: {name} holds {labels.dtype}; labels are whole numbers, 0 the background"
            )
        if labels.shape != shape:
            raise UserError(f"{prefix}: {name} has the shape {labels.shape}, and its image {shape} (y, x)")
        if labels.size and labels.min() < 0:
            raise UserError(f"{prefix}: {name} holds {labels.min()}; labels are 0, 1, 2, …, none is negative")
        # Numbers may be anything up to 2^64: no table may be as long as the largest.
        values, numbered = np.unique(labels, return_inverse=True)
        numbered = numbered.reshape(shape) + int(values[0] != 0)
        yield drop_small(numbered, 0)[0]


def _read(subject: str, path: Path) -> AnyLabels:
    import tifffile

    try:
        return np.asarray(tifffile.imread(path))
    except Exception as error:  # tifffile raises all kinds of errors for damaged files
        raise UserError(f"{subject} cannot be read as TIFF: {error}") from None


# ---------------------------------------------------------------- one call


def _call(
    program: CommandRecipe, name: str, command: Sequence[str], slots: Mapping[str, object], folder: Path,
    stopping: threading.Event | None,
) -> str:  # fmt: skip
    """Runs a command to its end, within its time; returns the last lines that it has printed."""
    argv = [_fill_slots(argument, slots) for argument in command]
    if missing(program, argv):
        raise UserError(
            f"{_name(program)}{name}: {argv[0]}: there is no such program on {os.uname().nodename}; give its "
            "whole path, or a PATH in env"
        )
    guarded_argv = [sys.executable, "-I", "-S", "-c", DIES_WITH_CALLER, str(os.getpid()), *argv]
    deadline = time.monotonic() + program.time_limit_s
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            guarded_argv, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=_environment(program),
            cwd=folder, start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
                    break
                if stopping is not None and stopping.is_set():
                    raise ProgramStopped
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{_name(program)}{name}: took longer than time_limit_s={program.time_limit_s} and "
                        f"was ended{_last_lines(folder)}"
                    )
        finally:
            with suppress(ProcessLookupError):  # what it has started may go on when it has ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code := process.returncode:
        signal_names = {entry.value: entry.name for entry in signal.Signals}
        ending = f"failed with exit code {code}"
        if code < 0:
            ending = f"was ended by {signal_names.get(-code, f'signal {-code}')}"
        raise UserError(f"{_name(program)}{name}: {ending}{_last_lines(folder)}")
    return _last_lines(folder)


def _environment(program: CommandRecipe) -> dict[str, str]:
    # Paths of this package's Python would reach into the program's own.
    return {key: value for key, value in os.environ.items() if key not in OWN_PYTHON} | program.env


def _fill_slots(argument: str, slots: Mapping[str, object]) -> str:
    # By name, not by str.format: other braces, as of JSON, are the program's own.
    for name, value in slots.items():
        argument = argument.replace(f"{{{name}}}", str(value))
    return argument


def _last_lines(folder: Path) -> str:
    """Returns the last lines that a program has printed as errors, or else at all."""
    for name in ("stderr", "stdout"):
        text = (folder / name).read_bytes()[-SHOWN:].decode(errors="replace")
        # As a terminal shows it: without colours, and of a bar that was drawn again and again the last.
        lines = [re.sub(r"\x1b\[[\d;]*\w", "", line).rstrip("\r") for line in text.split("\n")]
        lines = [last for line in lines if (last := line.rpartition("\r")[2].rstrip())]
        if lines:
            return "; its last lines:\n" + "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:])
    return ", without a word"
