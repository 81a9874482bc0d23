"""How many jobs may be in Slurm at once: which limit sbatch has met, and what to lower."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from hpc_isl.cluster.slurm.commands import ask, cluster_of
from hpc_isl.site import Site


@dataclass(frozen=True)
class Limit:
    """One that Slurm's accounting keeps.

    Attributes:
        name: as the staff set it.
        table, column: where sacctmgr shows it.
        who: may have how many jobs.
    """

    name: str
    table: str
    column: str
    who: str


# By what sbatch calls them.
LIMITS = {
    "AssocMaxSubmitJobLimit": Limit("MaxSubmitJobs", "assoc", "MaxSubmit", "you may have"),
    "AssocGrpSubmitJobsLimit": Limit(
        "GrpSubmitJobs", "assoc", "GrpSubmit", "all users of your account together may have"
    ),
    "QOSMaxSubmitJobPerUserLimit": Limit(
        "MaxSubmitJobsPerUser of the qos", "qos", "MaxSubmitPU", "a user may have"
    ),
    "MaxSubmitJobsPerAccount": Limit(
        "MaxSubmitJobsPerAccount of the qos", "qos", "MaxSubmitPA", "an account may have"
    ),
    "QOSGrpSubmitJobsLimit": Limit(
        "GrpSubmitJobs of the qos", "qos", "GrpSubmit", "all users together may have"
    ),
}


def explained(errors: str, site: Site, jobs: int) -> str:
    """What to do about it, where sbatch refused these `jobs` for their number; else empty."""
    limit = next((limit for name, limit in LIMITS.items() if name in errors), None)
    if limit is None:
        return ""
    most, there = _most(limit, site), _in_the_queue(site)
    allowed = (
        f"{limit.who} {most if most is not None else 'only so many'} jobs in Slurm at once ({limit.name})"
    )
    if jobs == 1:
        return f"{allowed}, and {there} of yours are there: wait until one has ended"
    room = f"at most {max(0, most - there)}" if most is not None else "fewer"
    return (
        f"{allowed}; {there} of yours are there, and this sweep is {jobs} more: each element counts, also "
        f"with site.array. Lower their number: {room}, by fewer values in `over`. The same command with more "
        "values widens the sweep when these have ended"
    )


def _most(limit: Limit, site: Site) -> int | None:
    """None: it is not known, or there are several such."""
    if limit.table == "qos":
        which = [f"name={site.qos}"] if site.qos else []
    else:
        whose = f"user={pwd.getpwuid(os.getuid()).pw_name}" if limit.column == "MaxSubmit" else "user="
        which = [whose, *([f"account={site.account}"] if site.account else [])]
    command = ["sacctmgr", "-n", "-P", "show", limit.table, *which, f"format={limit.column}"]
    code, out, _ = ask(command, site.slurm_conf)
    found = {int(line) for line in out.splitlines() if line.isdecimal()}
    return found.pop() if not code and len(found) == 1 else None


def _in_the_queue(site: Site) -> int:
    conf, cluster = cluster_of(site)
    _, out, _ = ask(["squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i|"], conf, cluster=cluster)
    return out.count("|")
