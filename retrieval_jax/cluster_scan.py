"""The search inside the cells of a cluster index, exact.

Work goes by block of rows, not by query: the (query, block) pairs are sorted by block, so that one
product bounds the distances of a block to many of the queries that probe it. Bounds in a few
principal components choose candidates and prove that nothing else can be nearer; queries whose
result that cannot prove are searched by bounds in all features, and those whose neighbours float32
products cannot tell apart one by one, from the differences to every row.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.distances import FULL_PRECISION, over_chunks
from retrieval_jax.ranking import Neighbours
from retrieval_jax.ranking.costs import Basis, bounds, costs
from retrieval_jax.selection import pick, rows_of_true, threshold
from retrieval_jax.sorting_network import in_order, smallest, sort_keys

# With the three features of the bounds a multiple of 8, which vectors are made of.
_COMPONENTS = 21
# Most variance that the other components may hold for the few to be worth a try.
_RESIDUE = 0.1
# Rows whose least bound stands for them in the first stage of the selection.
_GROUP = 8
# Bounds of a chunk of queries. So few (8 MB, twice that with the gaps of tiles) are allocated
# without new pages from the system, which take longer than the products; but a block should meet
# some queries, for which there may be 32 MB.
_BOUNDS, _MOST_BOUNDS, _PER_BLOCK = 2**21, 2**23, 8
# Bounds selected from together: so few stay in cache.
_SELECTED = 2**17
# Candidates up to which a sorting network is the fastest way to choose them.
_NETWORK = 32
# Numbers of rows that are gathered together, 4 MB.
_GATHERED = 2**20
# Tiles (queries of a block) in one batched product: less overhead, and still in cache.
_BATCH = 8

# Bounds [tiles, t, width] of the blocks [tiles] and the queries [tiles, t] with the given numbers.
_Bound = Callable[[jax.Array, jax.Array], jax.Array]


class _Blocks(NamedTuple):
    """Runs of at most a block's rows, all of one cell."""

    first: jax.Array  # int32 [cells + 1], the number of each cell's first block
    begin: jax.Array  # int32 [blocks], rows begin to end; none in those never used
    end: jax.Array


class _Found(NamedTuple):
    """The best rows so far of each query of a chunk, by distance, then index."""

    squared: jax.Array  # [k, c] squared distances from differences; infinite for none
    ids: jax.Array  # int32 [k, c] gallery indices
    bound: jax.Array  # [c] every row left out is farther


