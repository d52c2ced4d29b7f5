"""The training objective: named losses and their weights, each logged beside the weighted total."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from retrieval_jax.models import Outputs
from retrieval_jax.objectives.losses import cross_entropy, mean_squared_error

TOTAL = "loss"


class Batch(NamedTuple):
    """A batch on the device."""

    images: jax.Array  # float32 [n, h, w, c] in [0, 1]
    labels: jax.Array  # int32 [n]; all zero where the data has none


class Term(NamedTuple):
    """One loss of the objective: a value per example [n], and its weight (or schedule of steps)."""

    loss: Callable[[Outputs, Batch], jax.Array]
    weight: float | optax.Schedule


Objective = Mapping[str, Term]


def reconstruction_term(weight: float | optax.Schedule) -> Term:
    """Mean squared error of the reconstruction."""
    return Term(
        lambda outputs, batch: mean_squared_error(outputs.reconstruction, batch.images), weight
    )


def classification_term(weight: float | optax.Schedule, label_smoothing: float = 0.0) -> Term:
    """Cross-entropy of the head's logits; the model needs a head."""

    def loss(outputs: Outputs, batch: Batch) -> jax.Array:
        if outputs.logits is None:
            raise ValueError("a classification loss needs a model with a head")
        return cross_entropy(outputs.logits, batch.labels, label_smoothing=label_smoothing)

    return Term(loss, weight)


def evaluate(
    objective: Objective, outputs: Outputs, batch: Batch, step: jax.Array
) -> dict[str, jax.Array]:
    """Every term of the objective by name, and their weighted sum under "loss".

    Args:
      objective: named terms, at least one.
      outputs: the model's outputs for the batch of n examples.
      batch: the batch.
      step: int32 scalar, where weights are schedules.

    Returns:
      name → float [n], "loss" first.
    """
    values = {name: term.loss(outputs, batch) for name, term in objective.items()}
    weights = {
        name: term.weight(step) if callable(term.weight) else term.weight
        for name, term in objective.items()
    }
    weighted = jnp.stack([weights[name] * value for name, value in values.items()])
    return {TOTAL: weighted.sum(0), **values}
