"""`remove`: who would miss a run is named first; what others rest on, and labels in plates, stay."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from hpc_isl.cluster.run_folder import folders, remove, status
from hpc_isl.errors import UserError
from hpc_isl.run import Run

if TYPE_CHECKING:
    from tests.conftest import CommandLine


def made(root: Path, stage: str, name: str, recipe: Any = None, **done: Any) -> Run:
    """A run as it is left when it is done."""
    run = Run(root / stage / name)
    for path, text in {
        "recipe.yaml": json.dumps(recipe or {}), "record.json": "{}", "site.yaml": "{}", "split.csv": "a",
        "model/contract.json": "{}", "model/weights.safetensors": "w" * 1000, "metrics.jsonl": "{}",
        "attempts/0/rank-0.log": "said", "checkpoints/step-1.pt": "c" * 5000, "pictures/a.png": "p",
        f"done/{stage}.json": json.dumps({"made": {}, **done}),
    }.items():  # fmt: skip
        (run.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / path).write_text(text)
    return run


def sweep(root: Path, name: str, elements: dict[str, Any]) -> Run:
    run = Run(root / "sweep" / name)
    for element, recipe in elements.items():
        made(run.folder, "finetune", element, recipe)
    run.elements_file.write_text(json.dumps({"elements": [f"finetune/{element}" for element in elements]}))
    run.recipe.write_text("{}")
    run.record.write_text("{}")
    return run


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


KEPT = ["done/pretrain.json", "model/contract.json", "recipe.yaml", "record.json", "removed.json",
        "site.yaml", "split.csv"]  # fmt: skip


def test_record_and_contract_stay_and_everything_else_goes(tmp_path: Path) -> None:
    """Whoever meets a removed run later reads when that was, and where its record is."""
    run, outside = made(tmp_path, "pretrain", "S12"), tmp_path / "outside"
    outside.mkdir()
    (outside / "data").write_text("not ours")
    (run.folder / "link").symlink_to(outside)
    size = remove.removal(run, []).size
    assert 6000 < size < 7000
    remove.remove(run)
    assert [name for name in files(run.folder) if name != ".submit.lock"] == KEPT
    assert (outside / "data").read_text() == "not ours"
    assert folders.all_runs(tmp_path) == []
    for name in ("S12", "pretrain/S12", str(run.folder)):
        with pytest.raises(UserError, match=r"pretrain 'S12' was removed on \d{4}-\d\d-\d\d; .*/S12 tells"):
            folders.find(name, tmp_path)


def test_every_run_and_sweep_that_uses_its_model_is_named(tmp_path: Path) -> None:
    """Each once, by whatever path and key they name it; a sweep's own elements are none of them."""
    run = made(tmp_path, "pretrain", "S12")
    (tmp_path / "by link").symlink_to(tmp_path / "pretrain")
    start = {"pretrained": [str(run.folder)]}
    made(tmp_path, "finetune", "alone", {"pretrained": [str(tmp_path / "by link" / "S12")]})
    nuc = sweep(tmp_path, "nuc", {"a": start, "b": start, "final": {"among": [str(tmp_path / "x")]}})
    made(tmp_path, "segment", "stained", {"model": str(tmp_path / "other"), "stain": str(run.folder)})
    made(tmp_path, "finetune", "stranger", {"pretrained": [str(tmp_path / "pretrain" / "S1")]})
    day = Run(tmp_path / "chain" / "day")
    day.folder.mkdir(parents=True)
    day.recipe.write_text("{}")
    day.elements_file.write_text(json.dumps({"elements": ["../../pretrain/S12"]}))
    users = remove.removal(run, folders.all_runs(tmp_path)).users
    assert {user.label for user in users} == {"alone", "nuc", "stained", "day"}
    made(tmp_path, "segment", "nuc-P", {"model": str(nuc.folder / "finetune" / "final"), "plates": []})
    (only,) = remove.removal(nuc, folders.all_runs(tmp_path)).users
    assert only.label == "nuc-P"


def test_a_sweep_goes_with_all_its_elements(tmp_path: Path) -> None:
    run = sweep(tmp_path, "nuc", {"n=1": {}, "final": {}})
    with pytest.raises(UserError, match="an element of 'nuc', and is removed with all of it"):
        remove.removal(run.elements()[0], [])
    remove.remove(run)
    kept = [name.replace("pretrain", "finetune") for name in KEPT if name != "removed.json"]
    expected = [f"finetune/{element}/{name}" for element in ("final", "n=1") for name in kept]
    found = [name for name in files(run.folder) if name != ".submit.lock"]
    assert found == sorted([*expected, "elements.json", "recipe.yaml", "record.json", "removed.json"])
    with pytest.raises(UserError, match="sweep 'nuc' was removed"):
        folders.find("nuc/n=1", tmp_path)


