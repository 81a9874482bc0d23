"""Flags of sbatch: one spelling for each, those that a site has keys for, and the flags of a job."""

from __future__ import annotations

import re
from collections.abc import Mapping

Value = str | int | bool

SHORT = {
    "A": "account", "a": "array", "B": "extra-node-info", "b": "begin", "C": "constraint",
    "c": "cpus-per-task", "D": "chdir", "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus",
    "H": "hold", "h": "help", "i": "input", "J": "job-name", "k": "no-kill", "L": "licenses",
    "M": "clusters", "m": "distribution", "N": "nodes", "n": "ntasks", "O": "overcommit", "o": "output",
    "p": "partition", "Q": "quiet", "q": "qos", "S": "core-spec", "s": "oversubscribe", "t": "time",
    "V": "version", "v": "verbose", "W": "wait", "w": "nodelist", "x": "exclude",
}  # fmt: skip
LONG = frozenset(  # of Slurm 22.05 to 25.11
    """account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment
    consolidate-segments constraint container container-id contiguous core-spec cores-per-socket cpu-freq
    cpus-per-gpu cpus-per-task deadline delay-boot dependency distribution error exclude exclusive export
    export-file extra extra-node-info get-user-env gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket
    gpus-per-task gres gres-flags help hint hold ignore-pbs input job-name kill-on-invalid-dep licenses
    mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue
    nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket
    oom-kill-step open-mode output overcommit oversubscribe parsable partition power prefer priority profile
    propagate qos quiet reboot requeue reservation resources segment signal sockets-per-node spread-job
    spread-segments stepmgr switches test-only thread-spec threads-per-core time time-min tmp tres-bind
    tres-per-task uid usage use-min-nodes verbose version wait wait-all-nodes wckey wrap""".split()  # noqa: SIM905  (a list of a hundred quoted words is hard to read)
)
REFUSED = {
    "array": "a sweep makes an array, and site.array says how many of its elements run at once",
    "parsable": "the number of the job is read from what sbatch says without it",
    "test-only": "--dry-run asks Slurm when the job would start",
    "wait": "--wait of hpc_isl waits for the run",
    "wrap": "the script is written by hpc_isl",
    "help": "it is no flag of a job", "usage": "it is no flag of a job", "version": "it is no flag of a job",
}  # fmt: skip
# Flag that a site gives -> default flags that sbatch refuses beside it, or would weigh against it.
EXCLUDED = {
    "ntasks": ("ntasks-per-node",), "cpus-per-gpu": ("cpus-per-task",), "mem-per-cpu": ("mem",),
    "mem-per-gpu": ("mem",), "gpus": ("gpus-per-node",), "gpus-per-socket": ("gpus-per-node",),
    "gpus-per-task": ("gpus-per-node",), "no-requeue": ("requeue",), "requeue": ("no-requeue",),
}  # fmt: skip
NUMBERS = {"nodes": "nodes", "ntasks-per-node": "processes", "cpus-per-task": "cpus", "gpus-per-node": "gpus"}
TEXTS = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint",
    "reservation": "reservation", "mail-user": "mail",
}  # fmt: skip


def full_name(flag: str) -> str:
    """Returns a flag as sbatch's help writes it: `c`, `--cpus_per_task`, `cpus-per-t` are `cpus-per-task`."""
    name = flag.lstrip("-").replace("_", "-")
    if name in LONG:
        return name
    # sbatch takes the beginning of a name for the name where only one begins so. An unknown flag stays.
    completions = [long_name for long_name in LONG if long_name.startswith(name)]
    return SHORT.get(name) or (completions[0] if len(completions) == 1 else name)


def normalized_flags(flags: Mapping[str, Value]) -> dict[str, Value]:
    """Returns the flags, each as sbatch's help writes it.

    Raises:
        ValueError: a flag is given twice, or would keep hpc_isl from handing its job over.
    """
    normalized: dict[str, Value] = {}
    for name, value in flags.items():
        flag = full_name(str(name))
        if flag in normalized:
            raise ValueError(f"sbatch: {name} is the flag {flag}, which is given already; give it once")
        if flag in REFUSED:
            raise ValueError(f"sbatch: {name} cannot be given: {REFUSED[flag]}")
        if flag == "clusters" and "," in str(value):
            raise ValueError(f"sbatch: clusters={value}: a run is followed on one cluster; name that one")
        normalized[flag] = value
    return normalized


def site_key(flag: str, value: Value) -> tuple[str, object] | None:
    """Returns the key of a site that says the same, with its value; None where only sbatch can read it."""
    text = str(value)
    if isinstance(value, bool):
        return None
    if flag in NUMBERS and text.isdecimal():
        return NUMBERS[flag], int(text)
    if flag in TEXTS:
        return TEXTS[flag], text
    if flag == "mem" and re.fullmatch(r"\d+[KMGT]?", text):
        return "memory", text if text[-1].isalpha() else f"{text}M"
    # sbatch reads `90`, `90:00`, `1:30:00`, `1-12`, `1-12:30` and `1-12:30:00`.
    if flag != "time" or not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return None
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not days and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    total = int(days or 0) * 1440 + hours * 60 + minutes + (seconds > 0)
    return ("time", f"{total}min") if total else None


def merged(defaults: Mapping[str, object], given: Mapping[str, Value]) -> dict[str, object]:
    """Returns the flags of a job, each once: those given by the site, and the default ones that suit them.

    None and False are not written: with `false` a site takes a default flag away. A job waits for the
    dependencies of both.
    """
    excluded = {name for flag in given for name in EXCLUDED.get(flag, ())}
    if "gpu" in str(given.get("gres")):
        excluded.add("gpus-per-node")
    flags = {flag: value for flag, value in defaults.items() if flag not in excluded} | dict(given)
    if defaults.get("dependency") and given.get("dependency"):
        flags["dependency"] = f"{defaults['dependency']},{given['dependency']}"
    return {flag: value for flag, value in flags.items() if value is not None and value is not False}
