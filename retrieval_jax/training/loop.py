"""The training loop: whole epochs of a data set that lies on the devices as uint8, or streams."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.typing import ArrayLike

from retrieval_jax.numerics.keys import key_for
from retrieval_jax.objectives.objective import TOTAL
from retrieval_jax.runtime import devices, hosts
from retrieval_jax.runtime.errors import Interrupted, UserError
from retrieval_jax.runtime.files import copy_files, is_remote
from retrieval_jax.runtime.progress import Progress, say
from retrieval_jax.training.checkpoints import Checkpoints, Record
from retrieval_jax.training.epochs import Recipe, check_batches, epoch_order, fit_steps
from retrieval_jax.training.feed import DataSet, streamed
from retrieval_jax.training.logs import MetricLog
from retrieval_jax.training.repeat import Totals
from retrieval_jax.training.step import TrainState, create_state


class Watch(NamedTuple):
    """What an onlooker gets of the first epoch that `train` does."""

    first_step: Callable[[], None]  # called when the first call's metrics have arrived
    profile_to: epath.Path  # directory of `jax.profiler`'s trace
    profile_steps: int = 0  # steps to trace after the first call, in whole calls; 0: no trace


def train(
    recipe: Recipe,
    fit: DataSet,
    validation: DataSet,
    checkpoints: Checkpoints,
    log_to: Callable[[list[dict]], MetricLog],
    watch: Watch | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, list[dict]]:
    """Trains from the newest checkpoint, or from scratch, to the last epoch.

    Each epoch visits the fit images in a new order, in whole batches; what is left over of the last
    one is another part in every epoch.

    Args:
      recipe: the model, the objective, the optimizer and the budget.
      fit: at least one batch.
      validation: any number of images; none gives no validation row.
      checkpoints: where states are saved, after each epoch and inside one when it is due; closed at
        the end, as the log is.
      log_to: rows of history so far → a `MetricLog`.
      watch: what to tell and to trace of the first epoch.
      asked_to_stop: called after every compiled call; True saves and stops.

    Returns:
      The final state on the host, and a row an epoch (see `MetricLog`).

    Raises:
      UserError: a term of the loss is not finite; the last checkpoint is the last good one. Or the
        state can't be saved.
      Interrupted: as `asked_to_stop`, after the save.
    """
    initial = create_state(
        recipe.model,
        recipe.optimizer,
        key_for(recipe.seed, "init"),
        fit.images.shape[1:],
        averaged=recipe.ema_decay > 0,
    )
    # Closing waits for the last save, whatever ends the loop.
    with closing(checkpoints):
        host_state, record = checkpoints.restore(jax.device_get(initial))
        with closing(log_to(record.history)) as log:
            if len(record.history) == recipe.epochs:
                return host_state, record.history
            fit_epoch, validate = _epoch_functions(recipe, fit, validation, checkpoints)
            state = devices.on_every_device(host_state)
            for epoch in range(len(record.history) + 1, recipe.epochs + 1):
                state, record, stop = fit_epoch(state, record, watch, asked_to_stop)
                watch = None
                start = time.perf_counter()
                validation_means = validate(state)
                _refuse_non_finite(validation_means, f"in the validation after epoch {epoch}")
                host_state = devices.from_first_device(state)
                _refuse_non_finite_parameters(host_state, f"after epoch {epoch}")
                steps = len(fit.images) // recipe.batch_size
                row = {
                    "epoch": epoch,
                    "step": epoch * steps,
                    "fit": {name: total / steps for name, total in record.sums.items()},
                    "validation": validation_means,
                    "seconds": record.seconds + time.perf_counter() - start,
                }
                record = Record([*record.history, row], {}, 0.0)
                loss = (validation_means or row["fit"])[TOTAL]
                checkpoints.save(host_state, record, loss)
                log.write(row)
                say(describe(row, recipe.epochs))
                if stop and epoch < recipe.epochs:
                    raise Interrupted
            return host_state, record.history


def describe(row: dict, epochs: int) -> str:
    """A line that says an epoch's losses, for the terminal."""
    parts = [f"epoch {row['epoch']}/{epochs}"]
    for part in ("fit", "validation"):
        if row[part]:
            parts.append(f"{part} " + " ".join(f"{k} {v:.4g}" for k, v in row[part].items()))
    return " · ".join([*parts, f"{row['seconds']:.1f} s"])


