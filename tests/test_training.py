"""The train and validation steps against NumPy float64, on one device and on several."""

import json
import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy_model import autoencoder, randomised
from scipy.special import log_softmax

from retrieval_jax import devices
from retrieval_jax.data.images import LazyImages, view
from retrieval_jax.errors import UserError
from retrieval_jax.models import AutoEncoder, Decoder, Encoder, Head
from retrieval_jax.objective import Batch, classification_term, reconstruction_term
from retrieval_jax.training.checkpoints import Checkpoints
from retrieval_jax.training.feed import streamed
from retrieval_jax.training.logs import MetricLog
from retrieval_jax.training.loop import DataSet, Recipe, train
from retrieval_jax.training.step import TrainState, create_state, train_step, validation_step

WEIGHTS = {"reconstruction": 3.0, "classification": 0.5}
OBJECTIVE = {
    "reconstruction": reconstruction_term(WEIGHTS["reconstruction"]),
    "classification": classification_term(WEIGHTS["classification"]),
}
IMAGES = np.random.default_rng(0).random((8, 4, 8, 2), np.float32)
LABELS = np.array([0, 2, 1, 1, 2, 0, 2, 2], np.int32)


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


def step_on(count, state, optimizer, steps=1):
    """The state and metrics after `steps` steps on the first `count` devices."""
    mapped = jax.pmap(
        partial(
            train_step,
            model=small_model(),
            objective=OBJECTIVE,
            optimizer=optimizer,
            axis_name=devices.AXIS,
        ),
        axis_name=devices.AXIS,
        devices=jax.devices()[:count],
    )
    state = jax.tree.map(lambda x: jnp.stack([x] * count), state)
    batch = Batch(IMAGES.reshape(count, -1, *IMAGES.shape[1:]), LABELS.reshape(count, -1))
    for _ in range(steps):
        state, metrics = mapped(state, batch)
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
    one, two, four = (step_on(count, state, optimizer, steps=5) for count in (1, 2, 4))
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
            "augment": lambda key, images: images,
            "epochs": 3,
            "batch_size": 8,
            "validation_batch_size": 4,
            "streaming": False,
            "seed": 0,
        }
        | changes
    )


def data_set(count, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 4, 8, 2), np.uint8)
    return DataSet(images, generator.integers(0, 3, count).astype(np.int32))


def train_in(workdir, recipe, fit, validation):
    workdir.mkdir(exist_ok=True)
    checkpoints = Checkpoints(workdir / "checkpoints")
    return train(recipe, fit, validation, checkpoints, partial(MetricLog, workdir))


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


def test_an_epoch_visits_every_image_once_in_a_new_order(tmp_path):
    seen = []

    def watch(key, images):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), images, ordered=False)
        return images

    fit = DataSet(
        np.arange(16, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 8, 2), np.uint8),
        np.zeros(16, np.int32),
    )
    train_in(tmp_path, recipe(epochs=2, batch_size=8, augment=watch), fit, data_set(0))
    jax.effects_barrier()
    orders = np.rint(np.concatenate(seen)[:, 0, 0, 0] * 255).astype(int)
    assert sorted(orders) == sorted([*range(16)] * 2)


@pytest.mark.parametrize("term", ["reconstruction", "classification"])
def test_a_loss_that_is_not_finite_stops_and_names_step_and_term(tmp_path, term):
    fit = data_set(16)
    _, history = train_in(tmp_path, recipe(epochs=1), fit, data_set(4))

    def poisoned(outputs, batch):
        value = OBJECTIVE[term].loss(outputs, batch)
        return jnp.where(value > -1, jnp.inf, value)

    objective = OBJECTIVE | {term: OBJECTIVE[term]._replace(loss=poisoned)}
    with pytest.raises(UserError, match=f"'{term}' is not finite at step 3 \\(epoch 2\\)"):
        train_in(tmp_path, recipe(objective=objective), fit, data_set(4))
    state, kept = Checkpoints(tmp_path / "checkpoints").restore(random_state(optax.adam(1e-3)))
    assert kept == history and state.step == 2


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    fit = data_set(8)
    explode = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u * jnp.nan, updates))
    with pytest.raises(UserError, match="not finite (after|in the validation after) epoch 1"):
        train_in(tmp_path, recipe(optimizer=explode, epochs=1), fit, data_set(4))
    _, kept = Checkpoints(tmp_path / "checkpoints").restore(random_state(explode))
    assert kept == []


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
