"""The losses of label-free and few-label methods against NumPy float64, on one device and on four.

Devices are a mapped axis of one program: what a loss gathers is the same.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from retrieval_jax import objectives as o
from retrieval_jax.runtime.devices import quick_jit

pytestmark = pytest.mark.fast
VIEWS, N, WIDTH = 3, 8, 5
GENERATOR = np.random.default_rng(0)
Z = GENERATOR.normal(size=(VIEWS, N, WIDTH))
OTHER = GENERATOR.normal(size=(VIEWS, N, WIDTH))
REAL = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
LABELS = np.array([0, 1, 1, -1, 0, 0, 0, 2])
QUEUE = GENERATOR.normal(size=(6, WIDTH))
QUEUE /= np.linalg.norm(QUEUE, axis=1, keepdims=True)


def normed(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def means_over_others(value):
    """The mean over views of the mean over the other views, of value(v, w)."""
    return np.mean(
        [np.mean([value(v, w) for w in range(VIEWS) if w != v], axis=0) for v in range(VIEWS)],
        axis=0,
    )


def numpy_nt_xent(z):
    z = normed(z[:, REAL]).swapaxes(0, 1).reshape(-1, WIDTH)
    values = []
    for i in range(len(z)):
        likeness = z @ z[i] / 0.3
        others = np.arange(len(z)) != i
        for j in np.flatnonzero(others & (np.arange(len(z)) // VIEWS == i // VIEWS)):
            values.append(logsumexp(likeness[others]) - likeness[j])
    return np.mean(values)


def numpy_supcon(z):
    known = REAL & (LABELS >= 0)
    labels = np.repeat(LABELS[known], VIEWS)
    z = normed(z[:, known]).swapaxes(0, 1).reshape(-1, WIDTH)
    values = []
    for i in range(len(z)):
        likeness = z @ z[i] / 0.3
        others = np.arange(len(z)) != i
        positives = others & (labels == labels[i])
        values.append(np.mean(logsumexp(likeness[others]) - likeness[positives]))
    return np.mean(values)


def numpy_info_nce(z):
    q, keys = normed(z), normed(OTHER)

    def value(v, w):
        positive = (q[v] * keys[w]).sum(1) / 0.3
        return logsumexp(np.c_[positive, q[v] @ QUEUE.T / 0.3], axis=1) - positive

    return means_over_others(value)[REAL].mean()


def numpy_vicreg(z):
    z = z[:, REAL]
    pairs = [((z[v] - z[w]) ** 2).mean() for v in range(VIEWS) for w in range(VIEWS) if v != w]
    variance, covariance = [], []
    for view in z:
        matrix = np.cov(view.T)
        variance.append(np.maximum(0, 1 - np.sqrt(np.diag(matrix) + 1e-4)).mean())
        covariance.append((matrix**2).sum() - (np.diag(matrix) ** 2).sum())
    return 2 * np.mean(pairs) + 3 * np.mean(variance) + 4 * 2 * np.mean(covariance) / WIDTH


def numpy_barlow(z):
    z = z[:, REAL]
    z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5)

    def value(v, w):
        c = z[v].T @ z[w] / REAL.sum()
        off = (c**2).sum() - (np.diag(c) ** 2).sum()
        return ((1 - np.diag(c)) ** 2).sum() + 0.1 * off

    return means_over_others(value)


def numpy_emp_ssl(z):
    z = normed(z[:, REAL])
    scale = WIDTH / (REAL.sum() * 0.2**2)
    rates = [np.linalg.slogdet(np.eye(WIDTH) + scale * view.T @ view)[1] / 2 for view in z]
    return -np.mean(rates) - 20 * (z * normed(z.mean(0))).sum(2).mean()


def numpy_w_mse(z):
    white = []
    for view in z[:, REAL]:
        factor = np.linalg.cholesky(np.cov(view.T) + 1e-3 * np.eye(WIDTH))
        white.append(normed((view - view.mean(0)) @ np.linalg.inv(factor).T))
    return means_over_others(lambda v, w: ((white[v] - white[w]) ** 2).sum(1).mean())


def numpy_cosines(z):
    goals = normed(OTHER)
    return means_over_others(lambda v, w: (normed(z)[v] * goals[w]).sum(1))[REAL].mean()


def numpy_sinkhorn(scores):
    q = np.exp(scores / 0.05)
    for _ in range(3):
        q /= q.sum(0)
        q /= q.sum(1, keepdims=True)
    return q


def numpy_swav(scores):
    scores = scores[:, REAL]
    codes = [numpy_sinkhorn(fixed) for fixed in Z[:2, REAL]]  # they have no gradient
    log_p = log_softmax(scores / 0.3, axis=2)
    pairs = [(c, v) for c in range(2) for v in range(VIEWS) if c != v]
    return np.mean([-(codes[c] * log_p[v]).sum(1) for c, v in pairs])


CLUSTERS = np.where(REAL, np.array([0, 3, 0, 1, 1, 0, 0, 3]), -1)  # nobody is in 2


def numpy_scattering(z):
    def prototypes(z):
        return {
            c: normed(normed(z)[:, c == CLUSTERS].sum(1))
            for c in np.unique(CLUSTERS[CLUSTERS >= 0])
        }

    ours, theirs = prototypes(z), prototypes(OTHER)

    def value(v, w):
        values = []
        for c in ours:
            positive = ours[c][v] @ theirs[c][w] / 0.3
            negative = [ours[c][v] @ ours[b][v] / 0.3 for b in ours if b != c]
            values.append(logsumexp([positive, *negative]) - positive)
        return np.mean(values)

    return means_over_others(value)


def numpy_dec(z):
    centroids, sizes = OTHER[0, :4], np.array([1.0, 2.0, 3.0, 1.5])

    def assignments(z):
        q = 1 / (1 + ((z[..., None, :] - centroids) ** 2).sum(-1))
        return q / q.sum(-1, keepdims=True)

    goal = assignments(Z) ** 2 / sizes  # no gradient
    goal /= goal.sum(-1, keepdims=True)
    return (goal * np.log(goal / assignments(z))).sum(-1)[:, REAL].mean()


def numpy_fixmatch(z):
    p = softmax(Z[0], axis=1)  # no gradient
    entropy = -np.take_along_axis(log_softmax(z[1:], axis=2), p.argmax(1)[None, :, None], 2)[..., 0]
    return (entropy * (p.max(1) >= np.array([0.3, 0.4, 0.5, 0.6, 0.5])[p.argmax(1)]))[
        :, REAL
    ].mean()


CONFIDENCE = o.Confidence(
    np.float32(0.4), *(np.float32(x / x.sum()) for x in GENERATOR.uniform(0.5, 1, (2, WIDTH)))
)


def numpy_fairness(z):
    p = softmax(Z[0], axis=1)
    limits = np.float32(0.4) * CONFIDENCE.classes / CONFIDENCE.classes.max()
    passed = REAL & (p.max(1) >= limits[p.argmax(1)])
    assert 1 < passed.sum() < REAL.sum()
    strong = softmax(z[1:, passed], axis=2).reshape(-1, WIDTH)
    histogram = np.bincount(Z[1:, passed].argmax(2).ravel(), minlength=WIDTH) / len(strong)
    with np.errstate(divide="ignore", invalid="ignore"):
        ours = np.where(histogram > 0, strong.mean(0) / histogram, 0)
    goal = CONFIDENCE.classes.astype(np.float64) / CONFIDENCE.histogram
    return (goal / goal.sum() * np.log(np.maximum(ours / ours.sum(), 1e-12))).sum()


def averaged(values, real, axis, counted=True):
    batch = o.Batch((), jnp.zeros(len(real)), jnp.where(real, 0, -1))
    return o.means_over_devices({"x": o.mean_of(values, batch, counted)}, axis)["x"]


def supcon(z, real, axis, of):
    values, counted = o.supervised_contrast(
        z, of["labels"], temperature=0.3, real=real, axis_name=axis
    )
    return averaged(values, real, axis, counted)


def swav(z, real, axis, of):
    values = o.swapped_prediction(z, temperature=0.3, real=real, axis_name=axis)
    return averaged(values, real, axis)


def scattering(z, real, axis, of):
    return o.prototype_scattering(
        z, of["other"], of["clusters"], 4, temperature=0.3, axis_name=axis
    )


def dec(z, real, axis, of):
    q = o.soft_assignments(z, jnp.asarray(OTHER[0, :4], jnp.float32))
    return averaged(o.sharpened_divergence(q, jnp.array([1.0, 2.0, 3.0, 1.5])), real, axis)


def fixmatch(z, real, axis, of):
    limits = jnp.array([0.3, 0.4, 0.5, 0.6, 0.5])
    return averaged(o.pseudo_labelled(z, limits), real, axis)


def of_whole(loss, **options):
    return lambda z, real, axis, of: loss(z, real=real, axis_name=axis, **options)


LOSSES = {
    "simclr": (
        lambda z, real, axis, of: averaged(
            o.nt_xent(z, temperature=0.3, real=real, axis_name=axis), real, axis
        ),
        numpy_nt_xent,
    ),
    "supcon": (supcon, numpy_supcon),
    "moco": (
        lambda z, real, axis, of: averaged(
            o.info_nce(z, of["other"], jnp.asarray(QUEUE, jnp.float32), temperature=0.3), real, axis
        ),
        numpy_info_nce,
    ),
    "vicreg": (
        of_whole(o.variance_invariance_covariance, invariance=2.0, variance=3.0, covariance=4.0),
        numpy_vicreg,
    ),
    "barlow_twins": (of_whole(o.cross_correlation, off_diagonal=0.1), numpy_barlow),
    "emp_ssl": (of_whole(o.many_crops, agreement=20.0), numpy_emp_ssl),
    "w_mse": (of_whole(o.whitened_distance), numpy_w_mse),
    "byol": (
        lambda z, real, axis, of: averaged(o.predicted_cosines(z, of["other"]), real, axis),
        numpy_cosines,
    ),
    "swav": (swav, numpy_swav),
    "propos": (scattering, numpy_scattering),
    "dec": (dec, numpy_dec),
    "fixmatch": (fixmatch, numpy_fixmatch),
    "freematch": (
        of_whole(o.fairness, confidence=jax.tree.map(jnp.asarray, CONFIDENCE)),
        numpy_fairness,
    ),
}


def on_devices(loss, count):
    """z [v, n, d] → the loss of all rows, which `count` devices share."""

    def shared(x, axis):
        x = jnp.asarray(x)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :]), axis, 0)

    def value(z):
        of = {
            "other": shared(OTHER.astype(np.float32), 1),
            "labels": shared(LABELS, 0),
            "clusters": shared(CLUSTERS, 0),
        }
        mapped = jax.vmap(lambda z, real, of: loss(z, real, "devices", of), axis_name="devices")
        return mapped(shared(z, 1), shared(REAL, 0), of).mean()

    return value


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_equal_numpy_on_any_number_of_devices(name, count):
    loss, oracle = LOSSES[name]
    z = Z.astype(np.float32)
    compiled = quick_jit(jax.value_and_grad(on_devices(loss, count)))
    value, gradient = compiled(z)
    assert value == pytest.approx(oracle(Z), rel=2e-5, abs=1e-6)
    for seed in range(2):
        way = np.random.default_rng(seed).normal(size=Z.shape)
        slope = (oracle(Z + 1e-5 * way) - oracle(Z - 1e-5 * way)) / 2e-5
        assert (gradient * way).sum() == pytest.approx(slope, rel=2e-3, abs=1e-4)
    # What pads says nothing.
    np.testing.assert_array_equal(gradient[:, ~REAL], 0)
    moved = np.where(REAL[:, None], z, np.float32(7))
    assert compiled(moved)[0] == pytest.approx(float(value), rel=1e-6)
    # At collapse, whatever to, there is a way on.
    for level in (0.0, 1.0, 1e-20, 1e5):
        value, gradient = compiled(np.full_like(z, level))
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_sinkhorn_uses_all_prototypes_and_cannot_underflow():
    scores = np.random.default_rng(1).uniform(-1, 1, (40, 4))
    np.testing.assert_allclose(o.sinkhorn(jnp.asarray(scores)), numpy_sinkhorn(scores), rtol=1e-3)
    even = o.sinkhorn(jnp.asarray(scores), iterations=200)
    np.testing.assert_allclose(even.sum(0), 10, rtol=1e-3)
    np.testing.assert_allclose(even.sum(1), 1, rtol=1e-5)
    hard = o.sinkhorn(jnp.asarray(scores), epsilon=1e-4, iterations=3)
    assert np.isfinite(hard).all()
    np.testing.assert_allclose(hard.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 4])
def test_freematch_remembers_averages_of_what_is_real(count):
    p = softmax(Z[0], axis=1)
    step = partial(o.updated, decay=0.7, axis_name="devices")
    after = jax.vmap(lambda p, real: step(CONFIDENCE, p, real=real), axis_name="devices")(
        p.reshape(count, -1, WIDTH), REAL.reshape(count, -1)
    )
    now = (p.max(1), p, np.eye(WIDTH)[p.argmax(1)])
    for found, before, values in zip(after, CONFIDENCE, now, strict=True):
        expected = 0.7 * before.astype(np.float64) + 0.3 * values[REAL].mean(0)
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-5)