def _epoch_functions(recipe: Recipe, fit: DataSet, validation: DataSet, checkpoints: Checkpoints):
    """What `train` does with an epoch, its fit steps and its validation."""
    names = [TOTAL, *recipe.objective]  # mapped functions return dictionaries sorted
    per_call = recipe.steps_per_call
    steps = len(fit.images) // recipe.batch_size
    order_of = devices.mapped(partial(epoch_order, recipe, len(fit.images)))
    run_steps = devices.mapped(partial(fit_steps, recipe), donate=(0,))
    run_checks = devices.mapped(partial(check_batches, recipe))
    validation_order = _validation_order(len(validation.images), recipe.validation_batch_size)
    if not recipe.streaming:
        fit_data, validation_data = devices.on_every_device((fit, validation))
        shared_validation_order = devices.share_batches(validation_order)
    first_batch = devices.on_every_device(np.int32(0))

    def fit_epoch(
        state: TrainState, record: Record, watch: Watch | None, asked_to_stop: Callable[[], bool]
    ) -> tuple[TrainState, Record, bool]:
        """The rest of the record's open epoch: state and record after it, and whether to stop."""
        before = len(record.history) * steps
        sums = dict.fromkeys(names, 0.0) | record.sums
        first = int(devices.from_first_device(state.step)) - before
        start = time.perf_counter()
        stop = False

        def take(totals: Totals, done: int, count: int) -> None:
            if watch and done == first:
                watch.first_step()
            if totals.bad_step >= 0:
                step = before + done + int(totals.bad_step) + 1
                _refuse_non_finite(totals.bad, f"at step {step} (epoch {len(record.history) + 1})")
            for name in names:
                sums[name] += float(totals.sums[name])
            progress.update(count, note=f"loss {totals.sums[TOTAL] / count:.4g}")

        def measured() -> Record:
            seconds = record.seconds + time.perf_counter() - start
            return Record(record.history, dict(sums), seconds)

        def pause(state: TrainState, done: int, up_to_date: Callable[[], None]) -> None:
            nonlocal stop
            stop = asked_to_stop() or stop
            if done == steps or not (stop or checkpoints.due()):
                return  # the end of an epoch saves by itself
            up_to_date()
            host_state = devices.from_first_device(state)
            _refuse_non_finite_parameters(host_state, f"at step {before + done}")
            checkpoints.save(host_state, measured())
            if stop:
                raise Interrupted

        label = f"epoch {len(record.history) + 1}"
        with Progress(label, steps) as progress, jax.transfer_guard("disallow"):
            progress.update(first)
            order = order_of(state)
            fed = (
                streamed(fit, devices.whole_batches(order), first)
                if recipe.streaming
                else repeat((fit_data, order))
            )
            for part, context in _parts(range(first, steps, per_call), watch):
                with context:
                    state = _run(
                        lambda state: run_steps(state, *next(fed)), state, part, take, pause
                    )
        return state, measured(), stop

    def validate(state: TrainState) -> dict[str, float]:
        sums: dict[str, float] = {}

        def take(totals: Totals, done: int, count: int) -> None:
            for name, value in totals.sums.items():
                sums[name] = sums.get(name, 0.0) + float(value)

        fed = None
        if recipe.streaming:
            fed = streamed(validation, devices.local_share(validation_order))

        def check(i: jax.Array) -> tuple[jax.Array, Totals]:
            if fed is not None:  # one batch, the first of what it comes in
                return i, run_checks(i, state, *next(fed))[1]
            return run_checks(i, state, validation_data, shared_validation_order)

        with jax.transfer_guard("disallow"):
            _run(check, first_batch, range(0, len(validation_order), per_call), take)
        count = sums.pop("count", 0.0)
        return {name: sums[name] / count for name in [*names, "accuracy"] if name in sums}

    return fit_epoch, validate


def _parts(steps: range, watch: Watch | None) -> list[tuple[range, AbstractContextManager[Any]]]:
    """An epoch's steps, those to trace apart, each with what is around it."""
    if watch is None or watch.profile_steps == 0:
        return [(steps, nullcontext())]
    per_call = steps.step
    start = steps.start + per_call
    stop = min(start - (-watch.profile_steps // per_call) * per_call, steps.stop)
    return [
        (range(steps.start, min(start, steps.stop), per_call), nullcontext()),
        (range(start, stop, per_call), _traced(watch.profile_to)),
        (range(stop, steps.stop, per_call), nullcontext()),
    ]


@contextmanager
def _traced(directory: epath.Path) -> Iterator[None]:
    """Around steps that the first process traces. The profiler writes on its machine alone."""
    if not hosts.is_first():
        yield
        return
    if not is_remote(directory):
        with jax.profiler.trace(directory):
            yield
        return
    with tempfile.TemporaryDirectory() as local:
        with jax.profiler.trace(local):
            yield
        copy_files(epath.Path(local), directory)


def _run(
    call: Callable[[Any], tuple[Any, Totals]],
    carry: Any,
    steps: range,
    take: Callable[[Totals, int, int], None],
    pause: Callable[[Any, int, Callable[[], None]], None] = lambda *_: None,
) -> Any:
    """Does the steps, a call for each item of the range; `take` is one call behind.

    Args:
      call: carry → (carry, totals) on all devices, for as many steps as the range's own, or as are
        left.
      carry: what goes from call to call.
      steps: the number of the first step of each call.
      take: (totals on the host, number of the call's first step, steps of the call).
      pause: (carry, steps done, what brings `take` up to date), after every call.

    Returns:
      The carry of the last call.
    """
    late: list[tuple[Totals, int, int]] = []

    def fetch(left: int = 0) -> None:
        while len(late) > left:
            totals, first, count = late.pop(0)
            take(devices.from_first_device(totals), first, count)

    for first in steps:
        carry, totals = call(carry)
        count = min(steps.step, steps.stop - first)
        late.append((totals, first, count))
        fetch(left=1)
        pause(carry, first + count, fetch)
    fetch()
    return carry


def _validation_order(rows: int, batch: int) -> np.ndarray:
    """[steps, batch] row numbers, -1 where the last batch is padded."""
    batch = devices.round_up(batch)
    steps = -(-rows // batch)
    order = np.full(steps * batch, -1, np.int32)
    order[:rows] = np.arange(rows)
    return order.reshape(steps, batch)


def _refuse_non_finite_parameters(state: TrainState, when: str) -> None:
    # XLA's ReLU on a CPU turns NaN into 0, so a loss can be finite where parameters are not.
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
        raise UserError(
            f"the parameters are not finite {when}; lower optimizer.learning_rate "
            "(the last checkpoint before it is kept)"
        )


def _refuse_non_finite(means: Mapping[str, ArrayLike], where: str) -> None:
    bad = [name for name, value in means.items() if not np.isfinite(value)]
    if bad:
        # The total is named only where no single term is to blame.
        terms = [name for name in bad if name != TOTAL] or bad
        raise UserError(
            f"the loss {' and '.join(repr(term) for term in terms)} is not finite {where}; "
            "lower optimizer.learning_rate or the term's weight (the last checkpoint before it is "
            "kept)"
        )
