"""The training loop: whole epochs of a data set that lies on the devices as uint8, or streams."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.typing import ArrayLike

from retrieval_jax.embedder import embedding, map_rows, on_rows
from retrieval_jax.numerics.keys import key_for
from retrieval_jax.objectives import TOTAL, totalled
from retrieval_jax.report.results import collapsed
from retrieval_jax.runtime import devices, hosts
from retrieval_jax.runtime.errors import Interrupted, UserError
from retrieval_jax.runtime.files import copy_files, is_remote
from retrieval_jax.runtime.memory import require
from retrieval_jax.runtime.progress import Progress, say
from retrieval_jax.training.checkpoints import Checkpoints
from retrieval_jax.training.epoch import (
    DataSet,
    Epoch,
    Recipe,
    Totals,
    epoch_order,
    fit_steps,
    no_totals,
    refreshed,
    streamed,
    validation_batches,
)
from retrieval_jax.training.logs import MetricLog
from retrieval_jax.training.monitor import spread_of
from retrieval_jax.training.step import TrainState, create_state

# Rows of a device's share when terms refresh their memory: k-means draws from blocks of as many.
_BLOCK = 128
_COLLAPSE = (
    "  the embeddings have collapsed (effective rank {effective_rank:.2f}, spread {spread:.3f}): "
    "the network gives all images nearly the same; lower optimizer.learning_rate, or give more "
    "weight to what keeps images apart (the best checkpoint of another epoch is kept)"
)


class Trained(NamedTuple):
    """What `train` ends with, on the host."""

    state: TrainState
    history: list[dict]  # a row per epoch, see `MetricLog`
    first_step: float | None  # seconds from `started` until the first step's metrics were there


class Profile(NamedTuple):
    """What `jax.profiler` traces in the first epoch that a call of `train` does."""

    directory: epath.Path
    steps: int  # after the first compiled call, in whole calls; 0: no trace


class _Programs(NamedTuple):
    """The compiled functions, and what stays on the devices."""

    order: Callable
    steps: Callable
    check: Callable
    refresh: Callable
    embed: Callable
    data: tuple[DataSet, DataSet] | None  # fit and validation; None where they stream
    validation_order: np.ndarray  # int32 [batches, batch], -1 pads
    shared_validation_order: Any


class _Run(NamedTuple):
    """What stays the same from epoch to epoch."""

    recipe: Recipe
    programs: _Programs
    fit: DataSet
    validation: DataSet
    checkpoints: Checkpoints
    asked_to_stop: Callable[[], bool]


def train(
    recipe: Recipe,
    fit: DataSet,
    validation: DataSet,
    checkpoints: Checkpoints,
    log: MetricLog,
    *,
    start_from: Callable[[Any], Any] = lambda variables: variables,
    started: float | None = None,
    profile: Profile | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Trains from the newest checkpoint, or from scratch, to the last epoch.

    Each epoch visits the fit images in a new order, in whole batches; what is left over of the last
    one differs from epoch to epoch.

    Args:
      recipe: the network, the objective, the optimizer and the budget.
      fit: at least one batch.
      validation: any number of images; none gives no validation row.
      checkpoints: where states are saved, after each epoch and inside one when it is due; closed at
        the end, as the log is.
      log: of the epochs.
      start_from: initial parameters → those to start from where there is no checkpoint.
      started: `time.perf_counter()` when the command began; now by default.
      profile: what to trace.
      asked_to_stop: called after every compiled call; True saves and stops.

    Returns:
      `Trained`.

    Raises:
      UserError: a term of the loss is not finite; the last checkpoint is the last good one. Or the
        state can't be saved.
      Interrupted: because of `asked_to_stop`, after the save.
    """
    started = time.perf_counter() if started is None else started
    # Closing waits for the last save, whatever ends the loop.
    with closing(checkpoints), closing(log):
        epoch, history, seconds = _first_epoch(recipe, fit, checkpoints, start_from)
        log.begin(history)
        if len(history) >= recipe.epochs:
            return Trained(epoch.state, history, None)
        run = _Run(
            recipe, _programs(recipe, fit, validation), fit, validation, checkpoints, asked_to_stop
        )
        on_devices = devices.on_every_device(epoch)
        steps, first_step = len(fit.images) // recipe.batch_size, None
        while len(history) < recipe.epochs:
            number, start = len(history) + 1, time.perf_counter() - seconds
            on_devices, arrived, stop = _fit(run, on_devices, history, start, profile, started)
            first_step = arrived if first_step is None else first_step
            epoch = devices.from_first_device(on_devices)
            validation_means = _validate(run, on_devices.state, number * steps)
            _refuse_non_finite(validation_means, f"in the validation after epoch {number}")
            _refuse_non_finite_parameters(epoch.state, f"after epoch {number}")
            row: dict[str, Any] = {
                "epoch": number,
                "step": number * steps,
                "fit": {name: float(epoch.totals.sums[name]) / steps for name in _names(recipe)},
                "validation": validation_means,
                "seconds": time.perf_counter() - start,
            }
            history, seconds, profile, started = [*history, row], 0.0, None, None
            epoch = epoch._replace(totals=no_totals(recipe))
            on_devices = on_devices._replace(totals=devices.on_every_device(epoch.totals))
            checkpoints.save(number * steps, epoch, _record(history, 0.0), _score(recipe, row))
            log.write(row)
            say(describe(row, recipe.epochs))
            if collapsed(row["validation"]):
                say(_COLLAPSE.format(**row["validation"]))
            if stop and number < recipe.epochs:
                raise Interrupted
        return Trained(epoch.state, history, first_step)


