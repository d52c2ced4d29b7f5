"""The nearest neighbours inside the query's own cluster, by a gallery sorted by cluster.

Candidates are selected by matrix products, in two stages (the minima of small groups of rows, then
the rows of the best groups), and the distances of those few are then taken from differences.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from retrieval_jax.distances import centre, over_chunks, scores
from retrieval_jax.ranking.neighbours import Neighbours, checked
from retrieval_jax.selection import GROUP, smallest_columns

# Candidates beyond k: rounded products must not lose a neighbour that the differences would keep.
_MARGIN = 16


def nearest_in_cluster(
    queries: ArrayLike,
    query_labels: ArrayLike,
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    k: int,
    *,
    query_chunk: int = 64,
    gallery_chunk: int = 8192,
) -> Neighbours:
    """Finds the k nearest of those gallery rows that are in the query's own cluster.

    As `nearest`, with a copy of both arrays sorted by cluster; only the tiles that hold a query's
    cluster are scored. A query whose cluster has fewer than k rows, or none, gets indices -1 and
    infinite distances for the rest.

    Args:
      queries: [q, d], converted to float32.
      query_labels: int [q], the cluster of each query.
      gallery: [n, d], converted to float32.
      gallery_labels: int [n], the cluster of each gallery row.
      k: neighbours a query, ≥ 1.
      query_chunk: queries in a tile.
      gallery_chunk: gallery rows in a tile.

    Returns:
      `Neighbours`; its indices are rows of the gallery as it was given.

    Raises:
      ValueError: as `nearest`, or labels that are not integers, one for each row.

    Example:
      >>> gallery = [[0.0], [1.0], [2.0], [3.0]]
      >>> nearest_in_cluster([[0.9]], [7], gallery, [7, 8, 8, 7], k=3).indices.tolist()
      [[0, 3, -1]]
    """
    queries, gallery = checked(queries, gallery, k, query_chunk, gallery_chunk)
    query_labels = _labels(query_labels, len(queries), "query_labels")
    gallery_labels = _labels(gallery_labels, len(gallery), "gallery_labels")
    return _nearest_in_cluster(
        queries, query_labels, gallery, gallery_labels, k, query_chunk, gallery_chunk
    )


def _labels(labels: ArrayLike, count: int, name: str) -> jax.Array:
    labels = jnp.asarray(labels)
    if labels.shape != (count,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{name} must be {count} integers; they are {labels.dtype} of shape {labels.shape}."
        )
    return labels


@partial(jax.jit, static_argnums=(4, 5, 6))
def _nearest_in_cluster(
    queries, query_labels, gallery, gallery_labels, k, query_chunk, gallery_chunk
) -> Neighbours:
    # Stable: ties stay in order of index.
    rows = jnp.argsort(gallery_labels, stable=True).astype(jnp.int32)
    turns = jnp.argsort(query_labels)
    clusters = gallery_labels[rows]
    begin = jnp.searchsorted(clusters, query_labels[turns], side="left")
    end = jnp.searchsorted(clusters, query_labels[turns], side="right")
    positions = _candidates(
        queries[turns], begin, end, gallery[rows], k, query_chunk, gallery_chunk
    )
    positions = jnp.zeros_like(positions).at[turns].set(positions)
    candidates = jnp.where(positions >= 0, rows[positions], -1)
    return _exact(queries, gallery, candidates, k, query_chunk)


def _candidates(queries, begin, end, gallery, k, query_chunk, gallery_chunk) -> jax.Array:
    """Positions [q, k + margin] of the best scores in gallery rows begin..end; -1 for none."""
    count, n = len(queries), len(gallery)
    chunk = min(query_chunk, count)
    tile = -(-min(gallery_chunk, n) // GROUP) * GROUP
    origin = centre(gallery, min(gallery_chunk, n))
    # Only a gallery smaller than one tile is ever copied; no query's range holds the rows added.
    gallery = jnp.pad(gallery, ((0, max(0, tile - n)), (0, 0)))

    def search_tile(found, start, rows, new):
        rows = rows - origin
        positions = jnp.where(new, start + jnp.arange(tile, dtype=jnp.int32), -1)

        def search(found, at, queries, unseen):
            part = partial(lax.dynamic_slice_in_dim, start_index=at, slice_size=chunk)
            first, last = part(begin), part(end)
            old = jax.tree.map(part, found)

            def merged():
                inside = (positions[:, None] >= first) & (positions[:, None] < last)
                here = jnp.where(inside, scores(queries - origin, rows), jnp.inf)
                values, order = smallest_columns(here, min(k + _MARGIN, tile))
                values = jnp.concatenate([old[0], values], 1)
                order = jnp.concatenate([old[1], start + order], 1)
                values, best = _smallest(values, old[0].shape[1])
                return values, jnp.take_along_axis(order, best, 1)

            touched = (first.min() < start + tile) & (last.max() > start)
            update = lax.cond(touched, merged, lambda: old)
            update = [jnp.where(unseen[:, None], *pair) for pair in zip(update, old, strict=True)]
            return tuple(
                lax.dynamic_update_slice_in_dim(whole, new, at, 0)
                for whole, new in zip(found, update, strict=True)
            )

        return over_chunks(queries, chunk, search, found)

    shape = (count, min(k + _MARGIN, n))
    none = jnp.full(shape, jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32)
    values, positions = over_chunks(gallery, tile, search_tile, none)
    return jnp.where(jnp.isfinite(values), positions, -1)


def _smallest(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k smallest of each row, ascending, of equal ones the first."""
    values, indices = lax.top_k(-values, k)
    return -values, indices


def _exact(queries, gallery, candidates, k, query_chunk) -> Neighbours:
    """The k nearest of the candidates [q, m] by distances from differences, ties by index."""

    def rank(found: Neighbours, start, queries, _) -> Neighbours:
        here = lax.dynamic_slice_in_dim(candidates, start, len(queries))
        squared = ((queries[:, None] - gallery[here]) ** 2).sum(2)
        squared = jnp.where(here >= 0, squared, jnp.inf)
        squared, here = lax.sort((squared, here), dimension=1, num_keys=2)
        best = Neighbours(here[:, :k], jnp.sqrt(squared[:, :k]))
        return jax.tree.map(
            lambda whole, new: lax.dynamic_update_slice(whole, new, (start, 0)), found, best
        )

    shape = (len(queries), k)
    none = Neighbours(jnp.full(shape, -1, jnp.int32), jnp.full(shape, jnp.inf, jnp.float32))
    return over_chunks(queries, min(query_chunk, len(queries)), rank, none)
