"""What every search gives back, and what it asks of its arguments."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from retrieval_jax.numerics.arguments import checked_queries, whole_number
from retrieval_jax.numerics.distances import as_array, matrix, working_type

Metric = Literal["euclidean", "sqeuclidean", "cosine", "inner_product"]


class Neighbours(NamedTuple):
    """The gallery rows nearest to each query, nearest first.

    Attributes:
      indices: int32 [q, k], rows of the gallery; -1 where there are fewer than k.
      distances: [q, k], ascending, by the metric of the search; infinite where there are fewer than
        k. For the inner product it is the product itself, descending, and -infinite. float32, or
        float64 where float64 was given under `jax_enable_x64`.
    """

    indices: jax.Array
    distances: jax.Array


def no_neighbours(k: int, dtype: DTypeLike) -> Neighbours:
    """What a search for no queries finds.

    Example:
      >>> no_neighbours(3, jnp.float32).indices.shape
      (0, 3)
    """
    return Neighbours(jnp.zeros((0, k), jnp.int32), jnp.zeros((0, k), dtype))


def within_radius(found: Neighbours, radius: ArrayLike) -> Neighbours:
    """Range search: what a search found no farther than a radius; the rest becomes missing.

    Shapes are static, so a query has at most the k neighbours that were searched for: where it
    keeps all k there may be more within the radius, and a larger k tells. `(indices >= 0).sum(1)`
    counts those kept. It can be jitted.

    Args:
      found: of any search by a metric but the inner product, which grows towards the nearest.
      radius: scalar or [q], in the unit of the distances; those equal to it are kept.

    Returns:
      `Neighbours` [q, k], nearest first; -1 and infinity in the places left over.

    Raises:
      ValueError: a radius that is neither a scalar nor [q].

    Example:
      >>> found = Neighbours(jnp.array([[4, 0, 2]]), jnp.array([[0.5, 1.0, 3.0]]))
      >>> within_radius(found, 1.0).indices.tolist()
      [[4, 0, -1]]
    """
    indices, distances = map(jnp.asarray, found)
    radius = jnp.asarray(radius, distances.dtype)
    if radius.shape not in ((), (len(indices),)):
        raise ValueError(
            f"radius must be a number, or one a query, {len(indices)}; its shape is {radius.shape}."
        )
    inside = distances <= jnp.broadcast_to(radius, len(indices))[:, None]
    return Neighbours(jnp.where(inside, indices, -1), jnp.where(inside, distances, jnp.inf))


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
    k = whole_number(k, "k")
    true, found = jnp.asarray(exhaustive.indices), jnp.asarray(restricted.indices)
    if len(true) != len(found):
        raise ValueError(f"the searches are of {len(true)} and {len(found)} queries, not the same.")
    if k > min(true.shape[1], found.shape[1]):
        raise ValueError(
            f"k must be in 1..{min(true.shape[1], found.shape[1])}, the columns found; it is {k}."
        )
    true, found = true[:, :k], found[:, :k]
    kept = ((true[:, :, None] == found[:, None, :]).any(2) & (true >= 0)).sum(1)
    exist = (true >= 0).sum(1)
    share = kept.astype(jnp.float32) / jnp.maximum(exist, 1)
    return share.mean(where=exist > 0)


def checked(queries: ArrayLike, gallery: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The arrays that a search compares; there may be no queries.

    Raises:
      ValueError: as `nearest`.

    Example:
      >>> queries, gallery = checked([[1, 2]], [[3, 4], [5, 6]])
      >>> queries.shape, gallery.shape
      ((1, 2), (2, 2))
    """
    queries, gallery = checked_queries(queries), matrix(gallery, "gallery")
    check_features(queries.shape[1], gallery.shape[1])
    return queries, gallery


def check_features(queries: int, gallery: int) -> None:
    """Raises a ValueError unless queries and gallery have as many features.

    Example:
      >>> check_features(128, 128)
    """
    if queries != gallery:
        raise ValueError(f"queries have {queries} features, but the gallery has {gallery}.")


def compared_in(queries: DTypeLike, gallery: DTypeLike) -> np.dtype:
    """The type that rows of the two types are compared in: float32, or float64 if one of them is.

    Example:
      >>> compared_in(jnp.bfloat16, jnp.float32).name
      'float32'
    """
    return working_type(jnp.promote_types(queries, gallery))


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
    """The labels as int32 [q] and [n], all 0 for None; others in their place where those don't fit.

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
    if all(np.can_cast(array.dtype, np.int32) for array in labels):
        return labels[0].astype(np.int32), labels[1].astype(np.int32)
    return _narrowed(*labels)


def _narrowed(of_queries, of_gallery) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
    """Wide labels in 32 bits, equal ones equal and those below 0 below 0; traced ones stay wide."""
    labels = of_queries, of_gallery
    if any(isinstance(array, jax.core.Tracer) for array in labels):
        wide = jax.dtypes.canonicalize_dtype(np.int64)
        return jnp.asarray(of_queries, wide), jnp.asarray(of_gallery, wide)
    asked, there = map(np.asarray, labels)
    if all(not a.size or -(2**31) <= a.min() <= a.max() < 2**31 for a in (asked, there)):
        return asked.astype(np.int32), there.astype(np.int32)
    # NumPy would compare unsigned with signed ones as floats.
    asked, there = (a.astype(object) if a.dtype == np.uint64 else a for a in (asked, there))
    names = np.unique(there)
    at = np.searchsorted(names, asked).clip(max=len(names) - 1)
    asked = np.where((asked >= 0) & (names[at] == asked), at, -1)
    return asked.astype(np.int32), np.searchsorted(names, there).astype(np.int32)
