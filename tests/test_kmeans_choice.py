"""Balanced k-means, the number of clusters by a score, and numbers that stay."""

from itertools import permutations

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.metrics import silhouette_score

from retrieval_jax.kmeans import balanced_kmeans, choose_k, kmeans, match_centroids

KEY = jax.random.key(0)


def groups(sizes, d: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = 6 * rng.normal(size=(len(sizes), d))
    points = np.repeat(centres, sizes, axis=0) + rng.normal(size=(sum(sizes), d))
    return points.astype(np.float32)


def balanced_exactly(points, centroids) -> float:
    """The lowest inertia that Lloyd's iterations with exact balanced assignments reach."""
    (n, _), k, best = points.shape, len(centroids), np.inf
    assert n % k == 0
    slots = np.repeat(np.arange(k), n // k)
    while True:
        labels = slots[linear_sum_assignment(cdist(points, centroids, "sqeuclidean")[:, slots])[1]]
        centroids = np.stack([points[labels == j].mean(0) for j in range(k)])
        inertia = ((points - centroids[labels]) ** 2).sum()
        if inertia >= best * (1 - 1e-9):
            return best
        best = inertia


@pytest.mark.parametrize("sizes", [(60, 60, 60), (100, 50, 30)])
def test_balanced_clusters_come_near_the_exact_assignment(sizes):
    points = groups(sizes)
    start = points[[3, 110, 170]]
    found = balanced_kmeans(KEY, points, 3, initial_centroids=start, chunk_size=100)
    labels = np.asarray(found.labels)
    assert np.bincount(labels).tolist() == [60, 60, 60] and bool(found.converged)
    means = [points[labels == j].mean(0) for j in range(3)]
    np.testing.assert_allclose(found.centroids, means, rtol=1e-4, atol=1e-4)
    inertia = ((points.astype(float) - np.asarray(means)[labels]) ** 2).sum()
    assert float(found.inertia) == pytest.approx(inertia, rel=1e-4)
    assert inertia <= 1.05 * balanced_exactly(points.astype(float), start)


@pytest.mark.parametrize(("n", "k"), [(5, 5), (7, 3), (6, 1)])
def test_sizes_differ_by_at_most_one(n, k):
    points = groups((n,), d=2)
    points[: n // 2] = points[0]  # ties
    found = balanced_kmeans(KEY, 1e20 * points, k, initial_centroids=1e20 * points[-k:])
    sizes = np.bincount(found.labels, minlength=k)
    assert sizes.max() - sizes.min() <= 1 and sizes.sum() == n
    assert np.isfinite(found.centroids).all()


def test_the_number_of_groups_is_found_by_both_scores():
    points = groups((70, 50, 60))
    options = {"restarts": 9, "seeding": "random", "chunk_size": 90}
    found = choose_k(KEY, points, [2, np.int64(3), 5], sample=100, **options)
    assert found.k == 3 and found.ks.tolist() == [2, 3, 5]
    assert (found.silhouettes[1] > found.silhouettes[[0, 2]]).all()
    assert (found.bic[1] > found.bic[[0, 2]]).all() and (np.diff(found.inertias) < 0).all()
    # Against scikit-learn, and the likelihood written out.
    fit_key, _ = jax.random.split(KEY)
    labels = np.asarray(kmeans(fit_key, points, 3, **options).labels)
    assert found.silhouettes[1] == pytest.approx(silhouette_score(points, labels), abs=0.02)
    (n, d), k = points.shape, 3
    means = np.stack([points[labels == j].mean(0) for j in range(k)]).astype(float)
    squares = ((points - means[labels]) ** 2).sum(1)
    variance = squares.sum() / d / (n - k)
    shares = np.bincount(labels)[labels] / n
    log_density = np.log(shares) - d / 2 * np.log(2 * np.pi * variance) - squares / 2 / variance
    assert found.bic[1] == pytest.approx(log_density.sum() - k * (d + 1) / 2 * np.log(n), rel=1e-4)


@pytest.mark.fast
def test_matched_centroids_have_the_least_sum_of_squares():
    rng = np.random.default_rng(0)
    earlier = rng.normal(size=(5, 3))
    for centroids in (earlier[[2, 0, 4, 1, 3]] + 0.01, rng.normal(size=(5, 3))):
        order = match_centroids(earlier, centroids)
        squared = cdist(earlier, centroids, "sqeuclidean")
        best = min(permutations(range(5)), key=lambda p: squared[np.arange(5), p].sum())
        assert order.tolist() == list(best)
    order = match_centroids(earlier, earlier[[2, 0, 4, 1, 3]])
    # Labels of the other fit in the numbers of the earlier one.
    assert np.argsort(order)[[0, 1, 2]].tolist() == [2, 0, 4]


@pytest.mark.fast
def test_wrong_arguments_are_named():
    points = np.arange(8.0).reshape(4, 2)
    for arguments, message in [
        ({"ks": []}, "at least one"),
        ({"ks": [4]}, "between 1 and the number of points, 3; it is 4"),
        ({"ks": [2], "score": "gap"}, "score must be 'silhouette' or 'bic'"),
        ({"ks": [2], "weights": np.ones(4)}, "choose_k takes no weights"),
    ]:
        with pytest.raises(ValueError, match=message):
            choose_k(KEY, points, **arguments)
    with pytest.raises(ValueError, match=r"of shape \(2, 2\) and \(3, 2\)"):
        match_centroids(points[:2], points[:3])
    with pytest.raises(ValueError, match=r"must have shape \(2, 2\), not \(3, 2\)"):
        balanced_kmeans(KEY, points, 2, initial_centroids=points[:3])
