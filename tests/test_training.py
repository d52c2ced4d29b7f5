"""The train and validation steps against NumPy float64, on one device and on several."""

import json
import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from numpy_model import autoencoder, randomised
from scipy.special import log_softmax

from retrieval_jax.data.images import LazyImages, view
from retrieval_jax.models import AutoEncoder, Decoder, Encoder, Head
from retrieval_jax.numerics.keys import key_for
from retrieval_jax.objectives.objective import Batch, classification_term, reconstruction_term
from retrieval_jax.runtime import devices
from retrieval_jax.runtime.errors import Interrupted, UserError
from retrieval_jax.training.checkpoints import Checkpoints
from retrieval_jax.training.epochs import Recipe, fit_batch
from retrieval_jax.training.feed import DataSet, streamed
from retrieval_jax.training.logs import MetricLog
from retrieval_jax.training.loop import Watch, _parts, train
from retrieval_jax.training.optimizers import build_optimizer
from retrieval_jax.training.step import TrainState, create_state, train_step, validation_step
from retrieval_jax.training.views import random_shift

WEIGHTS = {"reconstruction": 3.0, "classification": 0.5}
OBJECTIVE = {
    "reconstruction": reconstruction_term(WEIGHTS["reconstruction"]),
    "classification": classification_term(WEIGHTS["classification"]),
}
IMAGES = np.random.default_rng(0).random((8, 4, 8, 2), np.float32)
LABELS = np.array([0, 2, 1, 1, 2, 0, 2, 2], np.int32)
BATCH = Batch(IMAGES, LABELS)
OTHER = Batch(np.random.default_rng(5).random(IMAGES.shape, np.float32), LABELS[::-1].copy())


def small_model():
    axis = {"axis_name": devices.AXIS}
    return AutoEncoder(Encoder((3,), 4, **axis), Decoder((3,), 2, **axis), Head(3))


def random_state(optimizer):
    state = create_state(small_model(), optimizer, jax.random.key(0), IMAGES.shape[1:])
    leaves, structure = jax.tree.flatten((state.params, state.batch_stats))
    params, stats = randomised(leaves, structure, seed=1)
    return TrainState(state.step, params, stats, optimizer.init(params))


def numpy_terms(params, stats, train):
    _, reconstruction, logits, new_stats = autoencoder(params, stats, IMAGES, train=train)
    values = {
        "reconstruction": ((reconstruction - IMAGES) ** 2).mean((1, 2, 3)),
        "classification": -log_softmax(logits, 1)[np.arange(len(LABELS)), LABELS],
    }
    return {"loss": sum(WEIGHTS[name] * v for name, v in values.items()), **values}, new_stats


