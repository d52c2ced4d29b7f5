"""The pure training and validation steps, written for one device with a named axis around them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from retrieval_jax.models import Outputs
from retrieval_jax.objectives import (
    Batch,
    Objective,
    Seen,
    evaluate,
    means_over_devices,
    totalled,
)
from retrieval_jax.runtime import devices
from retrieval_jax.training.monitor import gram


class TrainState(NamedTuple):
    """Everything that training changes."""

    step: jax.Array  # int32 scalar, steps done
    params: Any
    collections: dict[str, Any]  # the network's others, such as "batch_stats"
    opt_state: optax.OptState
    target: dict[str, Any] | None  # average of params and collections; None where nobody asks
    memory: dict[str, Any]  # term → what it remembers; () for most

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied with."""
        return {"params": self.params, **self.collections}

    def judged(self, average: bool) -> dict[str, Any]:
        """The variables of the network that is validated and embeds: the averaged one, or not."""
        if not average:
            return self.variables
        assert self.target is not None
        return self.target

    def judging(self, variables: dict[str, Any], average: bool) -> TrainState:
        """The state with these variables for the network that `judged` gives."""
        if average:
            return self._replace(target=variables)
        others = {name: value for name, value in variables.items() if name != "params"}
        return self._replace(params=variables["params"], collections=others)


def create_state(
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, int, int],
    *,
    averaged: bool = False,
) -> TrainState:
    """Initial variables, optimizer state and memory for images [h, w, c].

    With `averaged` there is an averaged network, which starts as a copy.
    """
    image = jnp.zeros((1, *image_shape))
    variables = dict(devices.quick_jit(model.init)(key, image))
    params = variables.pop("params")
    variables.pop("intermediates", None)  # what a module sows is nothing to keep
    shapes = jax.eval_shape(lambda: model.apply({"params": params, **variables}, image))
    target = {"params": params, **variables} if averaged else None
    memory = {name: term.memory(shapes) if term.memory else () for name, term in objective.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        collections=variables,
        opt_state=optimizer.init(params),
        target=jax.tree.map(jnp.copy, target),
        memory=memory,
    )


