"""The verbs before the first run: a site file, a pre-flight, and plates that are inspected and corrected."""

from __future__ import annotations

import os
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path

from hpc_isl.cli.arguments import (
    DRY_RUN,
    ROOT,
    SITE,
    command,
    log,
    names_in,
    option,
    program,
    run_folders,
    take_keys,
)
from hpc_isl.errors import UserError, many, nearest
from hpc_isl.metadata_changes import SETTABLE

SITE_ACTIONS = ("init", "list")
PATIENCE = "10min"


@command(
    "init NAME: a site file drafted for this cluster; list: all sites", "[init NAME | list] [options]",
    "init mycluster",
    option("--out", type=Path, help="the file to write; default ~/.config/hpc_isl/sites/NAME.yaml"),
    option("--slurm-conf", type=Path, help="configuration of the cluster, where there are several"),
)  # fmt: skip
def site(arguments: Namespace) -> int:
    """Drafts a site file from what Slurm says of this cluster (init NAME), or lists all sites (list)."""
    action, *names = arguments.words or ["list"]
    if action not in SITE_ACTIONS:
        raise UserError(f"site {action}: no such action; {nearest(action, SITE_ACTIONS)}")
    if action == "list":
        log("\n".join(_site_lines()))
        return 0
    if len(names) != 1:
        raise UserError(f"site init: name the site, as in {program()} site init mycluster")
    name, conf = names[0], arguments.slurm_conf
    path = _new_site_file(name, arguments.out)  # checked first, because asking Slurm takes seconds
    if conf is not None and not conf.is_file():
        raise UserError(f"--slurm-conf {conf}: there is no such file")
    from hpc_isl.cluster.slurm.site_template import draft_site
    from hpc_isl.files import write_atomic
    from hpc_isl.site import load

    draft = draft_site(name, conf)
    write_atomic(path, draft)
    load(str(path), [])  # a draft that no stage could read would be our error, and is raised here
    log(f"wrote {path}:\n")
    log("".join(f"    {line}\n" for line in draft.splitlines()))
    call = f"{program()} doctor --site {shlex.quote(str(arguments.out) if arguments.out else name)}"
    log(f"next: read it, change what is not right, then\n      {call}")
    return 0


def _new_site_file(name: str, out: Path | None) -> Path:
    """Returns the file that will be written, which does not exist yet."""
    if not re.fullmatch(r"[\w][\w.-]*", name) or name.endswith((".yaml", ".yml")):
        raise UserError(
            f"site init {name!r}: a site's name is one word of letters, digits, - and _; --out names a file"
        )
    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}: a site is a YAML file; write --out {out}.yaml")
    from hpc_isl.site import site_folders

    path = out or site_folders()[1] / f"{name}.yaml"
    if path.exists():
        raise UserError(
            f"site init {name}: {path} exists already; change that one, or choose another name or --out"
        )
    return Path(os.path.abspath(path))


def _site_lines() -> Iterator[str]:
    """Yields a line for each site: its name, where it computes, its file."""
    from hpc_isl.site import load, site_files, site_folders

    files = site_files(site_folders())
    width = max(map(len, files), default=0)
    for name, path in files.items():
        try:
            config = load(str(path), [])
            summary = config.executor + (f", partition {config.partition}" if config.partition else "")
        except UserError as error:  # one broken file does not hide the other sites
            summary = str(error).splitlines()[-1].strip()
        yield f"{name:<{width}}  {summary}  ({path})"


@command(
    "a pre-flight of a site, on this machine and on compute nodes", "[site.key=value …] [options]",
    "--site mycluster",
    option("--site", default="laptop", help="name or file of a site; default laptop"),
    option("--patience", default=PATIENCE, help=f"how long to wait for the nodes; default {PATIENCE}"),
)  # fmt: skip
def doctor(arguments: Namespace) -> int:
    """Looks at this machine and, on Slurm, at compute nodes."""
    for word in arguments.words:
        if not word.startswith("site.") or "=" not in word:
            raise UserError(
                f"doctor {word}: only site.key=value is taken here; a site is named with --site NAME"
            )
    from hpc_isl.cluster.preflight import doctor as checks
    from hpc_isl.site import load, minutes, runs_root

    try:
        patience = minutes(arguments.patience)
    except ValueError as error:
        raise UserError(f"--patience {arguments.patience}: {error}") from None
    chosen_site = load(arguments.site, [word.removeprefix("site.") for word in arguments.words])
    return checks.doctor(chosen_site, runs_root(chosen_site), patience * 60.0, log)


