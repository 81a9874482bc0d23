"""The recipe of the container: what it copies is there, and the package installs from just that."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "slurm" / "hpc_isl.def").read_text()
HEAD, *PARTS = re.split(r"^%(\w+)[ \t]*\n", TEXT, flags=re.MULTILINE)
SECTIONS = dict(zip(PARTS[::2], PARTS[1::2], strict=True))
COPIES = [line.split() for line in SECTIONS["files"].splitlines() if line.strip()]


def test_it_begins_with_its_base_and_has_its_sections() -> None:
    head = dict(line.split(": ") for line in HEAD.splitlines() if ":" in line and not line.startswith("#"))
    assert head["Bootstrap"] == "docker"
    name, version = re.fullmatch(r"(python):(3\.\d+)-slim", head["From"]).groups()  # type: ignore[union-attr]
    assert name == "python"
    least = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert least is not None
    assert version >= least[1]
    assert {"files", "post", "runscript"} <= set(SECTIONS)
    assert "--require-hashes" in SECTIONS["post"]


@pytest.mark.parametrize("section", ["post", "runscript", "environment", "test"])
def test_its_shell_lines_are_legal(section: str) -> None:
    done = subprocess.run(["sh", "-n"], input=SECTIONS[section], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_installs_from_what_is_copied(tmp_path: Path) -> None:
    for source, target in COPIES:
        assert target == f"/opt/hpc_isl/{source}", "the place that %post changes to"
        here = tmp_path / "opt" / source
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, here, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            here.parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, here)
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=tmp_path / "opt", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "hpc_isl/submit.py",
        "hpc_isl/configs/pretrain.yaml",
        "hpc_isl/configs/sites/slurm.yaml",
    } <= inside
