"""The names that notebooks and other programs use; `hpc_isl` offers them, each loaded when it is used."""
