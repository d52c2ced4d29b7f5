"""Scores of the first k neighbours against plain loops and scikit-learn."""

import jax
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_jax import metrics
from retrieval_jax.metrics import (
    hit_at_k,
    knn_accuracy,
    mean_average_precision_at_k,
    mean_reciprocal_rank_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    relevance,
)


def average_precision(relevant, positives: int, k: int) -> float:
    """Float64, term by term."""
    total, hits = 0.0, 0
    for i in range(k):
        hits += int(relevant[i])
        total += hits / (i + 1) * int(relevant[i])
    return total / min(k, positives) if positives else 0.0


def first_hit(relevant, positives: int, k: int) -> float:
    return next((1 / rank for rank in range(1, k + 1) if relevant[rank - 1]), 0.0)


def discounted_gain(relevant, positives: int, k: int) -> float:
    best = sum(1 / np.log2(i + 2) for i in range(min(k, positives)))
    return sum(r / np.log2(i + 2) for i, r in enumerate(relevant[:k])) / best if positives else 0.0


ORACLES = {
    precision_at_k: lambda relevant, positives, k: sum(relevant[:k]) / k,
    recall_at_k: lambda relevant, positives, k: sum(relevant[:k]) / max(positives, 1),
    hit_at_k: lambda relevant, positives, k: float(any(relevant[:k])),
    mean_average_precision_at_k: average_precision,
    mean_reciprocal_rank_at_k: first_hit,
    ndcg_at_k: discounted_gain,
}
OF_POSITIVES = {recall_at_k, mean_average_precision_at_k, ndcg_at_k}


def found():
    rng = np.random.default_rng(0)
    gallery = rng.integers(0, 6, 40)
    queries = rng.integers(0, 7, 25)  # class 6 has no positives
    queries[[3, 5]] = gallery[-1]  # which -1 must not be taken for
    indices = np.stack([rng.permutation(40) for _ in queries])[:, :15]
    indices[3, 4:], indices[5] = -1, -1  # fewer than asked for, and none
    return indices, queries, gallery


def test_relevance_is_of_equal_labels():
    indices, queries, gallery = found()
    relevant, positives = relevance(indices, queries, gallery)
    expected = [
        [i >= 0 and gallery[i] == query for i in row]
        for row, query in zip(indices, queries, strict=True)
    ]
    np.testing.assert_array_equal(relevant, expected)
    assert positives.tolist() == [sum(gallery == query) for query in queries]
    assert 0 in positives


@pytest.mark.parametrize("score", ORACLES)
@pytest.mark.parametrize("k", [1, 5, 15])
def test_scores_equal_loops(score, k):
    relevant, positives = map(np.asarray, relevance(*found()))
    rows = zip(relevant, positives.tolist(), strict=True)
    expected = np.mean([ORACLES[score](*row, k) for row in rows])
    arguments = (relevant, positives) if score in OF_POSITIVES else (relevant,)
    jitted = jax.jit(score, static_argnums=len(arguments))
    for function in (score, jitted):
        assert float(function(*arguments, k)) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=4, max_size=4))
def test_gain_and_precision_equal_scikit_learns(relevant):
    relevant = np.array(relevant)
    order = np.tile(-np.arange(6.0), (4, 1))
    positives = relevant.sum(1)  # all have been ranked
    expected = sklearn.metrics.ndcg_score(relevant, order, k=3)
    assert float(ndcg_at_k(relevant, positives, 3)) == pytest.approx(expected, abs=1e-6)
    average = sklearn.metrics.average_precision_score
    expected = [average(row, order[0]) if row.any() else 0 for row in relevant]
    ours = mean_average_precision_at_k(relevant, positives, 6)
    assert float(ours) == pytest.approx(np.mean(expected), abs=1e-6)


def test_average_precision_is_one_when_all_that_could_be_found_is_first():
    relevant = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    assert float(mean_average_precision_at_k(relevant, [2, 50], 4)) == 1
    assert float(mean_average_precision_at_k(relevant[:1], [3], 4)) == pytest.approx(2 / 3)
    assert float(ndcg_at_k(relevant, [2, 50], 4)) == 1


def test_one_class_only_is_all_relevant():
    relevant, positives = relevance(
        np.arange(12).reshape(3, 4), np.zeros(3, int), np.zeros(12, int)
    )
    assert relevant.all() and positives.tolist() == [12, 12, 12]
    assert float(precision_at_k(relevant, 4)) == 1


