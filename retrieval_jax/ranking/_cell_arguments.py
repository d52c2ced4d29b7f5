"""What the functions of a cluster index ask of their arguments."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from retrieval_jax.numerics.distances import as_array


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


def check_magnitudes(rows: ArrayLike, name: str) -> None:
    """Raises a ValueError if rows are (concretely) so large or small that squares leave the type.

    Example:
      >>> check_magnitudes(jnp.array([[1e20]]), "rows")
      Traceback (most recent call last):
      ValueError: the largest magnitude of rows must be 0, or 1e-15 to 1e+16; it is 1e+20. Scale.
    """
    rows = as_array(rows)
    largest = _largest(rows)
    if isinstance(largest, jax.core.Tracer):
        return
    least, most = (1e-150, 1e150) if rows.dtype == jnp.float64 else (1e-15, 1e16)
    if float(largest) and not least <= float(largest) <= most:
        raise ValueError(
            f"the largest magnitude of {name} must be 0, or {least} to {most}; it is "
            f"{float(largest):.0e}. Scale."
        )


@jax.jit
def _largest(rows: jax.Array) -> jax.Array:
    return jnp.abs(rows).max()


def in_halves(ids: np.ndarray) -> jax.Array:
    """Ids int64 [n] as uint32 [n, 2], upper and lower halves: JAX has no 64 bits by default.

    Example:
      >>> in_halves(np.array([2**32 + 7])).tolist()
      [[1, 7]]
    """
    return jnp.asarray(np.stack([ids >> 32, ids & 0xFFFFFFFF], 1).astype(np.uint32))


def checked_ids(ids: ArrayLike, count: int | None = None, *, unique: bool = True) -> np.ndarray:
    """The ids as int64 [count], or of any number.

    Raises:
      ValueError: another shape or type, one below 0 or beyond 63 bits, or (if unique) repeated.

    Example:
      >>> checked_ids([3, 2**40], 2).tolist()
      [3, 1099511627776]
    """
    array = np.asarray(ids)
    many = "integers [m]" if count is None else f"{count} integers"
    integers = np.issubdtype(array.dtype, np.integer) or not array.size
    if array.ndim != 1 or not integers or count not in (None, len(array)):
        raise ValueError(f"ids must be {many}; they are {array.dtype} {array.shape}.")
    if ((array < 0) | (array >= 2**63)).any():
        raise ValueError("ids must be at least 0 and below 2^63.")
    if unique and len(np.unique(array)) < len(array):
        raise ValueError("ids must name no row twice.")
    return array.astype(np.int64)
