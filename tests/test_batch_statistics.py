"""BatchNorm's statistics after training, beside means and variances taken by NumPy."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from retrieval_jax.runtime import devices
from retrieval_jax.training.batch_statistics import reestimated


class Network(nn.Module):
    """BatchNorm on raw pixels, of two momenta, and dropout; one constant channel."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.BatchNorm(not train, momentum=0.99, axis_name=devices.AXIS, name="slow")(images)
        nn.BatchNorm(not train, momentum=0.5, axis_name=devices.AXIS, name="fast")(images * 1000)
        return nn.Dropout(0.5, deterministic=not train)(x)


@pytest.fixture(scope="module")
def images():
    images = np.random.default_rng(0).integers(0, 256, (1100, 4, 4, 3), np.uint8)
    images[..., 2] = 0
    return images


@pytest.fixture(scope="module")
def variables(images):
    initial = jax.jit(Network().init)(jax.random.key(0), np.zeros((1, 4, 4, 3), np.float32))
    strange = jax.tree.map(lambda x: x + 7, initial["batch_stats"])
    return jax.device_get({**initial, "batch_stats": strange})


def expected(parts):
    """Means over parts [p, …, c] of each part's mean and variance."""
    flat = parts.reshape(len(parts), -1, parts.shape[-1]).astype(np.float64) / 255
    return flat.mean(1).mean(0), flat.var(1).mean(0)


@pytest.mark.parametrize("crops", [0, 2])
def test_they_are_the_means_over_whole_batches(images, variables, crops):
    found = reestimated(Network(), variables, images, crops=crops)
    parts = images[:1024].reshape(2, 512, 4, 4, 3)
    if crops:
        parts = images[: 19 * 56].reshape(19, 56, 4, 4, 3)
        corners = [(top, left) for top in (0, 1, 2) for left in (0, 1, 2)]
        parts = np.stack([parts[:, :, i : i + 2, j : j + 2] for i, j in corners], 1)
    mean, variance = expected(parts)
    for name, scale in (("slow", 1), ("fast", 1000)):
        kept = found["batch_stats"][name]
        np.testing.assert_allclose(kept["mean"], scale * mean, rtol=1e-4)
        np.testing.assert_allclose(kept["var"], scale**2 * variance, rtol=1e-4)
        assert kept["mean"][2] == kept["var"][2] == 0


def test_nothing_else_changes(images, variables):
    found = reestimated(Network(), variables, images)
    assert jax.tree.all(jax.tree.map(np.array_equal, found["params"], variables["params"]))
    assert reestimated(nn.Dense(2), {"params": 1}, images) == {"params": 1}


def test_fewer_images_than_a_batch_are_one(images, variables):
    found = reestimated(Network(), variables, images[:20])  # 16 on eight devices
    mean, _ = expected(images[None, :16])
    np.testing.assert_allclose(found["batch_stats"]["slow"]["mean"], mean, rtol=1e-4)