def test_what_a_run_made_in_plates_stays_and_is_listed(tmp_path: Path) -> None:
    recipe = {"model": "x", "plates": ["/data/P01.zarr"], "labels": "nuclei", "write": ["labels"]}
    run = made(
        tmp_path, "segment", "nuc-P", recipe, made={"objects": str(tmp_path / "segment/nuc-P/objects")}
    )
    stays = "\n".join(remove.removal(run, []).remaining)
    assert "labels 'nuclei' (beside labels of people: 'nuclei predicted') in /data/P01.zarr" in stays
    assert "objects" not in stays
    drawn = made(tmp_path, "annotate", "A", {}, made={"labels 'nuclei'": "/data/P01.zarr"})
    assert "labels 'nuclei': /data/P01.zarr" in remove.removal(drawn, []).remaining


def test_a_run_that_lives_is_never_removed(tmp_path: Path) -> None:
    run = made(tmp_path, "pretrain", "S12")
    (run.done / "pretrain.json").unlink()
    me = psutil.Process()
    facts = {
        "executor": "local",
        "host": socket.gethostname(),
        "pid": me.pid,
        "pid_started": me.create_time(),
    }
    (run.attempts / "0" / "submission.json").write_text(json.dumps(facts))
    assert status.status_of(run).alive
    before = files(run.folder)
    with pytest.raises(UserError, match="is running: it is not removed; cancel it first"):
        remove.removal(run, [])
    with pytest.raises(UserError, match="is running"):
        remove.remove(run)
    assert [name for name in files(run.folder) if name != ".submit.lock"] == before


ENDED = """
import os, signal, sys
from pathlib import Path
from hpc_isl.cluster.run_folder import remove
from hpc_isl.run import Run

left = [int(sys.argv[2])]

def look(event, arguments):
    if event in ("os.remove", "os.rename", "os.rmdir"):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(look)
remove.remove(Run(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_removal_that_is_killed_is_brought_to_its_end_by_the_same_command(
    command_line: CommandLine, step: int, tmp_path: Path
) -> None:
    """Killed before its mark, the run is whole; after it, the run counts as removed and the rest follows."""
    run = made(command_line.cwd / "runs", "pretrain", "S12")
    whole = files(run.folder)
    words = [sys.executable, "-c", ENDED, str(run.folder), str(step)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (run.removed is None) == (step == 1)
    if step == 1:
        assert set(whole) <= set(files(run.folder))
    again = command_line("remove", "pretrain/S12", "--yes")
    assert again.returncode == 0, again.stdout
    left = [name for name in files(run.folder) if name != ".submit.lock"]
    assert left == KEPT


# ---------------------------------------------------------------- as it is typed


def test_it_asks_and_without_a_terminal_needs_yes(command_line: CommandLine) -> None:
    """Nothing goes before a person has read what goes and what stays, and has said yes."""
    run = made(command_line.cwd / "runs", "pretrain", "S12")
    made(command_line.cwd / "runs", "finetune", "n1", {"pretrained": [str(run.folder)]})
    refused = command_line("remove", "S12", "--yes")
    assert refused.returncode == 2
    assert "'S12' is not removed: it is used by finetune 'n1'; --force removes it" in refused.stdout
    told = command_line("remove", "S12", "--force", "--dry-run")
    assert told.returncode == 0
    assert "nothing was removed" in told.stdout
    silent = command_line("remove", "S12", "--force")
    assert silent.returncode == 2
    assert "there is no terminal to ask at; --yes removes without asking" in silent.stdout
    assert run.removed is None
    assert "removed" not in typed(command_line, "n\n", "remove", "S12", "--force").splitlines()[-1].replace(
        "nothing was removed", ""
    )
    assert run.removed is None
    assert "nothing was removed" in typed(command_line, "\x04", "remove", "S12", "--force"), "Ctrl-D is no"
    assert "pretrain 'S12' is removed" in typed(command_line, "y\n", "remove", "S12", "--force")
    assert run.removed is not None
    assert "S12" not in command_line("status").stdout
    for words in (("status", "S12"), ("resume", "S12")):
        assert "pretrain 'S12' was removed on" in command_line(*words).stdout


def typed(command_line: CommandLine, answer: str, *words: str) -> str:
    """What a person at a terminal sees who types this, and this answer."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "hpc_isl.submit", *words]
    with subprocess.Popen(
        command,
        cwd=command_line.cwd,
        env=command_line.environment,
        stdin=slave,
        stdout=subprocess.PIPE,
        text=True,
    ) as call:
        os.close(slave)
        os.write(master, answer.encode())
        output, _ = call.communicate(timeout=120)
    os.close(master)
    return output


def test_a_name_of_a_removed_run_is_not_given_again(command_line: CommandLine) -> None:
    """Its record stays in that folder: another run of the name would be taken for it."""
    words = ("count", "site.tracking=none", "--name", "once")
    assert command_line(*words).returncode == 0
    assert command_line("remove", "once", "--yes").returncode == 0
    again = command_line(*words)
    assert again.returncode == 2
    assert "count 'once' was removed on" in again.stdout
