"""Every method through the training step: alone and together, on any number of devices."""

from functools import partial

import jax
import numpy as np
import optax
from flax import linen as nn
from scipy.special import softmax
from test_training import interrupted_and_resumed

from retrieval_jax import objectives as o
from retrieval_jax.models import MLP, Head, Network, Outputs, Prototypes
from retrieval_jax.runtime import devices
from retrieval_jax.runtime.devices import quick_jit
from retrieval_jax.training.epoch import DataSet, Recipe, mixup, refreshed
from retrieval_jax.training.step import create_state, train_step
from retrieval_jax.training.views import flip, jitter, view

N, SHAPE = 24, (4, 4, 1)  # 24 examples are shared evenly by 1, 2, 3 and 8 devices
GENERATOR = np.random.default_rng(0)
BASE = GENERATOR.random((N, *SHAPE))
IMAGES = (BASE + GENERATOR.normal(0, 0.1, (3, N, *SHAPE))).astype(np.float32)
LABELS = np.where(np.arange(N) % 3, -1, np.arange(N) % 4).astype(np.int32)
SCALES = {"vicreg": 0.1, "barlow_twins": 0.1, "emp_ssl": 0.01}
TERMS = {
    "reconstruction": o.reconstruction(1.0),
    "classification": o.classification(1.0, views=1),
    "simclr": o.simclr(1.0),
    "supcon": o.supcon(1.0),
    "moco": o.moco(1.0, queue=40),  # which wraps
    "vicreg": o.vicreg(1.0),
    "barlow_twins": o.barlow_twins(1.0),
    "emp_ssl": o.emp_ssl(1.0),
    "w_mse": o.w_mse(1.0),
    "byol": o.byol(1.0),
    "simsiam": o.simsiam(1.0),
    "swav": o.swav(1.0),
    "propos": o.propos(rows=N, weight=1.0, k=3, scattering=1.0, sigma=0.1),
    "dec": o.dec(1.0, k=3),
    "self_labelling": o.self_labelling(rows=N, weight=1.0, k=3),
    "fixmatch": o.fixmatch(1.0, threshold=0.3),
    "freematch": o.freematch(classes=4, weight=1.0, fair=0.1),
}


