"""Bounds of distances in a few principal components: the one basis that k-means and ranking share.

With V an orthonormal basis of some directions, p = Vx and r the length of what V leaves of x, the
Cauchy-Schwarz inequality gives |x·y - p·p'| ≤ r r', whatever the basis: a worse one makes looser
bounds, never wrong ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from retrieval_jax.numerics.distances import FULL_PRECISION

# Rows that a basis is found from.
SAMPLE = 4096


class Basis(NamedTuple):
    """Coordinates in which a few components tell most of the distances.

    Attributes:
      origin: [d], of the rows' type, as are the others.
      vectors: [d, m], orthonormal columns.
      residue: scalar, the share of variance outside of them.
    """

    origin: jax.Array
    vectors: jax.Array
    residue: jax.Array


def principal_basis(
    sample: jax.Array,
    origin: jax.Array,
    components: int,
    total: Callable[[Any], Any] = lambda tree: tree,
) -> Basis:
    """A basis of the directions of most variance, by subspace iteration.

    Args:
      sample: float32 or float64 [s, d], some of the rows.
      origin: [d], taken off every row.
      components: how many, m; at most d are found.
      total: sums over the devices that share the rows.

    Example:
      >>> sample = jnp.array([[1.0, 5.0], [3.0, 5.0]])
      >>> basis = principal_basis(sample, sample.mean(0), 1)
      >>> jnp.abs(basis.vectors[:, 0]).round(5).tolist(), float(basis.residue)
      ([1.0, 0.0], 0.0)
    """
    rows = sample - origin
    largest = total(jnp.abs(rows).max())  # squares stay finite
    rows /= jnp.maximum(largest, jnp.finfo(rows.dtype).tiny)

    def improve(_, basis: jax.Array) -> jax.Array:
        inside = jnp.dot(rows, basis, precision=FULL_PRECISION)
        return jnp.linalg.qr(total(jnp.dot(rows.T, inside, precision=FULL_PRECISION)))[0]

    d = rows.shape[1]
    # NumPy's: a generator of random numbers would be compiled for this alone.
    start = np.random.default_rng(0).normal(size=(d, min(components, d))).astype(rows.dtype)
    vectors = lax.fori_loop(0, 4, improve, jnp.asarray(start))
    inside = jnp.dot(rows, vectors, precision=FULL_PRECISION)
    kept, whole = total(((inside**2).sum(), (rows**2).sum()))
    residue = jnp.maximum(1 - kept / jnp.where(whole > 0, whole, 1), 0)
    return Basis(origin, vectors, residue)