# ---------------------------------------------------------------- plates


def _plates(arguments: Namespace) -> list[Path]:
    if not arguments.words:
        raise UserError(f"{arguments.verb}: name a plate, as in {program()} {arguments.verb} P01.zarr")
    return [Path(word) for word in arguments.words]


@command("what is on a plate", "PLATE.zarr …", "P01.zarr")
def inspect(arguments: Namespace) -> int:
    """Prints the layout, channels, flags, labels and omissions of plates."""
    plates = _plates(arguments)  # first, because the import takes a second
    from hpc_isl.stages.inspect import inspect as described

    for path in plates:
        log("\n".join(described(path)))
    return 0


@command(
    "checks a plate against the specification, or against the export it was made of",
    "PLATE.zarr … [--deep | --receipt | --check]", "P01.zarr --deep",
    option("--deep", action="store_true", help="every pixel against its recorded digest too"),
    option(
        "--receipt", action="store_true",
        help="compare every file of the export with the plate; writes PLATE.receipt.csv and .json beside it",
    ),
    option("--run", help="with --receipt: the run of convert, where the plate does not say how it was made"),
    option("--check", action="store_true", help="whether the plate is still as its receipt says"),
    ROOT, SITE,
)  # fmt: skip
def validate(arguments: Namespace) -> int:
    """Checks plates against the specification of OME-Zarr and against their own index, or their export."""
    plates = _plates(arguments)
    if arguments.receipt:
        return max(_write_receipt(path, arguments) for path in plates)
    if arguments.check:
        from hpc_isl.site import cpus_here
        from hpc_isl.stages.convert.receipt import check_receipt

        changes = [f"{path}: {change}" for path in plates for change in check_receipt(path, cpus_here())]
        log("\n".join(changes) if changes else "the receipt holds: pixels and copied files are as they were")
        return int(bool(changes))
    from hpc_isl.stages.inspect import validate as problems_of

    problems = [f"{path}: {problem}" for path in plates for problem in problems_of(path, arguments.deep)]
    log("\n".join(problems) if problems else "valid")
    return int(bool(problems))


def _write_receipt(path: Path, arguments: Namespace) -> int:
    """Writes the receipt of a plate and prints its verdict; returns the exit code."""
    from hpc_isl.cluster.run_folder import folders
    from hpc_isl.recipes.load import load
    from hpc_isl.recipes.plates import ConvertRecipe
    from hpc_isl.site import cpus_here
    from hpc_isl.stages.convert.receipt import receipt_paths, write_receipt

    recipe = None
    if arguments.run:
        run = folders.find(arguments.run, *run_folders(arguments))
        if run.stage != "convert":
            raise UserError(f"--run {arguments.run}: a run of {run.stage}; the run of convert is expected")
        loaded = load("convert", run.recipe, [])
        assert isinstance(loaded, ConvertRecipe)
        recipe = loaded
    verdict = write_receipt(path, recipe, cpus_here())
    log(f"{path}: {verdict['verdict']}")
    log("\n".join(f"  {many(count, 'file')} {state}" for state, count in verdict["files"].items()))
    if verdict["open"]:
        log("\n".join(f"  {text}" for text in verdict["open"]))
    log("only the originals hold:")
    log("\n".join(f"  {text}" for text in verdict["only the originals hold"]))
    log("\n".join(f"wrote {receipt_path}" for receipt_path in receipt_paths(path)))
    return int(verdict["verdict"] != "COMPLETE")


@command(
    "corrects what a plate states about its pixels and channels", "PLATE.zarr key=value … [options]",
    "P01.zarr pixel_um=0.325", DRY_RUN, ROOT, SITE, keys=SETTABLE,
)  # fmt: skip
def set_metadata(arguments: Namespace) -> int:
    """Corrects what a plate states about its pixels and channels, and names the runs that rest on it."""
    from hpc_isl.cluster.run_folder import folders, uses
    from hpc_isl.stages.set_metadata import metadata_edit

    if not arguments.words:
        raise UserError(f"set: name a plate, as in {program()} set P01.zarr pixel_um=0.325")
    edit = metadata_edit(Path(arguments.words[0]), arguments.words[1:])
    if not edit.lines:
        log(f"{edit.index.path}: nothing to do, it has these values already")
        return 0
    runs = folders.some([], *run_folders(arguments))
    log("\n".join(edit.described()))
    stale = uses.resting_on(edit.index.path, edit.index.fingerprint, runs)
    if stale:
        effect = "figures in micrometres are wrong" if edit.measures else "figures stay right, names differ"
        log(f"computed before ({effect}): {many(len(stale), 'run')}, reported so, not to be resumed:")
        log("\n".join(f"  {run.stage} {run.label}" for run in stale))
    else:
        log("no run rests on it, in the folders of runs that were searched")
    # After the description, so that a user who is refused has read what would change, and for which runs.
    uses.refuse_used(edit.index.path, runs)
    if not arguments.dry_run:
        index = edit.apply()
        log(f"{index.path}: done, fingerprint {index.fingerprint}")
    return 0


