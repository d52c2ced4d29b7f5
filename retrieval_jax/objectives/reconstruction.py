"""The images again, from the bottleneck: the objective without labels of the 2020 report."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from retrieval_jax.objectives.objective import Loss, Seen, Term, mean_of


def mean_squared_error(reconstruction: jax.Array, images: jax.Array) -> jax.Array:
    """Squared error of each image, averaged over its pixels and channels.

    Args:
      reconstruction: float [..., h, w, c].
      images: float, the same shape.

    Returns:
      float [...], in squared units of the images.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> mean_squared_error(jnp.zeros((2, 1, 2, 1)), jnp.ones((2, 1, 2, 1))).tolist()
      [1.0, 1.0]
    """
    if reconstruction.shape != images.shape:
        raise ValueError(f"reconstruction {reconstruction.shape} and images {images.shape} differ")
    return jnp.mean(jnp.square(reconstruction - images), (-3, -2, -1))


def reconstruction(weight: float = 0.0) -> Term:
    """Mean squared error between each view and its reconstruction.

    Args:
      weight: of the mean squared error of the pixels, which are in [0, 1].
    """

    def loss(seen: Seen) -> Loss:
        pairs = zip(seen.outputs.reconstruction, seen.batch.images, strict=True)
        errors = [mean_squared_error(ours, images) for ours, images in pairs]
        return mean_of(jnp.concatenate(errors), seen.batch)

    return Term(loss, weight, needs=("reconstruction",))
