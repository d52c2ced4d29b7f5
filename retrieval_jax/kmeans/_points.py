"""The points of k-means as each of its passes reads them: in chunks, weighted, over all shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from retrieval_jax.numerics import distances
from retrieval_jax.numerics.arguments import whole_number
from retrieval_jax.numerics.distances import (
    as_array,
    is_real,
    largest_magnitude,
    over_chunks,
    power_of_two,
    unit,
    working_type,
)

Carry = TypeVar("Carry")

# Rows that are drawn from together. Shards of whole blocks draw what one device would.
BLOCK = 128


class Points(NamedTuple):
    """Points [n, d] and how to read them; made inside jit, and closed over by loops.

    Attributes:
      values: float32, bfloat16 or float64 [n, d], the rows that lie on this device.
      weights: [n] of `dtype`, ≥ 0; rows of weight 0 count nowhere.
      centre: [d], taken off every row, so that a common offset drowns no difference.
      chunk: rows read at a time, ≤ n.
      spherical: whether rows are scaled to unit length before they are centred.
      axis_name: the mapped axis over whose devices the rows are shared, None for one device.
      scale: a power of two that rows are multiplied with before they are centred.
      dtype: what rows are computed in.
    """

    values: jax.Array
    weights: jax.Array
    centre: jax.Array
    chunk: int
    spherical: bool
    axis_name: str | None
    scale: jax.Array | float = 1.0
    dtype: DTypeLike = jnp.float32

    def prepare(self, rows: jax.Array) -> jax.Array:
        """Rows of `values` as `dtype`, of unit length where asked for, scaled and centred."""
        rows = rows.astype(working_type(rows.dtype))
        rows = unit(rows) if self.spherical else rows
        return (rows * self.scale - self.centre).astype(self.dtype)

    def for_seeding(self) -> Points:
        """The same points as float32, all that choosing among them needs."""
        weights = self.weights.astype(jnp.float32)
        return self._replace(weights=weights, dtype=jnp.float32)

    def fold(
        self, step: Callable[[Carry, jax.Array, jax.Array, jax.Array], Carry], carry: Carry
    ) -> Carry:
        """Folds step(carry, start, prepared rows [c, d], weights [c]) over this device's chunks.

        A row that comes twice, in the overlap of a ragged last chunk, has weight 0 the second time.
        """

        def body(carry: Carry, start: jax.Array, rows: jax.Array, new: jax.Array) -> Carry:
            weights = lax.dynamic_slice_in_dim(self.weights, start, self.chunk)
            return step(carry, start, self.prepare(rows), jnp.where(new, weights, 0))

        return over_chunks(self.values, self.chunk, body, carry)

    def total(self, tree: Any) -> Any:
        """Sums what each device found in its rows."""
        return tree if self.axis_name is None else lax.psum(tree, self.axis_name)

    def gathered(self, array: jax.Array) -> jax.Array:
        """Every device's array, one after the other along the leading axis."""
        return (
            array if self.axis_name is None else lax.all_gather(array, self.axis_name, tiled=True)
        )

    def shard(self) -> tuple[jax.Array | int, int]:
        """Which shard the rows are, and of how many."""
        if self.axis_name is None:
            return 0, 1
        return lax.axis_index(self.axis_name), lax.axis_size(self.axis_name)


def moments(points: Points) -> tuple[jax.Array, jax.Array]:
    """The weighted mean [d] of the points, scaled where asked for, and their mean variance."""
    whole = points._replace(centre=jnp.zeros_like(points.centre))

    def fold(step: Callable, carry: Any) -> Any:
        return whole.fold(lambda carry, _, rows, weights: step(carry, rows, weights), carry)

    return distances.moments(fold, points.centre, points.total)


def power_of_two_for(*arrays: jax.Array, axis_name: str | None = None) -> jax.Array:
    """The power of two that brings the largest magnitude in the arrays, of all devices, to 1/2..1.

    Example:
      >>> float(power_of_two_for(jnp.array([3.0, -5.0]), jnp.array([[1.0]])))
      0.125
    """
    largest = largest_magnitude(*arrays)
    return power_of_two(largest if axis_name is None else lax.pmax(largest, axis_name))


def check_clusters(k: Any, n: int) -> int:
    """Returns k as an integer.

    Raises:
      ValueError: not an integer, or not in 1..n.

    Example:
      >>> check_clusters(np.int64(2), 5)
      2
    """
    if not 1 <= (count := whole_number(k, "k", None)) <= n:
        raise ValueError(f"k must be between 1 and the number of points, {n}; it is {count}.")
    return count


def running_sums(values: jax.Array) -> jax.Array:
    """Sums of values [..., n] along the last axis, up to and with each of them.

    `jnp.cumsum` does the same in log n unrolled steps, which take long to compile.

    Example:
      >>> running_sums(jnp.array([1, 2, 3])).tolist()
      [1, 3, 6]
    """
    n = values.shape[-1]
    zeros = jnp.zeros_like(values)

    def double(i: jax.Array, sums: jax.Array) -> jax.Array:
        before = lax.dynamic_slice_in_dim(jnp.concatenate([zeros, sums], -1), n - (1 << i), n, -1)
        return sums + before

    return lax.fori_loop(0, (n - 1).bit_length(), double, values)


def check_weights(
    weights: ArrayLike | None, n: int, k: int, dtype: DTypeLike = np.float32
) -> jax.Array | np.ndarray:
    """Returns the weights [n] of a type; None for 1 each.

    Raises:
      ValueError: another length, or, where they are concrete, weights that are negative or not
        finite in that type, or fewer than k of them above 0.

    Example:
      >>> check_weights([True, False, True], n=3, k=2).tolist()
      [1.0, 0.0, 1.0]
    """
    if weights is None:
        return np.ones(n, dtype)
    weights = as_array(weights)
    if weights.shape != (n,):
        raise ValueError(f"weights must be one for each of the {n} points, not {weights.shape}.")
    if not is_real(weights.dtype):
        raise ValueError(f"weights must be real numbers; they are of type {weights.dtype}.")
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        weights = weights.astype(dtype)
    if not isinstance(weights, jax.core.Tracer):
        on_host = np.asarray(weights)
        if not (np.isfinite(on_host) & (on_host >= 0)).all():
            raise ValueError("weights must be finite and not negative.")
        if (on_host >= np.finfo(dtype).tiny).sum() < k:  # devices take less for 0
            raise ValueError(f"fewer points have a weight above 0 than the {k} that k asks for.")
    return weights
