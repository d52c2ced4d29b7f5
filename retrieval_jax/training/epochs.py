"""What one device does in a compiled call: its share of the batches, the steps, the validation."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from retrieval_jax.models import AutoEncoder
from retrieval_jax.numerics.keys import key_for
from retrieval_jax.objectives.objective import TOTAL, Batch, Objective
from retrieval_jax.runtime import devices
from retrieval_jax.training.feed import DataSet
from retrieval_jax.training.repeat import Totals, repeat
from retrieval_jax.training.step import TrainState, as_float, train_step, validation_step
from retrieval_jax.training.views import Augment


class Recipe(NamedTuple):
    """What to train and how; the arrays come separately."""

    model: AutoEncoder
    objective: Objective
    optimizer: optax.GradientTransformation
    augment: Augment
    ema_decay: float  # 0: no averages are kept
    epochs: int
    batch_size: int  # over all devices
    validation_batch_size: int  # likewise
    steps_per_call: int  # steps of one compiled call, see `devices.steps_per_call`
    streaming: bool  # bring the images to the devices batch by batch, a call for each
    seed: int


def epoch_order(recipe: Recipe, rows: int, state: TrainState) -> jax.Array:
    """int32 [steps, batch / devices]: this device's rows in each batch of the state's epoch."""
    steps = rows // recipe.batch_size
    epoch = state.step // steps + 1
    order = jax.random.permutation(key_for(recipe.seed, "shuffle", epoch), rows)
    shares = order[: steps * recipe.batch_size].reshape(steps, devices.count(), -1)
    return shares[:, jax.lax.axis_index(devices.AXIS)]


def fit_batch(recipe: Recipe, step: jax.Array, data: DataSet, rows: jax.Array) -> Batch:
    """This device's share of a step's batch, augmented: the data's `rows`, int32 [n]."""
    # Each example draws by its place in the whole batch: the same on any number of devices.
    places = jax.lax.axis_index(devices.AXIS) * len(rows) + jnp.arange(len(rows))
    keys = jax.vmap(partial(jax.random.fold_in, key_for(recipe.seed, "augment", step)))(places)
    images = jax.vmap(recipe.augment)(keys, as_float(data.images[rows]))
    return Batch(images, data.labels[rows])


def fit_steps(
    recipe: Recipe, state: TrainState, data: DataSet, order: jax.Array
) -> tuple[TrainState, Totals]:
    """The next steps of the state's epoch, as many as a call has or as are left."""

    def step(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        return train_step(
            state,
            fit_batch(recipe, state.step, data, order[state.step % len(order)]),
            model=recipe.model,
            objective=recipe.objective,
            optimizer=recipe.optimizer,
            ema_decay=recipe.ema_decay,
            axis_name=devices.AXIS,
        )

    left = len(order) - state.step % len(order)
    return repeat(step, state, [TOTAL, *recipe.objective], recipe.steps_per_call, left)


def check_batches(
    recipe: Recipe, i: jax.Array, state: TrainState, data: DataSet, order: jax.Array
) -> tuple[jax.Array, Totals]:
    """Validation of the batches from the i-th, as many as a call has or as are left."""

    def check(i: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        rows = order[i]
        batch = Batch(as_float(data.images[rows]), data.labels[rows])
        # Row -1 pads the last batch.
        return i + 1, validation_step(
            state,
            batch,
            rows >= 0,
            model=recipe.model,
            objective=recipe.objective,
            axis_name=devices.AXIS,
        )

    names = [TOTAL, *recipe.objective, "count"]
    if recipe.model.head is not None:
        names.append("accuracy")
    return repeat(check, i, names, recipe.steps_per_call, len(order) - i)
