"""What Slurm is given, and what its answers mean; needs no Slurm."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_isl.cluster import slurm, status
from hpc_isl.cluster.jobs import Job
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("pretrain", "hpc_isl.stages.pretrain", tmp_path / "runs" / "pretrain" / "S 12's", 3)


def tool(folder: Path, name: str, script: str) -> None:
    """An executable that answers as the scheduler was recorded to do."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_the_sbatch_text_says_all_that_slurm_must_know(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    site = Site(
        executor="slurm", nodes=2, gpus=4, cpus=8, memory="64G", time="2h", partition="gpu", account="lab",
        qos="long", constraint="a100", sbatch={"reservation": "my course", "exclusive": True, "hold": False},
        setup=["module load cuda"], signal_s=90, python="/opt/venv/bin/python",
    )  # fmt: skip
    folder = job.folder
    quoted = shlex.quote(str(folder))
    logs = [shlex.quote(f"{folder}/sbatch/%j_%t_log.{kind}") for kind in ("out", "err")]
    assert slurm.text(job, site).split("\n") == [
        "#!/bin/bash",
        "",
        "# Parameters",
        "#SBATCH --account=lab",
        f"#SBATCH --chdir={quoted}",
        "#SBATCH --constraint=a100",
        "#SBATCH --cpus-per-task=8",
        f"#SBATCH --error={shlex.quote(f'{folder}/sbatch/%j_0_log.err')}",
        "#SBATCH --exclusive",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --job-name=" + shlex.quote("pretrain-S 12's"),
        "#SBATCH --mem=64G",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={shlex.quote(f'{folder}/sbatch/%j_0_log.out')}",
        "#SBATCH --partition=gpu",
        "#SBATCH --qos=long",
        "#SBATCH --requeue",
        "#SBATCH --reservation='my course'",
        "#SBATCH --signal=USR2@90",
        "#SBATCH --time=120",
        "",
        "# setup",
        "module load cuda",
        f"export PYTHONPATH={shlex.quote(f'{folder}/attempts/3/code')}",
        "export SRUN_CPUS_PER_TASK=8",
        *(f"export {name}_NUM_THREADS=8" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA")),
        "export BLOSC_NTHREADS=8",
        "",
        "# command",
        "export SUBMITIT_EXECUTOR=slurm",
        f"srun --unbuffered --output {logs[0]} --error {logs[1]} --kill-on-bad-exit=1 --wait=60 "
        f"/opt/venv/bin/python -u -m submitit.core._submit {shlex.quote(str(folder / 'sbatch'))}",
        "",
    ]
    assert not folder.exists(), "the text is had without writing anything"


def test_what_is_not_given_is_left_to_the_partition(job: Job) -> None:
    text = slurm.text(job, Site(executor="slurm"))
    for flag in ("--time", "--mem", "--gpus", "--partition", "--wckey"):
        assert flag not in text


def test_the_shell_reads_names_with_spaces_and_quotes_as_they_are(job: Job) -> None:
    """bash itself is the oracle: srun is replaced by a command that prints its last argument."""
    site = Site(executor="slurm", python=sys.executable)
    script = 'srun() { printf %s "${@: -1}"; }\n' + slurm.text(job, site)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == str(job.folder / "sbatch")


def test_a_job_from_inside_a_job_inherits_nothing_of_it(
    job: Job, tools: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (
        "SLURM_CPU_BIND",
        "SBATCH_QOS",
        "SRUN_DEBUG",
        "PMIX_RANK",
        "MASTER_ADDR",
        "SUBMITIT_EXECUTOR",
    ):
        monkeypatch.setenv(name, "of the job outside")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    tool(tools, "sbatch", f'env > {tmp_path}/seen; cp "$1" {tmp_path}/given; echo Submitted batch job 4711')
    assert slurm.submit(job, Site(executor="slurm")) == "4711"
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert [name for name in seen if slurm.INHERITED.fullmatch(name)] == ["SLURM_CONF"]
    assert (tmp_path / "given").read_text() == slurm.text(job, Site(executor="slurm"))
    assert (job.folder / "attempts/3/code/hpc_isl/run.py").is_file(), "the code of now, whatever comes"
    assert [path.name for path in (job.folder / "sbatch").glob("*.pkl")] == ["4711_submitted.pkl"]


def test_a_refusal_of_sbatch_is_a_mistake_and_leaves_no_run(tools: Path, job: Job) -> None:
    from hpc_isl.mistake import Mistake

    tool(tools, "sbatch", "echo 'sbatch: error: invalid partition specified: gpuu' >&2; exit 1")
    with pytest.raises(Mistake, match="invalid partition specified: gpuu"):
        slurm.submit(job, Site(executor="slurm", partition="gpuu"))


SHOW = "echo 'JobId=7 JobName=x JobState={} Reason={} Dependency=(null)'"
GONE = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"squeue": "echo 'PENDING|Resources'"}, ("queued", "Resources")),
        ({"squeue": "echo 'RUNNING|None'"}, ("running", "")),
        ({"squeue": GONE, "scontrol": SHOW.format("OUT_OF_MEMORY", "OutOfMemory")},
         ("failed", "out_of_memory")),
        ({"squeue": GONE, "scontrol": SHOW.format("TIMEOUT", "TimeLimit")},
         ("failed", "timeout")),
        ({"squeue": GONE, "scontrol": GONE, "sacct": "echo 'CANCELLED by 1000'"}, ("cancelled", "cancelled")),
        ({"squeue": GONE, "scontrol": GONE, "sacct": "echo 'NODE_FAIL'"}, ("failed", "node_fail")),
        ({"squeue": GONE, "scontrol": GONE, "sacct": "true"}, ("lost", "it never reported")),
    ],
)  # fmt: skip
def test_slurms_words_become_ours(
    tools: Path, job: Job, answers: dict[str, str], expected: tuple[str, str]
) -> None:
    for name in ("squeue", "scontrol", "sacct"):
        tool(tools, name, answers.get(name, GONE))
    run = Run(job.folder)
    number = run.next_attempt()
    content = {"executor": "slurm", "job": "7", "host": "login"}
    (run.attempts / str(number) / "submission.json").write_text(json.dumps(content))
    found = status.state(run)
    assert (found.word, found.detail) == expected


