"""Clustering scores against scikit-learn, SciPy, exact integers and all permutations."""

import itertools
from fractions import Fraction
from functools import partial

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from retrieval_jax import metrics
from retrieval_jax.metrics import contingency_counts, contingency_table

AVERAGES = ["arithmetic", "geometric", "min", "max"]
NMI = {
    average: (
        partial(metrics.normalized_mutual_information, average=average),
        partial(sklearn.metrics.normalized_mutual_info_score, average_method=average),
    )
    for average in AVERAGES
}
AMI = {
    average: (
        partial(metrics.adjusted_mutual_information, average=average),
        partial(sklearn.metrics.adjusted_mutual_info_score, average_method=average),
    )
    for average in AVERAGES
}
PAIRS = [
    (metrics.rand_index, sklearn.metrics.rand_score),
    (metrics.adjusted_rand_index, sklearn.metrics.adjusted_rand_score),
    (metrics.fowlkes_mallows, sklearn.metrics.fowlkes_mallows_score),
    (metrics.homogeneity, sklearn.metrics.homogeneity_score),
    (metrics.completeness, sklearn.metrics.completeness_score),
    (metrics.v_measure, sklearn.metrics.v_measure_score),
    (partial(metrics.v_measure, beta=0.3), partial(sklearn.metrics.v_measure_score, beta=0.3)),
    *NMI.values(),
    # Where chance leaves no freedom, scikit-learn's minimum divides rounding by rounding.
    *(AMI[average] for average in ("arithmetic", "geometric", "max")),
]
SCORES = [ours for ours, _ in PAIRS] + [
    metrics.purity,
    metrics.clustering_accuracy,
    metrics.optimal_matching,
]


def labelings(*sizes):
    """Pairs of labelings 0..4 and 0..6 of so many points: few shapes, for each is compiled."""
    return st.sampled_from(sizes).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(0, 4), min_size=n, max_size=n),
            st.lists(st.integers(0, 6), min_size=n, max_size=n),
        )
    )


def table_of(labels) -> np.ndarray:
    """Counted here, without the package."""
    table = np.zeros((5, 7), np.int64)
    np.add.at(table, tuple(map(np.asarray, labels)), 1)
    return table


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@settings(deadline=None, derandomize=True, max_examples=80)
@given(labelings(1, 2, 3, 4, 9, 40))
def test_scores_equal_scikit_learns(ours, theirs, labels):
    assert ours(table_of(labels)) == pytest.approx(theirs(*labels), abs=1e-6)


@pytest.mark.parametrize("score", SCORES[:-1])
@settings(deadline=None, derandomize=True, max_examples=40)
@given(labelings(1, 5, 40), st.permutations(range(5)), st.permutations(range(7)))
def test_names_of_labels_and_empty_cells_change_nothing(score, labels, classes, clusters):
    table = table_of(labels)
    renamed = np.zeros((6, 9), np.int64)
    renamed[:5, 1:8] = table[np.ix_(classes, clusters)]
    assert score(renamed) == pytest.approx(score(table), abs=1e-12)


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
    assert ours(table_of((classes, clusters))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), [*PAIRS, AMI["min"]])
def test_at_the_size_where_pair_counts_pass_32_bits(ours, theirs):
    rng = np.random.default_rng(0)
    skewed = rng.choice(9, 100_000, p=[0.5, 0.3, 0.1, 0.05, 0.04, 0.0096, 3e-4, 8e-5, 2e-5])
    clusters = np.where(rng.random(100_000) < 0.1, skewed, rng.integers(0, 7, 100_000))
    table = contingency_table(jax.numpy.asarray(skewed), clusters)
    assert ours(table) == pytest.approx(theirs(skewed, clusters), abs=1e-9)


def test_pair_counts_are_exact_at_a_hundred_million_points():
    table = np.array([[33_333_333, 1, 7], [0, 44_444_444, 3], [11, 22_222_200, 1]], np.int64)
    n = int(table.sum())
    pairs = lambda counts: sum(Fraction(int(c) * (int(c) - 1), 2) for c in np.ravel(counts))  # noqa: E731
    both, classes, clusters = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    every = pairs([n])
    expected = classes * clusters / every
    assert metrics.rand_index(table) == float((every + 2 * both - classes - clusters) / every)
    assert metrics.adjusted_rand_index(table) == float(
        (both - expected) / ((classes + clusters) / 2 - expected)
    )


