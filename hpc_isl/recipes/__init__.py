"""What to compute: the models of all recipes; `hpc_isl.recipe` reads and hashes them."""
