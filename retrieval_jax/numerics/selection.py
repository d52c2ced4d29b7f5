"""The smallest few of long columns without sorting them.

Values lie along axis 0 and the searches side by side along axis 1, where a CPU reads whole vectors
of them. Everything runs under jit and vmap, in float32 or (with `jax_enable_x64`) float64.

Reference:
  K. E. Batcher, "Sorting networks and their applications", AFIPS 1968.
"""

import jax
import jax.numpy as jnp
from jax import lax


def threshold(values: jax.Array, ceiling: jax.Array, fewest: int, most: int) -> jax.Array:
    """A number for each column that between `fewest` and `most` of its values do not exceed.

    A search between two numbers, one let through by too few and one by too many, which counts the
    column at each step: far cheaper than a partial sort where `most` is large. Fewer are let
    through where the ceiling allows no more, or where ties (or values too close for 40 steps)
    straddle `most`; never more.

    Args:
      values: float [n, c]; infinite ones are never let through.
      ceiling: of the same type [c], the highest threshold wanted; infinite where any will do.
      fewest: where the search may stop.
      most: largest count.

    Returns:
      The same type [c]; the ceiling itself where it lets through at most `most`.

    Example:
      >>> values = jnp.array([[5.0], [1.0], [4.0], [2.0], [3.0], [6.0]])
      >>> found = threshold(values, jnp.array([jnp.inf]), fewest=2, most=3)
      >>> int((values <= found).sum())
      3
      >>> float(threshold(values, jnp.array([jnp.inf]), fewest=2, most=6)[0])
      inf
    """
    finite = jnp.isfinite(values)
    highest = jnp.where(finite, values, -jnp.inf).max(0)
    mean = jnp.where(finite, values, 0).sum(0) / jnp.maximum(finite.sum(0), 1)
    aim = (fewest * most) ** 0.5

    def unfinished(state):
        low, high, *_, step = state
        return (low < high).any() & (step < 40)

    def narrow(state):
        low, high, below, above, at, step = state
        count = (values <= at).sum(0).astype(values.dtype)
        fits = count <= most
        low, below = jnp.where(fits, at, low), jnp.where(fits, count, below)
        high, above = jnp.where(fits, high, at), jnp.where(fits, above, count)
        # Counts rise from the least value about as the square: then this lands on the aim. Now and
        # then the middle, so that no distribution stalls it.
        share = jnp.sqrt((aim - below) / (above - below)).clip(0.02, 0.98)
        share = jnp.where((step % 3 == 2) | jnp.isnan(share), 0.5, share)
        at = jnp.where(step == 0, mean, low + (high - low) * share)
        at = jnp.where((at > low) & (at < high), at, low / 2 + high / 2)
        stop = (fits & (count >= fewest)) | (at <= low) | (at >= high)
        high, at = jnp.where(stop, low, high), jnp.where(stop, low, at)
        return low, high, below, above, at, step + 1

    # Below the least by more than a subnormal number, which CPUs take for 0.
    least = jnp.minimum(values.min(0), jnp.finfo(values.dtype).max)
    least -= jnp.maximum(jnp.abs(least) * 1e-6, 8.6 * jnp.finfo(values.dtype).tiny)
    top = jnp.minimum(highest, ceiling)
    none, all_of_them = jnp.zeros_like(top), jnp.full_like(top, len(values))
    state = (least, top, none, all_of_them, top, jnp.int32(0))
    low, *_ = lax.while_loop(unfinished, narrow, state)
    return jnp.where(low >= highest, ceiling, jnp.minimum(low, ceiling))


def rows_of_true(mask: jax.Array, most: int) -> jax.Array:
    """The first rows that are True in each column, ascending.

    The mask is packed in words of 32 bits; each place of the answer finds its word by the running
    count of bits and its bit by bisection: no scatter, no sort.

    Args:
      mask: bool [n, c].
      most: places for rows.

    Returns:
      int32 [most, c]; n in the places left over.

    Example:
      >>> mask = jnp.array([[True, False], [False, False], [True, False], [True, True]])
      >>> rows_of_true(mask, most=2).tolist()
      [[0, 3], [2, 4]]
    """
    n, c = mask.shape
    bits = jnp.pad(mask, ((0, -n % 32), (0, 0))).reshape(-1, 32, c).astype(jnp.uint32)
    words = (bits << jnp.arange(32, dtype=jnp.uint32)[:, None]).sum(1, dtype=jnp.uint32)
    counts = _ones(words)
    ends = jnp.cumsum(counts, 0)
    place = jnp.broadcast_to(jnp.arange(most, dtype=jnp.int32)[:, None], (most, c))
    missing = place >= ends[-1]
    at = jnp.zeros_like(place)  # the words that end before the place
    half = 2 ** (len(words).bit_length() - 1)
    while half:
        # Past the last word the index is clipped, which only places left over can follow.
        passed = pick(ends, at + half - 1) <= place
        at = jnp.where(passed & (at + half < len(words)), at + half, at)
        half //= 2
    word = pick(words, at)
    rank, row = place - pick(ends - counts, at), at * 32
    for half in (16, 8, 4, 2, 1):
        low = _ones(word & jnp.uint32(2**half - 1))
        upper = rank >= low
        rank = jnp.where(upper, rank - low, rank)
        word = jnp.where(upper, word >> half, word)
        row = jnp.where(upper, row + half, row)
    # They ascend already. But XLA merges no cumulative maximum into what gathers by these rows,
    # where it would work each one out anew for every value gathered.
    return lax.cummax(jnp.where(missing, n, row), axis=0)


def _ones(words: jax.Array) -> jax.Array:
    return lax.population_count(words).astype(jnp.int32)


def pick(values: jax.Array, rows: jax.Array) -> jax.Array:
    """values[rows[m, c], c] by flat indices: a gather by pairs of them is slow on a CPU.

    Rows beyond the last give any value.

    Example:
      >>> pick(jnp.array([[1, 2], [3, 4], [5, 6]]), jnp.array([[2, 0]])).tolist()
      [[5, 2]]
    """
    c = values.shape[1]
    return values.reshape(-1).at[rows * c + jnp.arange(c)].get(mode="clip")


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
      values: float32 or float64 [n, c]; those below 0 count as 0.
      m: how many, 1 ≤ m ≤ n.

    Returns:
      bound [c] of the values' type, infinite if all that is finite was chosen; rows int32 [m, c],
      distinct in a column and in order of value but for the lost bits.

    Example:
      >>> bound, rows = smallest(jnp.array([[7.0], [1.0], [4.0]]), 2)
      >>> bound.tolist(), rows.tolist()
      ([4.0], [[1], [2]])
    """
    n, c = values.shape
    size = 1 << (m - 1).bit_length()
    bits = (n - 1).bit_length()
    word = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
    keys = lax.bitcast_convert_type(jnp.maximum(values, 0), word) & -(1 << bits)
    keys |= jnp.arange(n, dtype=word)[:, None]
    top = jnp.iinfo(word).max
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
    bound = lax.bitcast_convert_type(keys[-1] & -(1 << bits), values.dtype)
    rows = (keys & ((1 << bits) - 1)).astype(jnp.int32)
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
      values: float [m, c], infinite for none.
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
