"""The array types of labels and maps, named once.

They are a module of their own so that naming one imports numpy and nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint32]
"""(y, x): 0 is background, k the k-th object."""
AnyLabels = NDArray[Any]
"""Labels of any type of whole numbers, as people and other programs give them."""
Distance = NDArray[np.float32]
"""(y, x): 0 is background; higher in the middle of objects."""
Pixels = NDArray[np.float32]
"""(y, x), or (channel, y, x): values that a network reads or predicts."""
Image = NDArray[Any]
"""(y, x) in any unit and type."""
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Box = tuple[int, int, int, int]
"""y0, x0, y1, x1 in pixels, ends excluded."""
