"""The door, with a stage that only counts, and a pooled one that computes squares."""

import counting  # noqa: F401  (registers itself)
import pooling  # noqa: F401  (so does this)

from hpc_isl.submit import main

main()
