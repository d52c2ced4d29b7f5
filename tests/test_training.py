"""The loop: epochs, checkpoints, streams, what is refused; against a plain loop and NumPy."""

import json
import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from sklearn.neighbors import KNeighborsClassifier

from retrieval_jax.data.images import LazyImages, view
from retrieval_jax.embedder import Embedder
from retrieval_jax.kmeans import kmeans
from retrieval_jax.models import MLP, Decoder, Encoder, Head, Network
from retrieval_jax.numerics.keys import key_for
from retrieval_jax.objectives import Term, classification, mean_of, reconstruction
from retrieval_jax.runtime import devices
from retrieval_jax.runtime.errors import Interrupted, UserError
from retrieval_jax.training import monitor, optimizers, views
from retrieval_jax.training.checkpoints import Checkpoints
from retrieval_jax.training.epoch import (
    DataSet,
    Epoch,
    Recipe,
    added,
    fit_batch,
    no_totals,
    refreshed,
    streamed,
)
from retrieval_jax.training.logs import MetricLog
from retrieval_jax.training.loop import Profile, train
from retrieval_jax.training.step import create_state

WEIGHTS = {"reconstruction": 3.0, "classification": 0.5}
OBJECTIVE = {
    "reconstruction": reconstruction(WEIGHTS["reconstruction"]),
    "classification": classification(WEIGHTS["classification"]),
}


def small_model():
    axis = {"axis_name": devices.AXIS}
    return Network(Encoder((3,), 4, **axis), Decoder((3,), 2, **axis), Head(3))


