"""Searches under every setting: types, magnitudes, options, kinds of arguments, derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from sklearn.neighbors import NearestNeighbors
from test_ranking_search import METRICS, pairwise

from retrieval_jax import sharded
from retrieval_jax.ranking import cells, nearest, nearest_streamed, share_kept, within_radius

truth = partial(pairwise, dtype=np.longdouble)  # the longest there is


def assert_nearest(found, queries, gallery, k, metric="euclidean", allowed=None, rounding=1e-6):
    distances = truth(queries, gallery, metric)
    distances = distances if allowed is None else np.where(allowed, distances, np.inf)
    distances = np.pad(distances, ((0, 0), (0, k)), constant_values=np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    expected = np.take_along_axis(distances, order, 1)
    got = np.asarray(found.distances, np.longdouble) * (-1 if metric == "inner_product" else 1)
    np.testing.assert_allclose(got, expected, rtol=rounding, atol=rounding * (metric == "cosine"))
    np.testing.assert_array_equal(found.indices, np.where(np.isinf(expected), -1, order))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def close_rows(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries [9, d] and rows [400, d] whose order float32 can't tell."""
    gallery = np.repeat(normal(40, d), 10, 0) + 1e-9 * normal(400, d, seed=1)
    return gallery[::45] + 1e-3 * normal(9, d, seed=2), gallery


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("metric", "d"), [("euclidean", 70), ("cosine", 6), ("inner_product", 6)])
def test_float64_is_searched_in_float64(x64, metric, d):
    # 70 features and 300 rows are enough for both kinds of bounds; few are searched without.
    queries, gallery = close_rows(d)
    gallery = gallery[: None if d == 70 else 120]
    found = nearest(queries, gallery, 4, metric=metric, gallery_chunk=300)
    assert found.indices.dtype == np.int32 and found.distances.dtype == np.float64
    assert_nearest(found, queries, gallery, 4, metric, rounding=1e-12)


def test_float64_in_a_stream_in_shards_and_in_cells(x64):
    queries, gallery = close_rows(6)
    found = nearest_streamed(queries, gallery, 4, gallery_chunk=150)
    assert_nearest(found, queries, gallery, 4, rounding=1e-12)
    found = sharded.nearest(queries, gallery, 4)
    assert_nearest(found, queries, gallery, 4, rounding=1e-12)
    labels = np.arange(400) % 3
    asked = np.array([[0, 2]] * 9)
    index = cells.group(gallery, labels, gallery[:3])
    found = cells.search_cells(index, queries, asked, 4)
    allowed = np.isin(labels, [0, 2])[None]
    assert found.distances.dtype == np.float64
    assert_nearest(found, queries, gallery, 4, allowed=allowed, rounding=1e-12)


def test_an_index_of_float64_is_built_and_grows(x64):
    queries, gallery = close_rows(6)
    index = cells.add(cells.build(jax.random.key(0), gallery[:350], 3), gallery[350:])
    assert index.rows.dtype == index.centroids.dtype == np.float64
    np.testing.assert_allclose(
        cells.reconstruct(index, np.arange(400)), gallery, rtol=1e-14, atol=1e-15
    )
    # The cells of each row, by its place.
    labels = np.empty(400, int)
    labels[index.indices] = np.repeat(np.arange(3), np.diff(index.offsets))
    found = cells.search_cells(index, queries, [[0, 2]] * 9, 4)
    allowed = np.isin(labels, [0, 2])[None]
    assert_nearest(found, queries, gallery, 4, allowed=allowed, rounding=1e-12)


