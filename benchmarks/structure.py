"""What a reader of the code meets: lines, files, comments, functions called once, files that a call opens.

    python benchmarks/structure.py [TREE ...] [--calls]

Prints one column for each checkout (default: this one), and the last as a share of the first. Small functions
are those of at most six lines, docstring apart, whose name occurs once outside its definition in the package.
With `--calls`, real calls on a small synthetic plate are recorded: how many files of the package have a
function that runs while a pretraining is submitted, in the rank that pretrains, in the one that fine-tunes,
and in the process that segments a field. Recipes, sites and errors are left out of that count, because
whoever follows a call need not read them.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

SMALL = 6  # lines of a body
SHORT = 50  # lines of a module
FOR_TOOLS = ("# noqa", "# fmt:", "# type:", "# pragma")
APART = (
    "recipe",
    "recipes/",
    "strict",
    "many",
    "site",
    "mistake",
    "errors",
)  # not followed by a reader of a call

# Put before all else on the path of every process of a call: it notes each file whose functions run there.
RECORDER = """
import os, sys, threading
package, folder, seen = os.environ["STRUCTURE_PACKAGE"], os.environ["STRUCTURE_FOLDER"], set()
def note(frame, event, argument):
    name = frame.f_code.co_filename
    if event == "call" and name not in seen:
        seen.add(name)
        if name.startswith(package) and frame.f_code.co_name != "<module>":
            with open(os.path.join(folder, str(os.getpid())), "a") as stream:
                stream.write(name[len(package) + 1:] + "\\n")
        elif frame.f_code.co_name == "<module>":
            seen.discard(name)
sys.setprofile(note); threading.setprofile(note)
"""


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("trees", nargs="*", type=Path, default=[Path(__file__).parents[1]], metavar="TREE")
    words.add_argument("--calls", action="store_true")
    given = words.parse_args()
    columns = [
        measured(tree.resolve()) | (called(tree.resolve()) if given.calls else {}) for tree in given.trees
    ]
    for name, first in columns[0].items():
        values = [column[name] for column in columns]
        share = f"{values[-1] / first:8.2f}" if len(values) > 1 and first else ""
        print(f"{name:<46}" + "".join(f"{round(value, 1):>10g}" for value in values) + share)


# ---------------------------------------------------------------- the source


def measured(tree: Path) -> dict[str, float]:
    """What can be counted without running anything."""
    sources = {path: path.read_text() for path in sorted((tree / "hpc_isl").rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in sources.items()}
    lines = sum(text.count("\n") for text in sources.values())
    small = list(called_once(trees))
    return {
        "lines": lines,
        "files": len(sources),
        "files of fewer than 50 lines": sum(text.count("\n") < SHORT for text in sources.values()),
        "comments, % of lines": 100 * sum(map(comments, sources.values())) / lines,
        "functions": sum(
            isinstance(node, ast.FunctionDef) for one in trees.values() for node in ast.walk(one)
        ),
        "small functions called once": len(small),
        "  of them private": sum(name.startswith("_") for name in small),
        "imports in a circle, packages of cluster": len(circular(trees, tree / "hpc_isl" / "cluster")),
    }


def comments(text: str) -> int:
    """The number of lines that hold a comment for people, not for tools."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    return sum(not text.startswith(FOR_TOOLS) for text in found.values())


def called_once(trees: Mapping[Path, ast.Module]) -> Iterator[str]:
    """Names of the functions and methods of few lines that one place of the package mentions."""
    mentioned = Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, (ast.Name, ast.Attribute))
    )
    for tree in trees.values():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("__"):
                continue
            if body_lines(node) <= SMALL and mentioned[node.name] == 1:
                yield node.name


def body_lines(node: ast.FunctionDef) -> int:
    """Lines below the signature, without the docstring."""
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    documented = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
    return (node.end_lineno or 0) - first.lineno + 1 - documented


