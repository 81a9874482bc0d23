"""What notebooks and other programs use; `hpc_isl` offers it by name, and loads it when it is used."""
