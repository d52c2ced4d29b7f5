"""What stands on the embedding: a classifier, a projector, a predictor and prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.models.encoders import check_widths
from retrieval_jax.numerics.distances import unit


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


def mlp(
    *, axis_name: str | None, dtype: jax.typing.DTypeLike, widths: Sequence[int] = (512, 128)
) -> MLP:
    """A projector, from the embedding to where views are compared, or a predictor on that.

    Args:
      axis_name: mapped axis over which BatchNorm's batch statistics are averaged.
      dtype: what it computes in.
      widths: features of each layer; the last is linear, and the same in projector and predictor.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_widths(widths)
    return MLP(tuple(widths), axis_name, dtype)


class Prototypes(nn.Module):
    """Cosines of rows [n, d] with learned prototypes: float32 [n, k].

    SwAV, Caron et al. 2020, arXiv:2006.09882; what is kept at length 1 there after every step has
    it by definition here.

    Attributes:
      k: how many.

    Example:
      >>> layer = Prototypes(3)
      >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 2)))
      >>> bool((jnp.abs(layer.apply(variables, jnp.ones((5, 2)))) <= 1.0001).all())
      True
    """

    k: int

    @nn.compact
    def __call__(self, rows: jax.Array) -> jax.Array:
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (rows.shape[-1], self.k))
        return unit(rows.astype(jnp.float32)) @ unit(kernel.T).T


def prototypes(*, count: int = 256) -> Prototypes:
    """Learned prototypes on the projection, for SwAV.

    Args:
      count: how many.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    return Prototypes(count)