class TestRequeue:
    """At the time limit rank 0 puts the job back, and only if that leads anywhere."""

    @pytest.fixture
    def attempt(self, job: Job, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
        tool(tools, "scontrol", f'echo "$@" >> {tmp_path}/asked')
        monkeypatch.setenv("SLURM_JOB_ID", "99")
        for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
            monkeypatch.delenv(name, raising=False)
        attempt = Attempt(Run(job.folder))
        attempt.stopping.set()
        with attempt.recorded():
            attempt.run.checkpoints.mkdir()
            (attempt.run.checkpoints / "new").touch()
        return attempt

    def asked(self, tmp_path: Path) -> str:
        return (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""

    def test_an_attempt_that_saved_goes_back_into_the_queue(self, attempt: Attempt, tmp_path: Path) -> None:
        assert slurm.requeue(attempt, at_time_limit=True) is None
        assert self.asked(tmp_path) == "requeue 99\n"

    def test_an_element_of_an_array_is_named_by_its_array(
        self, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "90")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
        slurm.requeue(attempt, at_time_limit=True)
        assert self.asked(tmp_path) == "requeue 90_4\n"

    def test_one_that_brought_nothing_new_does_not(self, attempt: Attempt, tmp_path: Path) -> None:
        os.utime(attempt.run.checkpoints / "new", (0, 0))
        reason = slurm.requeue(attempt, at_time_limit=True)
        assert reason is not None
        assert "without a new checkpoint" in reason
        assert self.asked(tmp_path) == ""

    def test_one_that_was_cancelled_or_preempted_does_not(self, attempt: Attempt, tmp_path: Path) -> None:
        assert slurm.requeue(attempt, at_time_limit=False)
        status.cancelled(attempt.run).touch()
        assert slurm.requeue(attempt, at_time_limit=True)
        assert self.asked(tmp_path) == ""
