"""The train and validation steps against NumPy float64, on one device and on several."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from numpy_model import autoencoder, mlp, randomised
from scipy.special import log_softmax

from retrieval_jax.models import MLP, Decoder, Encoder, Head, Network
from retrieval_jax.objectives import Batch, Loss, Term, classification, mean_of, reconstruction
from retrieval_jax.runtime import devices
from retrieval_jax.training.step import create_state, train_step, validation_step

WEIGHTS = {"reconstruction": 3.0, "classification": 0.5}
OBJECTIVE = {
    "reconstruction": reconstruction(WEIGHTS["reconstruction"]),
    "classification": classification(WEIGHTS["classification"]),
}
GENERATOR = np.random.default_rng(0)
# Three views of eight examples, of two sizes.
IMAGES = (
    GENERATOR.random((2, 8, 4, 8, 2), np.float32),
    GENERATOR.random((1, 8, 6, 4, 2), np.float32),
)
# Of two examples a device, four devices have labels of 1, 1, none and 2.
LABELS = np.array([0, -1, -1, 1, -1, -1, 2, 2], np.int32)
BATCH = Batch(IMAGES, LABELS, np.arange(8, dtype=np.int32))
OTHER = BATCH._replace(
    images=tuple(np.random.default_rng(5).random(x.shape, np.float32) for x in IMAGES),
    labels=LABELS[::-1].copy(),
)


def small_model():
    axis = {"axis_name": devices.AXIS}
    return Network(Encoder((3,), 4, **axis), Decoder((3,), 2, **axis), Head(3))


def initial(model, objective, optimizer, **options):
    """A state whose every parameter and statistic matters."""
    shape = (4, 8, 2)
    state = create_state(model, objective, optimizer, jax.random.key(0), shape, **options)
    variables = randomised(*jax.tree.flatten(state.variables), seed=1)
    params = variables.pop("params")
    state = state._replace(params=params, collections=variables, opt_state=optimizer.init(params))
    return state if state.target is None else state._replace(target=state.variables)


SGD = optax.sgd(1.0)  # parameters change by exactly minus the gradient


def random_state(optimizer=SGD, **options):
    return initial(small_model(), OBJECTIVE, optimizer, **options)


def shared(batch, count):
    """[devices, …] of a batch, each with its examples in all views."""
    images = tuple(x.reshape(len(x), count, -1, *x.shape[2:]).swapaxes(0, 1) for x in batch.images)
    return Batch(images, batch.labels.reshape(count, -1), batch.rows.reshape(count, -1))


def stepper(count, model, objective, optimizer, **options):
    """(state, batch, number of the step's key) → the state and metrics after, on `count` devices.

    All devices must end with the same.
    """

    def step(state, batch, key):
        key = jax.random.fold_in(jax.random.key(3), key)
        axis = {"axis_name": devices.AXIS}
        return train_step(
            state,
            batch,
            model=model,
            objective=objective,
            optimizer=optimizer,
            key=key,
            **axis,
            **options,
        )

    mapped = jax.pmap(step, axis_name=devices.AXIS, devices=jax.devices()[:count])

    def run(state, batch, key=0):
        copies = jax.tree.map(lambda x: jnp.stack([x] * count), (state, jnp.int32(key)))
        after = mapped(copies[0], shared(batch, count), copies[1])
        for leaf in jax.tree.leaves(after):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
        return jax.tree.map(lambda x: np.asarray(x[0]), after)

    return run


def numpy_terms(params, stats, batch, train):
    """Name → its mean over all views and examples; and the statistics after the views in order."""
    squared, logits = [], []
    for images in batch.images:
        flat = images.reshape(-1, *images.shape[2:])
        _, ours, scores, after = autoencoder(params, stats, flat, train=train)
        stats = after if train else stats
        squared.append(((ours - flat) ** 2).mean((1, 2, 3)).reshape(images.shape[:2]))
        logits.append(scores.reshape(*images.shape[:2], -1))
    squared, logits = np.concatenate(squared), np.concatenate(logits)
    real, known = batch.rows >= 0, (batch.rows >= 0) & (batch.labels >= 0)
    entropy = -log_softmax(logits, 2)[:, known, batch.labels[known]]
    means = {"reconstruction": squared[:, real].mean(), "classification": entropy.mean()}
    right = (logits[0].argmax(1) == batch.labels)[known]
    total = sum(WEIGHTS[name] * mean for name, mean in means.items())
    return {"loss": total, **means, "accuracy": right.mean()}, stats


def assert_slopes(before, after, loss, rel=2e-3):
    """That `before - after` is the gradient of a float64 loss, along random directions."""
    leaves, structure = jax.tree.flatten(before)
    gradient = [
        b.astype(np.float64) - a for b, a in zip(leaves, jax.tree.leaves(after), strict=True)
    ]
    generator = np.random.default_rng(2)
    for _ in range(6):
        direction = [generator.normal(size=leaf.shape) for leaf in leaves]

        def moved(offset, direction=direction):
            return structure.unflatten(
                [leaf + offset * d for leaf, d in zip(leaves, direction, strict=True)]
            )

        slope = (loss(moved(1e-6)) - loss(moved(-1e-6))) / 2e-6
        along = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
        assert along == pytest.approx(slope, rel=rel, abs=1e-4)


def assert_close(tree, expected, **tolerance):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize("count", [1, 4])
def test_one_step_equals_numpy_on_any_number_of_devices(count):
    before = random_state()
    step = stepper(count, small_model(), OBJECTIVE, SGD)
    after, metrics = step(before, BATCH)
    stats = before.collections["batch_stats"]
    expected, new_stats = numpy_terms(before.params, stats, BATCH, train=True)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5)
    assert_close(after.collections["batch_stats"], new_stats, rtol=1e-4)
    assert after.step == 1 and after.target is None
    assert_slopes(
        before.params,
        after.params,
        lambda params: numpy_terms(params, stats, BATCH, train=True)[0]["loss"],
    )
    # What hides a label says nothing of it.
    otherwise = BATCH._replace(labels=np.where(LABELS < 0, -LABELS - 9, LABELS))
    for a, b in zip(
        *map(jax.tree.leaves, ((after, metrics), step(before, otherwise))), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_accumulated_gradients_are_the_batches_mean_and_averages_debiased():
    """Two batches an update; of the variables after each, the exponential average."""
    decay = 0.7
    optimizer = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    start = random_state(optimizer, averaged=True)
    start = start._replace(target=jax.tree.map(jnp.zeros_like, start.target))
    step = stepper(2, small_model(), OBJECTIVE, optimizer, decay=decay)
    states = [start]
    for batch in (BATCH, OTHER, BATCH):
        states.append(step(states[-1], batch)[0])
    assert_close(states[1].params, start.params, rtol=0)
    assert_close(states[3].params, states[2].params, rtol=0)

    def loss(params):
        halves = [
            numpy_terms(params, state.collections["batch_stats"], batch, train=True)[0]["loss"]
            for state, batch in zip(states, (BATCH, OTHER), strict=False)
        ]
        return sum(halves) / 2

    assert_slopes(start.params, states[2].params, loss)
    weights = np.array([decay**age for age in (2, 1, 0)], np.float64)
    expected = jax.tree.map(
        lambda *leaves: sum(w * x for w, x in zip(weights / weights.sum(), leaves, strict=True)),
        *(state.variables for state in states[1:]),
    )
    assert_close(states[-1].target, expected, rtol=1e-5)


def test_validation_counts_only_real_rows_and_known_labels_of_the_network_that_is_judged():
    state = jax.tree.map(np.asarray, random_state(averaged=True))
    # A head that tells views apart.
    dense = state.params["head"]["dense"]
    stats = state.collections["batch_stats"]
    embeddings, *_ = autoencoder(state.params, stats, IMAGES[0].reshape(-1, 4, 8, 2))
    kernel = np.random.default_rng(5).normal(size=dense["kernel"].shape)  # the views differ
    dense["kernel"] = 1e3 * kernel.astype(np.float32)
    dense["bias"] = (-embeddings.mean(0) @ dense["kernel"]).astype(np.float32)
    state = state._replace(target=jax.tree.map(lambda leaf: leaf + 0.1, state.target))
    padded = np.array([False] * 5 + [True] * 2 + [False])
    images = tuple(np.where(padded[:, None, None, None], np.float32(1e30), x) for x in IMAGES)
    batch = BATCH._replace(images=images, rows=np.where(padded, -1, BATCH.rows))

    def both(batch):
        step = partial(
            validation_step,
            state,
            batch,
            model=small_model(),
            objective=OBJECTIVE,
            key=jax.random.key(0),
            axis_name=devices.AXIS,
        )
        return step(), step(average=True)

    mapped = jax.pmap(both, axis_name=devices.AXIS, devices=jax.devices()[:4])
    for sums, variables in zip(
        mapped(shared(batch, 4)), (state.variables, state.target), strict=True
    ):
        expected, _ = numpy_terms(variables["params"], variables["batch_stats"], batch, train=False)
        counts = {"reconstruction": 3 * 6, "classification": 3 * 3, "accuracy": 3}
        total, count = sums.pop("embedding")
        flat = images[0][0].reshape(8, *IMAGES[0].shape[2:])
        embeddings, *_ = autoencoder(variables["params"], variables["batch_stats"], flat)
        rows = np.c_[embeddings, np.ones(8)][~padded]
        np.testing.assert_allclose(total[0], rows.T @ rows, rtol=1e-4)
        assert count[0] == 6
        assert set(sums) == set(counts)
        for name, (total, count) in sums.items():
            assert count[0] == counts[name]
            np.testing.assert_allclose(total[0] / count[0], expected[name], rtol=2e-5)


class Flat(nn.Module):
    """An encoder without a map."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(5, name="dense")(images.reshape(len(images), -1))


def bootstrap(seen):
    """BYOL's shape: predictions of each of two views beside the target's of the other."""
    target = seen.target.projection[::-1]
    return mean_of(jnp.square(seen.outputs.prediction - target).sum(-1), seen.batch)


def numpy_bootstrap(variables, target, images):
    def projection(of):
        dense, stats = of["params"]["encoder"]["dense"], of["batch_stats"]["projector"]
        x = images.reshape(16, -1).astype(np.float64) @ dense["kernel"] + dense["bias"]
        return mlp(of["params"]["projector"], stats, x, True)[0]

    stats = variables["batch_stats"]["predictor"]
    prediction, _ = mlp(variables["params"]["predictor"], stats, projection(variables), True)
    goal = projection(target).reshape(2, 8, -1)[::-1].reshape(16, -1)
    return ((prediction - goal) ** 2).sum(1).mean()


@pytest.mark.parametrize("count", [1, 4])
def test_a_target_network_is_the_average_by_its_schedule_and_has_no_gradient(count):
    axis = {"axis_name": devices.AXIS}
    model = Network(Flat(), projector=MLP((6, 3), **axis), predictor=MLP((4, 3), **axis))
    objective = {"bootstrap": Term(bootstrap, needs_target=True)}
    optimizer = optax.sgd(1.0)
    state = initial(model, objective, optimizer, averaged=True)
    state = state._replace(target=jax.tree.map(lambda leaf: leaf * 0.9, state.target))
    batch = BATCH._replace(images=IMAGES[:1])

    def decay(step):
        return 0.5 + 0.1 * step

    run = stepper(count, model, objective, optimizer, decay=decay)
    target = state.target
    for i in range(3):
        after, metrics = run(state, batch)
        expected = numpy_bootstrap(state.variables, state.target, IMAGES[0])
        assert metrics["bootstrap"] == pytest.approx(expected, rel=1e-4)

        def loss(params, state=state):
            return numpy_bootstrap(state.variables | {"params": params}, state.target, IMAGES[0])

        assert_slopes(state.params, after.params, loss, rel=5e-3)
        target = jax.tree.map(
            lambda old, new, i=i: decay(i) * old.astype(np.float64) + (1 - decay(i)) * new,
            target,
            after.variables,
        )
        state = after
    assert_close(state.target, target, rtol=1e-5)


class Foreign(nn.Module):
    """No BatchNorm, dropout, a collection of its own, and something sown."""

    @nn.compact
    def __call__(self, images, train=False):
        calls = self.variable("tracked", "calls", lambda: jnp.int32(0))
        level = self.variable("tracked", "level", lambda: jnp.float32(0))
        if train:
            calls.value += 1
            level.value = 0.9 * level.value + 0.1 * images.mean()
        x = nn.GroupNorm(1)(nn.Conv(3, (3, 3))(images))
        self.sow("intermediates", "features", x)
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(16)(x.mean((1, 2))) + 5)


