"""What Slurm is given, and what its answers mean; needs no Slurm."""

from __future__ import annotations

import ast
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_isl.cluster.executors import slurm
from hpc_isl.cluster.executors.slurm import Batch
from hpc_isl.cluster.run_folder import status
from hpc_isl.cluster.run_folder.job import Job, requeue
from hpc_isl.cluster.slurm import commands
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site

GOLDEN = Path(__file__).parent / "golden"
JOB = "99"


@pytest.fixture(autouse=True)
def _a_plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("hpc_isl.stages.pretrain.stage", tmp_path / "runs" / "pretrain" / "S 12's", 3)


def alone(job: Job) -> Batch:
    return Batch(job.run, job.attempt, (job,))


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


def test_an_answer_in_the_letters_of_another_machine_is_read(tools: Path) -> None:
    """Staff write into the reason for which a node is away whatever their terminal sends."""
    tool(tools, "scontrol", r"printf 'NodeName=n1 Reason=L\xfcfter\n'")
    assert commands.ask(["scontrol", "show", "node"])[:2] == (0, "NodeName=n1 Reason=L\ufffdfter")


def held(name: str, text: str, job: Job) -> None:
    """The text is that of a golden file, in which {folder} stands for the run folder."""
    golden = (GOLDEN / name).read_text()
    assert text == golden.replace("{folder}", str(job.folder).replace("'", "'\"'\"'"))


FULL = Site(
    executor="slurm", nodes=2, gpus=4, cpus=8, memory="64G", time="2h", partition="gpu", account="lab",
    qos="long", constraint="a100", reservation="my course", mail="me@example.org",
    sbatch={"exclusive": True, "exclude": "node7", "hold": False}, setup=["module load cuda"], signal_s=90,
    python="/opt/venv/bin/python",
)  # fmt: skip


def test_the_sbatch_text_says_all_that_slurm_must_know(job: Job) -> None:
    held("all.sbatch", slurm.text(alone(job), FULL), job)
    assert not job.folder.exists(), "the text is had without writing anything"


def test_an_array_is_throttled_and_waits_for_runs_before_it(job: Job) -> None:
    site = Site(executor="slurm", array=2, memory="1G", python="python")
    elements = tuple(Job(job.module, job.folder / "pretrain" / f"seed={n}", 0) for n in range(5))
    batch = Batch(job.run, 0, elements, after=("7", "9_1"))
    held("array.sbatch", slurm.text(batch, site), job)


def test_a_container_starts_python_inside_of_it(job: Job) -> None:
    site = Site(executor="slurm", gpus=1, container=Path("/images/my isl.sif"), binds=["/data", "/scratch"])
    held("container.sbatch", slurm.text(alone(job), site), job)


def test_a_pooled_job_does_without_a_node_that_is_lost(job: Job) -> None:
    pooled = Job("hpc_isl.stages.segment.stage", job.folder.parents[1] / "segment" / "one", 0)
    text = slurm.text(alone(pooled), Site(executor="slurm", nodes=2))
    assert "#SBATCH --no-kill\n" in text
    assert " --kill-on-bad-exit=0 --wait=0 --no-kill " in text
    assert "--no-kill" not in slurm.text(alone(job), Site(executor="slurm", nodes=2))


def test_what_is_not_given_is_left_to_the_partition(job: Job) -> None:
    text = slurm.text(alone(job), Site(executor="slurm"))
    for flag in ("--time", "--mem", "--gpus", "--partition", "--wckey"):
        assert flag not in text


