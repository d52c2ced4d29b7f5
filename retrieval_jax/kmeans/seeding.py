"""Where k-means starts: greedy k-means++, random points, and new places for empty clusters.

References:
  D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
  P. Efraimidis and P. Spirakis, "Weighted random sampling with a reservoir", Information Processing
    Letters, 2006.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.kmeans._points import Points
from retrieval_jax.kmeans.assignment import assign
from retrieval_jax.numerics.distances import FULL_PRECISION, scores

# Rows that are drawn from together. Shards of whole blocks draw what one device would.
BLOCK = 128


def many_seeds(
    seed: Callable[[Points, jax.Array, int], jax.Array],
    points: Points,
    key: jax.Array,
    k: int,
    restarts: int,
) -> jax.Array:
    """The seeds of all restarts: float32 [restarts, k, d], prepared as `points` does.

    Few clusters leave most of a pass over the points to reading them: some restarts share it.

    Args:
      seed: `plus_plus` or `random_points`.
      points: the points.
      key: JAX random key, the same on every device.
      k: number of centroids of each.
      restarts: number of seedings.
    """
    turns = -(-restarts // max(1, 64 // k))
    keys = jax.random.split(key, (turns, -(-restarts // turns)))
    found = lax.map(jax.vmap(lambda key: seed(points, key, k)), keys)
    return found.reshape(-1, *found.shape[2:])[:restarts]


def plus_plus(points: Points, key: jax.Array, k: int) -> jax.Array:
    """Greedy k-means++: of 2 + ⌊ln k⌋ points drawn by squared distance, the best is added.

    Needs memory for n × (3 + ⌊ln k⌋) floats.

    Args:
      points: the points.
      key: JAX random key, the same on every device.
      k: number of centroids.

    Returns:
      float32 [k, d], prepared as `points` does.
    """
    n, d = points.values.shape

    def distances(centroids: jax.Array, nearest: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[m, n]: squared distances to the nearest centroid, were each of m added; and sums."""

        def fill(out, start, rows, weights):
            here = jnp.maximum(scores(rows, centroids) + (rows**2).sum(1), 0)
            here = jnp.minimum(here, lax.dynamic_slice_in_dim(nearest, start, len(rows)))
            whole, sums = out
            total = jnp.dot(here, weights, precision=FULL_PRECISION)
            return lax.dynamic_update_slice_in_dim(whole, here, start, 1), sums + total

        zero = jnp.zeros((len(centroids), n), jnp.float32), jnp.zeros(len(centroids), jnp.float32)
        options, sums = points.fold(fill, zero)
        return options, points.total(sums)

    def add(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centroids, nearest = state
        chance = jnp.where(i > 0, nearest, 1)
        candidates = draw(points, jax.random.fold_in(key, i), chance, 2 + int(math.log(k)))
        options, sums = distances(candidates, nearest)
        best = jnp.where(i > 0, sums.argmin(), 0)  # the first one is any of the points
        return centroids.at[i].set(candidates[best]), options[best]

    start = jnp.zeros((k, d), jnp.float32), jnp.full(n, jnp.inf, jnp.float32)
    return lax.fori_loop(0, k, add, start)[0]


def random_points(points: Points, key: jax.Array, k: int) -> jax.Array:
    """k different points, drawn one after the other in proportion to their weights.

    Args:
      points: at least k of them.
      key: JAX random key, the same on every device.
      k: number of centroids.

    Returns:
      float32 [k, d], prepared as `points` does.
    """
    n = len(points.values)
    blocks = -(-n // BLOCK)
    first = points.shard()[0] * blocks + jnp.arange(blocks)
    uniform = jax.vmap(lambda block: jax.random.uniform(jax.random.fold_in(key, block), (BLOCK,)))
    u = uniform(first).reshape(-1)[:n]
    # Exponential races: row i finishes at -log(u) / weight, and the first k to finish are drawn.
    finish = jnp.where(points.weights > 0, jnp.log1p(-u) / points.weights, -jnp.inf)
    return _largest(points, finish, k)[1]


def farthest(points: Points, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The k points farthest from their centroids, farthest first.

    Args:
      points: the points.
      centroids: float32 [k, d], prepared.

    Returns:
      Squared distances [k], 0 for a point that rounding alone keeps from its centroid or that has
      no weight; and the prepared points [k, d].
    """

    def fill(distances: jax.Array, start: jax.Array, rows: jax.Array, _) -> jax.Array:
        here = assign(rows, centroids)[1]
        rounding = 16 * jnp.finfo(here.dtype).eps * (rows**2).sum(1)
        here = jnp.where(here > rounding, here, 0)
        return lax.dynamic_update_slice_in_dim(distances, here, start, 0)

    distances = points.fold(fill, jnp.zeros(len(points.values), points.dtype))
    return _largest(points, jnp.where(points.weights > 0, distances, 0), len(centroids))


def draw(points: Points, key: jax.Array, distances: jax.Array, count: int) -> jax.Array:
    """Draws points with replacement, in proportion to weight × distance.

    First a block of rows, then a row in it: one cumulative sum over millions of float32 would lose
    the small ones. Where all distances are 0 the weights decide.

    Args:
      points: the points.
      key: JAX random key, the same on every device.
      distances: float32 [n], ≥ 0.
      count: points to draw.

    Returns:
      float32 [count, d], prepared; the same on every device.
    """
    shard, _ = points.shard()
    mass = points.weights * distances
    mass = jnp.where(points.total(mass.sum()) > 0, mass, points.weights)
    blocks = jnp.pad(mass, (0, -len(mass) % BLOCK)).reshape(-1, BLOCK)
    u, v = jax.random.uniform(key, (2, count))
    totals = jnp.cumsum(points.gathered(blocks.sum(1)))
    at = jnp.searchsorted(totals, u * totals[-1], side="right")
    local = at - shard * len(blocks)
    mine = ((local >= 0) & (local < len(blocks)))[:, None]
    local = jnp.clip(local, 0, len(blocks) - 1)
    within = jnp.cumsum(blocks[local], axis=1)
    row = local * BLOCK + (within <= v[:, None] * within[:, -1:]).sum(1)
    rows = points.prepare(points.values[jnp.minimum(row, len(mass) - 1)])
    return points.total(jnp.where(mine, rows, 0))


def _largest(points: Points, values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of values [n] over all devices, of equal ones the first, and their points."""
    best, index = lax.top_k(values, min(k, len(values)))
    rows = points.prepare(points.values[index])
    best, order = lax.top_k(points.gathered(best), k)
    return best, points.gathered(rows)[order]
