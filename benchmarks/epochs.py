"""Epochs of this project's training loop, as benchmarks time them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from retrieval_jax import build
from retrieval_jax.embedder import embedding, map_rows, on_rows
from retrieval_jax.runtime import devices
from retrieval_jax.training.epoch import DataSet, Epoch, epoch_order, fit_steps, no_totals
from retrieval_jax.training.step import create_state


class Work(NamedTuple):
    """What each contender can do with its own copy of the images."""

    steps: Callable[[], Any]  # of one epoch
    embed: Callable[[], Any]  # all of them


def ours(settings: ConfigDict, images: np.ndarray, labels: np.ndarray, classes: int) -> Work:
    """This project's step, as `training.loop` calls it, and its embedding."""
    batch = settings.training.batch_size
    recipe = build.recipe(settings, build.Sizes(images.shape[1:], classes, len(images)))
    key = jax.random.key(0)
    state = create_state(recipe.model, recipe.objective, recipe.optimizer, key, images.shape[1:])
    state = devices.on_every_device(state)
    none_yet = devices.on_every_device(no_totals(recipe))
    data = devices.on_every_device(DataSet(images, labels))
    run = devices.mapped(partial(fit_steps, recipe), donate=(0,))
    order_of = devices.mapped(partial(epoch_order, recipe, len(images)))

    def epoch() -> Any:
        nonlocal state
        order = order_of(state)
        going, late = Epoch(state, jax.tree.map(lambda x: x.copy(), none_yet)), []
        for _ in range(0, len(images) // batch, recipe.steps_per_call):
            going, totals = run(going, data, order, order)
            late.append(totals)
            if len(late) > 1:
                devices.from_first_device(late.pop(0))
        state = going.state
        return devices.from_first_device(late)

    rows = on_rows(embedding(recipe.model))
    return Work(epoch, lambda: map_rows(rows, state.variables, images, batch))