@pytest.mark.parametrize(
    ("flags", "line", "gone"),
    [
        ({"cpus-per-task": 2}, "--cpus-per-task=2", "--cpus-per-task=1"),
        ({"ntasks_per_node": 3}, "--ntasks-per-node=3", "--ntasks-per-node=1"),
        ({"J": "mine"}, "--job-name=mine", "--job-name='pretrain"),
        ({"comment": "mine"}, "--comment=mine", "--comment=hpc_isl"),
        ({"D": "/tmp"}, "--chdir=/tmp", "--chdir='"),
        ({"open_mode": "truncate"}, "--open-mode=truncate", "--open-mode=append"),
        ({"signal": "USR1@9"}, "--signal=USR1@9", "--signal=USR2"),
        ({"no_requeue": True}, "--no-requeue", "--requeue"),
        ({"cpus-per-gpu": 4}, "--cpus-per-gpu=4", "--cpus-per-task"),
        ({"ntasks": 4}, "--ntasks=4", "--ntasks-per-node"),
    ],
)  # fmt: skip
def test_a_flag_of_the_site_is_one_line_and_is_kept(
    job: Job, flags: dict[str, str | int | bool], line: str, gone: str
) -> None:
    given = slurm.text(alone(job), Site(executor="slurm", sbatch=flags))
    lines = [one.removeprefix("#SBATCH ") for one in given.splitlines() if one.startswith("#SBATCH --")]
    assert line in lines
    assert not any(one.startswith(gone) for one in lines)
    assert len({one.split("=")[0] for one in lines}) == len(lines)


def test_ranks_have_as_many_cpus_as_a_flag_of_the_site_says(job: Job) -> None:
    given = slurm.text(alone(job), Site(executor="slurm", cpus=1, sbatch={"c": 6}))
    assert "export SRUN_CPUS_PER_TASK=6\nexport OMP_NUM_THREADS=6\n" in given


MANUAL = Path("/usr/share/man/man1")
PROGRAMS = ("squeue", "sacct", "sinfo", "scontrol", "scancel", "sbatch", "srun", "salloc", "sacctmgr")


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_program_of_slurm_sees_options_of_the_users_environment(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's own manual is the oracle of which there are."""
    page = MANUAL / f"{program}.1.gz"
    if not page.exists():
        pytest.skip("needs the manual of Slurm")
    plain = gzip.decompress(page.read_bytes()).decode().replace("\\", "")
    names = set(re.findall(rf"^fB((?:SLURM|{program.upper()})_[A-Z_]+)", plain, re.MULTILINE))
    assert names
    for name in names:
        monkeypatch.setenv(name, "/of/the/user")
    left = {name for name in commands.environment(None) if name in names}
    assert left <= {"SLURM_CONF"}, "which Slurm is meant"
    assert names.isdisjoint(commands.environment(commands.MACHINES_OWN))


def test_every_program_of_slurm_is_called_in_one_place() -> None:
    """There its environment is cleaned. Ranks are started by srun; submitit calls sbatch with a clean one."""
    package = Path(commands.__file__).parents[2]
    calls = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and _is_called_past_ask(node)
    ]
    assert calls == []


def _is_called_past_ask(call: ast.Call) -> bool:
    first = call.args[0] if call.args else None
    named = isinstance(first, ast.List) and first.elts and isinstance(first.elts[0], ast.Constant)
    return bool(named and first.elts[0].value in PROGRAMS and ast.unparse(call.func) != "ask")  # type: ignore[union-attr]


def test_the_shell_reads_names_with_spaces_and_quotes_as_they_are(job: Job) -> None:
    """bash itself is the oracle: srun is replaced by a command that prints its last argument."""
    site = Site(executor="slurm", python=sys.executable)
    script = 'srun() { printf %s "${@: -1}"; }\n' + slurm.text(alone(job), site)
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
    assert slurm.submit(alone(job), Site(executor="slurm")) == ["4711"]
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert [name for name in seen if commands.INHERITED.fullmatch(name)] == ["SLURM_CONF"]
    assert (tmp_path / "given").read_text() == slurm.text(alone(job), Site(executor="slurm"))
    assert (job.folder / "attempts/3/code/hpc_isl/run.py").is_file(), "the code of now, whatever comes"
    assert [path.name for path in (job.folder / "sbatch").glob("*.pkl")] == ["4711_submitted.pkl"]


def test_a_refusal_of_sbatch_is_a_mistake_and_leaves_no_run(tools: Path, job: Job) -> None:
    from hpc_isl.errors import UserError

    tool(tools, "sbatch", "echo 'sbatch: error: invalid partition specified: gpuu' >&2; exit 1")
    with pytest.raises(UserError, match="invalid partition specified: gpuu"):
        slurm.submit(alone(job), Site(executor="slurm", partition="gpuu"))


