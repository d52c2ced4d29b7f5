"""The search inside the cells of a cluster index, exact.

Work goes by cell, not by query: the (query, block of rows) pairs are sorted by block, so that one
product scores a block for many of the queries that probe it. What a query keeps is selected in two
stages (groups of smallest minimum, then rows), its distances are taken from differences, and a
bound on everything left out proves the result; a query without proof (many equal distances) is
searched row by row.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.distances import FULL_PRECISION, over_chunks
from retrieval_jax.ranking import Neighbours
from retrieval_jax.sorting_network import in_order, smallest, sort_keys

# Rows whose minimum stands for them in the first stage.
_GROUP = 8
# Scores of one chunk of queries, 64 MB: fewer would leave too few queries a product.
_SCORES = 2**24
# Queries whose scores are selected together: so few stay in cache through the sorting network.
_SELECTED = 128


class _Blocks(NamedTuple):
    """Runs of at most a block's rows, all of one cell."""

    first: jax.Array  # int32 [cells + 1], the number of each cell's first block
    begin: jax.Array  # int32 [blocks], rows begin to end; none in those never used
    end: jax.Array


class _Found(NamedTuple):
    """The best rows so far of each query of a chunk."""

    positions: jax.Array  # int32 [m, c] in index.rows
    squared: jax.Array  # [m, c] squared distances from differences; infinite for none
    bound: jax.Array  # [c] no row left out scored less


