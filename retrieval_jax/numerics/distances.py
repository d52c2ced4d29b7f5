"""What k-means and ranking share: checked matrices, rows in chunks, distances in full precision.

Everything is computed in float32, or in float64 where `jax_enable_x64` is on and the values need it
(see `working_type`).
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes, lax
from jax.typing import ArrayLike, DTypeLike

# GPU and TPU multiply in TF32 or bfloat16 unless told; near neighbours would change places.
FULL_PRECISION = lax.Precision.HIGHEST

Carry = TypeVar("Carry")


def working_type(dtype: DTypeLike) -> np.dtype:
    """The type that values of a type are computed in.

    float32; or float64 under `jax_enable_x64`, for float64 and for integers of more than 16 bits.

    Example:
      >>> working_type(np.uint8).name, working_type(jnp.bfloat16).name
      ('float32', 'float32')
      >>> with jax.enable_x64(True):
      ...     working_type(np.float64).name
      'float64'
    """
    return dtypes.canonicalize_dtype(np.promote_types(dtype, np.float32))


def matrix(values: ArrayLike, name: str) -> jax.Array:
    """Returns the values as an array [n, d] of JAX, of their `working_type`; see `host_matrix`.

    Raises:
      ValueError: as `host_matrix`.

    Example:
      >>> matrix([[1, 2], [3, 4], [5, 6]], "points").shape
      (3, 2)
    """
    return jnp.asarray(host_matrix(values, name))


def host_matrix(values: ArrayLike, name: str) -> jax.Array | np.ndarray:
    """Returns the values as [n, d] of their `working_type`, on the host if they were there.

    bfloat16 stays as it is, for chunks to convert.

    Raises:
      ValueError: an array that is empty, not two-dimensional or not of real numbers, or (where it
        is concrete, not traced by jit) holds values that are NaN or infinite in its type.

    Example:
      >>> type(host_matrix([[1, 2], [3, 4]], "points")).__name__
      'ndarray'
      >>> host_matrix([["a", "b"]], "points")
      Traceback (most recent call last):
      ValueError: points must be real numbers; they are of type <U1.
    """
    array = as_array(values)
    if not is_real(array.dtype):
        raise ValueError(f"{name} must be real numbers; they are of type {array.dtype}.")
    dtype = working_type(array.dtype)
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        array = array if array.dtype == jnp.bfloat16 else array.astype(dtype)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be a non-empty [n, d] array; the shape is {array.shape}.")
    # On the host NumPy looks at them: each little operation on a device would be compiled first.
    finite = np.isfinite(array).all() if isinstance(array, np.ndarray) else _finite(array)
    if not isinstance(finite, jax.core.Tracer) and not finite:
        raise ValueError(f"{name} must be finite in {dtype}, but some values are NaN or infinite.")
    return array


def is_real(dtype: DTypeLike) -> bool:
    """Whether values of a type are booleans, integers or real numbers.

    Example:
      >>> is_real(np.uint8), is_real(jnp.bfloat16), is_real(complex), is_real("U3")
      (True, True, False, False)
    """
    return any(jnp.issubdtype(dtype, kind) for kind in (np.bool_, np.integer, np.floating))


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
    """Folds step(carry, start, rows [chunk, d], new [chunk]) over points [n, d], chunk ≤ n.

    Rows are of the points' `working_type`. The last chunk of a ragged count starts early so as to
    be whole; `new` is False for the rows seen before.

    Example:
      >>> def add(total, start, rows, new):
      ...     return total + jnp.where(new[:, None], rows, 0).sum()
      >>> float(over_chunks(jnp.ones((5, 2)), 3, add, 0.0))
      10.0
    """
    n, dtype = points.shape[0], working_type(points.dtype)

    def body(i: jax.Array, carry: Carry) -> Carry:
        start = jnp.minimum(i * chunk, n - chunk)
        rows = lax.dynamic_slice_in_dim(points, start, chunk).astype(dtype)
        return step(carry, start, rows, start + jnp.arange(chunk) >= i * chunk)

    return lax.fori_loop(0, -(-n // chunk), body, carry)


def moments(
    fold: Callable[[Callable, Any], Any],
    start: jax.Array,
    total: Callable[[Any], Any] = lambda tree: tree,
) -> tuple[jax.Array, jax.Array]:
    """The weighted mean [d] of rows, and the average over the features of their variance.

    Right to rounding however far the rows are from 0: a sum of raw values would round their
    common offset n times over, so that the mean is found twice.

    Args:
      fold: folds step(carry, rows [c, d], weights [c]) over all chunks of rows.
      start: [d] of the rows' type, anything near them, or 0.
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
        return total(fold(add, (zero, zero, jnp.zeros((), start.dtype))))

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
            return step(carry, rows, new.astype(rows.dtype))

        return over_chunks(points, chunk, body, carry)

    mean, variance = moments(fold, points[0].astype(working_type(points.dtype)))
    return on_grid(mean, jnp.sqrt(variance))


