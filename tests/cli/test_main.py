"""The command line as a user meets it: help, errors, dry runs, an installed wheel."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from eventually import eventually

from hpc_isl.cli import main
from hpc_isl.cli.arguments import parse, take_keys
from hpc_isl.cli.help import EXAMPLES, KINDS, REQUIRED, USUAL, USUAL_OF_SITE, rows, stage_manual
from hpc_isl.errors import UserError
from hpc_isl.recipes.load import RECIPES, load
from hpc_isl.site import Site
from hpc_isl.stages import stage_table

if TYPE_CHECKING:
    from tests.conftest import CommandLine

ROOT = Path(__file__).parents[2]
COUNTING = ROOT / "tests" / "cluster"


@pytest.mark.parametrize(
    "words", [["--help"], ["pretrain", "--help"], ["set", "--help"], ["table", "--help"]]
)
def test_help_imports_nothing_slow(command_line: CommandLine, words: list[str]) -> None:
    """The file benchmarks/command_line.py measures how long it takes."""
    call = f"from hpc_isl.cli.main import run_command; run_command({words})"
    code = f"import sys; {call}; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=command_line.cwd, env=command_line.environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    heavy = {"torch", "zarr", "dask", "mlflow", "tensorstore", "submitit", "scipy", "skimage", "pandas"}
    assert done.stdout
    assert heavy.isdisjoint(done.stderr.split())


@pytest.mark.parametrize("verb", main.verbs())
def test_every_verb_has_help(command_line: CommandLine, verb: str) -> None:
    done = command_line(verb, "--help")
    assert done.returncode == 0, done.stdout
    assert f"usage: python -m hpc_isl.submit {verb}" in done.stdout
    assert f"  python -m hpc_isl.submit {verb} " in done.stdout or "example: " in done.stdout


def test_help_all_of_a_verb_gives_each_key_its_default_and_meaning(command_line: CommandLine) -> None:
    page = " ".join(command_line("pretrain", "--help", "all").stdout.split())
    for key in ("plates (must be given)", "sources.N.channel", "train.micro_batch = ", "site.key=value"):
        assert key in page
    assert "crops per forward pass, the span of BatchNorm; divides batch" in page
    assert "[auto | fp32 | bf16 | fp16]" in page


@pytest.mark.parametrize("verb", [*RECIPES, "sweep", "chain"])
def test_help_begins_with_the_required_keys_and_names_where_the_rest_is(verb: str) -> None:
    page, whole = (stage_manual(verb, "H", every_key) for every_key in (False, True))
    required = [key for key, default, _ in rows(KINDS[verb], {}) if default == REQUIRED and "N." not in key]
    places = [page.index(f"\n  {key} {REQUIRED}") for key in required]
    assert places == sorted(places)
    assert places[-1] < page.index("\nsite ") < page.index("\nexamples") < page.index(f"H {verb} --help all")
    assert len(page.splitlines()) < 60
    assert all(f"\n  {key} " in whole for key, _, _ in rows(KINDS[verb], {}))


def test_the_usual_keys_exist_and_the_examples_are_read() -> None:
    known = main.verbs()
    for verb, keys in USUAL.items():
        assert set(keys) <= {key for key, _, _ in rows(KINDS[verb], {})}
        for example in EXAMPLES[verb]:
            given = parse(known, shlex.split(example))
            assert given is not None
            assert given.verb == verb
            path, assignments, _ = main.split_words(verb, given.words)
            if verb not in ("sweep", "chain"):
                load(verb, path, assignments)
    assert set(USUAL_OF_SITE) <= set(Site.model_fields)


# A value for each option that takes one; the others are switches.
VALUES = {
    "--site": "laptop", "--name": "a", "--after": "b", "--verify": "1%", "--root": "runs", "--rank": "1",
    "--out": "a.yaml", "--slurm-conf": "slurm.conf", "--patience": "1h", "--port": "5000",
    "--run": "P01",
}  # fmt: skip
OPTIONS = {
    **dict.fromkeys(RECIPES, "--site --name --dry-run --time --wait --after"),
    "segment": "--site --name --dry-run --time --wait --after --verify",
    "sweep": "--site --name --dry-run --time --wait --after --update",
    "chain": "--site --name --dry-run --time --wait --after",
    "site": "--out --slurm-conf", "doctor": "--site --patience", "inspect": "", "overview": "",
    "export": "--root --site", "validate": "--deep --receipt --run --check --root --site",
    "pack": "--remove --root --site", "unpack": "", "set": "--dry-run --root --site",
    "status": "--root --site --json",
    "logs": "--root --site -f --follow --rank", "cancel": "--root --site",
    "resume": "--root --site --wait --after", "retry": "--root --site --wait",
    "remove": "--force --yes --dry-run --root --site", "report": "--root --site", "table": "--root --site",
    "sync": "--root --site --follow", "ui": "--root --site --port",
}  # fmt: skip


def test_every_option_of_every_verb_is_taken_before_between_and_after_words() -> None:
    known = main.verbs()
    assert set(known) == set(OPTIONS)
    for verb, options in OPTIONS.items():
        for name in options.split():
            typed = [name, VALUES[name]] if name in VALUES else [name]
            for place in range(3):
                given = parse(known, [verb, *["one", "key=two"][:place], *typed, *["one", "key=two"][place:]])
                assert given is not None
                assert given.words == ["one", "key=two"]
                value = getattr(given, name.strip("-").replace("-", "_").replace("f", "follow", name == "-f"))
                assert value not in (None, False, [])


def test_every_key_of_every_recipe_and_site_has_a_meaning() -> None:
    for kind in [*(RECIPES[verb] for verb in stage_table.STAGES), Site]:
        assert [key for key, _, meaning in rows(kind, {}) if not meaning] == []


def test_the_tables_of_stages_agree() -> None:
    assert set(stage_table.STAGES) == set(RECIPES)
    for verb in main.verbs():
        assert verb in main.overview()


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["pretrian"], "'pretrian' is not a verb; did you mean 'pretrain'?"),
        (["count", "stepz=3"], "stepz: no such key; did you mean 'steps'?"),
        (["pretrain", "train.stepz=3"], "train.stepz: no such key; did you mean 'steps'?"),
        (["count", "steps=many"], "steps: Input should be a valid integer"),
        (["count", "steps=[3"], "the value is not YAML"),
        (["pretrain", "pretrian.yaml"], "did you mean 'pretrain.yaml'?"),
        (["count", "steps"], "'steps': neither a recipe (NAME.yaml) nor key=value"),
        (["count", "site.gpuz=1"], "gpuz: no such key; did you mean 'gpus'?"),
        (["count", "--site", "lapto"], "did you mean 'laptop'?"),
        (["count", "--dryrun"], "--dryrun: no such option of python -m hpc_isl.submit count; did you mean"),
        (["count", "--name", "a/b"], "--name 'a/b'"),
        (["count", "--name", "100%"], "--name '100%'"),
        (["count", "steps=5000"], "5000 is more than I can count"),
        (["annotate", "imprt"], "did you mean 'import'?"),
        (["status", "nothing"], "'nothing': no such run"),
        (["cancel"], "name one run"),
        (["validate"], "name a plate"),
        (["resume", "--port", "3"], "--port: no such option"),
        (["resume", "S12", "time=12h"], "resume time=12h: a run keeps its recipe; what may change"),
        (["table", "segs/labels=a"], "'segs/labels=a': no such run"),
        (["overview", "plates/a=b.zarr", "wels=B03"], "overview wels=: no such key; did you mean 'wells'?"),
    ],
)  # fmt: skip
def test_an_error_names_what_would_be_right(
    command_line: CommandLine, words: list[str], messages: str
) -> None:
    done = command_line(*words)
    assert done.returncode == 2, done.stdout
    assert messages in done.stdout
    assert "Traceback" not in done.stdout
    assert len(done.stdout.splitlines()) <= 12
    assert not (command_line.cwd / "runs").exists(), "an error leaves nothing behind"


def test_a_word_with_a_slash_before_its_equals_sign_is_a_run_or_a_path(tmp_path, monkeypatch) -> None:
    words = ["segs/seed=0,train.crop=256", "out=a/b=c.csv", "./labels=a", "/data/day=1/P01.zarr"]
    arguments = Namespace(verb="table", words=words)
    assert take_keys(arguments, {"out": "a file"}) == {"out": "a/b=c.csv"}
    assert arguments.words == [words[0], *words[2:]]
    (tmp_path / "labels=a").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such key; there are: 'out'; a path is written ./labels=a"):
        take_keys(Namespace(verb="table", words=["labels=a"]), {"out": "a file"})


def test_a_typo_comes_before_what_it_leaves_missing(command_line: CommandLine) -> None:
    complaints = command_line("pretrain", "plate=P01.zarr").stdout.splitlines()[1:]
    assert complaints[0].strip().startswith("plate: no such key; did you mean 'plates'?")


def raising(error: Exception) -> Callable[..., NoReturn]:
    def raise_it(**_: object) -> NoReturn:
        raise error

    return raise_it


def test_an_unexpected_error_is_short_and_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main, "verbs", raising(RuntimeError("unforeseen")))
    assert main.run_command(["status"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "RuntimeError: unforeseen"
    trace = Path(second.removeprefix("traceback: "))
    assert "Traceback" in trace.read_text()
    trace.unlink()
    monkeypatch.setattr(tempfile, "mkstemp", raising(OSError("no room")))
    assert main.run_command(["status"]) == 1
    assert capsys.readouterr().err.endswith("\nRuntimeError: unforeseen\n")


def test_a_full_disk_and_a_folder_of_others_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for code, advice in (
        (errno.ENOSPC, "make room there"),
        (errno.EACCES, "ask its owner, or use another folder"),
    ):
        monkeypatch.setattr(main, "verbs", raising(OSError(code, os.strerror(code), "/runs/a")))
        assert main.run_command(["status"]) == 1
        assert capsys.readouterr().err == f"/runs/a: {os.strerror(code)}; {advice}\n"


def test_where_no_run_can_be_made_the_user_reads_what_to_set(command_line: CommandLine) -> None:
    (command_line.cwd / "runs").touch()  # a file where the folder of runs should be
    done = command_line("count", "site.tracking=none", "--name", "x")
    assert done.returncode == 2
    assert "/runs/count/x cannot be made: Not a directory; set site.runs" in done.stdout


@pytest.mark.parametrize("words", [["count"], ["sweep", "stage=count", "over={seed: [0, 1]}"]])
def test_a_folder_whose_making_was_cut_off_is_no_run(command_line: CommandLine, words: list[str]) -> None:
    """The recipe is the last file of a run folder, and of a sweep's: without it nothing has begun."""
    folder = command_line.cwd / "runs" / words[0] / "cut"
    folder.mkdir(parents=True)
    (folder / "elements.json").write_text('{"elements": ["count/seed=0", "count/seed=1"]}')
    done = command_line(*words, "site.tracking=none", "--name", "cut")
    assert done.returncode == 2
    assert f"{folder} exists and is not a run, or one whose making was cut off" in done.stdout


