"""A picture of one field with its labels as neuroglancer shows them in a headless Chromium, without network.

    pip install neuroglancer
    python docs/viewer/screenshot.py PLATE FIELD LABELS OUT.png [--channel NAME] [--view Y0,X0,Y1,X1]

Everything runs on loopback; the viewer is asked for its picture once it has drawn every piece that it needs.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import neuroglancer
from serve import lend

SIZE = 640  # of the picture, in pixels
SHADER = """#uicontrol invlerp normalized(range=[{start}, {end}])
void main() {{ emitGrayscale(normalized()); }}"""
TRANSFORMATIONS = "coordinateTransformations"
Box = tuple[int, int, int, int]


def main(plate: Path, field: str, labels: str, out: Path, channel: str | None, view: Box | None) -> None:
    image = image_of(plate, field)
    if not (plate / image / "labels" / labels / "zarr.json").is_file():
        sys.exit(f"{plate / image}: has no labels {labels!r}")
    server = lend(plate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    neuroglancer.set_server_bind_address("127.0.0.1")
    viewer = neuroglancer.Viewer()
    state = state_of(plate / image, f"http://127.0.0.1:{server.server_port}/{image}", labels, channel, view)
    viewer.set_state(neuroglancer.ViewerState(state))
    shoot(viewer, out)
    server.shutdown()


def image_of(plate: Path, field: str) -> str:
    """B03/1 -> B/03/1, the folder of the field's image below the plate."""
    parts = re.fullmatch(r"([A-Za-z]+)(\d+)/(\w+)", field)
    image = "/".join(parts.groups()) if parts else field
    if not (plate / image / "zarr.json").is_file():
        sys.exit(f"{plate}: has no field {field!r} ({image}); fields are written like B03/1")
    return image


def state_of(folder: Path, url: str, labels: str, channel: str | None, view: Box | None) -> dict[str, Any]:
    """What neuroglancer is to show: the channel in grey within its window, and the labels upon it."""
    ome = json.loads((folder / "zarr.json").read_text())["attributes"]["ome"]
    channels = ome["omero"]["channels"]
    names = [each["label"] for each in channels]
    if channel is not None and channel not in names:
        sys.exit(f"{folder}: has no channel {channel!r}; there are {names}")
    number = names.index(channel) if channel is not None else 0
    shown = {
        "type": "image",
        "name": names[number],
        "source": f"{url}/|zarr3:",
        "localDimensions": {"c'": [1, ""]},
        "localPosition": [number],
        "shader": SHADER.format(**{key: channels[number]["window"][key] for key in ("start", "end")}),
        "opacity": 1,
    }
    upon = {"type": "segmentation", "name": labels, "source": f"{url}/labels/{labels}/|zarr3:"}
    upon |= {"selectedAlpha": 0.45}
    shape = json.loads((folder / "0" / "zarr.json").read_text())["shape"]
    return {
        "layers": [shown, upon],
        "layout": "xy",
        "showAxisLines": False,
        "showDefaultAnnotations": False,
        "displayDimensions": ["x", "y", "z"],  # with two alone, neuroglancer 2.41 garbles labels
        **place(ome["multiscales"][0], shape, view or (0, 0, *shape[-2:])),
    }


def place(multiscale: dict[str, Any], shape: list[int], view: Box) -> dict[str, Any]:
    """The middle of the view in the middle of the picture, at a scale at which all of it is seen."""
    scale, translation = (list(each.values())[-1] for each in multiscale["datasets"][0][TRANSFORMATIONS])
    middle = dict(zip("zyx", (shape[-3] / 2, (view[0] + view[2]) / 2, (view[1] + view[3]) / 2), strict=True))
    dimensions, position = {}, []
    for at, axis in enumerate(multiscale["axes"]):
        if axis["name"] in middle:
            known = axis.get("unit") == "micrometer"
            dimensions[axis["name"]] = [scale[at] * (1e-6 if known else 1), "m" if known else ""]
            position.append(translation[at] / scale[at] + middle[axis["name"]])
    longer = max(view[2] - view[0], view[3] - view[1])
    return {
        "dimensions": dimensions,
        "position": position,
        "crossSectionScale": longer / SIZE,
    }


def shoot(viewer: neuroglancer.Viewer, out: Path) -> None:
    """Waits until the viewer in a browser has drawn all, and keeps what it drew."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("needs a browser: apt install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        options += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={profile}"]
        options += ["--disable-dev-shm-usage", f"--window-size={SIZE},{SIZE}", "--remote-debugging-port=0"]
        with subprocess.Popen(
            [browser, *options, viewer.get_viewer_url()], stderr=subprocess.DEVNULL
        ) as process:
            try:
                out.write_bytes(viewer.screenshot(size=(SIZE, SIZE)).screenshot.image)
            finally:
                process.terminate()


def box(text: str) -> Box:
    y0, x0, y1, x1 = map(int, text.split(","))
    return y0, x0, y1, x1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plate", type=Path)
    parser.add_argument("field", help="like B03/1")
    parser.add_argument("labels", help="the folder's name below the image's labels/")
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--channel", help="the channel below the labels; without: the first")
    parser.add_argument("--view", type=box, help="what to show, in pixels, as Y0,X0,Y1,X1; without: all")
    given = parser.parse_args()
    main(given.plate, given.field, given.labels, given.out, given.channel, given.view)
