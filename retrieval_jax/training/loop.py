"""The training loop: whole epochs of a data set that lies on the devices as uint8, or streams."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from itertools import repeat
from typing import NamedTuple

import jax
import numpy as np
import optax

from retrieval_jax import devices
from retrieval_jax.augment import Augment
from retrieval_jax.errors import UserError
from retrieval_jax.models import AutoEncoder
from retrieval_jax.objective import TOTAL, Batch, Objective
from retrieval_jax.progress import Progress, say
from retrieval_jax.randomness import key_for
from retrieval_jax.training.checkpoints import Checkpoints
from retrieval_jax.training.feed import DataSet, streamed
from retrieval_jax.training.logs import MetricLog
from retrieval_jax.training.step import (
    TrainState,
    as_float,
    create_state,
    train_step,
    validation_step,
)

# Steps dispatched before the oldest one's metrics are fetched. Enough to keep a device busy; more
# can deadlock virtual CPU devices, whose collectives share one small thread pool.
_IN_FLIGHT = 8


class Recipe(NamedTuple):
    """What to train and how; the arrays come separately."""

    model: AutoEncoder
    objective: Objective
    optimizer: optax.GradientTransformation
    augment: Augment
    epochs: int
    batch_size: int  # over all devices
    validation_batch_size: int  # likewise
    streaming: bool  # bring the images to the devices batch by batch
    seed: int


def train(
    recipe: Recipe,
    fit: DataSet,
    validation: DataSet,
    checkpoints: Checkpoints,
    log_to: Callable[[list[dict]], MetricLog],
) -> tuple[TrainState, list[dict]]:
    """Trains from the newest checkpoint, or from scratch, to the last epoch.

    Each epoch visits the fit images in a new order, in whole batches; what is left over of the last
    one is another part in every epoch.

    Args:
      recipe: the model, the objective, the optimizer and the budget.
      fit: at least one batch.
      validation: any number of images; none gives no validation row.
      checkpoints: where states are saved after each epoch; closed at the end, as the log is.
      log_to: rows of history so far → a `MetricLog`.

    Returns:
      The final state on the host, and a row an epoch (see `MetricLog`).

    Raises:
      UserError: a term of the loss is not finite; the last checkpoint is the last good one.
    """
    state = create_state(
        recipe.model, recipe.optimizer, key_for(recipe.seed, "init"), fit.images.shape[1:]
    )
    state, history = checkpoints.restore(state)
    # Closing waits for the last save, whatever ends the loop.
    with closing(checkpoints), closing(log_to(history)) as log:
        if len(history) == recipe.epochs:
            return state, history
        fit_epoch, validate = _epoch_functions(recipe, fit, validation)
        state = devices.on_every_device(state)
        for epoch in range(len(history) + 1, recipe.epochs + 1):
            start = time.perf_counter()
            state, fit_means = fit_epoch(state, epoch)
            validation_means = validate(state)
            _refuse_non_finite(validation_means, f"in the validation after epoch {epoch}")
            row = {
                "epoch": epoch,
                "step": epoch * (len(fit.images) // recipe.batch_size),
                "fit": fit_means,
                "validation": validation_means,
                "seconds": time.perf_counter() - start,
            }
            history.append(row)
            host_state = devices.from_first_device(state)
            _refuse_non_finite_parameters(host_state, epoch)
            checkpoints.save(host_state, history)
            log.write(row)
            say(describe(row, recipe.epochs))
        return devices.from_first_device(state), history


def describe(row: dict, epochs: int) -> str:
    """A line that says an epoch's losses, for the terminal."""
    parts = [f"epoch {row['epoch']}/{epochs}"]
    for part in ("fit", "validation"):
        if row[part]:
            parts.append(f"{part} " + " ".join(f"{k} {v:.4g}" for k, v in row[part].items()))
    return " · ".join([*parts, f"{row['seconds']:.1f} s"])