def test_float32_stays_float32_under_64_bits(x64):
    queries, gallery = (np.float32(of) for of in close_rows(6))
    for search in (nearest, partial(nearest_streamed, gallery_chunk=150)):
        found = search(queries, gallery[:150], 3)
        assert found.distances.dtype == np.float32
        near = np.sort(truth(queries, gallery[:150], "euclidean"), 1)[:, :3]
        np.testing.assert_allclose(found.distances, np.float64(near), rtol=1e-5)
    index = jax.eval_shape(cells.group, gallery, np.arange(400) % 3, gallery[:3])
    inside = jax.eval_shape(lambda *of: cells.search(*of, 3, probes=2), index, queries)
    assert index.rows.dtype == inside.distances.dtype == np.float32
    assert share_kept(found, found, 2).dtype == np.float32


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e18, 1e25])
def test_any_magnitude(scale):
    queries, gallery = (np.float32(of[:150]) * np.float32(scale) for of in close_rows(6))
    queries = queries + np.float32(1e-3 * scale) * normal(9, 6).astype(np.float32)
    for metric in ("euclidean", "cosine"):
        found = nearest(queries, gallery, 3, metric=metric)
        expected = truth(queries, gallery, metric)
        near = np.sort(expected, 1)[:, :3]
        own = np.take_along_axis(expected, np.asarray(found.indices), 1)
        # Of lengths 1 float32 rounds squared distances by 1e-7.
        rounding = {"rtol": 1e-6, "atol": 4e-7 if metric == "cosine" else 0}
        for got in (found.distances, own):
            np.testing.assert_allclose(np.float64(got), np.float64(near), **rounding)
    # What has no float32 keeps its order.
    ordered = nearest(queries, gallery, 3, metric="sqeuclidean").indices
    np.testing.assert_array_equal(ordered, nearest(queries, gallery, 3).indices)


def test_a_stream_of_tiles_of_unlike_magnitudes():
    gallery = np.concatenate([normal(40, 6) * size for size in (1e-20, 1e15, 1e-25, 1.0)])
    gallery = gallery.astype(np.float32)
    queries = np.concatenate([gallery[[3, 150]], np.float32([[1e-21] * 6])])
    found = nearest_streamed(queries, gallery, 5, gallery_chunk=40)
    # The tile of 1e15 leaves differences of 1e-13.
    expected = truth(queries, gallery, "euclidean")
    own = np.take_along_axis(expected, np.asarray(found.indices), 1)
    np.testing.assert_allclose(np.float64(own), np.sort(expected, 1)[:, :5], rtol=1e-6, atol=1e-12)


