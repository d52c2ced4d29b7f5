"""Lloyd's algorithm on a whole set of points.

The points are read in chunks of rows, centred by their mean on the way, so neither an [n, k] matrix
nor a second copy of the points is ever in memory. Every chunk yields statistics that add up over
chunks and devices; every restart replaces the best one so far only when its inertia is lower.

References:
  S. Lloyd, "Least squares quantization in PCM", IEEE Trans. Information Theory, 1982.
  I. Dhillon and D. Modha, "Concept decompositions for large sparse text data using clustering",
    Machine Learning, 2001 (the spherical kind).
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from retrieval_jax.kmeans._passes import Statistics, dense_passes, move
from retrieval_jax.kmeans._points import (
    Points,
    check_clusters,
    check_weights,
    moments,
    power_of_two_for,
)
from retrieval_jax.kmeans._pruning import pruned_passes
from retrieval_jax.kmeans.assignment import assign_all, chunk_rows
from retrieval_jax.kmeans.seeding import plus_plus, random_points
from retrieval_jax.numerics.arguments import whole_number
from retrieval_jax.numerics.distances import matrix, unit, working_type


class KMeansResult(NamedTuple):
    """What `kmeans` found.

    Attributes:
      centroids: float [k, d], in the coordinates of the points; unit vectors when spherical.
      labels: int32 [n], the cluster of each point: exactly `predict(points, centroids)`.
      inertia: float scalar, the weighted sum of squared distances of the points to their
        centroids.
      iterations: int32 scalar, how often the centroids were moved.
      converged: bool scalar, whether the last move was within the tolerance.
      history: float [max_iterations], the inertia after each iteration, NaN after the last.
    """

    centroids: jax.Array
    labels: jax.Array
    inertia: jax.Array
    iterations: jax.Array
    converged: jax.Array
    history: jax.Array


class _Run(NamedTuple):
    """One restart of Lloyd's algorithm: the state of its loop and its result."""

    centroids: jax.Array  # prepared as the points are
    inertia: jax.Array
    iterations: jax.Array
    converged: jax.Array
    history: jax.Array