def describe(row: dict, epochs: int) -> str:
    """A line that says an epoch's losses, for the terminal."""
    parts = [f"epoch {row['epoch']}/{epochs}"]
    for part in ("fit", "validation"):
        if row[part]:
            parts.append(f"{part} " + " ".join(f"{k} {v:.4g}" for k, v in row[part].items()))
    return " · ".join([*parts, f"{row['seconds']:.1f} s"])


def _first_epoch(
    recipe: Recipe, fit: DataSet, checkpoints: Checkpoints, start_from: Callable[[Any], Any]
) -> tuple[Epoch, list[dict], float]:
    """Where to go on: the epoch on the host, the rows of those before, and its seconds so far."""
    create = partial(
        create_state,
        recipe.model,
        recipe.objective,
        recipe.optimizer,
        key_for(recipe.seed, "init"),
        fit.images.shape[1:],
        averaged=recipe.averaged,
    )
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(create)))
    require(
        4 * size,  # on the host, on a device, after a step, and while it is saved
        "the network, its optimizer and what its objective remembers",
        "lower the widths under model, or the queue of an objective",
    )
    initial = Epoch(jax.device_get(create()), no_totals(recipe))
    found = checkpoints.restore(initial)
    if found is None:
        params = start_from(initial.state.params)
        # Some optimizers' state is of the parameters' values.
        opt_state = jax.device_get(recipe.optimizer.init(params))
        state = initial.state._replace(params=params, opt_state=opt_state)
        if state.target is not None:
            state = state._replace(target=state.variables)
        return initial._replace(state=state), [], 0.0
    epoch, record = found
    return epoch, record["history"], record["seconds"]


def _record(history: list[dict], seconds: float) -> dict[str, Any]:
    """What is saved beside an epoch: the rows before it, and the seconds that it has taken."""
    return {"history": history, "seconds": seconds}


def _score(recipe: Recipe, row: dict) -> float:
    """By which the best checkpoint is kept: never by a loss that is low because of a collapse."""
    if collapsed(row["validation"]):
        return -np.inf
    if recipe.monitor is not None:
        return row["validation"].get(recipe.monitor.name, -np.inf)
    return -(row["validation"] or row["fit"])[TOTAL]


def _names(recipe: Recipe) -> list[str]:
    return [TOTAL, *recipe.objective]  # mapped functions return dictionaries sorted


def _programs(recipe: Recipe, fit: DataSet, validation: DataSet) -> _Programs:
    mapped = partial(devices.mapped, precision=recipe.precision)
    order = _validation_order(len(validation.images), recipe.validation_batch_size)
    return _Programs(
        order=mapped(
            partial(epoch_order, recipe, len(fit.images), np.flatnonzero(fit.labels >= 0))
        ),
        steps=mapped(partial(fit_steps, recipe), donate=(0,)),
        check=mapped(partial(validation_batches, recipe)),
        refresh=mapped(partial(refreshed, recipe), donate=(0,)),
        embed=on_rows(embedding(recipe.model)),
        data=None if recipe.streaming else devices.on_every_device((fit, validation)),
        validation_order=order,
        shared_validation_order=None if recipe.streaming else devices.share_batches(order),
    )


