"""Exhaustive search: tiles of the gallery, chunks of the queries.

A tile is first searched by bounds in a few principal components, which leave little but the
neighbours of embeddings; queries whose result that cannot prove are searched by bounds in all
coordinates, in the same loop of the same program; and those whose neighbours float32 products
cannot tell apart one by one, from the differences to every row.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from retrieval_jax.numerics.bounds import Basis
from retrieval_jax.numerics.distances import FULL_PRECISION, over_chunks
from retrieval_jax.ranking._costs import COMPONENTS, RESIDUE, as_compared, bounds, costs, find_basis
from retrieval_jax.ranking.neighbours import Metric

# Rows whose minimum stands for them: 16 float32 are a cache line.
GROUP = 16
# Rows whose bounds are made together.
_ROWS = 2048
# Queries that are sooner scanned one by one than the bounds of all rows are made.
_FEW = 8
# A chunk of queries whose rows are within this share of the tile looks at no more.
_PART = 4


class Found(NamedTuple):
    """Neighbours while they are searched: costs [q, k] and indices [q, k], by cost, then index."""

    costs: jax.Array
    indices: jax.Array


class Setting(NamedTuple):
    """What a search is asked for: the arguments of `nearest`, static under jit."""

    k: int
    metric: Metric
    exclude_self: bool
    approximate_recall: float | None
    query_chunk: int
    gallery_chunk: int

    @property
    def most(self) -> int:
        """Candidates for k neighbours: what the bounds cannot tell apart must fit."""
        return self.k + self.k // 2 + 12


class _Tile(NamedTuple):
    """Rows in order of label, then of index: those of a query's label follow one another."""

    rows: jax.Array  # [t, d] `as_compared`
    scale: jax.Array  # by which they were multiplied
    indices: jax.Array  # int32 [t] in the gallery
    begin: jax.Array  # int32 [q], the rows that each query may find
    end: jax.Array
    alone: bool  # whether it is the whole gallery


class _Features(NamedTuple):
    """What `bounds` makes of rows: of the tile as gallery, or of queries."""

    few: jax.Array  # [n, components + 3]
    all: jax.Array  # [n, d + 3]


def nothing_found(queries: int, k: int, dtype: DTypeLike) -> Found:
    """No neighbours yet.

    Example:
      >>> nothing_found(1, 2, jnp.float32).indices.tolist()
      [[-1, -1]]
    """
    shape = (queries, k)
    return Found(jnp.full(shape, jnp.inf, dtype), jnp.full(shape, -1, jnp.int32))


def least(found: Found, k: int) -> Found:
    """The k least of each row [q, m], m ≥ k; of equal costs the first.

    Example:
      >>> found = Found(jnp.array([[2.0, 1.0, 1.0]]), jnp.array([[5, 6, 7]]))
      >>> least(found, 2).indices.tolist()
      [[6, 7]]
    """
    negative, at = _top(-found.costs, k)
    return Found(-negative, jnp.take_along_axis(found.indices, at, 1))


def least_of_all(found: Found, k: int, axis_name: str) -> Found:
    """The k least of each query among what the axis' devices found, each in its shard.

    Example:
      >>> shards = Found(jnp.array([[[2.0]], [[1.0]]]), jnp.array([[[5]], [[6]]]))
      >>> jax.vmap(lambda of: least_of_all(of, 1, "i"), axis_name="i")(shards).indices.tolist()
      [[[6]], [[6]]]
    """
    # Side by side in the order of the shards, equal costs are in order of index.
    return least(Found(*(lax.all_gather(of, axis_name, axis=1, tiled=True) for of in found)), k)


