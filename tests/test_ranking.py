"""Nearest neighbours against a float64 sort of all distances, ties by index."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from retrieval_jax.numerics.distances import centre
from retrieval_jax.ranking import Neighbours, nearest, share_kept
from retrieval_jax.ranking import cells as cluster_index


def oracle(queries, gallery, k) -> Neighbours:
    """Every distance in float64, sorted by (distance, index)."""
    difference = np.asarray(queries, np.float64)[:, None] - np.asarray(gallery, np.float64)
    distances = np.sqrt((difference**2).sum(2))
    distances = np.pad(distances, ((0, 0), (0, k)), constant_values=np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    distances = np.take_along_axis(distances, order, 1)
    return Neighbours(np.where(np.isinf(distances), -1, order), distances)


def assert_equal(found: Neighbours, expected: Neighbours) -> None:
    assert found.indices.dtype == np.int32 and found.distances.dtype == np.float32
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-6)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("q", "n", "d", "k"), [(7, 1003, 13, 5), (65, 331, 1, 40), (1, 17, 3, 1), (3, 5, 2, 5)]
)
def test_nearest_equals_a_float64_sort(q, n, d, k):
    queries, gallery = normal(q, d, seed=1), normal(n, d, seed=2)
    assert_equal(nearest(queries, gallery, k), oracle(queries, gallery, k))


@pytest.mark.parametrize("chunks", [(3, 50), (64, 4000)])
def test_chunks_change_nothing(chunks):
    queries, gallery = normal(11, 9, seed=1), normal(333, 9, seed=2)
    query_chunk, gallery_chunk = chunks
    found = nearest(queries, gallery, 20, query_chunk=query_chunk, gallery_chunk=gallery_chunk)
    assert_equal(found, oracle(queries, gallery, 20))


def test_far_from_zero_ranks_as_float64_does():
    queries, gallery = 1e4 + normal(20, 16, seed=1), 1e4 + normal(500, 16, seed=2)
    assert_equal(nearest(queries, gallery, 50), oracle(queries, gallery, 50))


def test_far_groups_rank_finer_than_the_products_resolve():
    # No centre is near both groups: the scores of close rows are rounded into wrong orders.
    side = np.where(np.arange(600) % 2, 300, -300).astype(np.float32)[:, None]
    queries, gallery = normal(200, 8, seed=1) + side[:200], normal(600, 8, seed=2) + side
    assert_equal(nearest(queries, gallery, 10), oracle(queries, gallery, 10))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_tiny_and_huge_scales(scale):
    scale = np.float32(scale)
    queries, gallery = scale * normal(20, 16, seed=1), scale * normal(500, 16, seed=2)
    assert_equal(nearest(queries, gallery, 50), oracle(queries, gallery, 50))


def test_a_query_inside_the_gallery_is_its_own_neighbour_at_zero():
    gallery = 300 + normal(200, 31)
    found = nearest(gallery[40:60], gallery, 3)
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(40, 60))
    assert (found.distances[:, 0] == 0).all() and (found.distances[:, 1] > 0).all()


def test_duplicates_come_in_order_of_index():
    # 30 distinct rows, each repeated across groups and tiles, more often than k.
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 33))
    gallery, queries = normal(30, 7)[rows], normal(9, 7, seed=1)
    found = nearest(queries, gallery, 10, query_chunk=4, gallery_chunk=320)
    assert_equal(found, oracle(queries, gallery, 10))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    arrays.arrays(np.int8, (6, 3), elements=st.integers(-2, 2)),
    arrays.arrays(np.int8, (97, 3), elements=st.integers(-2, 2)),
    st.sampled_from([0, 7, -10_000]),
)
def test_ties_of_integers_are_broken_by_index(queries, gallery, offset):
    queries, gallery = queries.astype(np.float32) + offset, gallery.astype(np.float32) + offset
    assert_equal(
        nearest(queries, gallery, 5, gallery_chunk=48, query_chunk=4), oracle(queries, gallery, 5)
    )


def test_fewer_than_k_are_filled_up():
    found = nearest(normal(2, 3), normal(4, 3, seed=1), 6)
    assert_equal(found, oracle(normal(2, 3), normal(4, 3, seed=1), 6))
    assert (found.indices[:, 4:] == -1).all() and np.isinf(found.distances[:, 4:]).all()


def test_under_jit_equal():
    queries, gallery = jnp.asarray(normal(5, 4, seed=1)), jnp.asarray(normal(60, 4, seed=2))
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.jit(lambda q, g: nearest(q, g, 7))(queries, gallery),
        nearest(queries, gallery, 7),
    )


def test_memory_holds_no_matrix_of_queries_by_gallery():
    q, n, d = 1000, 30_000, 8
    shapes = [jax.ShapeDtypeStruct((rows, d), jnp.float32) for rows in (q, n)]
    search = jax.jit(lambda q, g: nearest(q, g, 10, gallery_chunk=4096)).lower(*shapes).compile()
    assert search.memory_analysis().temp_size_in_bytes < 4 * q * n / 10


@pytest.mark.fast
def test_the_centre_keeps_points_on_their_grid():
    points = jnp.asarray(np.random.default_rng(0).integers(-3, 9, (50, 4)) / 4 + 100, jnp.float32)
    near = np.asarray(centre(points, 50))
    assert (near * 4 == np.round(near * 4)).all()
    assert (np.abs(near - points.mean(0)) < points.std()).all()


def test_share_kept_equals_a_count_of_sets():
    queries, gallery = normal(30, 3, seed=1), normal(200, 3, seed=2)
    labels = np.random.default_rng(0).integers(0, 3, 230)
    exhaustive = nearest(queries, gallery, 20)
    index = cluster_index.group(gallery, labels[30:], np.zeros((3, 3)))
    restricted = cluster_index.search_cells(index, queries, labels[:30, None], 20)
    for k in (1, 5, 20):
        pairs = zip(
            np.asarray(exhaustive.indices[:, :k]),
            np.asarray(restricted.indices[:, :k]),
            strict=True,
        )
        expected = np.mean([len(set(true) & set(found)) / k for true, found in pairs])
        assert float(share_kept(exhaustive, restricted, k)) == pytest.approx(expected, abs=1e-6)
        # A true neighbour is kept exactly if it is in the query's cluster.
        same = labels[30:][exhaustive.indices[:, :k]] == labels[:30, None]
        assert same.mean() == pytest.approx(expected, abs=1e-6)


@pytest.mark.fast
def test_share_kept_counts_no_missing_neighbours():
    exhaustive = Neighbours(np.array([[2, 0, -1], [1, 2, -1]]), np.zeros((2, 3)))
    restricted = Neighbours(np.array([[2, -1, -1], [1, 2, -1]]), np.zeros((2, 3)))
    assert float(share_kept(exhaustive, restricted, 3)) == 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1; it is 0"),
        ({"query_chunk": 0}, "at least 1"),
        ({"gallery_chunk": 0}, "at least 1"),
        ({"queries": np.zeros((2, 4))}, "queries have 4 features, but the gallery has 3"),
        ({"queries": np.zeros(3)}, r"queries must be a non-empty \[n, d\] array"),
        ({"queries": np.zeros((0, 4))}, "queries have 4 features, but the gallery has 3"),
        ({"queries": np.zeros((3, 0))}, "queries must be a non-empty"),
        ({"gallery": np.zeros((0, 3))}, "gallery must be a non-empty"),
        ({"queries": np.full((2, 3), np.nan)}, "queries must be finite"),
        ({"gallery": np.full((5, 3), np.inf)}, "gallery must be finite"),
    ],
)
@pytest.mark.fast
def test_wrong_arguments_are_named(arguments, message):
    valid = {"queries": np.zeros((2, 3)), "gallery": np.zeros((5, 3)), "k": 1}
    with pytest.raises(ValueError, match=message):
        nearest(**(valid | arguments))


@pytest.mark.fast
def test_share_kept_names_wrong_arguments():
    two, three = (Neighbours(np.zeros((q, 4), int), np.zeros((q, 4))) for q in (2, 3))
    with pytest.raises(ValueError, match="2 and 3 queries"):
        share_kept(two, three, 1)
    with pytest.raises(ValueError, match=r"k must be in 1\.\.4, the columns found; it is 5"):
        share_kept(two, two, 5)