def circular(trees: Mapping[Path, ast.Module], folder: Path) -> set[str]:
    """The packages below a folder from which one comes back to them by imports, deferred ones included."""
    knows: dict[str, set[str]] = {}
    for path, tree in trees.items():
        if folder not in path.parents:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hpc_isl.cluster"):
                knows.setdefault(part_of(path, folder), set()).update(targets(node, folder))
    reached = {part: set(others) - {part} for part, others in knows.items()}
    for _ in reached:
        reached = {p: o | {n for other in o for n in reached.get(other, ())} for p, o in reached.items()}
    return {part for part, others in reached.items() if part in others}


def part_of(path: Path, folder: Path) -> str:
    """The package or module directly below the folder that a file belongs to."""
    return path.relative_to(folder).parts[0].removesuffix(".py")


def targets(node: ast.ImportFrom, folder: Path) -> set[str]:
    """What an import from below the folder names, as packages or modules directly below it."""
    parts = (node.module or "").split(".")[2:]
    if parts:
        return {parts[0]}
    return {alias.name for alias in node.names if list(folder.glob(f"{alias.name}*"))}


# ---------------------------------------------------------------- real calls


def called(tree: Path) -> dict[str, float]:
    """How many files of the package have functions that run in each of four calls."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "recorder").mkdir()
        (work / "recorder" / "sitecustomize.py").write_text(RECORDER)

        def call(*words: str) -> list[set[str]]:
            """Files by process: the call itself first, then the others in the order of their start."""
            folder = Path(tempfile.mkdtemp(dir=work))
            told = os.environ | {
                "PYTHONPATH": f"{work / 'recorder'}:{tree}", "STRUCTURE_FOLDER": str(folder),
                "STRUCTURE_PACKAGE": str(tree / "hpc_isl"), "HPC_ISL_RUNS": str(work / "runs"),
            }  # fmt: skip
            process = subprocess.Popen(
                [sys.executable, *words], env=told, cwd=work, stdout=subprocess.DEVNULL
            )
            if process.wait():
                raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
            others = sorted(folder.iterdir(), key=lambda path: path.stat().st_ctime)
            others.sort(key=lambda path: path.name != str(process.pid))
            return [followed(path) for path in others]

        submit = ("-m", "hpc_isl.submit")
        synthetic = "hpc_isl.stages.synthetic"
        call("-m", synthetic, "export", "--fields", "1")
        call(*submit, "convert", "source=export", "out=plate.zarr", "plate_map=export/plate_map.csv")
        call(*submit, "annotate", "import", "export/truth/nuclei", "plate=plate.zarr", "labels=nuclei")
        pretrain = call(
            *submit, "pretrain", "demo.yaml", "plates=[plate.zarr]", "--name", "isl", "train.steps=2",
            "train.crop=64", "train.batch=4", "train.micro_batch=4", "site.cpus=1",
        )  # fmt: skip
        finetune = call(
            *submit, "finetune", "finetune_nuclei.yaml", "pretrained=isl", "plates=[plate.zarr]",
            "arm=random+isl", "n=1", "labels=nuclei", "--name", "nuc", "train.steps=2", "train.crop=64",
            "train.batch=4", "train.micro_batch=4", "site.cpus=1",
        )  # fmt: skip
        segment = call(
            *submit, "segment", "model=nuc", "plates=[plate.zarr]", "labels=found", "--name", "all",
            "site.cpus=1",
        )  # fmt: skip
    field = {
        file
        for process in segment[1:]
        for file in process
        if any("field" in f or "work" in f for f in process)
    }
    return {
        "files of a submission": len(pretrain[0]),
        "files of a pretraining": len(set().union(*pretrain[1:])),
        "files of a fine-tuning": len(set().union(*finetune[1:])),
        "files of a field through segment": len(field),
    }


def followed(path: Path) -> set[str]:
    """The files noted by one process, but those that a reader need not follow."""
    return {line for line in path.read_text().splitlines() if not line.startswith(APART)}


if __name__ == "__main__":
    main()