def apply_to_views(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: tuple[jax.Array, ...],
    key: jax.Array | None = None,
) -> tuple[Outputs, dict[str, Any]]:
    """The network on all views of a batch, those of one size in one pass.

    Args:
      model: a `Network`, or any Flax module with its call and outputs.
      variables: all collections.
      images: float32 [v, n, h, w, c] of each size.
      key: of dropout and the like, in training; None for validation.

    Returns:
      `Outputs` [v, n, …] of all views in order, reconstructions as a tuple like the images; and all
      collections but "params" after it.
    """
    collections = {name: value for name, value in variables.items() if name != "params"}
    parts = []
    for i, group in enumerate(images):
        flat = group.reshape(-1, *group.shape[2:])
        current: Any = {"params": variables["params"], **collections}
        if key is None:
            outputs = model.apply(current, flat)
        else:
            # Flax takes any stream that isn't there, "dropout" say, from this one.
            rngs = {"params": jax.random.fold_in(key, i)}
            outputs, updates = model.apply(
                current, flat, True, mutable=list(collections), rngs=rngs
            )
            collections = {**collections, **updates}
        views = group.shape[:2]
        parts.append(jax.tree.map(lambda x, views=views: x.reshape(*views, *x.shape[1:]), outputs))
    reconstructions = tuple(part.reconstruction for part in parts)
    rest = [part._replace(reconstruction=None) for part in parts]
    joined = jax.tree.map(lambda *views: jnp.concatenate(views), *rest) if parts[1:] else rest[0]
    return joined._replace(reconstruction=reconstructions), collections


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    axis_name: str,
    decay: float | optax.Schedule = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of gradient descent on this device's share of the batch.

    Args:
      state: the same on every device.
      batch: this device's share.
      model: its `axis_name` equals this one's, so that BatchNorm sees the whole batch.
      objective: named, weighted terms.
      optimizer: any optax transformation.
      key: of this step, the same on every device.
      axis_name: the mapped axis of devices.
      decay: share of the old in the averaged network, where there is one. A constant is debiased as
        Adam's are: the initial values have no share. A schedule of the step is taken as it is.

    Returns:
      The next state, the same on every device, and name → float scalar, the mean of each term over
      the whole batch, taken before the update; "loss", their weighted sum, first.
    """
    # Masks of dropout are each device's own.
    dropout = jax.random.fold_in(key, lax.axis_index(axis_name))
    target = None
    if any(term.needs_target for term in objective.values()):
        # In training mode, as the target's statistics are of other batches (BYOL, section 3).
        target, _ = apply_to_views(model, state.judged(True), batch.images, dropout)
        target = lax.stop_gradient(target)

    def mean_loss(params):
        variables = {"params": params, **state.collections}
        outputs, collections = apply_to_views(model, variables, batch.images, dropout)
        seen = Seen(outputs, target, batch, None, key, state.step, axis_name)
        losses, memory = evaluate(objective, seen, state.memory)
        means = totalled(objective, means_over_devices(losses, axis_name), state.step)
        return means["loss"], (means, collections, memory)

    gradients, (metrics, collections, memory) = jax.grad(mean_loss, has_aux=True)(state.params)
    gradients, metrics = lax.pmean((gradients, metrics), axis_name)
    # Those of a module that doesn't reduce them would be different on every device.
    collections = jax.tree.map(
        lambda x: lax.pmean(x, axis_name) if jnp.issubdtype(x.dtype, jnp.inexact) else x,
        collections,
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    after = TrainState(state.step + 1, params, collections, opt_state, None, memory)
    return after._replace(target=_averaged(state, after.variables, decay)), metrics


def _averaged(
    state: TrainState, variables: dict[str, Any], decay: float | optax.Schedule
) -> dict[str, Any] | None:
    if state.target is None:
        return None
    if callable(decay):
        share = 1 - decay(state.step)
    elif decay == 0:
        share = 1.0
    else:
        # The exponential average divided by the sum of its weights, 1 - decay^steps, in one update:
        # the first step takes the variables as they are.
        steps = (state.step + 1).astype(jnp.float32)
        share = (1 - decay) / -jnp.expm1(steps * math.log(decay))
    return jax.tree.map(
        # Counters among the collections are not averaged.
        lambda new, old: (
            new
            if not jnp.issubdtype(new.dtype, jnp.inexact)
            else (share * new + (1 - share) * old).astype(new.dtype)
        ),
        variables,
        state.target,
    )


def validation_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    objective: Objective,
    key: jax.Array,
    axis_name: str,
    average: bool = False,
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """What each term comes to over a batch, and "accuracy" where there is a classifier.

    Args:
      state: its running statistics are used.
      batch: this device's share; row -1 pads.
      model: as in `train_step`.
      objective: as in `train_step`.
      key: as in `train_step`.
      axis_name: as in `train_step`.
      average: judge the averaged network.

    Returns:
      name → (sum, count), float scalars over all devices; divide the sums of all batches once by
      their counts. Accuracy is of the first view, over the examples with a label; the sum of
      "embedding" is the first view's `monitor.gram`.
    """
    outputs, _ = apply_to_views(model, state.judged(average), batch.images)
    target = None
    if any(term.needs_target for term in objective.values()):
        target, _ = apply_to_views(model, state.judged(True), batch.images)
    seen = Seen(outputs, target, batch, None, key, state.step, axis_name)
    losses, _ = evaluate(objective, seen, state.memory)
    sums = {name: (loss.sum, loss.count) for name, loss in losses.items()}
    if outputs.logits is not None:
        known = (batch.rows >= 0) & (batch.labels >= 0)
        right = known & (outputs.logits[0].argmax(-1) == batch.labels)
        sums["accuracy"] = right.sum(dtype=jnp.float32), known.sum(dtype=jnp.float32)
    real = batch.rows >= 0
    sums["embedding"] = gram(outputs.embedding[0], real), real.sum(dtype=jnp.float32)
    return lax.psum(sums, axis_name)
