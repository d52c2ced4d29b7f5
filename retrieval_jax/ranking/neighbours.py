"""What every search gives back, and what it asks of its arguments."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from retrieval_jax.numerics.distances import as_array, matrix

Metric = Literal["euclidean", "sqeuclidean", "cosine", "inner_product"]


class Neighbours(NamedTuple):
    """The gallery rows nearest to each query, nearest first.

    Attributes:
      indices: int32 [q, k], rows of the gallery; -1 where there are fewer than k.
      distances: float32 [q, k], ascending, by the metric of the search; infinite where there are
        fewer than k. For the inner product it is the product itself, descending, and -infinite.
    """

    indices: jax.Array
    distances: jax.Array


def share_kept(exhaustive: Neighbours, restricted: Neighbours, k: int) -> jax.Array:
    """The mean share of the true k neighbours that a restricted search has among its first k.

    Also known as recall@k of an approximate search. Where the exhaustive search has fewer than k
    neighbours the share is of those; a query that it finds nothing for does not count.

    Args:
      exhaustive: of `nearest`, with at least k columns.
      restricted: of a search that may miss some, for the same queries, with at least k columns.
      k: columns to compare.

    Returns:
      float32 scalar in [0, 1]; NaN if no query has a neighbour.

    Raises:
      ValueError: different numbers of queries, or k outside the columns of either.

    Example:
      >>> truth = Neighbours(jnp.array([[0, 1]]), jnp.array([[0.0, 1.0]]))
      >>> found = Neighbours(jnp.array([[0, 2]]), jnp.array([[0.0, 2.0]]))
      >>> float(share_kept(truth, found, k=2))
      0.5
    """
    true, found = jnp.asarray(exhaustive.indices), jnp.asarray(restricted.indices)
    if len(true) != len(found):
        raise ValueError(f"the searches are of {len(true)} and {len(found)} queries, not the same.")
    if not 1 <= k <= min(true.shape[1], found.shape[1]):
        raise ValueError(
            f"k must be in 1..{min(true.shape[1], found.shape[1])}, the columns found; it is {k}."
        )
    true, found = true[:, :k], found[:, :k]
    kept = ((true[:, :, None] == found[:, None, :]).any(2) & (true >= 0)).sum(1)
    exist = (true >= 0).sum(1)
    return (kept / jnp.maximum(exist, 1)).mean(where=exist > 0)


def checked(
    queries: ArrayLike, gallery: ArrayLike, k: int, query_chunk: int, gallery_chunk: int
) -> tuple[jax.Array, jax.Array]:
    """The arguments that all searches share, as arrays.

    Raises:
      ValueError: as `nearest`.

    Example:
      >>> queries, gallery = checked([[1, 2]], [[3, 4], [5, 6]], 1, 64, 64)
      >>> queries.shape, gallery.shape
      ((1, 2), (2, 2))
    """
    queries, gallery = matrix(queries, "queries"), matrix(gallery, "gallery")
    check_sizes(queries.shape[1], gallery.shape[1], k, query_chunk, gallery_chunk)
    return queries, gallery


def check_sizes(
    query_features: int, gallery_features: int, k: int, query_chunk: int, gallery_chunk: int
) -> None:
    """Raises a ValueError unless the features agree and every count is at least 1.

    Example:
      >>> check_sizes(128, 128, 5, 64, 65536)
    """
    if query_features != gallery_features:
        raise ValueError(
            f"queries have {query_features} features, but the gallery has {gallery_features}."
        )
    if min(k, query_chunk, gallery_chunk) < 1:
        raise ValueError("k, query_chunk and gallery_chunk must be at least 1.")


def check_options(queries: int, gallery: int, metric: str, exclude_self: bool) -> None:
    """Raises a ValueError for an unknown metric, or queries that cannot be rows of the gallery.

    Example:
      >>> check_options(10, 10, "cosine", exclude_self=True)
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {', '.join(get_args(Metric))}; it is {metric!r}.")
    if exclude_self and queries > gallery:
        raise ValueError(
            f"with exclude_self query i is gallery row i, but there are {queries} queries and "
            f"{gallery} rows."
        )


def checked_mask(mask: ArrayLike | None, n: int) -> jax.Array | np.ndarray:
    """The mask as bool [n], all True for None.

    Raises:
      ValueError: another shape or type.

    Example:
      >>> checked_mask(None, 2).tolist()
      [True, True]
    """
    mask = np.ones(n, bool) if mask is None else as_array(mask)
    if mask.shape != (n,) or mask.dtype != bool:
        raise ValueError(
            f"mask must be {n} booleans, one a gallery row; it is {mask.dtype} {mask.shape}."
        )
    return mask


def checked_labels(
    of_queries: ArrayLike | None, of_gallery: ArrayLike | None, q: int, n: int
) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
    """The labels as int32 [q] and [n], all 0 for None.

    Raises:
      ValueError: another shape or type, or one without the other.

    Example:
      >>> [labels.tolist() for labels in checked_labels(None, None, 1, 2)]
      [[0], [0, 0]]
    """
    if of_queries is None and of_gallery is None:
        return np.zeros(q, np.int32), np.zeros(n, np.int32)
    if of_queries is None or of_gallery is None:
        raise ValueError("query_labels and gallery_labels must be given together.")
    labels = as_array(of_queries), as_array(of_gallery)
    for name, array, count in zip(("query", "gallery"), labels, (q, n), strict=True):
        if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"{name}_labels must be {count} integers; they are {array.dtype} {array.shape}."
            )
    return labels[0].astype(np.int32), labels[1].astype(np.int32)