GONE = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
MUTE = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"squeue": "echo '7|PENDING|Resources||1:00:00|'"}, ("queued", "Resources", "")),
        ({"squeue": "echo '7|RUNNING|None|node[1-2]|59:10|'"}, ("running", "", "")),
        ({"squeue": "echo '7|OUT_OF_MEMORY|OutOfMemory|node1|0:00|'"},
         ("failed", "out_of_memory", "out_of_memory")),
        ({"squeue": "echo '7|TIMEOUT|TimeLimit|node1|0:00|'"}, ("failed", "timeout", "timeout")),
        ({"squeue": "echo '7|CANCELLED|DependencyNeverSatisfied||1:00:00|'"},
         ("cancelled", "the run before it did not end well", "")),
        ({"sacct": "echo '7|CANCELLED by 1000|None|None assigned||'"}, ("cancelled", "", "")),
        ({"sacct": "echo '7|NODE_FAIL|None|node[1-4]||'"}, ("failed", "node_fail", "node_fail")),
        ({"sacct": "echo '7|OUT_OF_MEMORY|None|gpu03||'"}, ("failed", "out_of_memory", "out_of_memory")),
        ({"sacct": "echo '7|PREEMPTED|None|gpu03||'"}, ("failed", "preempted", "preempted")),
        ({"sacct": "echo '7|COMPLETED|None|gpu03||'"}, ("lost", "it never reported", "")),
        ({"sacct": "true"}, ("lost", "it never reported", "")),
        ({"squeue": MUTE}, ("queued", "Slurm does not answer", "")),
    ],
)  # fmt: skip
def test_states_of_slurm_become_states_of_runs(
    tools: Path, job: Job, answers: dict[str, str], expected: tuple[str, str, str]
) -> None:
    for name in ("squeue", "sacct"):
        tool(tools, name, answers.get(name, GONE))
    found = status.status_of(submitted(job, "7"))
    assert (found.state, found.detail, found.cause) == expected


def submitted(job: Job, name: str) -> Run:
    number = job.run.next_attempt()
    content = {"executor": "slurm", "job": name, "host": "login"}
    (job.run.attempts / str(number) / "submission.json").write_text(json.dumps(content))
    return job.run


@pytest.mark.parametrize(
    ("words", "detail", "cause"),
    [
        ("slurmstepd: error: *** STEP 7.0 ON gpu03 CANCELLED AT 2026-11-01T10:00:00 DUE TO TIME LIMIT ***",
         "timeout", "timeout"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM "
         "Killed.\nsrun: error: gpu03: task 2: Out Of Memory",
         "out_of_memory: rank 2 on gpu03: Out Of Memory", "out_of_memory"),
        ("srun: error: gpu03: task 1: Killed", "rank 1 on gpu03: Killed", ""),
    ],
)  # fmt: skip
def test_what_slurm_has_forgotten_the_jobs_own_output_tells(
    tools: Path, job: Job, words: str, detail: str, cause: str
) -> None:
    """Without accounting nothing else is left of a job some minutes after its end."""
    for name in ("squeue", "sacct"):
        tool(tools, name, GONE)
    run = submitted(job, "7")
    run.sbatch.mkdir()
    (run.sbatch / "7_0_log.err").write_text(words)
    assert status.status_of(run) == status.RunStatus("failed", detail, cause=cause)


def test_one_question_is_asked_for_many_runs(tools: Path, job: Job, tmp_path: Path) -> None:
    """And each element of an array has its own answer."""
    asked = tmp_path / "asked"
    answer = (
        r"7_0|RUNNING|None|node1|10:00|\n7_1|PENDING|JobArrayTaskLimit||20:00|\n"
        r"8|FAILED|NonZeroExitCode|node2|0|"
    )
    tool(tools, "squeue", f'echo "$@" >> {asked}; printf "{answer}\\n"')
    runs = [submitted(Job("m", job.folder.parent / name, 0), name) for name in ("7_0", "7_1", "8")]
    found = status.statuses(runs)
    assert [found[run].state for run in runs] == ["running", "queued", "failed"]
    assert found[runs[0]].left == "10:00"
    assert asked.read_text().count("\n") == 1
    assert asked.read_text().strip().endswith("-j 7,8")


