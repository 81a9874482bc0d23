"""What to compute: the models of all recipes; `hpc_isl.recipes.load` reads and hashes them."""