class Flat(nn.Module):
    """An encoder without a map."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(6)(images.reshape(len(images), -1))


class Pixels(nn.Module):
    """A decoder of an encoder without a map."""

    @nn.compact
    def __call__(self, embedding, train=False):
        return nn.sigmoid(nn.Dense(16)(embedding)).reshape(-1, *SHAPE)


class Both(Network):
    """A network whose decoder takes the embedding."""

    def __call__(self, images, train=False):
        outputs = super().__call__(images, train)
        return outputs._replace(reconstruction=self.pixels(outputs.embedding))

    def setup(self):
        self.pixels = Pixels()


def model():
    axis = devices.AXIS
    return Both(
        Flat(),
        head=Head(4),
        projector=MLP((8, 5), axis),
        predictor=MLP((8, 5), axis),
        prototypes=Prototypes(3),
    )


def clustered(state, count):
    """What `self_labelling` remembers in the first epoch, on `count` devices."""
    network = model()
    embeddings = network.apply(state.variables, BASE.astype(np.float32)).embedding
    padded = np.zeros((count * 128, 6), np.float32), np.full(count * 128, -1, np.int32)
    padded[0][:N], padded[1][:N] = embeddings, np.arange(N)
    objective = {"self_labelling": TERMS["self_labelling"]}
    recipe = Recipe(network, objective, None, (), 1, N, N, 1, 0)
    step = jax.vmap(partial(refreshed, recipe, state), axis_name=devices.AXIS)
    after = quick_jit(step)(*(x.reshape(count, 128, *x.shape[1:]) for x in padded))
    return jax.tree.map(lambda x: np.asarray(x[0]), after.memory["self_labelling"])


def start():
    return create_state(model(), TERMS, optax.sgd(0.05), jax.random.key(0), SHAPE, averaged=True)


def trainer(count):
    """(state, weight of each term) → state and metrics after three steps on `count` devices.

    Devices are a mapped axis of one program, which serves for any weights.
    """
    shares = o.Batch(
        (IMAGES.reshape(3, count, -1, *SHAPE).swapaxes(0, 1),),
        LABELS.reshape(count, -1),
        np.arange(N, dtype=np.int32).reshape(count, -1),
    )

    def step(state, weights, key):
        objective = {
            name: term._replace(weight=lambda _, name=name: weights[name])
            for name, term in TERMS.items()
        }

        def on_device(batch):
            return train_step(
                state,
                batch,
                model=model(),
                objective=objective,
                optimizer=optax.sgd(0.05),
                key=key,
                axis_name=devices.AXIS,
                decay=0.9,
            )

        return jax.tree.map(lambda x: x[0], jax.vmap(on_device, axis_name=devices.AXIS)(shares))

    compiled = quick_jit(step)

    def train(state, *names):
        weights = {name: np.float32(name in names) * SCALES.get(name, 1) for name in TERMS}
        for i in range(3):
            state, metrics = compiled(state, weights, jax.random.key(i))
        return jax.device_get((state, metrics))

    return train


def assert_close(found, expected):
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_every_method_alone_and_with_others_ends_with_the_same_on_any_number_of_devices():
    state = start()
    found, again = (clustered(state, count) for count in (1, 3))
    assert_close(again, found)
    # Half of the images are confident of their cluster, and each cluster has some.
    assert (found["clusters"] >= 0).sum() == N // 2
    assert set(found["clusters"]) == {-1, 0, 1, 2}
    memory = {
        "self_labelling": found,
        "propos": {"clusters": found["clusters"]},
        "dec": {"centroids": found["centroids"], "sizes": np.float32([7, 8, 9])},
    }
    state = state._replace(memory=state.memory | memory)
    names = list(TERMS)
    sets = [(name,) for name in names] + [names, *zip(names, names[1:] + names[:1], strict=True)]
    one, *others = (trainer(count) for count in (1, 2, 3, 8))
    for chosen in sets:
        expected = one(state, *chosen)
        after, metrics = expected
        assert all(np.isfinite(value) for value in metrics.values())
        before = zip(*map(jax.tree.leaves, (after.params, state.params)), strict=True)
        assert max(np.abs(a - b).max() for a, b in before) > 1e-5, chosen
        assert after.memory["moco"]["next"] == 3 * N % 40
        for other in others:
            assert_close(other(state, *chosen), expected)


def test_a_run_resumes_with_target_and_memory(tmp_path):
    objective = {name: TERMS[name] for name in ("moco", "byol", "freematch")}
    axis = devices.AXIS
    recipe = Recipe(
        model=Network(Flat(), head=Head(4), projector=MLP((5,), axis), predictor=MLP((5,), axis)),
        objective=objective,
        optimizer=optax.adam(1e-3),
        views=(view([flip(probability=0.5), jitter(brightness=0.4)], count=2),),
        epochs=2,
        batch_size=8,
        validation_batch_size=8,
        steps_per_call=1,
        seed=0,
        labelled_per_batch=3,
        ema_decay=lambda step: 0.9 + 0.001 * step,
    )
    images = (BASE * 255).astype(np.uint8)
    data = DataSet(images, LABELS)
    interrupted_and_resumed(tmp_path, recipe, data, data)


def test_mixup_mixes_each_image_and_its_label_with_the_one_before_on_any_number_of_devices():
    labels = np.arange(N) % 4
    logits = np.random.default_rng(1).normal(size=(3, N, 4)).astype(np.float32)
    term = o.classification(1.0)
    means = []
    for count in (1, 3, 8):

        def on_device(images, labels, rows, logits):
            batch = mixup(jax.random.key(5), o.Batch((images,), labels, rows), 0.4)
            outputs = Outputs(logits, logits=logits)
            seen = o.Seen(outputs, None, batch, (), jax.random.key(0), 0, devices.AXIS)
            loss = o.means_over_devices({"x": term.loss(seen)}, devices.AXIS)["x"]
            return batch.images[0], batch.mixed.share, jax.lax.pmean(loss, devices.AXIS)

        shares = (
            IMAGES.reshape(3, count, -1, *SHAPE).swapaxes(0, 1),
            np.where(labels == 3, -1, labels).reshape(count, -1),
            np.arange(N).reshape(count, -1),
            logits.reshape(3, count, -1, 4).swapaxes(0, 1),
        )
        images, share, mean = jax.vmap(on_device, axis_name=devices.AXIS)(*shares)
        share, means = float(share[0]), [*means, float(mean[0])]
        assert 0 < share < 1
        expected = share * IMAGES + (1 - share) * np.roll(IMAGES, 1, axis=1)
        found = np.asarray(images).swapaxes(0, 1).reshape(IMAGES.shape)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    entropy = -np.log(softmax(logits.astype(np.float64), axis=2))
    total = weight = 0
    for part, of in ((share, labels), (1 - share, np.roll(labels, 1))):
        known = of < 3
        total += part * entropy[:, known, of[known]].sum()
        weight += part * 3 * known.sum()
    np.testing.assert_allclose(means, total / weight, rtol=1e-5)