def test_arrays_are_split_and_share_their_throttle(job: Job, tools: Path) -> None:
    tool(tools, "scontrol", "echo 'MaxArraySize            = 10'")
    jobs = tuple(Job("m", job.folder / str(n), 0) for n in range(25))

    def parts(throttle: int | None) -> list[tuple[int, int, tuple[int, ...]]]:
        found = slurm.parts(Batch(job.run, 0, jobs), Site(executor="slurm", array=throttle))
        assert [one for part in found for one in part.jobs] == list(jobs)
        return [(len(part.jobs), part.throttle, part.after_parts) for part in found]

    assert parts(4) == [(10, 2, ()), (10, 1, ()), (5, 1, ())]
    assert parts(2) == [(10, 1, ()), (10, 1, ()), (5, 1, (0,))], "the third waits until the first has ended"
    assert sum(throttle for _, throttle, _ in parts(None)) == 25


def test_the_final_element_waits_for_all_parts_and_for_what_was_submitted_before(
    job: Job, tools: Path
) -> None:
    tool(tools, "scontrol", "echo 'MaxArraySize            = 10'")
    jobs = tuple(Job("m", job.folder / str(n), 0) for n in range(22))
    batch = Batch(job.run, 0, jobs, has_final_job=True, final_job_after=("4", "7"))
    site = Site(executor="slurm", array=8)
    parts = slurm.parts(batch, site)
    assert [len(part.jobs) for part in parts] == [10, 10, 1, 1]
    assert (parts[-1].jobs, parts[-1].after_parts, parts[-1].after_jobs) == (
        (jobs[-1],),
        (0, 1, 2),
        ("4", "7"),
    )
    alone = Batch(job.run, 0, jobs[-1:], has_final_job=True, final_job_after=("4", "7"))
    assert "#SBATCH --dependency=afterany:4:7\n" in slurm.text(alone, site)
    assert "#SBATCH --kill-on-invalid-dep=yes\n" in slurm.text(alone, site)
    waits = Batch(job.run, 0, jobs[-1:], ("3",), has_final_job=True, final_job_after=("4",))
    assert "#SBATCH --dependency=afterok:3,afterany:4\n" in slurm.text(waits, site)


@pytest.mark.parametrize(
    ("word", "output"),
    [("OUT_OF_MEMORY", ""), ("FAILED", "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0")],
)
def test_a_rank_that_lost_its_partner_does_not_hide_why(
    tools: Path, job: Job, word: str, output: str
) -> None:
    tool(tools, "squeue", f"echo '7|{word}|None|gpu03|0|'")
    run = submitted(job, "7")
    run.sbatch.mkdir()
    (run.sbatch / "7_0_log.err").write_text(output)
    Attempt(run, rank=1).note(
        rank=1, exit="2026-01-01", outcome="failed", message="Connection closed by peer", node="gpu03"
    )
    found = status.status_of(run)
    assert found.cause == "out_of_memory"
    assert found.detail == "out_of_memory: rank 1: Connection closed by peer"


def test_a_job_of_the_same_number_that_works_elsewhere_is_anothers(tools: Path, job: Job) -> None:
    """A cluster that was set up anew counts from 1 again."""
    tool(tools, "squeue", "echo '7|RUNNING|None|node1|10:00|/home/someone else'")
    assert status.status_of(submitted(job, "7")).state == "lost"
    tool(tools, "squeue", f'echo "7|RUNNING|None|node1|10:00|{job.folder}"')
    assert status.status_of(job.run).state == "running"


