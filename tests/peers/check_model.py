"""Run where onnxruntime and bioimageio.core are installed: exports a model, and segments an image with it.

    python check_model.py RUN IMAGE.npy OUT

Fails where bioimageio's own test of the package fails. OUT/found.npz has the labels by each way, and how much
the maps of onnxruntime differ from those of PyTorch on the image.
"""

import subprocess
import sys
from pathlib import Path

import bioimageio.core
import numpy as np
import onnxruntime
import tifffile
import torch

from hpc_isl.learning.network.model import load
from hpc_isl.run import Run
from hpc_isl.stages.export.decode import normalised
from hpc_isl.stages.export.model import export_model, greatest_difference

run, image, out = Run(Path(sys.argv[1])), np.load(sys.argv[2]), Path(sys.argv[3])
folders = {form: export_model(run, out / form, form).out for form in ("onnx", "bioimageio")}

sources = normalised(image[:1] if image.ndim == 3 else image[None], {"source": "standard", "local_px": 0})[
    None
]
network, _ = load(run.model)
with torch.inference_mode():
    expected = network(torch.from_numpy(sources)).numpy()
session = onnxruntime.InferenceSession(folders["onnx"] / "model.onnx")
difference = greatest_difference(session.run(None, {"image": sources})[0][0], expected[0])
assert "h_maxima" in session.get_modelmeta().custom_metadata_map["hpc_isl"]

found = {}
for name, pixels in {"onnx": image, "odd": image[..., :131, :157]}.items():
    tifffile.imwrite(out / "image.tif", pixels)
    command = [sys.executable, folders["onnx"] / "decode.py", out / "image.tif", out / "labels.tif"]
    subprocess.run(command, check=True, env={"PATH": ""})
    found[name] = tifffile.imread(out / "labels.tif")

description = bioimageio.core.load_model(folders["bioimageio"] / "rdf.yaml")
summary = bioimageio.core.test_model(description)
assert summary.status == "passed", summary.format()
counts = image.reshape(1, 1, *image.shape[-2:]).astype(np.float32)
labels = bioimageio.core.predict(model=description, inputs=counts).members["labels"].to_numpy()
np.savez(out / "found.npz", difference=difference, bioimageio=labels[0, 0], **found)
