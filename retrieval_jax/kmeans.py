"""k-means (Lloyd's algorithm) as a pure, jitted function on arrays.

The points are read in chunks of rows, centred by their mean on the way, so neither an [n, k] matrix
nor a second copy of the points is ever in memory. Every chunk yields statistics that add up (sums,
counts and inertia a cluster), every restart replaces the best one so far only when its inertia is
lower.

References:
  S. Lloyd, "Least squares quantization in PCM", IEEE Trans. Information Theory, 1982.
  D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from retrieval_jax.distances import FULL_PRECISION, matrix, moments, over_chunks, scores


class KMeansResult(NamedTuple):
    """What `kmeans` found.

    Attributes:
      centroids: float32 [k, d], in the coordinates of the points.
      labels: int32 [n], the cluster of each point: exactly `predict(points, centroids)`.
      inertia: float32 scalar, the sum of squared distances of the points to their centroids.
      iterations: int32 scalar, how often the centroids were moved.
      converged: bool scalar, whether the last move was within the tolerance.
      history: float32 [max_iterations], the inertia after each iteration, NaN after the last.
    """

    centroids: jax.Array
    labels: jax.Array
    inertia: jax.Array
    iterations: jax.Array
    converged: jax.Array
    history: jax.Array


class _Statistics(NamedTuple):
    """What one pass over points says about centroids; those of two sets of points add up."""

    sums: jax.Array  # [k, d] of the points in each cluster
    counts: jax.Array  # int32 [k]: float32 would lose count at 2^24
    inertia: jax.Array


class _Run(NamedTuple):
    """One restart of Lloyd's algorithm: the state of its loop and its result."""

    centroids: jax.Array  # centred
    statistics: _Statistics  # of the points at these centroids
    iterations: jax.Array
    converged: jax.Array
    history: jax.Array


def kmeans(
    key: jax.Array,
    points: ArrayLike,
    k: int,
    *,
    restarts: int = 10,
    max_iterations: int = 300,
    tolerance: float = 1e-4,
    chunk_size: int = 2048,
    initial_centroids: ArrayLike | None = None,
) -> KMeansResult:
    """Groups points into k clusters of low inertia.

    Each restart is seeded by greedy k-means++ (2 + ⌊ln k⌋ candidates a centroid) and iterated until
    the centroids move, in squared distance summed over the clusters, by at most `tolerance` times
    the mean variance of the features; the restart with the lowest inertia is returned. Besides the
    points it needs memory for chunk_size × k and n × (3 + ⌊ln k⌋) floats, whatever the number of
    restarts. It can be jitted (k, restarts, max_iterations and chunk_size static) and vmapped over
    keys; the same key gives the same result.

    A cluster that loses all its points is reseeded with the point farthest from its centroid
    (several: the farthest points in turn). With fewer distinct points than k it still
    converges: the surplus clusters stay empty, their centroids on points of another cluster.

    Args:
      key: JAX random key of the seeding.
      points: [n, d], converted to float32; any offset is removed before distances are taken.
      k: number of clusters, 1 ≤ k ≤ n.
      restarts: number of seedings tried; without meaning when `initial_centroids` are given.
      max_iterations: most moves of the centroids in one restart.
      tolerance: relative to the mean variance of the features, as scikit-learn scales it; 0 goes on
        until the centroids stand still.
      chunk_size: rows of points in a chunk; it bounds memory, results agree up to float32 rounding.
      initial_centroids: [k, d] to start from, in place of k-means++ and restarts.

    Returns:
      A `KMeansResult`.

    Raises:
      ValueError: a shape, count or tolerance out of range, or, where the arrays are concrete (not
        traced by an outer jit), values that are NaN or infinite in float32.

    Example:
      >>> import jax
      >>> points = [[0.0, 0.0], [0.0, 1.0], [9.0, 8.0], [9.0, 9.0]]
      >>> result = kmeans(jax.random.key(0), points, k=2)
      >>> float(result.inertia), bool(result.converged)
      (1.0, True)
      >>> sorted(result.centroids.tolist())
      [[0.0, 0.5], [9.0, 8.5]]
    """
    points = matrix(points, "points")
    n, d = points.shape
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the number of points, {n}; it is {k}.")
    if min(restarts, max_iterations, chunk_size) < 1:
        raise ValueError("restarts, max_iterations and chunk_size must be at least 1.")
    if not isinstance(tolerance, jax.core.Tracer) and not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative; it is {tolerance}.")
    if initial_centroids is not None:
        initial_centroids = matrix(initial_centroids, "initial_centroids")
        if initial_centroids.shape != (k, d):
            raise ValueError(
                f"initial_centroids must have shape ({k}, {d}), not {initial_centroids.shape}."
            )
    return _kmeans(
        key,
        points,
        initial_centroids,
        tolerance,
        k=k,
        restarts=restarts,
        max_iterations=max_iterations,
        chunk=min(chunk_size, n),
    )


