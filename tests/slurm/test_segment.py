"""Segmentation over two nodes of a real Slurm, one of which is lost: the same as on one machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from left_on_disk import Left, differing, left_by, unfinished
from made_up_screen import save_model, write_screen

from hpc_isl.stages.shared.field_records import read_records

if TYPE_CHECKING:
    from tests.conftest import CommandLine
    from tests.slurm.conftest import Cluster, User

WELLS = [f"{row}{column:02d}" for row in "BCDE" for column in range(2, 10)]
FIELDS, SHAPE = 3, (160, 192)


@pytest.fixture(scope="module")
def laptop(
    tmp_path_factory: pytest.TempPathFactory, open_command_line: Callable[[Path], CommandLine]
) -> tuple[CommandLine, Left]:
    """A folder with a model and a plate, a second copy of it, and what a run on this machine leaves."""
    command_line = open_command_line(tmp_path_factory.mktemp("nodes"))
    write_screen(command_line.cwd / "S1.zarr", WELLS, FIELDS, SHAPE)
    shutil.copytree(command_line.cwd / "S1.zarr", command_line.cwd / "copy" / "S1.zarr")
    save_model(command_line.cwd / "runs" / "finetune" / "cells")
    call = command_line.open(*words("S1", "alone"), "site.workers=2", "site.memory=4G")
    output, _ = call.communicate(timeout=400)
    assert call.returncode == 0, output
    return command_line, left_by(command_line.cwd / "runs/segment/alone", [command_line.cwd / "S1.zarr"])


def words(plate: str, name: str) -> tuple[str, ...]:
    keys = ("model=cells", f"plates={plate}.zarr", "labels=found", "site.tracking=none")
    return ("segment", *keys, "--name", name)


@pytest.fixture
def user(
    cluster: Cluster, laptop: tuple[CommandLine, Left], open_user: Callable[[CommandLine, Cluster], User]
) -> User:  # the folder of the plates is the user's
    return open_user(laptop[0], cluster)


def progress(run: Path) -> int:
    return len(read_records(run, "S1"))


@pytest.mark.timeout(900)
def test_a_node_is_lost_in_mid_run_and_the_objects_are_those_of_one_machine(
    user: User, laptop: tuple[CommandLine, Left]
) -> None:
    run = user.command_line.cwd / "runs" / "segment" / "nodes"
    node = ("--site", str(user.cluster.site_file), "site.nodes=2", "site.workers=1", "site.memory=2G")
    user(*words("copy/S1", "nodes"), *node)
    try:
        other = run / "attempts" / "0" / "rank-1.json"
        assert user.cluster.eventually(lambda: progress(run) > 2 and other.exists(), 240), user(
            "logs", "nodes"
        )
        user.cluster.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
        in_mid_run = progress(run) < len(WELLS) * FIELDS
        assert user.becomes("nodes", "done", 300), user("logs", "nodes")
        assert in_mid_run
    finally:
        user.cluster.restart("slurmd")
        user.cluster.clear()
    plate = user.command_line.cwd / "copy" / "S1.zarr"
    assert differing(left_by(run, [plate]), laptop[1]) == []
    assert json.loads((run / "done" / "segment.json").read_text())["figures"]["lost fields"] == 0
    assert unfinished(run, plate) == []
    assert user.cluster.eventually(lambda: user.command_line.left() == [])