def search(
    queries: jax.Array,
    gallery: jax.Array,
    mask: jax.Array,
    labels: tuple[jax.Array, jax.Array],
    first: jax.Array | int,
    scale: jax.Array,
    setting: Setting,
) -> Found:
    """The k neighbours of queries [q, d] in gallery [n, d] where mask [n], counted from `first`.

    Labels int [q] and [n]: a query finds rows of its own label alone, none if it is below 0. Rows
    are compared times `scale`, in its type.

    Example:
      >>> setting = Setting(1, "euclidean", False, None, query_chunk=1, gallery_chunk=16)
      >>> labels = jnp.array([0]), jnp.array([0, 0])
      >>> mask, one = jnp.array([False, True]), jnp.float32(1)
      >>> search(jnp.zeros((1, 2)), jnp.eye(2), mask, labels, 70, one, setting)
      Found(costs=Array([[1.]], dtype=float32), indices=Array([[71]], dtype=int32))
    """
    n = len(gallery)
    size = min(setting.gallery_chunk, n)
    basis = find_basis(gallery, setting.metric, scale)

    def search_tile(i: jax.Array, found: Found) -> Found:
        # The last tile of a ragged count starts early so as to be whole.
        start = jnp.minimum(i * size, n - size)
        part = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        new = start + jnp.arange(size) >= i * size
        label = jnp.where(new & part(mask), part(labels[1]), -1)
        order = jnp.argsort(label, stable=True)
        begin, end = (
            jnp.searchsorted(label[order], labels[0], side=side).astype(jnp.int32)
            for side in ("left", "right")
        )
        end = jnp.where(labels[0] < 0, begin, end)
        rows = as_compared(part(gallery)[order], setting.metric, scale)
        indices = (first + start + order).astype(jnp.int32)
        tile = _Tile(rows, scale, indices, begin, end, n == size)
        return _search_tile(found, queries, tile, basis, setting)

    none = nothing_found(len(queries), setting.k, scale.dtype)
    return lax.fori_loop(0, -(-n // size), search_tile, none)


def _search_tile(found: Found, queries, tile: _Tile, basis: Basis, setting: Setting) -> Found:
    t, d = tile.rows.shape
    state = found, tile.begin >= tile.end  # nothing to find is found
    if setting.approximate_recall is not None:
        return _filter(state, jnp.bool_(False), queries, tile, basis, setting)[0]
    if setting.most * GROUP <= t:
        few = jnp.bool_(d > 2 * COMPONENTS) & (basis.residue < RESIDUE)
        _, state = lax.while_loop(
            lambda of: (of[0] < 2) & ((~of[1][1]).sum() > _FEW),
            lambda of: (of[0] + 1, _filter(of[1], of[0] == 0, queries, tile, basis, setting)),
            (jnp.where(few, 0, 1), state),
        )
    return _scan(state, queries, tile, setting)


def _filter(state, few, queries, tile, basis, setting) -> tuple[Found, jax.Array]:
    """Adds the tile to the neighbours of queries not done, where bounds can prove the result."""
    t, chunk = len(tile.rows), setting.query_chunk
    features = _features(few, tile.rows, basis, setting.metric)
    # Those not done first, those of a label together: they search the same rows.
    turns = jnp.argsort(jnp.where(state[1], t, tile.begin), stable=True).astype(jnp.int32)
    left = (~state[1]).sum()

    def add(i: jax.Array, state):
        found, done = state
        number = lax.dynamic_slice_in_dim(turns, i * chunk, chunk)
        rows = as_compared(queries[number], setting.metric, tile.scale)
        old = jax.tree.map(lambda of: of[number], found)
        begin = tile.begin[number]
        end = jnp.where(done[number], begin, tile.end[number])
        asked = _Features(*(bounds(rows, basis, setting.metric, whole=w)[1] for w in (False, True)))
        candidates, limit = _candidates(few, features, asked, begin, end, setting)
        near = tile.rows.at[candidates].get(mode="clip")
        ranked = Found(costs(rows[:, None], near, setting.metric), candidates)
        # Nothing was found before the only tile: nothing to merge with.
        new = _add(None if tile.alone else old, number, ranked, tile, setting)
        proven = ((new.costs[:, -1] < limit) | (limit == jnp.inf)) & ~done[number]
        at = jnp.where(proven, number, len(done))
        found = jax.tree.map(lambda of, to: of.at[at].set(to, mode="drop"), found, new)
        return found, done.at[at].set(True, mode="drop")

    return lax.fori_loop(0, -(-left // chunk), add, state)


def _features(few, rows: jax.Array, basis: Basis, metric: Metric) -> _Features:
    """The features of the rows that are asked for, in whole groups; zeros for the others."""
    t, d = rows.shape

    def make(whole: bool, width: int) -> jax.Array:
        def fill(out: jax.Array, start: jax.Array, part: jax.Array, _) -> jax.Array:
            made, _ = bounds(part, basis, metric, whole=whole)
            return lax.dynamic_update_slice(out, made, (start, 0))

        out = jnp.zeros((t + -t % GROUP, width + 3), rows.dtype)
        # A chunk at a time: what is made on the way stays in cache.
        return lax.cond(
            few != whole, lambda: over_chunks(rows, min(_ROWS, t), fill, out), lambda: out
        )

    return _Features(make(False, basis.vectors.shape[1]), make(True, d))


def _candidates(few, features, asked, begin, end, setting) -> tuple[jax.Array, jax.Array]:
    """Rows [c, m] from begin to end, ascending, and a limit [c] that the bounds of others reach.

    Where a chunk's queries share their label, or nearly, only a part of the tile is looked at.
    """
    n = len(features.few)
    part = -(-n // (_PART * GROUP)) * GROUP
    first = jnp.where(begin < end, begin, n).min() // GROUP * GROUP
    first = jnp.minimum(first, n - part)
    divided = setting.approximate_recall is None and setting.most * GROUP <= part
    short = divided & (jnp.where(begin < end, end, 0).max() <= first + part)
    first = jnp.where(short, first, 0)

    def among(size: int) -> tuple[jax.Array, jax.Array]:
        def product(kind: str) -> jax.Array:
            rows = lax.dynamic_slice_in_dim(getattr(features, kind), first, size)
            return jnp.dot(rows, getattr(asked, kind).T, precision=FULL_PRECISION)

        values = lax.cond(few, partial(product, "few"), partial(product, "all"))
        if setting.approximate_recall is not None:
            return _approximate(values, begin, end, setting)
        return _least_bounds(values, begin - first, end - first, setting.most)

    if divided:
        places, limit = lax.cond(short, partial(among, part), partial(among, n))
    else:
        places, limit = among(n)
    return first + places, limit


def _least_bounds(values, begin, end, most) -> tuple[jax.Array, jax.Array]:
    """Of bounds [n, c]: the rows [c, most] of the least, ascending, n for none, and a limit [c].

    In two stages: the groups of rows whose minima are least, and the least inside of them.
    """
    n, c = values.shape
    row = jnp.arange(n)[:, None]
    masked = jnp.where((row >= begin) & (row < end), values, jnp.inf)
    # Barred, or XLA takes the least of all groups from the values, in a second pass over them.
    groups = lax.optimization_barrier(masked.reshape(n // GROUP, GROUP, c).min(1))
    least_groups, group = _top(-groups.T, most)
    row = (group[:, :, None] * GROUP + jnp.arange(GROUP)).reshape(c, -1)
    inside = values.reshape(-1)[row * c + jnp.arange(c)[:, None]]
    inside = jnp.where((row >= begin[:, None]) & (row < end[:, None]), inside, jnp.inf)
    least_inside, place = _top(-inside, most)
    rows = jnp.where(jnp.isfinite(least_inside), jnp.take_along_axis(row, place, 1), n)
    return jnp.sort(rows, 1), -jnp.maximum(least_groups[:, -1], least_inside[:, -1])


def _top(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    # Barred, or XLA sorts whole rows for who reads a part; one by one, or its compiler fails.
    best, at = lax.top_k(values, k)
    return lax.optimization_barrier(best), lax.optimization_barrier(at)


def _approximate(values, begin, end, setting) -> tuple[jax.Array, jax.Array]:
    """Of bounds [n, c]: rows [c, m], ascending, among them the asked share of the k least."""
    n, c = values.shape
    most, row = min(setting.most, n), jnp.arange(n)
    allowed = (row >= begin[:, None]) & (row < end[:, None])
    best, rows = lax.approx_max_k(
        jnp.where(allowed, -values.T, -jnp.inf), most, recall_target=setting.approximate_recall
    )
    rows = jnp.sort(jnp.where(best > -jnp.inf, rows, n), axis=1)
    return rows, jnp.full(c, jnp.inf)


def _add(found: Found | None, number, here: Found, tile: _Tile, setting: Setting) -> Found:
    """The least of what was found and of rows of the tile, ascending; those beyond it are none."""
    indices = tile.indices.at[here.indices].get(mode="fill", fill_value=-1)
    missing = indices < 0
    if setting.exclude_self:
        missing |= indices == number[:, None]
    added = Found(jnp.where(missing, jnp.inf, here.costs), jnp.where(missing, -1, indices))
    if found is not None:
        # Those found before come first: their indices are lower.
        added = Found(*(jnp.concatenate(pair, 1) for pair in zip(found, added, strict=True)))
    return least(added, setting.k)


def _scan(state, queries, tile, setting) -> Found:
    """Adds the tile to the neighbours of queries not done, one by one, by the cost of every row."""
    row = jnp.arange(len(tile.rows))

    def add(state: tuple[Found, jax.Array]) -> tuple[Found, jax.Array]:
        found, done = state
        number = done.argmin()[None]
        query = as_compared(queries[number], setting.metric, tile.scale)
        inside = (row >= tile.begin[number]) & (row < tile.end[number])
        every = jnp.where(inside, row, len(row))[None]
        here = Found(costs(query, tile.rows, setting.metric)[None], every)
        new = _add(jax.tree.map(lambda of: of[number], found), number, here, tile, setting)
        found = jax.tree.map(lambda of, to: of.at[number].set(to), found, new)
        return found, done.at[number].set(True)

    return lax.while_loop(lambda state: ~state[1].all(), add, state)[0]
