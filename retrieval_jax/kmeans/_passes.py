"""One pass of Lloyd's algorithm over all points, and where it moves the centroids."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from retrieval_jax.kmeans._points import Points
from retrieval_jax.kmeans.assignment import assign
from retrieval_jax.kmeans.seeding import farthest
from retrieval_jax.numerics.distances import FULL_PRECISION, unit


class Statistics(NamedTuple):
    """What one pass says about centroids.

    Attributes:
      sums: [k, d] of the points' type, of the prepared points in each cluster, weighted.
      mass: [k], the weight in each cluster.
      inertia: scalar.
      memory: what the next pass needs to know of this one.
    """

    sums: jax.Array
    mass: jax.Array
    inertia: jax.Array
    memory: tuple[jax.Array, ...] = ()


class Passes(NamedTuple):
    """How to get the statistics of centroids [k, d], time after time.

    Attributes:
      start: what `next` is given the first time.
      next: (centroids, the ones before, statistics of these) → statistics of the centroids.
    """

    start: Statistics
    next: Callable[[jax.Array, jax.Array, Statistics], Statistics]


def no_statistics(k: int, d: int, dtype: DTypeLike = jnp.float32) -> Statistics:
    """Statistics of no points at all.

    Example:
      >>> no_statistics(2, 1).mass.tolist()
      [0.0, 0.0]
    """
    return Statistics(jnp.zeros((k, d), dtype), jnp.zeros(k, dtype), jnp.zeros((), dtype))


def dense_passes(points: Points, k: int) -> Passes:
    """Passes that take the distance of every point to every centroid."""
    return Passes(
        start=no_statistics(k, points.values.shape[1], points.dtype),
        next=lambda centroids, before, statistics: dense_statistics(points, centroids),
    )


def dense_statistics(points: Points, centroids: jax.Array) -> Statistics:
    """The statistics of prepared centroids [k, d], from every distance.

    Sums are matmuls: a scatter is slow on TPU, and on GPU adds in an order that varies.
    """
    k, d = centroids.shape
    numbers = jnp.arange(k)[:, None]

    def add(total: Statistics, _, rows: jax.Array, weights: jax.Array) -> Statistics:
        labels, distances = assign(rows, centroids)
        members = (labels == numbers) * weights
        sums = jnp.dot(members, rows, precision=FULL_PRECISION)
        new = Statistics(sums, members.sum(1), (weights * distances).sum())
        return jax.tree.map(jnp.add, total, new)

    return points.total(points.fold(add, no_statistics(k, d, points.dtype)))


def move(points: Points, centroids: jax.Array, statistics: Statistics) -> jax.Array:
    """Each centroid to the mean of its points; the j-th empty one to the j-th farthest point.

    The cluster that this point is still summed into need not give it up: any place for an empty
    cluster leaves the inertia no higher, and the next assignment settles whose the point is. No
    cluster goes to a point that lies on its centroid, or two would chase it forever.
    """
    mass = statistics.mass[:, None]

    def reseeded() -> jax.Array:
        distances, places = farthest(points, centroids)
        rank = jnp.cumsum(mass[:, 0] == 0) - 1
        return jnp.where((distances[rank] > 0)[:, None], places[rank], centroids)

    kept = lax.cond((mass == 0).any(), reseeded, lambda: centroids)
    means = statistics.sums / jnp.where(mass > 0, mass, 1)
    if points.spherical:
        means = unit(means + points.centre) - points.centre
    return jnp.where(mass > 0, means, kept)