def test_a_dry_run_is_exact_and_writes_nothing(command_line: CommandLine) -> None:
    (command_line.cwd / "two.yaml").write_text("steps: 2\nword: it's\n")
    before = sorted(command_line.cwd.rglob("*"))
    done = command_line("count", "two.yaml", "seed=9", "site.processes=2", "--name", "dry", "--dry-run")
    assert done.returncode == 0, done.stdout
    for line in (
        "steps: 2",
        "seed: 9",
        "word: it's",
        "counts to 2",
        f"run folder {command_line.folder('dry')}",
    ):
        assert line in done.stdout
    assert "2 processes on this machine" in done.stdout
    assert sorted(command_line.cwd.rglob("*")) == before


def test_the_same_recipe_under_the_same_name_is_done_once(command_line: CommandLine) -> None:
    words = ["count", "site.tracking=none", "--name", "once"]
    assert command_line(*words).returncode == 0
    again = command_line(*words)
    assert again.returncode == 0
    assert "nothing to do: this run is finished" in again.stdout
    assert (command_line.folder("once") / "attempts" / "1").exists() is False
    other = command_line(*words, "steps=4")
    assert other.returncode == 2
    assert "steps: 3 there, 4 here" in other.stdout
    assert "choose another --name" in other.stdout


def test_inputs_that_changed_are_another_computation(command_line: CommandLine) -> None:
    data = command_line.cwd / "data.txt"
    data.write_text("one")
    words = ["count", f"data={data}", "site.tracking=none", "--name", "input"]
    assert command_line(*words).returncode == 0
    data.write_text("two")
    changed = command_line(*words)
    assert changed.returncode == 2
    assert f"contents of {data}: 'one' there, 'two' here" in changed.stdout


