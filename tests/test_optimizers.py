"""Optimizers and rates beside the textbooks in NumPy float64."""

import inspect

import jax
import numpy as np
import optax
import pytest

from retrieval_jax.training import optimizers
from retrieval_jax.training.optimizers import OPTIMIZERS, learning_rate

NUMBERS = {"b1": 0.8, "b2": 0.95, "epsilon": 1e-6, "momentum": 0.7}
PARAMS = {
    "conv": np.random.default_rng(0).normal(size=(2, 2, 3, 5)).astype(np.float32),
    "bias": np.array([0.5, -1.0, 2.0], np.float32),
}


def gradients(step):
    generator = np.random.default_rng(step)
    return {name: generator.normal(size=p.shape).astype(np.float32) for name, p in PARAMS.items()}


def built(name, rate, **changes):
    """The optimizer with those of the numbers that it takes."""
    function = getattr(optimizers, name)
    taken = inspect.signature(function).parameters
    return function(rate, **{k: v for k, v in (NUMBERS | changes).items() if k in taken})


def after(name, steps=4, rate=0.1, decay=0.0):
    optimizer = built(name, rate, weight_decay=decay)
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(steps):
        updates, state = jax.jit(optimizer.update)(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def adam(p, grads, rate, decay):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        p = p - rate * ((m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6) + decay * p)
    return p


def sgd(p, grads, rate, decay):
    velocity = 0.0
    for g in grads:
        velocity = 0.7 * velocity + g + decay * p
        p = p - rate * velocity
    return p


def lars(p, grads, rate, decay):
    """You et al. 2017, algorithm 1, with the rate inside the momentum; vectors go by plain SGD."""
    velocity = 0.0
    for g in grads:
        g = g + decay * p
        if p.ndim > 1:
            g = g * 1e-3 * np.linalg.norm(p) / np.linalg.norm(g)
        velocity = 0.7 * velocity + rate * g
        p = p - velocity
    return p


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "decay", "textbook"),
    [
        ("adam", 0.0, adam),
        ("adamw", 0.0, adam),
        ("adamw", 0.3, adam),
        ("sgd", 0.0, sgd),
        ("sgd", 0.3, sgd),
        ("lars", 0.3, lars),
    ],
)
def test_the_optimizer_is_the_textbooks(name, decay, textbook):
    result = after(name, decay=decay)
    for part, p in PARAMS.items():
        grads = [gradients(step)[part].astype(np.float64) for step in range(4)]
        expected = textbook(p.astype(np.float64), grads, 0.1, decay if p.ndim > 1 else 0.0)
        np.testing.assert_allclose(result[part], expected, rtol=2e-5, atol=1e-6)


def test_muon_makes_a_kernels_update_orthogonal_as_a_matrix_of_inputs_by_outputs():
    change = (after("muon", steps=1)["conv"] - PARAMS["conv"]).reshape(-1, 5)
    values = np.linalg.svd(change, compute_uv=False)
    # Newton and Schulz's five steps leave singular values within a third or so of 1.
    scale = 0.1 * 0.2 * np.sqrt(12)
    assert np.all(values > 0.6 * scale) and np.all(values < 1.4 * scale)
    # The gradient's own singular values differ far more, and the update goes down the gradient.
    gradient = gradients(0)["conv"].reshape(-1, 5)
    assert np.ptp(np.linalg.svd(gradient, compute_uv=False)) > 1.5
    assert np.sum(change * gradient) < 0
    # Its singular vectors are the gradient's.
    u, _, vt = np.linalg.svd(gradient.astype(np.float64), full_matrices=False)
    core = u.T @ change @ vt.T
    np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=0.02 * scale)
    decayed = after("muon", steps=1, decay=0.3)
    np.testing.assert_allclose(
        decayed["conv"] - after("muon", steps=1)["conv"], -0.1 * 0.3 * PARAMS["conv"], atol=1e-6
    )
    np.testing.assert_array_equal(decayed["bias"], after("muon", steps=1)["bias"])


@pytest.mark.fast
@pytest.mark.parametrize("function", OPTIMIZERS, ids=lambda function: function.__name__)
def test_what_is_out_of_range_is_refused_by_name(function):
    wrong = {"b1": 1.0, "b2": -0.1, "epsilon": 0.0, "momentum": float("nan"), "weight_decay": -1.0}
    taken = inspect.signature(function).parameters.keys() - {"rate"}
    assert taken and taken <= wrong.keys()
    for name in taken:
        with pytest.raises(ValueError, match=f"^{name} must be .*, got {wrong[name]}"):
            function(0.1, **{name: wrong[name]})


@pytest.mark.fast
def test_rates():
    assert learning_rate(0.5, 10, 0.0, "none") == 0.5
    half_cosine = [(1 + np.cos(np.pi * i / 6)) / 2 for i in range(7)]
    for decay, fall in {
        "none": [1] * 7,
        "linear": np.linspace(1, 0, 7),
        "cosine": half_cosine,
    }.items():
        rate = learning_rate(2.0, 8, 0.25, decay)
        np.testing.assert_allclose(
            [float(rate(step)) for step in range(9)], [0, 1, *(2 * np.array(fall))], atol=1e-6
        )
    for wrong, says in {
        (1.0, 8, 0.0, "rise"): "decay must be .*, got 'rise'",
        (0.0, 8, 0.0, "none"): "learning_rate must be a positive number, got 0.0",
        (np.inf, 8, 0.0, "none"): "learning_rate must be",
        (1.0, 8, 1.0, "none"): "warmup_fraction must be at least 0 and below 1, got 1.0",
    }.items():
        with pytest.raises(ValueError, match=f"^{says}"):
            learning_rate(*wrong)
