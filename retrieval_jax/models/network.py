"""The convolutional autoencoder of the protocol, with an optional classification head.

Every convolution is 3×3, stride 1, SAME, with bias; kernels are Glorot-uniform and biases zero.
BatchNorm has epsilon 1e-3 and stands before ReLU. The embedding of an image is
the bottleneck convolution's output, before its BatchNorm and ReLU, averaged over its positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.models.convs import (
    Conv3x3,
    conv,
    conv_from_narrow,
    conv_mean,
    conv_to_narrow,
)
from retrieval_jax.models.upsample_conv import upsample_conv


class Outputs(NamedTuple):
    """What the autoencoder says of a batch of n images [n, h, w, c]."""

    embedding: jax.Array  # float32 [n, bottleneck features]
    reconstruction: jax.Array  # float32 [n, h, w, c] in (0, 1)
    logits: jax.Array | None  # float32 [n, classes]; None without a head


def _normalise_relu(module: Encoder | Decoder, x: jax.Array, train: bool, name: str) -> jax.Array:
    norm = nn.BatchNorm(
        use_running_average=not train,
        momentum=module.momentum,
        epsilon=1e-3,
        axis_name=module.axis_name,
        dtype=module.dtype,
        name=name,
    )
    return nn.relu(norm(x))


def _max_pool_2x2(x: jax.Array) -> jax.Array:
    # A reshape, not nn.max_pool: the gradient is then a comparison, not a slow select-and-scatter.
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


class Encoder(nn.Module):
    """Stages of convolution, BatchNorm, ReLU and 2×2 max-pool, then the bottleneck convolution.

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
                f"{len(self.widths)} pooling stages need image sides divisible by {stride}, "
                f"got {height}×{width}"
            )
        x = images
        for i, features in enumerate(self.widths, 1):
            # The first one reads the image, which has few channels.
            convolve = conv if i > 1 else conv_from_narrow
            x = Conv3x3(features, convolve, self.dtype, name=f"conv{i}")(x)
            x = _normalise_relu(self, x, train, f"norm{i}")
            x = _max_pool_2x2(x)
        convolve = conv_mean if averaged else conv
        return Conv3x3(self.bottleneck, convolve, self.dtype, name="bottleneck")(x)


class Decoder(nn.Module):
    """BatchNorm and ReLU on the bottleneck, stages of ×2 up-sampling convolution, a sigmoid output.

    Call with the encoder's output [n, h, w, bottleneck]; returns [n, h·2^s, w·2^s, channels] in
    (0, 1) for s = len(widths).

    Attributes:
      widths: features of each up-sampling stage.
      channels: channels of the images.
      momentum, axis_name, dtype: as in `Encoder`, but the result is float32.
    """

    widths: Sequence[int] = (128, 64)
    channels: int = 3
    momentum: float = 0.99
    axis_name: str | None = None
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, bottleneck: jax.Array, train: bool = False) -> jax.Array:
        x = _normalise_relu(self, bottleneck, train, "norm0")
        for i, features in enumerate(self.widths, 1):
            x = Conv3x3(features, upsample_conv, self.dtype, name=f"conv{i}")(x)
            x = _normalise_relu(self, x, train, f"norm{i}")
        output = Conv3x3(self.channels, conv_to_narrow, self.dtype, name="output")(x)
        return nn.sigmoid(output.astype(jnp.float32))


class Head(nn.Module):
    """A dense layer from the embedding to class logits: [n, d] → [n, classes].

    Attributes:
      classes: number of classes.
    """

    classes: int

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        init = nn.initializers.glorot_uniform()
        return nn.Dense(self.classes, kernel_init=init, name="dense")(embedding)


class AutoEncoder(nn.Module):
    """Encoder, decoder and, if `head` is given, a classifier on the embedding.

    Call with images float [n, h, w, c] in [0, 1]; returns `Outputs`. In training, BatchNorm uses
    the batch's statistics and the collection "batch_stats" must be mutable.

    Example:
      >>> model = AutoEncoder(Encoder(), Decoder(), Head(classes=10))
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> outputs = model.apply(variables, jnp.zeros((5, 32, 32, 3)))
      >>> outputs.embedding.shape, outputs.reconstruction.shape, outputs.logits.shape
      ((5, 128), (5, 32, 32, 3), (5, 10))
      >>> model.apply(variables, jnp.zeros((5, 32, 32, 3)), method="embed").shape
      (5, 128)
    """

    encoder: Encoder
    decoder: Decoder
    head: Head | None = None

    def __call__(self, images: jax.Array, train: bool = False) -> Outputs:
        bottleneck = self.encoder(images, train)
        embedding = bottleneck.mean((1, 2), jnp.float32)
        return Outputs(
            embedding=embedding,
            reconstruction=self.decoder(bottleneck, train),
            logits=None if self.head is None else self.head(embedding),
        )

    def embed(self, images: jax.Array) -> jax.Array:
        """Embeddings [n, bottleneck] by the encoder alone, with the running statistics."""
        return self.encoder(images, averaged=True)
