"""The decoder of the 2020 report: from the bottleneck back to the image."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.models.convs import Conv3x3, conv_to_narrow, upsample_conv
from retrieval_jax.models.encoders import check_momentum, check_widths, normalise_relu


def upsampling(
    *,
    channels: int,
    axis_name: str | None,
    dtype: jax.typing.DTypeLike,
    widths: Sequence[int] = (128, 64),
    momentum: float = 0.99,
) -> Decoder:
    """The decoder, as a config's keys describe it.

    Args:
      channels: of the images.
      axis_name: mapped axis over which BatchNorm's batch statistics are averaged.
      dtype: what it computes in.
      widths: features of each ×2 up-sampling stage, as many as the encoder halves the sides.
      momentum: share of the old in BatchNorm's running statistics, per step.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_widths(widths)
    check_momentum(momentum)
    return Decoder(tuple(widths), channels, momentum, axis_name, dtype)


class Decoder(nn.Module):
    """BatchNorm and ReLU on the bottleneck, stages of ×2 up-sampling convolution, a sigmoid output.

    Call with the encoder's output [n, h, w, bottleneck]; returns [n, h·2^s, w·2^s, channels] in
    (0, 1) for s = len(widths).

    Attributes:
      widths: features of each up-sampling stage.
      channels: channels of the images.
      momentum, axis_name, dtype: as in `encoders.Encoder`, but the result is float32.
    """

    widths: Sequence[int] = (128, 64)
    channels: int = 3
    momentum: float = 0.99
    axis_name: str | None = None
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, bottleneck: jax.Array, train: bool = False) -> jax.Array:
        x = self._normalise_relu(bottleneck, train, "norm0")
        for i, features in enumerate(self.widths, 1):
            x = Conv3x3(features, upsample_conv, self.dtype, name=f"conv{i}")(x)
            x = self._normalise_relu(x, train, f"norm{i}")
        output = Conv3x3(self.channels, conv_to_narrow, self.dtype, name="output")(x)
        return nn.sigmoid(output.astype(jnp.float32))

    def _normalise_relu(self, x: jax.Array, train: bool, name: str) -> jax.Array:
        return normalise_relu(x, train, self.momentum, self.axis_name, self.dtype, name)
