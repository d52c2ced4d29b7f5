"""Rows spread over several devices come back whole and in order."""

import jax
import numpy as np
import pytest

from retrieval_jax.runtime import devices

pytestmark = pytest.mark.fast


def test_several_devices_are_there():
    assert devices.count() == 8


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


def test_rows_are_shared_in_whole_blocks():
    rows = np.arange(37.0)[:, None] * np.ones((1, 3))
    shares = devices.share_rows(rows, 4, -1)
    assert shares.shape == (8, 8, 3)  # 37 rows over 8 devices in blocks of 4
    whole = shares.reshape(-1, 3)
    np.testing.assert_array_equal(whole[:37], rows)
    assert (whole[37:] == -1).all()
