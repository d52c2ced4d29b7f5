"""An epoch: what one device does in a compiled call, and the batches that a stream brings it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from retrieval_jax.data.stream import batches
from retrieval_jax.embedder import as_float
from retrieval_jax.numerics.keys import key_for
from retrieval_jax.objectives import TOTAL, Batch, Mixed, Objective
from retrieval_jax.runtime import devices
from retrieval_jax.training.monitor import Monitor
from retrieval_jax.training.step import TrainState, train_step, validation_step
from retrieval_jax.training.views import View, views_of


class DataSet(NamedTuple):
    """Images and labels, on the host or on the devices."""

    images: Any  # uint8 [n, h, w, c]: an array, or LazyImages
    labels: Any  # int32 [n], -1 where training may not use the label


class Recipe(NamedTuple):
    """What to train and how; the arrays come separately."""

    model: nn.Module  # a `Network`, or any module with its call and outputs
    objective: Objective
    optimizer: optax.GradientTransformation
    views: tuple[View, ...]
    epochs: int
    batch_size: int  # over all devices
    validation_batch_size: int  # over all devices
    steps_per_call: int  # steps of one compiled call, see `devices.steps_per_call`
    seed: int
    mixup: float = 0.0  # alpha of the shares in which images are mixed; 0: they are not
    labelled_per_batch: int = 0  # examples of each batch that have a label for certain
    ema_decay: float | optax.Schedule = 0.0  # share of the old in the averaged network; 0: none
    average: bool = False  # validate the averaged network
    monitor: Monitor | None = None  # what picks the best checkpoint; None: the loss
    precision: str = "float32"  # of float32 products: "float32" or "tf32"
    streaming: bool = False  # bring the images to the devices batch by batch, a call for each

    @property
    def averaged(self) -> bool:
        """Whether there is an averaged network at all."""
        asked = any(term.needs_target for term in self.objective.values())
        return asked or self.average or callable(self.ema_decay) or self.ema_decay > 0

    @property
    def views_per_image(self) -> int:
        """How many views a step takes of each image."""
        return sum(view.count for view in self.views)


class Totals(NamedTuple):
    """What the steps of an epoch come to so far."""

    sums: dict[str, jax.Array]  # name → float32, each metric added up over the steps
    lost: dict[str, jax.Array]  # what rounding has kept out of the sums (Kahan's summation)
    bad_step: jax.Array  # int32, the first step, from 1, with a metric that is not finite; or 0
    bad: dict[str, jax.Array]  # that step's metrics; zeros where there is none


class Epoch(NamedTuple):
    """What goes from call to call, and into a checkpoint."""

    state: TrainState
    totals: Totals


def no_totals(recipe: Recipe) -> Totals:
    """Those of an epoch that has done no step."""
    zeros: Any = {name: np.float32(0) for name in (TOTAL, *recipe.objective)}
    return Totals(zeros, zeros, np.int32(0), zeros)  # type: ignore[arg-type]


def added(totals: Totals, step: jax.Array, metrics: dict[str, jax.Array]) -> Totals:
    """The totals after one more step, which is the `step`-th.

    Example:
      >>> none = Totals({"x": 0.0}, {"x": 0.0}, jnp.int32(0), {"x": 0.0})
      >>> after = added(added(none, 1, {"x": jnp.float32(2)}), 2, {"x": jnp.float32(jnp.inf)})
      >>> int(after.bad_step), float(after.bad["x"])
      (2, inf)
    """
    finite = jnp.isfinite(jnp.stack(list(metrics.values()))).all()
    first = (totals.bad_step == 0) & ~finite
    sums, lost = {}, {}
    for name, value in metrics.items():
        value = value - totals.lost[name]
        sums[name] = totals.sums[name] + value
        lost[name] = (sums[name] - totals.sums[name]) - value
    return Totals(
        sums,
        lost,
        jnp.where(first, step, totals.bad_step),
        {name: jnp.where(first, metrics[name], old) for name, old in totals.bad.items()},
    )


def epoch_order(recipe: Recipe, rows: int, labelled: np.ndarray, state: TrainState) -> jax.Array:
    """int32 [steps, batch / devices]: this device's rows in each batch of the state's epoch.

    Behind the rows of any kind, a batch has `recipe.labelled_per_batch` of those that are labelled,
    all of them as often but for one.
    """
    steps, most = rows // recipe.batch_size, recipe.labelled_per_batch
    epoch = state.step // steps + 1
    order = jax.random.permutation(key_for(recipe.seed, "shuffle", epoch), rows)
    order = order[: steps * (recipe.batch_size - most)].reshape(steps, -1)
    if most:
        keys = jax.random.split(
            key_for(recipe.seed, "shuffle labelled", epoch), -(-steps * most // len(labelled))
        )
        drawn = jax.vmap(jax.random.permutation, (0, None))(keys, labelled.astype(np.int32))
        drawn = drawn.ravel()[: steps * most].reshape(steps, most)
        order = jnp.concatenate([order, drawn], 1)
    shares = order.reshape(steps, devices.count(), -1)
    return shares[:, lax.axis_index(devices.AXIS)]


def fit_batch(
    recipe: Recipe, step: jax.Array, data: DataSet, rows: jax.Array, places: jax.Array
) -> Batch:
    """This device's share of a step's batch in its views: the data's `places`, the set's `rows`."""
    # Each example draws by its place in the whole batch: the same on any number of devices.
    first = lax.axis_index(devices.AXIS) * len(rows)
    images = views_of(
        recipe.views,
        key_for(recipe.seed, "augment", step),
        as_float(data.images[places]),
        first + jnp.arange(len(rows)),
        recipe.batch_size,
    )
    batch = Batch(images, data.labels[places], rows)
    return (
        mixup(key_for(recipe.seed, "mixup", step), batch, recipe.mixup) if recipe.mixup else batch
    )


def mixup(key: jax.Array, batch: Batch, alpha: float) -> Batch:
    """Every image mixed with the one before it in the whole batch, the first with the last.

    Zhang et al. 2018, "mixup", arXiv:1710.09412, section 2, with one share for the batch.

    Args:
      key: the same on every device.
      batch: this device's share, on the axis of devices.
      alpha: the share is drawn from Beta(alpha, alpha), above 0.
    """
    share = jax.random.beta(key, alpha, alpha)
    count = lax.axis_size(devices.AXIS)

    def before(x: jax.Array, axis: int) -> jax.Array:
        last = lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)
        first = lax.ppermute(last, devices.AXIS, [(i, (i + 1) % count) for i in range(count)])
        rest = lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)
        return jnp.concatenate([first, rest], axis)

    images = tuple(share * x + (1 - share) * before(x, 1) for x in batch.images)
    return batch._replace(images=images, mixed=Mixed(before(batch.labels, 0), share))


def fit_steps(
    recipe: Recipe, epoch: Epoch, data: DataSet, order: jax.Array, places: jax.Array
) -> tuple[Epoch, Totals]:
    """The next steps of the epoch, as many as a call has or as are left.

    Args:
      recipe: what to train and how.
      epoch: the state, and the totals before.
      data: on this device.
      order: int32 [steps, batch / devices], rows of the fit set.
      places: the same, where each lies in `data`.

    Returns:
      The epoch after them; and its totals again, to be read while the next call has the epoch.
    """

    def once(_: Any, epoch: Epoch) -> Epoch:
        at = epoch.state.step % len(order)
        batch = fit_batch(recipe, epoch.state.step, data, order[at], places[at])
        state, metrics = train_step(
            epoch.state,
            batch,
            model=recipe.model,
            objective=recipe.objective,
            optimizer=recipe.optimizer,
            key=key_for(recipe.seed, "step", epoch.state.step),
            axis_name=devices.AXIS,
            decay=recipe.ema_decay,
        )
        return Epoch(state, added(epoch.totals, state.step, metrics))

    if recipe.steps_per_call == 1:
        epoch = once(0, epoch)
    else:
        left = len(order) - epoch.state.step % len(order)
        epoch = lax.fori_loop(0, jnp.minimum(recipe.steps_per_call, left), once, epoch)
    return epoch, epoch.totals


def validation_batches(
    recipe: Recipe,
    state: TrainState,
    i: jax.Array,
    data: DataSet,
    order: jax.Array,
    places: jax.Array,
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Validation of the batches from the i-th, as many as a call has or as are left.

    Images are seen as they are, or, where training compares several views of each, in views that
    are the same in every epoch.

    Returns:
      The number of the next batch, and what the batches of this call come to.
    """

    def check(i: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        rows, images = order[i], as_float(data.images[places[i]])
        views: tuple[jax.Array, ...] = (images[None],)
        if recipe.views_per_image > 1:
            key = key_for(recipe.seed, "validation views")
            views = views_of(recipe.views, key, images, jnp.maximum(rows, 0), 2**20)
        return validation_step(
            state,
            Batch(views, data.labels[places[i]], rows),
            model=recipe.model,
            objective=recipe.objective,
            key=key_for(recipe.seed, "validation"),
            axis_name=devices.AXIS,
            average=recipe.average,
        )

    sums = check(i)
    if recipe.steps_per_call > 1:
        many = jnp.minimum(recipe.steps_per_call, len(order) - i)
        sums = lax.fori_loop(
            1, many, lambda j, sums: jax.tree.map(jnp.add, sums, check(i + j)), sums
        )
        return i + many, sums
    return i + 1, sums


def refreshed(
    recipe: Recipe, state: TrainState, embeddings: jax.Array, rows: jax.Array
) -> TrainState:
    """The state with the memory that terms make of all fit rows' embeddings, before an epoch."""
    memory = dict(state.memory)
    for name, term in recipe.objective.items():
        if term.refresh is not None:
            key = key_for(recipe.seed, f"refresh {name}", state.step)
            memory[name] = term.refresh(memory[name], key, embeddings, rows, devices.AXIS)
    return state._replace(memory=memory)


def streamed(
    data: DataSet, order: np.ndarray, start: int = 0
) -> Iterator[tuple[DataSet, jax.Array, jax.Array]]:
    """Yields what each step needs and no more, in the form of a data set that lies on the devices.

    Images are read two batches ahead, and the next batch is on its way to the devices while one is
    in use; so neither host nor devices hold more than a few, whatever the size of the set. The
    position is an argument: `start` resumes at the exact example, and nothing needs saving.

    Args:
      data: the whole set.
      order: int [steps, batch], rows of the set that this process' devices take; -1 pads.
      start: the first step to yield.

    Yields:
      A data set of one batch, [devices, batch / devices, …], the rows [devices, 1, batch /
      devices], and where each of them lies in that data set, of the same shape.
    """
    steps, batch = order.shape
    share = batch // devices.local_count()
    places = np.tile(np.arange(share, dtype=np.int32), devices.local_count())

    def on_host() -> Iterator[tuple[DataSet, np.ndarray, np.ndarray]]:
        images = batches(data.images, order.ravel(), batch, start)
        for step, part in zip(range(start, steps), images, strict=True):
            rows = order[step].astype(np.int32)
            yield (
                DataSet(part, data.labels[rows]),
                rows.reshape(-1, share),
                places.reshape(-1, share),
            )

    return devices.prefetched(on_host())
