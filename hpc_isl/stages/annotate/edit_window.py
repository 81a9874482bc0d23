"""The window of annotate edit: napari with the open field, its labels and its annotation boxes.

What is opened, compared, saved and kept is decided by the session; here layers become arrays and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import napari
import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QEvent, QObject
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QMessageBox, QPushButton, QVBoxLayout, QWidget

from hpc_isl.errors import UserError
from hpc_isl.stages.annotate.edit import EditSession, OpenField, Saved
from hpc_isl.stages.annotate.label_files import Box

BOXES = "annotation boxes"
# What a person has set stays from field to field.
OF_IMAGES = ("visible", "opacity", "contrast_limits", "gamma", "colormap")
OF_LABELS = ("visible", "opacity", "contour", "brush_size", "preserve_labels")
OF_BOXES = ("visible", "opacity")
Answer = Literal["save", "discard", "cancel"]


def edit_in_window(session: EditSession) -> None:
    """Opens the window at the first field that can be opened, and returns when it is closed.

    Raises:
        UserError: no field can be opened.
    """
    window = EditWindow(session, napari.Viewer(title=f"{session.index.plate.name}: {session.labels}"))
    while True:
        try:
            napari.run()
            return
        except KeyboardInterrupt:
            if window.may_leave():
                raise


class EditWindow:
    """Layers and buttons of one session in a viewer of napari.

    Args:
        viewer: a `napari.Viewer`.

    Raises:
        UserError: no field can be opened.
    """

    def __init__(self, session: EditSession, viewer: Any) -> None:
        self.session, self.viewer = session, viewer
        self.images: dict[str, Any] = {}
        self.labels: Any = None
        self.boxes: Any = None
        try:
            self.panel = Panel(self)
            viewer.window.add_dock_widget(self.panel.widget, name="fields", area="right")
            # The main window has no public name yet; what closes it is asked about by this filter alone.
            self._main = viewer.window._qt_window
            self._filter = CloseFilter(self.may_leave)
            self._main.installEventFilter(self._filter)
            self._open_first()
        except BaseException:
            viewer.close()
            raise

    def _open_first(self) -> None:
        refusals = []
        for key in self.session.keys:
            try:
                self._show(self.session.open(key))
                return
            except UserError as error:
                refusals.append(str(error))
        raise UserError("\n".join(dict.fromkeys(refusals)))

    # ------------------------------------------------------------ from field to field

    @property
    def place(self) -> int:
        """The number of the open field in the session's."""
        assert self.session.current is not None
        return list(self.session.keys).index(self.session.current.key)

    def go(self, place: int) -> None:
        """Opens a field, after a question where the present one has unsaved changes."""
        if place == self.place or not 0 <= place < len(self.session.keys) or not self.may_leave():
            self.panel.choose(self.place)
            return
        try:
            self._show(self.session.open(self.session.keys[place]))
        except UserError as error:
            self.tell(error)
            self.panel.choose(self.place)

    def may_leave(self) -> bool:
        """Returns whether nothing is lost if the field is left: asks where it has unsaved changes."""
        if self.session.current is None or not self.session.is_changed(*self.drawn()):
            return True
        answer = self.ask()
        return answer == "discard" or (answer == "save" and self.save())

    def save(self, accept: bool = False) -> bool:
        """Saves the open field; returns False where that is refused, which is shown."""
        try:
            saved = self.session.save(*self.drawn(), accept=accept)
        except UserError as error:
            self.tell(error)
            return False
        self.panel.say(report(saved) if saved else "nothing was changed, so nothing was saved")
        return True

    # ------------------------------------------------------------ layers

    def drawn(self) -> tuple[NDArray[Any], tuple[Box, ...]]:
        """Returns labels and annotation boxes as they are in the window, these cut to the field."""
        labels = np.asarray(self.labels.data)
        boxes = [box_of(corners[:, -2:], labels.shape[-2:]) for corners in self.boxes.data]
        return labels, tuple(box for box in boxes if box is not None)

    def _show(self, field: OpenField) -> None:
        channels = {channel.name: channel for channel in self.session.index.plate.channels}
        stains = [name for name, channel in channels.items() if channel.fluorescent]
        # All layers are made anew, because an undo must not reach into the field before.
        for name, pixels in field.images.items():
            channel = channels[name]
            settings = _remove_layer(self.viewer, self.images.get(name), OF_IMAGES) or {
                "visible": channel.fluorescent or not stains,
                **({"contrast_limits": limits} if (limits := self.session.limits(name)) else {}),
                # Edges are seen best in grey; colours tell several stains apart.
                "colormap": f"#{channel.color}" if name in stains and len(stains) > 1 else "gray",
            }
            layer = self.viewer.add_image(pixels, name=name, blending="additive")
            self.images[name] = _apply_settings(layer, settings)
        settings = _remove_layer(self.viewer, self.labels, OF_LABELS) or {"opacity": 0.4}
        self.labels = _apply_settings(
            self.viewer.add_labels(field.labels.copy(), name=self.session.labels), settings
        )
        self.labels.selected_label = int(field.labels.max()) + 1  # what is painted first is a new object
        settings = _remove_layer(self.viewer, self.boxes, OF_BOXES)
        self.boxes = self.viewer.add_shapes(
            [corners_of(box) for box in field.boxes], shape_type="rectangle", name=BOXES,
            face_color="transparent", edge_color="yellow", edge_width=2,
        )  # fmt: skip
        _apply_settings(self.boxes, settings)
        self.viewer.layers.selection.active = self.labels
        self.panel.choose(self.place)
        origins = {"": "no labels yet", "human": "a person's labels"}
        origin = origins.get(field.origin, f"labels: {field.origin}")
        self.panel.say(f"{field.key}, {origin}. Every object that touches a yellow box is to be drawn.")

    # ------------------------------------------------------------ questions

    def ask(self) -> Answer:
        """Asks what becomes of unsaved changes."""
        buttons = QMessageBox.StandardButton
        assert self.session.current is not None
        answer = QMessageBox.question(
            self._main, "unsaved changes", f"{self.session.current.key} has changes that are not saved.",
            buttons.Save | buttons.Discard | buttons.Cancel, buttons.Save,
        )  # fmt: skip
        answers: dict[Any, Answer] = {buttons.Save: "save", buttons.Discard: "discard"}
        return answers.get(answer, "cancel")

    def tell(self, error: UserError) -> None:
        """Shows why something was refused."""
        QMessageBox.warning(self._main, "not done", str(error))


