"""A real Slurm for the tests of this folder."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from eventually import eventually

if TYPE_CHECKING:
    from tests.conftest import CommandLine

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "slurm" / "testcluster" / "testcluster.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@dataclass(frozen=True)
class Cluster:
    """A running Slurm of this test session alone."""

    folder: Path
    conf: Path
    site_file: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    def run(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=120,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}")
        return done.stdout

    def submit(self, wrapped: str, *options: str) -> str:
        """The id of a job that runs these shell words; its output goes into the cluster's folder."""
        output = f"--output={self.folder}/%j.txt"
        told = self.run("sbatch", "--parsable", "--chdir=/tmp", output, *options, f"--wrap={wrapped}")
        return told.strip().split(";")[0]

    def job_state(self, job_id: str) -> str:
        """RUNNING, PENDING and so on; the controller forgets a job after MinJobAge, then: empty."""
        try:
            told = self.run("scontrol", "--oneliner", "show", "job", job_id)
        except RuntimeError as error:
            if "Invalid job id" in str(error):
                return ""
            raise
        return told.split(" JobState=")[1].split()[0]

    def start_now(self, job_id: str) -> None:
        """A requeued job would wait for its `cred_expire`: 30 s here, 120 s by default.

        In the second in which it was ended its node would refuse it (job credential revoked): FAILED.
        """
        self.run("scontrol", "update", f"JobId={job_id}", "StartTime=now+2")

    def clear(self) -> None:
        """Ends what a test has left, so that the next finds both nodes free."""
        jobs = self.run("squeue", "-h", "-o", "%A").split()
        if jobs:
            self.run("scancel", *set(jobs))
            self.eventually(lambda: not self.run("squeue", "-h").strip(), 30)

    def eventually(self, true: Callable[[], object], within_s: float = 60) -> bool:
        """Whether it comes true in time."""
        return eventually(true, within_s)

    def restart(self, daemon: str, stop_s: float = 0) -> None:
        """Ends slurmctld or the nodes' slurmd, waits, starts it again."""
        self.script("restart", daemon, f"--stop-s={stop_s}")

    def open(self, *words: str) -> subprocess.Popen[bytes]:
        """A call of the script that goes on."""
        return subprocess.Popen([sys.executable, str(SCRIPT), *words, f"--folder={self.folder}"])

    def script(self, *words: str) -> str:
        return self.run(sys.executable, str(SCRIPT), *words, f"--folder={self.folder}")


@contextmanager
def started(*options: str) -> Iterator[Cluster]:
    """A cluster in a folder of its own, whose name is short: sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="isl-", dir="/tmp"))
    cluster = Cluster(folder / "c", folder / "c" / "slurm.conf", folder / "testcluster.yaml")
    try:
        cluster.script("start", f"--site-file={cluster.site_file}", *options)
        yield cluster
    finally:
        cluster.script("stop")
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def start_cluster() -> Callable[..., object]:
    """start_cluster(*options): a context manager that gives a Cluster; for tests that end it."""
    _needs(accounting=False)
    return started


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes, with accounting."""
    _needs(accounting=True)
    with started() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster_without_accounting() -> Iterator[Cluster]:
    """Two nodes, small arrays, a controller that soon forgets."""
    _needs(accounting=False)
    with started("--without-accounting", "--set", "MaxArraySize=10", "MinJobAge=5") as cluster:
        yield cluster


def _needs(accounting: bool) -> None:
    missing = _missing(accounting)
    if missing and os.environ.get("HPC_ISL_NEEDS_SLURM") == "1":
        pytest.fail(f"Slurm is needed here, and these are missing: {', '.join(missing)}")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt install slurm-wlm slurmdbd mariadb-server munge")


def _missing(accounting: bool) -> list[str]:
    spec = importlib.util.spec_from_file_location("programs", SCRIPT.with_name("programs.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[str] = module.missing(accounting)
    return found


@dataclass(frozen=True)
class User:
    """Someone with a cluster: the stage that only counts, on one small process each."""

    command_line: CommandLine
    cluster: Cluster

    def __call__(self, *words: str) -> str:
        """A call that succeeds; what it printed."""
        done = self.command_line(*words)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def submit(self, *words: str, name: str, verb: str = "count") -> str:
        """Hands a run, or an array, to Slurm; its job id."""
        said = self(verb, *words, "--site", str(self.cluster.site_file), *SMALL, "--name", name)
        return said.split("submitted as Slurm job")[1].lstrip("s ").split()[0].strip(",")

    def folder(self, name: str) -> Path:
        return self.command_line.folder(name)

    def record(self, name: str, rank: int = 0, attempt: int = 0) -> dict[str, Any]:
        path = self.folder(name) / "attempts" / str(attempt) / f"rank-{rank}.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def counts(self, name: str, attempt: int = 0) -> bool:
        """Whether the attempt has begun to count."""
        return bool(self.record(name, attempt=attempt).get("progress"))

    def word(self, name: str) -> str:
        """The state that `status` tells."""
        row = self("status", name).splitlines()[1]
        return row.split(name, 1)[1].split()[0]

    def becomes(self, name: str, word: str, within_s: float = 120) -> bool:
        return self.cluster.eventually(lambda: self.word(name) == word, within_s)

    def steps(self, name: str) -> list[int]:
        lines = (self.folder(name) / "metrics.jsonl").read_text().splitlines()
        return [line["step"] for line in map(json.loads, lines) if "loss" in line["values"]]


SMALL = ("site.memory=100M", "site.tracking=none")


@pytest.fixture(scope="session")
def open_user() -> Callable[[CommandLine, Cluster], User]:
    """open_user(command_line, cluster) -> User, for tests that start a cluster of their own."""
    return User


@pytest.fixture
def user(cluster: Cluster, command_line: CommandLine) -> Iterator[User]:
    yield User(command_line, cluster)
    cluster.clear()


@pytest.fixture
def user_without_accounting(cluster_without_accounting: Cluster, command_line: CommandLine) -> Iterator[User]:
    yield User(command_line, cluster_without_accounting)
    cluster_without_accounting.clear()