def _epoch_functions(recipe: Recipe, fit: DataSet, validation: DataSet):
    """(state, epoch) → (state, means of the fit) and state → means of the validation."""
    axis = {"axis_name": devices.AXIS}

    def indexed_step(state: TrainState, data: DataSet, order: jax.Array):
        rows = order[state.step % len(order)]
        key = jax.random.fold_in(
            key_for(recipe.seed, "augment", state.step), jax.lax.axis_index(devices.AXIS)
        )
        images = recipe.augment(key, as_float(data.images[rows]))
        return train_step(
            state,
            Batch(images, data.labels[rows]),
            model=recipe.model,
            objective=recipe.objective,
            optimizer=recipe.optimizer,
            **axis,
        )

    def indexed_validation(state: TrainState, data: DataSet, order: jax.Array, i: jax.Array):
        rows = order[i]
        batch = Batch(as_float(data.images[rows]), data.labels[rows])
        # Row -1 pads the last batch.
        return validation_step(
            state, batch, rows >= 0, model=recipe.model, objective=recipe.objective, **axis
        )

    names = [TOTAL, *recipe.objective]  # mapped functions return dictionaries sorted
    step = devices.mapped(indexed_step, donate=(0,))
    check = devices.mapped(indexed_validation)
    steps = len(fit.images) // recipe.batch_size
    validation_order = _validation_order(len(validation.images), recipe.validation_batch_size)
    if not recipe.streaming:
        fit_data, validation_data = devices.on_every_device((fit, validation))
        shared_validation_order = devices.share_batches(validation_order)

    def fit_epoch(state: TrainState, epoch: int) -> tuple[TrainState, dict[str, float]]:
        permutation = jax.random.permutation(
            key_for(recipe.seed, "shuffle", epoch), len(fit.images)
        )
        rows = np.asarray(permutation)[: steps * recipe.batch_size]
        batches = rows.reshape(steps, recipe.batch_size)
        fed = (
            streamed(fit, batches)
            if recipe.streaming
            else repeat((fit_data, devices.share_batches(batches)), steps)
        )
        pending: deque = deque()
        fetched: list[dict[str, float]] = []

        def fetch() -> None:
            done = (epoch - 1) * steps + len(fetched) + 1
            fetched.append(_to_floats(pending.popleft()))
            _refuse_non_finite(fetched[-1], f"at step {done} (epoch {epoch})")
            progress.update(note=f"loss {fetched[-1][TOTAL]:.4g}")

        with Progress(f"epoch {epoch}", steps) as progress:
            for data, order in fed:
                state, metrics = step(state, data, order)
                pending.append(metrics)
                if len(pending) > _IN_FLIGHT:
                    fetch()
            while pending:
                fetch()
        return state, {name: float(np.mean([m[name] for m in fetched])) for name in names}

    def validate(state: TrainState) -> dict[str, float]:
        totals: dict[str, float] = {}
        steps = len(validation_order)
        fed = (
            streamed(validation, validation_order)
            if recipe.streaming
            else repeat((validation_data, shared_validation_order), steps)
        )
        for i, (data, order) in enumerate(fed):
            index = np.full(devices.count(), i % order.shape[1])
            sums = _to_floats(check(state, data, order, index))
            totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
        count = totals.pop("count", 0.0)
        return {name: totals[name] / count for name in [*names, "accuracy"] if name in totals}

    return fit_epoch, validate


def _validation_order(rows: int, batch: int) -> np.ndarray:
    """[steps, batch] row numbers, -1 where the last batch is padded."""
    batch = devices.round_up(batch)
    steps = -(-rows // batch)
    order = np.full(steps * batch, -1, np.int32)
    order[:rows] = np.arange(rows)
    return order.reshape(steps, batch)


def _to_floats(metrics: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in devices.from_first_device(metrics).items()}


def _refuse_non_finite_parameters(state: TrainState, epoch: int) -> None:
    # XLA's ReLU on a CPU turns NaN into 0, so a loss can be finite where parameters are not.
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
        raise UserError(
            f"the parameters are not finite after epoch {epoch}; lower optimizer.learning_rate "
            "(the last checkpoint before it is kept)"
        )


def _refuse_non_finite(means: dict[str, float], where: str) -> None:
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if bad:
        # The total is named only where no single term is to blame.
        terms = [name for name in bad if name != TOTAL] or bad
        raise UserError(
            f"the loss {' and '.join(repr(term) for term in terms)} is not finite {where}; "
            "lower optimizer.learning_rate or the term's weight (the last checkpoint before it is "
            "kept)"
        )
