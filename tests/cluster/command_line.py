"""The command line, with a stage that only counts, and a pooled one that computes squares."""

import os

import counting  # noqa: F401  (registers itself)
import pooling  # noqa: F401  (so does this)

from hpc_isl.cluster.executors import local_array
from hpc_isl.submit import main

local_array.LINE_S = float(os.environ.get("LINE_S", local_array.LINE_S))
main()
