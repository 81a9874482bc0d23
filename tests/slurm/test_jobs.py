"""The life of a job on a real Slurm: done, failed, killed, preempted, out of time, lost; and on again."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.conftest import CommandLine
    from tests.slurm.conftest import Cluster, User

LONG = ("steps=1000", "pause_s=0.2")
TWO_NODES = ("site.nodes=2",)


def test_a_run_over_two_nodes_is_done_and_its_names_are_safe(user: User) -> None:
    """Node names do not resolve here: the ranks meet by address."""
    name = """a "b' $HOME;c"""
    user("count", "meet=true", *TWO_NODES, "--site", str(user.cluster.site_file), "site.memory=100M",
         "site.tracking=none", "--name", name, "--wait")  # fmt: skip
    log = (user.folder(name) / "attempts/0/rank-0.log").read_text()
    assert "the ranks add up to 1" in log
    assert f"code in {user.folder(name)}/attempts/0/code/hpc_isl" in log, "what was submitted, whatever comes"
    assert [user.record(name, rank)["outcome"] for rank in (0, 1)] == ["done", "done"]
    assert user.steps(name) == [0, 1, 2], "rank 0 alone writes metrics"


def test_three_jobs_on_one_node_never_meet_each_other(user: User) -> None:
    names = ("one", "two", "three")
    for name in names:
        options = ("site.processes=2", "site.sbatch={nodelist: node1, oversubscribe: true}", "site.cpus=1")
        user.submit("meet=true", "steps=2", *options, name=name)
    for name in names:
        assert user.becomes(name, "done"), user("logs", name)
        assert "the ranks add up to 1" in (user.folder(name) / "attempts/0/rank-0.log").read_text()


def test_stale_files_of_an_earlier_attempt_mislead_no_one(user: User) -> None:
    job = user.submit("meet=true", *TWO_NODES, "site.sbatch={hold: true}", name="stale")
    attempt = user.folder("stale") / "attempts" / "0"
    (attempt / "rendezvous.json").write_text(
        json.dumps({"hosts": ["127.0.0.1"], "port": 9, "nonce": "old", "node": "gone"})
    )
    for rank in (0, 1):
        (user.folder("stale") / "sbatch" / f"{job}_{rank}_result.pkl.save_tmp").touch()
    user.cluster.run("scontrol", "release", job)
    assert user.becomes("stale", "done"), user("logs", "stale")
    assert user.cluster.eventually(lambda: user.cluster.job_state(job) == "COMPLETED"), (
        "submitit too is content"
    )


def test_retry_runs_the_failed_element_alone(user: User) -> None:
    over = "over=[{word: first}, {word: second, crash_rank: 0, mishaps: 1}, {word: third}]"
    user.submit("stage=count", over, name="some", verb="sweep")
    assert user.becomes("some", "failed")
    assert "2 done, 1 failed" in user("status", "some")
    assert user("logs", "some").startswith("--- rank 0 on "), "the one that failed speaks"
    elements = user.command_line.cwd / "runs" / "sweep" / "some" / "count"
    before = {path.name: (path / "record.json").read_text() for path in elements.iterdir()}
    user("retry", "some")
    assert user.becomes("some", "done")
    attempts = {path.name: len(list((path / "attempts").iterdir())) for path in elements.iterdir()}
    assert sorted(attempts.values()) == [1, 1, 2]
    after = {path.name: (path / "record.json").read_text() for path in elements.iterdir()}
    assert after == before, "the same seeds, the same keys in MLflow"


def test_scancel_saves_and_resume_continues(user: User) -> None:
    job = user.submit(*LONG, name="cancelled")
    assert user.cluster.eventually(lambda: user.counts("cancelled"))
    user.cluster.run("scancel", job)
    assert user.becomes("cancelled", "cancelled")
    saved = max(int(path.name) for path in (user.folder("cancelled") / "checkpoints").iterdir())
    user("resume", "cancelled")
    assert user.cluster.eventually(lambda: user.counts("cancelled", attempt=1))
    assert f"from {saved} in attempt 1" in (user.folder("cancelled") / "attempts/1/rank-0.log").read_text()
    assert user("cancel", "cancelled").startswith("job ")
    assert user.becomes("cancelled", "cancelled")


def test_at_its_time_limit_a_run_saves_and_slurm_starts_it_again(user: User) -> None:
    job = user.submit(*LONG, *TWO_NODES, name="limit")
    assert user.cluster.eventually(lambda: user.counts("limit"))
    user.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")  # the signal comes at its next look
    assert user.cluster.eventually(lambda: user.cluster.job_state(job) == "PENDING", 120)
    assert [user.record("limit", rank)["outcome"] for rank in (0, 1)] == ["stopped", "stopped"]
    assert user.word("limit") == "queued"
    user.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    user.cluster.start_now(job)
    assert user.cluster.eventually(lambda: user.counts("limit", attempt=1))
    assert " in attempt 1" in (user.folder("limit") / "attempts/1/rank-0.log").read_text()
    user("cancel", "limit")


