"""k-means in both types, at any scale, with one rule for ties; and its derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from retrieval_jax.kmeans import (
    MiniBatchState,
    kmeans,
    mini_batch_start,
    mini_batch_step,
    predict,
    transform,
)
from retrieval_jax.numerics.bounds import principal_basis
from retrieval_jax.numerics.distances import centre, matrix, moments, sum_of_squares
from retrieval_jax.numerics.selection import smallest, threshold

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
# Float64 that float32 cannot hold, in five groups.
POINTS = 5 * RNG.normal(size=(5, 6))[RNG.integers(0, 5, 200)] + RNG.normal(size=(200, 6))
SHORT = POINTS.astype(np.float32)
START = SHORT[[3, 50, 90, 120, 199]]
fit = partial(kmeans, KEY, k=5, tolerance=0)


def lloyd(points, centroids, weights=1.0):
    """Float64 reference, run until nothing moves: centroids, labels and inertia."""
    points, centroids = np.float64(points), np.float64(centroids)
    weights = weights * np.ones(len(points))
    while True:
        squared = cdist(points, centroids, "sqeuclidean")
        labels, before = squared.argmin(1), centroids
        mine = weights * (labels == np.arange(len(centroids))[:, None])
        centroids = mine @ points / mine.sum(1, keepdims=True)
        if np.allclose(centroids, before, rtol=1e-14, atol=0):
            return centroids, labels, (weights * squared.min(1)).sum()


@pytest.fixture(scope="module")
def short():
    return fit(SHORT, initial_centroids=START)


@pytest.mark.parametrize("power", [-83, -40, 40, 55])
def test_at_any_scale_every_bit_is_the_same(short, power):
    scale = np.float32(2.0**power)
    found = fit(SHORT * scale, initial_centroids=START * scale)
    np.testing.assert_array_equal(found.labels, short.labels)
    np.testing.assert_array_equal(found.centroids / scale, short.centroids)
    np.testing.assert_array_equal(predict(SHORT * scale, found.centroids), short.labels)
    np.testing.assert_array_equal(
        transform(SHORT * scale, found.centroids) / scale, transform(SHORT, short.centroids)
    )
    if power > -83:  # whose square is no float32
        np.testing.assert_array_equal(found.inertia / scale / scale, short.inertia)
        np.testing.assert_array_equal(found.history / scale / scale, short.history)


def test_weights_near_the_largest_and_the_smallest_float(short):
    for weight in (2.0**127, 2.0**-125):
        found = fit(SHORT / 2**20, initial_centroids=START / 2**20, weights=np.full(200, weight))
        np.testing.assert_array_equal(found.labels, short.labels)
        np.testing.assert_array_equal(found.centroids * 2**20, short.centroids)
        assert float(found.inertia) == pytest.approx(float(short.inertia) * weight / 2**40)


def test_an_inertia_beyond_the_largest_float_is_named():
    for scale in (1e20, 1e25):
        with pytest.raises(ValueError, match=r"inertia is beyond 3.4e\+38, the largest float32"):
            fit(SHORT * scale, initial_centroids=START * scale)
    state = MiniBatchState(1e20 * START, jnp.zeros(5), jnp.nan)
    with pytest.raises(ValueError, match="inertia is beyond"):
        mini_batch_step(state, SHORT * 1e20)
    with pytest.raises(ValueError, match=r"weights must add up to less than 3.4e\+38"):
        mini_batch_step(state, SHORT, weights=np.full(200, 1e38))


def test_float64_is_computed_in_float64():
    with jax.enable_x64(True):
        found = kmeans(KEY, POINTS, 5, tolerance=0, restarts=2)
        assert [value.dtype.str[1:] for value in found] == ["f8", "i4", "f8", "i4", "b1", "f8"]
        centroids, labels, inertia = lloyd(POINTS, found.centroids)  # moves them no more
        np.testing.assert_allclose(found.centroids, centroids, rtol=1e-12)
        np.testing.assert_array_equal(found.labels, labels)
        assert float(found.inertia) == pytest.approx(inertia, rel=1e-12)
        assert float(found.history[found.iterations - 1]) == pytest.approx(inertia, rel=1e-12)
        np.testing.assert_array_equal(predict(POINTS, found.centroids), found.labels)
        distances = transform(POINTS, START)
        assert distances.dtype == np.float64
        np.testing.assert_allclose(distances, cdist(POINTS, START), rtol=1e-12)


def test_float32_is_the_same_where_x64_is_on(short):
    with jax.enable_x64(True):
        found = fit(SHORT, initial_centroids=START)
    jax.tree.map(np.testing.assert_array_equal, found, short)
    assert [value.dtype for value in found] == [value.dtype for value in short]


def test_mini_batches_in_float64():
    with jax.enable_x64(True):
        state = mini_batch_start(KEY, POINTS, 5)
        assert cdist(state.centroids, POINTS).min(1).max() < 1e-6  # drawn in float32
        state = mini_batch_step(state._replace(centroids=jnp.asarray(POINTS[:5])), POINTS)
        assert {value.dtype for value in state} == {np.dtype(np.float64)}
        labels = cdist(POINTS, POINTS[:5]).argmin(1)
        means = [POINTS[labels == j].mean(0) for j in range(5)]
        np.testing.assert_allclose(state.centroids, means, rtol=1e-12)


def test_a_batch_may_be_smaller_than_k():
    state = MiniBatchState(jnp.asarray(START), jnp.array([2.0, 1, 1, 0, 0]), jnp.nan)
    batch = START[:2] + np.float32(0.5)
    found = mini_batch_step(state, batch)
    expected = START.copy()
    expected[0] += 0.5 / 3
    expected[1] += 0.5 / 2
    np.testing.assert_allclose(found.centroids[:3], expected[:3], rtol=1e-6)
    assert found.mass.tolist() == [3, 2, 1, 0, 0]
    assert float(found.inertia) == pytest.approx(2 * 6 * 0.25, rel=1e-4)
    # Centroids without a point of their own go to those of the batch.
    for centroid in np.asarray(found.centroids[3:]):
        assert np.abs(batch - centroid).max(1).min() < 1e-5


@jax.jit
def helpers(rows):
    ones, none = jnp.ones(200, rows.dtype), jnp.zeros(6, rows.dtype)
    mean, variance = moments(lambda step, carry: step(carry, rows, ones), none)
    basis = principal_basis(rows, mean, 3)
    cut = threshold(rows, none + jnp.inf, 20, 20)
    return mean, variance, basis, cut, smallest(rows**2, 4), sum_of_squares(rows), centre(rows, 64)


@pytest.mark.parametrize("x64", [False, True])
def test_numeric_helpers_in_both_types(x64):
    dtype, digits = (np.float64, 1e-14) if x64 else (np.float32, 1e-6)
    with jax.enable_x64(x64):
        rows = matrix(POINTS, "points")
        assert rows.dtype == dtype and matrix(SHORT, "points").dtype == np.float32
        assert matrix(np.arange(4).reshape(2, 2), "points").dtype == dtype
        mean, variance, basis, cut, (bound, few), squares, near = helpers(rows)
    floats = mean, variance, *basis, cut, bound, squares, near
    assert {value.dtype for value in floats} == {np.dtype(dtype)} and few.dtype == np.int32
    np.testing.assert_allclose(mean, POINTS.mean(0), rtol=10 * digits, atol=digits)
    np.testing.assert_allclose(variance, POINTS.var(0).mean(), rtol=10 * digits)
    vectors = np.asarray(basis.vectors)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=10 * digits)
    np.testing.assert_array_equal((np.asarray(rows) <= np.asarray(cut)).sum(0), 20)
    np.testing.assert_allclose(squares, (POINTS**2).sum(1), rtol=4 * digits)
    ordered = np.sort(POINTS**2, 0)[:4]
    found = np.take_along_axis(POINTS**2, np.asarray(few), 0)
    np.testing.assert_allclose(found, ordered, rtol=300 * digits)


@pytest.mark.parametrize("chunk", [None, 7, 64])
def test_of_equally_near_centroids_the_first_is_taken(chunk):
    few = np.repeat(SHORT[:40], 4, axis=0)[np.random.default_rng(1).permutation(160)]
    crowded = np.repeat(SHORT[:8], 20, axis=0)
    for centroids in (few, crowded):
        expected = cdist(SHORT, centroids, "sqeuclidean").argmin(1)
        np.testing.assert_array_equal(predict(SHORT, centroids, chunk_size=chunk), expected)


def test_labels_depend_on_no_other_point():
    # Points between two centroids, where the last bit of a product decides.
    rng = np.random.default_rng(2)
    centroids = rng.normal(size=(33, 17)).astype(np.float32)
    pairs = rng.integers(0, 33, (2000, 2))
    points = centroids[pairs].mean(1) + np.float32(3)
    expected = np.asarray(predict(points, centroids + 3))
    for part in (slice(5, 12), slice(1000, 1999)):
        np.testing.assert_array_equal(predict(points[part], centroids + 3), expected[part])
    np.testing.assert_array_equal(predict(points, centroids + 3, chunk_size=129), expected)


def test_derivatives_are_the_finite_differences():
    rng = np.random.default_rng(1)
    weights, by_points, by_weights = rng.uniform(0.5, 2, 200), rng.normal(size=(200, 6)), 0.1
    for spherical in (False, True):
        with jax.enable_x64(True):

            @jax.jit
            def loss(points, weights, spherical=spherical):
                found = fit(points, weights=weights, initial_centroids=START, spherical=spherical)
                return found.inertia + jnp.sin(found.centroids).sum()

            along = by_points, by_weights * rng.normal(size=200)
            gradients = jax.jit(jax.grad(loss, (0, 1)))(POINTS, weights)
            for i, step in enumerate(along):
                ends = []
                for sign in (1, -1):
                    moved = [POINTS, weights]
                    moved[i] = moved[i] + sign * 1e-5 * step
                    ends.append(float(loss(*moved)))
                difference = (ends[0] - ends[1]) / 2e-5
                slope = float((np.asarray(gradients[i]) * step).sum())
                assert slope == pytest.approx(difference, rel=1e-6) and abs(slope) > 1e-3


def test_the_gradient_of_a_distance_of_zero_is_zero():
    def nearest_sum(points, centroids):
        return transform(points, centroids).sum()

    by_points, by_centroids = jax.grad(nearest_sum, (0, 1))(SHORT[:2], SHORT[1:2])
    towards = (SHORT[0] - SHORT[1]) / np.linalg.norm(SHORT[0] - SHORT[1])
    np.testing.assert_allclose(by_points, [towards, 0 * towards], rtol=1e-5)
    np.testing.assert_allclose(by_centroids, [-towards], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 2.0}, "k must be an integer, not traced by jit; it is 2.0"),
        ({"k": "2"}, "k must be an integer"),
        ({"restarts": 1.5}, "restarts must be an integer"),
        ({"max_iterations": jnp.float32(3)}, "max_iterations must be an integer"),
        ({"chunk_size": 2.5}, "chunk_size must be an integer"),
        ({"points": [["a", "b"]]}, "points must be real numbers; they are of type <U1"),
        ({"points": np.zeros((4, 2), complex)}, "points must be real numbers; .* complex128"),
        ({"points": []}, r"points must be a non-empty \[n, d\] array; the shape is \(0,\)"),
        ({"weights": ["a"] * 4}, "weights must be real numbers"),
        ({"weights": [1, 1e-40, 0, 0]}, "fewer points have a weight above 0 than the 2"),
    ],
)
@pytest.mark.fast
def test_wrong_types_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kmeans(KEY, **({"points": np.arange(8.0).reshape(4, 2), "k": 2} | arguments))


def test_any_integer_is_a_count(short):
    options = {"initial_centroids": START, "tolerance": 0}
    for k in (np.int64(5), jnp.int32(5), np.uint8(5)):
        found = kmeans(KEY, SHORT, k, restarts=k, max_iterations=np.int64(300), **options)
        np.testing.assert_array_equal(found.labels, short.labels)
