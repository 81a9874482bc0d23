"""The entry point of `python -m hpc_isl.stages.synthetic`, which Python runs by this name."""

import sys

from hpc_isl.stages.synthetic.stage import main

sys.exit(main())