def test_an_index_names_the_magnitudes_that_it_takes():
    for scale in (1e-20, 1e18):
        with pytest.raises(ValueError, match="largest magnitude of gallery must be 0, or 1e-15 to"):
            cells.group(scale * normal(4, 2), [0, 0, 1, 1], np.eye(2))
    index = cells.group(normal(4, 2), [0, 0, 1, 1], np.eye(2))
    with pytest.raises(ValueError, match="largest magnitude of queries"):
        cells.search(index, np.full((1, 2), 1e17), 1, probes=1)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    metric=st.sampled_from(METRICS),
    exclude_self=st.booleans(),
    labelled=st.booleans(),
    masked=st.booleans(),
)
def test_every_combination_of_options(seed, metric, exclude_self, labelled, masked):
    rng, k = np.random.default_rng(seed), 50  # all that may be found
    gallery = rng.normal(size=(40, 3)).astype(np.float32)
    queries = gallery[:7] if exclude_self else rng.normal(size=(7, 3)).astype(np.float32)
    allowed, options = np.ones((7, 40), bool), {}
    if exclude_self:
        allowed &= ~np.eye(7, 40, dtype=bool)
    if labelled:
        of_queries, of_gallery = rng.integers(-1, 4, 7), rng.integers(-1, 4, 40)
        options |= {"query_labels": of_queries, "gallery_labels": of_gallery}
        allowed &= (of_queries[:, None] == of_gallery) & (of_queries[:, None] >= 0)
    if masked:
        options["mask"] = rng.random(40) < 0.5
        allowed &= options["mask"]
    found = nearest(queries, gallery, k, metric=metric, exclude_self=exclude_self, **options)
    # float32 rounds distances near 0 by as much as those of length 1.
    distances = np.where(allowed, truth(queries, gallery, metric), np.inf)
    expected = np.sort(np.pad(distances, ((0, 0), (0, k)), constant_values=np.inf), 1)[:, :k]
    got = np.asarray(found.distances) * (-1 if metric == "inner_product" else 1)
    np.testing.assert_allclose(got, np.float64(expected), rtol=1e-5, atol=1e-6)
    missing = np.asarray(found.indices) < 0
    np.testing.assert_array_equal(missing, np.isinf(expected))
    own = np.take_along_axis(distances, np.where(missing, 0, found.indices), 1)
    np.testing.assert_allclose(own[~missing], expected[~missing], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_derivatives_are_those_of_finite_differences(x64, metric):
    queries, gallery = normal(4, 3), normal(40, 3, seed=1)
    weights = normal(4, 5, seed=2)

    def total(queries, gallery):
        return (weights * nearest(queries, gallery, 5, metric=metric).distances).sum()

    def all_of(queries, gallery):
        return (weights * np.sort(truth(queries, gallery, metric), 1)[:, :5]).sum()

    sign = -1 if metric == "inner_product" else 1
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(queries, gallery)
    step = 1e-6
    for which, at in ((0, (1, 2)), (0, (3, 0)), *((1, (int(i), 1)) for i in range(0, 40, 9))):
        moved = [[queries.copy(), gallery.copy()] for _ in range(2)]
        moved[0][which][at] += step
        moved[1][which][at] -= step
        slope = sign * (all_of(*moved[0]) - all_of(*moved[1])) / (2 * step)
        assert float(gradients[which][at]) == pytest.approx(float(slope), abs=1e-7)
    # Forward mode follows the same rule.
    direction = normal(4, 3, seed=3)
    _, slope = jax.jvp(partial(total, gallery=gallery), (queries,), (direction,))
    assert float(slope) == pytest.approx(float((gradients[0] * direction).sum()), abs=1e-9)


def test_derivatives_are_finite_where_distances_are_0_or_missing():
    gallery = normal(4, 3).astype(np.float32)

    def total(queries):
        found = nearest(queries, gallery, 6, mask=np.arange(4) < 3)
        return jnp.where(found.indices >= 0, found.distances, 0).sum()

    gradient = jax.grad(total)(jnp.asarray(gallery[:2]))
    difference = np.float64(gallery[:2, None] - gallery[:3])
    lengths = np.linalg.norm(difference, axis=2, keepdims=True)
    np.testing.assert_allclose(
        gradient, (difference / np.where(lengths, lengths, 1)).sum(1), rtol=1e-5
    )


def test_derivatives_over_shards_are_those_of_one_device():
    queries, gallery = (normal(n, 3, seed=n).astype(np.float32) for n in (4, 40))
    mesh = Mesh(np.array(jax.devices()[:4]), ("shard",))
    spread = jax.shard_map(
        lambda q, g: nearest(q, g, 5, axis_name="shard").distances,
        mesh=mesh,
        in_specs=(P(), P("shard")),
        out_specs=P(),
        check_vma=False,
    )
    one, many = (
        jax.jit(jax.grad(lambda q, g, of=of: (of(q, g) ** 3).sum(), argnums=(0, 1)))(
            queries, gallery
        )
        for of in (lambda q, g: nearest(q, g, 5).distances, spread)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), many, one)


def test_no_queries_find_nothing():
    none, gallery = np.zeros((0, 3), np.float32), normal(40, 3)
    index = cells.group(gallery, np.arange(40) % 2, gallery[:2])
    for found in (
        nearest(none, gallery, 5),
        nearest(none, gallery, 5, query_labels=np.zeros(0, int), gallery_labels=np.zeros(40, int)),
        nearest_streamed(none, gallery, 5),
        sharded.nearest(none, gallery, 5),
        cells.search(index, none, 5, probes=1),
        cells.search_cells(index, none, np.zeros((0, 2), int), 5),
        sharded.search_cells(none, np.zeros((0, 2), int), gallery, np.arange(40) % 2, np.eye(3), 5),
    ):
        assert found.indices.shape == found.distances.shape == (0, 5)
        assert found.indices.dtype == np.int32 and found.distances.dtype == np.float32
    with pytest.raises(ValueError, match="queries have 2 features, but the gallery has 3"):
        nearest(np.zeros((0, 2)), gallery, 5)


