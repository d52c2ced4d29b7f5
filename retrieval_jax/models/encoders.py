"""Encoders: images to features, and the factories by which a config names them.

An encoder is any Flax module that is called with images float [n, h, w, c] in [0, 1] and
`train: bool = False`, and returns a feature map [n, h', w', d], whose average over positions is the
embedding, or the embedding [n, d]. A factory is a function that returns one: its parameters with
defaults are the config's keys; of those without, it gets what it names of

    axis_name  the mapped axis of devices, for BatchNorm over the whole batch
    dtype      what to compute in (`training.precision`)
    channels   of the images

A module with a method `initial` starts training from the parameters that it returns.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.models.convs import Conv3x3, conv, conv_from_narrow, conv_mean


def convolutional(
    *,
    axis_name: str | None,
    dtype: jax.typing.DTypeLike,
    widths: Sequence[int] = (32, 64),
    bottleneck: int = 128,
    momentum: float = 0.99,
) -> Encoder:
    """The encoder of the 2020 report.

    Args:
      axis_name: mapped axis over which BatchNorm's batch statistics are averaged.
      dtype: what it computes in.
      widths: features of each stage; each stage halves the image's sides.
      bottleneck: features of the bottleneck: the embedding's size.
      momentum: share of the old in BatchNorm's running statistics, per step.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_widths(widths)
    if bottleneck < 1:
        raise ValueError(f"bottleneck must be at least 1, got {bottleneck}")
    check_momentum(momentum)
    return Encoder(tuple(widths), bottleneck, momentum, axis_name, dtype)


def check_widths(widths: Sequence[int]) -> None:
    """Raises a ValueError unless there are widths, all of them positive.

    Example:
      >>> check_widths((32, 64))
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be positive numbers, at least one, got {tuple(widths)}")


def check_momentum(momentum: float) -> None:
    """Raises a ValueError unless BatchNorm can keep that share of the old.

    Example:
      >>> check_momentum(0.9)
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, got {momentum}")


def normalise_relu(
    x: jax.Array,
    train: bool,
    momentum: float,
    axis_name: str | None,
    dtype: jax.typing.DTypeLike,
    name: str,
) -> jax.Array:
    """BatchNorm as the report has it (epsilon 1e-3), then ReLU; inside a compact method."""
    norm = nn.BatchNorm(
        use_running_average=not train,
        momentum=momentum,
        epsilon=1e-3,
        axis_name=axis_name,
        dtype=dtype,
        name=name,
    )
    return nn.relu(norm(x))


@jax.custom_vjp
def max_pool_2x2(x: jax.Array) -> jax.Array:
    """The largest of each 2×2 of images [n, h, w, c], whose sides are even.

    Values that are equal share the gradient, as in JAX, which is finite whatever XLA fuses. JAX's
    own divides by how many values of a window equal the largest. Where XLA computes BatchNorm
    twice, for the pool and for that comparison, and rounds differently, none does: 0 / 0.

    Example:
      >>> max_pool_2x2(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
      [[[[3.0]]]]
      >>> jax.grad(lambda x: max_pool_2x2(x).sum())(jnp.ones((1, 2, 2, 1))).ravel().tolist()
      [0.25, 0.25, 0.25, 0.25]
    """
    # A reshape, not nn.max_pool: the gradient is then a comparison, not a slow select-and-scatter.
    return _windows(x).max((2, 4))


def _windows(x: jax.Array) -> jax.Array:
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels)


def _pool_forward(x):
    largest = max_pool_2x2(x)
    return largest, (x, largest)


def _pool_backward(residuals, cotangent):
    x, largest = residuals
    equal = _windows(x) == largest[:, :, None, :, None]
    share = cotangent / jnp.maximum(equal.sum((2, 4), dtype=x.dtype), 1)
    return (jnp.where(equal, share[:, :, None, :, None], 0).reshape(x.shape),)


max_pool_2x2.defvjp(_pool_forward, _pool_backward)


class Encoder(nn.Module):
    """Stages of convolution, BatchNorm, ReLU and 2×2 max-pool, then the bottleneck convolution.

    Every convolution is 3×3, stride 1, SAME, with bias; kernels are Glorot-uniform, biases zero.
    The embedding of an image is the bottleneck convolution's output, before any BatchNorm and ReLU,
    averaged over its positions.

    Call with images float [n, h, w, c] in [0, 1], h and w multiples of 2^len(widths); returns
    [n, h / 2^s, w / 2^s, bottleneck] for s = len(widths). With `averaged`, float32 [n, bottleneck],
    the average of that over its positions, for a fraction of the bottleneck's work.

    Attributes:
      widths: features of each stage.
      bottleneck: features of the bottleneck, the size of the embedding.
      momentum: of BatchNorm's running statistics, the share of the old.
      axis_name: mapped axis over which BatchNorm's batch statistics are averaged in training.
      dtype: what convolutions and activations are computed in, and the type of the result;
        parameters and BatchNorm's statistics are float32 whatever it is.

    Raises:
      ValueError: a side of the images is not divisible by 2^len(widths).
    """

    widths: Sequence[int] = (32, 64)
    bottleneck: int = 128
    momentum: float = 0.99
    axis_name: str | None = None
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, averaged: bool = False) -> jax.Array:
        height, width = images.shape[1:3]
        stride = 2 ** len(self.widths)
        if height % stride or width % stride:
            raise ValueError(
                f"widths has {len(self.widths)} stages, which need image sides divisible by "
                f"{stride}; the images are {height}×{width}: resize them or change the stages"
            )
        x = images
        for i, features in enumerate(self.widths, 1):
            # The first one reads the image, which has few channels.
            convolve = conv if i > 1 else conv_from_narrow
            x = Conv3x3(features, convolve, self.dtype, name=f"conv{i}")(x)
            x = normalise_relu(x, train, self.momentum, self.axis_name, self.dtype, f"norm{i}")
            x = max_pool_2x2(x)
        convolve = conv_mean if averaged else conv
        return Conv3x3(self.bottleneck, convolve, self.dtype, name="bottleneck")(x)

    def embed(self, images: jax.Array) -> jax.Array:
        """Embeddings float32 [n, bottleneck], for a fraction of the bottleneck's work."""
        return self(images, averaged=True)