def elected(indices, gallery, weights):
    """The winner of one query's vote; None without neighbours."""
    votes = {}
    for i, weight in zip(indices, weights, strict=True):
        if i >= 0:
            votes[gallery[i]] = votes.get(gallery[i], 0) + weight
    return max(votes, key=votes.get) if votes else None  # of equal ones the first inserted


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_votes_equal_a_loop(seed, weighted):
    rng = np.random.default_rng(seed)
    gallery, queries = rng.integers(-3, 2, 12), rng.integers(-3, 2, 8)
    indices = np.where(rng.random((8, 5)) < 0.2, -1, rng.integers(0, 12, (8, 5)))
    weights = rng.integers(0, 4, (8, 5)) if weighted else np.ones((8, 5))
    winners = [elected(i, gallery, w) for i, w in zip(indices, weights, strict=True)]
    expected = np.mean([w == q for w, q in zip(winners, queries, strict=True)])
    ours = knn_accuracy(indices, queries, gallery, weights if weighted else None)
    assert float(ours) == pytest.approx(expected, abs=1e-6)


def test_of_equal_votes_the_nearest_wins():
    gallery = np.array([5, 3, 3, 5, 9, 3])
    assert float(knn_accuracy([[4, 1, 0, 3, 2]], [3], gallery)) == 1
    assert float(knn_accuracy([[4, 0, 1, 3, 2]], [5], gallery)) == 1
    assert float(knn_accuracy([[-1, -1, -1, -1, -1]], [3], gallery)) == 0
    assert float(knn_accuracy([[-1, 4, -1, -1, -1]], [9], gallery, np.zeros((1, 5)))) == 1
    heavy = [[3.0, 2.0, 1.5, 1.0, -1.0]]
    assert float(knn_accuracy([[4, 1, 2, 0, -1]], [3], gallery, heavy)) == 1


def test_wrong_arguments_are_named():
    relevant = np.ones((3, 4), bool)
    for score in ORACLES:
        positives = ([3, 3, 3],) if score in OF_POSITIVES else ()
        for k in (0, 5):
            with pytest.raises(ValueError, match="1 ≤ k ≤ m"):
                score(relevant, *positives, k)
        with pytest.raises(ValueError, match="1 ≤ k ≤ m"):
            score(np.ones((0, 4), bool), *positives, 1)
    for score in OF_POSITIVES:
        with pytest.raises(ValueError, match="positives must be one count a query, 3"):
            score(relevant, [1, 2], 4)
    with pytest.raises(
        ValueError, match=r"indices must be integers \[q, k\]; they are int64 \(3,\)"
    ):
        metrics.knn_accuracy([0, 1, 2], [0, 0, 0], [0, 0, 0])
    with pytest.raises(ValueError, match=r"not \(1, 2\) and \(2, 1\)"):
        metrics.knn_accuracy([[0, 1]], [0], [0, 0], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="query_labels must be one a query, 1"):
        metrics.knn_accuracy([[0, 1]], [0, 1], [0, 0])


