"""What k-means and ranking share: checked matrices, rows in chunks, distances in full float32."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
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
    array = as_array(values)
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        array = array if array.dtype == jnp.bfloat16 else array.astype(np.float32)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be a non-empty [n, d] array; the shape is {array.shape}.")
    # On the host NumPy looks at them: each little operation on a device would be compiled first.
    finite = np.isfinite(array).all() if isinstance(array, np.ndarray) else _finite(array)
    if not isinstance(finite, jax.core.Tracer) and not finite:
        raise ValueError(f"{name} must be finite in float32, but some values are NaN or infinite.")
    return jnp.asarray(array)


def as_array(values: ArrayLike) -> jax.Array | np.ndarray:
    """The values where they are: an array of JAX, or else of NumPy.

    Example:
      >>> type(as_array([1, 2])).__name__
      'ndarray'
    """
    return values if isinstance(values, jax.Array) else np.asarray(values)


@jax.jit
def _finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


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


def moments(
    fold: Callable[[Callable, Any], Any],
    start: jax.Array,
    total: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[jax.Array, jax.Array]:
    """The weighted mean [d] of rows, and the average over the features of their variance.

    Right to float32 rounding however far the rows are from 0: a sum of raw values would round their
    common offset n times over, so that the mean is found twice.

    Args:
      fold: folds step(carry, rows [c, d], weights [c]) over all chunks of rows.
      start: float32 [d], anything near the rows, or 0.
      total: sums over the devices that share the rows.

    Example:
      >>> rows = jnp.array([[9999.0], [10000.0], [10001.0], [10000.0]])
      >>> mean, variance = moments(lambda step, carry: step(carry, rows, jnp.ones(4)), jnp.zeros(1))
      >>> mean.tolist(), float(variance)
      ([10000.0], 0.5)
    """

    def sums(about: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def add(carry, rows, weights):
            rows = rows - about
            first = jnp.dot(weights, rows, precision=FULL_PRECISION)
            second = (weights[:, None] * rows**2).sum(0)
            return carry[0] + first, carry[1] + second, carry[2] + weights.sum()

        zero = jnp.zeros_like(start)
        return total(fold(add, (zero, zero, jnp.float32(0))))

    first, _, weight = sums(start)
    mean = start + first / weight
    rest, squares, _ = sums(mean)
    rest = rest / weight
    return mean + rest, (squares / weight - rest**2).mean()


def centre(points: jax.Array, chunk: int) -> jax.Array:
    """The mean [d] of points [n, d], each coordinate rounded to a power of two below their spread.

    As good as the mean for removing an offset, but points on a grid (integers, codes) stay on one:
    their products are exact, and equal distances come out equal.

    Example:
      >>> centre(jnp.array([[9998.0], [10000.0], [10003.0]]), chunk=3).tolist()
      [10000.0]
    """

    def fold(step: Callable, carry: Any) -> Any:
        def body(carry, _, rows, new):
            return step(carry, rows, new.astype(jnp.float32))

        return over_chunks(points, chunk, body, carry)

    mean, variance = moments(fold, points[0].astype(jnp.float32))
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
