"""Labels of rows, checked, and as codes of 32 bits that are equal where the labels are."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

# Booleans, integers and text: what NumPy sorts and compares exactly.
_KINDS = "biuUS"


def host_labels(labels: ArrayLike, count: int, name: str) -> np.ndarray:
    """The labels as a NumPy array [count]; any integers will do, or text.

    Raises:
      ValueError: labels that are neither integers nor text, one for each row.

    Example:
      >>> host_labels([7, -1, 7], 3, "labels").tolist()
      [7, -1, 7]
    """
    array = np.asarray(labels)
    if array.shape != (count,) or array.dtype.kind not in _KINDS:
        raise ValueError(
            f"{name} must be {count} integers or strings; they are {array.dtype} of shape "
            f"{array.shape}."
        )
    return array


def coded(*labels: ArrayLike) -> tuple[jax.Array | np.ndarray, ...]:
    """Several arrays of labels [n] in common codes int32; traced ones stay the integers they are.

    Raises:
      ValueError: labels that are neither integers nor text; text beside integers; beside traced
        ones, integers that those could not equal.

    Example:
      >>> [codes.tolist() for codes in coded(["cat", "dog"], ["dog", "cat", "cow"])]
      [[0, 2], [2, 0, 1]]
    """
    if any(isinstance(array, jax.core.Tracer) for array in labels):
        return tuple(_beside_traced(array) for array in labels)
    arrays = [np.asarray(array) for array in labels]
    given = [array for array in arrays if array.size] or [np.zeros(0, int)]
    for array in given:
        host_labels(array, array.size, "labels")
    arrays = [array if array.size else np.zeros(0, given[0].dtype) for array in arrays]
    if len({array.dtype.kind in "US" for array in arrays}) > 1:
        raise ValueError("labels must be all integers or all strings, not some of each.")
    if any(array.dtype == np.uint64 for array in arrays):  # NumPy would compare them as floats
        arrays = [array.astype(object) for array in arrays]
    codes = np.unique(np.concatenate(arrays), return_inverse=True)[1].astype(np.int32)
    return tuple(np.split(codes, np.cumsum([len(array) for array in arrays])[:-1]))


def _beside_traced(labels: ArrayLike) -> jax.Array:
    array = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"under jit labels must be integers; they are {array.dtype}.")
    wide = jax.dtypes.canonicalize_dtype(np.int64)
    if isinstance(array, np.ndarray) and (array != array.astype(wide)).any():
        raise ValueError(f"under jit labels must fit in {wide}; pass them outside of it.")
    return jnp.asarray(array)


def narrow(labels: ArrayLike, name: str) -> jax.Array:
    """Labels as int32 for counting: those beyond it become one that no table has.

    Raises:
      ValueError: labels that are not integers.

    Example:
      >>> narrow([2**32 + 1, 1], "classes").tolist()
      [-1, 1]
    """
    array = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if not jnp.issubdtype(array.dtype, jnp.integer) and array.size:
        raise ValueError(f"{name} must be integers; they are {array.dtype}.")
    if np.can_cast(array.dtype, np.int32):
        return jnp.asarray(array, jnp.int32)
    inside = (array >= 0) & (array < 2**31)
    where = np.where if isinstance(array, np.ndarray) else jnp.where
    return jnp.asarray(where(inside, array, 0) + where(inside, 0, -1), jnp.int32)
