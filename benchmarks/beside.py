"""Runs a benchmark by this tree and by an earlier commit, in turns, and prints both and their ratio.

    git worktree add /tmp/earlier 4526d8e
    python benchmarks/beside.py [--times 3] /tmp/earlier scale.py --repeats 7

A line is a measurement, and what stands before its colon its name; without a colon, all of it but its
figures. Of each the first figure is compared: medians of all times, and the ratio of each pair. Lines that
one of the trees does not print are left out.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

FIGURE = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("earlier", type=Path, help="a checkout of the earlier commit")
    words.add_argument("script", help="in benchmarks/ of both, as scale.py")
    words.add_argument("--times", type=int, default=3)
    words.add_argument("arguments", nargs=argparse.REMAINDER, help="of the script")
    given = words.parse_args()
    trees = {"earlier": given.earlier.resolve(), "now": Path(__file__).resolve().parents[1]}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for _ in range(given.times):
        for name, tree in trees.items():
            found[name].append(figures(printed(tree, given.script, given.arguments)))
    labels = [
        label for label in found["now"][0] if all(label in one for own in found.values() for one in own)
    ]
    print(f"{'':<60}{'earlier':>10}{'now':>10}   now / earlier, each pair")
    for label in labels:
        earlier, now = ([one[label] for one in found[name]] for name in trees)
        ratios = "  ".join(f"{new / old:.2f}" if old else "-" for old, new in zip(earlier, now, strict=True))
        print(f"{label:<60.60}{median(earlier):>10.4g}{median(now):>10.4g}   {ratios}")


def printed(tree: Path, script: str, arguments: list[str]) -> str:
    """Returns what a benchmark of a tree prints, with the tree's own package."""
    command = [sys.executable, f"benchmarks/{script}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.run(
        command, cwd=tree, env=environment, text=True, check=True, stdout=subprocess.PIPE
    ).stdout


def figures(text: str) -> dict[str, float]:
    """Returns the name of each measurement, and its first figure."""
    found = {}
    for line in text.splitlines():
        name, _, after = line.rpartition(":")
        own = FIGURE.findall(after)
        if own:
            found[" ".join((name or FIGURE.sub("#", after)).split())] = float(own[0].replace(",", ""))
    return found


if __name__ == "__main__":
    main()
