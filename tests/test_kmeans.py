"""k-means against scikit-learn and a plain float64 Lloyd."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
from sklearn import datasets
from sklearn.preprocessing import StandardScaler

from retrieval_jax import kmeans as module
from retrieval_jax.distances import moments
from retrieval_jax.kmeans import kmeans, predict

KEY = jax.random.key(0)


def blobs(n: int = 203, d: int = 7, centres: int = 5, seed: int = 0) -> np.ndarray:
    """Overlapping blobs, on a grid of 1/64 so that shifting them by 10,000 is exact in float32."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(centres, d))[rng.integers(0, centres, n)] * 2
    return (np.round((points + rng.normal(size=(n, d))) * 64) / 64).astype(np.float32)


def squared_distances(points, centroids) -> np.ndarray:
    difference = np.asarray(points, np.float64)[:, None] - np.asarray(centroids, np.float64)
    return (difference**2).sum(2)


def lloyd(points, centroids, iterations: int) -> tuple[np.ndarray, list[float]]:
    """Float64 reference, for starts that leave no cluster empty: centroids and inertia history."""
    centroids, history = np.asarray(centroids, np.float64), []
    for _ in range(iterations):
        labels = squared_distances(points, centroids).argmin(1)
        centroids = np.stack([points[labels == j].mean(0) for j in range(len(centroids))])
        history.append(squared_distances(points, centroids).min(1).sum())
    return centroids, history


def assert_consistent(points, result) -> None:
    distances = squared_distances(points, result.centroids)
    labels = np.asarray(result.labels)
    np.testing.assert_array_equal(labels, predict(points, result.centroids))
    np.testing.assert_allclose(
        distances[np.arange(len(points)), labels], distances.min(1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(result.inertia, distances.min(1).sum(), rtol=1e-5, atol=1e-5)
    history = np.asarray(result.history)
    iterations = int(result.iterations)
    assert np.isfinite(history[:iterations]).all() and np.isnan(history[iterations:]).all()
    assert (np.diff(history[:iterations]) <= 1e-5 * history[0]).all()


@pytest.mark.parametrize(
    ("load", "k"),
    [
        (lambda: datasets.load_digits().data, 10),
        (lambda: StandardScaler().fit_transform(datasets.load_wine().data), 3),
        (lambda: StandardScaler().fit_transform(datasets.load_breast_cancer().data), 2),
    ],
    ids=["digits", "wine", "breast cancer"],
)
def test_inertia_is_no_worse_than_scikit_learns(load, k):
    points = load()
    theirs = sklearn.cluster.KMeans(k, n_init=10, random_state=0).fit(points)
    ours = kmeans(KEY, points, k, restarts=10)
    assert float(ours.inertia) <= 1.001 * theirs.inertia_
    assert bool(ours.converged)
    assert_consistent(points, ours)


def test_iterations_equal_a_float64_lloyd():
    points = blobs()
    start = points[[3, 50, 90, 120, 201]]
    result = kmeans(KEY, points, 5, initial_centroids=start, max_iterations=7, tolerance=0)
    centroids, history = lloyd(points, start, 7)
    np.testing.assert_allclose(result.centroids, centroids, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.history, history, rtol=1e-5)
    assert int(result.iterations) == 7 and not bool(result.converged)


@pytest.mark.parametrize("tolerance", [0.0, 1e-4, 0.03])
def test_stops_at_the_first_move_within_the_scaled_tolerance(tolerance):
    points, start = blobs(), blobs()[[3, 50, 90, 120, 201]]
    limit, before, expected = tolerance * points.astype(np.float64).var(0).mean(), start, 0
    while True:
        expected += 1
        after, _ = lloyd(points, before, 1)
        if ((after - before) ** 2).sum() <= limit:
            break
        before = after
    result = kmeans(KEY, points, 5, initial_centroids=start, tolerance=tolerance)
    assert int(result.iterations) == expected
    assert bool(result.converged)
    assert_consistent(points, result)


def test_seeding_is_as_good_as_greedy_k_means_plus_plus():
    points, k = datasets.load_digits().data.astype(np.float32), 10
    points -= points.mean(0)
    seed = jax.jit(lambda key: module._plus_plus(key, jnp.asarray(points), 0, k, 512))
    ours = [seed(jax.random.key(i)) for i in range(30)]
    theirs = [sklearn.cluster.kmeans_plusplus(points, k, random_state=i)[0] for i in range(30)]
    for seeds in ours:
        assert len({tuple(seed) for seed in np.asarray(seeds)} & {tuple(x) for x in points}) == k
    potentials = [
        np.mean([squared_distances(points, seeds).min(1).sum() for seeds in both])
        for both in (ours, theirs)
    ]
    assert potentials[0] <= 1.02 * potentials[1]


def test_draws_in_proportion_to_the_weights():
    weights = np.array([0, 3, 0, 1, 0, 0, 0, 0, 0, 4, 2, 0], np.float32)
    for block in (5, 12):
        drawn = np.asarray(module._draw(KEY, weights, 20_000, block))
        shares = np.bincount(drawn, minlength=12) / 20_000
        assert (shares[weights == 0] == 0).all()
        np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.015)


def test_an_offset_of_ten_thousand_changes_nothing():
    # Not seeded by k-means++: restarts that end alike are told apart by rounding alone.
    points, start = blobs(), blobs()[[3, 50, 90, 120, 201]]
    near = kmeans(KEY, points, 5, initial_centroids=start)
    far = kmeans(KEY, points + np.float32(1e4), 5, initial_centroids=start + np.float32(1e4))
    np.testing.assert_allclose(far.centroids - 1e4, near.centroids, atol=2e-3)
    assert (near.labels != far.labels).mean() < 0.005
    np.testing.assert_allclose(far.inertia, near.inertia, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 202])
