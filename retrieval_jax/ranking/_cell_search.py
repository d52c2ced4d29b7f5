"""The search inside the cells of a cluster index, exact.

Bounds in a few principal components choose candidates and prove that nothing else can be nearer;
queries whose result that cannot prove are searched by bounds in all features, and those whose
neighbours float32 products cannot tell apart one by one, from the differences to every row.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.numerics.distances import over_chunks
from retrieval_jax.numerics.selection import in_order, pick, rows_of_true, smallest, threshold
from retrieval_jax.ranking import Neighbours
from retrieval_jax.ranking._cell_bounds import (
    GROUP,
    Blocks,
    Bound,
    all_bounds,
    blocks_of,
    bound_pairs,
    empty_space,
    few_bounds,
)
from retrieval_jax.ranking._costs import RESIDUE, costs

# Bounds of a chunk of queries. So few (8 MB, twice that with the gaps of tiles) are allocated
# without new pages from the system, which take longer than the products; but a block should meet
# some queries, for which there may be 32 MB.
_BOUNDS, _MOST_BOUNDS, _PER_BLOCK = 2**21, 2**23, 8
# Bounds selected from together: so few stay in cache. And of how many queries, least and most.
_SELECTED, _FEWEST, _MOST_QUERIES = 2**18, 128, 1024
# Candidates up to which a sorting network chooses them faster than a threshold: 128 of 1,240 bounds
# of 3,000 queries took it 14 to 16 ms, 155 a threshold 17 to 28 ms.
_NETWORK = 128
# Numbers of rows that are gathered together, 4 MB.
_GATHERED = 2**20


class _Chunk(NamedTuple):
    """Queries that are searched together, and what in."""

    index: Any  # ClusterIndex
    blocks: Blocks
    queries: jax.Array  # [c, d] in the type of the index, less the origin
    bound: Bound


class _Found(NamedTuple):
    """The best rows so far of each query of a chunk, by distance, then index."""

    squared: jax.Array  # [k, c] squared distances from differences; infinite for none
    ids: jax.Array  # int32 [k, c] gallery indices
    bound: jax.Array  # [c] every row left out is farther


@partial(jax.jit, static_argnums=3)
def scan(index, queries: jax.Array, cells: jax.Array, k: int) -> Neighbours:
    """The search of `cluster_index.search_cells`, its arguments checked.

    Args:
      index: `cluster_index.ClusterIndex`.
      queries: [q, d] in the type of the index.
      cells: int32 [q, probes], distinct in a row.
      k: neighbours a query, ≥ 1.

    Returns:
      `Neighbours`.

    Example:
      >>> from retrieval_jax.ranking.cells import group
      >>> index = group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]])
      >>> scan(index, jnp.array([[1.5]]), jnp.array([[0]]), 2).indices.tolist()
      [[2, 0]]
    """
    shape = (len(queries), k)
    none = Neighbours(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, queries.dtype))
    state = none, jnp.zeros(len(queries), bool)
    for wanted, bound in (
        (index.basis.residue < RESIDUE, few_bounds),
        (True, all_bounds),
    ):
        state = lax.cond(
            wanted & ~state[1].all(),
            partial(_search, index, queries, cells, bound),
            lambda state: state,
            state,
        )
    # Under a condition: what of the loop is the same in all its turns is worked out before it.
    found = lax.cond(
        state[1].all(), lambda found, _: found, partial(_settle, index, queries, cells), *state
    )
    ids = jnp.where(jnp.isfinite(found.distances), found.indices, -1)
    return Neighbours(ids, jnp.sqrt(found.distances))


def _sizes(index, probes: int, queries: int) -> tuple[int, int]:
    """Blocks of a query bounded in a round, queries of a chunk."""
    blocks, _, width = index.features.shape
    cells = len(index.centroids)
    fill = len(index.rows) / (cells * width)
    # So many that nearly no query needs a second round, which its neighbours would wait for.
    slots = min(math.ceil(fill + 2) + math.ceil((probes - 1) * (1.5 * fill + 0.5)), 96)
    pairs = max(_BOUNDS // width, min(_MOST_BOUNDS // width, _PER_BLOCK * blocks))
    pairs = min(pairs, (2**31 - 1) // (blocks + 1))
    chunks = -(-queries // max(1, pairs // slots))
    return slots, -(-queries // chunks)


def _search(index, queries, cells, bounds_of, state):
    """Searches the queries not done; those whose result the bounds prove are then done."""
    old, done = state
    k = old.indices.shape[1]
    slots, chunk = _sizes(index, cells.shape[1], len(queries))
    blocks = blocks_of(index.offsets, index.features.shape[2], len(index.features))
    # Those not done first, those near one another together: rows are then read from cache.
    turns = jnp.argsort(done * len(index.centroids) + cells[:, 0]).astype(jnp.int32)

    def step(i, state):
        out, space = state
        start = jnp.minimum(i * chunk, len(queries) - chunk)
        number = lax.dynamic_slice_in_dim(turns, start, chunk)
        rows = queries[number] - index.origin
        chunked = _Chunk(index, blocks, rows, bounds_of(index, blocks, rows))
        new, space = _search_chunk(chunked, cells[number], ~done[number], slots, k, space)
        put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(put, out, new), space

    left = (~done).sum()
    # One space for the bounds of all chunks: filling a new one takes as long as the products.
    state = (old, jnp.zeros_like(done)), empty_space(index, chunk * slots)
    (new, proven), _ = lax.fori_loop(0, -(-left // chunk), step, state)
    back = jnp.zeros_like(turns).at[turns].set(jnp.arange(len(turns), dtype=jnp.int32))
    proven = proven[back] & ~done
    new = jax.tree.map(lambda to, of: jnp.where(proven[:, None], to[back], of), new, old)
    return new, done | proven


def _search_chunk(chunk: _Chunk, cells, wanted, slots, k, space):
    """The k nearest in the cells [c, probes] of its queries where wanted; if proven; the space."""
    blocks, c = chunk.blocks, len(cells)
    counts = (blocks.first[cells + 1] - blocks.first[cells]) * wanted[:, None]
    last = jnp.cumsum(counts, axis=1)

    def unfinished(state) -> jax.Array:
        return (last[:, -1] > state[0]).any()

    def search_round(state):
        # Blocks of a query are numbered through its cells; this round has `slots` of them.
        number = state[0] + jnp.arange(slots)[:, None]
        at = (number[:, :, None] >= last).sum(2)
        known = jnp.minimum(at, cells.shape[1] - 1)
        cell = jnp.take_along_axis(cells.T, known, 0)
        from_last = number - jnp.take_along_axis(last.T, known, 0)
        block = jnp.where(at < cells.shape[1], blocks.first[cell + 1] + from_last, len(blocks.end))
        return state[0] + slots, *_search_blocks(chunk, block, *state[1:])

    far = partial(jnp.full, fill_value=jnp.inf, dtype=chunk.queries.dtype)
    none = _Found(far((k, c)), jnp.zeros((k, c), jnp.int32), far(c))
    _, found, space = lax.while_loop(unfinished, search_round, (0, none, space))
    return (Neighbours(found.ids.T, found.squared.T), found.squared[-1] <= found.bound), space


def _search_blocks(chunk: _Chunk, block, found: _Found, space):
    """Betters what was found by the rows of a block [slots, c] (its number, or too large)."""
    space, place = bound_pairs(chunk.index, block, chunk.bound, space)

    def select(out, start, rows, _):
        part = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=len(rows), axis=-1)
        here = lax.cond(
            (part(block) < len(chunk.blocks.end)).any(),
            partial(_select, chunk, rows, part(block), part(place), space),
            lambda before: before,
            _Found(*map(part, found)),
        )
        put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=-1)
        return _Found(*map(put, out, here))

    most = GROUP * _most(len(found.ids))
    together = min(max(_SELECTED // most, _FEWEST), _MOST_QUERIES, len(chunk.queries))
    return over_chunks(chunk.queries, together, select, found), space


def _select(chunk: _Chunk, queries, block, place, space, found: _Found) -> _Found:
    """What is best of the bounded rows of queries [c, d] and of what was found before."""
    index, k = chunk.index, len(found.ids)
    positions, limit = _candidates(chunk.blocks, block, place, space, found.squared[-1], _most(k))
    some = positions < len(index.rows)
    squared = jnp.where(some, _squared(index.rows, queries, positions), jnp.inf)
    squared = jnp.concatenate([found.squared, squared])
    ids = jnp.concatenate([found.ids, index.indices.at[positions].get(mode="clip")])
    # A few more than asked for, as the network tells only the first bits apart.
    bound, best = smallest(squared, min(k + k // 16 + 3, len(squared)))
    squared, ids = in_order(pick(squared, best), pick(ids, best))
    told = (squared[k - 1] < bound) | (bound == jnp.inf)
    bound = jnp.minimum(found.bound, jnp.where(told, limit, -jnp.inf))
    return _Found(squared[:k], ids[:k], bound)


def _least(values, ceiling, wanted, most) -> tuple[jax.Array, jax.Array]:
    """Rows [most, c] of values [n, c], n for none, and a limit [c] that all others exceed."""
    n = len(values)
    if most > _NETWORK:
        limit = threshold(values, ceiling, most - most // 8, wanted)
        return rows_of_true((values <= limit) & (values < jnp.inf), most), limit
    bound, rows = smallest(values, min(most, n))
    # No less than the bound is more than a little less, unless that vanishes.
    limit = jnp.where(bound > 1e-30, bound * (1 - 1e-6), -jnp.inf)
    return jnp.where(pick(values, rows) < jnp.inf, rows, n), jnp.minimum(limit, ceiling)


def _squared(rows, queries, positions) -> jax.Array:
    """Squared distances [m, c] from differences, of queries [c, d] and rows at positions [m, c]."""

    def of_one(pair):
        query, at = pair
        return costs(query, rows.at[at].get(mode="clip"), "euclidean")

    together = min(max(_GATHERED // (len(positions) * rows.shape[1]), 1), len(queries))
    return lax.map(of_one, (queries, positions.T), batch_size=together).T


def _most(k: int) -> int:
    """Candidates for k neighbours: what the bounds cannot tell apart must fit.

    For k = 100 no more than the sorting network takes.
    """
    return k + k // 5 + 8


def _candidates(blocks, block, place, space, ceiling, most) -> tuple[jax.Array, jax.Array]:
    """Positions [most, c] in the rows, too large for none, of all bounds within a limit [c]."""
    values, minima = space
    (slots, c), (width, groups) = block.shape, (values.shape[1], minima.shape[1])
    used = (block < len(blocks.end))[:, :, None]
    begin = blocks.begin.at[block].get(mode="clip")
    limit = ceiling
    if most < slots * groups:
        least = jnp.where(used, minima[place], jnp.inf).transpose(0, 2, 1).reshape(-1, c)
        best, limit = _least(least, limit, most - most // 16, most)
        some = best < slots * groups
        slot, at = best // groups, best % groups
        inside = values.reshape(-1, GROUP)[pick(place, slot) * groups + at]
        inside = jnp.where(some[:, :, None], inside, jnp.inf)
        begin, run = pick(begin, slot) + at * GROUP, GROUP
    else:
        inside, run = jnp.where(used, values[place], jnp.inf), width
    inside = inside.transpose(0, 2, 1).reshape(-1, c)
    row, limit = _least(inside, limit, most, most)
    position = pick(begin, row // run) + row % run
    return jnp.where(row < len(inside), position, jnp.iinfo(jnp.int32).max), limit


def _settle(index, queries, cells, found: Neighbours, done) -> Neighbours:
    """Searches every row, by differences, for the queries not done; distances are squared."""
    n, k = len(index.rows), found.indices.shape[1]
    queries = queries - index.origin

    def settle(state):
        found, done = state
        i = done.argmin()
        cell = jnp.searchsorted(index.offsets, jnp.arange(n), side="right") - 1
        inside = (cell[:, None] == cells[i]).any(1)
        exact = jnp.where(inside, costs(queries[i], index.rows, "euclidean"), jnp.inf)
        none = jnp.full(n + k, jnp.inf, exact.dtype)
        exact = none.at[index.indices].set(exact)  # in order of index
        exact, best = lax.top_k(-exact, k)
        found = jax.tree.map(lambda of, to: of.at[i].set(to), found, Neighbours(best, -exact))
        return found, done.at[i].set(True)

    return lax.while_loop(lambda state: ~state[1].all(), settle, (found, done))[0]
