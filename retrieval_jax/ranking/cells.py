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
from retrieval_jax.numerics.arguments import checked_queries, whole_number
from retrieval_jax.numerics.bounds import Basis
from retrieval_jax.numerics.distances import (
    FULL_PRECISION,
    centre,
    matrix,
    over_chunks,
    same_features,
)
from retrieval_jax.ranking import Neighbours
from retrieval_jax.ranking._cell_arguments import (
    check_magnitudes,
    checked_cells,
    checked_ids,
    checked_probes,
    in_halves,
)
from retrieval_jax.ranking._cell_bounds import block_bounds
from retrieval_jax.ranking._cell_search import scan
from retrieval_jax.ranking._costs import find_basis
from retrieval_jax.ranking.neighbours import compared_in, no_neighbours


class ClusterIndex(NamedTuple):
    """A gallery grouped by cell; made by `group` or `build`, searched by `search`.

    Rows are held less `origin`, so that a common offset costs no precision.

    Attributes:
      centroids: [cells, d], in the coordinates of the gallery. float32, as all that is no integer;
        float64 where the gallery was float64 under `jax_enable_x64`.
      origin: [d].
      rows: [n, d], gallery rows less the origin; a cell's rows follow one another in order of
        gallery index.
      squares: [n], squared lengths of `rows`.
      indices: int32 [n], the gallery index of each of `rows`.
      offsets: int32 [cells + 1]; cell c holds rows offsets[c] to offsets[c + 1].
      basis: principal components of `rows`.
      features: [blocks, components + 3, width], from which the search bounds distances: of each
        cell's rows in blocks of `width`, at most 3 n in all.
      ids: uint32 [n, 2], the upper and lower halves of each gallery row's own id, in order of
        gallery index (JAX has no 64 bits by default); None where rows have none but their index.
    """

    centroids: jax.Array
    origin: jax.Array
    rows: jax.Array
    squares: jax.Array
    indices: jax.Array
    offsets: jax.Array
    basis: Basis
    features: jax.Array
    ids: jax.Array | None = None


def build(
    key: jax.Array,
    gallery: ArrayLike,
    cells: int,
    *,
    max_iterations: int = 25,
    ids: ArrayLike | None = None,
) -> ClusterIndex:
    """Groups a gallery by a k-means of its own, with one seeding.

    For other k-means settings call `kmeans` and `group`.

    Args:
      key: JAX random key of the seeding.
      gallery: [n, d]. For cosine order give unit vectors, to `search` too: between them a smaller
        Euclidean distance is a larger cosine.
      cells: number of cells, 1 ≤ cells ≤ n; √n to 4 √n is usual.
      max_iterations: of k-means; the search is exact in its cells however good they are.
      ids: as for `group`.

    Returns:
      `ClusterIndex`.

    Raises:
      ValueError: as `kmeans` and `group`.

    Example:
      >>> gallery = [[0.0], [9.0], [1.0], [8.0]]
      >>> build(jax.random.key(0), gallery, cells=2).offsets.tolist()
      [0, 2, 4]
    """
    gallery = matrix(gallery, "gallery")
    found = kmeans(key, gallery, cells, restarts=1, max_iterations=max_iterations)
    return group(gallery, found.labels, found.centroids, ids=ids)


def group(
    gallery: ArrayLike, labels: ArrayLike, centroids: ArrayLike, *, ids: ArrayLike | None = None
) -> ClusterIndex:
    """Groups a gallery by cells that are known already.

    Args:
      gallery: [n, d]; unit vectors for cosine order, as in `build`. Squared distances between rows,
        and to queries, must stay inside the type: magnitudes of 1e-15 to 1e16 in float32.
      labels: int [n], the cell of each row, 0 ≤ label < cells. It need not be the nearest, but what
        is searched depends on it. Cells may be empty.
      centroids: [cells, d].
      ids: int64 [n] on the host, each row's own id, none twice, ≥ 0; by default rows have none but
        their gallery index. `own_ids` translates what a search finds.

    Returns:
      `ClusterIndex`.

    Raises:
      ValueError: arrays of the wrong shape, dtype or (where they are concrete, not traced by an
        outer jit) range; values that are NaN or infinite; ids that repeat.

    Example:
      >>> index = group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]])
      >>> index.indices.tolist(), index.offsets.tolist()
      ([0, 2, 1], [0, 2, 3])
    """
    gallery, centroids = matrix(gallery, "gallery"), matrix(centroids, "centroids")
    same_features(gallery, "gallery", centroids)
    check_magnitudes(gallery, "gallery")
    labels = checked_cells(labels, (len(gallery),), len(centroids), "labels")
    halves = None if ids is None else in_halves(checked_ids(ids, len(gallery)))
    dtype = compared_in(gallery.dtype, centroids.dtype)
    return _grouped(gallery.astype(dtype), labels, centroids.astype(dtype))._replace(ids=halves)


