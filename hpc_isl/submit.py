"""The entry point: python -m hpc_isl.submit VERB [RECIPE.yaml] [key=value …] [--site NAME|FILE] [--name RUN].

An installed `hpc-isl` is the same. Nothing pickled may live in `__main__`, so this module stays empty.
"""

from __future__ import annotations

from hpc_isl.cli.main import main

if __name__ == "__main__":
    main()
