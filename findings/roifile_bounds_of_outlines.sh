#!/usr/bin/env bash
# 2026-11-29, roifile 2026.2.10.
# Believed: an outline made with roifile from the corners of its edge, as ImageJ's wand traces it (0, 0 to 10, 10
#   for a square of ten pixels), is an ImageJ ROI of ten by ten pixels.
# Seen: `ImagejRoi.frompoints` takes corners for the indices of pixels, and writes bounds that end one further. The
#   points are right, but the bounds in the header (bytes 8 to 15: top, left, bottom, right) say eleven by eleven, for
#   a polygon, a freehand and a traced outline alike.
# It matters because programs that crop, or lay an ROI on a grid, by its bounds and not by its points get one
#   pixel too many on two sides. Setting `right` and `bottom` to the greatest corner makes the file say ten.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check roifile==2026.2.10
cd "$folder"
venv/bin/python - <<'PYTHON'
import struct

from roifile import ROI_TYPE, ImagejRoi

corners = [(0, 0), (10, 0), (10, 10), (0, 10)]
for kind in (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED):
    sizes = []
    for mended in (False, True):
        roi = ImagejRoi.frompoints(corners)
        roi.roitype = kind
        if mended:
            roi.right, roi.bottom = 10, 10
        content = roi.tobytes()
        assert ImagejRoi.frombytes(content).coordinates().tolist() == [list(corner) for corner in corners]
        top, left, bottom, right = struct.unpack(">4h", content[8:16])
        sizes.append((bottom - top, right - left))
    print(kind.name, "as written:", sizes[0], "with the bounds set:", sizes[1])
    assert sizes == [(11, 11), (10, 10)], sizes
PYTHON
echo "still so"
