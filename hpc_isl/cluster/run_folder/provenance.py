"""The provenance of a run: code, packages, machine, seeds and inputs, written once at submission."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import hpc_isl
from hpc_isl.errors import UserError
from hpc_isl.files import now, read_json
from hpc_isl.recipes.base import Recipe
from hpc_isl.recipes.load import digest
from hpc_isl.run import Plan, Run
from hpc_isl.site import user_name

NAME, VERSION = (re.compile(rf"^{key}: *(.*\S)", re.MULTILINE) for key in ("Name", "Version"))
PACKAGE = Path(hpc_isl.__file__).parent
# Only these: an environment may hold tokens.
ENVIRONMENT = re.compile(
    r"(OMP|MKL|OPENBLAS|NUMBA)_NUM_THREADS|CUDA_VISIBLE_DEVICES|CUDA_HOME|LD_LIBRARY_PATH|PYTHONPATH"
    r"|VIRTUAL_ENV|CONDA_PREFIX|LANG|LC_ALL|TZ|HPC_ISL_(RUNS|DATA)|MLFLOW_TRACKING_URI|NCCL_\w+"
    r"|SLURM_(CLUSTER_NAME|JOB_ID|JOB_PARTITION|SUBMIT_HOST)|LOADEDMODULES"
)


def record(recipe: Recipe, argv: list[str], plan: Plan | None = None) -> dict[str, Any]:
    """Returns the content of `record.json`; `key` identifies the run wherever it is forwarded to.

    `plan`: of the run; None: it has none of its own, as an array.
    """
    return {
        "key": uuid.uuid4().hex,
        **planned(plan or Plan(recipe)),
        "made": now(),
        "argv": argv,
        "cwd": os.getcwd(),
        "user": user_name(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "version": hpc_isl.__version__,
        **commit(),
        "code": code_digest(),
        "packages": packages(),
        "environment": _environment(),
    }


def _environment() -> dict[str, str]:
    """Returns the variables that may matter; an address loses its password."""
    variables = {name: value for name, value in sorted(os.environ.items()) if ENVIRONMENT.fullmatch(name)}
    return {name: re.sub(r"://[^/@]*@", "://", value) for name, value in variables.items()}


def again(content: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Returns the record of an element, from its array's: it differs in what is computed."""
    return {**content, "key": uuid.uuid4().hex, **planned(plan)}


def planned(plan: Plan) -> dict[str, Any]:
    """Returns what is computed, and from what."""
    recipe: Recipe = plan.recipe
    return {
        "digest": digest(recipe, plan.inputs),
        "inputs": dict(plan.inputs),
        "parts": {name: dict(parts) for name, parts in plan.parts.items()},
        "plates": [str(path) for path in recipe.plates_read()],
        "like": plan.workload and dict(plan.workload.like),
        "seeds": dict(_seeds(recipe.model_dump(mode="json"))),
    }


def _seeds(content: Any, path: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "seed":
                yield f"{path}{key}", value
            yield from _seeds(value, f"{path}{key}.")


def packages() -> dict[str, str]:
    """Returns name and version of every distribution that this Python sees."""
    versions = dict(map(_name_and_version, metadata.distributions()))
    return dict(sorted(versions.items(), key=lambda pair: pair[0].lower()))


def _name_and_version(distribution: metadata.Distribution) -> tuple[str, str]:
    """Returns both from one reading: `metadata` and `version` would each parse all of the file."""
    text = distribution.read_text("METADATA") or ""
    name, version = NAME.search(text), VERSION.search(text)
    if name and version:
        return name[1], version[1]
    return str(distribution.metadata["Name"]), distribution.version


def commit() -> dict[str, str | None]:
    """Returns the commit of the checkout that this package runs from, and the digest of what differs from it.

    A package that is installed inside some checkout does not belong to it: git must know its files.
    """
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "diff": None}
    patch = _git("diff", "HEAD", "--", ".")
    patch_hash = hashlib.sha256(patch.encode()).hexdigest()[:16] if patch else None
    return {"commit": (_git("rev-parse", "HEAD") or "").strip() or None, "diff": patch_hash}


def _git(*arguments: str) -> str | None:
    try:
        process = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout if process.returncode == 0 else None


def difference() -> str:
    """Returns the uncommitted changes of the package as a patch; empty: there are none, or no checkout."""
    return (_git("diff", "HEAD", "--", ".") or "") if commit()["commit"] else ""


@cache
def code_digest() -> str:
    """Returns a hash of the source files of the package that this process runs."""
    # Names and contents are divided by zero bytes, so that no two sets of files give the same text.
    total = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        total.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def snapshot(folder: Path) -> Path:
    """Copies the package into `folder`: a queued job then runs the code that was submitted."""
    shutil.copytree(PACKAGE, folder / "hpc_isl", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return folder


def is_planned(run: Run) -> bool:
    """Returns whether the run is planned; one that waits for its inputs is planned when its job starts."""
    return bool((read_json(run.record) or {}).get("planned", True))


@contextmanager
def standing_in(folder: Path) -> Iterator[None]:
    """Changes into the folder where a recipe was typed: its relative paths are meant from there."""
    try:
        os.listdir(folder)
    except OSError as error:
        raise UserError(
            f"{folder}, where this was typed, cannot be read on {socket.gethostname()}: {error}"
        ) from None
    with chdir(folder):
        yield


def python_path(folder: Path) -> str:
    """Returns PYTHONPATH with which a process finds the package that lies in `folder`."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def import_path() -> str:
    """Returns PYTHONPATH for a process that starts in the run folder and must find this very package."""
    if "site-packages" in PACKAGE.parent.parts:
        return os.environ.get("PYTHONPATH", "")
    return python_path(PACKAGE.parent)