def test_the_chunk_size_changes_nothing(chunk):
    points = blobs()
    start = points[[3, 50, 90, 120, 201]]
    expected = kmeans(KEY, points, 5, initial_centroids=start)
    result = kmeans(KEY, points, 5, initial_centroids=start, chunk_size=chunk)
    np.testing.assert_array_equal(result.labels, expected.labels)
    np.testing.assert_allclose(result.centroids, expected.centroids, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.history, expected.history, rtol=1e-5)
    np.testing.assert_array_equal(
        predict(points, expected.centroids, chunk_size=chunk), expected.labels
    )


def test_an_empty_cluster_is_reseeded_from_the_farthest_point():
    # One of the starts is nowhere near a point: it must end on the blob that lacks one.
    rng = np.random.default_rng(0)
    corners = np.diag([30, 40, 50, 60, 70, 0, 0]).astype(np.float32)[:5]
    points = np.concatenate([np.repeat(corners, 40, axis=0), corners[:3]])
    points += rng.normal(size=points.shape).astype(np.float32)
    start = corners.copy()
    start[2] = -900
    result = kmeans(KEY, points, 5, initial_centroids=start)
    assert np.bincount(result.labels).tolist() == [41, 41, 41, 40, 40]
    assert_consistent(points, result)


def test_the_farthest_point_goes_to_the_first_empty_cluster():
    points = np.array([[0], [1], [10], [50]], np.float32)
    centroids = jnp.array([[500.0], [0.0], [600.0]])
    empty = jnp.array([[True], [False], [True]])
    moved = module._reseed(jnp.asarray(points), jnp.zeros(1), centroids, empty, chunk=3)
    assert moved.tolist() == [[50.0], [0.0], [10.0]]


def test_more_clusters_than_distinct_points_ends_with_empty_ones():
    points = np.repeat(np.array([[1.0, 2.0], [3.0, 5.0], [-4.0, 0.1]]), 7, axis=0)
    result = kmeans(KEY, points, 8, tolerance=0)
    assert bool(result.converged) and float(result.inertia) < 1e-9
    assert len(np.unique(result.labels)) == 3
    assert all(
        (points == centroid).all(1).any() for centroid in np.float64(result.centroids).round(5)
    )


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 1e-12])
def test_identical_points(value):
    result = kmeans(KEY, np.full((9, 3), value), 2)
    assert bool(result.converged) and float(result.inertia) == 0
    np.testing.assert_array_equal(result.centroids, np.full((2, 3), value, np.float32))


@pytest.mark.parametrize(("n", "k"), [(5, 1), (5, 5)])
def test_as_many_clusters_as_points_and_one(n, k):
    points = blobs(n=n, d=3)
    result = kmeans(KEY, points, k)
    assert_consistent(points, result)
    if k == n:
        assert float(result.inertia) < 1e-9 and len(np.unique(result.labels)) == n
    if k == 1:
        np.testing.assert_allclose(result.centroids[0], points.mean(0), rtol=1e-5, atol=1e-6)


def test_the_best_restart_is_kept():
    points = np.random.default_rng(1).uniform(size=(203, 7)).astype(np.float32)  # no structure
    centre, _ = moments(jnp.asarray(points), 203)
    seed = jax.jit(lambda key: module._plus_plus(key, jnp.asarray(points), centre, 5, 203))
    alone = [
        float(kmeans(KEY, points, 5, initial_centroids=seed(key) + centre).inertia)
        for key in jax.random.split(KEY, 10)
    ]
    best = min(range(10), key=lambda i: alone[i])
    assert alone[best] < 0.995 * np.median(alone) and 0 < best < 9  # restarts differ
    together = float(kmeans(KEY, points, 5, restarts=10).inertia)
    assert together == pytest.approx(alone[best], rel=1e-4)


