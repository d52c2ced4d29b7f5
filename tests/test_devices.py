"""Rows spread over several devices come back whole and in order."""

import jax
import numpy as np
import pytest

from retrieval_jax.data.images import LazyImages
from retrieval_jax.runtime import devices


def test_several_devices_are_there():
    assert devices.count() == 8


@pytest.mark.parametrize("rows", [0, 1, 5, 8, 23])
@pytest.mark.parametrize("batch", [1, 8, 100])
def test_map_rows_equals_plain_numpy(rows, batch):
    data = np.random.default_rng(0).integers(0, 256, (rows, 3, 2), np.uint8)
    factor = np.float32(1.5)
    scaled = devices.on_rows(lambda factor, part: factor * part.sum(1))
    result = devices.map_rows(scaled, devices.on_every_device(factor), data, batch)
    np.testing.assert_array_equal(result, factor * data.sum(1))


def test_map_rows_reads_a_few_batches_at_a_time():
    shape, read = (4, 4, 1), []

    def images(rows):
        read.extend(rows)
        assert len(read) <= 32 * (len(done) // devices.count() + 5)
        return np.broadcast_to((rows % 256)[:, None, None, None], (len(rows), *shape)).astype("u1")

    done = []

    def mean(_, part):
        jax.debug.callback(lambda: done.append(1), ordered=False)
        return part.astype("f4").mean((1, 2, 3))

    lazy = LazyImages(images, np.arange(1000), shape)
    result = devices.map_rows(
        devices.on_rows(mean), devices.on_every_device(np.float32(0)), lazy, 32
    )
    np.testing.assert_array_equal(result, np.arange(1000) % 256)


def test_prefetched_rows_lie_on_their_devices():
    trees = [{"a": np.arange(16) + i, "b": np.zeros((8, 3))} for i in range(4)]
    found = list(devices.prefetched(trees))
    assert len(found) == 4
    for tree, parts in zip(trees, found, strict=True):
        assert parts["a"].shape == (8, 2) and parts["b"].shape == (8, 1, 3)
        assert len(parts["a"].sharding.device_set) == 8
        np.testing.assert_array_equal(np.ravel(parts["a"]), tree["a"])


def test_batches_are_shared_without_loss():
    rows = np.arange(48).reshape(3, 16)
    shares = devices.share_batches(rows)
    assert shares.shape == (8, 3, 2)
    assert len(shares.sharding.device_set) == 8
    np.testing.assert_array_equal(np.concatenate(list(shares), 1), rows)


def test_copies_come_back_from_the_first_device():
    tree = {"a": np.arange(3), "b": [np.float32(2)]}
    copies = devices.on_every_device(tree)
    assert copies["a"].shape == (8, 3)
    back = devices.from_first_device(copies)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    np.testing.assert_array_equal(back["a"], tree["a"])
