#!/bin/bash
# Pretrained generalists and two programs trained from scratch, on the annotated boxes of docs/study/usiigaci.sh:
# as they are (N = 0), and after learning from 1, 5 and all boxes. It continues where it was stopped.
#   CELLPOSE4=/envs/cellpose4/bin/python CPSAM=/weights/cpsam docs/study/generalist.sh FOLDER
# FOLDER is that of usiigaci.sh. Each program has a Python of its own, and runs only where that is given:
#   CELLPOSE4, CPSAM            Cellpose-SAM, and its weights
#   CELLPOSE3, CYTO3            Cellpose 3; with weights (cyto3) also pretrained, without from scratch alone
#   MICROSAM, MICROSAM_WEIGHTS  micro-sam, and the checkpoint of vit_b_lm
#   STARDIST                    StarDist, from scratch
# What was not given is not compared: docs/results.md must say so. DRY=--dry-run shows what would be done.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)/programs
H="${H:-python -m hpc_isl.submit}"
cd "$1"

programs=() pretrained=() scratch=()
program() {  # NAME PYTHON SCRIPT, then further arguments of both commands
  local name=$1 python=$2 script=$here/$3 more=""; shift 3
  for word in "$@"; do more+=", \"$word\""; done
  programs+=("{name: $name, train: [\"$python\", \"$script\", train, \"{images}\", \"{labels}\", \"{model}\", \"{seed}\"$more], predict: [\"$python\", \"$script\", predict, \"{images}\", \"{model}\", \"{out}\"$more], time_limit_s: 36000}")
}
if [ -n "${CELLPOSE4:-}" ] && [ -f "${CPSAM:-}" ]; then
  program cellpose-sam "$CELLPOSE4" cellpose_program.py --weights "$CPSAM"; pretrained+=(cellpose-sam)
fi
if [ -n "${CELLPOSE3:-}" ] && [ -f "${CYTO3:-}" ]; then
  program cyto3 "$CELLPOSE3" cellpose_program.py --weights "$CYTO3"; pretrained+=(cyto3)
fi
if [ -n "${MICROSAM:-}" ] && [ -f "${MICROSAM_WEIGHTS:-}" ]; then
  program micro-sam "$MICROSAM" microsam_program.py --weights "$MICROSAM_WEIGHTS"; pretrained+=(micro-sam)
fi
[ -z "${CELLPOSE3:-}" ] || { program cellpose3-scratch "$CELLPOSE3" cellpose_program.py; scratch+=(cellpose3-scratch); }
[ -z "${STARDIST:-}" ] || { program stardist-scratch "$STARDIST" stardist_program.py; scratch+=(stardist-scratch); }
[ ${#programs[@]} -gt 0 ] || { echo "no program is given: see the head of $0" >&2; exit 1; }

list() { local IFS=,; echo "$*"; }
{
  cat usiigaci.yaml | grep -v '^\(arm\|n\):'
  echo "stage: finetune"
  echo "over:"
  [ ${#pretrained[@]} -eq 0 ] || echo "  - {arm: [$(list "${pretrained[@]}")], n: [0], draw: [0]}"
  echo "  - {arm: [$(list imagenet "${pretrained[@]}" "${scratch[@]}")], n: [1, 5], draw: [0, 1, 2]}"
  echo "  - {arm: [$(list imagenet "${pretrained[@]}" "${scratch[@]}")], n: [all], draw: [0]}"
  echo "programs:"
  printf '  - %s\n' "${programs[@]}"
} > generalist.yaml
if [ -z "${DRY:-}" ] && [ -d runs/sweep/generalist ]; then $H resume generalist; else
  $H sweep generalist.yaml --name generalist ${DRY:-}
fi
[ -n "${DRY:-}" ] || $H report generalist
