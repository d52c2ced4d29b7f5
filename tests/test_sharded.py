"""Over all devices as on one."""

import jax
import numpy as np
import pytest

from retrieval_jax import sharded
from retrieval_jax.kmeans import kmeans, predict
from retrieval_jax.ranking import cells as cluster_index
from retrieval_jax.ranking import nearest

KEY = jax.random.key(3)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_k_means_finds_what_one_device_does():
    assert len(jax.local_devices()) > 1
    points = normal(1501, 5).astype(np.float32) + np.arange(5)
    options = {"restarts": 2, "max_iterations": 5, "tolerance": 0.0}
    found, alone = (fit(KEY, points, 6, **options) for fit in (sharded.kmeans, kmeans))
    assert found.labels.shape == (1501,)
    assert (found.labels == alone.labels).mean() > 0.998
    np.testing.assert_array_equal(found.labels, predict(points, found.centroids))
    np.testing.assert_allclose(found.centroids, alone.centroids, rtol=1e-4, atol=1e-4)
    assert float(found.inertia) == pytest.approx(float(alone.inertia), rel=1e-5)


def test_k_means_from_given_centroids_with_weights():
    points, weights = normal(700, 4), np.arange(700) % 3
    options = {"initial_centroids": points[:5], "weights": weights, "max_iterations": 3}
    found, alone = (fit(KEY, points, 5, **options) for fit in (sharded.kmeans, kmeans))
    np.testing.assert_allclose(found.centroids, alone.centroids, rtol=1e-4, atol=1e-4)
    # Five clusters of three points: some of the centroids differ in the last bit or not at all.
    few = np.repeat(points[:3], 234, axis=0)[:700].astype(np.float32)
    options |= {"initial_centroids": few[[0, 300, 300, 600, 0]], "max_iterations": np.int64(3)}
    found = sharded.kmeans(KEY, few, 5, tolerance=jax.numpy.float32(0), **options)
    np.testing.assert_array_equal(found.labels, predict(few, found.centroids))
    squared = ((few[:, None] - np.asarray(found.centroids)) ** 2).sum(2)
    np.testing.assert_array_equal(found.labels, squared.argmin(1))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_finds_what_one_device_does(metric):
    gallery, mask = normal(333, 6), np.arange(333) % 5 > 0
    options = {"metric": metric, "mask": mask}
    found, alone = (
        search(gallery[:40], gallery, 12, **options) for search in (sharded.nearest, nearest)
    )
    np.testing.assert_array_equal(found.indices, alone.indices)
    np.testing.assert_array_equal(found.distances, alone.distances)


@pytest.mark.fast
def test_wrong_arguments_are_named():
    with pytest.raises(
        ValueError, match="k must be between 1 and the number of points, 9; it is 10"
    ):
        sharded.kmeans(KEY, np.zeros((9, 2)), 10)
    with pytest.raises(ValueError, match=r"\[n, d\] array; the shape is \(1001,\)"):
        sharded.kmeans(KEY, np.zeros(1001), 2)
    with pytest.raises(ValueError, match="number of points, 1001; it is 1002"):
        sharded.kmeans(KEY, np.zeros((1001, 1)), 1002)
    with pytest.raises(ValueError, match="k must be an integer, not traced by jit; it is 2.0"):
        sharded.kmeans(KEY, np.zeros((9, 2)), 2.0)
    with pytest.raises(ValueError, match="weights must be one for each of the 9 points"):
        sharded.kmeans(KEY, np.zeros((9, 2)), 2, weights=np.ones(16))
    with pytest.raises(ValueError, match="points must be finite"):
        sharded.kmeans(KEY, np.full((9, 2), np.nan), 2)
    with pytest.raises(ValueError, match="gallery must be finite"):
        sharded.nearest(np.zeros((1, 2)), np.full((9, 2), np.nan), 2)
    with pytest.raises(ValueError, match="mask must be 9 booleans, one a gallery row; it is int"):
        sharded.nearest(np.zeros((1, 2)), np.zeros((9, 2)), 2, mask=np.ones(9, int))


@pytest.mark.parametrize(("rows", "k", "probes"), [(1000, 10, 2), (1000, 10, 1), (13, 20, 2)])
def test_search_in_cells_finds_what_one_device_does(rows, k, probes):
    gallery, queries = 1e3 + normal(rows, 5), 1e3 + normal(17, 5, seed=1)
    gallery[rows // 2] = gallery[0]  # a tie, in another shard
    centroids = gallery[:4] + 0.1
    labels = ((gallery[:, None] - centroids) ** 2).sum(2).argmin(1)
    labels[labels == 2] = 3  # an empty cell
    cells = np.stack([np.arange(17) % 4, (np.arange(17) + 1) % 4], 1)[:, :probes]
    one = cluster_index.search_cells(
        cluster_index.group(gallery, labels, centroids), queries, cells, k
    )
    many = sharded.search_cells(queries, cells, gallery, labels, centroids, k)
    np.testing.assert_array_equal(many.indices, one.indices)
    np.testing.assert_allclose(many.distances, one.distances, rtol=1e-6)
    # An independent oracle: float64, row by row.
    for query, chosen, found in zip(queries, cells, np.asarray(many.indices), strict=True):
        inside = np.flatnonzero(np.isin(labels, chosen))
        squared = ((gallery[inside].astype(float) - query) ** 2).sum(1)
        best = inside[np.lexsort((inside, squared))][:k]
        np.testing.assert_array_equal(found[: len(best)], best)
        assert (found[len(best) :] == -1).all()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"labels": [0, 1]}, "labels must be integers of shape"),
        ({"labels": [0, 1, 2]}, "labels must be in 0..1"),
        ({"cells": [[0, 0]]}, "name no cell twice"),
        ({"cells": [[2]]}, "cells must be in 0..1"),
        ({"gallery": [[0.0], [np.nan], [1.0]]}, "gallery must be finite"),
        ({"queries": [[np.inf]]}, "queries must be finite"),
        ({"k": 0}, "k must be at least 1"),
    ],
)
@pytest.mark.fast
def test_wrong_cells_are_named(changed, says):
    right = {
        "queries": [[1.5]],
        "cells": [[0]],
        "gallery": [[0.0], [9.0], [1.0]],
        "labels": [0, 1, 0],
        "centroids": [[0.5], [9.0]],
        "k": 2,
    }
    with pytest.raises(ValueError, match=says):
        sharded.search_cells(**right | changed)