@partial(jax.jit, static_argnums=3)
def scan(index, queries: jax.Array, cells: jax.Array, k: int) -> Neighbours:
    """The search of `cluster_index.search_cells`, its arguments checked.

    Args:
      index: `cluster_index.ClusterIndex`.
      queries: float32 [q, d].
      cells: int32 [q, probes], distinct in a row.
      k: neighbours a query, ≥ 1.

    Returns:
      `Neighbours`.

    Example:
      >>> from retrieval_jax.cluster_index import group
      >>> index = group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]])
      >>> scan(index, jnp.array([[1.5]]), jnp.array([[0]]), 2).indices.tolist()
      [[2, 0]]
    """
    n, count = len(index.rows), len(index.centroids)
    width, slots, chunk = _sizes(n, count, cells.shape[1], len(queries))
    if n < width:
        index = index._replace(
            rows=jnp.pad(index.rows, ((0, width - n), (0, 0))),
            squares=jnp.pad(index.squares, (0, width - n)),
            indices=jnp.pad(index.indices, (0, width - n)),
        )
    blocks = _blocks(index.offsets, width, n // width + count)

    def step(out, start, rows, _):
        here = lax.dynamic_slice_in_dim(cells, start, chunk)
        best = _search_chunk(index, blocks, rows - index.origin, here, k, width, slots)
        return jax.tree.map(
            lambda whole, new: lax.dynamic_update_slice_in_dim(whole, new, start, 0), out, best
        )

    shape = (len(queries), k)
    none = Neighbours(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    return over_chunks(queries, chunk, step, none)


def _sizes(n: int, cells: int, probes: int, queries: int) -> tuple[int, int, int]:
    """Rows of a block, blocks of a query scored in a round, queries of a chunk."""
    # Nearly all cells fit a block of 7/4 the mean. Block and pair share 31 bits.
    width = max(min(n * 7 // (cells * 4), 512), n // 2**14, 1)
    width = -(-width // _GROUP) * _GROUP
    fill = n / (cells * width)
    slots = min(1 + math.ceil(probes * (fill + 0.65)), probes * math.ceil(fill + 1), 64)
    pairs = min(_SCORES // width, (2**31 - 1) // (n // width + cells + 1))
    chunks = -(-queries // max(1, pairs // slots))
    return width, slots, -(-queries // chunks)


def _blocks(offsets, width, most) -> _Blocks:
    counts = -(-(offsets[1:] - offsets[:-1]) // width)
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    number = jnp.arange(most, dtype=jnp.int32)
    cell = jnp.searchsorted(first, number, side="right") - 1
    begin = offsets[cell] + (number - first[cell]) * width
    return _Blocks(first, begin, jnp.minimum(begin + width, offsets[cell + 1]))


def _search_chunk(index, blocks, queries, cells, k, width, slots) -> Neighbours:
    """The k nearest in the cells of a chunk of queries [c, d], less the origin."""
    kept = k + k // 16 + 3  # spare rows prove more queries right
    last = jnp.cumsum(blocks.first[cells + 1] - blocks.first[cells], axis=1)

    def unfinished(state) -> jax.Array:
        return (last[:, -1] > state[0]).any()

    def search_round(state):
        # Blocks of a query are numbered through its cells; this round has `slots` of them.
        number = state[0] + jnp.arange(slots)[:, None]
        at = (number[:, :, None] >= last).sum(2)
        cell = jnp.take_along_axis(cells.T, jnp.minimum(at, cells.shape[1] - 1), 0)
        from_last = number - jnp.take_along_axis(last.T, jnp.minimum(at, cells.shape[1] - 1), 0)
        block = jnp.where(at < cells.shape[1], blocks.first[cell + 1] + from_last, len(blocks.end))
        found = _search_blocks(index, blocks, queries, block, state[1], width)
        return state[0] + slots, found

    shape = (kept, len(queries))
    none = _Found(
        jnp.zeros(shape, jnp.int32), jnp.full(shape, jnp.inf), jnp.full(len(queries), jnp.inf)
    )
    _, found = lax.while_loop(unfinished, search_round, (0, none))
    squared, ids = in_order(found.squared, index.indices[found.positions])
    squared, ids = squared[:k], ids[:k]
    # Both the scores and the differences round, by at most this share of the lengths squared.
    rounding = (queries.shape[1] + 4) * jnp.finfo(jnp.float32).eps
    slack = rounding * (2 * jnp.linalg.norm(queries, axis=1) + jnp.sqrt(squared[-1])) ** 2
    unproven = jnp.isfinite(found.bound) & ~(found.bound > squared[-1] + slack)
    squared, ids = _settle(index, queries, cells, unproven, squared, ids)
    return Neighbours(jnp.where(jnp.isfinite(squared), ids, -1).T, jnp.sqrt(squared).T)


def _search_blocks(index, blocks, queries, block, found, width) -> _Found:
    """Betters what was found by the rows of a block [slots, c] (its number, or too large)."""
    values, minima, place = _score(index, blocks, queries, block, width)

    def select(out, start, rows, _):
        part = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=len(rows), axis=-1)
        before = _Found(*map(part, found))
        here = _select(index, blocks, rows, part(block), part(place), values, minima, before)
        put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=-1)
        return _Found(*map(put, out, here))

    return over_chunks(queries, min(_SELECTED, len(queries)), select, found)


def _select(index, blocks, queries, block, place, values, minima, found) -> _Found:
    """What is best of the scores of queries [c, d] and of what was found before."""
    kept, c = found.squared.shape
    width, groups = values.shape[1], minima.shape[1]
    norms = (queries**2).sum(1)[:, None]
    used = (block < len(blocks.end))[:, :, None]
    least = jnp.where(used, minima[place] + norms, jnp.inf)  # [slots, c, groups]
    least = least.transpose(0, 2, 1).reshape(-1, c)
    group_bound, best = smallest(least, min(kept, len(least)))
    slot, at = best // groups, best % groups
    scored = jnp.take_along_axis(place, slot, 0) * groups + at
    scored = (values.reshape(-1, _GROUP)[scored] + norms).transpose(0, 2, 1)
    some = jnp.isfinite(jnp.take_along_axis(least, best, 0))[:, None]
    scored = jnp.where(some, scored, jnp.inf).reshape(-1, c)
    begin = _slice_start(index, blocks, jnp.take_along_axis(block, slot, 0), width) + at * _GROUP
    positions = (begin[:, None] + jnp.arange(_GROUP)[:, None]).reshape(-1, c)

    scored = jnp.concatenate([scored, found.squared])
    positions = jnp.concatenate([positions, found.positions])
    bound, best = smallest(scored, kept)
    positions = jnp.take_along_axis(positions, best, 0)
    some = jnp.isfinite(jnp.take_along_axis(scored, best, 0))
    squared = jnp.where(some, _squared(index.rows, queries, positions), jnp.inf)
    return _Found(positions, squared, jnp.minimum(found.bound, jnp.minimum(group_bound, bound)))


def _slice_start(index, blocks, number, width) -> jax.Array:
    """First of the rows read for a block: those at the end of the gallery are read early."""
    return jnp.minimum(blocks.begin[number], len(index.rows) - width)


def _score(index, blocks, queries, block, width):
    """Scores of every (query, block) pair, sorted by block.

    Returns:
      values [pairs, width], |row|² - 2 row·query, infinite beyond the block's rows; their minima
      over groups [pairs, groups]; and where [slots, c] each pair is in them.
    """
    c, pairs = block.shape[1], block.size
    number, turns = sort_keys(block.reshape(-1))
    place = jnp.zeros(pairs, jnp.int32).at[turns].set(jnp.arange(pairs, dtype=jnp.int32))
    stop = jnp.searchsorted(number, jnp.arange(len(blocks.end)), side="right")
    # About as many queries as probe a block, a power of two.
    tile = min(max(1 << (pairs // (2 * len(blocks.end))).bit_length(), 8), 64)
    # In order beforehand: gathered a tile at a time they would cost as much as the products.
    ordered = jnp.pad(queries[turns % c], ((0, tile), (0, 0)))

    def score(state):
        at, values, minima = state
        here = number[at]
        begin = _slice_start(index, blocks, here, width)
        part = partial(lax.dynamic_slice_in_dim, start_index=begin, slice_size=width)
        position = begin + jnp.arange(width)
        inside = (position >= blocks.begin[here]) & (position < blocks.end[here])
        bias = jnp.where(inside, part(index.squares), jnp.inf)
        rows = lax.dynamic_slice_in_dim(ordered, at, tile)
        new = bias - 2 * jnp.dot(rows, part(index.rows).T, precision=FULL_PRECISION)
        least = new.reshape(tile, -1, _GROUP).min(2)
        # Rows past this block's pairs are overwritten by the next one's.
        put = partial(lax.dynamic_update_slice_in_dim, start_index=at, axis=0)
        return jnp.minimum(at + tile, stop[here]), put(values, new), put(minima, least)

    used = (number < len(blocks.end)).sum()
    # What no pair writes, none reads.
    values = jnp.zeros((pairs + tile, width))
    minima = jnp.zeros((pairs + tile, width // _GROUP))
    _, values, minima = lax.while_loop(lambda s: s[0] < used, score, (jnp.int32(0), values, minima))
    return values, minima, place.reshape(block.shape)


def _squared(rows, queries, positions) -> jax.Array:
    """Squared distances [m, c] from differences, of queries [c, d] and rows at positions [m, c]."""

    def of_one(pair):
        query, at = pair
        return ((query - rows[at]) ** 2).sum(1)

    return lax.map(of_one, (queries, positions.T), batch_size=min(32, len(queries))).T


def _settle(index, queries, cells, unproven, squared, ids) -> tuple[jax.Array, jax.Array]:
    """Searches every row, by differences, for the queries whose result is not proven."""
    n, k = index.offsets[-1], len(squared)
    last = len(index.rows) - 1

    def settle(state):
        unproven, squared, ids = state
        i = jnp.argmax(unproven)
        cell = jnp.searchsorted(index.offsets, jnp.arange(last + 1), side="right") - 1
        inside = (cell[:, None] == cells[i]).any(1) & (jnp.arange(last + 1) < n)
        exact = jnp.where(inside, ((queries[i] - index.rows) ** 2).sum(1), jnp.inf)
        exact = jnp.full(last + 1 + k, jnp.inf).at[index.indices].min(exact)  # in order of index
        exact, best = lax.top_k(-exact, k)
        put = lambda whole, new: whole.at[:, i].set(new)  # noqa: E731
        return unproven.at[i].set(False), put(squared, -exact), put(ids, best)

    return lax.while_loop(lambda state: state[0].any(), settle, (unproven, squared, ids))[1:]