def add(index: ClusterIndex, rows: ArrayLike, *, ids: ArrayLike | None = None) -> ClusterIndex:
    """Returns an index with more rows, each in the cell of its nearest centroid.

    Their gallery indices go on from the largest. The centroids stay, so the index is the one that
    `group` makes of all rows. It costs a copy of the whole index, n + m rows: add many at a time.

    Args:
      index: `ClusterIndex` of n rows.
      rows: [m, d].
      ids: int64 [m], theirs, given if and only if the index has ids.

    Returns:
      `ClusterIndex` of n + m rows.

    Raises:
      ValueError: rows of the wrong shape, or NaN or infinite; ids that repeat or are there already,
        missing or too many.

    Example:
      >>> index = group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]])
      >>> add(index, [[0.7]]).indices.tolist()
      [0, 2, 3, 1]
    """
    rows = matrix(rows, "rows")
    same_features(rows, "rows", index.centroids)
    check_magnitudes(rows, "rows")
    if (ids is None) != (index.ids is None):
        raise ValueError("ids must be given for added rows if the index has ids, and only then.")
    halves = None
    if ids is not None:
        new = checked_ids(ids, len(rows))
        both = np.concatenate([own_ids(index, np.arange(len(index.rows))), new])
        halves = in_halves(checked_ids(both, len(both)))
    rows = rows.astype(index.rows.dtype)
    labels = predict(rows, index.centroids)
    return _added(index._replace(ids=None), rows, labels)._replace(ids=halves)


def remove(index: ClusterIndex, ids: ArrayLike) -> ClusterIndex:
    """Returns an index without some rows: the one that `group` makes of the others.

    So the gallery indices of later rows move up, as by `np.delete`; ids of one's own stay. It costs
    a copy of the index, on the host: remove many at a time. Not for use under jit.

    Args:
      index: `ClusterIndex` of n rows.
      ids: int [m], own ids where the index has them, otherwise gallery indices.

    Returns:
      `ClusterIndex` of n - m rows.

    Raises:
      ValueError: ids that the index does not have, or that repeat; all of its rows.

    Example:
      >>> index = group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]], ids=[70, 80, 90])
      >>> left = remove(index, [70])
      >>> left.indices.tolist(), own_ids(left, left.indices).tolist()
      ([1, 0], [90, 80])
    """
    gone = _gallery_indices(index, checked_ids(ids))
    n = len(index.rows)
    if len(gone) == n:
        raise ValueError(f"an index can't be empty; all of its {n} rows were to be removed.")
    stays = np.ones(n, bool)
    stays[gone] = False
    indices = np.asarray(index.indices)
    at = np.flatnonzero(stays[indices])
    before = np.concatenate([[0], np.cumsum(stays[indices])])
    left = completed(
        index.centroids,
        index.origin,
        index.rows[at],
        index.squares[at],
        jnp.asarray((np.cumsum(stays) - 1)[indices[at]], jnp.int32),
        jnp.asarray(before[np.asarray(index.offsets)], jnp.int32),
    )
    return left if index.ids is None else left._replace(ids=index.ids[np.flatnonzero(stays)])


