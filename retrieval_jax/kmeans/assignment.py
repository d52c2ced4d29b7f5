"""The nearest centroid of each point, and the distances to all of them."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from retrieval_jax.numerics.distances import matrix, over_chunks, same_features, scores, unit


def predict(
    points: ArrayLike,
    centroids: ArrayLike,
    *,
    spherical: bool = False,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns the nearest centroid of each point; of equal centroids the first.

    Args:
      points: [n, d], converted to float32 (bfloat16 a chunk at a time).
      centroids: [k, d], converted to float32.
      spherical: scales the points to unit length first, as `kmeans` does under that name.
      chunk_size: rows of points in a chunk: memory for chunk_size × k floats is needed. None for
        about 8 MiB.

    Returns:
      int32 [n].

    Raises:
      ValueError: arrays that are empty or not two-dimensional, differ in d, or hold NaN or infinite
        values.

    Example:
      >>> predict([[0.0], [4.0], [5.0]], [[0.0], [5.0]]).tolist()
      [0, 1, 1]
    """
    points, centroids, chunk = _checked(points, centroids, chunk_size)
    return assign_all(points, centroids, chunk, spherical)[0]


def transform(
    points: ArrayLike,
    centroids: ArrayLike,
    *,
    spherical: bool = False,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns the Euclidean distance of each point to each centroid, from differences.

    Args:
      points: [n, d], converted to float32 (bfloat16 a chunk at a time).
      centroids: [k, d], converted to float32.
      spherical: scales the points to unit length first, as `kmeans` does under that name.
      chunk_size: rows of points in a chunk; None for about 8 MiB of distances.

    Returns:
      float32 [n, k].

    Raises:
      ValueError: as `predict`.

    Example:
      >>> transform([[0.0, 0.0], [3.0, 0.0]], [[3.0, 4.0], [0.0, 0.0]]).tolist()
      [[5.0, 0.0], [4.0, 3.0]]
    """
    points, centroids, chunk = _checked(points, centroids, chunk_size)
    return _transform(points, centroids, chunk, spherical)


def chunk_rows(chunk_size: int | None, n: int, k: int) -> int:
    """The rows of a chunk for n points and k centroids; None: 2²¹ distances, at most 2¹⁴ rows.

    Raises:
      ValueError: a size below 1.

    Example:
      >>> chunk_rows(None, 10**6, 1000), chunk_rows(None, 10**6, 10), chunk_rows(512, 100, 10)
      (2097, 16384, 100)
    """
    if chunk_size is None:
        chunk_size = max(1, min((1 << 21) // k, 1 << 14))
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1; it is {chunk_size}.")
    return min(chunk_size, n)


def assign(rows: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nearest centroid int32 [c] and squared distance to it [c], for centred rows [c, d].

    Example:
      >>> labels, distances = assign(jnp.array([[-1.0], [2.0]]), jnp.array([[3.0], [0.0]]))
      >>> labels.tolist(), distances.tolist()
      ([1, 0], [1.0, 1.0])
    """
    labels, least, _ = least_scores(rows, centroids)
    return labels, jnp.maximum(least + (rows**2).sum(1), 0)


def least_scores(rows: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Nearest centroid [c] of rows [c, d], its score [c], and the scores of all of them [k, c]."""
    k = len(centroids)
    all_scores = scores(rows, centroids)
    least = all_scores.min(0)
    # The first that equals the minimum: an argmin would cost more than the matmul before it.
    labels = jnp.where(all_scores == least, jnp.arange(k, dtype=jnp.int32)[:, None], k - 1).min(0)
    return labels, least, all_scores


@partial(jax.jit, static_argnums=(2, 3))
def assign_all(
    points: jax.Array, centroids: jax.Array, chunk: int, spherical: bool
) -> tuple[jax.Array, jax.Array]:
    """Labels [n] and squared distances [n], for points and centroids as the caller gave them."""
    centre = centroids.mean(0)
    centred = centroids - centre

    def fill(out, start: jax.Array, rows: jax.Array, _):
        rows = unit(rows) if spherical else rows
        labels, _ = assign(rows - centre, centred)
        # From differences: the expanded square would cancel where clusters are tight.
        distances = ((rows - centroids[labels]) ** 2).sum(1)
        put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return put(out[0], labels), put(out[1], distances)

    n = len(points)
    return over_chunks(points, chunk, fill, (jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.float32)))


@partial(jax.jit, static_argnums=(2, 3))
def _transform(points, centroids, chunk, spherical) -> jax.Array:
    def fill(out, start: jax.Array, rows: jax.Array, _):
        rows = unit(rows) if spherical else rows
        # One centroid at a time, so that the differences never are [c, k, d].
        squares = lax.map(lambda centroid: ((rows - centroid) ** 2).sum(1), centroids)
        return lax.dynamic_update_slice_in_dim(out, jnp.sqrt(squares).T, start, 0)

    return over_chunks(points, chunk, fill, jnp.zeros((len(points), len(centroids)), jnp.float32))


def _checked(
    points: ArrayLike, centroids: ArrayLike, chunk_size: int | None
) -> tuple[jax.Array, jax.Array, int]:
    points = matrix(points, "points")
    centroids = matrix(centroids, "centroids").astype(jnp.float32)
    same_features(points, "points", centroids)
    return points, centroids, chunk_rows(chunk_size, len(points), len(centroids))
