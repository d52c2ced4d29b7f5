"""The nearest centroid of each point, and the distances to all of them."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from retrieval_jax.kmeans._points import power_of_two_for
from retrieval_jax.numerics.arguments import whole_number
from retrieval_jax.numerics.distances import (
    matrix,
    on_grid,
    over_chunks,
    same_features,
    scores,
    sum_of_squares,
    unit,
    working_type,
)

# Up to so many centroids that rounding may take for the nearest are looked at one by one.
_FEW = 8


def predict(
    points: ArrayLike,
    centroids: ArrayLike,
    *,
    spherical: bool = False,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns the nearest centroid of each point; of equally near ones the first.

    The label of a point depends on nothing but that point and the centroids: not on the other
    points, the chunks or the devices. Near ties are settled by sums of squared differences in an
    order that is always the same. Any scale will do: points and centroids are divided by the power
    of two above the largest magnitude first.

    Args:
      points: [n, d], of real numbers. They are compared in float32 (bfloat16 is converted a chunk
        at a time), or under `jax_enable_x64` in float64 where points or centroids are float64.
      centroids: [k, d].
      spherical: scales the points to unit length first, as `kmeans` does under that name.
      chunk_size: rows of points in a chunk: memory for chunk_size × k floats is needed. None for
        about 2 MiB on a CPU, 8 elsewhere.

    Returns:
      int32 [n].

    Raises:
      ValueError: arrays that are empty, not two-dimensional or not of real numbers, differ in d, or
        hold NaN or infinite values.

    Example:
      >>> predict([[0.0], [4.0], [5.0]], [[0.0], [5.0]]).tolist()
      [0, 1, 1]
    """
    points, centroids, chunk = _checked(points, centroids, chunk_size)
    return _predict(points, centroids, chunk, spherical)