def kmeans(
    key: jax.Array,
    points: ArrayLike,
    k: int,
    *,
    weights: ArrayLike | None = None,
    restarts: int = 10,
    max_iterations: int = 300,
    tolerance: float = 1e-4,
    seeding: Literal["k-means++", "random"] = "k-means++",
    initial_centroids: ArrayLike | None = None,
    spherical: bool = False,
    chunk_size: int | None = None,
    axis_name: str | None = None,
) -> KMeansResult:
    """Groups points into k clusters of low inertia.

    Each restart is seeded and iterated until the centroids move, in squared distance summed over
    the clusters, by at most `tolerance` times the mean variance of the features; the restart with
    the lowest inertia is returned. It can be jitted (all but the arrays and the tolerance static),
    vmapped over keys, and run under shard_map or pmap. The same key gives the same result.

    Memory besides the points, whatever the number of restarts: a few times chunk_size × (k + d)
    floats, and n × 30. The seedings of all restarts share two and a half dense passes.

    A cluster that loses all its points is reseeded with the point farthest from its centroid
    (several: the farthest points in turn). With fewer distinct points than k it still
    converges: the surplus clusters stay empty, their centroids on points of another cluster.

    Computed in float32; under `jax_enable_x64` points of float64 (or integers of more than 16 bits)
    are clustered in float64 and every result is float64; only the seeds are drawn by distances in
    float32. Any scale will do: points are divided by the power of two above their largest magnitude
    first, so that points × 2ⁱ have the labels of the points. The inertia alone can leave the type.

    It can be differentiated by points and weights, the labels held fixed: a centroid as the mean of
    its points, the inertia by the envelope theorem, which is exact where the centroids are those
    means. The history, and everything by `initial_centroids`, has derivative 0.

    Under pmap or shard_map (check_vma=False) each device holds its own rows of points and weights,
    and gets the labels of these; all else is the same on every device. Where the shards hold whole
    blocks of 128 rows, centroids agree with one device's to float32 rounding: the seeds are those
    it would draw, and only the order of sums differs. Fill ragged shards with rows of weight 0.

    Args:
      key: JAX random key of the seeding; under a mapped axis the same on every device.
      points: [n, d], finite; bfloat16 is converted to float32 a chunk at a time, all else at once.
        Any offset is removed before distances are taken.
      k: number of clusters, an integer, 1 ≤ k ≤ n.
      weights: [n], ≥ 0, how much each point counts; None for 1 each. Rows of weight 0 (a mask of
        padded rows) are labelled, but count nowhere.
      restarts: number of seedings tried; without meaning when `initial_centroids` are given.
      max_iterations: most moves of the centroids in one restart.
      tolerance: relative to the mean variance of the features, as scikit-learn scales it; 0 goes on
        until the centroids stand still.
      seeding: greedy k-means++ on the means of some 2.5 k small groups of points, found by the
        draws of k-means||; or k random points.
      initial_centroids: [k, d] to start from, in place of seeding and restarts.
      spherical: groups by cosine: points are scaled to unit length (a zero point stays zero, as far
        from every centroid) and so are the centroids. The inertia is then twice the sum of
        1 - cosine.
      chunk_size: rows of points in a chunk; it bounds memory, results agree up to float32 rounding.
        None for about 2 MiB of distances on a CPU.
      axis_name: the mapped axis whose devices share the points.

    Returns:
      A `KMeansResult`.

    Raises:
      ValueError: a shape, count or tolerance out of range, or, where the arrays are concrete (not
        traced by an outer jit), values that are NaN or infinite in their type, negative weights,
        fewer points of positive weight than k, or an inertia beyond the largest float (which is
        infinite under an outer jit).

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
    dtype = working_type(points.dtype)
    k = check_clusters(k, n if axis_name is None else n * lax.axis_size(axis_name))
    if not isinstance(tolerance, jax.core.Tracer) and not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative; it is {tolerance}.")
    if seeding not in ("k-means++", "random"):
        raise ValueError(f"seeding must be 'k-means++' or 'random'; it is {seeding!r}.")
    if initial_centroids is not None:
        initial_centroids = matrix(initial_centroids, "initial_centroids").astype(dtype)
        if initial_centroids.shape != (k, d):
            raise ValueError(
                f"initial_centroids must have shape ({k}, {d}), not {initial_centroids.shape}."
            )
    result = _kmeans(
        key,
        points,
        check_weights(weights, n, k, dtype),
        initial_centroids,
        tolerance,
        k=k,
        restarts=whole_number(restarts, "restarts"),
        max_iterations=whole_number(max_iterations, "max_iterations"),
        seed=plus_plus if seeding == "k-means++" else random_points,
        spherical=spherical,
        chunk=chunk_rows(chunk_size, n, k),
        axis_name=axis_name,
    )
    check_inertia(result.inertia)
    return result


def check_inertia(inertia: jax.Array) -> None:
    """Raises a ValueError for an inertia that is infinite (and not traced by an outer jit).

    Example:
      >>> check_inertia(jnp.float32(3.0))
    """
    if not isinstance(inertia, jax.core.Tracer) and not np.isfinite(inertia):
        raise ValueError(
            f"the inertia is beyond {jnp.finfo(inertia.dtype).max:.1e}, the largest "
            f"{inertia.dtype}: divide the points (or the weights) by a constant."
        )


@partial(
    jax.jit,
    static_argnames=(
        "k",
        "restarts",
        "max_iterations",
        "seed",
        "spherical",
        "chunk",
        "axis_name",
    ),
)
def _kmeans(
    key,
    points,
    weights,
    initial,
    tolerance,
    *,
    k,
    restarts,
    max_iterations,
    seed,
    spherical,
    chunk,
    axis_name,
) -> KMeansResult:
    # What follows is differentiated by `_with_derivatives` alone.
    given, (points, weights) = (points, weights), lax.stop_gradient((points, weights))
    initial, dtype = lax.stop_gradient(initial), weights.dtype
    if spherical:
        initial, scale = None if initial is None else unit(initial), jnp.ones((), dtype)
    else:
        both = [points] if initial is None else [points, initial]
        scale = power_of_two_for(*both, axis_name=axis_name)
    weight_scale = power_of_two_for(weights, axis_name=axis_name)
    # A point of some weight keeps some, however small beside the others.
    least = jnp.finfo(dtype).tiny * (weights > 0)
    zero = jnp.zeros(points.shape[1], dtype)
    masses = jnp.maximum(weights * weight_scale, least)
    data = Points(points, masses, zero, chunk, spherical, axis_name, scale, dtype)
    centre, variance = moments(data)
    data = data._replace(centre=centre)

    if initial is None:
        seeds = seed(data.for_seeding(), key, k, restarts).astype(dtype)
    else:
        seeds = (initial * scale - centre)[None]

    def best_run(passes: Callable) -> _Run:
        lloyd = partial(_lloyd, data, passes(data, k), tolerance * variance, max_iterations)

        def restart(best: _Run, centroids: jax.Array) -> tuple[_Run, None]:
            run = lloyd(centroids)
            keep = best.inertia <= run.inertia
            return jax.tree.map(partial(jnp.where, keep), best, run), None

        shapes = jax.eval_shape(lloyd, seeds[0])
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        none = none._replace(inertia=jnp.full((), jnp.nan, dtype))  # loses every comparison
        return lax.scan(restart, none, seeds)[0]

    # On a CPU skipping distances pays; elsewhere gathering the rows left over would cost more.
    best = lax.platform_dependent(
        cpu=lambda: best_run(pruned_passes), default=lambda: best_run(dense_passes)
    )
    # Adding the centre rounds: label by what is returned, so that predict agrees bit for bit.
    centroids = (best.centroids + centre) / scale
    labels, distances = assign_all(points, centroids, scale, chunk, spherical)
    inertia, history = (
        _unscaled(value, weight_scale, scale)
        for value in (data.total((masses * distances).sum()), best.history)
    )
    centroids, inertia = _with_derivatives(
        *given, centroids, inertia, labels, weight_scale, spherical, axis_name
    )
    return KMeansResult(centroids, labels, inertia, best.iterations, best.converged, history)


def _unscaled(inertia, weight_scale, scale) -> jax.Array:
    """An inertia in the units of the points and weights, given one in their scaled units."""
    exponent = jnp.frexp(weight_scale)[1] - 1 + 2 * (jnp.frexp(scale)[1] - 1)
    half = exponent // 2  # the power as a whole may be no float, although the product is one
    one = jnp.ones_like(inertia, shape=())
    return inertia * jnp.ldexp(one, -half) * jnp.ldexp(one, half - exponent)


@partial(jax.custom_jvp, nondiff_argnums=(6, 7))
def _with_derivatives(
    points, weights, centroids, inertia, labels, weight_scale, spherical, axis_name
) -> tuple[jax.Array, jax.Array]:
    """Centroids and inertia as they are, with derivatives by points and weights."""
    return centroids, inertia


@_with_derivatives.defjvp
def _derivatives(spherical, axis_name, primals, tangents):
    points, weights, centroids, inertia, labels, weight_scale = primals
    total = partial(lax.psum, axis_name=axis_name) if axis_name else lambda tree: tree

    def given_labels(points, weights):
        rows = points.astype(weights.dtype)
        rest = (unit(rows) if spherical else rows) - centroids[labels]
        masses = weights * weight_scale
        sums = jax.ops.segment_sum(masses[:, None] * rest, labels, len(centroids))
        mass = jax.ops.segment_sum(masses, labels, len(centroids))
        sums, mass = total((sums, mass))
        means = centroids + sums / jnp.where(mass > 0, mass, 1)[:, None]
        means = unit(means) if spherical else means
        return means, total((weights * (rest**2).sum(1)).sum())

    return (centroids, inertia), jax.jvp(given_labels, (points, weights), tangents[:2])[1]


class _Loop(NamedTuple):
    run: _Run
    before: jax.Array  # the centroids before the last move
    statistics: Statistics  # of the centroids before
    finished: jax.Array


def _lloyd(points, passes, tolerance, max_iterations, centroids) -> _Run:
    """Moves prepared centroids [k, d] until they stand still, then finds their inertia."""

    def iterate(loop: _Loop) -> _Loop:
        run = loop.run
        statistics = passes.next(run.centroids, loop.before, loop.statistics)
        finished = run.converged | (run.iterations == max_iterations)
        moved = jnp.where(finished, run.centroids, move(points, run.centroids, statistics))
        after = jnp.where(run.iterations > 0, run.iterations - 1, max_iterations)  # at first none
        new = _Run(
            centroids=moved,
            inertia=statistics.inertia,
            iterations=run.iterations + ~finished,
            converged=run.converged
            | (~finished & (((moved - run.centroids) ** 2).sum() <= tolerance)),
            history=run.history.at[after].set(statistics.inertia, mode="drop"),
        )
        return _Loop(new, run.centroids, statistics, finished)

    history = jnp.full(max_iterations, jnp.nan, points.dtype)
    none = jnp.zeros((), points.dtype)
    run = _Run(centroids, none, jnp.int32(0), jnp.bool_(False), history)
    start = _Loop(run, centroids, passes.start, jnp.bool_(False))
    return lax.while_loop(lambda loop: ~loop.finished, iterate, start).run