def step_on(count, state, optimizer, batches=(BATCH,), ema_decay=0.0):
    """The state and metrics after a step on each batch, on the first `count` devices."""
    mapped = jax.pmap(
        partial(
            train_step,
            model=small_model(),
            objective=OBJECTIVE,
            optimizer=optimizer,
            axis_name=devices.AXIS,
            ema_decay=ema_decay,
        ),
        axis_name=devices.AXIS,
        devices=jax.devices()[:count],
    )
    state = jax.tree.map(lambda x: jnp.stack([x] * count), state)
    for batch in batches:
        shared = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
        state, metrics = mapped(state, shared)
    for leaf in jax.tree.leaves((state, metrics)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
    return jax.tree.map(lambda x: np.asarray(x[0]), (state, metrics))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_one_step_equals_numpy_on_any_number_of_devices(count):
    optimizer = optax.sgd(1.0)  # parameters change by exactly minus the gradient
    before = random_state(optimizer)
    after, metrics = step_on(count, before, optimizer)
    expected, new_stats = numpy_terms(before.params, before.batch_stats, train=True)
    for name, values in expected.items():
        np.testing.assert_allclose(metrics[name], values.mean(), rtol=2e-5)
    for part, layers in new_stats.items():
        for layer, values in layers.items():
            for name, value in values.items():
                np.testing.assert_allclose(after.batch_stats[part][layer][name], value, rtol=1e-4)
    assert after.step == 1

    # The gradient along random directions, by central differences of the float64 loss.
    leaves, structure = jax.tree.flatten(before.params)
    gradient = [
        b.astype(np.float64) - a for b, a in zip(leaves, jax.tree.leaves(after.params), strict=True)
    ]
    generator = np.random.default_rng(2)
    for _ in range(6):
        direction = [generator.normal(size=leaf.shape) for leaf in leaves]

        def loss_at(offset, direction=direction):
            moved = [leaf + offset * d for leaf, d in zip(leaves, direction, strict=True)]
            terms, _ = numpy_terms(structure.unflatten(moved), before.batch_stats, train=True)
            return terms["loss"].mean()

        slope = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
        along = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
        assert along == pytest.approx(slope, rel=2e-3, abs=1e-4)


def test_several_steps_are_the_same_on_any_number_of_devices():
    optimizer = optax.adam(1e-2, eps=1e-7)
    state = random_state(optimizer)
    one, two, four = (step_on(count, state, optimizer, 5 * (BATCH,)) for count in (1, 2, 4))
    for other in (two, four):
        for a, b in zip(
            jax.tree.leaves(one[0].params), jax.tree.leaves(other[0].params), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-4)
        assert other[1]["loss"] == pytest.approx(one[1]["loss"], rel=1e-3)


def test_validation_counts_only_real_rows():
    state = random_state(optax.sgd(1.0))
    mask = np.array([True] * 5 + [False] * 3)
    images = np.where(mask[:, None, None, None], IMAGES, np.float32(1e30))  # overflows every loss
    step = partial(
        validation_step, model=small_model(), objective=OBJECTIVE, axis_name=devices.AXIS
    )
    shared = [x.reshape(4, 2, *x.shape[1:]) for x in (images, LABELS, mask)]
    state = jax.tree.map(np.asarray, state)
    sums = jax.pmap(
        lambda images, labels, mask: step(state, Batch(images, labels), mask),
        axis_name=devices.AXIS,
    )(*shared)
    expected, _ = numpy_terms(state.params, state.batch_stats, train=False)
    assert sums["count"][0] == 5
    for name, values in expected.items():
        np.testing.assert_allclose(sums[name][0], values[mask].sum(), rtol=2e-5)
    _, _, logits, _ = autoencoder(state.params, state.batch_stats, IMAGES)
    assert sums["accuracy"][0] == (logits.argmax(1) == LABELS)[mask].sum()


def recipe(**changes):
    return Recipe(
        **{
            "model": small_model(),
            "objective": OBJECTIVE,
            "optimizer": optax.adam(1e-3),
            "augment": lambda key, image: image,
            "ema_decay": 0.0,
            "epochs": 3,
            "batch_size": 8,
            "validation_batch_size": 4,
            "steps_per_call": 1,
            "streaming": False,
            "seed": 0,
        }
        | changes
    )


def data_set(count, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 4, 8, 2), np.uint8)
    return DataSet(images, generator.integers(0, 3, count).astype(np.int32))


def train_in(workdir, recipe, fit, validation, **options):
    workdir.mkdir(exist_ok=True)
    checkpoints = Checkpoints(workdir / "checkpoints")
    return train(recipe, fit, validation, checkpoints, partial(MetricLog, workdir), **options)


def test_the_loop_resumes_to_the_same_bits(tmp_path):
    fit, validation = data_set(20), data_set(7, seed=1)
    whole, history = train_in(tmp_path / "whole", recipe(), fit, validation)
    train_in(tmp_path / "parts", recipe(epochs=2), fit, validation)
    resumed, resumed_history = train_in(tmp_path / "parts", recipe(), fit, validation)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)

    def without_time(rows):
        return [{key: row[key] for key in ("epoch", "step", "fit", "validation")} for row in rows]

    assert without_time(history) == without_time(resumed_history)
    assert [row["step"] for row in history] == [2, 4, 6]
    written = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == resumed_history
    assert list(history[0]["fit"]) == ["loss", "reconstruction", "classification"]
    assert list(history[0]["validation"])[-1] == "accuracy"


