"""Runs are found where the sites of their user keep them, and a miss says where it was looked for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hpc_isl.cluster.run_folder import folders
from hpc_isl.errors import UserError
from hpc_isl.recipes.base import SweepRecipe
from hpc_isl.run import Plan, Run
from hpc_isl.site import Site

if TYPE_CHECKING:
    from tests.conftest import CommandLine

QUIET = ("site.tracking=none",)


@pytest.fixture
def cluster(command_line: CommandLine) -> CommandLine:
    """A user whose site `mycluster` keeps runs in a shared folder, with one run there."""
    sites = command_line.cwd / "config" / "hpc_isl" / "sites"
    sites.mkdir(parents=True)
    text = f"executor: local\nruns: {command_line.cwd / 'shared runs'}\ntracking: none\n"
    (sites / "mycluster.yaml").write_text(text)
    done = command_line("count", "--site", "mycluster", "--name", "S12")
    assert done.returncode == 0, done.stdout
    return command_line


def test_what_a_site_keeps_elsewhere_is_found_by_its_name(cluster: CommandLine) -> None:
    """A user who has written `runs: /shared/runs` into a site types `status`, `logs S12` and so on, and
    sees the runs that lie there, with the folder named; `--site` shows those of that site alone."""
    assert cluster("count", *QUIET, "--name", "own").returncode == 0
    listed = cluster("status").stdout
    assert "count  S12" in listed
    assert "count  own" in listed
    assert f"runs in {cluster.cwd / 'shared runs'} (site mycluster)" in listed
    alone = cluster("status", "--site", "mycluster").stdout
    assert "count  S12" in alone
    assert "own" not in alone
    for words in (["logs", "S12"], ["logs", "S12", "--site", "mycluster"], ["status", "count/S12"]):
        found = cluster(*words)
        assert found.returncode == 0, found.stdout
    assert "S12 is running" not in cluster("cancel", "S12").stdout
    assert "'S12' is not running: it is done" in cluster("cancel", "S12").stdout
    assert "nothing to do" in cluster("resume", "S12").stdout


def test_what_is_typed_next_names_the_run_by_its_short_name(cluster: CommandLine) -> None:
    """What `count` prints to type next works as it stands, and is as short as in the documentation."""
    failed = cluster("count", "--site", "mycluster", "--name", "bad", "crash_rank=0")
    assert "next: python -m hpc_isl.submit resume bad" in failed.stdout


def test_recipes_find_runs_that_a_site_keeps_elsewhere(cluster: CommandLine) -> None:
    """`--after`, `pretrained=` and the like take the names that `status` shows, on whichever site."""
    waited = cluster("count", *QUIET, "--after", "S12", "--name", "later")
    assert waited.returncode == 0, waited.stdout


def test_a_miss_says_where_it_was_looked_for_and_what_names_another_folder(cluster: CommandLine) -> None:
    """Who asks for a run that is nowhere reads in which folders it was looked for, and the three ways to
    name another one."""
    missed = cluster("logs", "S13")
    assert missed.returncode == 2
    for said in (
        f"no such run in {cluster.cwd / 'runs'}, {cluster.cwd / 'shared runs'} (site mycluster)",
        "did you mean 'S12'?", "--root", "--site", "HPC_ISL_RUNS",
    ):  # fmt: skip
        assert said in missed.stdout
    none = cluster("status", "--root", str(cluster.cwd / "empty"))
    for said in (f"there are no runs in {cluster.cwd / 'empty'}", "--site NAME", "HPC_ISL_RUNS"):
        assert said in none.stdout


def test_a_name_that_two_sites_know_is_ambiguous(cluster: CommandLine) -> None:
    """The run in one's own folder is meant first; where only sites have it, and two do, both are named."""
    second = cluster.cwd / "sites"
    second.mkdir()
    (second / "other.yaml").write_text(f"runs: {cluster.cwd / 'other'}\ntracking: none\n")
    assert cluster("count", "--site", "other", "--name", "S12").returncode == 0
    unclear = cluster("status", "S12")
    assert unclear.returncode == 2
    assert "(site mycluster)" in unclear.stdout
    assert "(site other)" in unclear.stdout
    assert "count  S12" in cluster("status", "S12", "--site", "other").stdout
    assert cluster("count", *QUIET, "--name", "S12").returncode == 0
    assert "count  S12" in cluster("status", "S12").stdout


def test_a_site_file_that_cannot_be_read_hides_no_run(cluster: CommandLine) -> None:
    """A broken site file is a matter of who uses that site: `status` goes on to list all runs."""
    (cluster.cwd / "sites").mkdir()
    (cluster.cwd / "sites" / "broken.yaml").write_text("runs: [")
    assert "count  S12" in cluster("status").stdout


def test_an_address_is_short_where_any_of_the_folders_has_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "b" / "count" / "S12"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("{}")
    run = folders.find("S12", tmp_path / "a", tmp_path / "b")
    assert run.folder == folder
    assert folders.address(run, tmp_path / "a", tmp_path / "b") == "S12"
    with pytest.raises(UserError, match=r"no such run in .*/a"):
        folders.find("S12", tmp_path / "a")


def test_an_element_is_that_of_the_array_that_its_name_means(tmp_path: Path) -> None:
    """`model=nuc/final` is the model of the sweep that `nuc` is: that in the first of the folders."""
    for root in ("a", "b"):
        folder = tmp_path / root / "sweep" / "nuc"
        (folder / "finetune" / "final").mkdir(parents=True)
        for recipe in (folder / "recipe.yaml", folder / "finetune" / "final" / "recipe.yaml"):
            recipe.write_text("{}")
        (folder / "elements.json").write_text('{"elements": ["finetune/final"]}')
    roots = [tmp_path / root for root in ("a", "b")]
    assert folders.find("nuc/final", *roots).array == folders.find("nuc", *roots)
    with pytest.raises(UserError, match="there is such a run in"):
        folders.find("nuc/final", tmp_path / "c", *roots)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("no room")])
def test_a_name_is_free_again_where_the_making_of_its_run_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def raise_it(*_: object) -> None:
        raise error

    monkeypatch.setattr(folders, "to_yaml", raise_it)
    recipe, run = SweepRecipe(stage="count", over={"seed": [0, 1]}), Run(tmp_path / "sweep" / "nuc")
    request = folders.RunRequest("count", recipe, Site(), "nuc", elements={"seed=0": recipe})
    with pytest.raises(type(error)):
        folders.make_array(run, request, {"seed=0": Plan(recipe)}, ())
    assert not run.folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_runs_that_is_closed_hides_none_in_others() -> None:
    """A user's site may keep its runs where this user is no longer let in."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "closed").mkdir(mode=0o700)
        (folder / "open" / "count" / "S12").mkdir(parents=True)
        (folder / "open" / "count" / "S12" / "recipe.yaml").write_text("{}")
        os.seteuid(65534)
        try:
            run = folders.find("S12", folder / "closed", folder / "open")
        finally:
            os.seteuid(0)
    assert run.name == "S12"


def test_a_link_that_leads_nowhere_has_its_name(tmp_path: Path) -> None:
    name = folders.default_name("count", tmp_path)
    (tmp_path / "count").mkdir()
    (tmp_path / "count" / name).symlink_to(tmp_path / "gone")
    assert folders.default_name("count", tmp_path) == name.removesuffix("1") + "2"
