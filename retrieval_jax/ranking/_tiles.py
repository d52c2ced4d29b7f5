"""Exhaustive search: tiles of the gallery, chunks of the queries, three ways that get slower.

A tile is first searched by bounds in a few principal components, which leave little but the
neighbours of embeddings; queries whose result that cannot prove are searched by bounds in all
components, and those whose neighbours float32 products cannot tell apart one by one, from the
differences to every row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.numerics.distances import FULL_PRECISION, over_chunks
from retrieval_jax.numerics.selection import GROUP, rows_of_true, threshold
from retrieval_jax.ranking._costs import RESIDUE, Basis, as_compared, bounds, costs, find_basis
from retrieval_jax.ranking.neighbours import Metric

# With the three features of the bounds a multiple of 8, which vectors are made of.
_COMPONENTS = 21
# Rows whose bounds are made together.
_ROWS = 2048
# Queries that are sooner scanned one by one than the bounds of all rows are made.
_FEW = 3


class Found(NamedTuple):
    """Neighbours while they are searched: costs [q, k] and indices [q, k], by cost, then index."""

    costs: jax.Array
    indices: jax.Array


class Setting(NamedTuple):
    """What a search is asked for: the arguments of `nearest`, static under jit."""

    k: int
    metric: Metric
    exclude_self: bool
    recall: float | None
    query_chunk: int
    gallery_chunk: int

    @property
    def most(self) -> int:
        """Candidates for k neighbours: what the bounds cannot tell apart must fit."""
        return self.k + self.k // 2 + 28

    @property
    def fewest(self) -> int:
        """Candidates that are likely to suffice."""
        return self.k + self.k // 4 + 16


class _Tile(NamedTuple):
    rows: jax.Array  # [t, d] `as_compared`
    valid: jax.Array  # bool [t], may be found
    first: jax.Array  # index of its first row
    alone: bool  # whether it is the whole gallery


def least(found: Found, k: int) -> Found:
    """The k least of each row [q, m], m ≥ k; of equal costs the first.

    Example:
      >>> found = Found(jnp.array([[2.0, 1.0, 1.0]]), jnp.array([[5, 6, 7]]))
      >>> least(found, 2).indices.tolist()
      [[6, 7]]
    """
    negative, at = lax.top_k(-found.costs, k)
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
    first: jax.Array | int,
    setting: Setting,
) -> Found:
    """The k neighbours of queries [q, d] in gallery [n, d] where mask [n], counted from `first`.

    Example:
      >>> setting = Setting(1, "euclidean", False, None, query_chunk=1, gallery_chunk=16)
      >>> search(jnp.zeros((1, 2)), jnp.eye(2), jnp.array([False, True]), 70, setting)
      Found(costs=Array([[1.]], dtype=float32), indices=Array([[71]], dtype=int32))
    """
    n = len(gallery)
    size = min(setting.gallery_chunk, n)
    basis = find_basis(gallery, setting.metric)

    def search_tile(i: jax.Array, found: Found) -> Found:
        # The last tile of a ragged count starts early so as to be whole.
        start = jnp.minimum(i * size, n - size)
        valid = lax.dynamic_slice_in_dim(mask, start, size)
        valid &= start + jnp.arange(size) >= i * size
        rows = lax.dynamic_slice_in_dim(gallery, start, size)
        tile = _Tile(as_compared(rows, setting.metric), valid, first + start, n == size)
        return _search_tile(found, queries, tile, basis, setting)

    shape = (len(queries), setting.k)
    none = Found(jnp.full(shape, jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32))
    return lax.fori_loop(0, -(-n // size), search_tile, none)


def _search_tile(found: Found, queries, tile: _Tile, basis: Basis, setting: Setting) -> Found:
    d = tile.rows.shape[1]
    state = found, jnp.zeros(len(queries), bool)

    def filtered(components: int, wanted: jax.Array, state):
        return lax.cond(
            wanted,
            lambda state: _filter(state, queries, tile, basis, components, setting),
            lambda state: state,
            state,
        )

    if setting.recall is not None:
        return _filter(state, queries, tile, basis, d, setting)[0]
    if setting.most * GROUP <= len(tile.rows):
        if d > 2 * _COMPONENTS:
            state = filtered(_COMPONENTS, basis.residue[_COMPONENTS] < RESIDUE, state)
        state = filtered(d, (~state[1]).sum() > _FEW, state)
    return _scan(state, queries, tile, setting)


def _filter(state, queries, tile, basis, components, setting) -> tuple[Found, jax.Array]:
    """Adds the tile to the neighbours of queries not done, where bounds can prove the result."""
    features = _features(tile, basis, components, setting.metric)
    chunk = setting.query_chunk
    turns = jnp.argsort(state[1], stable=True).astype(jnp.int32)
    left = (~state[1]).sum()

    def add(i: jax.Array, state: tuple[Found, jax.Array]) -> tuple[Found, jax.Array]:
        found, done = state
        number = lax.dynamic_slice_in_dim(turns, i * chunk, chunk)
        rows = as_compared(queries[number], setting.metric)
        old = jax.tree.map(lambda of: of[number], found)
        _, here = bounds(rows, basis, components, setting.metric)
        values = jnp.dot(features, here.T, precision=FULL_PRECISION)
        if setting.recall is not None:
            candidates, limit = _approximate_candidates(values, setting)
        else:
            candidates, limit = _candidates(values, old.costs[:, -1], setting)
        # Nothing was found before the only tile: nothing to merge with.
        near = tile.rows.at[candidates].get(mode="clip")
        ranked = Found(costs(rows[:, None], near, setting.metric), candidates)
        new = _add(None if tile.alone else old, number, ranked, tile, setting)
        proven = (new.costs[:, -1] <= limit) & ~done[number]
        at = jnp.where(proven, number, len(done))
        found = jax.tree.map(lambda of, to: of.at[at].set(to, mode="drop"), found, new)
        return found, done.at[at].set(True, mode="drop")

    return lax.fori_loop(0, -(-left // chunk), add, state)


def _features(tile: _Tile, basis: Basis, components: int, metric: Metric) -> jax.Array:
    """What `bounds` makes of the tile, in whole groups; infinite for rows not to be found."""
    t = len(tile.rows)
    valid = jnp.pad(tile.valid, (0, -t % GROUP))

    def fill(out: jax.Array, start: jax.Array, rows: jax.Array, _) -> jax.Array:
        features, _ = bounds(rows, basis, components, metric)
        return lax.dynamic_update_slice(out, features, (start, 0))

    # A chunk at a time: what is made on the way stays in cache.
    features = jnp.zeros((len(valid), components + 3), jnp.float32)
    features = over_chunks(tile.rows, min(_ROWS, t), fill, features)
    return features.at[:, -2].set(jnp.where(valid, features[:, -2], jnp.inf))


def _candidates(values, ceiling, setting) -> tuple[jax.Array, jax.Array]:
    """Of bounds [n, c]: rows [c, most], ascending, all whose bound is within a limit [c]."""
    n, c = values.shape
    # Barred, or XLA takes the least of all groups from the values, in a second pass over them.
    groups = lax.optimization_barrier(values.reshape(n // GROUP, GROUP, c).min(1))
    most = setting.most
    limit = threshold(groups, ceiling, setting.fewest, most - most // 16)
    best = rows_of_true((groups <= limit) & (groups < jnp.inf), most)
    # Position in the best groups is order of row.
    row = (best[:, None] * GROUP + jnp.arange(GROUP)[:, None]).reshape(-1, c)
    inside = values.reshape(-1).at[row * c + jnp.arange(c)].get(mode="fill", fill_value=jnp.inf)
    limit = threshold(inside, limit, setting.fewest, most)
    place = rows_of_true((inside <= limit) & (inside < jnp.inf), most)
    return jnp.take_along_axis(row, place, 0, mode="fill", fill_value=n).T, limit


def _approximate_candidates(values, setting) -> tuple[jax.Array, jax.Array]:
    """Of bounds [n, c]: rows [c, m], ascending, among them the asked share of the k least."""
    n, c = values.shape
    most = min(setting.most, n)
    best, rows = lax.approx_max_k(-values.T, most, recall_target=setting.recall)
    rows = jnp.sort(jnp.where(best > -jnp.inf, rows, n), axis=1)
    return rows, jnp.full(c, jnp.inf)


def _add(found: Found | None, number, here: Found, tile: _Tile, setting: Setting) -> Found:
    """The least of what was found and of rows of the tile, ascending; those beyond it are none."""
    indices = tile.first + here.indices
    missing = here.indices >= len(tile.rows)
    if setting.exclude_self:
        missing |= indices == number[:, None]
    added = Found(jnp.where(missing, jnp.inf, here.costs), jnp.where(missing, -1, indices))
    if found is not None:
        # Those found before come first: their indices are lower.
        added = Found(*(jnp.concatenate(pair, 1) for pair in zip(found, added, strict=True)))
    return least(added, setting.k)


def _scan(state, queries, tile, setting) -> Found:
    """Adds the tile to the neighbours of queries not done, one by one, by the cost of every row."""
    every = jnp.where(tile.valid, jnp.arange(len(tile.rows)), len(tile.rows))[None]

    def add(state: tuple[Found, jax.Array]) -> tuple[Found, jax.Array]:
        found, done = state
        number = done.argmin()[None]
        query = as_compared(queries[number], setting.metric)
        here = Found(costs(query, tile.rows, setting.metric)[None], every)
        new = _add(jax.tree.map(lambda of: of[number], found), number, here, tile, setting)
        found = jax.tree.map(lambda of, to: of.at[number].set(to), found, new)
        return found, done.at[number].set(True)

    return lax.while_loop(lambda state: ~state[1].all(), add, state)[0]