@pytest.mark.parametrize(("steps_per_call", "streaming"), [(1, False), (1, True), (2, False)])
def test_it_stops_inside_an_epoch_and_ends_with_the_same_bits(tmp_path, steps_per_call, streaming):
    fit, validation = data_set(43), data_set(7, seed=1)  # 5 steps an epoch
    changed = recipe(epochs=2, steps_per_call=steps_per_call, streaming=streaming)
    whole, history = train_in(tmp_path / "whole", changed, fit, validation)
    starts, left = 0, [0]

    def asked_to_stop():
        left[0] -= 1
        return left[0] == 0

    while True:
        left[0] = 2  # calls a start
        try:
            resumed, resumed_history = train_in(
                tmp_path / "parts", changed, fit, validation, asked_to_stop=asked_to_stop
            )
            break
        except Interrupted:
            starts += 1
            steps = [int(path.name) for path in (tmp_path / "parts" / "checkpoints").iterdir()]
            # Two calls further; the last of an epoch is shorter.
            assert max(steps) == ([2, 4, 6, 8] if steps_per_call == 1 else [4, 7])[starts - 1]
    assert starts >= 2
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    for row, resumed_row in zip(history, resumed_history, strict=True):
        for part in ("fit", "validation"):
            assert row[part] == resumed_row[part]


def test_long_epochs_are_saved_inside(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", seconds=0)
    saved = []
    save = checkpoints.save
    checkpoints.save = lambda state, *rest: saved.append(int(state.step)) or save(state, *rest)
    log_to = partial(MetricLog, tmp_path)
    train(recipe(epochs=2), data_set(27), data_set(0), checkpoints, log_to)
    assert saved == [1, 2, 3, 4, 5, 6]


def test_accumulation_and_averages_resume_to_the_same_bits_too(tmp_path):
    """Two batches an update and three an epoch: the checkpoint lies between two halves."""
    fit, validation = data_set(24), data_set(7, seed=1)
    both = recipe(
        epochs=2,
        ema_decay=0.9,
        optimizer=optax.MultiSteps(build_muon(), 2).gradient_transformation(),
    )
    whole, _ = train_in(tmp_path / "whole", both, fit, validation)
    train_in(tmp_path / "parts", both._replace(epochs=1), fit, validation)
    resumed, _ = train_in(tmp_path / "parts", both, fit, validation)
    assert jax.tree.structure(whole) == jax.tree.structure(resumed)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.opt_state.gradient_step == 3 and whole.opt_state.mini_step == 0


def build_muon():
    return build_optimizer(
        "muon", 1e-2, b1=0.9, b2=0.999, epsilon=1e-7, momentum=0.9, weight_decay=0.1
    )


def test_accumulated_gradients_are_the_batches_mean():
    optimizer = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    start = random_state(optimizer)
    half, _ = step_on(2, start, optimizer)
    for a, b in zip(jax.tree.leaves(half.params), jax.tree.leaves(start.params), strict=True):
        np.testing.assert_array_equal(a, b)
    after, _ = step_on(2, start, optimizer, batches=(BATCH, OTHER))
    plain = optax.sgd(1.0)
    gradients = [
        jax.tree.map(np.subtract, start.params, step_on(2, at, plain, batches=(batch,))[0].params)
        for at, batch in (
            (start._replace(opt_state=plain.init(start.params)), BATCH),
            (half._replace(opt_state=plain.init(start.params)), OTHER),
        )
    ]
    expected = jax.tree.map(lambda p, a, b: p - (a + b) / 2, start.params, *gradients)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_averages_are_the_debiased_exponential_ones():
    decay, optimizer = 0.7, optax.sgd(0.5)
    state = random_state(optimizer)
    state = state._replace(average=jax.tree.map(jnp.zeros_like, state.variables))
    visited = []
    for _ in range(4):
        state, _ = step_on(2, state, optimizer, ema_decay=decay)
        visited.append({"params": state.params, "batch_stats": state.batch_stats})
    weights = np.array([decay**age for age in (3, 2, 1, 0)], np.float64)
    weights /= weights.sum()
    expected = jax.tree.map(
        lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves, strict=True)), *visited
    )
    assert state.variables is state.average
    for a, b in zip(jax.tree.leaves(state.average), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_validation_is_of_the_averages():
    optimizer = optax.sgd(1.0)
    state = random_state(optimizer)
    other = jax.tree.map(lambda leaf: leaf + 0.5, state.variables)
    step = partial(
        validation_step, model=small_model(), objective=OBJECTIVE, axis_name=devices.AXIS
    )
    check = jax.pmap(
        lambda state: step(state, BATCH, jnp.ones(len(LABELS), bool)),
        axis_name=devices.AXIS,
        devices=jax.devices()[:1],
    )
    averaged, replaced = (
        check(jax.tree.map(lambda x: jnp.asarray(x)[None], changed))["loss"]
        for changed in (state._replace(average=other), state._replace(**other))
    )
    np.testing.assert_array_equal(averaged, replaced)


def test_ragged_validation_equals_one_batch(tmp_path):
    fit, validation = data_set(8), data_set(7, seed=1)
    rows = [
        train_in(
            tmp_path / str(size), recipe(epochs=1, validation_batch_size=size), fit, validation
        )[1]
        for size in (3, 64)
    ]
    for name, value in rows[0][0]["validation"].items():
        assert value == pytest.approx(rows[1][0]["validation"][name], rel=1e-5)


def test_an_epoch_visits_every_image_once(tmp_path):
    seen = []

    def watch(key, image):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), image, ordered=False)
        return image

    fit = DataSet(
        np.arange(16, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 8, 2), np.uint8),
        np.zeros(16, np.int32),
    )
    for epochs in (1, 2):  # the second call does the second epoch alone
        train_in(tmp_path, recipe(epochs=epochs, batch_size=8, augment=watch), fit, data_set(0))
        jax.effects_barrier()
        rows = np.rint(np.stack(seen)[:, 0, 0, 0] * 255).astype(int)
        assert sorted(rows) == [*range(16)]
        seen.clear()


