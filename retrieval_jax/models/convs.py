"""3×3 convolutions, stride 1, SAME padding: from and to the few channels of an image, and others.

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