def test_a_query_is_none_of_its_own_positives():
    pairs = np.repeat(np.arange(4), 2)
    mates = np.arange(8) ^ 1
    indices = np.stack([mates, (mates + 3) % 8], 1)
    relevant, positives = relevance(indices, pairs, pairs, exclude_self=True)
    assert positives.tolist() == [1] * 8
    assert float(recall_at_k(relevant, positives, 2)) == 1
    assert float(mean_average_precision_at_k(relevant, positives, 2)) == 1
    # Found after all, it does not count.
    relevant, positives = relevance(np.stack([np.arange(8), mates], 1), pairs, pairs)
    assert relevant.all() and positives.tolist() == [2] * 8
    relevant, _ = relevance(np.stack([np.arange(8), mates], 1), pairs, pairs, exclude_self=True)
    assert relevant.tolist() == [[False, True]] * 8
    # Of another class than its gallery row it loses no positive.
    assert relevance([[1]], [7], [5, 7], exclude_self=True)[1].tolist() == [1]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (np.int64, [2**32 + 5, 5, -(2**40)]),
        (np.uint64, [2**64 - 1, 2**63, 5]),
        (str, ["cat", "dog", "cow"]),
    ],
)
def test_labels_of_any_size_and_kind(kind, names):
    indices, queries, gallery = found()
    small = [labels % 3 for labels in (queries, gallery)]
    named = [np.array(names, kind)[labels] for labels in small]
    for ours, theirs in zip(relevance(indices, *named), relevance(indices, *small), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert float(knn_accuracy(indices, *named)) == float(knn_accuracy(indices, *small))


def test_under_jit_labels_must_fit():
    jitted = jax.jit(lambda indices, labels: relevance(indices, labels, np.array([5, 2**32 + 5])))
    with pytest.raises(ValueError, match="under jit labels must fit in int32"):
        jitted(np.zeros((1, 1), int), np.array([5]))
    jitted = jax.jit(lambda indices, labels: relevance(indices, labels, np.array([5, 6])))
    relevant, positives = jitted(np.array([[1, 0]]), np.array([6]))
    assert relevant.tolist() == [[True, False]] and positives.tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0, 3]], [1], [1, 1, 2]), r"indices must be -1 or rows of the gallery, 0\.\.2"),
        (([[0, -2]], [1], [1, 1, 2]), r"they lie in -2\.\.0"),
        (([[0.0]], [1], [1]), r"indices must be integers \[q, k\]"),
        (([[0], [0]], [1], [1]), "query_labels must be one a query, 2"),
        (([[0]], [1.0], [1]), "must be 1 integers or strings; they are float64"),
        (([[0]], [1], ["a"]), "all integers or all strings"),
        (([[0]], [1], []), r"gallery_labels must be \[n\], n ≥ 1"),
    ],
)
def test_what_is_no_ranking_is_named(arguments, message):
    for score in (relevance, knn_accuracy):
        with pytest.raises(ValueError, match=message):
            score(*arguments)
    with pytest.raises(ValueError, match="there are 2 queries and 1 rows"):
        relevance([[0], [0]], [1, 1], [1], exclude_self=True)


def test_no_score_passes_one():
    relevant = np.array([[True, True, False], [True, True, True]])
    for score in OF_POSITIVES:
        with pytest.raises(ValueError, match="query 1 has 1 and 3 relevant neighbours"):
            score(relevant, [2, 1], 3)
        assert float(jax.jit(score, static_argnums=2)(relevant, np.array([2, 1]), 3)) == 1


@pytest.mark.parametrize("score", [*ORACLES, knn_accuracy])
def test_averages_over_classes_equal_those_of_each_class_alone(score):
    indices, queries, gallery = found()
    relevant, positives = map(np.asarray, relevance(indices, queries, gallery))

    def of(some, **options):
        if score is knn_accuracy:
            return score(indices[some], queries[some], gallery, **options)
        counts = (positives[some],) if score in OF_POSITIVES else ()
        return score(relevant[some], *counts, 5, **options)

    each = of(slice(None), per_query=True)
    assert each.shape == (25,) and each.dtype == np.float32
    classes, means = metrics.class_means(each, queries)
    assert classes.tolist() == sorted(set(queries.tolist())) and means.dtype == np.float64
    for label, mean in zip(classes, means, strict=True):
        assert float(of(queries == label)) == pytest.approx(mean, abs=1e-6)


def test_class_means_name_wrong_arguments():
    with pytest.raises(ValueError, match="scores must be one a query"):
        metrics.class_means(0.5, [1])
    with pytest.raises(ValueError, match="labels must be 2 integers or strings"):
        metrics.class_means([0.5, 1.0], [1])


def test_scores_are_float32_under_64_bits():
    with jax.enable_x64(True):
        indices, queries, gallery = found()
        relevant, positives = relevance(indices, queries, gallery)
        assert positives.dtype == np.int32
        for score in ORACLES:
            counts = (positives,) if score in OF_POSITIVES else ()
            expected = np.mean(
                [
                    ORACLES[score](row, int(count), np.int64(5))
                    for row, count in zip(np.asarray(relevant), positives, strict=True)
                ]
            )
            got = score(relevant, *counts, np.int64(5))
            assert got.dtype == np.float32 and float(got) == pytest.approx(expected, abs=1e-6)
        assert knn_accuracy(indices, queries, gallery).dtype == np.float32
    with pytest.raises(ValueError, match="k must be an integer"):
        precision_at_k(np.ones((2, 3), bool), 2.0)
