"""The pretrained network on one image in NumPy: done before JAX would be imported.

One image takes some 40 ms, three times as long as with JAX on a CPU; to import that and to load a
compiled program takes a second.
"""

from __future__ import annotations

import numpy as np

_BLOCKS = 16
_HALVING = (1, 3, 5, 11)  # blocks with a stride of 2


def features(params: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """As `EfficientNetLite0.embed` gives them, but for rounding.

    Args:
      params: of `lite0_params`.
      image: uint8 [h, w, 3], sides that 32 divides.

    Returns:
      float32 [1280].
    """

    def pointwise(x: np.ndarray, name: str) -> np.ndarray:
        kernel = params[f"{name}/kernel"]
        x = x @ kernel.reshape(-1, kernel.shape[3])
        return np.add(x, params[f"{name}/bias"], out=x)

    x = (image.astype(np.float32) - 127) / 128
    x = _relu6(pointwise(np.concatenate(_taps(x, 3, 2), 2), "stem"))
    for i in range(_BLOCKS):
        name, before = f"blocks_{i}", x
        if i:
            x = _relu6(pointwise(x, f"{name}/expand"))
        x = _depthwise(x, params[f"{name}/depthwise/kernel"], 2 if i in _HALVING else 1)
        x = _relu6(np.add(x, params[f"{name}/depthwise/bias"], out=x))
        x = pointwise(x, f"{name}/project")
        if x.shape == before.shape:
            x += before
    return _relu6(pointwise(x, "head")).mean((0, 1))


def _depthwise(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Each channel by itself; kernel [k, k, 1, c]."""
    taps = _taps(x, len(kernel), stride)
    total, product = np.zeros((2, *taps[0].shape), np.float32)
    for tap, weights in zip(taps, kernel.reshape(len(taps), -1), strict=True):
        total += np.multiply(tap, weights, out=product)
    return total


def _taps(x: np.ndarray, size: int, stride: int) -> list[np.ndarray]:
    """What each weight of a kernel meets, as views; padded as TensorFlow pads."""
    height, width, _ = x.shape
    total = size - stride
    sides = (total // 2, total - total // 2)
    x = np.pad(x, (sides, sides, (0, 0)))
    return [
        x[i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)
    ]


def _relu6(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 6, out=x)