class Linear(nn.Module):
    """The least encoder: it compiles at once."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(4, name="dense")(images.reshape(len(images), -1))


class Blind(nn.Module):
    """An encoder that gives all images the same."""

    @nn.compact
    def __call__(self, images, train=False):
        return jnp.broadcast_to(self.param("same", nn.initializers.ones, (4,)), (len(images), 4))


def recipe(**changes):
    return Recipe(
        **{
            "model": small_model(),
            "objective": OBJECTIVE,
            "optimizer": optax.adam(1e-3),
            "views": (views.view([]),),
            "epochs": 3,
            "batch_size": 8,
            "validation_batch_size": 8,
            "steps_per_call": 1,
            "seed": 0,
        }
        | changes
    )


def small_recipe(term, **changes):
    """Of one term on the embeddings of `Linear`."""
    return recipe(model=Network(Linear()), objective={"term": term}, **changes)


def small(seen):
    """The least loss of embeddings."""
    return mean_of(jnp.square(seen.outputs.embedding).sum(-1), seen.batch)


def far(seen):
    """A loss behind BatchNorm."""
    return mean_of(jnp.square(seen.outputs.projection - 3).sum(-1), seen.batch)


def like(recipe):
    """What its checkpoints hold."""
    parts, key = (recipe.model, recipe.objective, recipe.optimizer), jax.random.key(0)
    state = create_state(*parts, key, (4, 8, 2), averaged=recipe.averaged)
    return Epoch(jax.device_get(state), no_totals(recipe))


def data_set(count, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 4, 8, 2), np.uint8)
    return DataSet(images, generator.integers(0, 3, count).astype(np.int32))


def train_in(workdir, recipe, fit, validation, **options):
    workdir.mkdir(exist_ok=True)
    checkpoints = Checkpoints(workdir / "checkpoints")
    return train(recipe, fit, validation, checkpoints, MetricLog(workdir, {}), **options)


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def without_time(rows):
    return [{key: row[key] for key in ("epoch", "step", "fit", "validation")} for row in rows]


def interrupted_and_resumed(workdir, recipe, fit, validation, calls=2):
    """The end of a run that is told to stop after every two compiled calls; the steps saved."""
    left, saved = [0], []

    def asked_to_stop():
        left[0] -= 1
        return left[0] == 0

    while True:
        left[0] = calls
        try:
            ended = train_in(workdir, recipe, fit, validation, asked_to_stop=asked_to_stop)
            return ended, saved
        except Interrupted:
            saved.append(max(int(path.name) for path in (workdir / "checkpoints").iterdir()))


@pytest.mark.parametrize(("steps_per_call", "streaming"), [(1, False), (1, True), (2, False)])
def test_it_stops_anywhere_and_ends_with_the_same_bits(tmp_path, steps_per_call, streaming):
    """With two batches an update, an averaged network, and the optimizer of the largest state."""
    fit, validation = data_set(43), data_set(7, seed=1)  # 5 steps an epoch
    changed = recipe(
        model=Network(Linear(), head=Head(3), projector=MLP((4, 3), devices.AXIS)),
        objective={"far": Term(far), "classification": classification(0.5)},
        epochs=2,
        steps_per_call=steps_per_call,
        streaming=streaming,
        ema_decay=0.9,
        optimizer=optax.MultiSteps(optimizers.muon(1e-2), 2).gradient_transformation(),
    )
    whole = train_in(tmp_path / "whole", changed, fit, validation)
    # Two calls further each time; the last call of an epoch is shorter.
    resumed, saved = interrupted_and_resumed(tmp_path / "parts", changed, fit, validation)
    assert saved == ([2, 4, 6, 8] if steps_per_call == 1 else [4, 7])
    assert_same(whole.state, resumed.state)
    assert without_time(whole.history) == without_time(resumed.history)
    assert [row["step"] for row in whole.history] == [5, 10]
    assert whole.state.opt_state.gradient_step == 5
    assert list(whole.history[0]["fit"]) == ["loss", "far", "classification"]
    found = ["loss", "far", "classification", "accuracy", "effective_rank", "spread"]
    assert list(whole.history[0]["validation"]) == found
    written = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == resumed.history
    # More epochs go on where fewer ended, and a finished run does nothing.
    if not streaming:
        return
    short = train_in(tmp_path / "longer", changed._replace(epochs=1), fit, validation)
    assert short.state.step == 5 and short.first_step > 0
    longer = train_in(tmp_path / "longer", changed, fit, validation)
    assert_same(whole.state, longer.state)
    done = train_in(tmp_path / "longer", changed, fit, validation)
    assert_same(whole.state, done.state)
    assert done.first_step is None and done.history == longer.history


def test_a_start_from_other_parameters_is_the_optimizers_and_the_averages_too(tmp_path):
    """An optimizer that pulls each parameter back to where it began, and a rate of nothing."""

    def update(updates, start, params):
        return jax.tree.map(lambda s, p: 0.5 * (s - p), start, params), start

    anchored = optax.GradientTransformation(lambda params: params, update)
    changed = small_recipe(Term(small), epochs=1, optimizer=anchored, ema_decay=lambda step: 1.0)
    state, _, _ = train_in(
        tmp_path,
        changed,
        data_set(16),
        data_set(0),
        start_from=lambda params: jax.tree.map(lambda p: np.full_like(p, 3), params),
    )
    for leaf in jax.tree.leaves((state.params, state.opt_state, state.target)):
        np.testing.assert_array_equal(leaf, 3)


def test_long_epochs_are_saved_inside(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", seconds=0)
    saved = []
    save = checkpoints.save
    checkpoints.save = lambda step, *rest: saved.append(step) or save(step, *rest)
    changed = small_recipe(Term(small), epochs=2)
    train(changed, data_set(27), data_set(0), checkpoints, MetricLog(tmp_path, {}))
    assert saved == [1, 2, 3, 4, 5, 6]


def test_ragged_validation_is_the_mean_of_all(tmp_path):
    validation = data_set(19, seed=1)
    term = small_recipe(Term(small), epochs=1, validation_batch_size=3)  # rounded up to 8
    state, history, _ = train_in(tmp_path, term, data_set(8), validation)
    dense = state.params["encoder"]["dense"]
    pixels = validation.images.reshape(19, -1) / 255
    expected = ((pixels @ dense["kernel"].astype(np.float64) + dense["bias"]) ** 2).sum(1).mean()
    assert history[0]["validation"]["term"] == pytest.approx(expected, rel=1e-5)


def test_a_collapse_is_told_and_its_epochs_are_not_the_best(tmp_path, capsys):
    """Embeddings shrink to a point while the loss falls; spread and rank are NumPy's."""
    fit, validation = data_set(16), data_set(40, seed=1)

    def agree(seen):
        return mean_of(jnp.square(seen.outputs.embedding - 3).sum(-1), seen.batch)

    changed = small_recipe(Term(agree), epochs=8, optimizer=optax.adam(0.05))
    state, history, _ = train_in(tmp_path, changed, fit, validation)
    embeddings = Embedder.from_state(changed.model, state.variables)(validation.images)
    variances = np.linalg.eigvalsh(np.cov(embeddings.astype(np.float64).T, bias=True))
    shares = variances / variances.sum()
    found = history[-1]["validation"]
    assert found["effective_rank"] == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum()), rel=1e-3
    )
    length = np.square(embeddings).sum(1).mean()
    assert found["spread"] == pytest.approx(np.sqrt(variances.sum() / length), rel=1e-3)
    assert "collapsed" not in capsys.readouterr().out
    # All the same: a network that sees nothing.
    blind = changed._replace(
        epochs=2, model=Network(Blind()), objective={"term": Term(agree)}, optimizer=optax.sgd(0.0)
    )
    _, history, _ = train_in(tmp_path / "blind", blind, fit, validation)
    assert history[0]["validation"]["spread"] == history[0]["validation"]["effective_rank"] == 0
    said = capsys.readouterr().out
    assert said.count("the embeddings have collapsed (effective rank 0.00, spread 0.000)") == 2


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
        watching = small_recipe(Term(small), epochs=epochs, views=(views.View(watch, 1),))
        train_in(tmp_path, watching, fit, data_set(0))
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
    state = create_state(small_model(), OBJECTIVE, SGD, key_for(0, "init"), fit.images.shape[1:])
    params, moments = state.params, state.opt_state
    stats = state.collections["batch_stats"]

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
        changed = small_recipe(Term(small), epochs=2)
        train_in(tmp_path, changed, data_set(24), data_set(20, seed=1))
    # Mapped functions all have this name, and arguments of their own.
    compiled = [r.getMessage() for r in caplog.records if "Compiling jit(_fun)" in r.getMessage()]
    shapes = [message.split("Argument mapping")[0] for message in compiled]
    assert len(shapes) >= 3 and len(shapes) == len(set(shapes))


