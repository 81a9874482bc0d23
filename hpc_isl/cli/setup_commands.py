"""The verbs of the first day on a cluster: a site file drafted from what it says, and a pre-flight."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc_isl.cli.arguments import log, parsed, program
from hpc_isl.errors import UserError, nearest

SITE_ACTIONS = ("init", "list")
PATIENCE = "10min"


def site(argv: list[str]) -> int:
    """`site init NAME`, `site list`."""
    given = parsed(
        "site", "init NAME: drafts a site file from what Slurm says of this cluster; list: all sites", argv,
        ("--out", {"type": Path, "help": "the file to write; default ~/.config/hpc_isl/sites/NAME.yaml"}),
        ("--slurm-conf", {"type": Path, "help": "configuration of the cluster, where there are several"}),
    )  # fmt: skip
    if given is None:
        return 0
    action, *names = given.words or ["list"]
    if action not in SITE_ACTIONS:
        raise UserError(f"site {action}: no such action; {nearest(action, SITE_ACTIONS)}")
    if action == "list":
        log("\n".join(_listed()))
        return 0
    if len(names) != 1:
        raise UserError(f"site init: name the site, as in {program()} site init mycluster")
    return _init(names[0], given)


def _init(name: str, given: Any) -> int:
    path = _free(name, given.out)
    if given.slurm_conf is not None and not given.slurm_conf.is_file():
        raise UserError(f"--slurm-conf {given.slurm_conf}: there is no such file")
    from hpc_isl.cluster.slurm.site_template import draft_site
    from hpc_isl.files import write_atomic
    from hpc_isl.site import load

    text = draft_site(name, given.slurm_conf)
    write_atomic(path, text)
    load(str(path), [])
    log(f"wrote {path}:\n")
    log("".join(f"    {line}\n" for line in text.splitlines()))
    call = f"{program()} doctor --site {shlex.quote(str(given.out) if given.out else name)}"
    log(f"next: read it, change what is not right, then\n      {call}")
    return 0


def _free(name: str, out: Path | None) -> Path:
    """Where the site will be written; nothing is overwritten."""
    if not re.fullmatch(r"[\w][\w.-]*", name) or name.endswith((".yaml", ".yml")):
        raise UserError(
            f"site init {name!r}: a site's name is one word of letters, digits, - and _; --out names a file"
        )
    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}: a site is a YAML file; write --out {out}.yaml")
    from hpc_isl.site import places

    path = out or places()[1] / f"{name}.yaml"
    if path.exists():
        raise UserError(
            f"site init {name}: {path} is there already; change that one, or choose another name or --out"
        )
    return Path(os.path.abspath(path))


def _listed() -> Iterator[str]:
    """Each site, where it is kept, and where it computes."""
    from hpc_isl.site import load, places

    files: dict[str, Path] = {}
    for folder in places():
        for path in sorted(folder.glob("*.yaml")):
            files.setdefault(path.stem, path)
    width = max(map(len, files), default=0)
    for name, path in files.items():
        try:
            found = load(str(path), [])
            what = found.executor + (f", partition {found.partition}" if found.partition else "")
        except UserError as mistake:
            what = str(mistake).splitlines()[-1].strip()
        yield f"{name:<{width}}  {what}  ({path})"


def doctor(argv: list[str]) -> int:
    """`doctor --site NAME`."""
    given = parsed(
        "doctor", "[site.key=value …]: looks at this machine and, on Slurm, at compute nodes", argv,
        ("--site", {"default": "laptop", "help": "name or file of a site; default laptop"}),
        ("--patience", {"default": PATIENCE, "help": f"how long to wait for the nodes; default {PATIENCE}"}),
    )  # fmt: skip
    if given is None:
        return 0
    keys = [word.removeprefix("site.") for word in given.words if word.startswith("site.") and "=" in word]
    stray = [word for word in given.words if not word.startswith("site.") or "=" not in word]
    if stray:
        raise UserError(
            f"doctor {stray[0]}: only site.key=value is taken here; a site is named with --site NAME"
        )
    from hpc_isl.cluster.preflight import doctor as checks
    from hpc_isl.site import load, runs_root

    patience = _minutes(given.patience)
    where = load(given.site, keys)
    return checks.doctor(where, runs_root(where), patience * 60.0, log)


def _minutes(text: str) -> int:
    from hpc_isl.site import minutes

    try:
        return minutes(text)
    except ValueError as error:
        raise UserError(f"--patience {text}: {error}") from None
