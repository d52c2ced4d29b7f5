"""The exhaustive search of a gallery on the device, whole or a shard on each of several."""

from functools import partial

import jax
from jax import lax
from jax.typing import ArrayLike

from retrieval_jax.ranking._costs import as_distances
from retrieval_jax.ranking._tiles import Setting, least_of_all, search
from retrieval_jax.ranking.neighbours import (
    Metric,
    Neighbours,
    check_options,
    checked,
    checked_labels,
    checked_mask,
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

    Candidates are chosen by bounds that no rounding of float32 can break, ranked by costs that do
    not cancel, and searched again without bounds where that cannot be proved complete. Equal
    distances are ordered by gallery index. So a common offset does no harm, and a query that is a
    row of the gallery is at distance 0 from it. Squares of differences must stay inside float32:
    rows more than 1e18 apart count as infinitely far, rows less than 1e-19 apart as equal.

    Fastest where few principal components hold most of the variance, as in embeddings. Distances
    that tie, to rounding, in greater number than k / 2 + 28 cost one pass over the gallery a query.

    Besides the arrays and the q × k result it needs memory for gallery_chunk × (4 d + 2
    query_chunk) + query_chunk × min(1.5 k + 28, gallery_chunk / 16) × (d + 64) floats, whatever q
    and n.

    Args:
      queries: [q, d]; bfloat16 or float32, compared as float32.
      gallery: [n, d], converted to float32 a tile at a time.
      k: neighbours a query, ≥ 1; it may exceed n.
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
      ValueError: arrays that are empty, not two-dimensional, differ in d, or (where they are
        concrete, not traced by an outer jit) hold NaN or infinite values; k or a chunk below 1; an
        unknown metric; a mask that is not bool [n]; labels that are not integers [q] and [n], or
        one without the other; exclude_self with more queries than rows; a recall outside 0..1.

    Example:
      >>> found = nearest([[0.0, 0.0]], [[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]], k=2)
      >>> found.indices.tolist(), found.distances.tolist()
      ([[1, 2]], [[1.0, 1.0]])
    """
    queries, gallery = checked(queries, gallery, k, query_chunk, gallery_chunk)
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    check_options(len(queries), devices * len(gallery), metric, exclude_self)
    mask = checked_mask(mask, len(gallery))
    labels = checked_labels(query_labels, gallery_labels, len(queries), len(gallery))
    if approximate_recall is not None and not 0 < approximate_recall <= 1:
        raise ValueError(f"approximate_recall must be in 0..1; it is {approximate_recall}.")
    setting = Setting(
        k, metric, exclude_self, approximate_recall, min(query_chunk, len(queries)), gallery_chunk
    )
    return _nearest(queries, gallery, mask, labels, axis_name, setting)


@partial(jax.jit, static_argnums=(4, 5))
def _nearest(queries, gallery, mask, labels, axis_name, setting) -> Neighbours:
    if axis_name is None:
        found = search(queries, gallery, mask, labels, 0, setting)
    else:
        first = lax.axis_index(axis_name) * len(gallery)
        part = search(queries, gallery, mask, labels, first, setting)
        found = least_of_all(part, setting.k, axis_name)
    return Neighbours(found.indices, as_distances(found.costs, setting.metric))
