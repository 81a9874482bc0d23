"""Where ranks run: Slurm, an allocation, this machine."""
