"""The gallery/query split, against counts worked out by hand and by brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_jax.data.split import split
from retrieval_jax.runtime.errors import UserError


def test_protocol_sizes_on_ten_balanced_classes():
    labels = np.tile(np.arange(10), 6000)
    parts = split(labels, 60_000, queries=3000, seed=0)
    assert [len(p) for p in parts] == [45_600, 11_400, 3000]
    np.testing.assert_array_equal(np.bincount(labels[parts.queries]), np.full(10, 300))
    np.testing.assert_array_equal(np.bincount(labels[parts.gallery]), np.full(10, 5700))
    np.testing.assert_array_equal(parts.gallery, np.concatenate([parts.fit, parts.validation]))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(60_000))
    assert all(p.dtype == np.int64 for p in parts)


def test_every_part_is_shuffled():
    labels = np.repeat(np.arange(4), 1000)
    for part in split(labels, 4000, queries=1000, seed=3):
        # Of a shuffled order about half the steps go up; sorted by index or by class almost all do.
        assert 0.4 < np.mean(np.diff(part) > 0) < 0.6
        half = len(part) // 2
        first, second = (np.bincount(labels[p], minlength=4) for p in (part[:half], part[half:]))
        assert np.abs(first - second).max() < 0.4 * half


def test_each_image_is_equally_likely_to_be_a_query():
    labels = np.repeat([0, 1], [6, 14])
    hits = np.zeros(20)
    for seed in range(2000):
        hits[split(labels, 20, queries=10, seed=seed).queries] += 1
    # Binomial(2000, 1/2): five standard deviations are 112.
    np.testing.assert_allclose(hits, 1000, atol=112)


def test_seed_means_the_same_split_for_ever():
    parts = split(np.arange(12) % 3, 12, queries=4, seed=7)
    golden = [[2, 10, 7, 5, 3, 6], [1, 8], [4, 11, 0, 9]]
    assert [p.tolist() for p in parts] == golden
    other = split(np.arange(12) % 3, 12, queries=4, seed=8)
    assert [p.tolist() for p in other] != golden


def test_without_labels_the_split_is_plainly_random():
    parts = split(None, 1000, queries=100, seed=0)
    assert [len(p) for p in parts] == [720, 180, 100]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    assert 0.4 < np.mean(np.diff(parts.queries) > 0) < 0.6


def test_only_membership_of_a_class_counts_not_its_number():
    labels = np.array([5, -3, 900] * 20)
    renamed = np.array([1, 0, 2] * 20)
    for a, b in zip(split(labels, 60, 9, seed=1), split(renamed, 60, 9, seed=1), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("sizes", "queries", "expected"),
    [
        ([60, 40], 10, [6, 4]),
        ([50, 30, 20], 11, [6, 3, 2]),  # shares 5.5, 3.3, 2.2: the largest remainder gets the last
        ([10, 10, 10], 4, [2, 1, 1]),  # a tie goes to the lower class
        ([97, 2, 1 + 1], 10, [8, 1, 1]),  # small classes get one
        ([990, 2, 2, 2, 2, 2], 6, [1, 1, 1, 1, 1, 1]),
        ([60, 50, 2, 2, 2, 2], 10, [3, 3, 1, 1, 1, 1]),  # so the large ones, 5.08 and 4.24, give
        ([4, 2, 2], 5, [3, 1, 1]),  # every class keeps a gallery image: shares 2.5, 1.25, 1.25
        ([2, 2, 8], 9, [1, 1, 7]),  # shares 1.5, 1.5, 6
        ([9, 1], 3, [3, 0]),  # a single image stays in the gallery
        ([1, 1, 6], 4, [0, 0, 4]),
        ([2, 2, 2, 40], 3, [0, 0, 0, 3]),  # too few queries for all classes: the rare have none
        ([6, 4, 1, 1], 1, [1, 0, 0, 0]),
    ],
)
def test_quotas_by_hand(sizes, queries, expected):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    parts = split(labels, len(labels), queries, seed=0)
    np.testing.assert_array_equal(
        np.bincount(labels[parts.queries], minlength=len(sizes)), expected
    )


@settings(deadline=None, derandomize=True, max_examples=60)
@given(data=st.data())
def test_quotas_are_the_closest_integers_that_are_allowed(data):
    sizes = np.array(data.draw(st.lists(st.integers(2, 7), min_size=1, max_size=4)))
    count, classes = sizes.sum(), len(sizes)
    queries = data.draw(st.integers(classes, count - classes))
    labels = np.repeat(np.arange(classes), sizes)
    parts = split(labels, count, queries, seed=data.draw(st.integers(0, 2**40)))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    quotas = np.bincount(labels[parts.queries], minlength=classes)
    # Largest remainder minimises the squared distance to the exact shares; try all choices.
    share = sizes * queries / count
    choices = itertools.product(*(range(1, size) for size in sizes))
    best = min(np.sum((np.array(c) - share) ** 2) for c in choices if sum(c) == queries)
    np.testing.assert_allclose(np.sum((quotas - share) ** 2), best, atol=1e-9)


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, (90, 0)), (0.25, (68, 22)), (0.9, (9, 81))]
)
def test_validation_fraction(fraction, expected):
    parts = split(None, 100, queries=10, seed=0, validation_fraction=fraction)
    assert (len(parts.fit), len(parts.validation)) == expected


@pytest.mark.parametrize(
    ("labels", "queries", "options", "message"),
    [
        (None, 0, {}, "ask for 1 to 9"),
        (None, 10, {}, "ask for 1 to 9"),
        (None, -1, {}, "ask for 1 to 9"),
        ([0, 1, 2, 3, 4] * 2, 6, {}, "4 gallery images for 5 classes: ask for 5 or fewer"),
        ([0] * 8 + [1, 2], 8, {}, "2 gallery images for 3 classes: ask for 7 or fewer"),
        (None, 3, {"validation_fraction": 1.0}, "validation fraction"),
        (None, 3, {"validation_fraction": -0.1}, "validation fraction"),
        (None, 3, {"validation_fraction": float("nan")}, "validation fraction"),
        (None, 9, {"validation_fraction": 0.9}, "leaves none of 1 gallery images to fit"),
        (None, 3, {"seed": -1}, "seed"),
    ],
)
def test_impossible_splits_say_what_is_possible(labels, queries, options, message):
    labels = None if labels is None else np.array(labels)
    with pytest.raises(UserError, match=message):
        split(labels, 10, queries, **{"seed": 0, **options})


def test_labels_of_another_length_are_a_programming_error():
    with pytest.raises(ValueError, match=r"expected \(10,\)"):
        split(np.zeros(9, int), 10, 2, seed=0)
