"""k-means against scikit-learn and a plain float64 Lloyd."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
import sklearn.metrics
from scipy.spatial.distance import cdist
from sklearn import datasets
from sklearn.preprocessing import StandardScaler

from retrieval_jax.kmeans import kmeans, predict, transform

KEY = jax.random.key(0)

squared_distances = partial(cdist, metric="sqeuclidean")  # in float64


def blobs(n: int = 203, d: int = 7, centres: int = 5, seed: int = 0) -> np.ndarray:
    """Overlapping blobs, on a grid of 1/64 so that shifting them by 10,000 is exact in float32."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(centres, d))[rng.integers(0, centres, n)] * 2
    return (np.round((points + rng.normal(size=(n, d))) * 64) / 64).astype(np.float32)


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
    n, k = 200_000, 300
    shape = jax.ShapeDtypeStruct((n, 16), jnp.float32)
    fit = jax.jit(lambda key, x: kmeans(key, x, k, restarts=10)).lower(KEY, shape).compile()
    per_point, chunk = 24 + int(np.log(k)), 3 * 2**21
    assert fit.memory_analysis().temp_size_in_bytes < 4 * (per_point * n + chunk) < 4 * n * k / 3


def test_weights_count_as_copies_do():
    points = blobs(n=90)
    copies = np.random.default_rng(4).integers(0, 4, 90)
    start = points[[3, 50, 80]]
    options = {"initial_centroids": start, "tolerance": 0, "max_iterations": 12}
    weighted = kmeans(KEY, points, 3, weights=copies, **options)
    copied = kmeans(KEY, np.repeat(points, copies, axis=0), 3, **options)
    np.testing.assert_allclose(weighted.centroids, copied.centroids, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weighted.history, copied.history, rtol=1e-5)
    np.testing.assert_allclose(weighted.inertia, copied.inertia, rtol=1e-5)
    np.testing.assert_array_equal(np.repeat(weighted.labels, copies), copied.labels)
    theirs = sklearn.cluster.KMeans(3, init=start, n_init=1, tol=0, max_iter=12)
    theirs.fit(points, sample_weight=copies)
    assert float(weighted.inertia) == pytest.approx(theirs.inertia_, rel=1e-5)


@pytest.mark.parametrize("seeding", ["k-means++", "random"])
def test_rows_without_weight_count_nowhere(seeding):
    points = blobs(n=160)
    real = np.arange(160) < 101
    points[~real] = 1e4  # would be seeds, and the farthest points
    result = kmeans(KEY, points, 9, weights=real, seeding=seeding)
    assert (np.abs(np.asarray(result.centroids)) < 50).all()
    assert_consistent(points[real], result._replace(labels=result.labels[real]))


def test_spherical_groups_by_cosine():
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(4, 9)) + 0.7
    truth = rng.integers(0, 4, 300)
    points = directions[truth] + 0.3 * rng.normal(size=(300, 9))
    points = (points * rng.uniform(0.01, 100, (300, 1))).astype(np.float32)
    result = kmeans(KEY, points, 4, spherical=True)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(result.centroids, axis=1), 1, rtol=1e-6)
    assert sklearn.metrics.adjusted_rand_score(truth, result.labels) > 0.95
    cosines = unit.astype(np.float64) @ np.float64(result.centroids).T
    np.testing.assert_array_equal(result.labels, cosines.argmax(1))
    assert float(result.inertia) == pytest.approx(2 * (1 - cosines.max(1)).sum(), rel=1e-5)
    history = np.asarray(result.history)[: int(result.iterations)]
    assert (np.diff(history) <= 1e-5 * history[0]).all()
    assert history[-1] == pytest.approx(float(result.inertia), rel=1e-5)
    for j, centroid in enumerate(np.float64(result.centroids)):  # the mean direction of its points
        mean = unit[np.asarray(result.labels) == j].mean(0)
        np.testing.assert_allclose(centroid, mean / np.linalg.norm(mean), atol=2e-3)
    np.testing.assert_array_equal(
        predict(points, result.centroids, spherical=True), np.asarray(result.labels)
    )


def test_spherical_leaves_a_zero_point_as_it_is():
    points = blobs(n=40)
    points[7] = 0
    result = kmeans(KEY, points, 3, spherical=True)
    assert np.isfinite(result.centroids).all() and np.isfinite(float(result.inertia))
    distances = transform(points, result.centroids, spherical=True)
    np.testing.assert_allclose(distances[7], 1, rtol=1e-5)


def test_bfloat16_points_are_clustered_as_their_float32_values():
    points = jnp.asarray(blobs(), jnp.bfloat16)
    start = points[jnp.array([3, 50, 90, 120, 201])]
    half = kmeans(KEY, points, 5, initial_centroids=start)
    full = kmeans(KEY, points.astype(jnp.float32), 5, initial_centroids=start)
    assert half.centroids.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, half, full)
    np.testing.assert_array_equal(predict(points, full.centroids), full.labels)


@pytest.mark.fast
def test_transform_equals_float64_distances_far_from_zero():
    points = (1e4 + np.random.default_rng(0).normal(size=(57, 3))).astype(np.float32)
    expected = np.sqrt(squared_distances(points, points[:6]))
    for chunk in (None, 10):
        found = transform(points, points[:6], chunk_size=chunk)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.fast
def test_predict_takes_the_first_of_equal_centroids():
    centroids = np.array([[9, 9], [1, 2], [1, 2], [9, 9]], np.float32)
    assert predict(np.array([[0, 0], [8, 8]]), centroids).tolist() == [1, 0]


@pytest.mark.fast
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
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"seeding": "kmeans"}, "seeding must be 'k-means\\+\\+' or 'random'; it is 'kmeans'"),
        ({"weights": np.ones(3)}, "weights must be one for each of the 4 points"),
        ({"weights": np.array([1, 1, 1, -1])}, "weights must be finite and not negative"),
        ({"weights": np.array([1, 1, 1, np.nan])}, "weights must be finite and not negative"),
        ({"weights": np.array([1, 0, 0, 0])}, "fewer points have a weight above 0 than the 2"),
        ({"tolerance": -1.0}, "tolerance must not be negative"),
        ({"tolerance": np.nan}, "tolerance must not be negative"),
        ({"initial_centroids": np.zeros((3, 2))}, r"must have shape \(2, 2\), not \(3, 2\)"),
        ({"initial_centroids": np.full((2, 2), np.nan)}, "initial_centroids must be finite"),
    ],
)
@pytest.mark.fast
def test_wrong_arguments_are_named(arguments, message):
    valid = {"points": np.arange(8.0).reshape(4, 2), "k": 2}
    with pytest.raises(ValueError, match=message):
        kmeans(KEY, **(valid | arguments))


@pytest.mark.fast
def test_predict_names_wrong_arguments():
    with pytest.raises(ValueError, match="points have 2 features, but centroids have 3"):
        predict(np.zeros((4, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="centroids must be finite"):
        predict(np.zeros((4, 2)), np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        predict(np.zeros((4, 2)), np.zeros((2, 2)), chunk_size=0)
