"""Where k-means starts: k-means++ on small groups, random points, new places for empty clusters.

References:
  D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
  B. Bahmani et al., "Scalable k-means++", VLDB 2012.
  P. Efraimidis and P. Spirakis, "Weighted random sampling with a reservoir", Information Processing
    Letters, 2006.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.kmeans._points import BLOCK, Points, running_sums
from retrieval_jax.kmeans.assignment import assign
from retrieval_jax.numerics.distances import FULL_PRECISION, scores, unit

# Groups are drawn in so many rounds, each of half the clusters and never fewer than this many.
_ROUNDS = 5
_LEAST = 64


def plus_plus(points: Points, key: jax.Array, k: int, restarts: int = 1) -> jax.Array:
    """Greedy k-means++ on the means of small groups of points.

    As in k-means||, a few rounds draw points by their squared distance to those drawn before, k / 2
    per round, and every point joins the nearest one drawn. The k seeds are then found among these
    2.5 k groups, not among n points. Unlike k-means||, a group is represented by the mean of its
    points: the potential of a set of seeds is then that of the points themselves, up to a constant,
    wherever whole groups have the same nearest seed.

    All restarts share the groups. Needs time for two and a half dense passes and memory for 3 n
    floats and a few times k × d.

    Args:
      points: the points.
      key: JAX random key, the same on every device.
      k: number of centroids of each restart.
      restarts: number of seedings.

    Returns:
      float32 [restarts, k, d], prepared as `points` does: means of groups, of unit length where
      `points` are spherical.
    """
    keys = jax.random.split(key, 1 + restarts)
    small = groups(points, keys[0], max(_LEAST, -(-k // 2)))
    seeds = lax.map(lambda key: small.values[greedy(small, key, k)], keys[1:])
    return unit(seeds + points.centre) - points.centre if points.spherical else seeds


def groups(points: Points, key: jax.Array, draws: int) -> Points:
    """Means of small groups of points, weighted by the mass of each group.

    Args:
      points: the points.
      key: JAX random key, the same on every device.
      draws: points drawn in each round.

    Returns:
      `Points` of m = 5 × draws rows, the same on every device; groups of no points have weight 0.
    """
    n, d = points.values.shape
    m = _ROUNDS * draws

    # One draw in each stratum of the mass, so that few rows are drawn twice.
    u = (
        jnp.arange(draws, dtype=jnp.float32)
        + jax.random.uniform(key, (_ROUNDS, draws), jnp.float32)
    ) / draws

    def join(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        mass = points.weights * jnp.where(i > 0, state[0], 1)
        row, mine = draw(points, mass, u[i])
        drawn = points.prepare(points.values[row])
        drawn = points.total(jnp.where(mine[:, None], drawn, 0))

        def fill(state, start: jax.Array, rows: jax.Array, _):
            labels, distances = assign(rows, drawn)
            before = [lax.dynamic_slice_in_dim(array, start, len(rows)) for array in state]
            closer = distances < before[0]
            new = (
                jnp.where(closer, distances, before[0]),
                jnp.where(closer, labels + i * draws, before[1]),
            )
            return tuple(
                lax.dynamic_update_slice_in_dim(array, here, start, 0)
                for array, here in zip(state, new, strict=True)
            )

        return points.fold(fill, state)

    start = jnp.full(n, jnp.inf, jnp.float32), jnp.zeros(n, jnp.int32)
    _, labels = lax.fori_loop(0, _ROUNDS, join, start)

    def add(sums: jax.Array, start: jax.Array, rows: jax.Array, weights: jax.Array) -> jax.Array:
        here = lax.dynamic_slice_in_dim(labels, start, len(rows))
        rows = jnp.concatenate([rows, jnp.ones_like(rows[:, :1])], 1)
        return _add_to(sums, rows, weights, here)

    sums = points.total(points.fold(add, jnp.zeros((m, d + 1), jnp.float32)))
    mass = sums[:, d]
    means = sums[:, :d] / jnp.where(mass > 0, mass, 1)[:, None]
    return Points(means, mass, jnp.zeros_like(points.centre), m, False, None)


def greedy(points: Points, key: jax.Array, k: int) -> jax.Array:
    """Greedy k-means++: of 2 + ⌊ln k⌋ points drawn by squared distance, the best is added.

    Args:
      points: points that need no preparation, the same on every device.
      key: JAX random key, the same on every device.
      k: number of seeds.

    Returns:
      int32 [k], the rows of the seeds.
    """
    rows = points.values
    squares = (rows**2).sum(1)
    u = jax.random.uniform(key, (k, 2 + int(math.log(k))), jnp.float32)

    def add(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chosen, nearest = state
        drawn, _ = draw(points, points.weights * jnp.where(i > 0, nearest, 1), u[i])
        options = jnp.maximum(scores(rows, rows[drawn]) + squares, 0)
        options = jnp.minimum(options, nearest)
        potentials = jnp.dot(options, points.weights, precision=FULL_PRECISION)
        best = jnp.where(i > 0, potentials.argmin(), 0)  # the first one is any of the points
        return chosen.at[i].set(drawn[best].astype(jnp.int32)), options[best]

    start = jnp.zeros(k, jnp.int32), jnp.full(len(rows), jnp.inf, jnp.float32)
    return lax.fori_loop(0, k, add, start)[0]


def random_points(points: Points, key: jax.Array, k: int, restarts: int = 1) -> jax.Array:
    """k different points, drawn one after the other in proportion to their weights.

    Args:
      points: at least k of them.
      key: JAX random key, the same on every device.
      k: number of centroids of each restart.
      restarts: number of seedings.

    Returns:
      float32 [restarts, k, d], prepared as `points` does.
    """
    n = len(points.values)
    blocks = -(-n // BLOCK)
    first = points.shard()[0] * blocks + jnp.arange(blocks)

    def seed(key: jax.Array) -> jax.Array:
        def uniform(block: jax.Array) -> jax.Array:
            return jax.random.uniform(jax.random.fold_in(key, block), (BLOCK,), jnp.float32)

        u = jax.vmap(uniform)(first).reshape(-1)[:n]
        # Exponential races: row i finishes at -log(u) / weight, and the first k are drawn.
        finish = jnp.where(points.weights > 0, jnp.log1p(-u) / points.weights, -jnp.inf)
        return _largest(points, finish, k)[1]

    return lax.map(seed, jax.random.split(key, restarts))


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


def draw(points: Points, mass: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rows where the cumulative sum of the mass passes given shares of the whole.

    First a block of rows is found, then a row in it: one cumulative sum over millions of float32
    would lose the small ones. Where all mass is 0 the weights stand in for it.

    Args:
      points: the points.
      mass: float32 [n], ≥ 0, 0 where the weight is.
      u: float32 [c], in [0, 1).

    Returns:
      int32 [c], rows on this device, none of mass 0; and bool [c], whether it is this device whose
      row was found.
    """
    mass = jnp.where(points.total(mass.sum()) > 0, mass, points.weights)
    blocks = jnp.pad(mass, (0, -len(mass) % BLOCK)).reshape(-1, BLOCK)
    totals = running_sums(points.gathered(blocks.sum(1)))
    below = 1 - 8 * jnp.finfo(jnp.float32).eps  # the sums may be off by rounding
    at = jnp.minimum(u, below) * totals[-1]
    block = (totals <= at[:, None]).sum(1)
    left = at - jnp.where(block > 0, totals[block - 1], 0)
    local = block - points.shard()[0] * len(blocks)
    mine = (local >= 0) & (local < len(blocks))
    local = jnp.clip(local, 0, len(blocks) - 1)
    here = blocks[local]
    within = running_sums(here)
    left = jnp.minimum(left, below * within[:, -1])
    row = local * BLOCK + ((within > left[:, None]) & (here > 0)).argmax(1)
    return jnp.minimum(row, len(mass) - 1), mine


def _add_to(sums: jax.Array, rows: jax.Array, weights: jax.Array, labels: jax.Array) -> jax.Array:
    """Adds weighted rows [c, d] to the sums [m, d] of their labels.

    By matmul except on a CPU: a scatter is slow on TPU, and on GPU adds in an order that varies.
    """

    def by_matmul() -> jax.Array:
        members = (labels == jnp.arange(len(sums))[:, None]) * weights
        return sums + jnp.dot(members, rows, precision=FULL_PRECISION)

    def by_scatter() -> jax.Array:
        return sums.at[labels].add(weights[:, None] * rows)

    return lax.platform_dependent(cpu=by_scatter, default=by_matmul)


def _largest(points: Points, values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of values [n] over all devices, of equal ones the first, and their points."""
    best, index = lax.top_k(values, min(k, len(values)))
    rows = points.prepare(points.values[index])
    best, order = lax.top_k(points.gathered(best), k)
    return best, points.gathered(rows)[order]