def reconstruct(index: ClusterIndex, ids: ArrayLike) -> jax.Array:
    """The gallery rows of some ids, right to rounding of the origin taken off and added again.

    Args:
      index: `ClusterIndex`.
      ids: int [m], own ids where the index has them, otherwise gallery indices.

    Returns:
      [m, d], in the type of the index.

    Raises:
      ValueError: ids that the index does not have.

    Example:
      >>> index = group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]])
      >>> reconstruct(index, [2, 1]).tolist()
      [[1.0], [9.0]]
    """
    place = np.argsort(np.asarray(index.indices))
    wanted = _gallery_indices(index, checked_ids(ids, unique=False))
    return index.rows[place[wanted]] + index.origin


def own_ids(index: ClusterIndex, indices: ArrayLike) -> np.ndarray:
    """The own ids of gallery indices that a search found: int64 on the host, -1 for the missing.

    Args:
      index: `ClusterIndex` with ids.
      indices: int, any shape, of a search in it.

    Returns:
      int64, the same shape.

    Raises:
      ValueError: an index without ids.

    Example:
      >>> index = group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]], ids=[5, 6, 2**40])
      >>> own_ids(index, search(index, [[1.5]], k=3, probes=1).indices).tolist()
      [[1099511627776, 5, -1]]
    """
    if index.ids is None:
        raise ValueError("the index has no ids but the gallery indices; give `ids` to `group`.")
    indices = np.asarray(indices)
    upper, lower = np.asarray(index.ids).astype(np.int64).T
    return np.where(indices < 0, -1, ((upper << 32) | lower)[indices])


def _gallery_indices(index: ClusterIndex, ids: np.ndarray) -> np.ndarray:
    """The gallery indices [m] of ids [m]."""
    n = len(index.rows)
    known = np.arange(n) if index.ids is None else own_ids(index, np.arange(n))
    order = np.argsort(known)
    at = order[np.searchsorted(known, ids, sorter=order).clip(max=n - 1)]
    unknown = ids[known[at] != ids]
    if len(unknown):
        raise ValueError(f"the index has no row of id {unknown[0]}.")
    return at


def search(index: ClusterIndex, queries: ArrayLike, k: int, *, probes: int) -> Neighbours:
    """Finds the k nearest rows of the `probes` cells nearest to each query.

    Exact inside those cells: distances are from differences, equal ones ordered by gallery index.
    probes = cells is the exhaustive search. It can be jitted (k and probes static). Besides the
    arrays it needs memory for 2²⁴ bounds (64 MB), or those of one query if they are more, up to
    three times, and for q × (8 k + 2 probes + d) numbers, whatever n. Fastest where 29 principal
    components hold most of the variance, as in embeddings.

    Args:
      index: `ClusterIndex`.
      queries: [q, d], converted to the type of the index; q may be 0.
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
    queries = _checked_queries(index, queries)
    k, cells = whole_number(k, "k"), len(index.centroids)
    if not 1 <= whole_number(probes, "probes", 0) <= cells:
        raise ValueError(f"probes must be between 1 and the number of cells, {cells}; is {probes}.")
    if not len(queries):
        return no_neighbours(k, queries.dtype)
    index = index._replace(ids=None)  # the same programs with and without
    return scan(index, queries, _nearest_cells(index, queries, int(probes)), k)


def search_cells(index: ClusterIndex, queries: ArrayLike, cells: ArrayLike, k: int) -> Neighbours:
    """As `search`, in cells that are given.

    Args:
      index: `ClusterIndex`.
      queries: [q, d], converted to the type of the index; q may be 0.
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
    queries = _checked_queries(index, queries)
    cells = checked_probes(cells, len(queries), len(index.centroids))
    k = whole_number(k, "k")
    if not len(queries):
        return no_neighbours(k, queries.dtype)
    return scan(index._replace(ids=None), queries, cells, k)


def _checked_queries(index: ClusterIndex, queries: ArrayLike) -> jax.Array:
    queries = checked_queries(queries)
    same_features(queries, "queries", index.centroids)
    if len(queries):
        check_magnitudes(queries, "queries")
    return queries.astype(index.rows.dtype)


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
    basis = find_basis(rows, "euclidean", jnp.ones((), rows.dtype))
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