def test_a_name_of_an_unfinished_run_leads_to_resume(command_line: CommandLine) -> None:
    words = ["count", "site.tracking=none", "--name", "half"]
    assert command_line(*words, "crash_rank=0").returncode == 1
    again = command_line(*words, "crash_rank=0")
    assert again.returncode == 2
    assert "resume it with python -m hpc_isl.submit resume half" in again.stdout


def test_runs_without_a_name_get_short_ones_in_turn(command_line: CommandLine) -> None:
    for _ in range(2):
        assert command_line("count", "site.tracking=none").returncode == 0
    names = sorted(path.name for path in (command_line.cwd / "runs" / "count").iterdir())
    assert re.fullmatch(r"count-\d{8}-1", names[0])
    assert names[1] == names[0][:-1] + "2"


def test_a_name_that_another_process_takes_meanwhile_is_left_to_it(command_line: CommandLine) -> None:
    """Several that start at once, as the tasks of one's own job array, choose the same number."""
    data, first = command_line.cwd / "data", command_line.folder(f"count-{date.today():%Y%m%d}-1")
    os.mkfifo(data)
    call = command_line.open("count", f"data={data}", "site.tracking=none")

    def answered() -> bool:
        with suppress(OSError):  # nobody reads yet
            descriptor = os.open(data, os.O_WRONLY | os.O_NONBLOCK)
            first.mkdir(parents=True)  # the plan reads when the name is chosen
            data.unlink()
            data.write_text("one")
            os.write(descriptor, b"one")
            os.close(descriptor)
            return True
        return False

    assert eventually(answered)
    output, _ = call.communicate(timeout=120)
    assert call.returncode == 0, output
    assert f"{first.name} was made by another process just now" in output
    assert (first.with_name(first.name.removesuffix("1") + "2") / "done" / "count.json").is_file()
    assert list(first.iterdir()) == []


