"""Sites: where a stage is computed. Recipes do not know it: equal recipes give equal results anywhere."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from hpc_isl.errors import UserError, nearest
from hpc_isl.recipes.base import Count, Positive
from hpc_isl.recipes.strict import Strict, override, parse, read_yaml
from hpc_isl.sbatch_flags import normalized_flags, site_key

_UNITS_MIN = {"min": 1, "m": 1, "h": 60, "d": 1440}


class Site(Strict):
    """The place of computation: executor, machines, folders, tracking."""

    executor: Literal["local", "slurm", "allocation"] = "local"
    """local: here, in the foreground; slurm: through sbatch, detached; allocation: in the foreground,
    through srun, inside a job of Slurm that has begun (in an sbatch file of your own, or after salloc)"""
    nodes: Positive = 1
    """machines; local has one and folds the processes of the others into it"""
    processes: Positive | None = None
    """processes per node; null: one per GPU, or one"""
    workers: Count | None = None
    """segment: worker processes per node; null, or 0: one per GPU, else one per CPU, as memory holds"""
    gpus: Count | None = None
    """GPUs per node; null: local all that are visible, slurm none"""
    cpus: Positive | None = None
    """CPUs per process; null: local shares all of them out, slurm gives 1"""
    memory: str | None = None
    """per node, e.g. 64G; null: the partition's default. Local does not enforce it"""
    time: str | None = None
    """limit of one attempt, e.g. 90min, 12h, 2d or D-HH:MM:SS; null: the partition's default,
    local none. A run that reaches it saves and stops; Slurm then starts it again"""
    partition: str | None = None
    """Slurm partition"""
    account: str | None = None
    """Slurm account"""
    qos: str | None = None
    """Slurm quality of service"""
    constraint: str | None = None
    """Slurm constraint: features that the nodes must have"""
    reservation: str | None = None
    """Slurm reservation"""
    mail: str | None = None
    """address to which Slurm writes when a job has ended or failed"""
    array: Positive | None = None
    """elements of an array that run at once; null: slurm no limit, local as many as fit"""
    sbatch: dict[str, str | int | bool] = {}
    """further flags of sbatch, e.g. {exclusive: true, exclude: node7}. They win over keys above, as
    {cpus-per-task: 2} over cpus, and over flags that are set automatically; false takes such a flag away"""
    slurm_conf: Path | None = None
    """configuration of the cluster that is meant, where a machine knows several; null: the machine's"""
    container: Path | None = None
    """Apptainer image in which the jobs run, with slurm/hpc_isl.def as its recipe; null: no container"""
    binds: list[str] = []
    """folders that the container sees beside the home folder, e.g. [/data, /scratch]"""
    signal_s: Positive = 120
    """slurm: seconds before the time limit at which the run is told to save"""
    python: str | None = None
    """command that starts Python in the job; null: this Python, or the container's"""
    setup: list[str] = []
    """shell lines that run before it, e.g. [module load cuda]"""
    runs: Path | None = None
    """folder of all run folders; null: $HPC_ISL_RUNS, or ./runs"""
    group: str | None = None
    """group whose members may write the run folders too; null: as the umask says"""
    tracking: str | None = None
    """address of an MLflow server, or an sqlite address; null: mlflow.db in the folder of runs;
    none: runs are not forwarded"""
    experiment: str | None = None
    """MLflow experiment; null: the stage's name"""

    @model_validator(mode="before")
    @classmethod
    def _flags_with_own_keys(cls, content: Any) -> Any:
        """Turns flags of sbatch into keys of the site where they exist: ranks and dry runs read only keys."""
        if not isinstance(content, dict) or not isinstance(content.get("sbatch"), dict):
            return content
        flags = normalized_flags(content["sbatch"])
        keys = {flag: key for flag, value in flags.items() if (key := site_key(flag, value))}
        further_flags = {flag: _as_written(value) for flag, value in flags.items() if flag not in keys}
        return {**content, **dict(keys.values()), "sbatch": further_flags}

    @field_validator("time", mode="before")
    @classmethod
    def _is_a_duration(cls, time: object) -> object:
        # 30 could be minutes or hours; YAML's integer 43200 that was written 12:00:00 still says so.
        if isinstance(time, int) and str(time).isdigit():
            raise ValueError("write a time with its unit, as 90min, 12h or 2d, or 12:00:00")
        if isinstance(time, (str, int, float)):
            minutes(str(time))
        return time

    @field_validator("memory")
    @classmethod
    def _has_a_size(cls, memory: str | None) -> str | None:
        if memory is not None and not re.fullmatch(r"\d+[KMGT]B?", memory):
            raise ValueError("memory is a whole number and a unit, as 64G or 512M")
        return memory

    @field_validator("tracking")
    @classmethod
    def _is_an_address(cls, tracking: str | None) -> str | None:
        if tracking and re.search(r"://[^/]*@", tracking):
            raise ValueError(
                "an address with a password would be recorded in each run; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        if tracking and not re.match(r"none$|https?://|sqlite:|postgresql|mysql|databricks", tracking):
            raise ValueError("an MLflow address starts with http://, https:// or sqlite:///; or write none")
        if tracking and tracking.startswith("sqlite:///"):
            # A relative path would be another database in each folder from which runs are forwarded.
            path = os.path.expanduser(tracking.removeprefix("sqlite:///"))
            return f"sqlite:///{os.path.abspath(path)}"
        return tracking

    @field_validator("container", "slurm_conf")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and Path(os.path.abspath(path.expanduser()))

    @model_validator(mode="after")
    def _time_to_save(self) -> Site:
        # Slurm sends the signal up to a minute early; Python must have started by then.
        least_minutes = -(-self.signal_s // 60) + 3
        if self.minutes is not None and self.executor == "slurm" and self.minutes < least_minutes:
            raise ValueError(
                f"time {self.time} is too short to save {self.signal_s} s before its end: {least_minutes}min"
            )
        return self

    @property
    def ranks(self) -> int:
        """The number of processes of the whole job."""
        return self.nodes * self.per_node

    @property
    def per_node(self) -> int:
        """The number of processes on each node."""
        return self.processes or max(1, self.visible_gpus)

    @property
    def visible_gpus(self) -> int:
        """The number of GPUs per node that the job may use."""
        if self.gpus is not None:
            return self.gpus
        return len(gpus_here()) if self.executor == "local" else 0

    @property
    def server(self) -> str | None:
        """The address of the MLflow server; None for a database or no tracking."""
        return self.tracking if self.tracking and self.tracking.startswith("http") else None

    @property
    def minutes(self) -> int | None:
        """The limit of one attempt in minutes."""
        return minutes(self.time) if self.time else None

    def alone(self) -> Site:
        """Returns the site for a stage that one process computes: it has the CPUs of all, and no GPU.

        A number of processes that was asked for is kept.
        """
        if self.processes is not None:
            return self
        # GPUs would lie idle, and others wait for them.
        cpus = self.cpus and self.cpus * self.per_node
        return self.model_copy(update={"processes": 1, "nodes": 1, "gpus": 0, "cpus": cpus})

    def pooled(self) -> Site:
        """Returns the site for a stage that worker processes compute: one process per node manages them.

        A number of processes that was asked for becomes that of the workers. Local has one node, which gets
        all workers.
        """
        # 0 says that no number was asked for, also when a run is resumed with the site that was kept.
        workers = self.processes or 0 if self.workers is None else self.workers
        nodes = self.nodes
        if self.executor == "local":
            workers, nodes = workers * nodes, 1
        cpus = self.cpus and self.cpus * self.per_node
        return self.model_copy(update={"processes": 1, "nodes": nodes, "cpus": cpus, "workers": workers})

    def tracking_address(self, root: Path) -> str | None:
        """Returns the MLflow address of runs below `root`; None: they are not forwarded."""
        if self.tracking == "none":
            return None
        return self.tracking or f"sqlite:///{root / 'mlflow.db'}"


def _as_written(value: str | int | bool) -> str | int | bool:
    """Returns 16:00 and 0012, which YAML reads as the numbers 960 and 10, as they were written."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number and str(value) != f"{value:d}" else value


def minutes(text: str) -> int:
    """Returns a duration such as `90min`, `1d12h`, `12:00:00` or `2-00:00:00` in minutes, rounded up."""
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text.strip())
    if clock:
        days, hours, mins, seconds = (int(part or 0) for part in clock.groups())
        total = days * 1440 + hours * 60 + mins + (seconds > 0)
    else:
        parts = re.findall(r"(\d+)\s*(min|m|h|d)", text)
        if not parts or re.sub(r"(\d+)\s*(min|m|h|d)", "", text).strip():
            raise ValueError("a time is written as 90min, 12h, 2d, 1d12h or '12:00:00'")
        total = sum(int(number) * _UNITS_MIN[unit] for number, unit in parts)
    if total < 1:
        raise ValueError("the time is shorter than a minute")
    return total


def user_name() -> str:
    """Returns the name of the user of this process; some containers know users by number alone."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return os.environ.get("USER") or str(os.getuid())


def cpus_here() -> int:
    """Returns the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def gpus_here() -> list[str]:
    """Returns the names of this machine's GPUs, as CUDA_VISIBLE_DEVICES takes them, without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    devices = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted(devices, key=int)


def site_folders() -> list[Path]:
    """Returns the folders that may hold sites, two of the user's before the shipped ones."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    package = Path(__file__).parent
    shipped = [package / "configs" / "sites", package.parent / "configs" / "sites"]
    return [Path("sites"), config / "hpc_isl" / "sites", *shipped]


def site_files(folders: Iterable[Path]) -> dict[str, Path]:
    """Returns the file of each site by name; a folder hides the sites of equal name in the later ones."""
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            files.setdefault(path.stem, path)
    return files


def find(name: str) -> Path:
    """Returns the file of a site given by path or by name."""
    path = Path(os.path.expanduser(name))  # a chain's recipe names sites too, and no shell reads that
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise UserError(f"--site {name}: there is no such file")
        return path
    folders = site_folders()
    files = site_files(folders)  # a user's site hides a shipped one of its name
    if name not in files:
        searched = ", ".join(map(str, folders[:2]))
        raise UserError(
            f"--site {name}: no such site in {searched} or among the shipped; {nearest(name, sorted(files))}"
        )
    return files[name]


def load(name: str, assignments: list[str]) -> Site:
    """Returns the site of a name or file, with overrides such as `gpus=4`."""
    path = find(name)
    origin = f"{path}" + (
        f" with {' '.join(f'site.{assignment}' for assignment in assignments)}" if assignments else ""
    )
    return parse(Site, override(read_yaml(path), assignments), origin)


def saved_site(path: Path) -> Site:
    """Returns the site that is kept in a run folder: where the newest attempt of the run computes."""
    return parse(Site, read_yaml(path), str(path))


def runs_root(site: Site | None = None) -> Path:
    """Returns the folder of all run folders, absolute."""
    folder = site.runs if site else None
    root = folder or Path(os.environ.get("HPC_ISL_RUNS") or "runs")
    return Path(os.path.abspath(root.expanduser()))


def folders_of_runs() -> dict[Path, list[str]]:
    """Returns every folder in which this user's runs may lie, with the sites that keep theirs there.

    The folder of a site without `runs` comes first, then those that the files of the user's sites name.
    """
    folders: dict[Path, list[str]] = {runs_root(): []}
    for name, path in site_files(site_folders()[:2]).items():
        # A file that cannot be read names no folder; a run on that site reports the error.
        with suppress(UserError):
            runs = read_yaml(path).get("runs")
            if isinstance(runs, str):
                folders.setdefault(runs_root(Site(runs=Path(runs))), []).append(name)
    return folders