def block_bounds(rows: jax.Array, offsets: jax.Array, basis: Basis) -> jax.Array:
    """The `bounds` features of the rows in blocks, as the scan multiplies them.

    Args:
      rows: float32 [n, d], cell after cell.
      offsets: int32 [cells + 1], where each cell begins.
      basis: of the rows.

    Returns:
      float32 [blocks, features, width]; the bounds of places without a row are infinite.

    Example:
      >>> basis = Basis(jnp.zeros(2), jnp.eye(2), jnp.zeros(3))
      >>> block_bounds(jnp.ones((3, 2)), jnp.array([0, 1, 3]), basis).shape
      (2, 5, 8)
    """
    n, cells = len(rows), len(offsets) - 1
    # The mean cell: two blocks hold nearly all of them. A block and a pair share 31 bits.
    width = max(min(n // cells, 512), n // 2**14, 1)
    width = -(-width // _GROUP) * _GROUP
    blocks = _blocks(offsets, width, n // width + cells)
    components = min(_COMPONENTS, rows.shape[1])
    empty = jnp.zeros((len(blocks.end), components + 3, width), jnp.float32)

    def fill(b: jax.Array, out: jax.Array) -> jax.Array:
        at = blocks.begin[b] + jnp.arange(width)
        features, _ = bounds(rows.at[at].get(mode="clip"), basis, components, "euclidean")
        inside = at < blocks.end[b]
        features = jnp.where(inside[:, None], features, 0)
        features = features.at[:, -2].set(jnp.where(inside, features[:, -2], jnp.inf))
        return lax.dynamic_update_index_in_dim(out, features.T, b, 0)

    return lax.fori_loop(0, len(empty), fill, empty)


def _blocks(offsets, width, most) -> _Blocks:
    counts = -(-(offsets[1:] - offsets[:-1]) // width)
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    number = jnp.arange(most, dtype=jnp.int32)
    cell = jnp.searchsorted(first, number, side="right") - 1
    begin = offsets[cell] + (number - first[cell]) * width
    return _Blocks(first, begin, jnp.minimum(begin + width, offsets[cell + 1]))


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
    shape = (len(queries), k)
    none = Neighbours(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    state = none, jnp.zeros(len(queries), bool)
    for wanted, bound in (
        (index.basis.residue[index.features.shape[1] - 3] < _RESIDUE, _few_bounds),
        (True, _all_bounds),
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


def _few_bounds(index, blocks: _Blocks, queries: jax.Array) -> _Bound:
    _, asked = bounds(queries, index.basis, index.features.shape[1] - 3, "euclidean")

    def bound(block, number):
        return _products(asked[number], index.features[block])

    return bound


def _all_bounds(index, blocks: _Blocks, queries: jax.Array) -> _Bound:
    # All rounding is within slack × |x| |y|, as in `bounds`.
    keep = 1 - 4 * (queries.shape[1] + 16) * jnp.finfo(jnp.float32).eps
    norms = keep * (queries**2).sum(1)
    places = jnp.arange(index.features.shape[2])

    def bound(block, number):
        at = blocks.begin[block][:, None] + places
        rows = index.rows.at[at].get(mode="clip")
        squares = jnp.where(at < blocks.end[block][:, None], index.squares[at], jnp.inf)
        sums = norms[number][:, :, None] + keep * squares[:, None]
        return sums - 2 * _products(queries[number], rows.transpose(0, 2, 1))

    return bound


def _products(x, y) -> jax.Array:
    return jnp.matmul(x, y, precision=FULL_PRECISION)


def _sizes(index, probes: int, queries: int) -> tuple[int, int]:
    """Blocks of a query bounded in a round, queries of a chunk."""
    blocks, _, width = index.features.shape
    cells = len(index.centroids)
    fill = len(index.rows) / (cells * width)
    # So many that nearly no query needs a second round, which its neighbours would wait for.
    slots = min(2 + math.ceil(probes * (1.5 * fill + 0.65)), probes * math.ceil(fill + 2), 96)
    pairs = max(_BOUNDS // width, min(_MOST_BOUNDS // width, _PER_BLOCK * blocks))
    pairs = min(pairs, (2**31 - 1) // (blocks + 1))
    chunks = -(-queries // max(1, pairs // slots))
    return slots, -(-queries // chunks)


def _search(index, queries, cells, bounds_of, state):
    """Searches the queries not done; those whose result the bounds prove are then done."""
    old, done = state
    k = old.indices.shape[1]
    slots, chunk = _sizes(index, cells.shape[1], len(queries))
    blocks = _blocks(index.offsets, index.features.shape[2], len(index.features))
    # Those not done first, those near one another together: rows are then read from cache.
    turns = jnp.argsort(done * len(index.centroids) + cells[:, 0]).astype(jnp.int32)

    def step(i, out):
        start = jnp.minimum(i * chunk, len(queries) - chunk)
        number = lax.dynamic_slice_in_dim(turns, start, chunk)
        rows = queries[number] - index.origin
        bound = bounds_of(index, blocks, rows)
        new = _search_chunk(index, blocks, rows, cells[number], ~done[number], bound, slots, k)
        put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(put, out, new)

    left = (~done).sum()
    new, proven = lax.fori_loop(0, -(-left // chunk), step, (old, jnp.zeros_like(done)))
    back = jnp.zeros_like(turns).at[turns].set(jnp.arange(len(turns), dtype=jnp.int32))
    proven = proven[back] & ~done
    new = jax.tree.map(lambda to, of: jnp.where(proven[:, None], to[back], of), new, old)
    return new, done | proven


def _search_chunk(index, blocks, queries, cells, wanted, bound, slots, k):
    """The k nearest in the cells of queries [c, d], less the origin, where wanted; if proven."""
    c = len(queries)
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
        found = _search_blocks(index, blocks, queries, block, state[1], bound)
        return state[0] + slots, found

    none = _Found(jnp.full((k, c), jnp.inf), jnp.zeros((k, c), jnp.int32), jnp.full(c, jnp.inf))
    _, found = lax.while_loop(unfinished, search_round, (0, none))
    return Neighbours(found.ids.T, found.squared.T), found.squared[-1] <= found.bound


def _search_blocks(index, blocks, queries, block, found, bound) -> _Found:
    """Betters what was found by the rows of a block [slots, c] (its number, or too large)."""
    values, minima, place = _bound_pairs(index, block, bound)

    def select(out, start, rows, _):
        part = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=len(rows), axis=-1)
        here = lax.cond(
            (part(block) < len(blocks.end)).any(),
            partial(_select, index, blocks, rows, part(block), part(place), values, minima),
            lambda before: before,
            _Found(*map(part, found)),
        )
        put = partial(lax.dynamic_update_slice_in_dim, start_index=start, axis=-1)
        return _Found(*map(put, out, here))

    together = max(_SELECTED // (_GROUP * _most(len(found.ids))), 128)
    return over_chunks(queries, min(together, len(queries)), select, found)


def _bound_pairs(index, block, bound: _Bound):
    """Bounds of every (query, block) pair [slots, c], in tiles of queries of one block.

    Returns:
      values [places, width], infinite beyond the block's rows; their minima over groups
      [places, groups]; and the place [slots, c] of each pair in them.
    """
    blocks, _, width = index.features.shape
    c, pairs = block.shape[1], block.size
    # About as many queries as probe a block: no more than half of the places are gaps.
    tile = 1 << min(max(pairs // blocks, 1).bit_length() - 1, 4)
    tiles = -(-(pairs // tile + blocks) // _BATCH) * _BATCH
    number, turns = sort_keys(block.reshape(-1))
    begin = jnp.searchsorted(number, jnp.arange(blocks + 1)).astype(jnp.int32)
    counts = -(-(begin[1:] - begin[:-1]) // tile)
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    of_pair = first[number] * tile + jnp.arange(pairs) - begin[number]
    place = jnp.zeros(pairs, jnp.int32).at[turns].set(of_pair.astype(jnp.int32))
    # What no pair writes, none reads: the gaps hold any query.
    of_tile = jnp.searchsorted(first[1:], jnp.arange(tiles), side="right").clip(max=blocks - 1)
    pair = begin[of_tile] + (jnp.arange(tiles) - first[of_tile]) * tile
    asked = (turns % c)[(pair[:, None] + jnp.arange(tile)).clip(max=pairs - 1)]

    def step(state):
        at, values, minima = state
        part = partial(lax.dynamic_slice_in_dim, start_index=at, slice_size=_BATCH)
        new = bound(part(of_tile), part(asked))
        least = new.reshape(_BATCH * tile, -1, _GROUP).min(2)
        put = partial(lax.dynamic_update_slice_in_dim, start_index=at * tile, axis=0)
        return at + _BATCH, put(values, new.reshape(_BATCH * tile, -1)), put(minima, least)

    values = jnp.zeros((tiles * tile, width))
    minima = jnp.zeros((tiles * tile, width // _GROUP))
    state = (jnp.int32(0), values, minima)
    _, values, minima = lax.while_loop(lambda state: state[0] < first[-1], step, state)
    return values, minima, place.reshape(block.shape)


def _select(index, blocks, queries, block, place, values, minima, found: _Found) -> _Found:
    """What is best of the bounded rows of queries [c, d] and of what was found before."""
    k, c = found.squared.shape
    positions, limit = _candidates(blocks, block, place, values, minima, found.squared[-1], k)
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
    """Candidates for k neighbours: what the bounds cannot tell apart must fit."""
    return k + 7 * k // 16 + 12


def _candidates(blocks, block, place, values, minima, ceiling, k) -> tuple[jax.Array, jax.Array]:
    """Positions [most, c] in the rows, too large for none, of all bounds within a limit [c]."""
    (slots, c), (width, groups) = block.shape, (values.shape[1], minima.shape[1])
    most = _most(k)
    used = (block < len(blocks.end))[:, :, None]
    begin = blocks.begin.at[block].get(mode="clip")
    limit = ceiling
    if most < slots * groups:
        least = jnp.where(used, minima[place], jnp.inf).transpose(0, 2, 1).reshape(-1, c)
        best, limit = _least(least, limit, most - most // 16, most)
        some = best < slots * groups
        slot, at = best // groups, best % groups
        inside = values.reshape(-1, _GROUP)[pick(place, slot) * groups + at]
        inside = jnp.where(some[:, :, None], inside, jnp.inf)
        begin, run = pick(begin, slot) + at * _GROUP, _GROUP
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
        exact = jnp.full(n + k, jnp.inf).at[index.indices].set(exact)  # in order of index
        exact, best = lax.top_k(-exact, k)
        found = jax.tree.map(lambda of, to: of.at[i].set(to), found, Neighbours(best, -exact))
        return found, done.at[i].set(True)

    return lax.while_loop(lambda state: ~state[1].all(), settle, (found, done))[0]
