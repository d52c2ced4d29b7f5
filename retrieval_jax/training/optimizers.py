"""Optimizers by optax's names, and learning rates.

An optimizer of a config is a function that returns an optax transformation: its parameters with
defaults are the config's keys, `optimizer.<name>.<key>`, and `rate` is the learning rate, or its
schedule of the updates. Weight decay is of kernels (two axes or more) alone.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax import contrib


def adam(
    rate: float | optax.Schedule, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-7
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980).

    Args:
      rate: the learning rate.
      b1: decay of the mean of gradients.
      b2: decay of the mean of squared gradients.
      epsilon: added to the root of the latter.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    _check(b1=b1, b2=b2, epsilon=epsilon)
    return optax.adam(rate, b1, b2, epsilon)


def adamw(
    rate: float | optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-7,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Args:
      rate: the learning rate.
      b1: decay of the mean of gradients.
      b2: decay of the mean of squared gradients.
      epsilon: added to the root of the latter.
      weight_decay: of kernels, times the rate; 0 is Adam.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    _check(b1=b1, b2=b2, epsilon=epsilon, weight_decay=weight_decay)
    return optax.adamw(rate, b1, b2, epsilon, weight_decay=weight_decay, mask=_kernels)


def sgd(
    rate: float | optax.Schedule, momentum: float = 0.9, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Gradient descent with momentum.

    Args:
      rate: the learning rate.
      momentum: share of the old in the mean of gradients.
      weight_decay: of kernels, added to the gradient.

    Raises:
      ValueError: names the parameter that is out of range.

    Example:
      >>> bias, plain = jax.numpy.ones(1), sgd(0.1, momentum=0.0)
      >>> plain.update(2 * bias, plain.init(bias), bias)[0].tolist()
      [-0.20000000298023224]
    """
    _check(momentum=momentum, weight_decay=weight_decay)
    return optax.chain(optax.add_decayed_weights(weight_decay, _kernels), optax.sgd(rate, momentum))


def lars(
    rate: float | optax.Schedule, momentum: float = 0.9, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Gradient descent with a trust ratio per kernel (You et al. 2017, arXiv:1708.03888).

    Args:
      rate: the learning rate.
      momentum: share of the old in the mean of gradients.
      weight_decay: of kernels, added to the gradient.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    _check(momentum=momentum, weight_decay=weight_decay)
    return optax.lars(
        rate,
        weight_decay,
        weight_decay_mask=_kernels,
        trust_ratio_mask=_kernels,
        momentum=momentum,
    )


def muon(
    rate: float | optax.Schedule,
    momentum: float = 0.9,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-7,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Orthogonal momentum for kernels (Jordan et al. 2024), Adam for biases and scales.

    A kernel is taken as a matrix of all inputs, positions included, by outputs; updates are scaled
    to the size of Adam's (Liu et al. 2025, "Muon is scalable for LLM training", arXiv:2502.16982),
    so that one learning rate serves both.

    Args:
      rate: the learning rate.
      momentum: of kernels: share of the old in the mean of gradients.
      b1: of biases: decay of the mean of gradients.
      b2: of biases: decay of the mean of squared gradients.
      epsilon: added to the root of the latter, and to norms of kernels.
      weight_decay: of kernels, times the rate.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    _check(momentum=momentum, b1=b1, b2=b2, epsilon=epsilon, weight_decay=weight_decay)
    return contrib.muon(
        rate,
        beta=momentum,
        eps=epsilon,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        muon_weight_dimension_numbers=_as_matrices,
        consistent_rms=0.2,
    )


OPTIMIZERS = (adamw, adam, sgd, lars, muon)


def learning_rate(
    peak: float, steps: int, warmup_fraction: float, decay: str
) -> float | optax.Schedule:
    """`peak` at every step, or a schedule of the steps' numbers.

    Args:
      peak: the highest rate.
      steps: updates in all.
      warmup_fraction: share of them, in [0, 1), over which the rate rises linearly from 0.
      decay: after it "none", or "linear" or "cosine" from the peak to 0 at the end.

    Raises:
      ValueError: names the parameter that is out of range.

    Example:
      >>> rate = learning_rate(1.0, 10, 0.2, "linear")
      >>> [float(rate(step)) for step in (0, 1, 2, 6, 10)]
      [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if not 0 < peak < float("inf"):
        raise ValueError(f"learning_rate must be a positive number, got {peak}")
    if not 0 <= warmup_fraction < 1:
        raise ValueError(f"warmup_fraction must be at least 0 and below 1, got {warmup_fraction}")
    warmup = round(steps * warmup_fraction)
    left = max(steps - warmup, 1)
    if decay == "cosine":
        after = optax.cosine_decay_schedule(peak, left)
    elif decay == "linear":
        after = optax.linear_schedule(peak, 0.0, left)
    elif decay == "none":
        if warmup_fraction == 0:
            return peak
        after = optax.constant_schedule(peak)
    else:
        raise ValueError(f"decay must be 'none', 'linear' or 'cosine', got {decay!r}")
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _check(**values: float) -> None:
    """Refuses what is out of range, by its name."""
    for name, value in values.items():
        if name == "epsilon" and not 0 < value < float("inf"):
            raise ValueError(f"epsilon must be a positive number, got {value}")
        if name == "weight_decay" and not 0 <= value < float("inf"):
            raise ValueError(f"weight_decay must be at least 0, got {value}")
        if name in ("b1", "b2", "momentum") and not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {value}")


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _as_matrices(params: Any) -> Any:
    return jax.tree.map(
        lambda p: (
            contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1)
            if p.ndim > 1
            else None
        ),
        params,
    )
