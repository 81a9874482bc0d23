"""annotate edit: a window on fields of a plate. It is no run: it opens here and now, for a person."""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from hpc_isl.cli.arguments import log
from hpc_isl.cluster.monitor.messages import Console
from hpc_isl.errors import UserError, many
from hpc_isl.recipes.plates import AnnotateRecipe

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
ELSEWHERE = (
    "Without a window here, annotate export plate=… labels=… out=todo/ lends the fields to any program, on "
    "any machine, and annotate import todo/ plate=… labels=… brings them back"
)


def edit(recipe: AnnotateRecipe, console: Console, arguments: Namespace) -> int:
    """Opens napari on the fields of a recipe, until its window is closed; prints what was saved."""
    if arguments.name or arguments.after or arguments.wait:
        raise UserError("annotate edit: is no run, and takes no --name, --after or --wait")
    from hpc_isl.cluster.run_folder import folders, uses
    from hpc_isl.stages.annotate.edit import EditSession

    def refuse_writers() -> None:
        uses.refuse_label_writers(recipe.plate, recipe.labels, folders.some([], *console.roots))

    # While it is open the plate's metadata stay: `set` and `pack --remove` wait.
    with EditSession.of_recipe(recipe, refuse_writers) as session, uses.in_use(recipe):
        log("\n".join(session.described()))
        if arguments.dry_run:
            return 0
        # Qt ends the whole process where it finds no screen.
        if sys.platform == "linux" and not any(map(os.environ.get, SCREENS)):
            raise UserError(f"annotate edit: there is no screen here (DISPLAY is not set). {ELSEWHERE}")
        try:
            from hpc_isl.stages.annotate.edit_window import edit_in_window
        except ImportError as error:
            raise UserError(
                f"annotate edit: needs napari and Qt ({error}): pip install 'hpc-isl[napari]'. {ELSEWHERE}"
            ) from None
        try:
            edit_in_window(session)
        finally:  # also where the window was left by Ctrl-C
            count = many(len(session.saved), "field", "is", "are")
            log(f"{count} saved as a person's labels {recipe.labels!r}")
            for name in session.backup_names:
                log(f"  what was there is kept as {name!r}")
    return 0
