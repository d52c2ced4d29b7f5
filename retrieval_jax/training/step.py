"""The pure training and validation steps, written for one device with a named axis around them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from retrieval_jax.models import AutoEncoder
from retrieval_jax.objectives.objective import TOTAL, Batch, Objective, evaluate


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: jax.Array  # int32 scalar, steps done
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    average: dict[str, Any] | None = None  # of params and batch_stats, where averages are kept

    @property
    def variables(self) -> dict[str, Any]:
        """What the trained model is applied with: the averages, where there are any."""
        if self.average is not None:
            return self.average
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model: AutoEncoder,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, int, int],
    *,
    averaged: bool = False,
) -> TrainState:
    """Initial parameters, statistics and optimizer state for images [h, w, c].

    With `averaged` there is room for averages, which start at nothing.
    """
    variables = jax.jit(model.init)(key, jnp.zeros((1, *image_shape)))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        average=jax.tree.map(jnp.zeros_like, variables) if averaged else None,
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: AutoEncoder,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    axis_name: str,
    ema_decay: float = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of gradient descent on this device's share of the batch.

    Args:
      state: the same on every device.
      batch: this device's share [n, …].
      model: its `axis_name` equals this one's, so that BatchNorm sees the whole batch.
      objective: named, weighted losses.
      optimizer: any optax transformation.
      axis_name: the mapped axis of devices.
      ema_decay: share of the old in the state's averages, where it has any.

    Returns:
      The next state, the same on every device, and name → float scalar, the mean of each term over
      the whole batch, taken before the update.
    """

    def mean_loss(params):
        outputs, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch.images,
            True,
            mutable=["batch_stats"],
        )
        terms = evaluate(objective, outputs, batch, state.step)
        means = {name: jnp.mean(values) for name, values in terms.items()}
        return means[TOTAL], (means, updates["batch_stats"])

    gradients, (metrics, batch_stats) = jax.grad(mean_loss, has_aux=True)(state.params)
    gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = _averaged(state, {"params": params, "batch_stats": batch_stats}, ema_decay)
    return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics


def _averaged(state: TrainState, variables: dict[str, Any], decay: float) -> dict[str, Any] | None:
    if state.average is None:
        return None
    # The exponential average divided by the sum of its weights, 1 - decay^steps, in one update: the
    # first step takes the variables as they are, and nothing has to be divided where it is used.
    steps = (state.step + 1).astype(jnp.float32)
    share = (1 - decay) / -jnp.expm1(steps * math.log(decay))
    return optax.incremental_update(variables, state.average, share)


def validation_step(
    state: TrainState,
    batch: Batch,
    mask: jax.Array,
    *,
    model: AutoEncoder,
    objective: Objective,
    axis_name: str,
) -> dict[str, jax.Array]:
    """Sums of each term, of "accuracy" where there is a head, and of "count", over real rows.

    Args:
      state: its parameters and running statistics are used.
      batch: this device's share [n, …].
      mask: bool [n], False for rows that only pad the batch.
      model: as in `train_step`.
      objective: as in `train_step`.
      axis_name: as in `train_step`.

    Returns:
      name → float scalar, summed over all devices; divide by "count" once at the end.
    """
    outputs: Any = model.apply(state.variables, batch.images)
    terms = evaluate(objective, outputs, batch, state.step)
    if outputs.logits is not None:
        terms["accuracy"] = (outputs.logits.argmax(-1) == batch.labels).astype(jnp.float32)
    sums = {name: jnp.sum(jnp.where(mask, values, 0)) for name, values in terms.items()}
    return jax.lax.psum(sums | {"count": jnp.sum(mask)}, axis_name)


def as_float(images: jax.Array) -> jax.Array:
    """uint8 0 … 255 → float32 0 … 1."""
    return images.astype(jnp.float32) / 255
