"""k-means whose clusters are all of one size.

Lloyd's iterations with another assignment: each cluster has a price, found as the potential of an
optimal transport of the points to k clusters of equal mass, and points go where distance and price
together are least. What prices leave unequal is settled by rounds, in which each cluster that has
too many takers keeps those that lose most elsewhere.

References:
  M. Malinen and P. Fränti, "Balanced k-means for clustering", S+SSPR 2014, for the problem.
  M. Cuturi, "Sinkhorn distances: lightspeed computation of optimal transport", NIPS 2013, for the
    prices.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from retrieval_jax.kmeans._points import (
    Points,
    check_clusters,
    moments,
    power_of_two_for,
)
from retrieval_jax.kmeans.assignment import chunk_rows
from retrieval_jax.kmeans.fit import kmeans
from retrieval_jax.numerics.arguments import whole_number
from retrieval_jax.numerics.distances import (
    FULL_PRECISION,
    matrix,
    scores,
    sum_of_squares,
    working_type,
)

# What costs are blurred by at last, in mean squared distances to the nearest centroid.
_BLUR = 0.05
_PRICE_STEPS = 60


class BalancedKMeansResult(NamedTuple):
    """What `balanced_kmeans` found.

    Attributes:
      centroids: float [k, d], the means of their points.
      labels: int32 [n]; each of 0..k-1 occurs ⌊n/k⌋ or ⌈n/k⌉ times.
      inertia: float scalar, the sum of squared distances of the points to their centroids.
      iterations: int32 scalar, how often the centroids were moved.
      converged: bool scalar, whether the last move lowered the inertia no more.
    """

    centroids: jax.Array
    labels: jax.Array
    inertia: jax.Array
    iterations: jax.Array
    converged: jax.Array


def balanced_kmeans(
    key: jax.Array,
    points: ArrayLike,
    k: int,
    *,
    max_iterations: int = 30,
    initial_centroids: ArrayLike | None = None,
    chunk_size: int | None = None,
) -> BalancedKMeansResult:
    """Groups points into k clusters whose sizes differ by at most 1.

    The assignment is near the best one, not the best (which takes n³ operations): its inertia is a
    few per cent above, and up to a quarter where the groups of the points differ in size by orders
    of magnitude. An iteration takes 60 passes over the points for the prices and as many more as
    there are rounds: a few where prices are good, at most 2 k.
    Memory besides the points: a few times chunk_size × k floats, and a few times n.

    Args:
      key: JAX random key of the seeding.
      points: [n, d], finite; computed in the type that `kmeans` computes in.
      k: number of clusters, 1 ≤ k ≤ n.
      max_iterations: most moves of the centroids.
      initial_centroids: [k, d] to start from; None for those of one restart of `kmeans`.
      chunk_size: rows of points in a chunk; None for about 2 MiB of distances on a CPU.

    Returns:
      A `BalancedKMeansResult`, of the iteration with the lowest inertia.

    Raises:
      ValueError: as `kmeans`.

    Example:
      >>> found = balanced_kmeans(jax.random.key(0), [[0.0], [1.0], [2.0], [9.0]], k=2)
      >>> sorted(found.centroids.ravel().tolist()), float(found.inertia)
      ([0.5, 5.5], 25.0)
    """
    points = matrix(points, "points")
    n, d = points.shape
    k = check_clusters(k, n)
    if initial_centroids is None:
        start = kmeans(key, points, k, restarts=1, chunk_size=chunk_size).centroids
    else:
        start = matrix(initial_centroids, "initial_centroids").astype(working_type(points.dtype))
        if start.shape != (k, d):
            raise ValueError(f"initial_centroids must have shape ({k}, {d}), not {start.shape}.")
    most, chunk = whole_number(max_iterations, "max_iterations"), chunk_rows(chunk_size, n, k)
    return _balanced(points, start, most, chunk)


@partial(jax.jit, static_argnums=(2, 3))
def _balanced(values, start, max_iterations, chunk) -> BalancedKMeansResult:
    n, d = values.shape
    dtype, scale = start.dtype, power_of_two_for(values, start)
    points = Points(
        values, jnp.ones(n, dtype), jnp.zeros(d, dtype), chunk, False, None, scale, dtype
    )
    points = points._replace(centre=moments(points)[0])

    def improve(state):
        best, _ = state
        labels = _assign(points, best.centroids, _prices(points, best.centroids))
        centroids, inertia = _means(points, labels, len(start))
        better = inertia < best.inertia
        found = best._replace(centroids=centroids, labels=labels, inertia=inertia)
        kept = jax.tree.map(partial(jnp.where, better), found, best)
        kept = kept._replace(iterations=best.iterations + 1, converged=~better)
        return kept, better & (kept.iterations < max_iterations)

    none = jnp.full((), jnp.inf, dtype), jnp.int32(0), jnp.bool_(False)
    first = BalancedKMeansResult(start * scale - points.centre, jnp.zeros(n, jnp.int32), *none)
    best, _ = lax.while_loop(lambda state: state[1], improve, (first, jnp.bool_(True)))
    return best._replace(
        centroids=(best.centroids + points.centre) / scale, inertia=best.inertia / scale / scale
    )


def _prices(points: Points, centroids: jax.Array) -> jax.Array:
    """Prices [k] at which each cluster is wanted by about n / k points.

    Differences in costs are blurred by as much as all distances at first, by little at last.
    """
    k, dtype = len(centroids), centroids.dtype

    def sizes(total, _, rows, weights):
        squares = (rows**2).sum(1)
        least = jnp.maximum(scores(rows, centroids).min(0) + squares, 0)
        return total + jnp.stack([squares, least]) @ weights

    whole, near = points.fold(sizes, jnp.zeros(2, dtype)) / len(points.values)
    last = jnp.maximum(_BLUR * near, jnp.finfo(dtype).eps * whole) + jnp.finfo(dtype).tiny

    def step(i, prices):
        blur = last * (jnp.maximum(whole, last) / last) ** (1 - i / (_PRICE_STEPS - 1))

        def add(masses, _, rows, weights):
            costs = (scores(rows, centroids) + prices[:, None]) / blur
            return masses + jax.nn.softmax(-costs, axis=0) @ weights

        share = points.fold(add, jnp.zeros(k, dtype)) * k / len(points.values)
        return prices + blur * jnp.log(jnp.maximum(share, jnp.finfo(dtype).eps))

    return lax.fori_loop(0, _PRICE_STEPS, step, jnp.zeros(k, dtype))


def _assign(points: Points, centroids: jax.Array, prices: jax.Array) -> jax.Array:
    """Labels [n] of clusters whose sizes differ by at most 1, near the least sum of distances."""
    n, k = len(points.values), len(centroids)
    size, rest = divmod(n, k)
    numbers = jnp.arange(k, dtype=jnp.int32)

    def choose(room):
        """The cluster with room that each point wants, and what the next one would cost it more."""

        def fill(out, start, rows, _):
            costs = scores(rows, centroids) + prices[:, None]
            costs = jnp.where(room[:, None] > 0, costs, jnp.inf)
            wanted = costs.argmin(0).astype(jnp.int32)
            others = jnp.where(numbers[:, None] == wanted, jnp.inf, costs).min(0)
            put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
            return jax.tree.map(put, out, (wanted, others - costs.min(0)))

        return points.fold(fill, (jnp.zeros(n, jnp.int32), jnp.zeros(n, centroids.dtype)))

    def settle(labels):
        sizes = jax.ops.segment_sum(jnp.ones_like(labels), labels, k)
        # The last points, fewer than k, go each to another cluster.
        room = jnp.where(sizes.sum() < size * k, size, size + (rest > 0)) - sizes
        wanted, regret = choose(room)
        wanted = jnp.where(labels < k, k, wanted)
        wanted, _, rows = lax.sort((wanted, -regret, jnp.arange(n, dtype=jnp.int32)), num_keys=2)
        place = jnp.arange(n) - jnp.searchsorted(wanted, numbers)[jnp.minimum(wanted, k - 1)]
        taken = (wanted < k) & (place < room[jnp.minimum(wanted, k - 1)])
        return labels.at[jnp.where(taken, rows, n)].set(wanted, mode="drop")

    open_ = jnp.full(n, k, jnp.int32)
    return lax.while_loop(lambda labels: (labels == k).any(), settle, open_)


def _means(points: Points, labels: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The means [k, d] of clusters, none of them empty, and their inertia."""
    numbers = jnp.arange(k, dtype=jnp.int32)[:, None]

    def own(start):
        return lax.dynamic_slice_in_dim(labels, start, points.chunk)

    def add(sums, start, rows, weights):
        members = (own(start) == numbers) * weights
        return sums + jnp.dot(members, rows, precision=FULL_PRECISION)

    def spread(total, start, rows, weights):
        return total + sum_of_squares(rows - means[own(start)]) @ weights

    dtype = points.centre.dtype
    sizes = jax.ops.segment_sum(points.weights, labels, k)
    means = points.fold(add, jnp.zeros((k, len(points.centre)), dtype)) / sizes[:, None]
    return means, points.fold(spread, jnp.zeros((), dtype))
