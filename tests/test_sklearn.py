"""The estimators under scikit-learn's own checks, and beside its estimators."""

import warnings

import numpy as np
import pytest
import sklearn.cluster
import sklearn.neighbors
from sklearn.exceptions import SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator

import retrieval_jax.sklearn as estimators
from retrieval_jax.sklearn import KMeans, NearestNeighbors

# As scikit-learn lists it for its own KMeans: seeds are drawn row by row.
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": (
        "sample_weight is not equivalent to removing or repeating samples"
    )
}


def blobs(n: int = 60, d: int = 5) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, d))[rng.integers(0, 3, n)] * 4 + rng.normal(size=(n, d))


def failures(estimator, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        checks = check_estimator(estimator, on_fail=None, expected_failed_checks=expected)
    return {check["check_name"] for check in checks if check["status"] == "failed"}


def test_k_means_passes_scikit_learns_checks(monkeypatch):
    monkeypatch.setattr(estimators, "_ROWS", 256)  # one program serves them all
    monkeypatch.setattr(estimators, "_COLUMNS", 32)
    fast = KMeans(n_clusters=3, n_init=1, max_iter=5, init="random")
    assert failures(fast, EXPECTED) == set()


@pytest.mark.fast
def test_nearest_neighbours_pass_scikit_learns_checks():
    assert failures(NearestNeighbors(), None) == set()


def test_k_means_is_scikit_learns_from_the_same_start():
    points, weights = blobs(), np.arange(60) % 3
    options = {"init": points[:3], "n_init": 1, "tol": 0}
    ours = KMeans(3, **options).fit(points, sample_weight=weights)
    theirs = sklearn.cluster.KMeans(3, **options).fit(points, sample_weight=weights)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-5)
    assert ours.n_iter_ == theirs.n_iter_ and ours.n_features_in_ == 5
    others = blobs(77) + 1
    np.testing.assert_array_equal(ours.predict(others), theirs.predict(others))
    np.testing.assert_allclose(ours.transform(others), theirs.transform(others), rtol=1e-5)
    assert ours.score(others, sample_weight=np.arange(77)) == pytest.approx(
        theirs.score(others, sample_weight=np.arange(77)), rel=1e-5
    )
    assert ours.get_feature_names_out().tolist() == ["kmeans0", "kmeans1", "kmeans2"]


def test_neighbours_are_scikit_learns():
    gallery, queries = blobs(60), blobs(70)[60:] + 0.1
    ours, theirs = (
        make(n_neighbors=4).fit(gallery)
        for make in (NearestNeighbors, sklearn.neighbors.NearestNeighbors)
    )
    for asked in (queries, None):
        distances, rows = ours.kneighbors(asked)
        expected = theirs.kneighbors(asked)
        np.testing.assert_allclose(distances, expected[0], rtol=1e-5)
        np.testing.assert_array_equal(rows, expected[1])
    with pytest.raises(ValueError, match=r"n_neighbors must be in 1..59, the rows there are"):
        ours.kneighbors(n_neighbors=60)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.fast
def test_radius_neighbours_are_scikit_learns(metric, scale):
    gallery, queries = blobs(60), blobs(70)[60:]
    gallery[7] = 0
    radius, unit = {"euclidean": (5, scale), "sqeuclidean": (25, scale**2), "cosine": (0.4, 1)}[
        metric
    ]
    # Theirs at scale 1: at others some of its distances are wrong.
    theirs = sklearn.neighbors.NearestNeighbors(metric=metric, algorithm="brute").fit(gallery)
    ours = NearestNeighbors(metric=metric).fit(gallery * scale)
    for asked in (queries, None):
        scaled = None if asked is None else asked * scale
        distances, rows = ours.radius_neighbors(scaled, radius * unit, sort_results=True)
        expected = theirs.radius_neighbors(asked, radius, sort_results=True)
        assert 0 < sum(map(len, rows)) < 60 * len(rows)
        for i in range(len(rows)):
            np.testing.assert_allclose(distances[i] / unit, expected[0][i], rtol=1e-6, atol=1e-9)
            np.testing.assert_array_equal(rows[i], expected[1][i])


@pytest.mark.fast
def test_a_distance_of_exactly_the_radius_is_within():
    gallery = NearestNeighbors().fit(1e4 + np.arange(9.0)[:, None])
    found = gallery.radius_neighbors([[10003.0]], radius=2, return_distance=False)
    assert found[0].tolist() == [1, 2, 3, 4, 5]
    assert (
        NearestNeighbors(metric="cosine")
        .fit([[0.0], [1.0]])
        .radius_neighbors([[0.0]], radius=0.9, return_distance=False)[0]
        .tolist()
        == []
    )


@pytest.mark.fast
def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="n_samples=2 should be >= n_clusters=3"):
        KMeans(3).fit(np.eye(2))
    with pytest.raises(ValueError, match="metric must be one of euclidean, sqeuclidean, cosine"):
        NearestNeighbors(metric="manhattan").fit(np.eye(2))
    with pytest.raises(ValueError, match="radius must not be negative"):
        NearestNeighbors().fit(np.eye(2)).radius_neighbors(radius=-1)