def test_counts_may_be_of_numpy_and_jax_but_not_floats():
    queries, gallery = normal(7, 3), normal(40, 3, seed=1)
    index = cells.group(gallery, np.zeros(40, int), gallery[:1])
    searches = (
        nearest,
        nearest_streamed,
        sharded.nearest,
        lambda q, g, k: cells.search_cells(index, q, np.zeros((7, 1), int), k),
    )
    for search in searches:
        for k in (np.int64(3), jnp.int32(3)) if search is not sharded.nearest else ():
            assert search(queries, gallery, k).indices.shape == (7, 3)
        for k in (2.0, "2", None):
            with pytest.raises(ValueError, match="k must be an integer"):
                search(queries, gallery, k)
        with pytest.raises(ValueError, match="k must be at least 1; it is 0"):
            search(queries, gallery, 0)
    with pytest.raises(ValueError, match="not traced by jit"):
        jax.jit(lambda k: nearest(queries, gallery, k).indices)(3)


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.uint32])
def test_labels_of_64_bits_keep_apart(kind):
    queries, gallery = normal(7, 3), normal(40, 3, seed=1)
    base = 2**31 if kind == np.uint32 else 2**32
    there = np.array([base + 5, 5, 6, 7], kind)[np.arange(40) % 4]
    asked = np.array([5, base + 5, base + 6, 6, 7, 8, 5], kind)
    found = nearest(queries, gallery, 50, query_labels=asked, gallery_labels=there)
    for row, label in zip(np.asarray(found.indices), asked, strict=True):
        assert set(row[row >= 0]) == set(np.flatnonzero(there == label))


def test_labels_that_are_text_are_named():
    with pytest.raises(ValueError, match="query_labels must be 1 integers; they are <U1"):
        nearest([[0.0]], [[1.0]], 1, query_labels=["a"], gallery_labels=["b"])


def test_shards_name_the_sizes_that_were_given():
    gallery = normal(41, 3)
    with pytest.raises(ValueError, match="43 queries and 41 rows"):
        sharded.nearest(normal(43, 3), gallery, 2, exclude_self=True)
    with pytest.raises(ValueError, match="gallery_chunk must be at least 1"):
        sharded.nearest(gallery, gallery, 2, gallery_chunk=0)
    found = sharded.nearest(gallery, gallery, 2, exclude_self=True)
    assert_nearest(found, *(np.float32(gallery),) * 2, 2, allowed=~np.eye(41, dtype=bool))


def test_a_radius_finds_what_scikit_learn_does():
    queries, gallery = (normal(n, 3, seed=n).astype(np.float32) for n in (7, 40))
    index = NearestNeighbors(algorithm="brute").fit(gallery.astype(float))
    radii = np.linspace(0.3, 2, 7)
    found = within_radius(nearest(queries, gallery, 50), radii)
    for i, radius in enumerate(radii):
        distances, rows = index.radius_neighbors(queries[i : i + 1], radius)
        order = np.argsort(distances[0])
        count = len(order)
        assert found.indices[i, :count].tolist() == rows[0][order].tolist()
        np.testing.assert_allclose(found.distances[i, :count], distances[0][order], rtol=1e-6)
        assert (found.indices[i, count:] == -1).all() and np.isinf(found.distances[i, count:]).all()
    exact = within_radius(nearest([[0.0]], [[3.0], [2.0], [4.0]], 3), 3)
    assert exact.indices.tolist() == [[1, 0, -1]]
    with pytest.raises(ValueError, match="a number, or one a query, 7"):
        within_radius(found, np.ones(3))
