"""Losses of one value per example, so that masks and weights are the caller's choice."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def mean_squared_error(reconstruction: jax.Array, images: jax.Array) -> jax.Array:
    """Squared error of each image, averaged over its pixels and channels.

    Args:
      reconstruction: float [n, h, w, c].
      images: float, the same shape.

    Returns:
      float [n], in squared units of the images.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> mean_squared_error(jnp.zeros((2, 1, 2, 1)), jnp.ones((2, 1, 2, 1))).tolist()
      [1.0, 1.0]
    """
    if reconstruction.shape != images.shape:
        raise ValueError(f"reconstruction {reconstruction.shape} and images {images.shape} differ")
    return jnp.mean(jnp.square(reconstruction - images), tuple(range(1, images.ndim)))


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """Softmax cross-entropy of each example, in nats.

    Args:
      logits: float [n, classes].
      labels: int [n] in [0, classes).
      label_smoothing: share s of the target spread evenly over all classes (Szegedy et al. 2016,
        "Rethinking the Inception architecture", section 7, arXiv:1512.00567).

    Returns:
      float [n].

    Raises:
      ValueError: the shapes don't match, or the smoothing is not in [0, 1).

    Example:
      >>> print(f"{cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]:.4f}")  # log 4
      1.3863
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits {logits.shape} need labels [{len(logits)}], got {labels.shape}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)