def on_grid(values: jax.Array, spread: jax.Array) -> jax.Array:
    """The values rounded to multiples of a power of two that is at most the spread.

    Example:
      >>> on_grid(jnp.array([9.6, -3.3]), jnp.float32(3.0)).tolist()
      [10.0, -4.0]
    """
    _, exponent = jnp.frexp(spread)
    step = jnp.ldexp(jnp.ones_like(spread), exponent - 1)
    return jnp.round(values / step) * step


def largest_magnitude(*arrays: jax.Array) -> jax.Array:
    """The largest magnitude in non-empty arrays, in the widest `working_type` of theirs.

    Example:
      >>> float(largest_magnitude(jnp.array([3.0, -5.0]), jnp.array([[1.0]])))
      5.0
    """
    found = [jnp.abs(array).max().astype(working_type(array.dtype)) for array in arrays]
    return jnp.stack(jnp.broadcast_arrays(*found)).max()


def power_of_two(largest: jax.Array) -> jax.Array:
    """The power of two that brings the largest magnitude into 1/2..1; 1 for 0.

    Multiplied by it, values keep all their bits, and squares of them neither overflow nor, where
    they count beside the largest, underflow. Nothing is differentiated through it.

    Example:
      >>> float(power_of_two(jnp.float32(2.0**100))) == 2.0**-101
      True
    """
    limit = jnp.finfo(largest.dtype).maxexp - 2
    exponent = jnp.frexp(lax.stop_gradient(largest))[1]
    return jnp.ldexp(jnp.ones_like(largest), -jnp.clip(exponent, -limit, limit))


def sum_of_squares(rows: jax.Array) -> jax.Array:
    """Sums [n] of the squares of rows [n, d], in an order that depends on nothing but d.

    The same row has the same sum to the bit, however many rows there are; compilers choose the
    order of `sum` by the shape.

    Example:
      >>> sum_of_squares(jnp.array([[1.0, 2.0, 3.0], [3.0, 0.0, 4.0]])).tolist()
      [14.0, 25.0]
    """
    # The maximum keeps a square and a sum from being contracted to one operation, which rounds once
    # and takes either of two squares exactly: which one, the compiler decides.
    squares = jnp.maximum(rows**2, 0)
    while (d := squares.shape[1]) > 1:
        half = d // 2
        sums = squares[:, :half] + squares[:, half : 2 * half]
        squares = jnp.concatenate([sums, squares[:, 2 * half :]], 1) if d % 2 else sums
    return squares[:, 0]


def scores(rows: jax.Array, references: jax.Array) -> jax.Array:
    """|reference|² - 2 reference·row [m, n]: squared distances less |row|², in the same order.

    References lie along axis 0, where CPUs reduce fastest. Centre both first: the squares of a
    common offset would drown the differences.

    Args:
      rows: float [n, d].
      references: of the same type [m, d].

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
