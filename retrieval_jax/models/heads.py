"""What stands on the embedding: a classifier, a projector and a predictor."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.models.encoders import check_widths


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


class MLP(nn.Module):
    """Dense layers with BatchNorm and ReLU between them: [n, d] → float32 [n, widths[-1]].

    The projector of SimCLR (Chen et al. 2020, arXiv:2002.05709) and the predictor of BYOL (Grill et
    al. 2020, arXiv:2006.07733).

    Attributes:
      widths: features of each layer; the last is linear.
      axis_name: mapped axis over which BatchNorm's batch statistics are averaged in training.
      dtype: what it computes in; the result is float32.
    """

    widths: Sequence[int]
    axis_name: str | None = None
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for i, features in enumerate(self.widths[:-1], 1):
            x = nn.Dense(features, use_bias=False, dtype=self.dtype, name=f"dense{i}")(x)
            norm = nn.BatchNorm(
                not train, momentum=0.9, axis_name=self.axis_name, dtype=self.dtype, name=f"norm{i}"
            )
            x = nn.relu(norm(x))
        x = nn.Dense(self.widths[-1], dtype=self.dtype, name=f"dense{len(self.widths)}")(x)
        return x.astype(jnp.float32)


def projector(
    *, axis_name: str | None, dtype: jax.typing.DTypeLike, widths: Sequence[int] = (512, 128)
) -> MLP:
    """From the embedding to where a label-free loss compares views.

    Args:
      axis_name: mapped axis over which BatchNorm's batch statistics are averaged.
      dtype: what it computes in.
      widths: features of each layer; the last is the projection's size.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_widths(widths)
    return MLP(tuple(widths), axis_name, dtype)


def predictor(
    *, axis_name: str | None, dtype: jax.typing.DTypeLike, widths: Sequence[int] = (512, 128)
) -> MLP:
    """From the projection of one view to that of another.

    Args:
      axis_name: mapped axis over which BatchNorm's batch statistics are averaged.
      dtype: what it computes in.
      widths: features of each layer; the last is the projection's size.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_widths(widths)
    return MLP(tuple(widths), axis_name, dtype)
