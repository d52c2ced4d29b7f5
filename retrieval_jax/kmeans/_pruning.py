"""Passes of Lloyd's algorithm that leave out the distances which bounds decide.

The bounds are taken in a few dimensions, and of centroids that moved; what they leave open is, as a
rule, little more than the points that change their cluster. The labels are those of a dense pass.

References:
  C. Elkan, "Using the triangle inequality to accelerate k-means", ICML 2003, for bounds that skip
    distances.
  T. Kaukoranta, P. Fränti and O. Nevalainen, "A fast exact GLA based on code vector activity
    detection", IEEE Trans. Image Processing, 2000, for skipping centroids that did not move.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.kmeans._passes import Passes, Statistics, no_statistics
from retrieval_jax.kmeans._points import BLOCK, Points, running_sums
from retrieval_jax.kmeans.assignment import chunk_rows, least_scores
from retrieval_jax.numerics.bounds import SAMPLE, principal_basis
from retrieval_jax.numerics.distances import FULL_PRECISION, over_chunks

# Rows whose distances are taken together where the bounds left them open, at most.
_TILE = 512
# Bounds that are taken together, at most: beyond a core's cache they take 1.7 times as long.
_DISTANCES = 1 << 19
# Centroids whose bounds are taken together, and at most so many rows in few dimensions: XLA shares
# twice as many out to its threads, and with ten centroids a whole fit then takes 1.4 times as long.
_CENTROIDS = 128
_ROWS = 2048
# Principal components that the bounds are taken in: with the length of the rest and the square, 16.
_COMPONENTS = 14
# The share of centroids that moved beyond which all of them are looked at.
_MANY = 0.75


def pruned_passes(points: Points, k: int) -> Passes:
    """Passes that skip the points whose nearest centroid provably stayed the same.

    Of every point a lower bound is kept on its distance to all centroids but its own. A centroid
    that did not move at all keeps its distances, so that the bound still holds for these; where few
    of them moved, which is soon so where clusters are small, only those that did are looked at.

    They are looked at in few dimensions at first. With V an orthonormal basis of a few principal
    components, and r(·) the length of what V leaves of a vector, the Cauchy-Schwarz inequality
    bounds every distance on both sides:
      |Vx - Vc|² + (r(x) - r(c))² ≤ |x - c|² ≤ |Vx - Vc|² + (r(x) + r(c))²
    A point stays where the upper bound of its own centroid is below the lower bounds of all others;
    the distances of the other points are taken in full. Embeddings have most of their variance in a
    few directions, so the bounds are tight; where they are not, all dimensions are taken from then
    on, and both bounds are the distance.

    The inertia, too, is kept up to date: moving a centroid c of mass m to c' changes it by
    m (|c' - mean|² - |c - mean|²), and a point that changes its cluster by its gain.
    """
    n, d = points.values.shape
    basis = _basis(points)
    features = _all_features(points, basis)
    spared = 1 - features.shape[1] / d

    def following(centroids, before, statistics: Statistics) -> Statistics:
        labels, _, lower, poor = statistics.memory
        means = statistics.sums / jnp.where(statistics.mass > 0, statistics.mass, 1)[:, None]
        further = ((centroids - means) ** 2 - (before - means) ** 2).sum(1)
        moved = (centroids != before).any(1)
        many = moved.sum() > _MANY * k
        looked_at = moved | many
        bounds = partial(_bounds, points, centroids, looked_at, labels)
        lower = jnp.where(many, jnp.inf, lower)
        is_open, lower = lax.cond(
            poor, lambda: bounds(lower), lambda: bounds(lower, basis, features)
        )
        rows, count = _named(is_open)
        changes = _reassign(points, centroids, labels, lower, rows, count)
        mass = jax.ops.segment_sum(points.weights, changes.labels, k)
        sums, mass, gain, inertia_of_rows, left = points.total(
            (changes.sums, mass, changes.gain, changes.inertia, n - count)
        )
        inertia = statistics.inertia + (statistics.mass * further).sum() - gain
        inertia = jnp.where(left == 0, inertia_of_rows, jnp.maximum(inertia, 0))
        # Few dimensions must spare more than they leave open; what they do is not known at first.
        poor |= (labels[0] < k) & (count / n > spared * looked_at.mean())
        memory = changes.labels, count, changes.lower, poor
        return Statistics(statistics.sums + sums, mass, inertia, memory)

    # No point is in a cluster: the first pass leaves all of them open.
    lower = jnp.full(n, -jnp.inf, points.dtype)
    memory = jnp.full(n, k, jnp.int32), jnp.int32(0), lower, jnp.bool_(False)
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


def _bounds(
    points, centroids, these, labels, lower, basis=None, features=None
) -> tuple[jax.Array, jax.Array]:
    """Which points may have another nearest centroid, and bounds of their scores.

    Args:
      points: the points.
      centroids: prepared, [k, d].
      these: bool [k], the centroids to be looked at.
      labels: int32 [n], the clusters of the points, k for none.
      lower: [n], below |x - c|² - |x|² for all other centroids c but a point's own.
      basis: of few dimensions, or None for all.
      features: of all points in the basis.

    Returns:
      bool [n]; and [n], below the scores of all centroids but a point's own.
    """
    (n, d), k = points.values.shape, len(centroids)
    squares = (centroids**2).sum(1)
    rounding = 8 * d**0.5 * jnp.finfo(points.dtype).eps
    # Bounds as products with the rows. Both differ in the sign of what the basis leaves of c; the
    # one above has the rounding errors of both added.
    below = above = -2 * centroids
    if basis is not None:
        inside = -2 * _features(centroids, basis)
        below, above = (
            jnp.pad(side, ((0, 0), (0, 1))) for side in (inside, inside.at[:, -1].mul(-1))
        )
    block = -(-k // -(-k // _CENTROIDS))
    numbers, count = _named(these)
    numbers = jnp.pad(numbers, (0, -k % block), constant_values=k)
    below = below.at[numbers].get(mode="clip")
    squares_below = squares.at[numbers].get(mode="fill", fill_value=jnp.inf)[:, None]

    def fill(out, start: jax.Array, rows: jax.Array, _):
        own, least = (lax.dynamic_slice_in_dim(x, start, len(rows)) for x in (labels, lower))

        def look(i: jax.Array, least: jax.Array) -> jax.Array:
            cut = partial(lax.dynamic_slice_in_dim, start_index=i * block, slice_size=block)
            scores = cut(squares_below) + jnp.dot(cut(below), rows.T, precision=FULL_PRECISION)
            others = jnp.where(cut(numbers)[:, None] == own, jnp.inf, scores)
            return jnp.minimum(least, others.min(0))

        least = lax.fori_loop(0, -(-count // block), look, least)
        lengths = (rows**2).sum(1) if basis is None else rows[:, -1]
        upper = squares[own] + (above[own] * rows).sum(1) + rounding * (lengths + squares.max())
        new = (own == k) | (least < upper), least
        put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(put, out, new)

    none = jnp.zeros(n, bool), lower
    chunk = min(n, max(1, min(points.chunk * k, _DISTANCES) // block))
    if basis is None:
        return points._replace(chunk=chunk).fold(fill, none)
    return over_chunks(features, min(chunk, _ROWS), fill, none)


def _named(flags: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The numbers [n] of the flags [n] that are set, then n; and how many they are."""
    n = len(flags)
    blocks = jnp.pad(flags, (0, -n % BLOCK)).reshape(-1, BLOCK).astype(jnp.int32)
    within = running_sums(blocks)
    before = running_sums(within[:, -1]) - within[:, -1]
    place = (before[:, None] + within).reshape(-1)[:n] - 1
    numbers = jnp.full(n, n, jnp.int32)
    at = jnp.where(flags, place, n)
    return numbers.at[at].set(jnp.arange(n, dtype=jnp.int32), mode="drop"), place[-1] + 1


class _Changes(NamedTuple):
    """What the reassignment of some points changes."""

    labels: jax.Array  # int32 [n]
    lower: jax.Array  # [n], the least score of all other centroids
    sums: jax.Array  # [k, d], to be added to the sums of the clusters
    gain: jax.Array  # by how much the inertia falls
    inertia: jax.Array  # of these points alone


def _reassign(points: Points, centroids, labels, lower, rows, count) -> _Changes:
    """Moves `count` of the points, named by their rows, to their nearest centroids.

    A label of k says that a point is in no cluster yet.
    """
    n, k = len(points.values), len(centroids)
    tile = min(_TILE, chunk_rows(None, n, k))
    rows = jnp.pad(rows, (0, -n % tile), constant_values=n)

    def add(i: jax.Array, so_far: _Changes) -> _Changes:
        here = lax.dynamic_slice_in_dim(rows, i * tile, tile)
        at = jnp.minimum(here, n - 1)
        x, old = points.prepare(points.values[at]), so_far.labels[at]
        weights = jnp.where(here < n, points.weights[at], 0)
        new, least, scores = least_scores(x, centroids)
        second = jnp.where(jnp.arange(k)[:, None] == new, jnp.inf, scores).min(0)
        before = jnp.take_along_axis(scores, jnp.minimum(old, k - 1)[None], 0)[0]
        weighted = weights[:, None] * x
        to, since = (jnp.where(old != new, label, k) for label in (new, old))
        sums = so_far.sums.at[to].add(weighted, mode="drop")
        return _Changes(
            labels=so_far.labels.at[here].set(new, mode="drop"),
            lower=so_far.lower.at[here].set(second, mode="drop"),
            sums=sums.at[since].add(-weighted, mode="drop"),
            gain=so_far.gain + (weights * (before - least)).sum(),
            inertia=so_far.inertia + (weights * jnp.maximum(least + (x**2).sum(1), 0)).sum(),
        )

    zero = jnp.zeros((), points.dtype)
    none = _Changes(labels, lower, jnp.zeros_like(centroids), zero, zero)
    return lax.fori_loop(0, -(-count // tile), add, none)
