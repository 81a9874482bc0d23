"""The entry point of `python -m hpc_isl.stages.synthetic`, a module that Python asks for."""

import sys

from hpc_isl.stages.synthetic.stage import main

sys.exit(main())
