"""Every program is exported for TPU, CUDA and CPU in one, and computes the same from there.

And what tools/tpu_check.py counts, and tools/tpu_plan.py reckons, without libtpu.
"""

import json
import os
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from retrieval_jax.kmeans import kmeans
from retrieval_jax.models import Decoder, Encoder, Head, Network
from retrieval_jax.objectives import Batch, classification, reconstruction
from retrieval_jax.ranking import nearest
from retrieval_jax.runtime import devices
from retrieval_jax.training.step import create_state, train_step
from tools import tpu_plan

with mock.patch.dict(os.environ):  # it sets what libtpu reads
    from tools import tpu_check

AXIS = {"axis_name": devices.AXIS}
MODEL = Network(Encoder((2,), 4, **AXIS), Decoder((2,), 1, **AXIS), Head(3))
OBJECTIVE = {"reconstruction": reconstruction(1.0), "classification": classification(0.5)}
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
SHARED, EVERYWHERE = P(devices.AXIS), P()


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    images = generator.random((1, devices.count(), 4, 4, 1), np.float32)
    rows = np.arange(devices.count(), dtype=np.int32)
    return Batch((images,), rows % 3, rows)


@pytest.fixture(scope="module")
def state():
    return create_state(MODEL, OBJECTIVE, OPTIMIZER, jax.random.key(0), (4, 4, 1))


def across(function, in_specs, out_specs):
    """The function on every device, with the axis that its collectives name."""
    mapped = jax.shard_map(
        function, mesh=devices.mesh(), in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped)


def exported_for_all(function, *arguments):
    """Exports for all platforms."""
    exported = export.export(function, platforms=["tpu", "cuda", "cpu"])(*arguments)
    assert exported.platforms == ("tpu", "cuda", "cpu")
    return exported


def same_after_export(function, *arguments):
    """Exports for all platforms, calls what was exported, and returns it."""
    exported = exported_for_all(function, *arguments)
    # It is called where it was exported for: on all devices.
    placed = jax.device_put(arguments, NamedSharding(devices.mesh(), EVERYWHERE))
    found, expected = jax.jit(exported.call)(*placed), function(*arguments)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    return exported


@pytest.fixture(scope="module")
def step():
    """The training step on every device."""
    options = {"model": MODEL, "objective": OBJECTIVE, "optimizer": OPTIMIZER}

    def step(state, batch, seed):
        key = jax.random.key(seed)
        return train_step(state, batch, key=key, axis_name=devices.AXIS, **options)

    shares = Batch((P(None, devices.AXIS),), SHARED, SHARED)
    return across(step, (EVERYWHERE, shares, EVERYWHERE), EVERYWHERE)


def test_train_step(step, state, batch):
    exported = same_after_export(step, state, batch, jnp.uint32(0))
    assert exported.nr_devices == devices.count()
    assert "stablehlo.all_reduce" in exported.mlir_module()


def test_embedding(state, batch):
    embed = jax.jit(partial(MODEL.apply, method="embed"))
    exported = same_after_export(embed, state.variables, batch.images[0][0])
    assert exported.out_avals[0].shape == (devices.count(), 4)


POINTS = np.random.default_rng(1).normal(size=(8 * 128, 4)).astype(np.float32)


def fit(seed, points, axis=None):
    found = kmeans(jax.random.key(seed), points, 3, restarts=2, axis_name=axis)
    return found.centroids, found.labels, found.inertia


def test_kmeans():
    """Platforms take different passes, and the one exported program has both."""
    exported = exported_for_all(jax.jit(fit), jnp.uint32(0), POINTS)
    centroids, labels, inertia = map(np.asarray, jax.jit(exported.call)(jnp.uint32(0), POINTS))
    distances = ((POINTS[:, None].astype(np.float64) - centroids) ** 2).sum(2)
    np.testing.assert_array_equal(labels, distances.argmin(1))
    assert inertia == pytest.approx(distances.min(1).sum(), rel=1e-5)
    means = [POINTS[labels == c].mean(0) for c in range(3)]
    np.testing.assert_allclose(centroids, means, atol=0.05)