def predict(points: ArrayLike, centroids: ArrayLike, *, chunk_size: int = 2048) -> jax.Array:
    """Returns the nearest centroid of each point; of equal centroids the first.

    Args:
      points: [n, d], converted to float32.
      centroids: [k, d], converted to float32.
      chunk_size: rows of points in a chunk: memory for chunk_size × k floats is needed.

    Returns:
      int32 [n].

    Raises:
      ValueError: arrays that are empty or not two-dimensional, differ in d, or hold NaN or infinite
        values.

    Example:
      >>> predict([[0.0], [4.0], [5.0]], [[0.0], [5.0]]).tolist()
      [0, 1, 1]
    """
    points, centroids = matrix(points, "points"), matrix(centroids, "centroids")
    if points.shape[1] != centroids.shape[1]:
        raise ValueError(
            f"points have {points.shape[1]} features, but centroids have {centroids.shape[1]}."
        )
    if chunk_size < 1:
        raise ValueError("chunk_size must be at least 1.")
    return _assign_all(points, centroids, min(chunk_size, points.shape[0]))[0]


@partial(jax.jit, static_argnames=("k", "restarts", "max_iterations", "chunk"))
def _kmeans(key, points, initial, tolerance, *, k, restarts, max_iterations, chunk) -> KMeansResult:
    centre, variance = moments(points, chunk)
    lloyd = partial(_lloyd, points, centre, tolerance * variance, max_iterations, chunk)
    if initial is not None:
        best = lloyd(initial - centre)
    else:

        def restart(best: _Run, key: jax.Array) -> tuple[_Run, None]:
            run = lloyd(_plus_plus(key, points, centre, k, chunk))
            keep = best.statistics.inertia <= run.statistics.inertia
            return jax.tree.map(partial(jnp.where, keep), best, run), None

        shape = jax.ShapeDtypeStruct((k, points.shape[1]), jnp.float32)
        run = jax.tree.map(lambda leaf: jnp.zeros_like(leaf), jax.eval_shape(lloyd, shape))
        worst = run.statistics._replace(inertia=jnp.float32(jnp.nan))  # loses every comparison
        best, _ = lax.scan(restart, run._replace(statistics=worst), jax.random.split(key, restarts))

    # Adding the mean rounds: label by what is returned, so that predict agrees bit for bit.
    centroids = best.centroids + centre
    labels, distances = _assign_all(points, centroids, chunk)
    return KMeansResult(
        centroids, labels, distances.sum(), best.iterations, best.converged, best.history
    )


def _lloyd(points, centre, tolerance, max_iterations, chunk, centroids) -> _Run:
    """Moves centred centroids [k, d] until they stand still."""

    def unfinished(run: _Run) -> jax.Array:
        return ~run.converged & (run.iterations < max_iterations)

    def iterate(run: _Run) -> _Run:
        counts = run.statistics.counts[:, None]
        kept = lax.cond(
            (counts == 0).any(),
            lambda: _reseed(points, centre, run.centroids, counts == 0, chunk),
            lambda: run.centroids,
        )
        moved = jnp.where(counts > 0, run.statistics.sums / jnp.maximum(counts, 1), kept)
        statistics = _statistics(points, centre, moved, chunk)
        return _Run(
            centroids=moved,
            statistics=statistics,
            iterations=run.iterations + 1,
            converged=((moved - run.centroids) ** 2).sum() <= tolerance,
            history=run.history.at[run.iterations].set(statistics.inertia),
        )

    start = _Run(
        centroids=centroids,
        statistics=_statistics(points, centre, centroids, chunk),
        iterations=jnp.int32(0),
        converged=jnp.bool_(False),
        history=jnp.full(max_iterations, jnp.nan, jnp.float32),
    )
    return lax.while_loop(unfinished, iterate, start)


def _reseed(points, centre, centroids, empty, chunk) -> jax.Array:
    """Puts the j-th empty cluster on the point that is the j-th farthest from its centroid.

    The cluster that this point is still summed into need not give it up: any place for an empty
    cluster leaves the inertia no higher, and the next assignment settles whose the point is. A
    point that rounding alone keeps from its centroid attracts none, or two would chase it forever.
    """

    def fill(distances: jax.Array, start: jax.Array, rows: jax.Array, _) -> jax.Array:
        rows = rows - centre
        _, here = _assign(rows, centroids)
        rounding = 16 * jnp.finfo(here.dtype).eps * (rows**2).sum(1)
        here = jnp.where(here > rounding, here, 0)
        return lax.dynamic_update_slice_in_dim(distances, here, start, 0)

    distances = over_chunks(points, chunk, fill, jnp.zeros(points.shape[0], jnp.float32))
    largest, farthest = lax.top_k(distances, centroids.shape[0])
    rank = jnp.cumsum(empty[:, 0]) - 1
    attracted = empty & (largest[rank] > 0)[:, None]
    return jnp.where(attracted, points[farthest[rank]] - centre, centroids)


