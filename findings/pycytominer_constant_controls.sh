#!/usr/bin/env bash
# 2026-11-29, pycytominer 1.7.1 (pandas 3.1.1, scikit-learn 1.9.1).
# Believed: a feature that does not vary among the negative controls cannot be normalised to them, and comes
#   back as NaN, or as infinity, which feature selection drops.
# Seen: `mad_robustize` divides by MAD + 1e-18. A well that differs from such controls by 1 becomes 1e18, a
#   finite number; where more than half of the controls agree, even another control does. `standardize` gives
#   the plain difference (its scale is 1 then), in the feature's own unit, beside columns in standard deviations.
# It matters for counts and for textures that most wells share: one such column outweighs all others in a
#   distance or a principal component, and nothing says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  pycytominer==1.7.1 pandas==3.1.1 scikit-learn==1.9.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import pandas as pd
from pycytominer import normalize

wells = pd.DataFrame({
    "Metadata_Well": [f"A{n:02d}" for n in range(1, 9)],
    "Metadata_control": ["negative"] * 4 + ["drug"] * 4,
    "nuclei": [7.0, 7, 7, 7, 7, 8, 9, 7],
    "rare": [0.0, 0, 0, 5, 0, 1, 2, 3],
    "area": [1.0, 2, 3, 4, 5, 6, 7, 8],
})


def normalised(method):
    return normalize(
        wells, features=["nuclei", "rare", "area"], meta_features=["Metadata_Well", "Metadata_control"],
        samples="Metadata_control == 'negative'", method=method,
    )


robust, plain = normalised("mad_robustize"), normalised("standardize")
print(robust.to_string(), plain.to_string(), sep="\n")
assert robust.nuclei[5] > 1e17, "a constant feature is treated otherwise by now"
assert robust.rare[3] > 1e17, "a control that differs from the others is treated otherwise by now"
assert robust.area.abs().max() < 10
assert plain.nuclei.tolist() == [0, 0, 0, 0, 0, 1, 2, 0], "standardize treats it otherwise by now"
PYTHON