def test_any_flax_module_trains_with_masks_of_its_own_on_each_device_and_step():
    dropped = {}

    def watch(device, embedding):
        dropped.setdefault(int(device), []).append(np.asarray(embedding) == 0)

    def loss(seen):
        embedding = seen.outputs.embedding
        jax.debug.callback(watch, jax.lax.axis_index(devices.AXIS), embedding)
        return mean_of(jnp.square(embedding).sum(-1), seen.batch)

    model, objective = Network(Foreign()), {"small": Term(loss)}
    state = create_state(model, objective, optax.sgd(1e-3), jax.random.key(0), (4, 8, 2))
    assert set(state.variables) == {"params", "tracked"}
    run = stepper(4, model, objective, optax.sgd(1e-3))
    first, metrics = run(state, BATCH, key=1)
    jax.effects_barrier()
    second, _ = run(first, BATCH, key=2)
    jax.effects_barrier()
    masks = [mask for device in range(4) for mask in dropped[device]]
    assert len(masks) == 8 and all(0.2 < mask.mean() < 0.8 for mask in masks)
    # Of every device, step and view.
    assert len({view.tobytes() for mask in masks for view in mask}) == 2 * 4 * 3
    tracked = second.collections["tracked"]["encoder"]
    assert tracked["calls"] == 4  # twice a step: two sizes of views
    level = 0.0
    for images in 2 * IMAGES:  # of all devices, though the module reduces nothing
        level = 0.9 * level + 0.1 * images.mean()
    assert tracked["level"] == pytest.approx(level, rel=1e-5)
    # The same key draws the same masks again.
    again, others = run(state, BATCH, key=1)
    assert metrics == others
    assert_close(again.params, first.params, rtol=0)


