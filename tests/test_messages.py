"""What the package tells people: no message advises what destroys a person's work."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "hpc_isl"
# What a message would advise, and where it may: what is replaced there was made by a computation.
DESTROYS = re.compile(r"rm -rf?\b|\b(?:remove|delete) (?:it|them|its|the folder|these)\b|overwrite=true")
ALLOWED = {
    "stages/annotate/stage.py": 1,  # a draft, or what another program computed
    "stages/segment/checks.py": 1,  # labels of another run of segment
    "stages/segment/files.py": 1,
}


def texts(path: Path) -> Iterator[str]:
    """The strings of a source file that are no docstrings, those of f-strings part by part."""
    tree = ast.parse(path.read_text())
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def test_no_message_advises_what_destroys_a_persons_work() -> None:
    """A user who does what a message says never loses what somebody drew, photographed or corrected."""
    found: dict[str, int] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        count = sum(bool(DESTROYS.search(text)) for text in texts(path))
        if count:
            found[str(path.relative_to(PACKAGE))] = count
    assert {name: count for name, count in found.items() if count > ALLOWED.get(name, 0)} == {}


def test_the_first_day_gives_drafts_other_names_than_drawn_labels() -> None:
    """README's lines, typed one after the other, never draft over labels that were imported before."""
    day = (PACKAGE.parent / "README.md").read_text().split("## The first day")[1].split("```")[1]
    lines = [line.split("#")[0] for line in day.splitlines() if "H annotate" in line]
    names = {line.split()[2]: re.findall(r"labels=(\S+)", line)[0] for line in lines}
    assert names["draft"] == names["export"] != names["import"]