def transform(
    points: ArrayLike,
    centroids: ArrayLike,
    *,
    spherical: bool = False,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns the Euclidean distance of each point to each centroid, from differences.

    It can be differentiated; where a point lies on a centroid the gradient is 0. Any scale will do,
    but distances below 1e-19 of the largest magnitude (1e-154 in float64) are 0.

    Args:
      points: [n, d], as for `predict`.
      centroids: [k, d].
      spherical: scales the points to unit length first, as `kmeans` does under that name.
      chunk_size: rows of points in a chunk; None for about 2 MiB of distances on a CPU.

    Returns:
      float32 (or float64, as `predict` compares) [n, k].

    Raises:
      ValueError: as `predict`.

    Example:
      >>> transform([[0.0, 0.0], [3.0, 0.0]], [[3.0, 4.0], [0.0, 0.0]]).tolist()
      [[5.0, 0.0], [4.0, 3.0]]
    """
    points, centroids, chunk = _checked(points, centroids, chunk_size)
    return _transform(points, centroids, chunk, spherical)


def chunk_rows(chunk_size: int | None, n: int, k: int) -> int:
    """The rows of a chunk for n points and k centroids; None: as the platform likes them.

    On a CPU that is 2¹⁹ distances, which stay in a core's cache, but 128 to 2¹³ rows; elsewhere 2²¹
    distances, the most anywhere, and at most 2¹⁴ rows.

    Raises:
      ValueError: a size below 1.

    Example:
      >>> chunk_rows(None, 10**6, 1000), chunk_rows(None, 10**6, 10), chunk_rows(512, 100, 10)
      (524, 8192, 100)
    """
    if chunk_size is not None:
        return min(whole_number(chunk_size, "chunk_size"), n)
    most = max((1 << 21) // k, 1)
    if jax.default_backend() != "cpu":
        return min(most, 1 << 14, n)
    return min(max((1 << 19) // k, 128), most, 1 << 13, n)


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
    # The first that equals the minimum: an argmin would cost more than the matmul before it, and on
    # a CPU the least integer takes longer than the least float, which is exact below 2²⁴.
    numbers = jnp.arange(k, dtype=jnp.float32)[:, None]
    labels = jnp.where(all_scores == least, numbers, k - 1).min(0).astype(jnp.int32)
    return labels, least, all_scores


def assign_all(
    points: jax.Array, centroids: jax.Array, scale: jax.Array, chunk: int, spherical: bool
) -> tuple[jax.Array, jax.Array]:
    """Labels [n] and squared distances [n], for points and centroids as the caller gave them.

    Labels are those of `predict`. The distances are of points and centroids times `scale`.
    """
    dtype = jnp.promote_types(working_type(points.dtype), centroids.dtype)
    centroids = centroids.astype(dtype) * scale
    # On a grid as coarse as their spread: equal distances of points on a grid come out equal.
    mean = centroids.mean(0)
    centre = on_grid(mean, jnp.abs(centroids - mean).max())

    def fill(out, start: jax.Array, rows: jax.Array, _):
        rows = (unit(rows) if spherical else rows).astype(dtype) * scale
        put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(put, out, _nearest(rows, centroids, centre))

    n = len(points)
    return over_chunks(points, chunk, fill, (jnp.zeros(n, jnp.int32), jnp.zeros(n, dtype)))


def _nearest(rows, centroids, centre) -> tuple[jax.Array, jax.Array]:
    """The nearest centroid int32 [c] of rows [c, d], the first if several are, and its distance².

    The products that are fast depend, in their last bits, on the shape of the chunk. They only say
    which centroids may be the nearest; between these, differences decide.
    """
    (k, d), c = centroids.shape, len(rows)
    x, centred = rows - centre, centroids - centre
    found = scores(x, centred)
    sizes = jnp.sqrt((centred**2).sum(1))[:, None] + jnp.sqrt((x**2).sum(1))
    slack = 8 * d**0.5 * jnp.finfo(x.dtype).eps * sizes**2
    possible = found - slack <= (found + slack).min(0)
    numbers = jnp.arange(k, dtype=jnp.int32)[:, None]
    count = possible.sum(0, dtype=jnp.int32).max()

    def compare(best, label):
        squares = sum_of_squares(rows - centroids[label])
        return jax.tree.map(partial(jnp.where, squares < best[1]), (label, squares), best)

    def next_possible(_, state):
        last, best = state
        label = jnp.where(possible & (numbers > last), numbers, k).min(0)
        label = jnp.where(label == k, last, label)  # no further one: the last again changes nothing
        return label, compare(best, label)

    # Not by `cond`: under vmap both ways would be gone.
    crowded = count > _FEW
    first = jnp.where(possible, numbers, k - 1).min(0)
    best = first, sum_of_squares(rows - centroids[first])
    more = jnp.where(crowded, 1, count)
    _, best = lax.fori_loop(1, more, next_possible, (first, best))
    every = jnp.where(crowded, k, 0)
    number = lambda i: jnp.full(c, i, jnp.int32)  # noqa: E731
    return lax.fori_loop(0, every, lambda i, best: compare(best, number(i)), best)


@partial(jax.jit, static_argnums=(2, 3))
def _predict(points, centroids, chunk, spherical) -> jax.Array:
    points, centroids = lax.stop_gradient((points, centroids))
    scale = _scale(points, centroids, spherical)
    return assign_all(points, centroids, scale, chunk, spherical)[0]


@partial(jax.jit, static_argnums=(2, 3))
def _transform(points, centroids, chunk, spherical) -> jax.Array:
    dtype = jnp.promote_types(working_type(points.dtype), centroids.dtype)
    scale = _scale(points, centroids, spherical)
    scaled = centroids.astype(dtype) * scale

    def fill(out, start: jax.Array, rows: jax.Array, _):
        rows = (unit(rows) if spherical else rows).astype(dtype) * scale
        # One centroid at a time, so that the differences never are [c, k, d].
        squares = lax.map(lambda centroid: sum_of_squares(rows - centroid), scaled)
        # The root of 0 has no finite derivative.
        roots = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
        return lax.dynamic_update_slice_in_dim(out, roots.T, start, 0)

    return over_chunks(points, chunk, fill, jnp.zeros((len(points), len(centroids)), dtype)) / scale


def _scale(points, centroids, spherical) -> jax.Array:
    return power_of_two_for(jnp.ones(1, centroids.dtype) if spherical else points, centroids)


def _checked(
    points: ArrayLike, centroids: ArrayLike, chunk_size: int | None
) -> tuple[jax.Array, jax.Array, int]:
    points = matrix(points, "points")
    centroids = matrix(centroids, "centroids")
    centroids = centroids.astype(working_type(centroids.dtype))
    same_features(points, "points", centroids)
    return points, centroids, chunk_rows(chunk_size, len(points), len(centroids))
