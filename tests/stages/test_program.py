"""Another program as an arm: it learns from the same boxes, is scored as networks are, chosen, and kept."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from eventually import eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from hpc_isl.errors import UserError
from hpc_isl.learning.network import model
from hpc_isl.learning.network.contract import Contract, read_contract
from hpc_isl.plates.store import annotation, label_names, read_box, read_labels, write_labels
from hpc_isl.recipes.base import SweepRecipe
from hpc_isl.recipes.load import digest, load, load_kept
from hpc_isl.recipes.program import CommandRecipe, ProgramRecipe
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.annotate import stage as annotate_stage
from hpc_isl.stages.finetune.stage import arrange, finetune, plan
from hpc_isl.stages.finetune.sweep import best
from hpc_isl.stages.shared import program as programs

SCRIPT = Path(__file__).parents[1] / "support" / "threshold_program.py"
TRAIN = [sys.executable, str(SCRIPT), "train", "{images}", "{labels}", "{model}", "{seed}"]
PREDICT = [sys.executable, str(SCRIPT), "predict", "{images}", "{model}", "{out}"]
SPLIT = "split={test_wells: [B04, C04], validation_wells: [C03]}"
SOURCES = "sources=[{channel: Hoechst, plane: max}]"
NET = "net={encoder: tu-test_resnet, weights: null, decoder: [16, 16, 8, 8, 8]}"
SHORT = "train={steps: 1, batch: 2, micro_batch: 2, crop: 32, precision: fp32, crops_per_field: 1}"
# Of B02 two boxes, of all other wells the whole field: 5 boxes train, 2 test.
BOXES = {"B02": [(0, 0, 48, 96), (60, 10, 90, 70)]}


def program(name="threshold", train=TRAIN, predict=PREDICT, **keys):
    return {"name": name, "train": train, "predict": predict, **keys}


def called(fault="", **keys):
    return CommandRecipe(predict=[*PREDICT, *([fault] if fault else [])], **keys)


@pytest.fixture(scope="module")
def plate(tmp_path_factory, write_stained_plate):
    index = write_stained_plate(tmp_path_factory.mktemp("plates") / "P01.zarr")
    draw_objects(index, BOXES)
    return index


def draw_objects(index, boxes={}):
    """Labels of the stain above 3500, named by numbers as large as programs of people give them."""
    for field in index.plate.fields:
        stain = read_box(index.image(field.key), 0, 0, 1, [0, 1], slice(None), slice(None)).max(0)
        objects = label(stain > 3500)[0].astype(np.uint32)
        whole = [(0, 0, *field.shape[-2:])]
        write_labels(
            index.image(field.key), "nuclei", objects * 1000, origin="human",
            boxes=boxes.get(field.key.well, whole),
        )  # fmt: skip


def recipe(plate, *keys, given=None):
    given = [program()] if given is None else given
    words = [f"plates=[{plate.path}]", "labels=nuclei", SOURCES, SPLIT, NET, SHORT]
    return load("finetune", None, [*words, f"programs={json.dumps(given)}", "arm=threshold", *keys])


def finished(root, name, own) -> Run:
    run = Run(root / "runs" / "finetune" / name)
    planned = plan(own)
    run.folder.mkdir(parents=True)
    run.recipe.write_text(to_yaml(planned.recipe))
    run.record.write_text(json.dumps({"inputs": dict(planned.inputs), "parts": planned.parts}))
    finetune(planned.recipe, Attempt(run))
    return run


def rows(run, name="scores.csv"):
    with (run.folder / name).open() as stream:
        return list(csv.DictReader(stream))


def figures(run):
    return run.summary()["figures"]


# ---------------------------------------------------------------- an arm


def test_a_program_learns_from_the_boxes_and_is_scored_on_the_test_fields(plate, tmp_path):
    run = finished(tmp_path, "own", recipe(plate, "n=3", "objects.kind=cells"))
    learnt = json.loads((run.model / "program" / "learnt.json").read_text())
    boxes = rows(run, "boxes.csv")
    assert (learnt["images"], learnt["objects"]) == (3, sum(int(box["objects"]) for box in boxes))
    scores = rows(run)
    assert [row["well"] for row in scores] == ["B04", "C04"]
    # The truth is a threshold of the very image that the program sees.
    assert all(float(row["mAP"]) == 1 and row["objects"] == row["predicted"] for row in scores)
    own = figures(run)
    assert (own["mAP"], own["boxes"], own["steps"], own["images"]) == (1, 3, 0, 2)
    assert own["seconds"] > 0
    assert run.summary()["arm"] == "threshold"
    assert (run.folder / "panels.npz").exists()
    assert not (run.folder / "scratch").exists()


def test_the_contract_says_that_it_is_a_program_and_what_it_sees(plate, tmp_path):
    run = finished(tmp_path, "own", recipe(plate, "n=1"))
    contract = read_contract(run.model)
    assert contract.program == ProgramRecipe(**program())
    assert contract.weights == programs.folder_fingerprint(run.model / "program")
    assert contract.view.normalize.source == "none"
    assert (contract.task.arm, contract.task.boxes, contract.task.kind) == ("threshold", 1, "nuclei")
    assert Contract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract
    with pytest.raises(UserError, match="holds another program, threshold, and no network"):
        model.load(run.model)
    # What it learnt, and how it is called, decide the objects that it finds.
    (run.model / "program" / "learnt.json").write_text("{}")
    assert contract.weights != programs.folder_fingerprint(run.model / "program")
    other = contract.to_dict()
    other["program"]["env"] = {"LEVEL": "2"}
    assert Contract.from_dict(other).model_hash() != contract.model_hash()


def test_the_same_draw_and_seed_call_it_alike(plate, tmp_path):
    def learnt(name, *keys):
        run = finished(tmp_path, name, recipe(plate, "n=2", *keys))
        return json.loads((run.model / "program" / "learnt.json").read_text())

    first = learnt("a")
    assert first == learnt("b")
    assert first["seed"] != learnt("c", "train.seed=1")["seed"]
    assert 0 <= first["seed"] < 2**31


def test_without_annotation_it_segments_as_it_is(plate, tmp_path):
    run = finished(tmp_path, "own", recipe(plate, "n=0", "objects.kind=cells"))
    assert list((run.model / "program").iterdir()) == []
    assert (figures(run)["boxes"], figures(run)["seconds"]) == (0, 0)
    assert 0 < figures(run)["iou"] < 1  # the middle of the image is another threshold than that of the truth
    zero_shot = program(train=None)
    with pytest.raises(UserError, match="n=1: the program threshold has no command `train`"):
        plan(recipe(plate, "n=1", given=[zero_shot]))
    assert plan(recipe(plate, "n=0", given=[zero_shot])).recipe.n == 0


def test_objects_smaller_than_asked_for_are_dropped(plate, tmp_path):
    def areas(least):
        run = finished(tmp_path, f"{least}", recipe(plate, "n=2", f"objects.min_area={least}"))
        with np.load(run.folder / "panels.npz") as arrays:
            return np.sort(np.concatenate([np.bincount(labels.ravel())[1:] for labels in arrays.values()]))

    every = areas(1)
    least = int(np.median(every))
    assert every[0] < least
    assert areas(least).tolist() == every[every >= least].tolist()


def test_several_sources_and_a_coarser_level_are_handed_over_as_the_view_has_them(
    tmp_path, write_stained_plate
):
    """The program looks at the first of two sources, at half the resolution: the objects are found there."""
    index = write_stained_plate(tmp_path / "P02.zarr", wells=("B02", "B04"), size=300)
    draw_objects(index)
    own = recipe(
        index, "objects.kind=cells", "data={level: 1}", "split={test_wells: [B04], validation_wells: []}",
        "sources=[{channel: Hoechst, plane: max}, {channel: Brightfield, plane: 0}]",
        "left_out=never",
    )  # fmt: skip
    run = finished(tmp_path, "own", own)
    with np.load(run.folder / "panels.npz") as arrays:
        assert {labels.shape for labels in arrays.values()} == {(150, 150)}
    [row] = rows(run)
    assert row["objects"] == row["predicted"] != "0"
    assert float(row["iou"]) > 0.8  # labels are halved by votes, and images by means


# ---------------------------------------------------------------- recipes


def test_recipes_without_programs_keep_their_digest(plate):
    """That of a recipe as it was before there were programs."""
    words = [f"plates=[{plate.path}]", "labels=nuclei", "arm=random", SOURCES]
    own = load("finetune", None, words)
    assert own.programs == []
    assert digest(own) == digest(own.model_copy(update={"programs": []}))
    with_programs = own.model_copy(update={"programs": [ProgramRecipe(**program())]})
    assert digest(own) != digest(with_programs)
    # Programs of other arms are left out of what a run is computed from.
    assert plan(with_programs.model_copy(update={"net": recipe(plate).net})).recipe.programs == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["arm=treshold"], r"arm=treshold: there is no such arm; did you mean 'threshold'\?"),
        (["arm=random"], "programs: changes nothing because arm is random"),
        (['programs=[{name: random, predict: ["{images}{out}"]}]'], "'random' is the name of another arm"),
        (['programs=[{name: a/b, predict: ["{images}{out}"]}]'], "programs.0.name"),
        (
            ['programs=[{name: a, predict: ["{imgs}{out}"]}]'],
            r"\{imgs\} is nothing that is filled in; did you",
        ),
        (['programs=[{name: a, predict: ["{images}"]}]'], r"no argument has \{out\}"),
        (["programs=[{name: a, predict: []}]"], "the list is empty"),
        (
            ['programs=[{name: a, train: ["{images}{labels}{model}"], predict: ["{images}{out}"]}]'],
            "what `train` makes would never be used",
        ),
    ],
)
def test_what_cannot_be_called_is_refused_with_what_would_be_right(plate, keys, message):
    with pytest.raises(UserError, match=message):
        recipe(plate, *keys)


def test_paths_become_absolute_and_what_is_not_there_is_told_before_the_job(plate, tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "own.py").write_text("")
    (tmp_path / "cyto3").write_text("")
    monkeypatch.chdir(tmp_path)
    predict = ["python", "scripts/own.py", "cyto3", "no/such", "{images}", "{out}"]
    own = programs.located(CommandRecipe(predict=predict))
    assert own.predict == ["python", f"{tmp_path}/scripts/own.py", "cyto3", "no/such", "{images}", "{out}"]
    with pytest.raises(UserError, match="predict: no/such/python is no program that can be started here"):
        programs.located(CommandRecipe(predict=["no/such/python", "{images}", "{out}"]))
    with pytest.raises(UserError, match=r"scripts/own\.py is no program"):
        programs.located(CommandRecipe(predict=["scripts/own.py", "{images}", "{out}"]))
    messages = plan(recipe(plate, given=[program(predict=["no-such-program", *PREDICT[1:]])])).messages
    assert any("warning: there is no no-such-program here" in line for line in messages)


def test_a_script_that_was_edited_is_another_input(tmp_path, plate):
    script = tmp_path / "own.py"
    script.write_text(SCRIPT.read_text())
    commands = {
        name: [str(script) if word == str(SCRIPT) else word for word in command]
        for name, command in (("train", TRAIN), ("predict", PREDICT))
    }
    before = plan(recipe(plate, given=[program(**commands)])).inputs["program"]
    assert before == plan(recipe(plate, given=[program()])).inputs["program"]
    script.write_text(SCRIPT.read_text() + "\n")
    assert before != plan(recipe(plate, given=[program(**commands)])).inputs["program"]


# ---------------------------------------------------------------- sweeps


def elements(plate, *keys, given, **over):
    return {
        f"{key}={value}": recipe(plate, *keys, f"{key}={json.dumps(value)}", given=given)
        for key, values in over.items() for value in values
    }  # fmt: skip


def test_elements_that_a_program_cannot_compute_are_left_out(plate, tmp_path):
    given = [program(), program("ready", train=None)]
    own = elements(plate, "arm=ready", given=given, n=[0, 1]) | elements(
        plate, given=given, arm=["threshold"]
    )
    arranged = arrange(own, tmp_path)
    assert list(arranged.elements) == ["n=0", "arm=threshold", "final"]
    assert any(
        "n=1 of arm ready is left out: the program ready has no command" in m for m in arranged.messages
    )


def swept(plate, root, **recipes):
    """Finished elements by name, and the recipe that `final` computes."""
    runs = {name: finished(root, name, own) for name, own in recipes.items()}
    last = next(iter(recipes.values()))
    final = last.model_copy(update={"arm": "best", "among": [run.folder for run in runs.values()]})
    return runs, best(final)


def test_the_final_model_may_be_a_program_that_learns_from_all_boxes(plate, tmp_path):
    cells = ["objects.kind=cells", "n=all"]
    runs, chosen = swept(
        plate, tmp_path,
        random=recipe(plate, *cells, "arm=random", given=[]),
        program=recipe(plate, *cells),
    )  # fmt: skip
    left_out = json.loads((runs["program"].folder / "left_out.json").read_text())
    assert len(left_out["pieces"]) == 5
    assert len(left_out["scores"]) == 5
    assert left_out["kept_scores"] == left_out["scores"]
    assert np.mean(left_out["scores"]) > 0.9
    assert figures(runs["program"])["left_out"] == pytest.approx(np.mean(left_out["scores"]), abs=1e-5)
    assert (chosen.arm, chosen.n, chosen.train_on_all) == ("threshold", "all", True)
    final = finished(tmp_path, "final", chosen)
    assert json.loads((final.model / "program" / "learnt.json").read_text())["images"] == 7
    assert load_kept("finetune", final.recipe).program.name == "threshold"


def test_the_final_model_may_be_a_program_that_learns_nothing(plate, tmp_path):
    runs, chosen = swept(
        plate, tmp_path,
        random=recipe(plate, "objects.kind=cells", "n=all", "arm=random", given=[]),
        ready=recipe(plate, "objects.kind=cells", "n=0", given=[program(train=None)]),
    )  # fmt: skip
    scores = [json.loads((run.folder / "left_out.json").read_text()) for run in runs.values()]
    assert sorted(scores[0]["pieces"]) == sorted(scores[1]["pieces"])  # the same boxes are compared
    assert (chosen.arm, chosen.n, chosen.train_on_all) == ("threshold", 0, True)
    final = finished(tmp_path, "final", chosen)
    assert read_contract(final.model).task.boxes == 0
    assert final.summary()["made"] == {"model": str(final.model)}


def test_a_network_as_good_as_the_program_is_chosen_and_zero_shot_of_one_that_learns_is_no_choice(
    plate, tmp_path
):
    """It needs nothing that has to be installed; N = 0 of a program that learns is no model of all boxes."""
    same = recipe(plate, "n=all")
    runs = {name: finished(tmp_path, name, same) for name in ("program", "network")}
    zero = finished(tmp_path, "zero", recipe(plate, "n=0"))
    kept = load_kept("finetune", runs["network"].recipe)
    changed = kept.model_copy(update={"arm": "random", "programs": []})
    runs["network"].recipe.write_text(to_yaml(changed))
    among = [run.folder for run in (runs["program"], runs["network"], zero)]
    chosen = best(same.model_copy(update={"arm": "best", "among": among}))
    assert chosen.arm == "random"


def test_the_report_has_the_program_as_an_arm(plate, tmp_path):
    from hpc_isl.stages.report.sweep import read_sweep

    root = tmp_path / "runs" / "sweep" / "own"
    names = {
        "arm=random": recipe(plate, "n=1", "arm=random", given=[]),
        "arm=threshold": recipe(plate, "n=1"),
    }
    for name, own in names.items():
        folder = finished(tmp_path, name, own).folder
        (root / "finetune").mkdir(parents=True, exist_ok=True)
        folder.rename(root / "finetune" / name)
    run = Run(root)
    run.elements_file.write_text(json.dumps({"elements": [f"finetune/{name}" for name in names]}))
    base = {"plates": [str(plate.path)], "labels": "nuclei"}
    run.recipe.write_text(
        to_yaml(SweepRecipe(stage="finetune", over={"arm": ["random", "threshold"]}, base=base))
    )
    read = read_sweep(run)
    assert [str(cell.arm) for cell in read.cells] == ["random", "threshold"]
    assert read.missing == {}


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("exit", r"failed with exit code 1; its last lines:\n(.*\n)*  no weights were found"),
        ("abort", "was ended by SIGABRT; its last lines:\n  a warning that nobody minds"),
        (
            "missing",
            r"with 0 label images in {out} for 2 images: 00000.tif is missing; it has written 00000.png",
        ),
        ("stops early", "with 1 label images in {out} for 2 images: 00001.tif is missing"),
        ("more", "with 3 label images in {out} for 2 images: other.tif belongs to no image"),
        ("damaged", "00000.tif cannot be read as TIFF"),
        ("float", "00000.tif holds float32; labels are whole numbers"),
        ("shape", r"00000.tif has the shape \(29, 40\), and its image \(30, 40\)"),
        ("negative", "00000.tif holds -1; labels are 0, 1, 2, …, none is negative"),
    ],
)
def test_what_is_no_segmentation_fails_with_its_reason_and_leaves_nothing(tmp_path, fault, message):
    images = [np.random.default_rng(seed).normal(0, 1, (1, 30, 40)).astype(np.float32) for seed in (0, 1)]
    with pytest.raises(UserError, match=f"predict: (ended well, )?{message}"):
        programs.predict(called(fault), images, None, tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "print('has begun', flush=True)\ntime.sleep(600)\n"
    )
    slow = CommandRecipe(predict=[sys.executable, str(script), "{images}", "{out}"], time_limit_s=3)
    with pytest.raises(
        UserError, match="took longer than time_limit_s=3 and was ended; its last lines:\n  has"
    ):
        programs.predict(slow, [np.zeros((1, 4, 4), np.float32)], None, tmp_path / "scratch")
    child = int((tmp_path / "child").read_text())
    assert eventually(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie")


def test_a_program_is_ended_when_the_attempt_is_to_stop(plate, tmp_path):
    own = recipe(plate, "n=1", given=[program(predict=[*PREDICT, "sleep"])])
    run = Run(tmp_path / "runs" / "finetune" / "own")
    attempt = Attempt(run)
    thread = threading.Thread(target=finetune, args=(plan(own).recipe, attempt))
    thread.start()
    assert eventually(lambda: list((run.folder / "scratch").glob("*/stderr")))
    attempt.stopping.set()
    thread.join(30)
    assert not thread.is_alive()
    assert run.summary() is None
    assert not (run.folder / "scratch").exists()
    # The next attempt begins anew.
    again = recipe(plate, "n=1")
    finetune(plan(again).recipe, Attempt(run, 1))
    assert run.summary() is not None


def test_further_ranks_wait_until_the_first_has_called_the_program(plate, tmp_path):
    """srun would end a rank that computes a minute after another one has left."""
    own = plan(recipe(plate, "n=1")).recipe
    run = Run(tmp_path / "runs" / "finetune" / "own")
    other = threading.Thread(target=finetune, args=(own, Attempt(run, rank=1, size=2)))
    other.start()
    finetune(own, Attempt(run, size=2))
    assert run.summary() is not None
    other.join(30)
    assert not other.is_alive()
    # And where the first one fails, or all are to stop.
    failed = Run(tmp_path / "runs" / "finetune" / "failed")
    attempt = Attempt(failed, rank=1, size=2)
    others = threading.Thread(target=finetune, args=(own, attempt))
    others.start()
    others.join(1)
    assert others.is_alive()
    with pytest.raises(UserError), Attempt(failed, size=2).recorded() as first:
        finetune(
            own.model_copy(update={"programs": [ProgramRecipe(**program(train=["false", *TRAIN]))]}), first
        )
    others.join(30)
    assert not others.is_alive()


def test_a_program_does_not_outlive_a_caller_that_was_killed(tmp_path):
    marker = tmp_path / "pid"
    script = tmp_path / "waits.py"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "if len(sys.argv) > 2:  # as `conda run` does, it starts another one\n"
        "    sys.exit(subprocess.call([sys.executable, __file__]))\n"
        f"open({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    caller = (
        "import numpy as np\nfrom pathlib import Path\n"
        "from hpc_isl.recipes.program import CommandRecipe\n"
        "from hpc_isl.stages.shared.program import predict\n"
        f"own = CommandRecipe(predict=[{sys.executable!r}, {str(script)!r}, '{{images}}', '{{out}}'])\n"
        f"predict(own, [np.zeros((1, 4, 4), np.float32)], None, Path({str(tmp_path)!r}) / 'scratch')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", caller], cwd=Path(__file__).parents[2])
    assert eventually(lambda: marker.exists() and marker.read_text())
    pid = int(marker.read_text())
    assert psutil.pid_exists(pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


def test_the_environment_is_that_of_the_job_and_its_own_and_no_shell_reads_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/of/this/package")
    monkeypatch.setenv("FROM_JOB", "job")
    script = tmp_path / "tells.py"
    script.write_text(
        "import json, os, sys\n"
        "names = ('PYTHONPATH', 'FROM_JOB', 'OWN')\n"
        "told = [sys.argv[1:4], *map(os.environ.get, names)]\n"
        f"open({str(tmp_path / 'told')!r}, 'w').write(json.dumps(told))\n"
        "sys.exit(3)\n"
    )
    words = ["$OWN; touch x", "*", '{"a": {"b": 1}}', "{images}{out}"]
    own = CommandRecipe(predict=[sys.executable, str(script), *words], env={"OWN": "2"})
    with pytest.raises(UserError, match="exit code 3, without a word"):
        programs.predict(own, [np.zeros((1, 4, 4), np.float32)], None, tmp_path / "scratch")
    assert json.loads((tmp_path / "told").read_text()) == [words[:3], None, "job", "2"]


def test_what_a_program_has_started_does_not_outlive_it(tmp_path):
    """It may go on when the program itself has ended, or was killed with the caller."""
    script = tmp_path / "leaves.py"
    script.write_text(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
    )
    own = CommandRecipe(predict=[sys.executable, str(script), "{images}", "{out}"])
    with pytest.raises(UserError, match="with 0 label images"):
        programs.predict(own, [np.zeros((1, 4, 4), np.float32)], None, tmp_path / "scratch")
    child = int((tmp_path / "child").read_text())
    assert eventually(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie")


def test_signals_without_a_name_and_files_that_are_no_programs_are_reported(tmp_path):
    wanted = [sys.executable, "-c", "import os; os.kill(os.getpid(), 40)", "{images}{out}"]
    images = [np.zeros((1, 4, 4), np.float32)]
    with pytest.raises(UserError, match="predict: was ended by signal 40"):
        programs.predict(CommandRecipe(predict=wanted), images, None, tmp_path / "scratch")
    script = tmp_path / "plain"
    script.write_text("segment everything\n")
    script.chmod(0o755)
    with pytest.raises(
        UserError, match=r"exit code 1; its last lines:\n  .*plain cannot be started: Exec format"
    ):
        programs.predict(
            CommandRecipe(predict=[str(script), "{images}{out}"]), images, None, tmp_path / "scratch"
        )
    with pytest.raises(ValueError, match="'A=B' cannot be the name of a variable"):
        CommandRecipe(predict=PREDICT, env={"A=B": "1"})


def test_what_it_printed_is_shown_as_a_terminal_shows_it(tmp_path):
    drawn = "'first\\n  1%\\r 50%\\r\\x1b[1m100%\\x1b[0m\\r\\n\\nlast'"
    own = CommandRecipe(predict=[sys.executable, "-c", f"print({drawn}); exit(1)", "{images}", "{out}"])
    with pytest.raises(UserError) as error:
        programs.predict(own, [np.zeros((1, 4, 4), np.float32)], None, tmp_path / "scratch")
    assert str(error.value).splitlines()[1:] == ["  first", "  100%", "  last"]


def test_what_is_not_installed_is_named(tmp_path):
    own = CommandRecipe(predict=["no-such-program", "{images}", "{out}"])
    with pytest.raises(UserError, match="predict: no-such-program: there is no such program on"):
        programs.predict(own, [np.zeros((1, 4, 4), np.float32)], None, tmp_path / "scratch")


def test_training_that_makes_nothing_is_no_training(plate, tmp_path):
    nothing = [sys.executable, "-c", "pass", "{images}{labels}{model}"]
    with pytest.raises(UserError, match=r"train: ended well, and has written nothing into \{model\}"):
        finished(tmp_path, "own", recipe(plate, "n=1", given=[program(train=nothing)]))
    assert not (tmp_path / "runs" / "finetune" / "own" / "scratch").exists()


# ---------------------------------------------------------------- labels


def test_large_numbers_of_objects_are_counted_up_from_one(tmp_path):
    image = np.zeros((1, 30, 40), np.float32)
    image[0, 2:8, 2:8], image[0, 12:20, 20:30] = 5, 7
    plain, large = (
        programs.predict(called(fault), [image], None, tmp_path / "scratch")[0] for fault in ("", "numbers")
    )
    assert plain.dtype == large.dtype == np.uint32
    np.testing.assert_array_equal(plain, large)
    np.testing.assert_array_equal(plain, label(image[0] > 0)[0])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=12, max_size=12),
    st.sampled_from(["uint8", "int16", "uint32", "uint64"]),
)
def test_any_numbers_tell_the_same_objects(tmp_path_factory, values, dtype):
    """Objects are equal numbers; they are counted in the order of their first pixels."""
    import tifffile

    info = np.iinfo(dtype)
    labels = np.array([value % (int(info.max) + 1) for value in values], dtype).reshape(3, 4)
    out = tmp_path_factory.mktemp("out")
    tifffile.imwrite(out / "00000.tif", labels, photometric="minisblack")
    [read] = programs._labels(called(), {"00000.tif": (3, 4)}, out)
    order = list(dict.fromkeys(value for value in labels.ravel().tolist() if value))
    expected = [order.index(value) + 1 if value else 0 for value in labels.ravel().tolist()]
    assert read.ravel().tolist() == expected


# ---------------------------------------------------------------- drafts


def drafted(plate, root, *keys, number=0, **command):
    words = ["action=draft", f"plate={plate.path}", "labels=by program", "fields=[B03, C02]", *keys]
    given = json.dumps({"predict": PREDICT, **command})
    own = annotate_stage.plan(load("annotate", None, [*words, "method=command", f"command={given}"]))
    run = Run(root / "runs" / "annotate" / "own")
    annotate_stage.annotate(own.recipe, Attempt(run, number))
    return run, own


def test_a_program_drafts_labels_for_people_to_correct(tmp_path, write_stained_plate):
    plate = write_stained_plate(tmp_path / "P03.zarr")
    run, planned = drafted(plate, tmp_path, "channel=Hoechst")
    assert "2 fields" in planned.messages[0]
    assert "threshold_program.py predict" in planned.messages[0]
    assert planned.inputs["command"]
    for field in plate.plate.fields:
        image = plate.image(field.key)
        if field.key.well not in ("B03", "C02"):
            assert "by program" not in label_names(image)
            continue
        stain = read_box(image, 0, 0, 1, [0, 1], slice(None), slice(None)).max(0)
        expected = label(stain > (stain.min() / 2 + stain.max() / 2))[0]
        np.testing.assert_array_equal(read_labels(image, "by program"), expected)
        assert annotation(image, "by program")[0] == "drafted"
    assert not (run.folder / "scratch").exists()
    # Label-free images too, which the other methods refuse; and once more: nothing is written again.
    drafted(plate, tmp_path, "channel=Brightfield", "labels=of cells")
    assert "of cells" in label_names(plate.image(plate.plate.fields[1].key))
    again, _ = drafted(plate, tmp_path, "channel=Hoechst", number=1)
    assert again.summary()["kept"] == 2


def test_a_draft_that_fails_names_its_field_and_writes_nothing_of_it(tmp_path, write_stained_plate):
    plate = write_stained_plate(tmp_path / "P03.zarr")
    with pytest.raises(UserError, match=r"(?s)(B03|C02)/1: predict: failed .* no weights were found"):
        drafted(plate, tmp_path, "channel=Hoechst", predict=[*PREDICT, "exit"])
    assert all("by program" not in label_names(plate.image(field.key)) for field in plate.plate.fields)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["method=command"], "method=command: command must be given"),
        (["command={predict: ['{images}{out}']}"], "command: changes nothing because method is local"),
        (
            ["method=command", "command={predict: ['{images}{out}']}", "min_area=9"],
            "min_area: changes nothing",
        ),
        (["method=command", "command={predict: ['{images}']}"], r"no argument has \{out\}"),
    ],
)
def test_keys_of_drafts_that_do_not_fit_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        load("annotate", None, ["action=draft", "plate=P.zarr", "labels=a", "channel=Hoechst", *keys])
