"""Optimizers and learning rates by optax's names, from plain numbers."""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax import contrib

# What each optimizer takes beside the learning rate.
KEYS = {
    "adam": {"b1", "b2", "epsilon"},
    "adamw": {"b1", "b2", "epsilon", "weight_decay"},
    "sgd": {"momentum", "weight_decay"},
    "lars": {"momentum", "weight_decay"},
    "muon": {"b1", "b2", "epsilon", "momentum", "weight_decay"},
}


def build_optimizer(
    name: str,
    rate: float | optax.Schedule,
    *,
    b1: float,
    b2: float,
    epsilon: float,
    momentum: float,
    weight_decay: float,
) -> optax.GradientTransformation:
    """The optimizer of that name; what `KEYS` doesn't list for it is not used.

    Weight decay is of kernels (two axes or more) alone: decoupled in adamw and muon, added to the
    gradient in sgd and lars, whose trust ratio is of kernels alone, too.

    Muon (Jordan et al. 2024) makes each kernel's momentum orthogonal, taken as a matrix of all
    inputs, positions included, by outputs; its updates are scaled to the size of Adam's (Liu et
    al. 2025, "Muon is scalable for LLM training", arXiv:2502.16982), so that one learning rate
    serves the kernels and the biases and scales, which go by Adam.

    Raises:
      ValueError: there is no such name.

    Example:
      >>> sgd = build_optimizer("sgd", 0.1, b1=0, b2=0, epsilon=0, momentum=0, weight_decay=0)
      >>> bias = jax.numpy.ones(1)
      >>> sgd.update(2 * bias, sgd.init(bias), bias)[0].tolist()
      [-0.20000000298023224]
    """
    if name == "adam":
        return optax.adam(rate, b1, b2, epsilon)
    if name == "adamw":
        return optax.adamw(rate, b1, b2, epsilon, weight_decay=weight_decay, mask=_kernels)
    if name == "sgd":
        decay = optax.add_decayed_weights(weight_decay, _kernels)
        return optax.chain(decay, optax.sgd(rate, momentum))
    if name == "lars":
        return optax.lars(
            rate,
            weight_decay,
            weight_decay_mask=_kernels,
            trust_ratio_mask=_kernels,
            momentum=momentum,
        )
    if name == "muon":
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
    raise ValueError(f"the optimizer must be one of {', '.join(KEYS)}, got {name!r}")


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
      ValueError: there is no such decay.

    Example:
      >>> rate = learning_rate(1.0, 10, 0.2, "linear")
      >>> [float(rate(step)) for step in (0, 1, 2, 6, 10)]
      [0.0, 0.5, 1.0, 0.5, 0.0]
    """
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
        raise ValueError(f"decay must be none, linear or cosine, got {decay!r}")
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


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
