"""The exhaustive search of a gallery that stays on the host, in memory or mapped from a file."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from retrieval_jax.numerics.arguments import checked_queries
from retrieval_jax.numerics.distances import matrix
from retrieval_jax.ranking._costs import as_distances, scale_of
from retrieval_jax.ranking._tiles import Found, least, nothing_found, search
from retrieval_jax.ranking.exact import checked_setting
from retrieval_jax.ranking.neighbours import (
    Metric,
    Neighbours,
    check_features,
    checked_labels,
    checked_mask,
    compared_in,
    no_neighbours,
)


def nearest_streamed(
    queries: ArrayLike,
    gallery: np.ndarray,
    k: int,
    *,
    metric: Metric = "euclidean",
    exclude_self: bool = False,
    mask: np.ndarray | None = None,
    query_chunk: int = 64,
    gallery_chunk: int = 65536,
) -> Neighbours:
    """Finds what `nearest` finds, in a gallery larger than the memory of the device.

    Tiles of rows are read and uploaded in turn, the next while one is searched: the device holds
    two of them, the queries and the q × k result, besides what `nearest` needs for a tile. Not to
    be called under jit.

    Args:
      queries: [q, d], as for `nearest`.
      gallery: NumPy array or `np.memmap` [n, d], of any real type.
      k: as for `nearest`, with the same meaning of metric, exclude_self and query_chunk.
      metric: as for `nearest`.
      exclude_self: as for `nearest`.
      mask: NumPy bool [n], the rows that may be found; all of them by default.
      query_chunk: queries in a tile.
      gallery_chunk: gallery rows in a tile, and in an upload.

    Returns:
      `Neighbours`.

    Raises:
      ValueError: as `nearest`; NaN or infinite values when their tile is read.

    Example:
      >>> gallery = np.array([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]])
      >>> nearest_streamed([[0.0, 0.0]], gallery, k=2, gallery_chunk=2).indices.tolist()
      [[1, 2]]
    """
    queries, gallery = checked_queries(queries), np.asanyarray(gallery)
    if gallery.ndim != 2 or 0 in gallery.shape:
        raise ValueError(f"gallery must be a non-empty [n, d] array; the shape is {gallery.shape}.")
    n = len(gallery)
    check_features(queries.shape[1], gallery.shape[1])
    setting = checked_setting(
        (len(queries), n),
        k,
        metric=metric,
        exclude_self=exclude_self,
        query_chunk=query_chunk,
        gallery_chunk=gallery_chunk,
    )
    host_mask = np.asarray(checked_mask(mask, n))
    dtype = compared_in(queries.dtype, gallery.dtype)
    if not len(queries):
        return no_neighbours(setting.k, dtype)
    size = min(setting.gallery_chunk, n)

    def upload(start: int) -> tuple[jax.Array, jax.Array]:
        pad = max(0, start + size - n)
        rows = matrix(gallery[start : start + size], "gallery")
        return jnp.pad(rows, ((0, pad), (0, 0))), jnp.asarray(
            np.pad(host_mask[start : start + size], (0, pad))
        )

    labels = checked_labels(None, None, len(queries), size)
    found, scale = nothing_found(len(queries), setting.k, dtype), scale_of(queries, dtype=dtype)
    tile = upload(0)
    for start in range(0, n, size):
        found, scale = _add(found, scale, queries, *tile, labels, np.int32(start), setting)
        if start + size < n:
            tile = upload(start + size)
        # Waiting here keeps a third tile from being uploaded.
        jax.block_until_ready(found)
    return Neighbours(found.indices, as_distances(found.costs, setting.metric, scale))


@partial(jax.jit, static_argnums=7)
def _add(found, scale, queries, rows, mask, labels, first, setting) -> tuple[Found, jax.Array]:
    """The neighbours with those in the tile, their costs by the scale that it needs too."""
    smaller = jnp.minimum(scale, scale_of(rows, dtype=scale.dtype))
    if setting.metric != "cosine":
        by = smaller / scale
        known = jnp.where(found.indices < 0, found.costs, found.costs * by * by)
        found = found._replace(costs=known)
    here = search(queries, rows, mask, labels, first, smaller, setting)
    both = [jnp.concatenate(pair, 1) for pair in zip(found, here, strict=True)]
    return least(Found(*both), setting.k), smaller
