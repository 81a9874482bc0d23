"""The entry point of `python -m hpc_isl.stages.synthetic`."""

import sys

from hpc_isl.stages.synthetic.stage import main

sys.exit(main())
