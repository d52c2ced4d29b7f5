"""Passes of Lloyd's algorithm that leave out the distances which bounds decide.

The bounds are taken in a few dimensions; what they leave open is, as a rule, little more than the
points that change their cluster. The labels are those of a dense pass.

References:
  C. Elkan, "Using the triangle inequality to accelerate k-means", ICML 2003, for bounds that skip
    distances; those here are of projections and need no memory of earlier passes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.kmeans._passes import Passes, Statistics, no_statistics
from retrieval_jax.kmeans._points import BLOCK, Points, running_sums
from retrieval_jax.kmeans.assignment import least_scores
from retrieval_jax.numerics.bounds import SAMPLE, principal_basis
from retrieval_jax.numerics.distances import FULL_PRECISION, over_chunks

# Rows whose distances are taken together where the bounds left them open, and at most so many
# distances: beyond a core's cache they take 1.7 times as long.
_TILE = 512
_DISTANCES = 1 << 20
# Principal components that the bounds are taken in: with the length of the rest and the square, 16.
_COMPONENTS = 14


def pruned_passes(points: Points, k: int) -> Passes:
    """Passes that skip the points whose nearest centroid provably stayed the same.

    With V an orthonormal basis of a few principal components, and r(·) the length of what V leaves
    of a vector, the Cauchy-Schwarz inequality bounds every distance on both sides:
      |Vx - Vc|² + (r(x) - r(c))² ≤ |x - c|² ≤ |Vx - Vc|² + (r(x) + r(c))²
    A point stays where the upper bound of its own centroid is below the lower bounds of all others;
    the distances of the other points are taken in full. Embeddings have most of their variance in a
    few directions, so the bounds are tight; where they are not, every other pass does without.

    The inertia, too, is kept up to date: moving a centroid c of mass m to c' changes it by
    m (|c' - mean|² - |c - mean|²), and a point that changes its cluster by its gain.
    """
    n, d = points.values.shape
    basis = _basis(points)
    features = _all_features(points, basis)
    every = jnp.arange(n, dtype=jnp.int32), jnp.int32(n)

    def following(centroids, before, statistics: Statistics) -> Statistics:
        labels, count = statistics.memory
        means = statistics.sums / jnp.where(statistics.mass > 0, statistics.mass, 1)[:, None]
        further = ((centroids - means) ** 2 - (before - means) ** 2).sum(1)
        poor = count > n // 2
        rows, count = lax.cond(
            poor, lambda: every, lambda: _open(points, features, basis, centroids, labels)
        )
        changes = _reassign(points, centroids, labels, rows, count)
        mass = jax.ops.segment_sum(points.weights, changes.labels, k)
        sums, mass, gain, inertia_of_rows, left = points.total(
            (changes.sums, mass, changes.gain, changes.inertia, n - count)
        )
        inertia = statistics.inertia + (statistics.mass * further).sum() - gain
        inertia = jnp.where(left == 0, inertia_of_rows, jnp.maximum(inertia, 0))
        # After a pass without bounds the next one tries them again.
        memory = changes.labels, jnp.where(poor, 0, count)
        return Statistics(statistics.sums + sums, mass, inertia, memory)

    # No point is in a cluster, and the first pass does without bounds.
    memory = jnp.full(n, k, jnp.int32), jnp.int32(n)
    return Passes(no_statistics(k, d, points.dtype)._replace(memory=memory), following)


def _basis(points: Points) -> jax.Array:
    """An orthonormal basis [d, m] of the directions of most variance, found from a sample."""
    rows = slice(None, None, -(-len(points.values) // SAMPLE))
    sample = points.prepare(points.values[rows]) * (points.weights[rows] > 0)[:, None]
    return principal_basis(sample, jnp.zeros_like(points.centre), _COMPONENTS, points.total).vectors


def _features(rows: jax.Array, basis: jax.Array) -> jax.Array:
    """Rows [c, d] in the basis, and the length of what it leaves of them: [c, m + 1]."""
    inside = jnp.dot(rows, basis, precision=FULL_PRECISION)
    # Not from the difference of squares: its root would be far off where little is left.
    rest = rows - jnp.dot(inside, basis.T, precision=FULL_PRECISION)
    return jnp.concatenate([inside, jnp.sqrt((rest**2).sum(1, keepdims=True))], 1)


def _all_features(points: Points, basis: jax.Array) -> jax.Array:
    """The features of all points, and a last one, their squared length: [n, m + 2]."""

    def fill(out: jax.Array, start: jax.Array, rows: jax.Array, _) -> jax.Array:
        squares = (rows**2).sum(1, keepdims=True)
        features = jnp.concatenate([_features(rows, basis), squares], 1)
        return lax.dynamic_update_slice(out, features, (start, 0))

    return points.fold(fill, jnp.zeros((len(points.values), basis.shape[1] + 2), points.dtype))


def _open(points, features, basis, centroids, labels) -> tuple[jax.Array, jax.Array]:
    """The points whose nearest centroid the bounds leave open, and how many they are.

    Returns:
      int32 [n], the rows of these points, then n; and int32 scalar.
    """
    n, d = points.values.shape
    inside = -2 * _features(centroids, basis)
    squares = (centroids**2).sum(1)
    rounding = 8 * d**0.5 * jnp.finfo(points.dtype).eps
    # Bounds on |x - c|² - |x|² as products with the features of x. Both differ in the sign of what
    # the basis leaves of c; the one above has the rounding errors of both added.
    below = jnp.pad(inside, ((0, 0), (0, 1)))
    above = jnp.pad(inside.at[:, -1].mul(-1), ((0, 0), (0, 1)), constant_values=rounding)
    squares_above = squares + rounding * squares.max()
    numbers = jnp.arange(len(centroids), dtype=jnp.int32)

    def fill(out: jax.Array, start: jax.Array, rows: jax.Array, _) -> jax.Array:
        own = lax.dynamic_slice_in_dim(labels, start, len(rows))
        lower = squares + jnp.dot(rows, below.T, precision=FULL_PRECISION)
        others = jnp.where(numbers == own[:, None], jnp.inf, lower).min(1)
        upper = squares_above[own] + (above[own] * rows).sum(1)
        return lax.dynamic_update_slice_in_dim(out, others < upper, start, 0)

    is_open = over_chunks(features, points.chunk, fill, jnp.zeros(n, bool))
    blocks = jnp.pad(is_open, (0, -n % BLOCK)).reshape(-1, BLOCK).astype(jnp.int32)
    within = running_sums(blocks)
    before = running_sums(within[:, -1]) - within[:, -1]
    place = (before[:, None] + within).reshape(-1)[:n] - 1
    rows = jnp.full(n, n, jnp.int32)
    rows = rows.at[jnp.where(is_open, place, n)].set(jnp.arange(n, dtype=jnp.int32), mode="drop")
    return rows, place[-1] + 1


class _Changes(NamedTuple):
    """What the reassignment of some points changes."""

    labels: jax.Array  # int32 [n]
    sums: jax.Array  # [k, d], to be added to the sums of the clusters
    gain: jax.Array  # by how much the inertia falls
    inertia: jax.Array  # of these points alone


def _reassign(points: Points, centroids, labels, rows, count) -> _Changes:
    """Moves `count` of the points, named by their rows, to their nearest centroids.

    A label of k says that a point is in no cluster yet.
    """
    n, k = len(points.values), len(centroids)
    tile = min(_TILE, max(_DISTANCES // k, 1), n)
    rows = jnp.pad(rows, (0, -n % tile), constant_values=n)

    def add(i: jax.Array, so_far: _Changes) -> _Changes:
        here = lax.dynamic_slice_in_dim(rows, i * tile, tile)
        at = jnp.minimum(here, n - 1)
        x, old = points.prepare(points.values[at]), so_far.labels[at]
        weights = jnp.where(here < n, points.weights[at], 0)
        new, least, scores = least_scores(x, centroids)
        before = jnp.take_along_axis(scores, jnp.minimum(old, k - 1)[None], 0)[0]
        weighted = weights[:, None] * x
        to, since = (jnp.where(old != new, label, k) for label in (new, old))
        sums = so_far.sums.at[to].add(weighted, mode="drop")
        return _Changes(
            labels=so_far.labels.at[here].set(new, mode="drop"),
            sums=sums.at[since].add(-weighted, mode="drop"),
            gain=so_far.gain + (weights * (before - least)).sum(),
            inertia=so_far.inertia + (weights * jnp.maximum(least + (x**2).sum(1), 0)).sum(),
        )

    zero = jnp.zeros((), points.dtype)
    none = _Changes(labels, jnp.zeros_like(centroids), zero, zero)
    return lax.fori_loop(0, -(-count // tile), add, none)