def test_two_epochs_are_a_plain_loops_whatever_the_steps_of_a_call(tmp_path):
    fit, validation = data_set(45), data_set(20, seed=1)
    two_epochs = recipe(epochs=2, optimizer=SGD)
    (one, one_history, _), (many, many_history, _) = (
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

    def moved(key, image):
        return jnp.roll(image, jax.random.randint(key, (2,), 0, 4), (0, 1))

    small = views.view([views.crop(size=2, scale=(0.2, 0.6))])
    shifted = recipe(views=(views.View(moved, 2), small))
    batches = []
    for count in (1, 8):
        mapped = jax.pmap(
            lambda rows: fit_batch(
                shifted, jnp.int32(7), jax.tree.map(jnp.asarray, data), rows, rows
            ),
            axis_name=devices.AXIS,
            devices=jax.devices()[:count],
        )
        batch = mapped(rows.reshape(count, -1))
        batches.append([np.concatenate(list(np.asarray(group)), 1) for group in batch.images])
        np.testing.assert_array_equal(np.concatenate(list(batch.labels)), data.labels[rows])
        np.testing.assert_array_equal(np.concatenate(list(batch.rows)), rows)
    for one, eight in zip(*batches, strict=True):
        np.testing.assert_array_equal(one, eight)
    plain = data.images[rows] / np.float32(255)
    large, small = batches[0]
    assert large.shape == (2, *plain.shape) and small.shape == (1, 16, 2, 2, 2)
    for drawn in large:
        assert not np.array_equal(drawn, plain)
    assert not np.array_equal(*large)


def test_the_steps_after_the_first_call_are_traced_in_whole_calls(tmp_path):
    trained = train_in(
        tmp_path,
        small_recipe(Term(small), epochs=2, steps_per_call=2),
        data_set(40),
        data_set(0),
        profile=Profile(tmp_path / "profile", 3),
    )
    assert trained.first_step > 0
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


@pytest.mark.fast
def test_totals_keep_what_rounding_takes_and_the_first_bad_step():
    totals = jax.tree.map(jnp.asarray, no_totals(recipe(objective={"x": Term(None)})))
    add = jax.jit(added)
    values = np.r_[1e8, np.random.default_rng(0).random(300)].astype(np.float32)
    for step, value in enumerate(values, 1):
        totals = add(totals, step, {"loss": value, "x": np.float32(step)})
    assert totals.sums["loss"] == np.float32(values.astype(np.float64).sum())
    assert totals.bad_step == 0
    for step, value in ((302, np.nan), (303, np.inf)):
        totals = add(totals, step, {"loss": np.float32(1), "x": np.float32(value)})
    assert totals.bad_step == 302 and np.isnan(totals.bad["x"])


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_a_loss_that_is_not_finite_stops_and_names_step_and_term(tmp_path, steps_per_call):
    fit = data_set(40)
    # An image each spoils the second and the third batch of epoch 2.
    fit.labels[:] = np.isin(np.arange(40), epoch_order(0, 2, 40)[[12, 20]])
    good = small_recipe(Term(small), steps_per_call=steps_per_call)
    good = good._replace(objective={"a": Term(small), "b": Term(small)})
    _, history, _ = train_in(tmp_path, good._replace(epochs=1), fit, data_set(4))

    def poisoned(seen):
        return small(seen)._replace(sum=jnp.where(seen.batch.labels == 1, jnp.inf, 0).sum())

    bad = good._replace(objective={"a": Term(small), "b": Term(poisoned)})
    with pytest.raises(UserError, match="the loss 'b' is not finite at step 7 \\(epoch 2\\)"):
        train_in(tmp_path, bad, fit, data_set(4))
    epoch, record = Checkpoints(tmp_path / "checkpoints").restore(like(good))
    assert record["history"] == history and epoch.state.step == 5


@pytest.mark.parametrize(
    ("images", "stop", "where"),
    [(8, False, "(after|in the validation after) epoch 1"), (20, True, "at step 1")],
)
def test_parameters_that_are_not_finite_are_never_saved(tmp_path, images, stop, where):
    explode = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u * jnp.nan, updates))
    changed = small_recipe(Term(small), optimizer=explode, epochs=1)
    with pytest.raises(UserError, match=f"not finite {where}"):
        train_in(tmp_path, changed, data_set(images), data_set(4), asked_to_stop=lambda: stop)
    assert not any(p.name.isdigit() for p in tmp_path.glob("checkpoints/*"))