def test_a_run_that_brings_nothing_new_is_not_started_again_and_again(user: User) -> None:
    job = user.submit(*LONG, "saves=false", name="idle")
    assert user.cluster.eventually(lambda: user.counts("idle"))
    user.cluster.run("scancel", "--signal=USR2", job)
    assert user.becomes("idle", "stopped")
    assert "without a new checkpoint" in user("logs", "idle")
    assert user.cluster.job_state(job) == "FAILED", "the exit code 3 tells it from done"


@pytest.mark.kill
def test_a_killed_rank_ends_the_run_in_seconds_and_is_named(user: User) -> None:
    user.submit(*LONG, *TWO_NODES, name="killed")
    assert user.cluster.eventually(lambda: user.counts("killed") and user.record("killed", rank=1))
    os.kill(user.record("killed", rank=1)["pid"], signal.SIGKILL)
    assert user.becomes("killed", "failed", within_s=30), "200 s of counting were left"
    assert "rank 1 on node" in user("status", "killed")
    assert user.cluster.eventually(lambda: user.command_line.left() == []), "no rank goes on by itself"


def test_a_crashed_rank_ends_the_run_and_its_traceback_comes_first(user: User) -> None:
    user.submit(*LONG, *TWO_NODES, "crash_rank=1", name="crash")
    assert user.becomes("crash", "failed", within_s=60)
    assert "rank 1: RuntimeError: boom" in user("status", "crash")
    shown = user("logs", "crash").splitlines()
    assert shown[0].startswith("--- rank 1 on ")
    assert 'raise RuntimeError("boom")' in "\n".join(shown)
    assert "boom" in user("logs", "crash", "--rank", "1")


