"""Nearest ×2 up-sampling followed by a 3×3 convolution, computed at the low resolution.

After nearest up-sampling, output row 2i sees input rows i-1, i, i by its three taps, and output row
2i+1 sees i, i, i+1. The middle tap always falls on the pixel's own row i; the outer two fall on the
rows around the corner between i-1 and i, or between i and i+1, and two output rows share each
corner. The same holds of columns. So the layer is the sum of four small convolutions at the low
resolution, by the outer or the middle taps of rows and of columns, each up-sampled: nine products
an input pixel where the plain layer has 36, and no enlarged input in memory. The function, its
parameters and its gradients are the plain layer's. (The sub-pixel view of the layer, four 2×2
convolutions, has 16: Shi et al. 2016, "Is the deconvolution layer the same as a convolutional
layer?", arXiv:1609.07009.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.models.convs import conv


@jax.custom_vjp
def _upsample_conv(images: jax.Array, kernel: jax.Array) -> jax.Array:
    def convolve(taps: jax.Array) -> jax.Array:
        """By two outer taps, at the corners (one more than pixels), or by the middle one."""
        return conv(images, taps, [(size - 1, size - 1) for size in taps.shape[:2]])

    n, height, width, _ = images.shape
    corners = convolve(kernel[::2, ::2])
    between_rows = convolve(kernel[::2, 1:2])
    between_columns = convolve(kernel[1:2, ::2])
    own = convolve(kernel[1:2, 1:2])
    phases = [
        corners[:, i : i + height, j : j + width]
        + between_rows[:, i : i + height]
        + between_columns[:, :, j : j + width]
        + own
        for i in range(2)
        for j in range(2)
    ]
    stacked = jnp.stack(phases, 3).reshape(n, height, width, 2, 2, -1)
    return stacked.swapaxes(2, 3).reshape(n, 2 * height, 2 * width, -1)


def _forward(images, kernel):
    return _upsample_conv(images, kernel), (images, kernel)


def _backward(residuals, cotangent):
    # One product each for images and kernel, of what every tap meets: XLA's own gradients of the
    # four convolutions took 45 of the layers' 52 ms a step on a CPU (benchmarks/README.md).
    images, kernel = residuals
    n, height, width, channels = images.shape
    padded = jnp.pad(cotangent, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def pooled(first_row: int, first_column: int) -> jax.Array:
        """Sums of 2×2 of the padded cotangent, from a row and a column on."""
        rows = [padded[:, first_row + i : first_row + i + 2 * height : 2] for i in range(2)]
        columns = [slice(first_column + j, first_column + j + 2 * width, 2) for j in range(2)]
        return sum(part[:, :, at] for part in rows for at in columns)

    # A pixel meets the middle tap in its own 2×2 outputs, the first one row or column later, ...
    met = [pooled(i, j) for i in (2, 1, 0) for j in (2, 1, 0)]
    met = lax.optimization_barrier(jnp.concatenate(met, -1)).reshape(n * height * width, -1)
    by_tap = kernel.swapaxes(2, 3).reshape(-1, channels)
    d_images = (met @ by_tap).reshape(images.shape)
    d_kernel = images.reshape(-1, channels).T @ met
    return d_images, d_kernel.reshape(channels, 3, 3, -1).transpose(1, 2, 0, 3)


_upsample_conv.defvjp(_forward, _backward)


def upsample_conv(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves the nearest ×2 up-sampling of `images` with `kernel`, SAME padding.

    Args:
      images: float [n, h, w, ci].
      kernel: float [3, 3, ci, co], as a plain 3×3 convolution on the up-sampled images takes it.

    Returns:
      float [n, 2h, 2w, co]. Equal to the plain two steps, gradients included, to rounding.

    Raises:
      ValueError: the kernel is not 3×3, or its input channels are not the images'.

    Example:
      >>> import jax.numpy as jnp
      >>> upsample_conv(jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()[1]
      [6.0, 9.0, 9.0, 6.0]
    """
    if kernel.shape[:2] != (3, 3) or kernel.shape[2] != images.shape[-1]:
        raise ValueError(
            f"upsample_conv needs a kernel [3, 3, {images.shape[-1]}, features] for these images, "
            f"got {kernel.shape}"
        )
    return _upsample_conv(images, kernel)
