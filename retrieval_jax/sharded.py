"""k-means and search with the rows shared by all devices of all hosts.

Arrays of one device's size or larger: each device gets its part of the rows straight from the host.
Every process gives the same arrays, and gets the same results.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from retrieval_jax import kmeans as single_kmeans
from retrieval_jax import ranking
from retrieval_jax.kmeans._points import BLOCK, check_clusters, check_weights
from retrieval_jax.kmeans.fit import check_inertia
from retrieval_jax.numerics.arguments import checked_queries, whole_number
from retrieval_jax.numerics.distances import host_matrix, matrix, working_type
from retrieval_jax.ranking import cells as cluster_index
from retrieval_jax.ranking._cell_arguments import check_magnitudes, checked_cells, checked_probes
from retrieval_jax.ranking._tiles import Found, least_of_all
from retrieval_jax.ranking.exact import checked_setting
from retrieval_jax.ranking.neighbours import (
    check_features,
    checked_labels,
    checked_mask,
    compared_in,
    no_neighbours,
)
from retrieval_jax.runtime import devices

_ROWS = P(devices.AXIS)


def kmeans(
    key: jax.Array,
    points: ArrayLike,
    k: int,
    *,
    weights: ArrayLike | None = None,
    initial_centroids: ArrayLike | None = None,
    tolerance: ArrayLike = 1e-4,
    **options: Any,
) -> single_kmeans.KMeansResult:
    """As `retrieval_jax.kmeans.kmeans`, over all devices.

    The seeds are one device's; centroids and inertia agree with one device's to rounding, and
    labels are what `predict` says of the points and centroids.

    Args:
      key: JAX random key.
      points: [n, d] on the host or anywhere.
      k: number of clusters.
      weights: [n], ≥ 0; None for 1 each.
      initial_centroids: [k, d] to start from, in place of seeding.
      tolerance: as for `retrieval_jax.kmeans.kmeans`; a number or an array, traced or not.
      **options: the others of `retrieval_jax.kmeans.kmeans`, but for `axis_name`.

    Returns:
      Its `KMeansResult`, with the labels of all n points.

    Raises:
      ValueError: as `retrieval_jax.kmeans.kmeans`.

    Example:
      >>> found = kmeans(jax.random.key(0), [[0.0], [1.0], [8.0], [9.0]], k=2, restarts=3)
      >>> sorted(found.centroids.ravel().tolist()), found.labels.shape
      ([0.5, 8.5], (4,))
    """
    given: dict[str, Any] = {"initial_centroids": initial_centroids, "tolerance": tolerance}
    mesh = devices.mesh()
    if mesh.size == 1:
        return single_kmeans.kmeans(key, points, k, weights=weights, **given, **options)
    # All is checked before rows are added, so that errors name the sizes of the caller.
    rows = np.asarray(host_matrix(points, "points"))
    k = check_clusters(k, len(rows))
    masses = np.asarray(check_weights(weights, len(rows), k, working_type(rows.dtype)))
    for name in {"restarts", "max_iterations", "chunk_size"} & options.keys():
        if options[name] is not None:
            options[name] = whole_number(options[name], name)  # hashable, whatever integer it was
    if initial_centroids is not None:
        given["initial_centroids"] = matrix(initial_centroids, "initial_centroids")
    # Whole blocks on each device, so that the seeding draws from the same ones.
    shared = _shared(mesh, rows, BLOCK), _shared(mesh, masses, BLOCK)
    found = _kmeans(mesh, k, tuple(sorted(options.items())), key, *shared, given)
    check_inertia(found.inertia)
    return found._replace(labels=devices.on_host(found.labels)[: len(rows)])


def nearest(
    queries: ArrayLike,
    gallery: ArrayLike,
    k: int,
    *,
    mask: ArrayLike | None = None,
    query_labels: ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
    **options: Any,
) -> ranking.Neighbours:
    """As `retrieval_jax.ranking.nearest`, with the gallery shared by all devices.

    Every device searches its rows for all queries; the best of all are kept. The neighbours are
    those of one device.

    Args:
      queries: [q, d].
      gallery: [n, d] on the host or anywhere.
      k: neighbours a query, ≥ 1.
      mask: bool [n], the rows that may be found; all of them by default.
      query_labels: int [q], given with gallery_labels: a query finds rows of its own label alone.
      gallery_labels: int [n].
      **options: the others of `retrieval_jax.ranking.nearest`, but for `axis_name`.

    Returns:
      Its `Neighbours`.

    Raises:
      ValueError: as `retrieval_jax.ranking.nearest`.

    Example:
      >>> nearest([[0.9]], [[0.0], [1.0], [2.0]], k=2).indices.tolist()
      [[1, 0]]
    """
    mesh = devices.mesh()
    if mesh.size == 1:
        labels: Any = {"query_labels": query_labels, "gallery_labels": gallery_labels}
        return ranking.nearest(queries, gallery, k, mask=mask, **labels, **options)
    # Checked here: the devices see the rows that make their parts equal too.
    queries, rows = checked_queries(queries), np.asarray(host_matrix(gallery, "gallery"))
    n = len(rows)
    check_features(queries.shape[1], rows.shape[1])
    setting = checked_setting((len(queries), n), k, **options)
    mask = np.asarray(checked_mask(mask, n))
    of_queries, of_gallery = checked_labels(query_labels, gallery_labels, len(queries), n)
    if not len(queries):
        return no_neighbours(setting.k, compared_in(queries.dtype, rows.dtype))
    shared = (_shared(mesh, of, 1) for of in (rows, mask, np.asarray(of_gallery)))
    return _nearest(mesh, setting, queries, of_queries, *shared)


def search_cells(
    queries: ArrayLike,
    cells: ArrayLike,
    gallery: ArrayLike,
    labels: ArrayLike,
    centroids: ArrayLike,
    k: int,
) -> ranking.Neighbours:
    """As `retrieval_jax.ranking.cells.search_cells`, with the gallery shared by all devices.

    Every device groups its rows by cell and searches them for all queries; the best of all are
    kept. The neighbours are those of one device. With one probe the cells are labels for `nearest`,
    whose program is compiled for the exhaustive search already.

    Args:
      queries: [q, d].
      cells: int [q, probes], the cells to search for each query, none twice.
      gallery: [n, d] on the host or anywhere.
      labels: int [n], the cell of each row.
      centroids: [cells, d].
      k: neighbours a query, ≥ 1.

    Returns:
      `Neighbours`.

    Raises:
      ValueError: as `retrieval_jax.ranking.cells.group` and `search_cells`.

    Example:
      >>> gallery, centroids = [[0.0], [9.0], [1.0]], [[0.5], [9.0]]
      >>> search_cells([[1.5]], [[0]], gallery, [0, 1, 0], centroids, k=2).indices.tolist()
      [[2, 0]]
    """
    queries, centroids = checked_queries(queries), matrix(centroids, "centroids")
    rows, count = np.asarray(host_matrix(gallery, "gallery")), len(centroids)
    labels = checked_cells(labels, (len(rows),), count, "labels")
    cells = checked_probes(cells, len(queries), count)
    if cells.shape[1] == 1:
        return nearest(queries, rows, k, query_labels=cells[:, 0], gallery_labels=labels)
    mesh, k = devices.mesh(), whole_number(k, "k")
    if mesh.size == 1 or not len(queries):
        index = cluster_index.group(rows, labels, centroids)
        return cluster_index.search_cells(index, queries, cells, k)
    check_features(queries.shape[1], rows.shape[1])
    for name, array in (("queries", queries), ("gallery", rows)):
        check_magnitudes(array, name)
    # A cell of its own for the rows that make the shards equal; nobody searches it.
    centroids = jnp.concatenate([centroids, centroids[:1]])
    shared = _shared(mesh, rows, 1), _shared(mesh, np.asarray(labels), 1, fill=count)
    return _search_cells(mesh, k, queries, cells, centroids, *shared)


def _shared(mesh: Mesh, rows: np.ndarray, block: int, fill: int = 0) -> jax.Array:
    """The array with rows of `fill` added, so that all devices get as many whole blocks."""
    n = len(rows)
    shape = (n + -n % (mesh.size * block), *rows.shape[1:])

    def part(index: Any) -> np.ndarray:
        first, stop, _ = index[0].indices(shape[0])
        padding = ((0, stop - max(first, min(stop, n))), *((0, 0) for _ in shape[1:]))
        return np.pad(rows[first:stop], padding, constant_values=fill)

    return jax.make_array_from_callback(shape, NamedSharding(mesh, _ROWS), part)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _kmeans(mesh, k, options, key, points, weights, given) -> single_kmeans.KMeansResult:
    def fit(key, points, weights, given):
        return single_kmeans.kmeans(
            key, points, k, weights=weights, axis_name=devices.AXIS, **given, **dict(options)
        )

    everywhere = P()
    specs: Any = [everywhere] * 6
    result = single_kmeans.KMeansResult(*specs)._replace(labels=_ROWS)  # type: ignore[arg-type]
    return jax.shard_map(
        fit,
        mesh=mesh,
        in_specs=(everywhere, _ROWS, _ROWS, everywhere),
        out_specs=result,
        check_vma=False,
    )(key, points, weights, given)


@partial(jax.jit, static_argnums=(0, 1))
def _nearest(mesh, setting, queries, of_queries, *rows) -> ranking.Neighbours:
    def search(queries, of_queries, gallery, mask, of_gallery):
        return ranking.nearest(
            queries,
            gallery,
            mask=mask,
            query_labels=of_queries,
            gallery_labels=of_gallery,
            axis_name=devices.AXIS,
            **setting._asdict(),
        )

    return jax.shard_map(
        search,
        mesh=mesh,
        in_specs=(P(), P(), _ROWS, _ROWS, _ROWS),
        out_specs=P(),
        check_vma=False,
    )(queries, of_queries, *rows)


@partial(jax.jit, static_argnums=(0, 1))
def _search_cells(mesh, k, queries, cells, centroids, gallery, labels) -> ranking.Neighbours:
    def search(queries, cells, centroids, gallery, labels):
        index = cluster_index.group(gallery, labels, centroids)
        found = cluster_index.search_cells(index, queries, cells, k)
        first = lax.axis_index(devices.AXIS) * len(gallery)
        indices = jnp.where(found.indices < 0, -1, found.indices + first)
        best = least_of_all(Found(found.distances, indices), k, devices.AXIS)
        return ranking.Neighbours(best.indices, best.costs)

    return jax.shard_map(
        search,
        mesh=mesh,
        in_specs=(P(), P(), P(), _ROWS, _ROWS),
        out_specs=P(),
        check_vma=False,
    )(queries, cells, centroids, gallery, labels)
