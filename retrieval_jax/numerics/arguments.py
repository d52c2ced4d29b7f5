"""Arguments that every numeric function checks in the same way."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from retrieval_jax.numerics.distances import as_array, matrix, working_type


def whole_number(value: Any, name: str, least: int | None = 1) -> int:
    """Returns a count, such as k, as a Python integer; those of NumPy and JAX will do.

    Raises:
      ValueError: a float, a traced value or anything else that is no integer; less than `least`.

    Example:
      >>> whole_number(3, "k")
      3
      >>> whole_number(2.0, "k")
      Traceback (most recent call last):
      ValueError: k must be an integer, not traced by jit; it is 2.0.
    """
    try:
        number = operator.index(value)
    except TypeError as error:  # that of JAX, for traced values, is one too
        raise ValueError(f"{name} must be an integer, not traced by jit; it is {value}.") from error
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}; it is {number}.")
    return number


def checked_queries(queries: ArrayLike) -> jax.Array:
    """The queries as `matrix` returns them, or none of them [0, d].

    Raises:
      ValueError: as `matrix`, but for a number of 0.

    Example:
      >>> checked_queries(jnp.zeros((0, 3))).shape
      (0, 3)
    """
    array = as_array(queries)
    if array.ndim == 2 and len(array) == 0 < array.shape[1]:
        return jnp.zeros(array.shape, working_type(array.dtype))
    return matrix(queries, "queries")