class Panel:
    """The buttons beside the image: which field, save, and what was done last."""

    def __init__(self, window: EditWindow) -> None:
        self.widget = QWidget()
        self.fields, self.line = QComboBox(), QLabel()
        self.fields.addItems([str(key) for key in window.session.keys])
        self.fields.activated.connect(window.go)
        self.line.setWordWrap(True)
        self.line.setMinimumWidth(240)
        rows = QVBoxLayout(self.widget)
        rows.addWidget(self.fields)
        self.buttons: dict[str, Any] = {}
        for row in (
            [
                ("previous", "PgUp", lambda: window.go(window.place - 1)),
                ("next", "PgDown", lambda: window.go(window.place + 1)),
            ],
            [("save", "F8", window.save), ("right as it is", "F9", lambda: window.save(accept=True))],
        ):
            row_layout = QHBoxLayout()
            for label, keys, action in row:
                row_layout.addWidget(self._button(label, keys, action))
            rows.addLayout(row_layout)
        rows.addWidget(self.line)
        rows.addStretch()

    def _button(self, label: str, keys: str, action: Callable[[], object]) -> Any:
        button = QPushButton(f"{label} ({keys})")
        button.setShortcut(keys)
        button.clicked.connect(lambda _checked: action())
        self.buttons[label] = button
        return button

    def choose(self, place: int) -> None:
        """Shows which field is open."""
        self.fields.setCurrentIndex(place)  # `activated` is for a person's choice alone

    def say(self, text: str) -> None:
        """Shows what was done last."""
        self.line.setText(text)


class CloseFilter(QObject):  # type: ignore[misc]  # qtpy has no types
    """Keeps the window open where a person wants to stay."""

    def __init__(self, may_close: Callable[[], bool]) -> None:
        super().__init__()
        self._may_close = may_close

    def eventFilter(self, watched: Any, event: Any) -> bool:  # noqa: N802  (Qt's name)
        """Stops a close event that a person takes back."""
        if event.type() == QEvent.Type.Close and not self._may_close():
            event.ignore()
            return True
        return False


# ---------------------------------------------------------------- layers and arrays


def corners_of(box: Box) -> NDArray[np.float64]:
    """Returns the corners (4, 2) of a box as napari draws it, where pixel i goes from i - ½ to i + ½."""
    y0, x0, y1, x1 = (edge - 0.5 for edge in box)
    return np.array([[y0, x0], [y0, x1], [y1, x1], [y1, x0]])


def box_of(corners: NDArray[Any], shape: Sequence[int]) -> Box | None:
    """Returns the annotation box around a shape, cut to the field (y, x); None: it lies outside of it."""
    low = np.clip(np.round(corners.min(0) + 0.5), 0, shape).astype(int)
    high = np.clip(np.round(corners.max(0) + 0.5), 0, shape).astype(int)
    if (low >= high).any():
        return None
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _remove_layer(viewer: Any, layer: Any, names: Sequence[str]) -> dict[str, Any]:
    """Takes a layer of the field before out of the viewer; returns how it was shown, if there was one."""
    if layer is None:
        return {}
    if layer in viewer.layers:  # a person may have removed it
        viewer.layers.remove(layer)
    return {name: getattr(layer, name) for name in names}


def _apply_settings(layer: Any, settings: dict[str, Any]) -> Any:
    for name, value in settings.items():
        setattr(layer, name, value)
    return layer


def report(saved: Saved) -> str:
    """Returns what was saved, as a person reads it."""
    lines = [f"{saved.key} is saved: {saved.objects} objects"]
    if saved.dropped:
        lines.append(
            f"{saved.dropped} outside of every annotation box are not: make a box larger to keep them"
        )
    if saved.changed_meanwhile:
        lines.append("another program changed these labels in the plate meanwhile")
    if saved.backup_name:
        lines.append(f"what was there is kept as {saved.backup_name!r}")
    return ".\n".join(lines)
