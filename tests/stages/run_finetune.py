"""One rank of a fine-tuning run, for tests that need real processes: run_finetune.py FOLDER RANK SIZE."""

import sys
from pathlib import Path

from hpc_isl.recipes.finetune import FinetuneRecipe
from hpc_isl.recipes.strict import parse, read_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.finetune.stage import finetune

if __name__ == "__main__":
    folder, rank, size = sys.argv[1:]
    attempt = Attempt(Run(Path(folder)), 0, int(rank), int(size), int(rank), int(size), cpus=1)
    with attempt.recorded():
        finetune(parse(FinetuneRecipe, read_yaml(attempt.run.recipe), "recipe"), attempt)
