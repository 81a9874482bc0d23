"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from hpc_isl.cluster.jobs import STAGES

PACKAGE = Path(__file__).parents[1] / "hpc_isl"
VALUES = {
    "hpc_isl",
    "mistake",
    "device",
    "files",
    "strict",
    "recipe",
    "recipes",
    "many",
    "metadata_changes",
    "site",
    "sbatch_flags",
    "run",
    "tiles",
    "seeds",
    "tasks",
    "timing",
}
DOOR = {"submit", "commands", "setup_commands", "upkeep_commands", "commandline", "manual"}
WINGS = {"plates", "learning", "objects"}
# The lower a layer, the fewer it knows.
MAY_KNOW = {
    "values": {"values"},
    "plates": {"values", "plates"},
    "objects": {"values", "objects"},
    "learning": {"values", "learning"},
    "stages": {"values", "stages", *WINGS},
    "cluster": {"values", "cluster"},
    "door": {"values", "cluster", "door"},
}
# learning may use these of the plates; nothing else crosses from wing to wing.
BRIDGE = {"hpc_isl.plates.store", "hpc_isl.plates.plate", "hpc_isl.plates.statistics"}
HEAVY = {"torch", "torchvision", "zarr", "dask", "distributed", "mlflow", "tensorstore", "scipy", "skimage"}
# inspect, validate, report and table submit nothing; status compares the labels of a segmentation
LOOKED_AT = ("inspect", "report", "table", "segmentation.edits")
ALLOWED = {("commands.py", f"hpc_isl.stages.{name}") for name in LOOKED_AT}
ALLOWED |= {("upkeep_commands.py", "hpc_isl.stages.set_metadata")}
# The folders of the corridor, and the verb whose parts they hold.
PARTS = {
    "conversion": "convert", "annotation": "annotate", "pretraining": "pretrain", "finetuning": "finetune",
    "segmentation": "segment", "reporting": "report", "tables": "table", "synthesis": "synthetic",
}  # fmt: skip
# A run of segment ends with its table.
ASKED = {("stages/segmentation/finish.py", "hpc_isl.stages.table")}
PARTS_OF_POOL = ("call", "flow", "meeting", "processes")
POOL = {"cluster/pool.py", *(f"cluster/pooled/{part}.py" for part in PARTS_OF_POOL)}
ONLY = {
    "submitit": {"cluster/slurm/sbatch.py"},
    # served.py is run by MLflow itself and imported by nothing.
    "mlflow": {"cluster/tracking.py", "cluster/tracking_pages.py", "learning/served.py"},
    "dask": POOL,
    "distributed": POOL,
}


@dataclass(frozen=True)
class Import:
    """One import of a source file; `deferred`: inside a function; `typed`: for type checkers alone."""

    file: str
    module: str
    deferred: bool
    typed: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]


def layer(name: str) -> str:
    """Of a file below the package, or of a module: values, a wing, stages, cluster or the door."""
    first = name.removeprefix("hpc_isl.").removesuffix(".py").replace(".", "/").split("/")[0]
    if first in VALUES or first == "__init__":
        return "values"
    return "door" if first in DOOR else first