def epoch_order(seed, epoch, rows):
    return np.asarray(jax.random.permutation(key_for(seed, "shuffle", epoch), rows))


SGD = optax.sgd(0.1, momentum=0.9)  # unlike Adam, it makes no steps of gradients that are rounding


class PlainDecoder(nn.Module):
    """The decoder with plain Flax layers, under the same parameter names."""

    @nn.compact
    def __call__(self, x):
        def norm(name):
            return nn.BatchNorm(False, momentum=0.99, epsilon=1e-3, name=name)

        x = nn.relu(norm("norm0")(x)).repeat(2, 1).repeat(2, 2)
        x = nn.relu(norm("norm1")(nn.Conv(3, (3, 3), name="conv1")(x)))
        return nn.sigmoid(nn.Conv(2, (3, 3), name="output")(x))


class PlainAutoEncoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        encoder = Encoder((3,), 4, name="encoder")
        bottleneck = encoder(x, True)
        embedding = bottleneck.mean((1, 2))
        return PlainDecoder(name="decoder")(bottleneck), Head(3, name="head")(embedding)


def plain_losses(fit, epochs, batch_size):
    """Mean total loss of each epoch, by a loop over plain Flax and optax on one device."""
    state = create_state(small_model(), SGD, key_for(0, "init"), fit.images.shape[1:])
    params, stats, moments = state.params, state.batch_stats, state.opt_state

    @jax.jit
    def step(params, stats, moments, images, labels):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            (reconstruction, logits), updates = PlainAutoEncoder().apply(
                variables, images, mutable=["batch_stats"]
            )
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            squared = ((reconstruction - images) ** 2).mean()
            total = WEIGHTS["reconstruction"] * squared + WEIGHTS["classification"] * entropy
            return total, updates["batch_stats"]

        (value, stats_after), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments_after = SGD.update(gradients, moments)
        return optax.apply_updates(params, updates), stats_after, moments_after, value

    means = []
    for epoch in range(1, epochs + 1):
        order = epoch_order(0, epoch, len(fit.images))
        values = []
        for i in range(len(order) // batch_size):
            rows = order[i * batch_size : (i + 1) * batch_size]
            images = fit.images[rows].astype(np.float32) / 255
            params, stats, moments, value = step(params, stats, moments, images, fit.labels[rows])
            values.append(float(value))
        means.append(np.mean(values))
    return means


def test_each_program_of_the_loop_is_compiled_once(tmp_path, caplog):
    with jax.log_compiles():
        train_in(tmp_path, recipe(epochs=2), data_set(24), data_set(20, seed=1))
    # Mapped functions all have this name, and arguments of their own.
    compiled = [r.getMessage() for r in caplog.records if "Compiling jit(_fun)" in r.getMessage()]
    shapes = [message.split("Argument mapping")[0] for message in compiled]
    assert len(shapes) >= 3 and len(shapes) == len(set(shapes))


def test_two_epochs_are_a_plain_loops_whatever_the_steps_of_a_call(tmp_path):
    fit, validation = data_set(45), data_set(20, seed=1)
    two_epochs = recipe(epochs=2, optimizer=SGD)
    (one, one_history), (many, many_history) = (
        train_in(tmp_path / str(n), two_epochs._replace(steps_per_call=n), fit, validation)
        for n in (1, 3)  # five steps an epoch: calls of 3 and 2
    )
    losses = [row["fit"]["loss"] for row in many_history]
    np.testing.assert_allclose(losses, plain_losses(fit, 2, 8), rtol=1e-5)
    for a, b in zip(one_history, many_history, strict=True):
        for part in ("fit", "validation"):
            assert a[part] == pytest.approx(b[part], rel=1e-6)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_draws_do_not_depend_on_the_number_of_devices():
    data = data_set(16)
    rows = np.random.default_rng(3).permutation(16)
    shifted = recipe(augment=partial(random_shift, pixels=2))
    batches = []
    for count in (1, 2, 8):
        mapped = jax.pmap(
            lambda rows: fit_batch(shifted, jnp.int32(7), jax.tree.map(jnp.asarray, data), rows),
            axis_name=devices.AXIS,
            devices=jax.devices()[:count],
        )
        batch = mapped(rows.reshape(count, -1))
        batches.append(np.concatenate(list(np.asarray(batch.images))))
        np.testing.assert_array_equal(np.concatenate(list(batch.labels)), data.labels[rows])
    for other in batches[1:]:
        np.testing.assert_array_equal(other, batches[0])
    assert not np.array_equal(batches[0], data.images[rows] / np.float32(255))


def test_the_first_step_is_told_and_the_steps_after_it_are_traced(tmp_path):
    told = []
    watch = Watch(lambda: told.append(True), tmp_path / "profile", profile_steps=3)
    for steps in range(6), range(0, 6, 2), range(0, 6, 4), range(1, 6, 2), range(0, 6, 6):
        parts = _parts(steps, watch)
        assert sorted(step for part, _ in parts for step in part) == list(steps)
        assert all(
            min(6 - step, steps.step) == min(part.stop - step, part.step)
            for part, _ in parts
            for step in part
        )
    assert [list(part) for part, _ in _parts(range(6), watch)] == [[0], [1, 2, 3], [4, 5]]
    assert [part for part, _ in _parts(range(6), None)] == [range(6)]
    workdir = tmp_path / "run"
    workdir.mkdir()
    checkpoints = Checkpoints(workdir / "checkpoints")
    train(
        recipe(epochs=2, steps_per_call=2),
        data_set(40),
        data_set(0),
        checkpoints,
        partial(MetricLog, workdir),
        watch,
    )
    assert told == [True]
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


@pytest.mark.parametrize("steps_per_call", [1, 3])
@pytest.mark.parametrize("term", ["reconstruction", "classification"])
def test_a_loss_that_is_not_finite_stops_and_names_step_and_term(tmp_path, term, steps_per_call):
    fit = data_set(40)
    # An image each spoils the second and the third batch of epoch 2.
    fit.labels[:] = np.isin(np.arange(40), epoch_order(0, 2, 40)[[12, 20]])
    _, history = train_in(tmp_path, recipe(epochs=1), fit, data_set(4))

    def poisoned(outputs, batch):
        value = OBJECTIVE[term].loss(outputs, batch)
        return jnp.where(batch.labels == 1, jnp.inf, value)

    objective = OBJECTIVE | {term: OBJECTIVE[term]._replace(loss=poisoned)}
    with pytest.raises(UserError, match=f"'{term}' is not finite at step 7 \\(epoch 2\\)"):
        changed = recipe(objective=objective, steps_per_call=steps_per_call)
        train_in(tmp_path, changed, fit, data_set(4))
    state, kept = Checkpoints(tmp_path / "checkpoints").restore(random_state(optax.adam(1e-3)))
    assert kept.history == history and state.step == 5


@pytest.mark.parametrize(
    ("images", "stop", "where"),
    [(8, False, "(after|in the validation after) epoch 1"), (20, True, "at step 1")],
)
def test_parameters_that_are_not_finite_are_never_saved(tmp_path, images, stop, where):
    explode = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u * jnp.nan, updates))
    changed = recipe(optimizer=explode, epochs=1)
    with pytest.raises(UserError, match=f"not finite {where}"):
        train_in(tmp_path, changed, data_set(images), data_set(4), asked_to_stop=lambda: stop)
    _, kept = Checkpoints(tmp_path / "checkpoints").restore(random_state(explode))
    assert kept.history == [] and not any(p.name.isdigit() for p in tmp_path.glob("checkpoints/*"))


