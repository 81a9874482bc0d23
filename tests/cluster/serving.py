"""Another rank of a pooled job, as on another node: `python serving.py RUN_FOLDER [MEMORY]`."""

import sys
from pathlib import Path

from hpc_isl.cluster.dask_pool.pool import serve
from hpc_isl.run import Attempt, Run
from hpc_isl.site import Site

if __name__ == "__main__":
    memory = sys.argv[2] if len(sys.argv) > 2 else None
    serve(Attempt(Run(Path(sys.argv[1])), rank=1, size=2), Site(workers=1, memory=memory))
