"""How many jobs may be in Slurm at once: which limit sbatch has met, and what to lower."""

from __future__ import annotations

import os

from hpc_isl.cluster.slurm.commands import ask, cluster_of
from hpc_isl.site import Site, user_name

# What sbatch prints -> name as the staff set it, where sacctmgr shows it, who may have how many jobs.
LIMITS = {
    "AssocMaxSubmitJobLimit": ("MaxSubmitJobs", "assoc", "MaxSubmit", "you may have"),
    "AssocGrpSubmitJobsLimit": (
        "GrpSubmitJobs", "assoc", "GrpSubmit", "all users of your account together may have",
    ),
    "QOSMaxSubmitJobPerUserLimit": (
        "MaxSubmitJobsPerUser of the qos", "qos", "MaxSubmitPU", "a user may have",
    ),
    "MaxSubmitJobsPerAccount": (
        "MaxSubmitJobsPerAccount of the qos", "qos", "MaxSubmitPA", "an account may have",
    ),
    "QOSGrpSubmitJobsLimit": ("GrpSubmitJobs of the qos", "qos", "GrpSubmit", "all users together may have"),
}  # fmt: skip


def explained(errors: str, site: Site, jobs: int) -> str:
    """Returns what to do where sbatch refused these `jobs` for their number; else an empty text."""
    limit = next((limit for name, limit in LIMITS.items() if name in errors), None)
    if limit is None:
        return ""
    name, table, column, who = limit
    most = _most(table, column, site)
    conf, cluster = cluster_of(site)
    _, out, _ = ask(["squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i|"], conf, cluster=cluster)
    queued = out.count("|")
    allowed = f"{who} {most if most is not None else 'only so many'} jobs in Slurm at once ({name})"
    if jobs == 1:
        return f"{allowed}, and {queued} of yours are there: wait until one has ended"
    room = f"at most {max(0, most - queued)}" if most is not None else "fewer"
    return (
        f"{allowed}; {queued} of yours are there, and this sweep is {jobs} more: each element counts, also "
        f"with site.array. Lower their number: {room}, by fewer values in `over`. The same command with more "
        "values extends the sweep when these have ended"
    )


def _most(table: str, column: str, site: Site) -> int | None:
    """Returns the limit; None: it is not known, or there are several such."""
    if table == "qos":
        which = [f"name={site.qos}"] if site.qos else []
    else:
        whose = f"user={user_name()}" if column == "MaxSubmit" else "user="
        which = [whose, *([f"account={site.account}"] if site.account else [])]
    command = ["sacctmgr", "-n", "-P", "show", table, *which, f"format={column}"]
    code, out, _ = ask(command, site.slurm_conf)
    values = {int(line) for line in out.splitlines() if line.isdecimal()}
    return values.pop() if not code and len(values) == 1 else None