class TestRequeue:
    """At the time limit rank 0 puts the job back, and only if that leads anywhere."""

    @pytest.fixture
    def attempt(self, job: Job, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
        self.shown(tools, tmp_path, "JobState=RUNNING Reason=None Dependency=(null)")
        attempt = Attempt(Run(job.folder), size=2)
        attempt.stopping.set()
        Attempt(attempt.run, rank=1).note(exit="2026-01-01", outcome="stopped")
        with attempt.recorded():
            attempt.run.checkpoints.mkdir()
            (attempt.run.checkpoints / "new").touch()
        return attempt

    def shown(self, tools: Path, tmp_path: Path, job: str) -> None:
        """What `scontrol show job` will say; what else is asked of it is kept."""
        script = f'case "$1" in show) echo "JobId=99 {job}";; *) echo "$@" >> {tmp_path}/asked;; esac'
        tool(tools, "scontrol", script)

    def asked(self, tmp_path: Path) -> str:
        return (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""

    def test_an_attempt_that_saved_goes_back_into_the_queue(self, attempt: Attempt, tmp_path: Path) -> None:
        assert requeue(attempt, JOB, at_time_limit=True) is None
        assert self.asked(tmp_path) == "requeue 99\n"

    def test_one_that_is_preempted_with_time_to_save_does(
        self, attempt: Attempt, tools: Path, tmp_path: Path
    ) -> None:
        times = "PreemptEligibleTime=x PreemptTime=2026-11-01T10:00:00"
        self.shown(tools, tmp_path, f"JobState=RUNNING Reason=None {times}")
        assert requeue(attempt, JOB, at_time_limit=False) is None
        assert self.asked(tmp_path) == "requeue 99\n"

    def test_one_whose_other_rank_alone_knows_of_the_time_limit_does(
        self, attempt: Attempt, tmp_path: Path
    ) -> None:
        Attempt(attempt.run, rank=1).note(exit="2026-01-01", outcome="stopped", overdue=True)
        assert requeue(attempt, JOB, at_time_limit=False) is None
        assert self.asked(tmp_path) == "requeue 99\n"

    def test_one_that_slurm_ends_at_its_limit_does_although_no_rank_was_signalled(
        self, attempt: Attempt, tools: Path, tmp_path: Path
    ) -> None:
        self.shown(tools, tmp_path, "JobState=COMPLETING Reason=TimeLimit Dependency=(null)")
        assert requeue(attempt, JOB, at_time_limit=False) is None
        assert self.asked(tmp_path) == "requeue 99\n"

    def test_one_that_scancel_ends_at_its_limit_does_not(
        self, attempt: Attempt, tools: Path, tmp_path: Path
    ) -> None:
        self.shown(tools, tmp_path, "JobState=COMPLETING Reason=None Dependency=(null)")
        assert requeue(attempt, JOB, at_time_limit=True) == "stopped by Slurm or by scancel"
        assert self.asked(tmp_path) == ""

    def test_the_signal_counts_where_slurm_does_not_answer(
        self, attempt: Attempt, tools: Path, tmp_path: Path
    ) -> None:
        script = f'case "$1" in show) exit 1;; *) echo "$@" >> {tmp_path}/asked;; esac'
        tool(tools, "scontrol", script)
        assert requeue(attempt, JOB, at_time_limit=True) is None
        assert self.asked(tmp_path) == "requeue 99\n"

    def test_one_that_brought_nothing_new_does_not(self, attempt: Attempt, tmp_path: Path) -> None:
        os.utime(attempt.run.checkpoints / "new", (0, 0))
        reason = requeue(attempt, JOB, at_time_limit=True)
        assert reason is not None
        assert "without a new checkpoint" in reason
        assert self.asked(tmp_path) == ""

    def test_without_checkpoints_what_earlier_attempts_did_is_nothing_new(
        self, attempt: Attempt, tmp_path: Path
    ) -> None:
        shutil.rmtree(attempt.run.checkpoints)
        attempt.progress(5, 9, "fields", 5)
        attempt.note()
        assert "not started again" in str(requeue(attempt, JOB, at_time_limit=True))
        assert self.asked(tmp_path) == ""
        attempt.progress(6, 9, "fields", 5)
        attempt.note()
        assert requeue(attempt, JOB, at_time_limit=True) is None

    def test_one_that_was_cancelled_or_preempted_does_not(self, attempt: Attempt, tmp_path: Path) -> None:
        assert requeue(attempt, JOB, at_time_limit=False)
        attempt.run.cancelled.touch()
        assert requeue(attempt, JOB, at_time_limit=True)
        assert "requeue" not in self.asked(tmp_path)