def test_sharded_kmeans():
    """Exported alone: a CPU will not load a program of shards with CUDA's eigenvectors in it."""
    out = (EVERYWHERE, SHARED, EVERYWHERE)
    function = across(partial(fit, axis=devices.AXIS), (EVERYWHERE, SHARED), out)
    module = exported_for_all(function, jnp.uint32(0), POINTS).mlir_module()
    assert "stablehlo.all_reduce" in module and "stablehlo.all_gather" in module


def test_ranking():
    gallery = jax.random.normal(jax.random.key(2), (8 * 40, 8))

    def search(queries, gallery):
        return tuple(nearest(queries, gallery, 5, axis_name=devices.AXIS))

    function = across(search, (EVERYWHERE, SHARED), EVERYWHERE)
    exported = same_after_export(function, gallery[:7], gallery)
    assert "stablehlo.all_gather" in exported.mlir_module()


def test_training_reduces_gradients_statistics_and_metrics_and_no_more(step, state, batch):
    found = tpu_check.collectives(step.lower(state, batch, jnp.uint32(0)).compile().as_text())
    parameters = 3 * 3 * (1 * 2 + 2 * 4 + 4 * 2 + 2 * 1) + 2 + 4 + 2 + 1 + 4 * 3 + 3
    normalised = 2 + 4 + 2  # channels, each with a scale and a shift
    # Mean and mean square, forward and backward; and the running ones, whoever reduced them.
    statistics = 3 * 2 * normalised
    assert set(found) == {"all-reduce"}
    # Three metrics, the two terms and their sum, and what divides each term.
    assert found["all-reduce"][1] == 4 * (parameters + 2 * normalised + statistics + 3 + 2)


def test_collectives_are_counted_to_the_byte():
    def exchange(x):
        gathered = jax.lax.all_gather(x, devices.AXIS)
        shifted = jax.lax.ppermute(x, devices.AXIS, [(0, 1), (1, 0)])
        total = jax.lax.psum((x.astype(jnp.bfloat16), x[0] > 0), devices.AXIS)
        return gathered, shifted, total

    function = across(exchange, SHARED, EVERYWHERE)
    text = function.lower(jax.ShapeDtypeStruct((8 * 5, 3), jnp.float32)).compile().as_text()
    found = tpu_check.collectives(text)
    assert found["all-gather"] == [1, 8 * 5 * 3 * 4]
    assert found["collective-permute"] == [1, 5 * 3 * 4]
    assert set(found) == {"all-gather", "collective-permute", "all-reduce"}
    asynchronous = "%a = (f32[2], f32[16]) all-gather-start(%x)\n%b = f32[16] all-gather-done(%a)"
    assert tpu_check.collectives(asynchronous) == {"all-gather": [1, 64]}


def test_the_plan_needs_the_memory_that_compiling_found():
    rows = json.loads(tpu_plan.RESULTS.read_text())
    fits = [row for row in rows if row["program"].startswith("k-means fit")]
    assert len(fits) == 2 * len(tpu_check.TOPOLOGIES)
    for row in fits:
        k = int(row["program"].split()[-1])
        plan = tpu_plan.Plan(tpu_check.ROWS * row["chips"], row["topology"], k)
        assert tpu_plan.memory(plan) == pytest.approx(row["memory_bytes"], rel=0.05)


def test_the_pages_have_the_tables_that_are_printed():
    experiments = tpu_plan.RESULTS.parents[1]
    rows = json.loads(tpu_plan.RESULTS.read_text())
    assert tpu_plan.compiled_table(rows) in (experiments / "tpu" / "README.md").read_text()
    scaling = (experiments / "scaling" / "README.md").read_text()
    assert tpu_plan.training_table(rows) in scaling and tpu_plan.plan_table(rows) in scaling
