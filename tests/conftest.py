"""What several test files share."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from eventually import eventually
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from xdist.scheduler import LoadScopeScheduling

# A shell starts what it puts in the background with Ctrl-C ignored, and processes inherit that: then
# no test of Ctrl-C could pass.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Scheduler(LoadScopeScheduling):
    """Side by side run the tests of different files, but those on a real Slurm one after the other.

    Not by `--dist loadgroup`: with pytest 9.2, xdist 3.8 sets the groups where nobody reads them.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "slurm" if "/slurm/" in file else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests take long begin: on a real Slurm, with kills, or through the whole command line."""
    long = {item.path for item in items if any(map(item.get_closest_marker, ("kill", "journey")))}
    # Stable: all else keeps its order.
    items.sort(key=lambda item: (item.path.parent.name != "slurm", item.path not in long))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    return Scheduler(config, log)


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
class CommandLine:
    """The command line, with a stage that only counts, as a user in the folder `cwd` finds it."""

    cwd: Path
    environment: dict[str, str]

    def __call__(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """One call to its end; output and errors together in `stdout`."""
        return subprocess.run(
            [sys.executable, str(COUNTING / "command_line.py"), *words],
            cwd=cwd or self.cwd, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400,
        )  # fmt: skip

    def open(self, *words: str) -> subprocess.Popen[str]:
        """A call that goes on, in a process group of its own as a shell would start it."""
        return subprocess.Popen(
            [sys.executable, str(COUNTING / "command_line.py"), *words], cwd=self.cwd, env=self.environment,
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

    eventually = staticmethod(eventually)


@pytest.fixture(scope="session")
def open_command_line(pytestconfig: pytest.Config) -> Callable[[Path], CommandLine]:
    """open_command_line(folder) -> CommandLine of a user who stands there.

    Its processes keep compiled modules from one session to the next, as an installation does.
    """
    compiled = pytestconfig.cache.mkdir("compiled")
    dropped = {"PYTHONDONTWRITEBYTECODE", "HPC_ISL_RUNS", "CUDA_VISIBLE_DEVICES"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {
        "PYTHONPYCACHEPREFIX": str(compiled), "PYTHONPATH": f"{COUNTING}:{COUNTING.parents[1]}",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return lambda folder: CommandLine(folder, {**environment, "XDG_CONFIG_HOME": str(folder / "config")})


@pytest.fixture
def command_line(tmp_path: Path, open_command_line: Callable[[Path], CommandLine]) -> CommandLine:
    return open_command_line(tmp_path)


@pytest.fixture(scope="session")
def write_stained_plate() -> Callable[..., Any]:
    """write_stained_plate(path, …) -> Index of a plate whose stain a small network learns in a minute."""
    return _write_stained_plate


def _write_stained_plate(
    path: Path,
    wells: tuple[str, ...] = ("B02", "B03", "B04", "C02", "C03", "C04"),
    label_free: tuple[str, ...] = ("Brightfield",),
    stains: tuple[str, ...] = ("Hoechst",),
    planes: int = 2,
    size: int = 96,
    times: int = 1,
    flat_field: dict[str, Any] | None = None,
    field: str = "1",
) -> Any:
    from hpc_isl.plates.plate import Channel, Field, FieldKey, Plate, layout
    from hpc_isl.plates.statistics import measure
    from hpc_isl.plates.store import finalise, write_field
    from hpc_isl.recipes.plates import CodecRecipe

    channels = (
        *(Channel(name, fluorescent=False, flat_field=flat_field) for name in label_free),
        *(Channel(name, flat_field=flat_field) for name in stains),
    )
    shape = (times, len(channels), planes, size, size)
    fields = tuple(Field(FieldKey(well, field), shape, "uint16") for well in wells)
    plate = Plate(path.stem, *layout(set(wells)), channels, fields, pixel_um=0.6)
    for number, field in enumerate(fields):
        pixels = np.stack([_stained(channels, shape[2:], number, moment) for moment in range(times)])
        write_field(path, plate, field, pixels, measure(pixels), CodecRecipe(chunk=32))
    rows = {well: {"cell_line": {"B": "HeLa", "C": "3T3"}.get(well[0], "MCF10A")} for well in wells}
    return finalise(path, plate, rows)


def _stained(channels: Sequence[Any], shape: tuple[int, ...], *place: int) -> NDArray[np.uint16]:
    """(c, z, y, x): cells are dark spots with a bright rim where label-free, bright spots in a stain."""
    from hpc_isl.seeds import stream

    rng = stream(0, *place)
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    centers = rng.uniform(0, shape[-1], (8, 2))
    spots = np.max([np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 50) for cy, cx in centers], axis=0)
    clear = 20000 - 6000 * gaussian_filter(spots, 1) + 4000 * (gaussian_filter(spots, 3) - spots)
    ideal = [800 + 9000 * spots if channel.fluorescent else clear for channel in channels]
    return np.stack([plane + rng.normal(0, 60, shape) for plane in ideal]).astype(np.uint16)


@pytest.fixture(scope="session")
def judge() -> Callable[[Path], None]:
    """judge(plate): two validators and two readers look at it."""
    spec = importlib.util.spec_from_file_location("judges", Path(__file__).with_name("plates") / "judges.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[Path], None] = module.judge
    return found