def test_again_and_under_jit_and_vmap_equal():
    points = jnp.asarray(blobs())
    keys = jax.random.split(KEY, 3)
    alone = [kmeans(key, points, 5) for key in keys]
    jax.tree.map(np.testing.assert_array_equal, kmeans(keys[0], points, 5), alone[0])
    mapped = jax.jit(jax.vmap(lambda key, x: kmeans(key, x, 5), (0, None)))(keys, points)
    for i, one in enumerate(alone):
        np.testing.assert_array_equal(mapped.labels[i], one.labels)
        np.testing.assert_allclose(mapped.centroids[i], one.centroids, rtol=1e-5, atol=1e-5)


def test_memory_holds_no_matrix_of_points_by_clusters_and_no_restarts():
    n, k = 40_000, 100
    shape = jax.ShapeDtypeStruct((n, 16), jnp.float32)
    fit = jax.jit(lambda key, x: kmeans(key, x, k, restarts=10)).lower(KEY, shape).compile()
    matrix, seeding = 4 * n * k, 4 * n * (3 + int(np.log(k)))
    assert fit.memory_analysis().temp_size_in_bytes < min(matrix / 2, 3 * seeding)


def test_moments_are_right_to_rounding_far_from_zero():
    points = (1e4 + np.random.default_rng(0).normal(size=(200_001, 2)) * [1, 3]).astype(np.float32)
    mean, variance = moments(jnp.asarray(points), 1000)
    np.testing.assert_allclose(mean, points.mean(0, dtype=np.float64), atol=1.1e-3)
    assert float(variance) == pytest.approx(points.var(0, dtype=np.float64).mean(), rel=1e-4)


def test_both_ways_to_sum_the_clusters_agree():
    rows = jnp.asarray(blobs(n=50))
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 5, 50))  # 4 is "nowhere"
    expected = [rows[np.asarray(labels) == j].sum(0) for j in range(4)]
    for sums in (module._scatter_sums, module._matmul_sums):
        np.testing.assert_allclose(sums(rows, labels, 4), np.stack(expected), rtol=1e-5, atol=1e-5)


def test_predict_takes_the_first_of_equal_centroids():
    centroids = np.array([[9, 9], [1, 2], [1, 2], [9, 9]], np.float32)
    assert predict(np.array([[0, 0], [8, 8]]), centroids).tolist() == [1, 0]


def test_predict_between_near_centroids_far_from_zero():
    rng = np.random.default_rng(0)
    centroids = (1e4 + rng.normal(size=(6, 3))).astype(np.float32)
    points = (1e4 + rng.normal(size=(500, 3))).astype(np.float32)
    expected = squared_distances(points, centroids).argmin(1)
    np.testing.assert_array_equal(predict(points, centroids), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be between 1 and the number of points, 4; it is 0"),
        ({"k": 5}, "between 1 and the number of points, 4; it is 5"),
        ({"points": np.zeros(4)}, r"points must be a non-empty \[n, d\] array"),
        ({"points": np.zeros((0, 2))}, "non-empty"),
        ({"points": np.zeros((4, 0))}, "non-empty"),
        ({"points": np.full((4, 2), np.nan)}, "points must be finite"),
        ({"points": np.full((4, 2), np.inf)}, "points must be finite"),
        ({"points": np.full((4, 2), 1e300)}, "finite in float32"),
        ({"restarts": 0}, "at least 1"),
        ({"max_iterations": 0}, "at least 1"),
        ({"chunk_size": 0}, "at least 1"),
        ({"tolerance": -1.0}, "tolerance must not be negative"),
        ({"tolerance": np.nan}, "tolerance must not be negative"),
        ({"initial_centroids": np.zeros((3, 2))}, r"must have shape \(2, 2\), not \(3, 2\)"),
        ({"initial_centroids": np.full((2, 2), np.nan)}, "initial_centroids must be finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_wrong_arguments_are_named(arguments, message):
    valid = {"points": np.arange(8.0).reshape(4, 2), "k": 2}
    with pytest.raises(ValueError, match=message):
        kmeans(KEY, **(valid | arguments))


def test_predict_names_wrong_arguments():
    with pytest.raises(ValueError, match="points have 2 features, but centroids have 3"):
        predict(np.zeros((4, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="centroids must be finite"):
        predict(np.zeros((4, 2)), np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        predict(np.zeros((4, 2)), np.zeros((2, 2)), chunk_size=0)
