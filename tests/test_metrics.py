"""Metrics against scikit-learn, exact integers and plain loops."""

from fractions import Fraction

import jax
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_jax import metrics
from retrieval_jax.metrics import (
    adjusted_rand_index,
    contingency_table,
    mean_average_precision_at_k,
    normalized_mutual_information,
    precision_at_k,
    rand_index,
    relevance,
)

PAIRS = [
    (normalized_mutual_information, sklearn.metrics.normalized_mutual_info_score),
    (rand_index, sklearn.metrics.rand_score),
    (adjusted_rand_index, sklearn.metrics.adjusted_rand_score),
]

partitions = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 4), min_size=n, max_size=n),
        st.lists(st.integers(0, 6), min_size=n, max_size=n),
    )
)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@settings(deadline=None, derandomize=True, max_examples=150)
@given(partitions)
def test_clustering_scores_equal_scikit_learns(ours, theirs, labels):
    expected = theirs(*labels)
    assert ours(contingency_table(*labels)) == pytest.approx(expected, abs=1e-6)
    assert ours(contingency_table(*labels, 9, 8)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize(
    ("classes", "clusters"),
    [
        ([0, 0, 0], [0, 0, 0]),  # one class in one cluster
        ([0, 0, 0], [0, 1, 2]),  # one class, each point alone
        ([0, 1, 2], [0, 0, 0]),
        ([0, 1, 2], [2, 0, 1]),  # each alone in both
        ([3], [5]),  # one point
        ([0, 0, 1, 1], [0, 1, 0, 1]),  # as unlike as can be
    ],
)
def test_edge_cases_equal_scikit_learns(ours, theirs, classes, clusters):
    expected = theirs(classes, clusters)
    assert ours(contingency_table(classes, clusters)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_at_the_size_where_pair_counts_pass_32_bits(ours, theirs):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 10, 100_000)
    clusters = np.where(rng.random(100_000) < 0.4, classes, rng.integers(0, 7, 100_000))
    table = contingency_table(jax.numpy.asarray(classes), clusters)
    assert ours(table) == pytest.approx(theirs(classes, clusters), abs=1e-9)


def test_pair_counts_are_exact_at_a_hundred_million_points():
    table = np.array([[33_333_333, 1, 7], [0, 44_444_444, 3], [11, 22_222_200, 1]], np.int64)
    n = int(table.sum())
    pairs = lambda counts: sum(Fraction(int(c) * (int(c) - 1), 2) for c in np.ravel(counts))  # noqa: E731
    both, classes, clusters = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    every = pairs([n])
    expected = classes * clusters / every
    assert rand_index(table) == float((every + 2 * both - classes - clusters) / every)
    assert adjusted_rand_index(table) == float(
        (both - expected) / ((classes + clusters) / 2 - expected)
    )


def test_contingency_counts_every_block_and_adds_up(monkeypatch):
    monkeypatch.setattr(metrics, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    classes, clusters = rng.integers(0, 3, 50).astype(np.uint8), rng.integers(0, 300, 50)
    expected = np.zeros((3, 300), np.int64)
    for pair in zip(classes, clusters, strict=True):
        expected[pair] += 1
    table = contingency_table(classes, clusters, 3, 300)
    np.testing.assert_array_equal(table, expected)
    parts = [
        contingency_table(classes[s], clusters[s], 3, 300) for s in np.split(np.arange(50), [13])
    ]
    np.testing.assert_array_equal(sum(parts), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [0]), "there are 2 classes, but 1 clusters"),
        (([], []), r"classes must be integers \[n\], n ≥ 1"),
        (([0.0], [0]), "classes must be integers"),
        (([[0]], [[0]]), "classes must be integers"),
        (([0], [-1]), r"clusters must lie in 0\.\.-1; they lie in -1\.\.-1"),
        (([0, -1], [0, 0]), r"classes must lie in 0\.\.0; they lie in -1\.\.0"),
        (([5], [0], 5), r"classes must lie in 0\.\.4; they lie in 5\.\.5"),
    ],
)
def test_wrong_labels_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        contingency_table(*arguments)


@pytest.mark.parametrize("score", [ours for ours, _ in PAIRS])
def test_a_table_without_points_is_refused(score):
    with pytest.raises(ValueError, match="holds no points"):
        score(np.zeros((2, 3), np.int64))


def average_precision(relevant, positives: int, k: int) -> float:
    """Float64, term by term."""
    total, hits = 0.0, 0
    for i in range(k):
        hits += int(relevant[i])
        total += hits / (i + 1) * int(relevant[i])
    return total / min(k, positives) if positives else 0.0


def test_retrieval_scores_equal_loops():
    rng = np.random.default_rng(0)
    gallery = rng.integers(0, 6, 40)
    queries = rng.integers(0, 7, 25)  # class 6 has no positives
    queries[[3, 5]] = gallery[-1]  # which -1 must not be taken for
    indices = np.stack([rng.permutation(40) for _ in queries])[:, :15]
    indices[3, 4:], indices[5] = -1, -1  # fewer than asked for, and none
    relevant, positives = relevance(indices, queries, gallery)
    expected = [
        [i >= 0 and gallery[i] == query for i in row]
        for row, query in zip(indices, queries, strict=True)
    ]
    np.testing.assert_array_equal(relevant, expected)
    assert positives.tolist() == [sum(gallery == query) for query in queries]
    assert 0 in positives
    for k in (1, 5, 15):
        precision = np.mean([sum(row[:k]) / k for row in expected])
        ap = np.mean(
            [average_precision(*pair, k) for pair in zip(expected, positives.tolist(), strict=True)]
        )
        assert float(precision_at_k(relevant, k)) == pytest.approx(precision, abs=1e-6)
        jitted = jax.jit(mean_average_precision_at_k, static_argnums=2)
        for score in (mean_average_precision_at_k, jitted):
            assert float(score(relevant, positives, k)) == pytest.approx(ap, abs=1e-6)


def test_average_precision_is_one_when_all_that_could_be_found_is_first():
    relevant = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    assert float(mean_average_precision_at_k(relevant, [2, 50], 4)) == 1
    assert float(mean_average_precision_at_k(relevant[:1], [3], 4)) == pytest.approx(2 / 3)


def test_one_class_only_is_all_relevant():
    relevant, positives = relevance(
        np.arange(12).reshape(3, 4), np.zeros(3, int), np.zeros(12, int)
    )
    assert relevant.all() and positives.tolist() == [12, 12, 12]
    assert float(precision_at_k(relevant, 4)) == 1


def test_retrieval_scores_name_wrong_arguments():
    relevant = np.ones((3, 4), bool)
    for k in (0, 5):
        with pytest.raises(ValueError, match="1 ≤ k ≤ m"):
            precision_at_k(relevant, k)
    with pytest.raises(ValueError, match="1 ≤ k ≤ m"):
        precision_at_k(np.ones((0, 4), bool), 1)
    with pytest.raises(ValueError, match="positives must be one count a query, 3"):
        mean_average_precision_at_k(relevant, [1, 2], 4)
