#!/usr/bin/env bash
# 2026-11-29, submitit 1.5.4.
# Believed: `additional_parameters` "forces any parameter to a given value in sbatch", as its docstring says, so that
#   {"cpus-per-task": 8} gives each task 8 CPUs.
# Seen: for parameters that submitit writes itself, the file then holds both lines. They are sorted by name before
#   `_` becomes `-`, and `-` sorts before `_`: submitit's own line comes last, and sbatch takes the last one. Spelled
#   with underscores, {"cpus_per_task": 8} replaces it. What submitit spells with a dash is the other way round:
#   {"open_mode": …} is a second line, and it wins only because `_` sorts after `-`.
# It matters because the flag is silently without effect: a job asked for 8 CPUs gets 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check submitit==1.5.4
cd "$folder"
venv/bin/python - <<'PYTHON'
from submitit.slurm.slurm import _make_sbatch_string


def lines(flag, **parameters):
    text = _make_sbatch_string(command="python", folder="logs", nodes=1, **parameters)
    found = [line for line in text.splitlines() if line.startswith(f"#SBATCH --{flag}=")]
    print(f"{parameters}\n  " + "\n  ".join(found))
    return found


dashed = lines("cpus-per-task", cpus_per_task=1, additional_parameters={"cpus-per-task": 8})
assert dashed == ["#SBATCH --cpus-per-task=8", "#SBATCH --cpus-per-task=1"], "sbatch takes the last"
plain = lines("cpus-per-task", cpus_per_task=1, additional_parameters={"cpus_per_task": 8})
assert plain == ["#SBATCH --cpus-per-task=8"]
mode = lines("open-mode", additional_parameters={"open_mode": "truncate"})
assert mode == ["#SBATCH --open-mode=append", "#SBATCH --open-mode=truncate"]
PYTHON
