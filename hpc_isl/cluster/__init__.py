"""The execution layer: runs become jobs on a laptop or on Slurm, and their records become answers."""
