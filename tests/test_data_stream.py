"""Images that are read when they are needed, in any order, by threads, in bounded memory."""

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_jax.data.images import LazyImages, view
from retrieval_jax.data.stream import batches
from retrieval_jax.runtime.errors import UserError

ARRAY = np.random.default_rng(0).integers(0, 256, (90, 2, 3, 1), np.uint8)


@pytest.mark.parametrize(
    "index",
    [
        4,
        -1,
        slice(3, 60, 7),
        np.array([], int),
        np.array([8, 0, 8, -2]),
        np.array([[1, 2], [7, 0]]),
        np.arange(45) % 3 == 1,
    ],
    ids=str,
)
def test_lazy_images_index_like_the_array(index):
    rows = np.random.default_rng(1).permutation(90)[:45]
    lazy, array = view(ARRAY, rows), ARRAY[rows]
    assert lazy.shape == array.shape and len(lazy) == len(array)
    np.testing.assert_array_equal(lazy[index], array[index])
    some = np.array([5, 44, 0])
    np.testing.assert_array_equal(view(lazy, some)[:], array[some])


def test_rows_that_are_not_there_are_refused():
    with pytest.raises(IndexError):
        view(ARRAY, np.arange(5))[np.array([5])]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 90),
    batch=st.integers(1, 100),
    start=st.integers(0, 5),
    seed=st.integers(0, 9),
)
def test_batches_are_the_slices_of_the_order(count, batch, start, seed):
    order = np.random.default_rng(seed).integers(-90, 90, count)  # repeats, and rows from the end
    expected = [ARRAY[order[i : i + batch]] for i in range(start * batch, count, batch)]
    for images in (ARRAY, view(ARRAY, np.arange(90))):
        found = list(batches(images, order, batch, start))
        assert [len(part) for part in found] == [len(part) for part in expected]
        for part, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(part, right)


def generated(count, image_shape):
    """Images made when they are read, each full of its own number; and the rows read so far."""
    seen, lock = [], threading.Lock()

    def read(rows):
        with lock:
            seen.extend(rows.tolist())
        return np.broadcast_to(
            (rows % 256).astype(np.uint8)[:, None, None, None], (len(rows), *image_shape)
        ).copy()

    return LazyImages(read, np.arange(count), image_shape), seen


@pytest.mark.parametrize("batch", [5, 40])
def test_no_more_than_two_batches_are_read_ahead(batch):
    images, seen = generated(10_000, (1, 1, 1))
    order = np.arange(10_000)[::-1]
    parts = batches(images, order, batch)
    for i in range(1, 20):
        next(parts)
        assert len(seen) <= (i + 2) * batch
    parts.close()
    after = len(seen)
    assert after <= 22 * batch  # what a thread had begun may still end
    assert set(seen) == set(order[:after].tolist())


def test_what_lies_before_the_start_is_not_read():
    images, seen = generated(1000, (1, 1, 1))
    assert len(list(batches(images, np.arange(1000), 30, start=33))) == 1
    assert sorted(seen) == list(range(990, 1000))


def test_memory_is_bounded_by_batches_and_not_by_the_set():
    shape, batch = (64, 64, 3), 64
    images, _ = generated(6400, shape)
    bytes_of_batch = batch * np.prod(shape)  # the whole set is a hundred of them
    tracemalloc.start()
    try:
        for part in batches(images, np.arange(6400), batch):
            assert part.shape == (batch, *shape)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * bytes_of_batch


def test_an_error_of_a_reading_thread_arrives_as_it_is():
    def read(rows):
        if 70 in rows:
            raise UserError("image 70 can't be decoded")
        return ARRAY[rows]

    parts = batches(LazyImages(read, np.arange(90), (2, 3, 1)), np.arange(90), 20)
    for _ in range(3):
        next(parts)
    with pytest.raises(UserError) as error:
        next(parts)
    assert str(error.value) == "image 70 can't be decoded"
