"""Bounds of the distances from queries to the rows of a cluster index, block by block.

Work goes by block of rows, not by query: the (query, block) pairs are sorted by block, so that one
product bounds the distances of a block to many of the queries that probe it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.numerics.bounds import Basis
from retrieval_jax.numerics.distances import FULL_PRECISION
from retrieval_jax.numerics.selection import sort_keys
from retrieval_jax.ranking._costs import bounds

# Rows whose least bound stands for them in the first stage of the selection.
GROUP = 8
# Tiles (queries of a block) in one batched product: less overhead, and still in cache.
_BATCH = 8

# Bounds [tiles, t, width] of the blocks [tiles] and the queries [tiles, t] with the given numbers.
Bound = Callable[[jax.Array, jax.Array], jax.Array]


class Blocks(NamedTuple):
    """Runs of at most a block's rows, all of one cell."""

    first: jax.Array  # int32 [cells + 1], the number of each cell's first block
    begin: jax.Array  # int32 [blocks], rows begin to end; none in those never used
    end: jax.Array


def block_bounds(rows: jax.Array, offsets: jax.Array, basis: Basis) -> jax.Array:
    """The `bounds` features of the rows in blocks, as the scan multiplies them.

    Args:
      rows: [n, d], cell after cell.
      offsets: int32 [cells + 1], where each cell begins.
      basis: of the rows.

    Returns:
      [blocks, features, width] of the rows' type; the bounds of places without a row are infinite.

    Example:
      >>> basis = Basis(jnp.zeros(2), jnp.eye(2), jnp.zeros(()))
      >>> block_bounds(jnp.ones((3, 2)), jnp.array([0, 1, 3]), basis).shape
      (2, 5, 8)
    """
    n, cells = len(rows), len(offsets) - 1
    # The mean cell: two blocks hold nearly all of them. A block and a pair share 31 bits.
    width = max(min(n // cells, 512), n // 2**14, 1)
    width = -(-width // GROUP) * GROUP
    blocks = blocks_of(offsets, width, n // width + cells)
    empty = jnp.zeros((len(blocks.end), basis.vectors.shape[1] + 3, width), rows.dtype)

    def fill(b: jax.Array, out: jax.Array) -> jax.Array:
        at = blocks.begin[b] + jnp.arange(width)
        features, _ = bounds(rows.at[at].get(mode="clip"), basis, "euclidean")
        inside = at < blocks.end[b]
        features = jnp.where(inside[:, None], features, 0)
        features = features.at[:, -2].set(jnp.where(inside, features[:, -2], jnp.inf))
        return lax.dynamic_update_index_in_dim(out, features.T, b, 0)

    return lax.fori_loop(0, len(empty), fill, empty)


def blocks_of(offsets: jax.Array, width: int, most: int) -> Blocks:
    """Cells cut into blocks of `width` rows, places for `most` of them.

    Example:
      >>> blocks_of(jnp.array([0, 3, 4]), width=2, most=4).begin.tolist()[:3]
      [0, 2, 3]
    """
    counts = -(-(offsets[1:] - offsets[:-1]) // width)
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    number = jnp.arange(most, dtype=jnp.int32)
    cell = jnp.searchsorted(first, number, side="right") - 1
    begin = offsets[cell] + (number - first[cell]) * width
    return Blocks(first, begin, jnp.minimum(begin + width, offsets[cell + 1]))


def few_bounds(index, blocks: Blocks, queries: jax.Array) -> Bound:
    """Bounds in a few principal components, for queries [c, d] less the origin."""
    _, asked = bounds(queries, index.basis, "euclidean")

    def bound(block, number):
        return _products(asked[number], index.features[block])

    return bound


def all_bounds(index, blocks: Blocks, queries: jax.Array) -> Bound:
    """Bounds in all features, for queries [c, d] less the origin."""
    # All rounding is within slack × |x| |y|, as in `bounds`.
    keep = 1 - 4 * (queries.shape[1] + 16) * jnp.finfo(queries.dtype).eps
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


def empty_space(index, pairs: int) -> tuple[jax.Array, jax.Array]:
    """Space for the bounds of so many (query, block) pairs [places, width], and for group minima.

    What it holds is never read before it is written.
    """
    tile, tiles = _tiles(index, pairs)
    width = index.features.shape[2]
    places, dtype = tiles * tile, index.features.dtype
    return jnp.zeros((places, width), dtype), jnp.zeros((places, width // GROUP), dtype)


def bound_pairs(index, block: jax.Array, bound: Bound, space: tuple[jax.Array, jax.Array]):
    """Bounds of every (query, block) pair [slots, c], in tiles of queries of one block.

    Returns:
      The space filled: values [places, width], infinite beyond the block's rows, and their minima
      over groups [places, groups]; and the place [slots, c] of each pair in them.
    """
    blocks, _, width = index.features.shape
    c, pairs = block.shape[1], block.size
    tile, tiles = _tiles(index, pairs)
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
        least = new.reshape(_BATCH * tile, -1, GROUP).min(2)
        put = partial(lax.dynamic_update_slice_in_dim, start_index=at * tile, axis=0)
        return at + _BATCH, put(values, new.reshape(_BATCH * tile, -1)), put(minima, least)

    state = (jnp.int32(0), *space)
    _, values, minima = lax.while_loop(lambda state: state[0] < first[-1], step, state)
    return (values, minima), place.reshape(block.shape)


def _tiles(index, pairs: int) -> tuple[int, int]:
    """Queries of a tile, and tiles enough for so many pairs."""
    blocks = len(index.features)
    # About as many queries as probe a block: no more than half of the places are gaps.
    tile = 1 << min(max(pairs // blocks, 1).bit_length() - 1, 4)
    return tile, -(-(pairs // tile + blocks) // _BATCH) * _BATCH