def test_runs_lie_where_the_environment_or_the_site_says(command_line: CommandLine, tmp_path: Path) -> None:
    command_line.environment["HPC_ISL_RUNS"] = str(tmp_path / "by environment")
    assert command_line("count", "site.tracking=none", "--name", "a").returncode == 0
    assert (tmp_path / "by environment/count/a/recipe.yaml").is_file()
    assert "count  a" in command_line("status").stdout
    done = command_line("count", "site.tracking=none", f"site.runs={tmp_path / 'by site'}", "--name", "b")
    assert (tmp_path / "by site/count/b/recipe.yaml").is_file()
    assert "count  b" in command_line("status", "--root", str(tmp_path / "by site")).stdout
    assert done.returncode == 0
    typed = shlex.split(done.stdout.splitlines()[-1].removeprefix("next: "))
    assert typed[3:] == ["ui", "--root", str(tmp_path / "by site")], "what to type next works as it stands"
    failed = command_line("count", "site.tracking=none", f"site.runs={tmp_path / 'by site'}", "crash_rank=0")
    typed = shlex.split(failed.stdout.splitlines()[-1].removeprefix("next: "))
    assert Path(typed[4]).parent == tmp_path / "by site" / "count"


def test_a_closed_pipe_is_no_error(command_line: CommandLine) -> None:
    command = f"{sys.executable} -m hpc_isl.submit pretrain --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=command_line.cwd,
        env=command_line.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_action_of_annotate_becomes_a_key() -> None:
    words = ["import", "my masks: all/", "labels=nuclei", "plate=P.zarr"]
    assert main.action_as_keys("annotate", words) == [
        "action=import", 'source="my masks: all/"', "labels=nuclei", "plate=P.zarr",
    ]  # fmt: skip
    assert main.action_as_keys("annotate", ["draft", "plate=P.zarr"]) == [
        "action=draft",
        "plate=P.zarr",
    ]
    assert main.action_as_keys("convert", ["import"]) == ["import"]


@pytest.mark.journey
def test_an_installed_wheel_works_outside_the_checkout(tmp_path: Path, command_line: CommandLine) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile"]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True)
    environment = {**command_line.environment, "PYTHONPATH": str(target)}

    def typed(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    where = typed(sys.executable, "-c", "import hpc_isl; print(hpc_isl.__file__)")
    assert where.stdout.startswith(str(target)), "the wheel, not the checkout"
    module = typed(sys.executable, "-m", "hpc_isl.submit", "--help")
    script = typed(str(target / "bin" / "hpc-isl"), "--help")
    assert module.returncode == script.returncode == 0, module.stderr + script.stderr
    assert script.stdout == module.stdout.replace("python -m hpc_isl.submit", "hpc-isl")
    page = typed(sys.executable, "-m", "hpc_isl.submit", "pretrain", "--help")
    assert "defaults as in pretrain.yaml" in page.stdout, "recipes are shipped"
    sites = typed(sys.executable, "-m", "hpc_isl.submit", "convert", "--site", "nowhere")
    assert "'laptop', 'slurm'" in sites.stderr, "sites are shipped"
    assert not (tmp_path / "runs").exists()
    environment["PYTHONPATH"] += f":{COUNTING}"
    run = typed(
        sys.executable, str(COUNTING / "command_line.py"), "count", "site.tracking=none", "site.processes=2"
    )
    assert run.returncode == 0, run.stdout + run.stderr
