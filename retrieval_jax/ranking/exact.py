"""The exhaustive search of a gallery on the device, whole or a shard on each of several."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from retrieval_jax.numerics.arguments import whole_number
from retrieval_jax.ranking._costs import as_compared, as_distances, costs, scale_of
from retrieval_jax.ranking._tiles import Setting, least_of_all, search
from retrieval_jax.ranking.neighbours import (
    Metric,
    Neighbours,
    check_options,
    checked,
    checked_labels,
    checked_mask,
    compared_in,
    no_neighbours,
)


def nearest(
    queries: ArrayLike,
    gallery: ArrayLike,
    k: int,
    *,
    metric: Metric = "euclidean",
    exclude_self: bool = False,
    mask: ArrayLike | None = None,
    query_labels: ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
    axis_name: str | None = None,
    approximate_recall: float | None = None,
    query_chunk: int = 64,
    gallery_chunk: int = 65536,
) -> Neighbours:
    """Finds the k gallery rows nearest to each query, exactly.

    Candidates are chosen by bounds that no rounding can break, ranked by costs that do not cancel,
    and searched again without bounds where that cannot be proved complete. Equal distances are
    ordered by gallery index. So a common offset does no harm, and a query that is a row of the
    gallery is at distance 0 from it. Everything is in float32, or in float64 where either array is
    float64 under `jax_enable_x64`. Rows are compared times a power of two, so that no square leaves
    that type: only differences below 1e-28 of the largest magnitude count as none. Squared
    distances and products that the type cannot hold come out as 0 or infinite, in the right order.

    Fastest where few principal components hold most of the variance, as in embeddings. Distances
    that tie, to rounding, in greater number than k / 2 + 28 cost one pass over the gallery a query.

    Distances can be differentiated by queries and gallery, forward and in reverse: they are worked
    out again for the neighbours found, [q, k, d] numbers at once, and without that nothing is. The
    neighbours themselves count as constant. The gradient of a distance 0 is 0, as is that of places
    without a neighbour.

    Besides the arrays and the q × k result it needs memory for gallery_chunk × (4 d + 2
    query_chunk) + query_chunk × min(1.5 k + 28, gallery_chunk / 16) × (d + 64) floats, whatever q
    and n.

    Args:
      queries: [q, d], of any real type; q may be 0.
      gallery: [n, d], bfloat16 converted a tile at a time.
      k: neighbours a query, an integer ≥ 1; it may exceed n.
      metric: what `Neighbours.distances` holds and is ordered by: "euclidean" |x - y|;
        "sqeuclidean" |x - y|²; "cosine" 1 - x·y / |x| |y|, in 0..2, and 1 for a zero vector, even
        to another; "inner_product" x·y, largest first.
      exclude_self: query i is gallery row i (of all shards), and is not to be found.
      mask: bool [n], the rows that may be found; all of them by default.
      query_labels: int [q], given with gallery_labels: a query finds only rows of its own label,
        say of its cluster; none if it is below 0. The same program as without labels.
      gallery_labels: int [n].
      axis_name: inside `jax.shard_map` (check_vma=False) or `jax.pmap`: the axis whose devices hold
        the gallery in equal shards, in order, and all queries each. Every device gets the
        neighbours in the whole gallery, the same as from one device.
      approximate_recall: share of the neighbours to be found, in 0..1, by `jax.lax.approx_max_k`,
        which is fast on TPU and exact elsewhere. By default all, with no such operation.
      query_chunk: queries in a tile.
      gallery_chunk: gallery rows in a tile.

    Returns:
      `Neighbours`.

    Raises:
      ValueError: an empty gallery; arrays that are not two-dimensional, differ in d, or (where they
        are concrete, not traced by an outer jit) hold NaN or infinite values; k or a chunk that is
        no integer or below 1; an unknown metric; a mask that is not bool [n]; labels that are not
        integers [q] and [n], or one without the other; exclude_self with more queries than rows; a
        recall outside 0..1.

    Example:
      >>> found = nearest([[0.0, 0.0]], [[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]], k=2)
      >>> found.indices.tolist(), found.distances.tolist()
      ([[1, 2]], [[1.0, 1.0]])
    """
    queries, gallery = checked(queries, gallery)
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    setting = checked_setting(
        (len(queries), devices * len(gallery)),
        k,
        metric=metric,
        exclude_self=exclude_self,
        approximate_recall=approximate_recall,
        query_chunk=query_chunk,
        gallery_chunk=gallery_chunk,
    )
    mask = checked_mask(mask, len(gallery))
    labels = checked_labels(query_labels, gallery_labels, len(queries), len(gallery))
    if not len(queries):
        return no_neighbours(setting.k, compared_in(queries.dtype, gallery.dtype))
    return _nearest(queries, gallery, mask, labels, axis_name, setting)


def checked_setting(
    sizes: tuple[int, int],
    k: int,
    *,
    metric: Metric = "euclidean",
    exclude_self: bool = False,
    approximate_recall: float | None = None,
    query_chunk: int = 64,
    gallery_chunk: int = 65536,
) -> Setting:
    """The options of `nearest` for so many queries and gallery rows.

    Raises:
      ValueError: as `nearest`.

    Example:
      >>> checked_setting((1, 10), 3).query_chunk
      1
    """
    k, query_chunk, gallery_chunk = (
        whole_number(value, name)
        for value, name in (
            (k, "k"),
            (query_chunk, "query_chunk"),
            (gallery_chunk, "gallery_chunk"),
        )
    )
    check_options(*sizes, metric, exclude_self)
    if approximate_recall is not None and not 0 < approximate_recall <= 1:
        raise ValueError(f"approximate_recall must be in 0..1; it is {approximate_recall}.")
    query_chunk = min(query_chunk, sizes[0])
    return Setting(k, metric, exclude_self, approximate_recall, query_chunk, gallery_chunk)


@partial(jax.jit, static_argnums=(4, 5))
def _nearest(queries, gallery, mask, labels, axis_name, setting) -> Neighbours:
    return _found(axis_name, setting, queries, gallery, mask, labels)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _found(axis_name, setting, queries, gallery, mask, labels) -> Neighbours:
    scale = _scale(axis_name, queries, gallery)
    first = 0 if axis_name is None else lax.axis_index(axis_name) * len(gallery)
    found = search(queries, gallery, mask, labels, first, scale, setting)
    if axis_name is not None:
        found = least_of_all(found, setting.k, axis_name)
    return Neighbours(found.indices, as_distances(found.costs, setting.metric, scale))


@_found.defjvp
def _with_tangents(axis_name, setting, primals, tangents) -> tuple[Neighbours, Neighbours]:
    """The neighbours, and the derivative of their distances with these neighbours given."""
    found = _found(axis_name, setting, *primals)
    scale = _scale(axis_name, *primals[:2])
    again = partial(_distances, axis_name, setting.metric, found.indices, scale)
    _, moved = jax.jvp(again, primals[:2], tangents[:2])
    still: Any = np.zeros(found.indices.shape, jax.dtypes.float0)
    return found, Neighbours(still, moved)


def _distances(axis_name, metric, indices, scale, queries, gallery) -> jax.Array:
    """Distances [q, k] of the queries to gallery rows of all shards; 0 where the index is none."""
    at = indices
    if axis_name is not None:
        at = indices - lax.axis_index(axis_name) * len(gallery)
    here = (indices >= 0) & (at >= 0) & (at < len(gallery))
    near = as_compared(gallery.at[at].get(mode="clip"), metric, scale)
    queries = as_compared(queries, metric, scale)[:, None]
    # The products that a cost sums up in twice the precision have no such derivative.
    cost = -(queries * near).sum(-1) if metric == "inner_product" else costs(queries, near, metric)
    distances = jnp.where(here, as_distances(cost, metric, scale), 0)
    return distances if axis_name is None else lax.psum(distances, axis_name)


def _scale(axis_name, queries, gallery) -> jax.Array:
    scale = scale_of(queries, gallery, dtype=compared_in(queries.dtype, gallery.dtype))
    return scale if axis_name is None else lax.pmin(scale, axis_name)
