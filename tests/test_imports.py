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

from hpc_isl.stages.stage_table import STAGES

PACKAGE = Path(__file__).parents[1] / "hpc_isl"
BASE = {
    "hpc_isl", "errors", "device", "files", "recipes", "metadata_changes", "plate_home", "site",
    "sbatch_flags", "run", "tiles", "seeds", "tasks",
}  # fmt: skip
LIBRARIES = {"plates", "learning", "objects"}
# The lower a layer, the fewer it may import.
MAY_IMPORT = {
    "base": {"base"},
    "plates": {"base", "plates"},
    "objects": {"base", "objects"},
    "learning": {"base", "learning"},
    "stages": {"base", "stages", *LIBRARIES},
    "cluster": {"base", "cluster"},
    "cli": {"base", "cluster", "cli"},
    "api": {"base", "stages", "cluster", "api", *LIBRARIES},
}
# learning may use these of the plates; nothing else crosses from library to library.
BRIDGE = {"hpc_isl.plates.store", "hpc_isl.plates.plate", "hpc_isl.plates.statistics"}
HEAVY = {
    "torch",
    "torchvision",
    "zarr",
    "dask",
    "distributed",
    "mlflow",
    "tensorstore",
    "scipy",
    "skimage",
    "pandas",
}
# inspect, validate, pack, report and table submit nothing; status compares the labels of a segmentation
DIRECT = ("report.stage", "table.stage", "segment.checks")
ALLOWED = {("cli/commands.py", f"hpc_isl.stages.{name}") for name in DIRECT}
PLATES = ("inspect", "set_metadata", "pack", "convert.receipt", "overview.stage")
ALLOWED |= {("cli/setup_commands.py", f"hpc_isl.stages.{name}") for name in PLATES}
ALLOWED |= {("cli/export_command.py", f"hpc_isl.stages.export.{name}") for name in ("labels", "model")}
ALLOWED |= {("cli/edit_command.py", f"hpc_isl.stages.annotate.{name}") for name in ("edit", "edit_window")}
# A run of segment ends with its table.
ASKED = {("stages/segment/finish.py", "hpc_isl.stages.table.stage")}
DASK_POOL = {f"cluster/dask_pool/{part}.py" for part in ("pool", "scheduling", "processes")}
ONLY = {
    "submitit": {"cluster/executors/slurm.py"},
    # served.py is run by MLflow itself and imported by nothing.
    "mlflow": {"cluster/tracking/mlflow_run.py", "cluster/tracking/pages.py", "learning/inference/served.py"},
    "dask": {*DASK_POOL, "api/plates.py"},
    "distributed": DASK_POOL,
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
    """Of a file below the package, or of a module: base, a library, stages, cluster or the CLI."""
    first = name.removeprefix("hpc_isl.").removesuffix(".py").replace(".", "/").split("/")[0]
    # The table of stages imports none of them: recipes and the cluster read it.
    if first in BASE or first == "__init__" or "stage_table" in name:
        return "base"
    return "cli" if first == "submit" else first


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


def test_each_layer_imports_only_those_below_it() -> None:
    wrong = []
    for one in ALL:
        if one.top != "hpc_isl" or one.typed or (one.file, one.module) in ALLOWED:
            continue
        bridge = layer(one.file) == "learning" and one.module in BRIDGE
        if layer(one.module) not in MAY_IMPORT[layer(one.file)] and not bridge:
            wrong.append(f"{one.file} imports {one.module}")
    assert wrong == []


def verb(name: str) -> str:
    """Of a file or module of the stages: the verb that it belongs to, or shared."""
    return name.removeprefix("hpc_isl.").removesuffix(".py").replace(".", "/").split("/")[1]


def test_stages_do_not_import_each_other() -> None:
    inside = [one for one in ALL if layer(one.file) == "stages" and one.module.startswith("hpc_isl.stages.")]
    wrong = [
        f"{one.file} imports {one.module}"
        for one in inside
        if verb(one.module) not in (verb(one.file), "shared") and (one.file, one.module) not in ASKED
    ]
    assert inside
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Also not inside functions, where an import hides a circle that is there."""
    known: dict[str, set[str]] = {}
    for one in ALL:
        if one.top == "hpc_isl" and not one.typed and _is_module(one.module):
            own = "hpc_isl." + one.file.removesuffix(".py").replace("/", ".")
            known.setdefault(own, set()).add(one.module)
    TopologicalSorter(known).prepare()


def test_the_base_needs_nothing_heavy() -> None:
    light = {"numpy", "pydantic", "pydantic_core", "yaml", "hpc_isl"}
    wrong = []
    for one in ALL:
        third = importlib.util.find_spec(one.top) is not None and not _standard(one.top)
        if layer(one.file) == "base" and third and one.top not in light:
            wrong.append(f"{one.file} imports {one.module}")
    assert wrong == []


def _standard(name: str) -> bool:
    return name in sys.stdlib_module_names


def test_the_cli_and_the_cluster_import_nothing_heavy_until_it_is_needed() -> None:
    wrong = [
        f"{one.file} imports {one.module}"
        for one in ALL
        if layer(one.file) in ("cli", "cluster", "base") and one.top in HEAVY and not one.deferred
    ]
    assert wrong == []


# Each package of the cluster, or module beside them, may import those before it.
CLUSTER = (
    "slurm", "run_folder", "monitor", "tracking", "dask_pool", "rank", "executors", "submit", "preflight",
)  # fmt: skip


def test_packages_of_the_cluster_import_only_those_before_them() -> None:
    """Also not inside functions or for type checkers: a reader follows those imports too."""
    inside = [
        one for one in ALL if layer(one.file) == "cluster" and one.module.startswith("hpc_isl.cluster.")
    ]
    packages = {one.file: one.file.split("/")[1].removesuffix(".py") for one in inside}
    wrong = [
        f"{one.file} imports {one.module}"
        for one in inside
        if one.module.split(".")[2] not in CLUSTER[: CLUSTER.index(packages[one.file]) + 1]
    ]
    parts = {path.stem for path in (PACKAGE / "cluster").iterdir()}
    assert parts - {"__pycache__", "__init__"} == set(CLUSTER)
    assert wrong == []


@pytest.mark.parametrize("library", ONLY)
def test_some_libraries_have_one_place(library: str) -> None:
    files = {one.file for one in ALL if one.top == library}
    assert files <= ONLY[library]


def test_nothing_imports_the_file_that_mlflow_runs() -> None:
    assert [one.file for one in ALL if one.module == "hpc_isl.learning.inference.served"] == []


def test_package_files_re_export_nothing() -> None:
    """But the root, which names the public API and loads it when it is used."""
    files = {one.file for one in ALL if one.file.endswith("__init__.py") and one.module != "__future__"}
    assert files == {"__init__.py"}


RECIPES = ("hpc_isl.recipes.load", "hpc_isl.recipes.base")


def test_only_stages_and_the_cluster_import_whole_recipes() -> None:
    """Below the stages everything takes flat arguments, or a part of a recipe."""
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = str(path.relative_to(PACKAGE))
        if layer(file) in LIBRARIES:
            names = [a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
                     and n.module in RECIPES for a in n.names]  # fmt: skip
            wrong += [f"{file} sees {name}" for name in names if name == "Recipe"]
    assert wrong == []


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_has_a_module_of_its_name(stage: str) -> None:
    spec = importlib.util.find_spec(STAGES[stage].module)
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