def test_a_run_continues_when_its_node_is_lost(user: User) -> None:
    job = user.submit(*LONG, "site.sbatch={nodelist: 'node2', oversubscribe: true}", name="node")
    assert user.cluster.eventually(lambda: user.counts("node"))
    user.cluster.run("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    assert user.cluster.eventually(lambda: user.cluster.job_state(job) == "PENDING")
    assert user.word("node") == "queued"
    user.cluster.restart("slurmd")  # the node boots and reports for work
    user.cluster.start_now(job)
    assert user.cluster.eventually(lambda: user.counts("node", attempt=1)), user.cluster.run(
        "scontrol", "show", "job", job
    ) + user.cluster.run("scontrol", "show", "node")
    user("cancel", "node")


def test_a_run_does_not_notice_that_the_controller_restarts(user: User) -> None:
    user.submit("steps=150", "pause_s=0.2", name="away")
    assert user.cluster.eventually(lambda: user.counts("away"))
    restart = user.cluster.open("restart", "slurmctld", "--stop-s=20")
    assert user.cluster.eventually(lambda: "Slurm does not answer" in user("status", "away"), 60)
    assert user.word("away") == "running", "its heart beats"
    assert restart.wait(60) == 0
    assert user.becomes("away", "done")
    assert user.steps("away") == list(range(150))


def test_what_waits_for_a_run_that_fails_is_ended_and_says_why(user: User) -> None:
    user.submit("steps=50", "pause_s=0.2", "crash_rank=0", name="parent")
    user.submit("--after", "parent", name="child")
    assert user.becomes("parent", "failed")
    assert user.becomes("child", "cancelled")
    assert "the run before it did not end well" in user("status", "child")
    refused = user.command_line("count", "--after", "parent", "--site", str(user.cluster.site_file))
    assert refused.returncode == 2
    assert "never start" in refused.stdout


def test_two_who_resume_at_once_start_one_job(user: User) -> None:
    user.submit("steps=1", "mistaken=true", name="twice")
    assert user.becomes("twice", "failed")
    calls = [user.command_line.open("resume", "twice") for _ in range(2)]
    said = [call.communicate(timeout=90)[0] for call in calls]
    assert sorted(call.returncode for call in calls) == [0, 2], said
    assert user.becomes("twice", "failed")
    assert len(list((user.folder("twice") / "attempts").iterdir())) == 2


def test_a_resume_that_sbatch_refuses_leaves_the_run_as_it_was(user: User) -> None:
    user.submit("steps=1", "mistaken=true", name="kept")
    assert user.becomes("kept", "failed")
    refused = user.command_line("resume", "kept", "site.reservation=there is none")
    assert refused.returncode == 2
    assert "reservation" in refused.stdout
    assert [path.name for path in (user.folder("kept") / "attempts").iterdir()] == ["0"]
    assert user.word("kept") == "failed"


def test_what_waits_is_planned_when_its_inputs_are_there(user: User) -> None:
    data = user.command_line.cwd / "made later.txt"
    job = user.submit("site.sbatch={hold: true}", name="maker")
    user.submit(f"data='{data}'", "--after", "maker", name="reader")
    assert user.word("reader") == "queued"
    data.write_text("a fingerprint")
    user.cluster.run("scontrol", "release", job)
    assert user.becomes("reader", "done")
    record = json.loads((user.folder("reader") / "record.json").read_text())
    assert record["inputs"] == {str(data): "a fingerprint"}


def test_a_chain_stops_for_a_person_and_continues(user: User) -> None:
    chain = user.command_line.cwd / "chain.yaml"
    chain.write_text(
        "steps:\n"
        "- {name: one, stage: count, set: {steps: 2}}\n"
        "- {name: two, stage: count, set: {steps: 3}}\n"
        "- {stop: correct the labels}\n"
        "- {name: three, stage: count, set: {steps: 4}, after: [two, stop 3]}\n"
    )
    said = user("chain", str(chain), "--site", str(user.cluster.site_file), "site.memory=100M",
                "site.tracking=none", "--name", "plan")  # fmt: skip
    assert "then a stop: correct the labels" in said
    assert user.becomes("two", "done")
    assert "waits for a person: correct the labels" in user("status", "plan")
    assert not user.folder("three").exists()
    user("resume", "plan")
    assert user.becomes("three", "done")
    assert user.word("plan") == "done"


def test_a_run_that_is_preempted_with_time_to_save_goes_back_into_the_queue(
    start_cluster: Callable[..., AbstractContextManager[Cluster]],
    open_user: Callable[[CommandLine, Cluster], User],
    command_line: CommandLine,
) -> None:
    partition = "PartitionName=main Nodes=ALL Default=YES MaxTime=1-0 PriorityTier=1 GraceTime=60"
    preempting = ("PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE", partition)
    with start_cluster("--without-accounting", "--nodes=1", "--set", *preempting) as cluster:
        user = open_user(command_line, cluster)
        job = user.submit(*LONG, "site.sbatch={exclusive: true}", name="low")
        assert cluster.eventually(lambda: user.counts("low"))
        cluster.submit("sleep 3", "--partition=short", "--exclusive")
        assert cluster.eventually(lambda: cluster.job_state(job) == "PENDING", 90), user("logs", "low")
        assert user.record("low")["outcome"] == "stopped"
        assert user.word("low") == "queued"


class TestWithoutAccounting:
    """No sacct; the controller forgets a job 5 s after its end, and takes arrays of 10 elements."""

    def test_the_run_folder_tells_how_it_ended(self, user_without_accounting: User) -> None:
        user = user_without_accounting
        user.submit(name="well")
        job = user.submit("crash_rank=0", name="crash")
        assert user.cluster.eventually(lambda: user.cluster.job_state(job) == "", 60), "it is forgotten"
        assert (user.word("well"), user.word("crash")) == ("done", "failed")

    @pytest.mark.kill
    def test_a_job_that_left_no_record_is_reported_from_its_output(
        self, user_without_accounting: User
    ) -> None:
        user = user_without_accounting
        job = user.submit(*LONG, name="gone")
        assert user.cluster.eventually(lambda: user.counts("gone"))
        os.kill(user.record("gone")["pid"], signal.SIGKILL)
        assert user.cluster.eventually(lambda: user.cluster.job_state(job) == "", 60)
        assert "rank 0 on node" in user("status", "gone")
        for path in (user.folder("gone") / "sbatch").glob("*_log.*"):
            path.unlink()
        assert user.cluster.eventually(lambda: user.word("gone") == "lost", 90), "and without that it is lost"
        assert "last seen" in user("status", "gone")

    def test_25_elements_are_three_arrays_that_share_their_throttle(
        self, user_without_accounting: User
    ) -> None:
        user = user_without_accounting
        words = ("stage=count", f"over={{seed: {list(range(25))}}}", "steps=2", "site.array=8")
        said = user("sweep", *words, "--site", str(user.cluster.site_file), "site.memory=10M",
                    "site.tracking=none", "--name", "many")  # fmt: skip
        assert "Slurm jobs" in said
        assert "25 elements" in said
        assert user.becomes("many", "done", within_s=240)
        assert "25 done" in user("status", "many")
