"""Silhouettes: how much nearer each point is to its own cluster than to the next, in tiles.

References:
  P. J. Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster
    analysis", Journal of Computational and Applied Mathematics, 1987.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from retrieval_jax.metrics.labels import host_labels
from retrieval_jax.numerics.distances import matrix, over_chunks, scores

# Of a squared distance this far below the squares of its points, products keep three digits.
_SHORT = 2.0**-10


def silhouette(points: ArrayLike, labels: ArrayLike, *, chunk: int = 512) -> float:
    """The mean of `silhouette_samples`, with the same arguments and errors.

    Example:
      >>> round(silhouette([[0.0], [1.0], [5.0], [6.0]], [0, 0, 1, 1]), 4)
      0.798
    """
    return float(np.asarray(silhouette_samples(points, labels, chunk=chunk), np.float64).mean())


def silhouette_samples(points: ArrayLike, labels: ArrayLike, *, chunk: int = 512) -> jax.Array:
    """The silhouette (b - a) / max(a, b) of each point, by Euclidean distance.

    a is the mean distance to the other points of its cluster, b the least mean distance to the
    points of another. A point alone in its cluster has 0, as has one with a = b = 0. Time grows
    with n² d; beside a sorted copy of the points, memory with chunk × (chunk + d + clusters). Not
    for use under jit: the labels set shapes.

    Args:
      points: [n, d], converted to float32.
      labels: int [n], any integers; each that occurs is a cluster.
      chunk: rows and columns of a tile of distances.

    Returns:
      float32 [n] in [-1, 1].

    Raises:
      ValueError: points that are empty, not [n, d] or not finite; labels that are not n integers,
        or not of 2 to n - 1 clusters; chunk below 1.

    Example:
      >>> found = silhouette_samples([[0.0], [1.0], [5.0]], [7, 7, 3])
      >>> [round(float(value), 4) for value in found]
      [0.8, 0.75, 0.0]
    """
    points = matrix(points, "points")
    _, codes = np.unique(host_labels(labels, len(points), "labels"), return_inverse=True)
    sizes = np.bincount(codes)
    if not 2 <= len(sizes) < len(points):
        raise ValueError(
            f"silhouettes need 2 to {len(points) - 1} clusters of {len(points)} points; "
            f"there are {len(sizes)}."
        )
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1; it is {chunk}.")
    order = np.argsort(codes, kind="stable")
    in_order, counts = (array.astype(np.int32) for array in (codes[order], sizes))
    return _samples(points, order, in_order, counts, min(chunk, len(points)))


@partial(jax.jit, static_argnums=4)
def _samples(points, order, codes, sizes, chunk) -> jax.Array:
    points = points[order]

    def score(found, start, rows, _):
        own = lax.dynamic_slice_in_dim(codes, start, chunk)
        with jax.enable_x64(True):
            sums = _sums(points, codes, len(sizes), rows)
            inside = own == jnp.arange(len(sizes))[:, None]
            a = jnp.where(inside, sums, 0).sum(0) / jnp.maximum(sizes[own] - 1, 1)
            b = jnp.where(inside, jnp.inf, sums / sizes[:, None]).min(0)
            scored = (sizes[own] > 1) & (jnp.maximum(a, b) > 0)
            values = jnp.where(scored, (b - a) / jnp.maximum(a, b), 0).astype(jnp.float32)
        return lax.dynamic_update_slice_in_dim(found, values, start, 0)

    found = over_chunks(points, chunk, score, jnp.zeros(len(points), jnp.float32))
    return jnp.zeros_like(found).at[order].set(found)


def _sums(points, codes, clusters, rows) -> jax.Array:
    """Sums float64 [clusters, chunk] of the distances of points to rows [chunk, d].

    Points are in order of cluster. So the rows are near their mean, and what is near them is near
    0 when it is taken off: short distances lose no digits to long ones. Sums of thousands of
    distances in float32 would lose the sixth.
    """
    origin = rows.mean(0)
    rows = rows - origin

    def add(sums, at, references, new):
        squared = jnp.where(new[:, None], _squared(rows, references - origin), 0)
        near = lax.dynamic_slice_in_dim(codes, at, len(rows))
        return sums.at[near].add(jnp.sqrt(squared).astype(sums.dtype))

    none = jnp.zeros((clusters, len(rows)), jnp.float64)
    return over_chunks(points, len(rows), add, none)


def _squared(rows, references) -> jax.Array:
    """Squared distances [m, n] of references [m, d] to rows [n, d].

    From products, but from differences in the rare tile where a distance is so short beside the
    points' own size that products lose it: a point is at 0 from itself and from its copies.
    """
    squared = scores(rows, references) + (rows**2).sum(1)
    size = (rows**2).sum(1) + (references**2).sum(1)[:, None]
    lost = (squared < _SHORT * size).any()

    def differences():
        return lax.map(lambda row: ((references - row) ** 2).sum(1), rows).T

    return lax.cond(lost, differences, lambda: squared)
