"""Losses and the objective against NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from retrieval_jax.models import Outputs
from retrieval_jax.objectives.losses import cross_entropy, mean_squared_error
from retrieval_jax.objectives.objective import (
    Batch,
    classification_term,
    evaluate,
    reconstruction_term,
)

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


def test_the_objective_weighs_and_names_its_terms():
    outputs = Outputs(jnp.zeros((5, 2)), jnp.asarray(RECONSTRUCTION), jnp.asarray(LOGITS))
    batch = Batch(jnp.asarray(IMAGES), jnp.asarray(LABELS))
    objective = {
        "reconstruction": reconstruction_term(optax.linear_schedule(0.0, 4.0, 4)),
        "classification": classification_term(0.25, label_smoothing=0.1),
    }
    terms = evaluate(objective, outputs, batch, jnp.asarray(3))
    assert list(terms) == ["loss", "reconstruction", "classification"]
    total = 3 * expected_squared_error() + 0.25 * expected_cross_entropy(0.1)
    np.testing.assert_allclose(terms["loss"], total, rtol=1e-5)
    np.testing.assert_allclose(terms["reconstruction"], expected_squared_error(), rtol=1e-6)


def test_a_classification_loss_needs_a_head():
    outputs = Outputs(jnp.zeros((1, 2)), jnp.zeros((1, 1, 1, 1)), None)
    batch = Batch(jnp.zeros((1, 1, 1, 1)), jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match="needs a model with a head"):
        evaluate({"classification": classification_term(1.0)}, outputs, batch, jax.numpy.asarray(0))
