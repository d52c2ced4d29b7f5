"""What k-means and ranking share: checked matrices, rows in chunks, distances in full float32."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

# GPU and TPU multiply in TF32 or bfloat16 unless told; near neighbours would change places.
FULL_PRECISION = lax.Precision.HIGHEST

Carry = TypeVar("Carry")


def matrix(values: ArrayLike, name: str) -> jax.Array:
    """Returns the values as float32 [n, d]; bfloat16 stays as it is, for chunks to convert.

    Raises:
      ValueError: an array that is empty or not two-dimensional, or (where it is concrete, not
        traced by jit) holds values that are NaN or infinite in float32.

    Example:
      >>> matrix([[1, 2], [3, 4], [5, 6]], "points").shape
      (3, 2)
    """
    kept = getattr(values, "dtype", None) == jnp.bfloat16
    array = jnp.asarray(values, jnp.bfloat16 if kept else jnp.float32)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be a non-empty [n, d] array; the shape is {array.shape}.")
    if not isinstance(array, jax.core.Tracer) and not bool(jnp.isfinite(array).all()):
        raise ValueError(f"{name} must be finite in float32, but some values are NaN or infinite.")
    return array


def over_chunks(
    points: jax.Array,
    chunk: int,
    step: Callable[[Carry, jax.Array, jax.Array, jax.Array], Carry],
    carry: Carry,
) -> Carry:
    """Folds step(carry, start, float32 rows [chunk, d], new [chunk]) over points [n, d], chunk ≤ n.

    The last chunk of a ragged count starts early so as to be whole; `new` is False for the rows
    seen before.

    Example:
      >>> def add(total, start, rows, new):
      ...     return total + jnp.where(new[:, None], rows, 0).sum()
      >>> float(over_chunks(jnp.ones((5, 2)), 3, add, 0.0))
      10.0
    """
    n = points.shape[0]

    def body(i: jax.Array, carry: Carry) -> Carry:
        start = jnp.minimum(i * chunk, n - chunk)
        rows = lax.dynamic_slice_in_dim(points, start, chunk).astype(jnp.float32)
        return step(carry, start, rows, start + jnp.arange(chunk) >= i * chunk)

    return lax.fori_loop(0, -(-n // chunk), body, carry)


def moments(points: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """The mean [d] of points [n, d] and the average over the features of their variance.

    Right to float32 rounding however far the points are from 0.

    Example:
      >>> mean, variance = moments(jnp.array([[9999.0], [10000.0], [10001.0], [10000.0]]), chunk=3)
      >>> mean.tolist(), float(variance)
      ([10000.0], 0.5)
    """

    def total(of: Callable[[jax.Array], jax.Array]) -> jax.Array:
        def add(sums: jax.Array, _: jax.Array, rows: jax.Array, new: jax.Array) -> jax.Array:
            return sums + jnp.where(new[:, None], of(rows), 0).sum(0)

        return over_chunks(points, chunk, add, jnp.zeros(points.shape[1], jnp.float32))

    # A sum of raw values would round their common offset n times over: take it off first.
    first = points[0].astype(jnp.float32)
    mean = first + total(lambda rows: rows - first) / points.shape[0]
    variance = total(lambda rows: (rows - mean) ** 2) / points.shape[0]
    return mean, variance.mean()


def centre(points: jax.Array, chunk: int) -> jax.Array:
    """The mean [d] of points [n, d], each coordinate rounded to a power of two below their spread.

    As good as the mean for removing an offset, but points on a grid (integers, codes) stay on one:
    their products are exact, and equal distances come out equal.

    Example:
      >>> centre(jnp.array([[9998.0], [10000.0], [10003.0]]), chunk=3).tolist()
      [10000.0]
    """
    mean, variance = moments(points, chunk)
    _, exponent = jnp.frexp(jnp.sqrt(variance))
    step = jnp.ldexp(jnp.ones_like(variance), exponent - 1)
    return jnp.round(mean / step) * step


def scores(rows: jax.Array, references: jax.Array) -> jax.Array:
    """|reference|² - 2 reference·row [m, n]: squared distances less |row|², in the same order.

    References lie along axis 0, where CPUs reduce fastest. Centre both first: the squares of a
    common offset would drown the differences.

    Args:
      rows: float32 [n, d].
      references: float32 [m, d].

    Example:
      >>> scores(jnp.array([[1.0]]), jnp.array([[1.0], [3.0]])).tolist()
      [[-1.0], [3.0]]
    """
    products = jnp.dot(references, rows.T, precision=FULL_PRECISION)
    return (references**2).sum(1)[:, None] - 2 * products


def unit(rows: jax.Array) -> jax.Array:
    """Rows [..., d] scaled to length 1; a row of zeros stays as it is, its gradient finite.

    Example:
      >>> unit(jnp.array([[0.0, 5.0], [0.0, 0.0]])).tolist()
      [[0.0, 1.0], [0.0, 0.0]]
    """
    # Powers of two first: squares of tiny or huge rows would leave float32.
    largest = jnp.abs(rows).max(-1, keepdims=True)
    rows = jnp.ldexp(rows, -jnp.frexp(largest)[1])
    squared = (rows**2).sum(-1, keepdims=True)
    return rows / jnp.sqrt(jnp.where(squared > 0, squared, 1))


def same_features(rows: jax.Array, name: str, centroids: jax.Array) -> None:
    """Raises a ValueError unless rows [n, d] and centroids [k, d] agree in d.

    Example:
      >>> same_features(jnp.ones((3, 2)), "points", jnp.ones((1, 2)))
    """
    if rows.shape[1] != centroids.shape[1]:
        raise ValueError(
            f"{name} have {rows.shape[1]} features, but centroids have {centroids.shape[1]}."
        )
