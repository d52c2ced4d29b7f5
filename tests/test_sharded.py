"""Over all devices as on one."""

import jax
import numpy as np
import pytest

from retrieval_jax import sharded
from retrieval_jax.kmeans import kmeans
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
    np.testing.assert_allclose(found.centroids, alone.centroids, rtol=1e-4, atol=1e-4)
    assert float(found.inertia) == pytest.approx(float(alone.inertia), rel=1e-5)


def test_k_means_from_given_centroids_with_weights():
    points, weights = normal(700, 4), np.arange(700) % 3
    options = {"initial_centroids": points[:5], "weights": weights, "max_iterations": 3}
    found, alone = (fit(KEY, points, 5, **options) for fit in (sharded.kmeans, kmeans))
    np.testing.assert_allclose(found.centroids, alone.centroids, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_finds_what_one_device_does(metric):
    gallery, mask = normal(333, 6), np.arange(333) % 5 > 0
    options = {"metric": metric, "mask": mask}
    found, alone = (
        search(gallery[:40], gallery, 12, **options) for search in (sharded.nearest, nearest)
    )
    np.testing.assert_array_equal(found.indices, alone.indices)
    np.testing.assert_array_equal(found.distances, alone.distances)


def test_wrong_arguments_are_named():
    with pytest.raises(
        ValueError, match="k must be between 1 and the number of points, 9; it is 10"
    ):
        sharded.kmeans(KEY, np.zeros((9, 2)), 10)
    with pytest.raises(ValueError, match="points must be finite"):
        sharded.kmeans(KEY, np.full((9, 2), np.nan), 2)
    with pytest.raises(ValueError, match="gallery must be finite"):
        sharded.nearest(np.zeros((1, 2)), np.full((9, 2), np.nan), 2)
    with pytest.raises(ValueError, match="mask must be 9 booleans, one a gallery row; it is int"):
        sharded.nearest(np.zeros((1, 2)), np.zeros((9, 2)), 2, mask=np.ones(9, int))
