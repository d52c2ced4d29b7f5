"""3×3 convolutions, stride 1, SAME: from and to an image's few channels, after up-sampling, others.

Where one side has few channels, XLA's CPU backend takes three to five times as long by its own
convolution or its weight gradient as by one product with what all nine taps of every pixel see,
gathered on that side (32 images of 32×32: 4.8 against 1 ms from 3 channels, 16 against 5 ms to 3; 2
cores of a virtual AMD EPYC, JAX 0.10.2).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


def _taps(images: jax.Array) -> jax.Array:
    """[n, h, w, c] → [n · h · w, 9 · c]: what the nine taps of each pixel see, zeros outside."""
    height, width, channels = images.shape[1:]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return lax.optimization_barrier(jnp.concatenate(taps, -1)).reshape(-1, 9 * channels)


def conv(
    images: jax.Array, kernel: jax.Array, padding: str | list[tuple[int, int]] = "SAME"
) -> jax.Array:
    """A convolution of stride 1.

    Args:
      images: float [n, h, w, ci].
      kernel: float [3, 3, ci, co]; with another padding of any size.
      padding: as `lax.conv_general_dilated` takes it.

    Returns:
      float [n, h, w, co].

    Example:
      >>> conv(jnp.ones((1, 2, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
      [[4.0, 6.0, 4.0], [4.0, 6.0, 4.0]]
    """
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=layout)


def conv_from_narrow(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `conv`, fast for images of few channels.

    Example:
      >>> conv_from_narrow(jnp.ones((1, 2, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
      [[4.0, 6.0, 4.0], [4.0, 6.0, 4.0]]
    """
    features = kernel.shape[-1]
    return (_taps(images) @ kernel.reshape(-1, features)).reshape(*images.shape[:3], features)


@jax.custom_vjp
def conv_to_narrow(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `conv`, fast in its gradients where the features are few.

    Example:
      >>> conv_to_narrow(jnp.ones((1, 2, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
      [[4.0, 6.0, 4.0], [4.0, 6.0, 4.0]]
    """
    return conv(images, kernel)


def _forward(images, kernel):
    return conv(images, kernel), (images, kernel)


def _backward(residuals, cotangent):
    images, kernel = residuals
    channels = images.shape[-1]
    # A pixel meets the first tap in the output below it and to its right: taps are mirrored.
    met = _taps(cotangent)
    d_images = met @ kernel[::-1, ::-1].swapaxes(2, 3).reshape(-1, channels)
    d_kernel = images.reshape(-1, channels).T @ met
    d_kernel = d_kernel.reshape(channels, 3, 3, -1)[:, ::-1, ::-1].transpose(1, 2, 0, 3)
    return d_images.reshape(images.shape), d_kernel


conv_to_narrow.defvjp(_forward, _backward)


@jax.custom_vjp
def conv_wide(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `conv`, on CPUs by products of what the taps of some images at a time meet.

    Gathered for all images at once it falls out of the caches: XLA's convolution runs at 92
    GFLOP/s unless both sides have 128 features, its gradient of the kernel at 25 to 50, where a
    product of matrices runs at 189 (512 images of 12×12 from 32 to 64 features, both gradients: 50
    against 110 ms; 128 of 8×8 from 128 to 128: 32 against 58 ms; 2 cores of a virtual AMD EPYC with
    AVX-512, JAX 0.10.2).

    Example:
      >>> conv_wide(jnp.ones((1, 2, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
      [[4.0, 6.0, 4.0], [4.0, 6.0, 4.0]]
    """
    if min(kernel.shape[2:]) >= 128:
        return conv(images, kernel)
    return lax.platform_dependent(images, kernel, cpu=_conv_by_chunks, default=conv)


_TAPS_BYTES = 3 << 20  # of the taps of a chunk: more leaves the caches, fewer are small products


def _by_chunks(work, gathered, *parts):
    """Σ of work's first result over chunks of images, and its second for all images.

    Args:
      work: (a chunk of each part) → (array, [b, …] or None).
      gathered: channels of which `work` gathers the taps.
      *parts: each [n, h, w, c].
    """
    n, height, width, _ = parts[0].shape
    limit = max(1, _TAPS_BYTES // (height * width * 9 * gathered * parts[0].dtype.itemsize))
    size = next(size for size in range(min(limit, n), 0, -1) if n % size == 0)
    if 2 * size < limit:  # no divisor is near: some images of zeros instead, which add nothing
        size = -(-n // -(-n // limit))
    chunks = -(-n // size)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, chunks * size - n), (0, 0), (0, 0), (0, 0)))
        return x.reshape(chunks, size, *x.shape[1:])

    split_parts = [split(x) for x in parts]
    shape, _ = jax.eval_shape(work, *(x[0] for x in split_parts))

    def step(total, part):
        added, own = work(*part)
        return total + added, own

    total, own = lax.scan(step, jnp.zeros(shape.shape, shape.dtype), split_parts)
    return total, None if own is None else own.reshape(-1, *own.shape[2:])[:n]


def _conv_by_chunks(images, kernel):
    def of_chunk(images):
        return jnp.zeros(()), conv_from_narrow(images, kernel)

    return _by_chunks(of_chunk, kernel.shape[2], images)[1]


def _gradients_by_chunks(images, kernel, cotangent):
    channels, features = kernel.shape[2:]
    if channels <= 4 or min(channels, features) >= 128:

        def of_kernel(images, cotangent):
            return _taps(images).T @ cotangent.reshape(-1, features), None

        d_kernel, _ = _by_chunks(of_kernel, channels, images, cotangent)
        # XLA's gradient of wide images is as fast; that of narrow ones is seldom asked for.
        return _gradients(images, kernel, cotangent)[0], d_kernel.reshape(kernel.shape)

    mirrored = kernel[::-1, ::-1].swapaxes(2, 3).reshape(-1, channels)

    def of_both(images, cotangent):
        met = _taps(cotangent)
        return images.reshape(-1, channels).T @ met, (met @ mirrored).reshape(images.shape)

    d_kernel, d_images = _by_chunks(of_both, features, images, cotangent)
    d_kernel = d_kernel.reshape(channels, 3, 3, -1)[:, ::-1, ::-1].transpose(1, 2, 0, 3)
    return d_images, d_kernel


def _gradients(images, kernel, cotangent):
    return jax.vjp(conv, images, kernel)[1](cotangent)


def _wide_forward(images, kernel):
    return conv_wide(images, kernel), (images, kernel)


def _wide_backward(residuals, cotangent):
    return lax.platform_dependent(
        *residuals, cotangent, cpu=_gradients_by_chunks, default=_gradients
    )


conv_wide.defvjp(_wide_forward, _wide_backward)


def conv_mean(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The average over all positions of `conv`'s output, without that output.

    Averaging goes before the products: a tap's share is its weight times the sum of the pixels it
    meets, which are all but a border row or column. One product a tap is left for a whole image.

    Args:
      images: float [n, h, w, ci].
      kernel: float [3, 3, ci, co].

    Returns:
      float32 [n, co].

    Example:
      >>> conv_mean(jnp.ones((1, 2, 3, 1)), jnp.ones((3, 3, 1, 1))).tolist()
      [[4.666666507720947]]
    """

    def by_tap(x: jax.Array, axis: int) -> jax.Array:
        """Sums along the axis of what its three taps meet, in its place."""
        size = x.shape[axis]
        bounds = ((0, size - 1), (0, size), (1, size))
        parts = [lax.slice_in_dim(x, *at, axis=axis).sum(axis, jnp.float32) for at in bounds]
        return jnp.stack(parts, axis)

    n, height, width, _ = images.shape
    met = by_tap(by_tap(images, 1), 2).reshape(n, -1)
    return met @ kernel.reshape(met.shape[1], -1) / (height * width)


# Nearest ×2 up-sampling followed by a 3×3 convolution, computed at the low resolution.
#
# After nearest up-sampling, output row 2i sees input rows i-1, i, i by its three taps, and output
# row 2i+1 sees i, i, i+1. The middle tap always falls on the pixel's own row i; the outer two fall
# on the rows around the corner between i-1 and i, or between i and i+1, and two output rows share
# each corner. The same holds of columns. So the layer is the sum of four small convolutions at the
# low resolution, by the outer or the middle taps of rows and of columns, each up-sampled: nine
# products an input pixel where the plain layer has 36, and no enlarged input in memory. The
# function, its parameters and its gradients are the plain layer's. (The sub-pixel view of the
# layer, four 2×2 convolutions, has 16: Shi et al. 2016, "Is the deconvolution layer the same as a
# convolutional layer?", arXiv:1609.07009.)


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


def _upsample_forward(images, kernel):
    return _upsample_conv(images, kernel), (images, kernel)


def _upsample_backward(residuals, cotangent):
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


_upsample_conv.defvjp(_upsample_forward, _upsample_backward)


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
      >>> upsample_conv(jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()[1]
      [6.0, 9.0, 9.0, 6.0]
    """
    if kernel.shape[:2] != (3, 3) or kernel.shape[2] != images.shape[-1]:
        raise ValueError(
            f"upsample_conv needs a kernel [3, 3, {images.shape[-1]}, features] for these images, "
            f"got {kernel.shape}"
        )
    return _upsample_conv(images, kernel)


class Conv3x3(nn.Module):
    """A 3×3 convolution with bias; its parameters `kernel` and `bias` are those of `nn.Conv`.

    Attributes:
      features: of the result.
      convolve: (images [n, h, w, c], kernel [3, 3, c, features]) → [n, …, features].
      dtype: what it computes in and returns; the parameters are float32.

    Example:
      >>> layer = Conv3x3(features=2, convolve=conv)
      >>> variables = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
      >>> jax.tree.map(jnp.shape, variables["params"])
      {'bias': (2,), 'kernel': (3, 3, 3, 2)}
    """

    features: int
    convolve: Callable[[jax.Array, jax.Array], jax.Array]
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        shape = (3, 3, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        images, kernel, bias = (x.astype(self.dtype) for x in (images, kernel, bias))
        return self.convolve(images, kernel) + bias