@pytest.mark.parametrize("average", AVERAGES)
def test_chance_is_the_mean_over_all_permutations(average):
    classes, clusters = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([1, 0, 0, 0, 0, 1, 2])
    information = sklearn.metrics.mutual_info_score
    # Equally often each, so once each will do.
    orders = set(itertools.permutations(classes.tolist()))
    expected = np.mean([information(order, clusters) for order in orders])
    entropies = information(classes, classes), information(clusters, clusters)
    bound = {
        "arithmetic": np.mean(entropies),
        "geometric": np.sqrt(np.prod(entropies)),
        "min": min(entropies),
        "max": max(entropies),
    }[average]
    ours = metrics.adjusted_mutual_information(table_of((classes, clusters)), average)
    assert ours == pytest.approx(
        (information(classes, clusters) - expected) / (bound - expected), abs=1e-12
    )


def test_chance_of_many_sizes_and_of_many_points():
    rng = np.random.default_rng(0)
    labels = [np.repeat(rng.permutation(90), np.arange(90)), rng.integers(0, 150, 4005)]
    table = contingency_table(*labels)
    assert len(np.unique(table.sum(1))) > 64  # more than are handled at a time
    for one, other in ((table, labels), (table.T, labels[::-1])):
        expected = sklearn.metrics.adjusted_mutual_info_score(*other)
        assert metrics.adjusted_mutual_information(one) == pytest.approx(expected, abs=1e-9)
    # (c - 1) (k - 1) / 2n is the first term of its expansion: no outer oracle goes so far.
    even = np.full((2, 2), 25_000_000)
    assert metrics.adjusted_mutual_information(even) == pytest.approx(-5e-9 / np.log(2), rel=1e-5)


@pytest.mark.parametrize("average", AVERAGES)
def test_chance_that_leaves_no_freedom_scores_0(average):
    for labels in (([0, 0, 1], [0, 1, 2]), ([0, 1, 2], [0, 0, 1]), ([0, 0, 0], [0, 1, 1])):
        assert metrics.adjusted_mutual_information(table_of(labels), average) == 0


tables = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**32 - 1)).map(
    lambda t: np.random.default_rng(t[2]).integers(0, 2 + t[2] % 9, t[:2]) + np.eye(*t[:2], 3, int)
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(tables)
def test_matching_is_scipys(table):
    table[0, 0] += 1
    classes, clusters = metrics.optimal_matching(table)
    best = scipy.optimize.linear_sum_assignment(table, maximize=True)
    assert table[classes, clusters].sum() == table[best].sum()
    assert len(classes) == len(clusters) == min(table.shape)
    assert len(set(clusters.tolist())) == len(clusters) and (np.diff(classes) > 0).all()
    accuracy = table[best].sum() / table.sum()
    assert metrics.clustering_accuracy(table) == pytest.approx(accuracy, abs=1e-12)
    assert metrics.purity(table) == pytest.approx(table.max(0).sum() / table.sum(), abs=1e-12)


def test_matching_of_large_tables_is_scipys():
    rng = np.random.default_rng(0)
    for shape in ((120, 120), (40, 150), (150, 40)):
        table = rng.integers(0, 10**12, shape)
        best = scipy.optimize.linear_sum_assignment(table, maximize=True)
        np.testing.assert_array_equal(metrics.optimal_matching(table), best)


def test_accuracy_and_purity_of_an_asymmetric_table():
    table = np.array([[4, 0, 3], [5, 1, 0]])
    assert metrics.clustering_accuracy(table) == 8 / 13  # 5 and 3, not 5, 1 and 3
    assert metrics.clustering_accuracy(table.T) == 8 / 13
    assert (metrics.purity(table), metrics.purity(table.T)) == (9 / 13, 9 / 13)
    assert (metrics.purity(np.diag([2, 1])[:, :1]), metrics.purity(np.ones((2, 1)))) == (1, 0.5)


def test_contingency_counts_every_block_and_adds_up(monkeypatch):
    monkeypatch.setattr("retrieval_jax.metrics.contingency._BLOCK", 7)
    rng = np.random.default_rng(0)
    classes, clusters = rng.integers(0, 3, 50).astype(np.uint8), rng.integers(0, 300, 50)
    expected = np.zeros((3, 300), np.int64)
    for pair in zip(classes, clusters, strict=True):
        expected[pair] += 1
    for put in (np.asarray, jax.numpy.asarray):
        table = contingency_table(put(classes), put(clusters), 3, 300)
        np.testing.assert_array_equal(table, expected)
        assert type(table) is np.ndarray and table.dtype == np.int64
    stream = np.full((3, 300), 2**40)
    for part in np.split(np.arange(50), [13]):
        before = stream.copy()
        added = metrics.add_batch(stream, classes[part], clusters[part])
        np.testing.assert_array_equal(stream, before)
        stream = added
    np.testing.assert_array_equal(stream, expected + 2**40)
    assert contingency_table([0, 2], [1, 0]).shape == (3, 2)


def test_counts_under_jit_leave_out_padding_and_add_up_over_devices():
    classes = np.array([0, 1, 1, -1, 2, 2**30, 1, 1], np.int32)
    clusters = np.array([1, 0, 0, 0, 2, 0, -1, 4], np.int32)
    mesh = Mesh(np.array(jax.devices()[:4]), "shards")
    rows = PartitionSpec("shards")

    def count(classes, clusters):
        return jax.lax.psum(contingency_counts(classes, clusters, 3, 4), "shards")

    sharded = jax.shard_map(count, mesh=mesh, in_specs=(rows, rows), out_specs=PartitionSpec())
    counts = jax.jit(sharded)(classes, clusters)
    assert counts.dtype == np.int32
    assert counts.tolist() == [[0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 1, 0]]


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
        (([2**32], [0], 5), r"they lie in 4294967296\.\.4294967296"),
        (([2**30], [1]), r"1073741825 × 2 were asked for"),
    ],
)
def test_wrong_labels_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        contingency_table(*arguments)