def test_a_terms_memory_goes_from_step_to_step_and_its_share_of_all_devices():
    """A queue of the last 12 embeddings, in the batch's order on any number of devices."""

    def memory(shapes):
        return {"queue": jnp.zeros((12, *shapes.embedding.shape[1:])), "at": jnp.int32(0)}

    def loss(seen):
        new = jax.lax.all_gather(seen.outputs.embedding[0], seen.axis_name, tiled=True)
        new = jax.lax.stop_gradient(new)
        at = (seen.memory["at"] + jnp.arange(len(new))) % 12
        after = {
            "queue": seen.memory["queue"].at[at].set(new),
            "at": (seen.memory["at"] + len(new)) % 12,
        }
        return Loss(jnp.square(seen.outputs.embedding).sum(), jnp.float32(1), after)

    model, objective = Network(Flat()), {"queue": Term(loss, memory=memory)}
    optimizer = optax.sgd(0.0)
    state = create_state(model, objective, optimizer, jax.random.key(0), (4, 8, 2))
    assert state.memory["queue"]["queue"].shape == (12, 5)
    run = stepper(4, model, objective, optimizer)
    views = [batch._replace(images=batch.images[:1]) for batch in (BATCH, OTHER)]
    for batch in views:
        state, _ = run(state, batch)
    dense = state.params["encoder"]["dense"]
    embeddings = [
        batch.images[0][0].reshape(8, -1).astype(np.float64) @ dense["kernel"] + dense["bias"]
        for batch in views
    ]
    expected = np.concatenate([embeddings[1][4:], embeddings[0][4:], embeddings[1][:4]])
    np.testing.assert_allclose(state.memory["queue"]["queue"], expected, rtol=1e-5, atol=1e-6)
    assert state.memory["queue"]["at"] == 4
