"""Silhouettes: how much nearer each point is to its own cluster than to the next, in tiles.

References:
  P. J. Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster
    analysis", Journal of Computational and Applied Mathematics, 1987.
"""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from retrieval_jax.metrics.labels import host_labels
from retrieval_jax.numerics.arguments import whole_number
from retrieval_jax.numerics.distances import (
    largest_magnitude,
    matrix,
    over_chunks,
    power_of_two,
    scores,
    working_type,
)

Metric = Literal["euclidean", "manhattan", "precomputed"]

# Of a squared distance this far below the squares of its points, products keep three digits.
_SHORT = 2.0**-10


def silhouette(
    points: ArrayLike, labels: ArrayLike, *, metric: Metric = "euclidean", chunk: int = 512
) -> float:
    """The mean of `silhouette_samples`, with the same arguments and errors.

    Example:
      >>> round(silhouette([[0.0], [1.0], [5.0], [6.0]], [0, 0, 1, 1]), 4)
      0.798
    """
    samples = silhouette_samples(points, labels, metric=metric, chunk=chunk)
    return float(np.asarray(samples, np.float64).mean())


def silhouette_samples(
    points: ArrayLike, labels: ArrayLike, *, metric: Metric = "euclidean", chunk: int = 512
) -> jax.Array:
    """The silhouette (b - a) / max(a, b) of each point, by distance.

    a is the mean distance to the other points of its cluster, b the least mean distance to the
    points of another. A point alone in its cluster has 0, as has one with a = b = 0. Time grows
    with n² d; beside a sorted copy of the points, memory with chunk × (chunk + d + clusters). The
    points are brought to magnitudes around 1 first, so that no square leaves their type. Not for
    use under jit: the labels set shapes.

    Args:
      points: [n, d], of any real type; or distances [n, n], 0 on the diagonal, row i those of point
        i to all, with metric "precomputed".
      labels: [n], any integers, or strings; each that occurs is a cluster.
      metric: "euclidean"; "manhattan", the sum of absolute differences, which takes several times
        as long; "precomputed".
      chunk: rows and columns of a tile of distances.

    Returns:
      [n] in [-1, 1], float32, or float64 where points were under `jax_enable_x64`.

    Raises:
      ValueError: points that are empty, not [n, d] or not finite; distances that are not [n, n],
        below 0, or not 0 on the diagonal; labels that are not n integers or strings, or not of 2 to
        n - 1 clusters; an unknown metric; chunk below 1.

    Example:
      >>> found = silhouette_samples([[0.0], [1.0], [5.0]], [7, 7, 3])
      >>> [round(float(value), 4) for value in found]
      [0.8, 0.75, 0.0]
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}; it is {metric!r}.")
    points, chunk = matrix(points, "points"), whole_number(chunk, "chunk")
    if metric == "precomputed":
        _check_distances(np.asarray(points))
    _, codes = np.unique(host_labels(labels, len(points), "labels"), return_inverse=True)
    sizes = np.bincount(codes)
    if not 2 <= len(sizes) < len(points):
        raise ValueError(
            f"silhouettes need 2 to {len(points) - 1} clusters of {len(points)} points; "
            f"there are {len(sizes)}."
        )
    # Columns of given distances would have to be put in order too, and need not be.
    order = np.argsort(codes, kind="stable") if metric != "precomputed" else np.arange(len(codes))
    in_order, counts = (array.astype(np.int32) for array in (codes[order], sizes))
    return _samples(points, order, in_order, counts, min(chunk, len(points)), metric)


def _check_distances(matrix: np.ndarray) -> None:
    if matrix.shape[0] != matrix.shape[1] or (matrix < 0).any() or matrix.diagonal().any():
        raise ValueError(
            "precomputed distances must be [n, n], none below 0, and 0 on the diagonal; the shape "
            f"is {matrix.shape}."
        )


@partial(jax.jit, static_argnums=(4, 5))
def _samples(points, order, codes, sizes, chunk, metric) -> jax.Array:
    dtype = working_type(points.dtype)
    # Silhouettes have no unit: a power of two keeps squares finite.
    points = points[order].astype(dtype)
    points *= power_of_two(largest_magnitude(points))

    def score(found, start, rows, _):
        own = lax.dynamic_slice_in_dim(codes, start, chunk)
        with jax.enable_x64(True):
            if metric == "precomputed":
                none = jnp.zeros((len(sizes), chunk), jnp.float64)
                sums = none.at[codes].add(rows.T.astype(jnp.float64))
            else:
                sums = _sums(points, codes, len(sizes), rows, metric)
            inside = own == jnp.arange(len(sizes))[:, None]
            a = jnp.where(inside, sums, 0).sum(0) / jnp.maximum(sizes[own] - 1, 1)
            b = jnp.where(inside, jnp.inf, sums / sizes[:, None]).min(0)
            scored = (sizes[own] > 1) & (jnp.maximum(a, b) > 0)
            values = jnp.where(scored, (b - a) / jnp.maximum(a, b), 0).astype(dtype)
        return lax.dynamic_update_slice_in_dim(found, values, start, 0)

    found = over_chunks(points, chunk, score, jnp.zeros(len(points), dtype))
    return jnp.zeros_like(found).at[order].set(found)


def _sums(points, codes, clusters, rows, metric) -> jax.Array:
    """Sums float64 [clusters, chunk] of the distances of points to rows [chunk, d].

    Points are in order of cluster. So the rows are near their mean, and what is near them is near
    0 when it is taken off: short distances lose no digits to long ones. Sums of thousands of
    distances in float32 would lose the sixth.
    """
    origin = rows.mean(0)
    rows = rows - origin

    def add(sums, at, references, new):
        references -= origin
        if metric == "manhattan":
            distances = lax.map(lambda row: jnp.abs(references - row).sum(1), rows).T
        else:
            distances = jnp.sqrt(_squared(rows, references))
        near = lax.dynamic_slice_in_dim(codes, at, len(rows))
        return sums.at[near].add(jnp.where(new[:, None], distances, 0).astype(sums.dtype))

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
