"""k-means on a stream of batches.

Reference:
  D. Sculley, "Web-scale k-means clustering", WWW 2010.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from retrieval_jax.kmeans._passes import Statistics, dense_statistics, move
from retrieval_jax.kmeans._points import Points, check_weights, moments
from retrieval_jax.kmeans.assignment import chunk_rows
from retrieval_jax.kmeans.seeding import plus_plus
from retrieval_jax.numerics.distances import matrix, same_features


class MiniBatchState(NamedTuple):
    """What mini-batch k-means keeps between batches.

    Attributes:
      centroids: float32 [k, d]; unit vectors when spherical.
      mass: float32 [k], the weight of the points that each centroid is the mean of.
      inertia: float32 scalar, of the last batch at the centroids that it found; NaN at the start.
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
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the number of points, {n}; it is {k}.")
    weights = check_weights(weights, n, k)
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
    that was given no point so far goes to a point of the batch that is far from its own. It can be
    jitted and scanned over batches [b, n, d].

    Args:
      state: of `mini_batch_start` or the step before.
      points: [n, d], as for `kmeans`.
      weights: [n], ≥ 0; 0 for padded rows. None for 1 each.
      spherical: as at the start.
      axis_name: the mapped axis whose devices share the batch.

    Returns:
      The new state, the same on every device.

    Raises:
      ValueError: points that are empty, not finite, or of another d; weights of another length, not
        finite or negative.

    Example:
      >>> state = MiniBatchState(jnp.array([[0.0], [9.0]]), jnp.array([1.0, 0.0]), jnp.nan)
      >>> state = mini_batch_step(state, [[1.0], [8.0]])
      >>> state.centroids.tolist(), state.mass.tolist(), float(state.inertia)
      ([[0.5], [8.0]], [2.0, 1.0], 2.0)
    """
    points = matrix(points, "points")
    same_features(points, "points", state.centroids)
    weights = check_weights(weights, len(points), 0)
    chunk = chunk_rows(None, len(points), len(state.centroids))
    return _step(state, points, weights, spherical, chunk, axis_name)


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _start(key, points, weights, k, spherical, chunk, axis_name) -> MiniBatchState:
    zero = jnp.zeros(points.shape[1], jnp.float32)
    data = Points(points, weights, zero, chunk, spherical, axis_name)
    data = data._replace(centre=moments(data)[0])
    centroids = plus_plus(data, key, k)[0] + data.centre
    return MiniBatchState(centroids, jnp.zeros(k, jnp.float32), jnp.float32(jnp.nan))


@partial(jax.jit, static_argnums=(3, 4, 5))
def _step(state, points, weights, spherical, chunk, axis_name) -> MiniBatchState:
    centre = state.centroids.mean(0)
    data = Points(points, weights, centre, chunk, spherical, axis_name)
    centroids = state.centroids - centre
    batch = dense_statistics(data, centroids)
    sums = state.mass[:, None] * centroids + batch.sums
    moved = move(data, centroids, Statistics(sums, state.mass + batch.mass, batch.inertia))
    return MiniBatchState(moved + centre, state.mass + batch.mass, batch.inertia)
