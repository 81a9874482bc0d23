"""A person at the window of annotate edit, played: draws, goes on, is asked, closes. Started by its test.

Words: the plate, and the picture to write. Prints what was seen, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from qtpy.QtCore import Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QMessageBox

from hpc_isl.recipes.plates import AnnotateRecipe
from hpc_isl.stages.annotate.edit import EditSession
from hpc_isl.stages.annotate.edit_window import EditWindow

BUTTON = QMessageBox.StandardButton


def answering(button: Any, act: Callable[[], object]) -> str:
    """Does what opens a question, and clicks one of its buttons; the question."""
    asked: list[str] = []

    def click() -> None:
        box = QApplication.activeModalWidget()
        if box is None:
            QTimer.singleShot(20, click)
            return
        asked.append(box.text())
        box.button(button).click()

    QTimer.singleShot(20, click)
    act()
    return asked[0]


def wait() -> None:
    """Lets the window do what is due: it becomes active, and a button is shown pressed before it acts."""
    end = time.monotonic() + 0.5  # vispy replaces QTest.qWait
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


def main(plate: Path, picture: Path) -> None:
    recipe = AnnotateRecipe(action="edit", plate=plate, labels="nuclei", box=(0, 0, 40, 40))
    seen: dict[str, Any] = {}
    with EditSession.of_recipe(recipe, lambda: None) as session:
        viewer = napari.Viewer(title="nuclei")
        window = EditWindow(session, viewer)
        seen["layers"] = [layer.name for layer in viewer.layers]
        seen["boxes"] = window.drawn()[1]
        viewer.layers["Hoechst"].contrast_limits = (700, 7000)
        window.labels.data_setitem(
            (np.array([20, 20, 21]), np.array([30, 31, 30])), 9
        )  # as a stroke of the brush
        press = window.panel.buttons["next"].click
        seen["question"] = answering(BUTTON.Cancel, press)
        seen["after cancel"] = str(session.current.key)
        answering(BUTTON.Save, press)
        seen["after save"] = str(session.current.key)
        seen["limits"] = list(viewer.layers["Hoechst"].contrast_limits)
        window.labels.undo()
        seen["undone"] = bool(window.labels.data.any())
        window.boxes.data = [window.boxes.data[0] + 10]
        main_window = viewer.window._qt_window
        main_window.activateWindow()
        wait()
        QTest.keyClick(main_window, Qt.Key.Key_F8)
        wait()
        seen["line"] = window.panel.line.text()
        window.boxes.data = []
        seen["refused"] = answering(BUTTON.Ok, window.panel.buttons["save"].click)
        answering(BUTTON.Cancel, main_window.close)
        seen["stays open"] = main_window.isVisible()
        viewer.screenshot(str(picture), canvas_only=False, flash=False)
        answering(BUTTON.Discard, main_window.close)
        seen["closed"] = not main_window.isVisible()
    print(json.dumps(seen))


main(*map(Path, sys.argv[1:]))
