"""An index over clusters (inverted file): the gallery grouped by k-means cell, few cells searched.

Only the `probes` cells whose centroids are nearest to a query are searched; inside them the search
is exact. One device holds the index; `sharded.search_cells` searches in the cells of a gallery that
is spread over several.

References:
  J. Sivic and A. Zisserman, "Video Google: a text retrieval approach to object matching in videos",
  ICCV 2003 (inverted file).
  H. Jégou, M. Douze and C. Schmid, "Product quantization for nearest neighbor search", IEEE TPAMI,
  2011 (probing several cells).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from retrieval_jax.kmeans import kmeans, predict
from retrieval_jax.numerics.bounds import Basis
from retrieval_jax.numerics.distances import (
    FULL_PRECISION,
    as_array,
    centre,
    matrix,
    over_chunks,
    same_features,
)
from retrieval_jax.ranking import Neighbours
from retrieval_jax.ranking._cell_bounds import block_bounds
from retrieval_jax.ranking._cell_search import scan
from retrieval_jax.ranking._costs import find_basis


class ClusterIndex(NamedTuple):
    """A gallery grouped by cell; made by `group` or `build`, searched by `search`.

    Rows are held less `origin`, so that a common offset costs no precision.

    Attributes:
      centroids: float32 [cells, d], in the coordinates of the gallery.
      origin: float32 [d].
      rows: float32 [n, d], gallery rows less the origin; a cell's rows follow one another in order
        of gallery index.
      squares: float32 [n], squared lengths of `rows`.
      indices: int32 [n], the gallery index of each of `rows`.
      offsets: int32 [cells + 1]; cell c holds rows offsets[c] to offsets[c + 1].
      basis: principal components of `rows`.
      features: float32 [blocks, components + 3, width], from which the search bounds distances: of
        each cell's rows in blocks of `width`, at most 3 n in all.
    """

    centroids: jax.Array
    origin: jax.Array
    rows: jax.Array
    squares: jax.Array
    indices: jax.Array
    offsets: jax.Array
    basis: Basis
    features: jax.Array


def build(
    key: jax.Array, gallery: ArrayLike, cells: int, *, max_iterations: int = 25
) -> ClusterIndex:
    """Groups a gallery by a k-means of its own, with one seeding.

    For other k-means settings call `kmeans` and `group`.

    Args:
      key: JAX random key of the seeding.
      gallery: [n, d], converted to float32. For cosine order give unit vectors, to `search` too:
        between them a smaller Euclidean distance is a larger cosine.
      cells: number of cells, 1 ≤ cells ≤ n; √n to 4 √n is usual.
      max_iterations: of k-means; the search is exact in its cells however good they are.

    Returns:
      `ClusterIndex`.

    Raises:
      ValueError: as `kmeans`.

    Example:
      >>> gallery = [[0.0], [9.0], [1.0], [8.0]]
      >>> build(jax.random.key(0), gallery, cells=2).offsets.tolist()
      [0, 2, 4]
    """
    gallery = matrix(gallery, "gallery")
    found = kmeans(key, gallery, cells, restarts=1, max_iterations=max_iterations)
    return _grouped(gallery, found.labels, found.centroids)


def group(gallery: ArrayLike, labels: ArrayLike, centroids: ArrayLike) -> ClusterIndex:
    """Groups a gallery by cells that are known already.

    Args:
      gallery: [n, d], converted to float32; unit vectors for cosine order, as in `build`.
      labels: int [n], the cell of each row, 0 ≤ label < cells. It need not be the nearest, but what
        is searched depends on it. Cells may be empty.
      centroids: [cells, d], converted to float32.

    Returns:
      `ClusterIndex`.

    Raises:
      ValueError: arrays of the wrong shape, dtype or (where they are concrete, not traced by an
        outer jit) range; values that are NaN or infinite.

    Example:
      >>> index = group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]])
      >>> index.indices.tolist(), index.offsets.tolist()
      ([0, 2, 1], [0, 2, 3])
    """
    gallery = matrix(gallery, "gallery")
    centroids = matrix(centroids, "centroids").astype(jnp.float32)
    same_features(gallery, "gallery", centroids)
    labels = checked_cells(labels, (len(gallery),), len(centroids), "labels")
    return _grouped(gallery, labels, centroids)


def add(index: ClusterIndex, rows: ArrayLike) -> ClusterIndex:
    """Returns an index with more rows, each in the cell of its nearest centroid.

    Their gallery indices go on from the largest. The centroids stay, so the index is the one that
    `group` makes of all rows. It costs a copy of the whole index, n + m rows: add many at a time.

    Args:
      index: `ClusterIndex` of n rows.
      rows: [m, d], converted to float32.

    Returns:
      `ClusterIndex` of n + m rows.

    Raises:
      ValueError: rows of the wrong shape, or NaN or infinite.

    Example:
      >>> index = group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]])
      >>> add(index, [[0.7]]).indices.tolist()
      [0, 2, 3, 1]
    """
    rows = matrix(rows, "rows")
    same_features(rows, "rows", index.centroids)
    return _added(index, rows, predict(rows, index.centroids))


def search(index: ClusterIndex, queries: ArrayLike, k: int, *, probes: int) -> Neighbours:
    """Finds the k nearest rows of the `probes` cells nearest to each query.

    Exact inside those cells: distances are from differences, equal ones ordered by gallery index.
    probes = cells is the exhaustive search. It can be jitted (k and probes static). Besides the
    arrays it needs memory for 2²⁴ bounds (64 MB), or those of one query if they are more, up to
    three times, and for q × (8 k + 2 probes + d) numbers, whatever n. Fastest where 29 principal
    components hold most of the variance, as in embeddings.

    Args:
      index: `ClusterIndex`.
      queries: [q, d], converted to float32.
      k: neighbours a query, ≥ 1.
      probes: cells a query, 1 ≤ probes ≤ cells; of equally near centroids the first are searched.

    Returns:
      `Neighbours`: gallery indices and Euclidean distances, -1 and infinity where the cells hold
      fewer than k rows.

    Raises:
      ValueError: queries of the wrong shape, or NaN or infinite; k or probes out of range.

    Example:
      >>> index = group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]])
      >>> found = search(index, [[1.5]], k=3, probes=1)
      >>> found.indices.tolist(), found.distances.tolist()
      ([[2, 0, -1]], [[0.5, 1.5, inf]])
    """
    queries = matrix(queries, "queries")
    same_features(queries, "queries", index.centroids)
    cells = len(index.centroids)
    if not 1 <= probes <= cells:
        raise ValueError(f"probes must be between 1 and the number of cells, {cells}; is {probes}.")
    _check_neighbours(k)
    return scan(index, queries, _nearest_cells(index, queries, probes), k)


def search_cells(index: ClusterIndex, queries: ArrayLike, cells: ArrayLike, k: int) -> Neighbours:
    """As `search`, in cells that are given.

    Args:
      index: `ClusterIndex`.
      queries: [q, d], converted to float32.
      cells: int [q, probes], the cells to search for each query, none twice.
      k: neighbours a query, ≥ 1.

    Returns:
      `Neighbours`.

    Raises:
      ValueError: queries of the wrong shape, or NaN or infinite; cells of the wrong shape, dtype or
        (where they are concrete) range, or repeated; k below 1.

    Example:
      >>> index = group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]])
      >>> search_cells(index, [[1.5]], [[1]], k=1).indices.tolist()
      [[1]]
    """
    queries = matrix(queries, "queries")
    same_features(queries, "queries", index.centroids)
    cells = checked_probes(cells, len(queries), len(index.centroids))
    _check_neighbours(k)
    return scan(index, queries, cells, k)


def checked_probes(cells: ArrayLike, queries: int, count: int) -> jax.Array | np.ndarray:
    """The cells as int32 [queries, probes], out of `count`.

    Raises:
      ValueError: another shape or dtype, or (where they are concrete) out of range or repeated.

    Example:
      >>> checked_probes([[1, 0]], 1, 2).tolist()
      [[1, 0]]
    """
    cells = as_array(cells)
    if cells.ndim != 2 or len(cells) != queries or cells.shape[1] < 1:
        raise ValueError(f"cells must have a row for each query; their shape is {cells.shape}.")
    cells = checked_cells(cells, cells.shape, count, "cells")
    if not isinstance(cells, jax.core.Tracer):
        ordered = np.sort(np.asarray(cells), 1)
        if (ordered[:, 1:] == ordered[:, :-1]).any():
            raise ValueError("cells must name no cell twice for the same query.")
    return cells


def _check_neighbours(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1; it is {k}.")


def checked_cells(
    values: ArrayLike, shape: tuple[int, ...], cells: int, name: str
) -> jax.Array | np.ndarray:
    """The numbers of cells as int32 of the shape.

    Raises:
      ValueError: another shape or dtype, or (where they are concrete) outside 0..cells - 1.

    Example:
      >>> checked_cells([0, 1, 0], (3,), 2, "labels").tolist()
      [0, 1, 0]
    """
    values = as_array(values)
    if values.shape != shape or not jnp.issubdtype(values.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be integers of shape {shape}; they are {values.dtype} {values.shape}."
        )
    if not isinstance(values, jax.core.Tracer) and bool(((values < 0) | (values >= cells)).any()):
        raise ValueError(f"{name} must be in 0..{cells - 1}, the centroids there are.")
    return values.astype(np.int32)


@jax.jit
def _grouped(gallery, labels, centroids) -> ClusterIndex:
    # Of the centroids, not of the gallery, so that it stays when rows are added.
    origin = centre(centroids, len(centroids))
    return _sorted(gallery - origin, jnp.arange(len(gallery)), labels, centroids, origin)


@jax.jit
def _added(index: ClusterIndex, rows, labels) -> ClusterIndex:
    n = len(index.rows)
    old = jnp.searchsorted(index.offsets, jnp.arange(n), side="right") - 1
    return _sorted(
        jnp.concatenate([index.rows, rows - index.origin]),
        jnp.concatenate([index.indices, n + jnp.arange(len(rows))]),
        jnp.concatenate([old, labels]),
        index.centroids,
        index.origin,
    )


def _sorted(rows, indices, labels, centroids, origin) -> ClusterIndex:
    order = jnp.argsort(labels, stable=True)
    rows = rows[order]
    offsets = jnp.searchsorted(labels[order], jnp.arange(len(centroids) + 1)).astype(jnp.int32)
    indices = indices[order].astype(jnp.int32)
    return completed(centroids, origin, rows, (rows**2).sum(1), indices, offsets)


@jax.jit
def completed(centroids, origin, rows, squares, indices, offsets) -> ClusterIndex:
    """The index of the arrays that all else in it follows from; as in `ClusterIndex`.

    Example:
      >>> index = group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]])
      >>> completed(*index[:6]).features.shape
      (2, 4, 8)
    """
    basis = find_basis(rows, "euclidean")
    features = block_bounds(rows, offsets, basis)
    return ClusterIndex(centroids, origin, rows, squares, indices, offsets, basis, features)


@partial(jax.jit, static_argnums=2)
def _nearest_cells(index: ClusterIndex, queries, probes) -> jax.Array:
    centroids = index.centroids - index.origin
    squares = (centroids**2).sum(1)

    def fill(out, start, rows, _):
        products = jnp.dot(rows - index.origin, centroids.T, precision=FULL_PRECISION)
        near = lax.top_k(2 * products - squares, probes)[1]
        return lax.dynamic_update_slice_in_dim(out, near, start, 0)

    out = jnp.zeros((len(queries), probes), jnp.int32)
    return over_chunks(queries, min(len(queries), 1024), fill, out)