def imports(path: Path) -> Iterator[Import]:
    file = str(path.relative_to(PACKAGE))
    tree = ast.parse(path.read_text())

    def walk(node: ast.AST, deferred: bool, typed: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = deferred or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            checking = typed or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            if isinstance(child, ast.Import):
                yield from (Import(file, alias.name, deferred, typed) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}: imports are absolute"
                yield from (Import(file, name, deferred, typed) for name in _named(child))
            else:
                yield from walk(child, inside, checking)

    yield from walk(tree, False, False)


def _named(node: ast.ImportFrom) -> list[str]:
    """`from hpc_isl.plates import store` imports hpc_isl.plates.store."""
    module = node.module or ""
    if module.split(".")[0] != "hpc_isl":
        return [module]
    return [
        f"{module}.{alias.name}" if _is_module(f"{module}.{alias.name}") else module for alias in node.names
    ]


def _is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


ALL = [one for path in sorted(PACKAGE.rglob("*.py")) for one in imports(path)]


def test_each_layer_knows_only_those_below_it() -> None:
    wrong = []
    for one in ALL:
        if one.top != "hpc_isl" or one.typed or (one.file, one.module) in ALLOWED:
            continue
        bridge = layer(one.file) == "learning" and one.module in BRIDGE
        if layer(one.module) not in MAY_KNOW[layer(one.file)] and not bridge:
            wrong.append(f"{one.file} imports {one.module}")
    assert wrong == []


def verb(name: str) -> str:
    """Of a file or module of the corridor: the verb that it belongs to, or shared."""
    first = name.removeprefix("hpc_isl.").removesuffix(".py").replace(".", "/").split("/")[1]
    return PARTS.get(first, first)


def test_stages_do_not_know_each_other() -> None:
    inside = [one for one in ALL if layer(one.file) == "stages" and one.module.startswith("hpc_isl.stages.")]
    wrong = [
        f"{one.file} imports {one.module}"
        for one in inside
        if verb(one.module) not in (verb(one.file), "shared") and (one.file, one.module) not in ASKED
    ]
    assert inside
    assert wrong == []


def test_no_modules_know_each_other_in_a_circle() -> None:
    """Also not inside functions, where an import hides a circle that is there."""
    known: dict[str, set[str]] = {}
    for one in ALL:
        if one.top == "hpc_isl" and not one.typed and _is_module(one.module):
            own = "hpc_isl." + one.file.removesuffix(".py").replace("/", ".")
            known.setdefault(own, set()).add(one.module)
    TopologicalSorter(known).prepare()


def test_values_need_nothing_heavy() -> None:
    light = {"numpy", "pydantic", "pydantic_core", "yaml", "hpc_isl"}
    wrong = []
    for one in ALL:
        third = importlib.util.find_spec(one.top) is not None and not _standard(one.top)
        if layer(one.file) == "values" and third and one.top not in light:
            wrong.append(f"{one.file} imports {one.module}")
    assert wrong == []


def _standard(name: str) -> bool:
    return name in sys.stdlib_module_names


def test_the_door_and_the_cluster_import_nothing_heavy_until_it_is_needed() -> None:
    wrong = [
        f"{one.file} imports {one.module}"
        for one in ALL
        if layer(one.file) in ("door", "cluster", "values") and one.top in HEAVY and not one.deferred
    ]
    assert wrong == []


@pytest.mark.parametrize("library", ONLY)
def test_some_libraries_have_one_place(library: str) -> None:
    files = {one.file for one in ALL if one.top == library}
    assert files <= ONLY[library]


def test_nothing_imports_the_file_that_mlflow_runs() -> None:
    assert [one.file for one in ALL if one.module == "hpc_isl.learning.served"] == []


def test_package_files_re_export_nothing() -> None:
    assert [one.file for one in ALL if one.file.endswith("__init__.py") and one.module != "__future__"] == []


def test_recipes_are_seen_by_stages_and_the_gatehouse_alone() -> None:
    """Below the stages everything takes flat arguments, or a part of a recipe."""
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = str(path.relative_to(PACKAGE))
        if layer(file) in WINGS:
            names = [a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
                     and n.module in ("hpc_isl.recipe", "hpc_isl.recipes.base") for a in n.names]  # fmt: skip
            wrong += [f"{file} sees {name}" for name in names if name == "Recipe"]
    assert wrong == []


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_is_found_by_its_name(stage: str) -> None:
    spec = importlib.util.find_spec(STAGES[stage])
    assert spec is not None
    assert spec.origin is not None
    functions = [
        node.name
        for node in ast.parse(Path(spec.origin).read_text()).body
        if isinstance(node, ast.FunctionDef)
    ]
    assert {"plan", stage} <= set(functions)


def test_modules_are_short_and_say_their_place() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        lines, docstring = len(text.splitlines()), ast.get_docstring(ast.parse(text))
        if not docstring:
            wrong.append(f"{path.name}: no sentence says its place")
        if lines > 400:
            wrong.append(f"{path.name}: {lines} lines hold two nouns; about 300 is the aim")
    assert wrong == []
