"""Slurm: what it is given, what it says of jobs and limits, how a job goes back into its queue."""
