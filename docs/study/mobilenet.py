"""ImageNet weights of MobileNet-v1 from Keras' layout to the file that `net.weights` takes.

    python docs/study/mobilenet.py mobilenet_v1_1.0_224_without_conv_pw_13.npz mobilenetv1.safetensors

The file is for `tu-mobilenetv1_100` (timm) with a decoder of four blocks, which ends at stride 16: all of its
tensors are there. Keras' BatchNorm adds 1e-3 to the variance and timm's 1e-5, so the difference goes into the
variance; kernels are turned from (y, x, in, out) to (out, in, y, x). Keras pads the strided layers by one
pixel on the right and below, timm by one on either side: its features lie half a stride further up and left,
which a decoder that is trained does not notice.
"""

from __future__ import annotations

import sys

import numpy as np
import safetensors.numpy

STAGES = (1, 2, 2, 6, 2)  # depthwise-separable blocks of each stage of timm's network


def main() -> None:
    source, target = sys.argv[1:]
    keras = np.load(source, allow_pickle=False)
    tensors = {"conv_stem.weight": keras["conv1.kernel"].transpose(3, 2, 0, 1), **norm(keras, "conv1", "bn1")}
    number = 0
    for stage, blocks in enumerate(STAGES):
        for block in range(blocks):
            number += 1
            if f"conv_pw_{number}.kernel" not in keras:
                continue
            name = f"blocks.{stage}.{block}"
            deep = keras[f"conv_dw_{number}.depthwise_kernel"]
            tensors[f"{name}.conv_dw.weight"] = deep.transpose(2, 3, 0, 1)
            tensors |= norm(keras, f"conv_dw_{number}", f"{name}.bn1")
            tensors[f"{name}.conv_pw.weight"] = keras[f"conv_pw_{number}.kernel"].transpose(3, 2, 0, 1)
            tensors |= norm(keras, f"conv_pw_{number}", f"{name}.bn2")
    safetensors.numpy.save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, target)
    size = sum(tensor.size for tensor in tensors.values())
    print(f"{len(tensors)} tensors, {size / 1e6:.1f} million numbers: {target}")


def norm(keras: np.lib.npyio.NpzFile, layer: str, name: str) -> dict[str, np.ndarray]:
    return {
        f"{name}.weight": keras[f"{layer}_bn.gamma"],
        f"{name}.bias": keras[f"{layer}_bn.beta"],
        f"{name}.running_mean": keras[f"{layer}_bn.moving_mean"],
        f"{name}.running_var": keras[f"{layer}_bn.moving_variance"] + np.float32(1e-3 - 1e-5),
    }


if __name__ == "__main__":
    main()
