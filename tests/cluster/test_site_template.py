"""`site init`, on recorded answers of Slurm."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpc_isl.cluster.slurm.limits import complaint
from hpc_isl.cluster.slurm.machines import Cluster, parsed
from hpc_isl.cluster.slurm.site_template import User, chosen, text
from hpc_isl.errors import UserError
from hpc_isl.site import Site, load

if TYPE_CHECKING:
    from tests.conftest import CommandLine

RECORDED = Path(__file__).parent / "recorded"
ANYONE = User("me", frozenset({"users"}))


def cluster(name: str) -> Cluster:
    answers = (RECORDED / f"{name}.txt").read_text()
    return parsed(answers, answers, answers)


def drafted(name: str, who: User, folder: Path) -> Site:
    (folder / "drafted.yaml").write_text(text(name, cluster(name), who))
    return load(str(folder / "drafted.yaml"), [])


def test_the_partition_with_most_gpu_nodes_is_chosen_and_its_commonest_node_shared_out(
    tmp_path: Path,
) -> None:
    site = drafted("university", ANYONE, tmp_path)
    assert (site.partition, site.gpus, site.nodes, site.time) == ("gpu", 4, 1, "12h")
    assert (site.cpus, site.memory) == (15, "488G"), "62 CPUs and 500000 MB shared by 4 processes"


@pytest.mark.parametrize("name", ["university", "cloud"])
def test_the_cluster_gives_what_is_drafted(name: str, tmp_path: Path) -> None:
    assert complaint(cluster(name), drafted(name, ANYONE, tmp_path)) is None


@pytest.mark.parametrize(
    ("accounts", "account", "partition"),
    [
        (None, None, "gpu"),  # no accounting
        (("lab",), "lab", "gpu"),
        (("lab", "guests"), "lab", "gpu"),  # the partition takes no guests
        (("lab", "ops"), None, "gpu"),  # a person chooses
        (("guests",), "guests", "gpu-long"),
    ],
)
def test_an_account_is_written_where_only_one_can_be_meant(
    accounts: tuple[str, ...] | None, account: str | None, partition: str, tmp_path: Path
) -> None:
    site = drafted("university", User("me", frozenset(), accounts), tmp_path)
    assert (site.account, site.partition) == (account, partition)


def test_a_person_sees_what_else_there_is_to_choose() -> None:
    lines = text("university", cluster("university"), User("me", frozenset(), ("lab", "ops"))).splitlines()
    assert "partition: gpu      # 3 nodes with 4 × a100, 2 nodes with 2 × v100" in lines
    assert "# account: lab      # one of yours: lab, ops" in lines
    assert "# partition: gpu-long  # 14d; 16 CPUs, 64G; 2 nodes with 2 × v100" in lines
    assert "# partition: debug     # 30min; 128 CPUs, 250G; 3 nodes without GPUs" in lines
    assert not any("partition: old" in line or "partition: staff" in line for line in lines)


def test_without_gpus_the_default_partition_is_chosen() -> None:
    answers = (RECORDED / "university.txt").read_text().replace("Gres=gpu", "Gres=fpga")
    assert chosen(parsed(answers, answers, answers), ANYONE).name == "cpu"


def test_a_cluster_that_is_closed_to_the_user_is_reported() -> None:
    answers = (RECORDED / "university.txt").read_text().replace("State=UP", "State=DOWN")
    with pytest.raises(UserError, match="no partition of this cluster is up"):
        chosen(parsed(answers, answers, answers), ANYONE)


# ---------------------------------------------------------------- as it is typed


@pytest.fixture
def university(command_line: CommandLine, tmp_path: Path) -> CommandLine:
    """A command line on a machine whose Slurm answers as recorded."""
    tools, path = tmp_path / "bin", RECORDED / "university.txt"
    tools.mkdir()
    answer = f"""#!/bin/bash
case "${{@: -1}}" in
partition) grep ^PartitionName= '{path}';;
node) grep ^NodeName= '{path}';;
config) grep ' = ' '{path}';;
esac"""
    for name, script in {"scontrol": answer, "sacctmgr": "#!/bin/bash\necho 'lab||normal'"}.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    return type(command_line)(
        command_line.cwd, {**command_line.environment, "PATH": f"{tools}:{os.environ['PATH']}"}
    )


def test_a_site_is_written_shown_and_never_overwritten(university: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "config" / "hpc_isl" / "sites" / "uni.yaml"
    done = university("site", "init", "uni")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith(f"wrote {path}")
    assert "    partition: gpu" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("doctor --site uni"), "last what to type next"
    assert load(str(path), []).account == "lab"
    path.write_text("executor: local\n")
    again = university("site", "init", "uni")
    assert (again.returncode, path.read_text()) == (2, "executor: local\n")
    assert f"{path} exists already" in again.stdout
    assert university("site", "list").stdout.split()[:2] == ["uni", "local"]


def test_a_site_is_written_elsewhere(university: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "my sites" / "uni.yaml"
    done = university("site", "init", "uni", "--out", str(out))
    assert done.returncode == 0, done.stdout
    assert f"doctor --site '{out}'" in done.stdout
    assert load(str(out), []).gpus == 4


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["init"], "name the site"),
        (["init", "a/b"], "one word of letters"),
        (["init", "uni.yaml"], "--out names a file"),
        (["init", "uni", "--out", "uni"], "write --out uni.yaml"),
        (["init", "uni", "--slurm-conf", "none.conf"], "none.conf: there is no such file"),
        (["inti", "uni"], "did you mean 'init'?"),
    ],
)
def test_mistakes_are_named(words: list[str], messages: str, university: CommandLine) -> None:
    done = university("site", *words)
    assert done.returncode == 2
    assert messages in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_without_slurm_it_says_where_to_type_it(command_line: CommandLine) -> None:
    command_line.environment["PATH"] = "/nowhere"
    done = command_line("site", "init", "uni")
    assert done.returncode == 2
    assert "type this on the cluster's login node" in done.stdout
