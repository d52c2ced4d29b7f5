"""Losses and the objective against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from retrieval_jax.models import Outputs
from retrieval_jax.objectives import (
    Batch,
    Loss,
    Seen,
    Term,
    classification,
    cross_entropy,
    evaluate,
    mean_of,
    mean_squared_error,
    means_over_devices,
    reconstruction,
    totalled,
)

pytestmark = pytest.mark.fast
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.random((5, 3, 4, 2), np.float32)
RECONSTRUCTION = GENERATOR.random((5, 3, 4, 2), np.float32)
LOGITS = GENERATOR.normal(0, 3, (5, 7)).astype(np.float32)
LABELS = np.array([0, 6, 3, 3, 1], np.int32)


def expected_cross_entropy(smoothing):
    targets = np.full((5, 7), smoothing / 7)
    targets[np.arange(5), LABELS] += 1 - smoothing
    return -(targets * log_softmax(LOGITS.astype(np.float64), 1)).sum(1)


def expected_squared_error():
    return ((RECONSTRUCTION.astype(np.float64) - IMAGES) ** 2).mean((1, 2, 3))


def test_mean_squared_error():
    result = mean_squared_error(jnp.asarray(RECONSTRUCTION), jnp.asarray(IMAGES))
    np.testing.assert_allclose(result, expected_squared_error(), rtol=1e-6)


def test_mean_squared_error_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="differ"):
        mean_squared_error(jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 1)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy(smoothing):
    result = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), label_smoothing=smoothing)
    np.testing.assert_allclose(result, expected_cross_entropy(smoothing), rtol=1e-5)


def test_cross_entropy_of_huge_logits_is_finite():
    result = cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]))
    assert result.tolist() == [2e4]


@pytest.mark.parametrize(
    ("logits", "labels", "smoothing"), [((5, 7), (4,), 0.0), ((5,), (5,), 0.0), ((5, 7), (5,), 1.0)]
)
def test_cross_entropy_refuses(logits, labels, smoothing):
    with pytest.raises(ValueError, match="labels|label_smoothing"):
        cross_entropy(jnp.zeros(logits), jnp.zeros(labels, int), label_smoothing=smoothing)


def seen(images, labels, rows, outputs, step=0):
    batch = Batch(images, jnp.asarray(labels), jnp.asarray(rows))
    return Seen(outputs, None, batch, None, jax.random.key(0), jnp.asarray(step), "devices")


def test_the_objective_weighs_and_names_its_terms_over_views_and_devices():
    """Three devices: five examples, of which one pads; two views; two labels are hidden."""
    views = 2
    images = GENERATOR.random((3, views, 2, 3, 4, 2), np.float32)
    ours = GENERATOR.random(images.shape, np.float32)
    logits = GENERATOR.normal(0, 3, (3, views, 2, 7)).astype(np.float32)
    labels = np.array([[0, -1], [-5, 6], [3, 3]], np.int32)  # any negative one is hidden
    rows = np.array([[4, 0], [7, 8], [2, -1]])
    ours[2, :, 1], logits[2, :, 1] = np.nan, np.inf  # of what pads
    objective = {
        "reconstruction": reconstruction()._replace(weight=optax.linear_schedule(0.0, 4.0, 4)),
        "classification": classification(0.25, label_smoothing=0.1),
    }

    def on_device(images, ours, logits, labels, rows):
        outputs = Outputs(jnp.zeros((views, 2, 1)), (ours,), logits)
        found = seen((images,), labels, rows, outputs, step=3)
        losses, _ = evaluate(objective, found, {"reconstruction": (), "classification": ()})
        means = totalled(objective, means_over_devices(losses, "devices"), found.step)
        assert list(means) == ["loss", "reconstruction", "classification"]
        return jax.lax.pmean(means, "devices")

    mapped = jax.vmap(on_device, axis_name="devices")
    terms = jax.tree.map(lambda x: x[0], mapped(images, ours, logits, labels, rows))
    real = np.broadcast_to((rows >= 0)[:, None], (3, views, 2))
    known = np.broadcast_to(((rows >= 0) & (labels >= 0))[:, None], (3, views, 2))
    squared = ((ours.astype(np.float64) - images) ** 2).mean((3, 4, 5))[real].mean()
    targets = np.full((3, views, 2, 7), 0.1 / 7)
    np.put_along_axis(
        targets, np.maximum(labels, 0)[:, None, :, None].repeat(views, 1), 0.9 + 0.1 / 7, 3
    )
    with np.errstate(invalid="ignore"):
        entropy = -(targets * log_softmax(logits.astype(np.float64), 3)).sum(3)[known].mean()
    assert terms["reconstruction"] == pytest.approx(squared, rel=1e-6)
    assert terms["classification"] == pytest.approx(entropy, rel=1e-5)
    assert terms["loss"] == pytest.approx(3 * squared + 0.25 * entropy, rel=1e-5)


def test_each_term_has_its_own_memory_and_key():
    keys = {}

    def counting(name):
        def loss(seen):
            keys[name] = jax.random.key_data(seen.key).tolist()
            return Loss(jnp.float32(1), jnp.float32(2), seen.memory + 1)

        return Term(loss)

    objective = {"a": counting("a"), "b": counting("b")}
    outputs = Outputs(jnp.zeros((1, 1, 1)))
    losses, memory = evaluate(objective, seen((), [0], [0], outputs), {"a": 1, "b": 5})
    assert memory == {"a": 2, "b": 6} and keys["a"] != keys["b"]
    # An added term leaves the others their draws.
    before = dict(keys)
    evaluate({"b": objective["b"]}, seen((), [0], [0], outputs), {"b": 5})
    assert keys == before


def test_a_term_that_says_nothing_of_its_memory_keeps_it():
    forgetful = {"a": Term(lambda seen: Loss(jnp.float32(1), jnp.float32(2)))}
    _, memory = evaluate(forgetful, seen((), [0], [0], None), {"a": {"centroids": 3}})
    assert memory == {"a": {"centroids": 3}}


def test_a_mean_of_nothing_is_0_and_has_no_gradient_of_nan():
    batch = Batch((), jnp.array([0, 0]), jnp.array([-1, -1]))

    def mean(values):
        loss = mean_of(values, batch)
        means = jax.vmap(lambda _: means_over_devices({"a": loss}, "i")["a"], axis_name="i")
        return means(jnp.zeros(1))[0]

    value, gradient = jax.value_and_grad(mean)(jnp.array([jnp.nan, 1.0]))
    assert value == 0 and gradient.tolist() == [0, 0]
