"""The door, with the stage that only counts."""

import counting  # noqa: F401  (registers itself)

from hpc_isl.submit import main

main()