def test_a_stream_trains_to_the_same_numbers(tmp_path):
    fit, validation = data_set(27), data_set(7, seed=1)
    lazy = [DataSet(view(x, np.arange(len(x))), y) for x, y in (fit, validation)]
    states, rows = zip(
        train_in(tmp_path / "memory", recipe(epochs=2), fit, validation),
        train_in(tmp_path / "stream", recipe(epochs=2, streaming=True), *lazy),
        train_in(tmp_path / "array", recipe(epochs=2, streaming=True), fit, validation),
        strict=True,
    )
    for part in ("fit", "validation"):
        for row, other, third in zip(*rows, strict=True):
            assert other[part] == third[part] == pytest.approx(row[part], rel=1e-6)
    for a, b in zip(*map(jax.tree.leaves, states[:2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_stream_goes_on_at_the_exact_example():
    data = data_set(50)
    order = np.random.default_rng(0).permutation(50)[:48].reshape(3, 16).astype(np.int32)
    order[2, 11:] = -1
    whole, rest = list(streamed(data, order)), list(streamed(data, order, start=2))
    assert len(whole) == 3 and len(rest) == 1
    for step, (part, places) in zip([0, 1, 2, 2], whole + rest, strict=True):
        assert part.images.shape == (8, 2, 4, 8, 2) and places.shape == (8, 1, 2)
        real = np.ravel(places) >= 0
        np.testing.assert_array_equal(real, order[step] >= 0)
        np.testing.assert_array_equal(np.ravel(places)[real] % 2, np.arange(16)[real] % 2)
        rows = order[step][real]
        images = np.reshape(part.images, (16, 4, 8, 2))
        np.testing.assert_array_equal(images[real], data.images[rows])
        np.testing.assert_array_equal(np.ravel(part.labels)[real], data.labels[rows])
        assert len(part.images.sharding.device_set) == 8


def test_neither_host_nor_devices_hold_more_than_a_few_batches_of_a_stream():
    shape, batch, steps = (64, 64, 3), 64, 100
    images = LazyImages(
        lambda rows: np.full((len(rows), *shape), 7, np.uint8), np.arange(steps * batch), shape
    )
    data = DataSet(images, np.zeros(len(images), np.int32))
    bytes_of_batch, held = batch * np.prod(shape), 0
    before = sum(array.nbytes for array in jax.live_arrays())
    tracemalloc.start()
    try:
        for _ in streamed(data, np.arange(len(images)).reshape(steps, batch)):
            held = max(held, sum(array.nbytes for array in jax.live_arrays()) - before)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 5 * bytes_of_batch and peak < 10 * bytes_of_batch
