"""Selection from many columns at once by sorting networks.

Reference:
  K. E. Batcher, "Sorting networks and their applications", AFIPS 1968.
"""

import jax
import jax.numpy as jnp
from jax import lax


def sort_keys(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sorts keys, equal ones by place; both in one word, which takes a fifth of an argsort.

    Args:
      keys: int32 [n], at least 0, n times the largest below 2³¹ - n.

    Returns:
      int32 [n] the keys in order, and int32 [n] where each was.

    Example:
      >>> keys, places = sort_keys(jnp.array([5, 3, 5, 0], jnp.int32))
      >>> keys.tolist(), places.tolist()
      ([0, 3, 5, 5], [3, 1, 0, 2])
    """
    size = len(keys)
    both = lax.sort(keys * size + jnp.arange(size, dtype=jnp.int32))
    return both // size, both % size


def smallest(values: jax.Array, m: int) -> tuple[jax.Array, jax.Array]:
    """About the m smallest of each column.

    A sorting network compares whole rows of columns at once, many times as fast on a CPU as a sort
    or top_k of each. Its keys hold the row in the last bits of the value: the rest of the order is
    lost, so `bound` says what the rows not chosen cannot be below.

    Args:
      values: float32 [n, c]; those below 0 count as 0.
      m: how many, 1 ≤ m ≤ n.

    Returns:
      bound float32 [c], infinite if all that is finite was chosen; rows int32 [m, c], distinct in a
      column and in order of value but for the lost bits.

    Example:
      >>> bound, rows = smallest(jnp.array([[7.0], [1.0], [4.0]]), 2)
      >>> bound.tolist(), rows.tolist()
      ([4.0], [[1], [2]])
    """
    n, c = values.shape
    size = 1 << (m - 1).bit_length()
    bits = (n - 1).bit_length()
    keys = lax.bitcast_convert_type(jnp.maximum(values, 0), jnp.int32) & -(1 << bits)
    keys |= jnp.arange(n, dtype=jnp.int32)[:, None]
    top = jnp.iinfo(jnp.int32).max
    keys = jnp.pad(keys, ((0, -n % size), (0, 0)), constant_values=top)
    step = 2
    while step <= size:
        keys = _cleaned(_halves(keys, step, mirrored=True), step // 2)
        step *= 2
    while len(keys) > size:
        even = len(keys) // (2 * size) * 2 * size
        halves = keys[:even].reshape(-1, 2, size, c)
        least = jnp.minimum(halves[:, 0], halves[:, 1, ::-1]).reshape(-1, c)
        keys = jnp.concatenate([_cleaned(least, size), keys[even:]])
    keys = keys[:m]
    bound = lax.bitcast_convert_type(keys[-1] & -(1 << bits), jnp.float32)
    rows = keys & ((1 << bits) - 1)
    return jnp.where(n == m, jnp.inf, bound), rows


def _halves(keys, size, mirrored=False) -> jax.Array:
    """Puts the smaller of two keys first, the larger second, between the halves of each `size`."""
    n, c = keys.shape
    turn = slice(None, None, -1) if mirrored else slice(None)
    halves = keys.reshape(-1, 2, size // 2, c)
    first, second = halves[:, 0], halves[:, 1, turn]
    larger = jnp.maximum(first, second)[:, turn]
    return jnp.stack([jnp.minimum(first, second), larger], 1).reshape(n, c)


def _cleaned(keys, size) -> jax.Array:
    """Sorts each `size` of keys that rise and then fall, or fall and then rise."""
    while size > 1:
        keys = _halves(keys, size)
        size //= 2
    return keys


def in_order(values: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sorts columns that are nearly in order already: neighbours change places until none is wrong.

    Args:
      values: float32 [m, c], infinite for none.
      ids: int32 [m, c], the order of equal values.

    Returns:
      values and ids in order; the ids of infinite values are lost.

    Example:
      >>> values, ids = in_order(jnp.array([[2.0], [1.0], [1.0]]), jnp.array([[5], [9], [6]]))
      >>> values.tolist(), ids.tolist()
      ([[1.0], [1.0], [2.0]], [[6], [9], [5]])
    """
    ids = jnp.where(jnp.isfinite(values), ids, jnp.iinfo(jnp.int32).max)
    parity = jnp.arange(len(values) - 1)[:, None] % 2

    def wrong(values, ids):
        tie = (values[:-1] == values[1:]) & (ids[:-1] > ids[1:])
        return (values[:-1] > values[1:]) | tie

    def exchange(state):
        for turn in range(2):
            swap = wrong(*state) & (parity == turn)
            down, up = jnp.pad(swap, ((0, 1), (0, 0))), jnp.pad(swap, ((1, 0), (0, 0)))
            state = jax.tree.map(
                lambda x, down=down, up=up: jnp.where(
                    down, jnp.roll(x, -1, 0), jnp.where(up, jnp.roll(x, 1, 0), x)
                ),
                state,
            )
        return state

    return lax.while_loop(lambda state: wrong(*state).any(), exchange, (values, ids))
