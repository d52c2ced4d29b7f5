"""The exhaustive search by every metric and on every path, against float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from retrieval_jax.ranking import Neighbours, exact, nearest, nearest_streamed, share_kept
from retrieval_jax.ranking._costs import as_compared, bounds, costs, find_basis

METRICS = ["euclidean", "sqeuclidean", "cosine", "inner_product"]


def pairwise(queries, gallery, metric, dtype=np.float64) -> np.ndarray:
    """All distances [q, n] in a long float; products negated, so that the smallest is nearest."""
    x, y = np.asarray(queries, dtype), np.asarray(gallery, dtype)
    if metric == "inner_product":
        return -(x @ y.T)
    if metric == "cosine":
        x, y = (of / np.maximum(np.linalg.norm(of, axis=1), 1e-300)[:, None] for of in (x, y))
        return 1 - x @ y.T
    squared = ((x[:, None] - y) ** 2).sum(2)
    return squared if metric == "sqeuclidean" else np.sqrt(squared)


def assert_nearest(found, queries, gallery, k, metric="euclidean", allowed=None, rounding=1e-6):
    """The same indices as a stable float64 sort, apart from ties to rounding."""
    truth = pairwise(queries, gallery, metric)
    truth = truth if allowed is None else np.where(allowed, truth, np.inf)
    truth = np.pad(truth, ((0, 0), (0, k)), constant_values=np.inf)
    order = np.argsort(truth, axis=1, kind="stable")[:, :k]
    expected = np.take_along_axis(truth, order, 1)
    order = np.where(np.isinf(expected), -1, order)
    indices, distances = np.asarray(found.indices), np.asarray(found.distances, np.float64)
    assert indices.dtype == np.int32 and found.distances.dtype == np.float32
    distances = -distances if metric == "inner_product" else distances
    np.testing.assert_allclose(distances, expected, rtol=rounding, atol=2e-7 * (metric == "cosine"))
    own = np.take_along_axis(truth, np.where(indices < 0, truth.shape[1] - 1, indices), 1)
    tied = np.isclose(own, expected, rtol=rounding, atol=2e-7 * (metric == "cosine"))
    assert ((indices == order) | (tied & np.isfinite(expected))).all()
    assert (indices == order).mean() > 0.999
    found_rows = np.where(indices < 0, -1 - np.arange(k), indices)
    assert (np.diff(np.sort(found_rows, 1), axis=1) > 0).all(), "a row is found twice"


def low_rank(n, d=64, seed=0) -> np.ndarray:
    """Rows with most of their variance in 8 components, far from 0."""
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(99).normal(size=(8, d))
    return (rng.normal(size=(n, 8)) @ axes + 0.1 * rng.normal(size=(n, d)) + 3).astype(np.float32)


def isotropic(n, d=64, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("make", [low_rank, isotropic])
def test_every_metric_and_path_ranks_as_float64_does(make, metric):
    queries, gallery = make(70, seed=1), make(3001, seed=2)
    # Several tiles; the last of both is ragged.
    found = nearest(queries, gallery, 5, metric=metric, query_chunk=32, gallery_chunk=1024)
    assert_nearest(found, queries, gallery, 5, metric)


def test_ten_thousand_queries_rank_as_float64_does():
    queries, gallery = low_rank(10_000, 128, seed=1), low_rank(4000, 128, seed=2)
    found = nearest(queries, gallery, 20)
    for start in range(0, 10_000, 500):
        part = slice(start, start + 500)
        some = jax.tree.map(lambda of, part=part: of[part], found)
        x, y = queries[part].astype(np.float64), gallery.astype(np.float64)
        squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        order = np.argpartition(squared, 20, axis=1)[:, :20]
        order = np.take_along_axis(
            order, np.argsort(np.take_along_axis(squared, order, 1), axis=1), 1
        )
        expected = np.sqrt(np.take_along_axis(squared, order, 1))
        np.testing.assert_allclose(some.distances, expected, rtol=1e-6)
        own = np.sqrt(np.take_along_axis(squared, np.asarray(some.indices), 1))
        np.testing.assert_allclose(own, expected, rtol=1e-6)
        assert (np.asarray(some.indices) == order).mean() > 0.999


@partial(jax.jit, static_argnums=(2, 3))
def _bounds_and_costs(gallery, queries, metric, components):
    basis, whole = find_basis(gallery, metric, jnp.float32(1), components), components == 12
    of_gallery, _ = bounds(gallery, basis, metric, whole=whole)
    _, of_queries = bounds(queries, basis, metric, whole=whole)
    bound = jnp.dot(of_gallery, of_queries.T, precision="highest").T
    return basis, bound, costs(queries[:, None], gallery, metric)


def bounds_and_costs(*arguments):
    return jax.tree.map(np.asarray, _bounds_and_costs(*arguments))


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "inner_product"])
@pytest.mark.parametrize("components", [1, 3, 12])
@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    arrays.arrays(np.int8, (9, 12)),
    arrays.arrays(np.int8, (5, 12)),
    st.sampled_from([(1.0, 0.0), (1e-6, 1.0), (1e8, 0.0), (1e-3, -10_000.0)]),
)
def test_bounds_are_never_above_the_cost(metric, components, gallery, queries, scaling):
    scale, offset = np.float32(scaling)
    gallery, queries = (
        as_compared(jnp.asarray(scale * (of / np.float32(100)) + offset), metric, jnp.float32(1))
        for of in (gallery, queries)
    )
    basis, bound, exact = bounds_and_costs(gallery, queries, metric, components)
    assert (bound <= exact).all()
    # With all components it is tight: a filter that lets everything through is none.
    if components == 12:
        length = [np.linalg.norm(of - basis.origin, axis=1) for of in (queries, gallery)]
        largest = (length[0][:, None] + length[1]) ** 2
        zero = (exact == 2) & (metric == "cosine")
        assert (zero | (bound >= exact - 1e-4 * largest)).all()


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    arrays.arrays(np.int8, (40, 3), elements=st.integers(-2, 2)),
    arrays.arrays(bool, 40),
)
def test_ties_zeros_and_duplicates_come_in_order_of_index(metric, rows, mask):
    gallery = rows.astype(np.float32)
    found = nearest(gallery, gallery, 7, metric=metric, mask=mask, exclude_self=True)
    allowed = mask & ~np.eye(40, dtype=bool)
    # Norms of parallel rows round differently: the cosine ties of (1, 1, 1) and (2, 2, 2) do not.
    if metric == "cosine":
        rows = [np.flatnonzero((row == gallery).all(1)) for row in gallery]
        for i, indices in enumerate(np.asarray(found.indices)):
            twins = [j for j in rows[i] if allowed[i, j] and gallery[i].any()][:7]
            assert sorted(indices[: len(twins)]) == sorted(indices[: len(twins)].tolist())
            cosines = pairwise(gallery[i : i + 1], gallery, metric)[0]
            same = (gallery[indices[:-1]] == gallery[indices[1:]]).all(1) & (indices[1:] >= 0)
            assert (np.diff(indices)[same] > 0).all()
            kept = indices[indices >= 0]
            expected = np.sort(cosines[allowed[i]])[:7]
            np.testing.assert_allclose(cosines[kept], expected, atol=1e-6)
        return
    truth = np.where(allowed, pairwise(gallery, gallery, metric), np.inf)
    order = np.argsort(truth, axis=1, kind="stable")[:, :7]
    order = np.where(np.isinf(np.take_along_axis(truth, order, 1)), -1, order)
    np.testing.assert_array_equal(found.indices, order)


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_more_duplicates_than_any_margin_come_in_order_of_index(metric):
    # 600 of each of two rows: no bound can choose among them.
    gallery = low_rank(2, seed=4)[np.random.default_rng(0).permutation(np.repeat([0, 1], 600))]
    queries = low_rank(3, seed=1)
    found = nearest(queries, gallery, 9, metric=metric, gallery_chunk=704)
    truth = pairwise(queries, gallery, metric)
    expected = [np.flatnonzero(row == row.min())[:9] for row in truth.round(9)]
    np.testing.assert_array_equal(found.indices, expected)


def test_outliers_do_not_blunt_the_bounds():
    gallery = low_rank(2000, seed=2)
    gallery[7] = 1e6
    queries = low_rank(20, seed=1)
    assert_nearest(nearest(queries, gallery, 3), queries, gallery, 3)


def test_inner_products_far_from_zero():
    queries, gallery = 1e4 + isotropic(20, 16, seed=1), 1e4 + isotropic(2000, 16, seed=2)
    found = nearest(queries, gallery, 5, metric="inner_product")
    assert_nearest(found, queries, gallery, 5, "inner_product", rounding=1.2e-7)


@pytest.mark.fast
def test_an_inner_product_survives_cancellation():
    x = isotropic(30, 33, seed=1)
    y = isotropic(30, 33, seed=2)
    x, y = np.hstack([x, 1e4 * x[:, :9], x[:, :1]]), np.hstack([y, y[:, :9], y[:, :1]])
    x, y = np.hstack([x, -x[:, 33:42]]), np.hstack([y, y[:, 33:42]])
    exact = (x.astype(np.float64) * y.astype(np.float64)).sum(1)
    np.testing.assert_allclose(costs(x, y, "inner_product"), -exact, rtol=2e-7)


def test_a_zero_vector_has_cosine_distance_one_to_everything():
    gallery = np.array([[0, 0], [1, 0], [-1, 0], [0, 2]], np.float32)
    found = nearest([[0.0, 0.0], [3.0, 0.0]], gallery, 4, metric="cosine")
    assert found.indices.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]
    assert found.distances.tolist() == [[1, 1, 1, 1], [0, 1, 1, 2]]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosine_at_any_scale(scale):
    queries, gallery = isotropic(5, 8, seed=1), isotropic(60, 8, seed=2)
    found = nearest(queries * np.float32(scale), gallery, 4, metric="cosine")
    assert_nearest(found, queries, gallery, 4, "cosine")


@pytest.mark.parametrize("chunk", [600, 65536])
def test_no_query_finds_itself_or_what_is_masked(chunk):
    gallery = low_rank(1500)
    mask = np.random.default_rng(0).random(1500) < 0.3
    found = nearest(gallery, gallery, 4, exclude_self=True, mask=mask, gallery_chunk=chunk)
    allowed = mask & ~np.eye(1500, dtype=bool)
    assert_nearest(found, gallery, gallery, 4, allowed=allowed)


@pytest.mark.parametrize(("make", "chunk"), [(low_rank, 65536), (isotropic, 1300)])
def test_a_query_finds_rows_of_its_own_label_alone(make, chunk):
    gallery, rng = make(2600, seed=2), np.random.default_rng(0)
    labels = rng.permutation(np.repeat([-1, 3, 4, 5, 9], [50, 1800, 400, 348, 2]))
    labels[100:] = np.where(labels[100:] == 4, np.sort(labels[100:])[::-1], labels[100:])
    mask = rng.random(2600) < 0.9
    # Far more than a chunk of queries, in no order; nobody has a row of label 7.
    asked = np.where(np.arange(300) % 7, labels[:300], 7)
    options = {"mask": mask, "exclude_self": True, "gallery_chunk": chunk}
    found = nearest(gallery[:300], gallery, 4, query_labels=asked, gallery_labels=labels, **options)
    allowed = mask & (asked[:, None] == labels) & (asked[:, None] >= 0)
    allowed &= ~np.eye(300, 2600, dtype=bool)
    assert_nearest(found, gallery[:300], gallery, 4, allowed=allowed)
    assert (np.asarray(found.indices[asked == 7]) == -1).all()


def test_labels_need_no_program_of_their_own():
    queries, gallery = low_rank(9, seed=1), low_rank(70)
    nearest(queries, gallery, 3)
    compiled = exact._nearest._cache_size()
    nearest(queries, gallery, 3, query_labels=np.arange(9) % 2, gallery_labels=np.arange(70) % 2)
    assert exact._nearest._cache_size() == compiled


def test_nothing_allowed_nothing_found():
    found = nearest(np.ones((2, 3)), np.ones((4, 3)), 2, mask=np.zeros(4, bool))
    assert (np.asarray(found.indices) == -1).all() and np.isinf(found.distances).all()
    found = nearest(np.ones((1, 3)), np.ones((1, 3)), 2, metric="inner_product", exclude_self=True)
    assert found.indices.tolist() == [[-1, -1]] and found.distances.tolist() == [[-np.inf] * 2]


def test_bfloat16_ranks_as_its_values_do():
    queries, gallery = (jnp.asarray(low_rank(n), jnp.bfloat16) for n in (20, 2000))
    values = [np.asarray(of, np.float32) for of in (queries, gallery)]
    assert_nearest(nearest(queries, gallery, 3), *values, 3)


def test_vmap_equals_one_by_one():
    queries, gallery = isotropic(12, 5).reshape(3, 4, 5), isotropic(180, 5, 1).reshape(3, 60, 5)
    found = jax.vmap(lambda q, g: nearest(q, g, 3))(queries, gallery)
    for i in range(3):
        one = nearest(queries[i], gallery[i], 3)
        np.testing.assert_array_equal(found.indices[i], one.indices)


def test_memory_does_not_grow_with_the_gallery():
    def temporary(q, n, **options):
        shapes = [jax.ShapeDtypeStruct((rows, 64), jnp.float32) for rows in (q, n)]
        search = jax.jit(partial(nearest, k=10, gallery_chunk=4096, **options))
        return search.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    # As the docstring says, for k=10: a result and its copies are 8 × q × k bytes each.
    stated = 4 * (4096 * (3 * 64 + 2 * 64) + 64 * 44 * (64 + 64))
    for q, n in ((500, 30_000), (2000, 200_000)):
        assert temporary(q, n) < stated + 4 * 8 * q * 10 + n


@pytest.mark.parametrize(
    ("devices", "metric"), [(1, "euclidean"), (3, "inner_product"), (8, "euclidean")]
)
def test_shards_find_what_one_device_finds(devices, metric):
    if devices > jax.device_count():
        pytest.skip("too few virtual devices")
    gallery, queries = low_rank(24 * 60), low_rank(9, seed=1)
    gallery[1000:1040] = gallery[:40]  # equal distances on different devices
    mask = np.random.default_rng(0).random(len(gallery)) < 0.9
    search = partial(nearest, k=6, metric=metric, exclude_self=True)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("shard",))
    sharded = jax.shard_map(
        lambda q, g, m: search(q, g, mask=m, axis_name="shard"),
        mesh=mesh,
        in_specs=(P(), P("shard"), P("shard")),
        out_specs=P(),
        check_vma=False,
    )
    found, expected = jax.jit(sharded)(queries, gallery, mask), search(queries, gallery, mask=mask)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_stream_finds_what_one_array_does(metric, tmp_path):
    gallery, queries = low_rank(2100), low_rank(9, seed=1)
    gallery[1900:1940] = gallery[:40]
    queries[8] = 0.01  # nearest to the zeros that a last tile is filled up with
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    mask = np.random.default_rng(0).random(len(gallery)) < 0.9
    options = {"k": 6, "metric": metric, "exclude_self": True, "mask": mask}
    found = nearest_streamed(queries, mapped, gallery_chunk=500, **options)
    jax.tree.map(np.testing.assert_array_equal, found, nearest(queries, gallery, **options))


def test_a_stream_holds_two_tiles_on_the_device():
    class Watched(np.ndarray):
        largest = 0

        def __getitem__(self, rows):
            held = sum(of.nbytes for of in jax.live_arrays())
            Watched.largest = max(Watched.largest, held)
            return np.asarray(super().__getitem__(rows))

    gallery, queries = low_rank(6400).view(Watched), low_rank(3, seed=1)
    before = sum(of.nbytes for of in jax.live_arrays())
    nearest_streamed(queries, gallery, 2, gallery_chunk=640)
    assert Watched.largest - before < 2.2 * 640 * 64 * 4 < gallery.nbytes / 4


def test_approximate_recall_holds():
    gallery, queries = isotropic(3000), isotropic(50, seed=1)
    found = nearest(queries, gallery, 10, approximate_recall=0.9)
    assert share_kept(nearest(queries, gallery, 10), found, 10) >= 0.9


@pytest.mark.fast
def test_queries_without_neighbours_do_not_count_in_the_share():
    truth = Neighbours(np.array([[2, 0], [-1, -1]]), np.zeros((2, 2)))
    assert float(share_kept(truth, truth, 2)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "manhattan"}, "metric must be one of euclidean, .*; it is 'manhattan'"),
        ({"mask": np.ones(4, bool)}, "mask must be 5 booleans"),
        ({"mask": np.ones(5)}, "mask must be 5 booleans.*float"),
        ({"queries": np.zeros((6, 3)), "exclude_self": True}, "6 queries and 5 rows"),
        ({"gallery": np.full((5, 3), np.nan)}, "gallery must be finite"),
        ({"gallery": np.zeros((5, 2))}, "queries have 3 features, but the gallery has 2"),
        ({"gallery": np.zeros(5)}, "gallery must be a non-empty"),
        ({"k": 0}, "k must be at least 1; it is 0"),
    ],
)
@pytest.mark.fast
def test_wrong_arguments_are_named(arguments, message):
    valid = {"queries": np.zeros((2, 3)), "gallery": np.zeros((5, 3)), "k": 1}
    for search in (nearest, nearest_streamed):
        with pytest.raises(ValueError, match=message):
            search(**(valid | arguments))


@pytest.mark.parametrize("recall", [0.0, 1.5])
@pytest.mark.fast
def test_a_recall_out_of_range_is_named(recall):
    with pytest.raises(ValueError, match="approximate_recall must be in"):
        nearest(np.zeros((2, 3)), np.zeros((5, 3)), 1, approximate_recall=recall)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (([0, 1], None), "must be given together"),
        (([0, 1, 2], np.zeros(5, int)), "query_labels must be 2 integers"),
        (([0, 1], np.zeros(5)), "gallery_labels must be 5 integers; they are float64"),
    ],
)
@pytest.mark.fast
def test_wrong_labels_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        nearest(
            np.ones((2, 3)), np.ones((5, 3)), 1, query_labels=labels[0], gallery_labels=labels[1]
        )
