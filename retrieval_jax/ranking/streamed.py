"""The exhaustive search of a gallery that stays on the host, in memory or mapped from a file."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from retrieval_jax.numerics.distances import matrix
from retrieval_jax.ranking._costs import as_distances
from retrieval_jax.ranking._tiles import Found, Setting, least, search
from retrieval_jax.ranking.neighbours import (
    Metric,
    Neighbours,
    check_options,
    check_sizes,
    checked_labels,
    checked_mask,
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
      gallery: NumPy array or `np.memmap` [n, d], float32 or bfloat16.
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
    queries = matrix(queries, "queries")
    if gallery.ndim != 2 or 0 in gallery.shape:
        raise ValueError(f"gallery must be a non-empty [n, d] array; the shape is {gallery.shape}.")
    n = len(gallery)
    check_sizes(queries.shape[1], gallery.shape[1], k, query_chunk, gallery_chunk)
    check_options(len(queries), n, metric, exclude_self)
    host_mask = np.asarray(checked_mask(mask, n))
    size = min(gallery_chunk, n)
    setting = Setting(k, metric, exclude_self, None, min(query_chunk, len(queries)), size)

    def upload(start: int) -> tuple[jax.Array, jax.Array]:
        pad = max(0, start + size - n)
        rows = matrix(gallery[start : start + size], "gallery")
        return jnp.pad(rows, ((0, pad), (0, 0))), jnp.asarray(
            np.pad(host_mask[start : start + size], (0, pad))
        )

    labels = checked_labels(None, None, len(queries), size)
    shape = (len(queries), k)
    found = Found(jnp.full(shape, jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32))
    tile = upload(0)
    for start in range(0, n, size):
        found = _add(found, queries, *tile, labels, np.int32(start), setting)
        if start + size < n:
            tile = upload(start + size)
        # Waiting here keeps a third tile from being uploaded.
        jax.block_until_ready(found)
    return Neighbours(found.indices, as_distances(found.costs, metric))


@partial(jax.jit, static_argnums=6)
def _add(found, queries, rows, mask, labels, first, setting) -> Found:
    here = search(queries, rows, mask, labels, first, setting)
    both = [jnp.concatenate(pair, 1) for pair in zip(found, here, strict=True)]
    return least(Found(*both), setting.k)