def _fit(
    run: _Run,
    epoch: Epoch,
    history: list[dict],
    start: float,
    profile: Profile | None,
    started: float | None,
) -> tuple[Epoch, float | None, bool]:
    """The rest of an epoch; seconds from `started` to its first totals; whether to stop.

    The totals of a call are looked at when the next one is under way: the devices never wait, but
    for the first call after `started`.
    """
    recipe, programs, fit, _, checkpoints, asked_to_stop = run
    number, per_call = len(history) + 1, recipe.steps_per_call
    steps = len(fit.images) // recipe.batch_size
    first = int(devices.from_first_device(epoch.state.step)) - len(history) * steps
    if first == 0:
        epoch = epoch._replace(state=_refresh(run, epoch.state))
    traced = range(0)
    if profile is not None and profile.steps:
        traced = range(first + per_call, first + per_call + profile.steps, per_call)
    first_step, stop, late = None, False, None
    with (
        Progress(f"epoch {number}", steps) as progress,
        ExitStack() as trace,
        jax.transfer_guard("disallow"),
    ):
        progress.update(first)
        order = programs.order(epoch.state)
        if programs.data is None:
            fed: Iterator[Any] = streamed(fit, devices.whole_batches(order), first)
        else:
            fed = repeat((programs.data[0], order, order))
        for at in range(first, steps, per_call):
            if profile is not None and at in traced[:1]:
                trace.enter_context(_traced(profile.directory))
            epoch, totals = programs.steps(epoch, *next(fed))
            if late is not None:
                _look(*late, number, progress)
            late = totals, (done := min(at + per_call, steps))
            if started is not None and first_step is None:
                _look(*late, number, progress)
                first_step = time.perf_counter() - started
                say(f"  first step after {first_step:.1f} s")
            if at in traced[-1:]:
                jax.block_until_ready(totals)
                trace.close()
            stop = asked_to_stop() or stop
            if done < steps and (stop or checkpoints.due()):  # the end of an epoch saves anyway
                _look(*late, number, progress)
                host = devices.from_first_device(epoch)
                _refuse_non_finite_parameters(host.state, f"at step {int(host.state.step)}")
                record = _record(history, time.perf_counter() - start)
                checkpoints.save(int(host.state.step), host, record)
                if stop:
                    raise Interrupted
        if late is not None:
            _look(*late, number, progress)
    return epoch, first_step, stop


def _look(totals: Totals, done: int, number: int, progress: Progress) -> None:
    """Refuses what is not finite, and shows the mean loss of the `done` steps."""
    totals = devices.from_first_device(totals)
    if totals.bad_step:
        _refuse_non_finite(totals.bad, f"at step {totals.bad_step} (epoch {number})")
    progress.update(done - progress.done, note=f"loss {totals.sums[TOTAL] / done:.4g}")


def _refresh(run: _Run, state: TrainState) -> TrainState:
    """Before an epoch: terms that remember something of all fit images see their embeddings."""
    if not any(term.refresh for term in run.recipe.objective.values()):
        return state
    embeddings = _embedded(run, state, run.fit)
    rows = np.arange(len(embeddings), dtype=np.int32)
    shares = devices.share_rows(embeddings, _BLOCK, 0), devices.share_rows(rows, _BLOCK, -1)
    return run.programs.refresh(state, *shares)


def _embedded(run: _Run, state: TrainState, data: DataSet) -> np.ndarray:
    variables = state.judged(run.recipe.average)
    return map_rows(run.programs.embed, variables, data.images, run.recipe.validation_batch_size)


def _validate(run: _Run, state: TrainState, step: int) -> dict[str, float]:
    """Each term's mean over the validation images, and the monitor's score; {} without any."""
    recipe, programs, _, validation, *_ = run
    if not len(validation.images):
        return {}
    sums: dict[str, Any] = {}

    def look(late: Any) -> None:
        for name, pair in devices.from_first_device(late).items():
            before = sums.get(name, (0, 0))
            sums[name] = tuple(old + np.float64(new) for old, new in zip(before, pair, strict=True))

    fed: Iterator[Any] | None = None
    if programs.data is None:
        fed = streamed(validation, devices.local_share(programs.validation_order))
    i, late = devices.on_every_device(np.int32(0)), None
    with jax.transfer_guard("disallow"):
        first = i
        for _ in range(0, len(programs.validation_order), recipe.steps_per_call):
            if fed is not None:  # one batch, the first of what it comes in
                _, found = programs.check(state, first, *next(fed))
            else:
                assert programs.data is not None
                order = programs.shared_validation_order
                i, found = programs.check(state, i, programs.data[1], order, order)
            if late is not None:
                look(late)
            late = found
        look(late)
    spread = spread_of(sums.pop("embedding")[0])
    # A term or an accuracy that counted nothing, such as one without labels, has no mean.
    means = {name: float(sum / count) for name, (sum, count) in sums.items() if count}
    terms: Any = {name: means.get(name, 0.0) for name in recipe.objective}
    total = float(totalled(recipe.objective, terms, np.int32(step))[TOTAL])
    ordered = {TOTAL: total} | {n: means[n] for n in (*recipe.objective, "accuracy") if n in means}
    ordered |= spread
    if recipe.monitor is not None:
        embeddings = _embedded(run, state, validation)
        ordered[recipe.monitor.name] = recipe.monitor.score(embeddings, validation.labels)
    return ordered


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