OVERVIEW_KEYS = {
    "out": "the page; default PLATE_overview.html here, and PLATE_overview.png beside it",
    "wells": "whose images are shown, as in B03,C04 or B03/1; default all. Heat maps show all wells",
    "channels": "that are shown, as in Brightfield,DAPI; default all",
}


@command(
    "a page with thumbnails and heat maps of a plate", "PLATE.zarr [key=value …]", "P01.zarr wells=B03,B04",
    keys=OVERVIEW_KEYS,
)  # fmt: skip
def overview(arguments: Namespace) -> int:
    """Writes one page about a plate, to be opened in any browser, and the same as a picture.

    Thumbnails of all fields by well and channel, of which a click shows one larger; heat maps of focus,
    intensity, saturated, empty and blurred fields, and of missing planes.
    """
    keys = take_keys(arguments, OVERVIEW_KEYS)
    plates = _plates(arguments)
    if len(plates) > 1:
        raise UserError(f"overview: name one plate, as in {program()} overview P01.zarr")
    from hpc_isl.stages.overview.stage import overview

    lists = {key: names_in(keys.get(key, "")) for key in ("wells", "channels")}
    output = overview(plates[0], Path(keys["out"]).expanduser() if "out" in keys else None, **lists)
    log("\n".join(output.headline))
    megabytes = output.page.stat().st_size / 1e6
    log(
        f"  page     {output.page}: {megabytes:.1f} MB, "
        f"{many(output.fields, 'field')} of {output.edge} pixels"
    )
    log(f"  picture  {output.picture}")
    return 0


PACK_KEYS = {"out": "the file to write, NAME.ozx; default beside the plate"}
UNPACK_KEYS = {"out": "the folder to write; default NAME.zarr beside the file"}


@command(
    "a finished plate as one file, which every verb reads", "PLATE.zarr [out=NAME.ozx] [options]", "P01.zarr",
    option("--remove", action="store_true", help="removes the folder when the file was compared with it"),
    ROOT, SITE, keys=PACK_KEYS,
)  # fmt: skip
def pack(arguments: Namespace) -> int:
    """Writes a finished plate, labels and index included, as one file: zipped OME-Zarr (RFC-9, a proposal).

    Every entry is compared with the plate before the file gets its name. The plate stays, unless --remove is
    given. A packed plate is only read: labels made of it go to NAME.hpc_isl beside it.
    """
    plate, out = _plate_and_out(arguments, PACK_KEYS)
    from hpc_isl.cluster.run_folder import folders, uses
    from hpc_isl.stages import pack as packing

    uses.refuse_used(plate, folders.some([], *run_folders(arguments)))
    output = packing.pack(plate, out)
    log(f"{output.path}: {output.entries:,} files in one of {output.size / 1e9:.3g} GB, all compared")
    if arguments.remove:
        packing.remove_original(plate)
        log(f"{plate} is removed")
    log(f"next: {program()} validate {shlex.quote(str(output.path))}")
    return 0


@command("a packed plate as a folder again", "PLATE.ozx [out=NAME.zarr]", "P01.ozx", keys=UNPACK_KEYS)
def unpack(arguments: Namespace) -> int:
    """Writes a packed plate as a folder again, with the labels made of it since; the file stays."""
    path, out = _plate_and_out(arguments, UNPACK_KEYS)
    from hpc_isl.stages import pack as packing

    output = packing.unpack(path, out)
    log(f"{output.path}: {output.entries:,} files, {output.size / 1e9:.3g} GB")
    return 0


def _plate_and_out(arguments: Namespace, keys: Mapping[str, str]) -> tuple[Path, Path | None]:
    """Returns the plate that is named, and `out=` if it is given."""
    values, plates = take_keys(arguments, keys), arguments.words
    if len(plates) != 1:
        raise UserError(f"{arguments.verb}: name one plate, as in {program()} {arguments.verb} P01.zarr")
    return Path(plates[0]), Path(values["out"]) if "out" in values else None