def _plus_plus(key, points, centre, k, chunk) -> jax.Array:
    """Greedy k-means++: of several candidates drawn by squared distance, the best is kept."""
    n, d = points.shape
    candidates = 2 + int(math.log(k))
    first_key, key = jax.random.split(key)
    first = points[jax.random.randint(first_key, (), 0, n)] - centre

    def distances(centroids: jax.Array, nearest: jax.Array) -> jax.Array:
        """[m, n]: squared distances to the nearest centroid, were each of m added."""

        def fill(out: jax.Array, start: jax.Array, rows: jax.Array, _) -> jax.Array:
            rows = rows - centre
            here = jnp.maximum(scores(rows, centroids) + (rows**2).sum(1), 0)
            here = jnp.minimum(here, lax.dynamic_slice_in_dim(nearest, start, chunk))
            return lax.dynamic_update_slice_in_dim(out, here, start, 1)

        return over_chunks(points, chunk, fill, jnp.zeros((len(centroids), n), jnp.float32))

    def add(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centroids, nearest = state
        drawn = _draw(jax.random.fold_in(key, i), nearest, candidates, chunk)
        rows = points[drawn] - centre
        options = distances(rows, nearest)
        best = options.sum(1).argmin()
        return centroids.at[i].set(rows[best]), options[best]

    nearest = distances(first[None], jnp.full(n, jnp.inf, jnp.float32))[0]
    centroids = jnp.zeros((k, d), jnp.float32).at[0].set(first)
    return lax.fori_loop(1, k, add, (centroids, nearest))[0]


def _draw(key, weights, count, block) -> jax.Array:
    """Draws `count` indices in proportion to weights [n], with replacement.

    First a block, then a row in it: one cumulative sum over millions of float32 would lose the
    small weights.
    """
    n = weights.shape[0]
    blocks = jnp.pad(weights, (0, -n % block)).reshape(-1, block)
    u, v = jax.random.uniform(key, (2, count, 1))
    totals = jnp.cumsum(blocks.sum(1))
    at = jnp.minimum((totals <= u * totals[-1]).sum(1), len(blocks) - 1)
    within = jnp.cumsum(blocks[at], axis=1)
    row = (within <= v * within[:, -1:]).sum(1)
    return jnp.minimum(at * block + jnp.minimum(row, block - 1), n - 1)


def _statistics(points, centre, centroids, chunk) -> _Statistics:
    k, d = centroids.shape

    def add(total: _Statistics, _, rows: jax.Array, new: jax.Array) -> _Statistics:
        rows = rows - centre
        labels, distances = _assign(rows, centroids)
        labels = jnp.where(new, labels, k)  # past the last cluster: counted nowhere
        sums = lax.platform_dependent(
            rows, labels, cpu=partial(_scatter_sums, k=k), default=partial(_matmul_sums, k=k)
        )
        counts = (labels == jnp.arange(k)[:, None]).sum(1, dtype=jnp.int32)
        inertia = jnp.where(new, distances, 0).sum()
        return jax.tree.map(jnp.add, total, _Statistics(sums, counts, inertia))

    zero = _Statistics(jnp.zeros((k, d), jnp.float32), jnp.zeros(k, jnp.int32), jnp.float32(0))
    return over_chunks(points, chunk, add, zero)


def _scatter_sums(rows: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """The sum of the rows of each cluster [k, d]: nearly free on a CPU."""
    return jax.ops.segment_sum(rows, labels, k)


def _matmul_sums(rows: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """The same where a scatter would be slow (TPU) or add in an order that varies (GPU)."""
    members = jax.nn.one_hot(labels, k, axis=0, dtype=rows.dtype)
    return jnp.dot(members, rows, precision=FULL_PRECISION)


@partial(jax.jit, static_argnames="chunk")
def _assign_all(points, centroids, chunk) -> tuple[jax.Array, jax.Array]:
    """Labels [n] and squared distances [n], for points and centroids as the caller gave them."""
    centre, _ = moments(centroids, centroids.shape[0])
    centred = centroids - centre

    def fill(out, start: jax.Array, rows: jax.Array, _):
        labels, _ = _assign(rows - centre, centred)
        # From differences: the expanded square would cancel where clusters are tight.
        distances = ((rows - centroids[labels]) ** 2).sum(1)
        put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return put(out[0], labels), put(out[1], distances)

    n = points.shape[0]
    return over_chunks(points, chunk, fill, (jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.float32)))


def _assign(rows: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nearest centroid and squared distance to it, for centred rows [c, d]."""
    k = centroids.shape[0]
    costs = scores(rows, centroids)
    least = costs.min(0)
    # The first that equals the minimum: an argmin would cost more than the matmul before it.
    labels = jnp.where(costs == least, jnp.arange(k, dtype=jnp.int32)[:, None], k - 1).min(0)
    return labels, jnp.maximum(least + (rows**2).sum(1), 0)