def test_wrong_shapes_and_options_are_named():
    with pytest.raises(ValueError, match=r"must be \[n\] and \[n\], not \(2,\) and \(3,\)"):
        contingency_counts([0, 1], [0, 1, 2], 2, 3)
    with pytest.raises(ValueError, match="0 × 3 were asked for"):
        contingency_counts([0], [0], 0, 3)
    for score in (metrics.normalized_mutual_information, metrics.adjusted_mutual_information):
        with pytest.raises(ValueError, match="one of arithmetic, geometric, min, max; it is 'avg'"):
            score(np.eye(2, dtype=int), "avg")
    for beta in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="beta must be above 0"):
            metrics.v_measure(np.eye(2, dtype=int), beta)


@pytest.mark.parametrize("score", SCORES)
def test_tables_that_are_none_are_refused(score):
    with pytest.raises(ValueError, match="holds no points"):
        score(np.zeros((2, 3), np.int64))
    for table in ([1, 2], [[3, -1]]):
        with pytest.raises(ValueError, match=r"is \[c, k\] counts, none negative"):
            score(table)


def test_pair_counts_are_exact_above_four_billion_points():
    half = 2_200_000_000
    for table in (
        np.diag([half, half]),
        np.array([[half, 12_345_678_901], [987_654_321, 3 * half]]),
    ):
        cells, rows, columns = (
            sum(Fraction(int(c)) * (int(c) - 1) for c in counts.ravel())
            for counts in (table, table.sum(1), table.sum(0))
        )
        n = int(table.sum())
        every = Fraction(n) * (n - 1)
        expected = rows * columns / every
        assert metrics.rand_index(table) == float((every + 2 * cells - rows - columns) / every)
        ari = (cells - expected) / ((rows + columns) / 2 - expected)
        assert metrics.adjusted_rand_index(table) == float(ari)
        fmi = float(cells * cells / (rows * columns)) ** 0.5
        assert metrics.fowlkes_mallows(table) == pytest.approx(fmi, rel=1e-15)
        # Chance gives (c - 1)(k - 1) / 2n, here 1e-10; a smaller table of the same shares.
        small = table / n
        entropy = [scipy.stats.entropy(p) for p in (small.sum(0), small.sum(1))]
        information = sum(entropy) - scipy.stats.entropy(small.ravel())
        nmi = information / np.mean(entropy)
        chance = 1 / (2 * n)
        ami = (information - chance) / (np.mean(entropy) - chance)
        assert metrics.normalized_mutual_information(table) == pytest.approx(nmi, rel=1e-12)
        assert metrics.adjusted_mutual_information(table) == pytest.approx(ami, abs=1e-10)


def test_labels_beyond_32_bits_are_in_no_table():
    counts = contingency_counts([0, 2**32, 1], [1, 1, 2**33], 2, 2)
    assert counts.tolist() == [[0, 1], [0, 0]]
    with pytest.raises(ValueError, match="classes must be integers; they are float64"):
        contingency_counts([0.5, 1.0], [0, 1], 2, 2)
    with pytest.raises(ValueError, match="num_classes must be an integer"):
        contingency_counts([0, 1], [0, 1], 2.0, 2)
    for score in SCORES:
        with pytest.raises(ValueError, match=r"\[c, k\] counts"):
            score(np.array([[0.5, 1.0]]))
    with jax.enable_x64(True):
        assert contingency_counts([0, 2**32, 1], [1, 1, 2**33], 2, 2).dtype == np.int32
        assert contingency_table([0, 0, 1], [0, 1, 1]).tolist() == [[1, 1], [0, 1]]