def test_a_stream_trains_to_the_same_numbers(tmp_path):
    fit, validation = data_set(27), data_set(7, seed=1)
    lazy = [DataSet(view(x, np.arange(len(x))), y) for x, y in (fit, validation)]
    changed = small_recipe(Term(small), epochs=2)
    streaming = changed._replace(streaming=True)
    states, rows, _ = zip(
        train_in(tmp_path / "memory", changed, fit, validation),
        train_in(tmp_path / "stream", streaming, *lazy),
        train_in(tmp_path / "array", streaming, fit, validation),
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
    for step, (part, rows, places) in zip([0, 1, 2, 2], whole + rest, strict=True):
        assert part.images.shape == (8, 2, 4, 8, 2) and rows.shape == places.shape == (8, 1, 2)
        np.testing.assert_array_equal(np.ravel(rows), order[step])
        np.testing.assert_array_equal(np.reshape(places, (8, 2)), 8 * [[0, 1]])
        real = order[step] >= 0
        images = np.reshape(part.images, (16, 4, 8, 2))
        np.testing.assert_array_equal(images[real], data.images[order[step][real]])
        np.testing.assert_array_equal(np.ravel(part.labels)[real], data.labels[order[step][real]])
        assert len(part.images.sharding.device_set) == 8


def test_neither_host_nor_devices_hold_more_than_a_few_batches_of_a_stream():
    shape, batch, steps = (64, 64, 3), 64, 100
    images = LazyImages(
        lambda rows: np.full((len(rows), *shape), 7, np.uint8), np.arange(steps * batch), shape
    )
    data = DataSet(images, np.zeros(len(images), np.int32))
    bytes_of_batch, held = batch * np.prod(shape), 0
    list(streamed(data, np.arange(batch)[None]))  # what is imported stays, and is no batch
    before = sum(array.nbytes for array in jax.live_arrays())
    tracemalloc.start()
    try:
        for _ in streamed(data, np.arange(len(images)).reshape(steps, batch)):
            held = max(held, sum(array.nbytes for array in jax.live_arrays()) - before)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 5 * bytes_of_batch and peak < 10 * bytes_of_batch


def queue(size=20):
    """A term that remembers the last embeddings, as MoCo does."""

    def memory(shapes):
        return {"queue": jnp.zeros((size, shapes.embedding.shape[1])), "at": jnp.int32(0)}

    def loss(seen):
        embedding = seen.outputs.embedding[0]
        new = jax.lax.all_gather(jax.lax.stop_gradient(embedding), seen.axis_name, tiled=True)
        at = (seen.memory["at"] + jnp.arange(len(new))) % size
        after = {"queue": seen.memory["queue"].at[at].set(new), "at": (at[-1] + 1) % size}
        apart = jnp.square(embedding[:, None] - seen.memory["queue"]).sum(-1).mean(1)
        return mean_of(apart, seen.batch)._replace(memory=after)

    return Term(loss, memory=memory)


def prototypes(k, rows):
    """A term that draws each embedding to its centroid of the last k-means, as DeepCluster does."""

    def memory(shapes):
        return {
            "cluster": jnp.full(rows, -1),
            "centroids": jnp.zeros((k, shapes.embedding.shape[1])),
        }

    def refresh(memory, key, embeddings, rows_here, axis):
        weights = (rows_here >= 0).astype(jnp.float32)
        found = kmeans(key, embeddings, k, weights=weights, restarts=1, axis_name=axis)
        at = jax.lax.all_gather(rows_here, axis, tiled=True)
        labels = jax.lax.all_gather(found.labels, axis, tiled=True)
        cluster = memory["cluster"].at[jnp.where(at < 0, rows, at)].set(labels, mode="drop")
        return {"cluster": cluster, "centroids": found.centroids}

    def loss(seen):
        own = seen.memory["centroids"][seen.memory["cluster"][seen.batch.rows]]
        return mean_of(jnp.square(seen.outputs.embedding - own).sum(-1), seen.batch)

    return Term(loss, memory=memory, refresh=refresh)


def test_what_terms_remember_is_saved_and_goes_on_to_the_same_bits(tmp_path):
    """k-means sees all fit images before each epoch, and not when one is taken up inside."""
    fit, validation = data_set(43), data_set(7, seed=1)  # 5 steps an epoch, 43 rows
    changed = small_recipe(queue(), epochs=2)
    changed = changed._replace(objective={"queue": queue(), "prototypes": prototypes(3, 43)})
    whole = train_in(tmp_path / "whole", changed, fit, validation)
    resumed, saved = interrupted_and_resumed(tmp_path / "parts", changed, fit, validation, 3)
    assert saved == [3, 6, 9]
    assert_same(whole.state, resumed.state)
    assert without_time(whole.history) == without_time(resumed.history)
    memory = whole.state.memory
    # 80 embeddings have gone into the queue of 20.
    assert memory["queue"]["at"] == 80 % 20
    assert np.all(memory["queue"]["queue"].any(1))
    # Before epoch 2, each row was at its nearest centroid, by the network of that time.
    first = train_in(tmp_path / "first", changed._replace(epochs=1), fit, validation)
    embeddings = Embedder.from_state(changed.model, first.state.variables)(fit.images)
    centroids = memory["prototypes"]["centroids"].astype(np.float64)
    apart = ((embeddings[:, None] - centroids) ** 2).sum(2)
    np.testing.assert_array_equal(memory["prototypes"]["cluster"], apart.argmin(1))
    assert len(set(memory["prototypes"]["cluster"])) == 3
    # Taken up between two epochs.
    assert_same(whole.state, train_in(tmp_path / "first", changed, fit, validation).state)


def test_memory_of_all_fit_rows_is_the_same_on_any_number_of_devices():
    embeddings = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    embeddings += 9 * np.eye(4, dtype=np.float32)[np.arange(300) % 3]
    term = small_recipe(prototypes(3, 300))
    state = jax.tree.map(jnp.asarray, like(term).state)
    found = []
    for count in (1, 4):
        share = -(-300 // (count * 128)) * 128
        rows = np.r_[np.arange(300), np.full(count * share - 300, -1)].astype(np.int32)
        padded = np.where(rows[:, None] >= 0, embeddings[rows], 0)
        mapped = jax.pmap(
            partial(refreshed, term, state),
            axis_name=devices.AXIS,
            devices=jax.devices()[:count],
        )
        memory = mapped(padded.reshape(count, share, 4), rows.reshape(count, share)).memory["term"]
        for leaf in jax.tree.leaves(memory):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
        # Clusters by the order of their first rows.
        _, first, cluster = np.unique(memory["cluster"][0], return_index=True, return_inverse=True)
        order = np.argsort(first)
        found.append((np.argsort(order)[cluster], memory["centroids"][0][order]))
    for cluster, centroids in found:
        np.testing.assert_array_equal(cluster, np.arange(300) % 3)
        means = [embeddings[i::3].mean(0) for i in range(3)]
        np.testing.assert_allclose(centroids, means, atol=1e-5)


def test_the_monitor_picks_the_best_checkpoint_and_judges_the_network_that_embeds(tmp_path):
    """The loss falls all the time; the score falls too: the first epoch stays to the end."""
    fit, validation = data_set(16), data_set(30, seed=1)
    scores = iter([0.9, 0.2, 0.3, 0.4])
    seen = []

    def score(embeddings, labels):
        seen.append(embeddings)
        np.testing.assert_array_equal(labels, validation.labels)
        return next(scores)

    changed = small_recipe(
        Term(small),
        epochs=4,
        optimizer=optax.sgd(1e-2),
        ema_decay=lambda step: 0.9,
        average=True,
        monitor=monitor.Monitor("mine", score),
    )
    state, history, _ = train_in(tmp_path, changed, fit, validation)
    assert [row["validation"]["mine"] for row in history] == [0.9, 0.2, 0.3, 0.4]
    losses = [row["validation"]["loss"] for row in history]
    assert losses == sorted(losses, reverse=True)
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps == [2, 6, 8]
    batch = changed.validation_batch_size  # of the same program: another one rounds otherwise
    averaged = Embedder.from_state(changed.model, state.target, batch=batch)(validation.images)
    np.testing.assert_array_equal(seen[-1], averaged)
    latest = Embedder.from_state(changed.model, state.variables)(validation.images)
    assert not np.allclose(seen[-1], latest)
    # The loss is the average's too.
    assert losses[-1] == pytest.approx(np.square(averaged.astype(np.float64)).sum(1).mean())


def test_the_scores_of_embeddings():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 90).astype(np.int32)
    embeddings = generator.normal(size=(90, 2)) + 1.5 * np.eye(3, 2)[labels]
    embeddings = embeddings.astype(np.float32)
    right = 0
    for i in range(90):
        others = np.arange(90) != i
        votes = KNeighborsClassifier(20).fit(embeddings[others], labels[others])
        right += votes.predict(embeddings[[i]])[0] == labels[i]
    assert monitor.knn().score(embeddings, labels) == pytest.approx(right / 90)
    # Those without a label neither vote nor count.
    more = np.concatenate([embeddings, embeddings[::-1]])
    hidden = np.concatenate([labels, np.full(90, -1, np.int32)])
    assert monitor.knn().score(more, hidden) == pytest.approx(right / 90)
    apart = embeddings + 90 * np.eye(3, 2)[labels].astype(np.float32)
    assert monitor.nmi(3, seed=0).score(apart, labels) == pytest.approx(1)
    shuffled = generator.permutation(labels)
    assert monitor.nmi(3, seed=0).score(apart, shuffled) < 0.2
    # Too few to have neighbours.
    assert monitor.knn().score(embeddings[:1], labels[:1]) == 0
    assert monitor.knn().score(embeddings[:2], np.array([-1, -1])) == 0
