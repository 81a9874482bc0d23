"""What several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

COUNTING = Path(__file__).parent / "cluster"


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real images: HPC_ISL_DATA, or `shared/data` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HPC_ISL_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set HPC_ISL_DATA to the folder that holds them")
    return folder


@dataclass(frozen=True)
class Door:
    """The door of the package, with a stage that only counts, as a user in the folder `cwd` finds it."""

    cwd: Path
    environment: dict[str, str]

    def __call__(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """One call to its end; output and errors together in `stdout`."""
        return subprocess.run(
            [sys.executable, str(COUNTING / "door.py"), *words], cwd=cwd or self.cwd, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
        )  # fmt: skip

    def open(self, *words: str) -> subprocess.Popen[str]:
        """A call that goes on, in a process group of its own as a shell would start it."""
        return subprocess.Popen(
            [sys.executable, str(COUNTING / "door.py"), *words], cwd=self.cwd, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0,
        )  # fmt: skip

    def folder(self, name: str) -> Path:
        return self.cwd / "runs" / "count" / name

    def left(self) -> list[psutil.Process]:
        """Processes that work in a folder of this test: those of a run, and what they started."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd().startswith(str(self.cwd)):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def eventually(self, true: Callable[[], object], within_s: float = 20) -> bool:
        """Whether it comes true in time."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if true():
                return True
            time.sleep(0.05)
        return False


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes of these tests keep compiled modules, as an installed package has them."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def door(tmp_path: Path, compiled: Path) -> Door:
    dropped = {"PYTHONDONTWRITEBYTECODE", "HPC_ISL_RUNS", "CUDA_VISIBLE_DEVICES"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {
        "PYTHONPYCACHEPREFIX": str(compiled), "PYTHONPATH": f"{COUNTING}:{COUNTING.parents[1]}",
        "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }  # fmt: skip
    return Door(tmp_path, environment)
