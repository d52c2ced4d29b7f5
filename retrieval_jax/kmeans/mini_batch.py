"""k-means on a stream of batches.

Reference:
  D. Sculley, "Web-scale k-means clustering", WWW 2010.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from retrieval_jax.kmeans._passes import Statistics, dense_statistics, move
from retrieval_jax.kmeans._points import (
    Points,
    check_clusters,
    check_weights,
    moments,
    power_of_two_for,
)
from retrieval_jax.kmeans.assignment import chunk_rows
from retrieval_jax.kmeans.fit import check_inertia
from retrieval_jax.kmeans.seeding import plus_plus
from retrieval_jax.numerics.distances import matrix, same_features, working_type


class MiniBatchState(NamedTuple):
    """What mini-batch k-means keeps between batches.

    All are float32, or float64 where `kmeans` would be.

    Attributes:
      centroids: [k, d]; unit vectors when spherical.
      mass: [k], the weight of the points that each centroid is the mean of.
      inertia: scalar, of the last batch at the centroids that it found; NaN at the start.
    """

    centroids: jax.Array
    mass: jax.Array
    inertia: jax.Array


def mini_batch_start(
    key: jax.Array,
    points: ArrayLike,
    k: int,
    *,
    weights: ArrayLike | None = None,
    spherical: bool = False,
    axis_name: str | None = None,
) -> MiniBatchState:
    """Seeds the centroids by greedy k-means++ on a first batch, which is not counted yet.

    Args:
      key: JAX random key.
      points: [n, d] of the stream, n ≥ k; as for `kmeans`.
      k: number of clusters.
      weights: [n], ≥ 0; None for 1 each.
      spherical: groups by cosine, as for `kmeans`.
      axis_name: the mapped axis whose devices share the points.

    Returns:
      The state to step from.

    Raises:
      ValueError: as `kmeans`.

    Example:
      >>> state = mini_batch_start(jax.random.key(0), [[0.0], [8.0], [9.0]], k=3)
      >>> sorted(state.centroids.ravel().tolist()), state.mass.tolist()
      ([0.0, 8.0, 9.0], [0.0, 0.0, 0.0])
    """
    points = matrix(points, "points")
    n = len(points)
    k = check_clusters(k, n)
    weights = _summable(check_weights(weights, n, k, working_type(points.dtype)))
    return _start(key, points, weights, k, spherical, chunk_rows(None, n, k), axis_name)


def mini_batch_step(
    state: MiniBatchState,
    points: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    spherical: bool = False,
    axis_name: str | None = None,
) -> MiniBatchState:
    """Assigns a batch to the centroids and moves each to the mean of all points it was ever given.

    A batch of the whole set, from a fresh start, is one iteration of Lloyd's algorithm. A centroid
    that was given no point so far goes to a point of the batch that is far from its own, as long as
    there are such. A batch may be smaller than k. It can be jitted and scanned over batches
    [b, n, d].

    Args:
      state: of `mini_batch_start` or the step before.
      points: [n, d], as for `kmeans`.
      weights: [n], ≥ 0; 0 for padded rows. None for 1 each. Those of all batches must add up to
        a finite float.
      spherical: as at the start.
      axis_name: the mapped axis whose devices share the batch.

    Returns:
      The new state, the same on every device.

    Raises:
      ValueError: points that are empty, not finite, or of another d; weights of another length, not
        finite (each or in sum) or negative; an inertia beyond the largest float (which is infinite
        under jit).

    Example:
      >>> state = MiniBatchState(jnp.array([[0.0], [9.0]]), jnp.array([1.0, 0.0]), jnp.nan)
      >>> state = mini_batch_step(state, [[1.0], [8.0]])
      >>> state.centroids.tolist(), state.mass.tolist(), float(state.inertia)
      ([[0.5], [8.0]], [2.0, 1.0], 2.0)
    """
    points = matrix(points, "points")
    same_features(points, "points", state.centroids)
    n, k = len(points), len(state.centroids)
    dtype = jnp.promote_types(working_type(points.dtype), state.centroids.dtype)
    weights = _summable(check_weights(weights, n, 0, dtype))
    if n < k:  # empty clusters choose among k rows
        points = jnp.pad(points, ((0, k - n), (0, 0)), mode="edge")
        weights = jnp.pad(weights, (0, k - n))
    new = _step(state, points, weights, spherical, chunk_rows(None, len(points), k), axis_name)
    check_inertia(new.inertia)
    return new


def _summable(weights: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    if not isinstance(weights, jax.core.Tracer):
        most = jnp.finfo(weights.dtype).max
        if np.asarray(weights, np.longdouble).sum() > most:
            raise ValueError(f"the weights must add up to less than {most:.1e}.")
    return weights


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _start(key, points, weights, k, spherical, chunk, axis_name) -> MiniBatchState:
    dtype = weights.dtype
    zero = jnp.zeros(points.shape[1], dtype)
    scale = _scale(spherical, axis_name, points)
    data = Points(points, weights, zero, chunk, spherical, axis_name, scale, dtype)
    data = data._replace(weights=weights * power_of_two_for(weights, axis_name=axis_name))
    data = data._replace(centre=moments(data)[0])
    centroids = plus_plus(data.for_seeding(), key, k)[0].astype(dtype) + data.centre
    return MiniBatchState(centroids / scale, jnp.zeros(k, dtype), jnp.full((), jnp.nan, dtype))


@partial(jax.jit, static_argnums=(3, 4, 5))
def _step(state, points, weights, spherical, chunk, axis_name) -> MiniBatchState:
    dtype = weights.dtype
    scale = _scale(spherical, axis_name, points, state.centroids)
    centroids = state.centroids.astype(dtype) * scale
    centre = centroids.mean(0)
    data = Points(points, weights, centre, chunk, spherical, axis_name, scale, dtype)
    centroids -= centre
    batch = dense_statistics(data, centroids)
    mass = state.mass + batch.mass
    sums = state.mass[:, None] * centroids + batch.sums
    moved = move(data, centroids, Statistics(sums, mass, batch.inertia))
    return MiniBatchState((moved + centre) / scale, mass, batch.inertia / scale / scale)


def _scale(spherical, axis_name, *arrays) -> jax.Array | float:
    # Moved centroids are made unit vectors: these must not be scaled.
    return 1.0 if spherical else power_of_two_for(*arrays, axis_name=axis_name)
