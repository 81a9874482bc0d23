"""One rank of a pretraining run, for tests that need real processes: run_pretrain.py FOLDER RANK SIZE."""

import sys
from pathlib import Path

from hpc_isl.recipes.pretrain import PretrainRecipe
from hpc_isl.recipes.strict import parse, read_yaml
from hpc_isl.run import Attempt, Run
from hpc_isl.stages.pretrain.stage import pretrain

if __name__ == "__main__":
    folder, rank, size = sys.argv[1:]
    attempt = Attempt(Run(Path(folder)), 0, int(rank), int(size), int(rank), int(size), cpus=1)
    with attempt.recorded():
        pretrain(parse(PretrainRecipe, read_yaml(attempt.run.recipe), "recipe"), attempt)
