"""Silhouettes against scikit-learn in float64."""

import jax
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from retrieval_jax.metrics import silhouette, silhouette_samples
from retrieval_jax.metrics.silhouette import _samples


def check(points, labels, chunk, tolerance=1e-6):
    expected = sklearn.metrics.silhouette_samples(points.astype(np.float64), labels)
    ours = silhouette_samples(points, labels, chunk=chunk)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)
    mean = silhouette(points, labels, chunk=chunk)
    assert type(mean) is float and mean == pytest.approx(expected.mean(), abs=tolerance)


def fixture(n=300, d=5):
    rng = np.random.default_rng(0)
    labels = rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05])
    centres = rng.normal(size=(4, d)) * 2
    return (centres[labels] + rng.normal(size=(n, d))).astype(np.float32), labels


@pytest.mark.parametrize("chunk", [1, 64, 1000])
def test_equal_to_scikit_learns(chunk):
    check(*fixture(n=300 if chunk > 1 else 40), chunk)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.permutations([-7, 0, 4, 9]))
def test_any_labels_duplicates_and_single_points(seed, clusters, names):
    rng = np.random.default_rng(seed)
    points = rng.integers(-3, 3, (21, 2)).astype(np.float32) / 3
    labels = rng.integers(0, clusters, 21)
    labels[:4] = np.arange(4) % clusters
    if seed % 2:
        labels[4:] = np.where(labels[4:] == 1, 0, labels[4:])  # one point alone
    check(points, np.array(names)[labels], 8, 2e-6)


def test_clusters_of_copies_and_of_one_place():
    rng = np.random.default_rng(0)
    points = np.repeat(rng.normal(size=(6, 16)).astype(np.float32), 5, 0)
    labels = np.repeat(np.arange(6), 5)
    np.testing.assert_array_equal(silhouette_samples(points, labels, chunk=7), 1)
    check(points, rng.permutation(labels), 7)
    np.testing.assert_array_equal(silhouette_samples(np.ones((30, 16)), labels, chunk=7), 0)


def test_thousands_of_distances_to_a_point():
    points, _ = fixture(n=6000)
    check(points, (points[:, 0] > 0.1).astype(int), 512)


def test_tight_clusters_far_apart_and_far_from_the_origin():
    points, labels = fixture()
    far = np.round(points * 64) / 64 + 64 * labels[:, None].astype(np.float32) + np.float32(1e4)
    check(far, labels, 64)


def test_nearly_as_many_clusters_as_points():
    points, _ = fixture(n=40)
    labels = np.arange(40)
    labels[7] = 3
    check(points, labels, 16)
    assert (np.asarray(silhouette_samples(points, labels)) != 0).sum() == 2


def test_under_64_bits():
    with jax.enable_x64(True):
        check(*fixture(n=40), 16)


def test_memory_does_not_grow_with_the_square_of_the_points():
    n, d, clusters, chunk = 50_000, 4, 10, 128
    of_points = np.zeros(n, np.int32)
    arguments = np.zeros((n, d), np.float32), of_points, of_points, np.zeros(clusters, np.int32)
    compiled = _samples.lower(*arguments, chunk, "euclidean").compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 2 * 4 * n * d + 20 * chunk * (chunk + d + clusters) + 8 * n


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        (np.zeros((3, 2)), [1, 1, 1], "need 2 to 2 clusters of 3 points; there are 1"),
        (np.zeros((3, 2)), [1, 2, 3], "need 2 to 2 clusters of 3 points; there are 3"),
        (np.zeros((3, 2)), [1, 2], "labels must be 3 integers"),
        (np.zeros((3, 2)), [0.5, 1.0, 1.0], "labels must be 3 integers"),
        (np.full((3, 2), np.inf), [0, 1, 1], "points must be finite"),
    ],
)
def test_wrong_arguments_are_named(points, labels, message):
    for score in (silhouette, silhouette_samples):
        with pytest.raises(ValueError, match=message):
            score(points, labels)


def test_a_chunk_below_one_is_named():
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        silhouette(np.eye(3), [0, 0, 1], chunk=0)


@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e18, 1e25])
def test_any_magnitude(scale):
    points, labels = fixture(n=40)
    found = silhouette_samples(points * np.float32(scale), labels, chunk=16)
    expected = sklearn.metrics.silhouette_samples(points.astype(np.float64), labels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_float64_is_scored_in_float64_where_there_is():
    points, labels = (of[:40] for of in fixture())
    points = 1 + 1e-9 * points.astype(np.float64)
    for metric in ("euclidean", "manhattan"):
        # scikit-learn's own Euclidean distances cancel.
        distances = cdist(points, points, "cityblock" if metric == "manhattan" else metric)
        expected = sklearn.metrics.silhouette_samples(distances, labels, metric="precomputed")
        with jax.enable_x64(True):
            found = silhouette_samples(points, labels, metric=metric, chunk=16)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_manhattan_and_given_distances_equal_scikit_learns(chunk):
    points, labels = fixture(n=40)
    labels = np.array(["a", "d", "c", "b"])[labels]
    check(points, labels, chunk)
    distances = sklearn.metrics.pairwise_distances(points, metric="manhattan")
    distances *= 1 + np.random.default_rng(0).random((40, 40)) * (1 - np.eye(40))  # one way alone
    for metric, values in (("manhattan", points), ("precomputed", distances)):
        expected = sklearn.metrics.silhouette_samples(
            values.astype(np.float64), labels, metric=metric
        )
        found = silhouette_samples(values, labels, metric=metric, chunk=chunk)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        mean = silhouette(values, labels, metric=metric, chunk=chunk)
        assert mean == pytest.approx(expected.mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("distances", "metric", "message"),
    [
        (np.ones((3, 3)), "precomputed", "0 on the diagonal"),
        (np.eye(3) - 1, "precomputed", "none below 0"),
        (np.zeros((3, 2)), "precomputed", r"must be \[n, n\]"),
        (np.eye(3), "cosine", "metric must be one of euclidean, manhattan, precomputed"),
    ],
)
def test_distances_that_are_none_are_named(distances, metric, message):
    with pytest.raises(ValueError, match=message):
        silhouette(distances, [0, 0, 1], metric=metric)
