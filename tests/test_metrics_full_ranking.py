"""Scores of whole rankings against a full sort in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_jax.metrics import RankingScores, full_ranking
from retrieval_jax.metrics.full_ranking import _full_ranking


def sorted_scores(queries, query_labels, gallery, gallery_labels, exclude_self=False):
    """[5, q]: by distances from float64 differences, sorted whole, ties by index."""
    scores = []
    for i, (query, label) in enumerate(zip(queries.astype(float), query_labels, strict=True)):
        squared = ((gallery.astype(float) - query) ** 2).sum(1)
        order = np.argsort(squared, kind="stable")
        order = order[order != i] if exclude_self else order
        relevant = gallery_labels[order] == label
        count = relevant.sum()
        if not count:
            scores.append([0, 0, 0, 0, 0])
            continue
        terms = relevant * np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
        scores.append(
            [
                terms.sum() / count,
                relevant[:count].mean(),
                terms[:count].sum() / count,
                1 / (relevant.argmax() + 1),
                count,
            ]
        )
    return np.array(scores).T


def check(*arguments, **keywords):
    found = full_ranking(*arguments, **keywords)
    keywords.pop("query_chunk", None)
    assert isinstance(found, RankingScores)
    np.testing.assert_allclose(found, sorted_scores(*arguments, **keywords), rtol=0, atol=1e-6)
    return found


def fixture(n=600, q=45, d=6):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(7, d))
    labels = rng.choice(7, n, p=[0.35, 0.2, 0.2, 0.1, 0.1, 0.04, 0.01])
    gallery = (centres[labels] + rng.normal(size=(n, d))).astype(np.float32)
    query_labels = rng.integers(0, 9, q)  # classes 7 and 8 have no positives
    queries = (centres[query_labels % 7] + rng.normal(size=(q, d))).astype(np.float32)
    return queries, query_labels, gallery, labels


def test_equal_to_a_full_sort():
    found = check(*fixture())
    assert found.positives.dtype == np.int32 and 0 in found.positives
    assert all(score.dtype == np.float32 for score in found[:4])


def test_bfloat16_is_scored_as_the_same_values_in_float32():
    queries, query_labels, gallery, labels = fixture(n=150)
    halves = jnp.bfloat16(queries), jnp.bfloat16(gallery)
    found, expected = (
        full_ranking(of[0], query_labels, of[1], labels)
        for of in (halves, [half.astype(jnp.float32) for half in halves])
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("query_chunk", [1, 7, 16, 1000])
def test_self_retrieval_leaves_the_query_out(query_chunk):
    _, _, gallery, labels = fixture(n=150)
    labels[3] = 99  # alone in its class: no positives
    found = check(gallery, labels, gallery, labels, exclude_self=True, query_chunk=query_chunk)
    assert found.positives[3] == 0 and found.reciprocal_rank[3] == 0


def test_the_first_rows_of_the_gallery_may_be_the_queries():
    _, _, gallery, labels = fixture(n=150)
    check(gallery[:20], labels[:20], gallery, labels, exclude_self=True)
    # Its own row is left out whatever its class.
    check(gallery[:20], labels[::-1][:20].copy(), gallery, labels, exclude_self=True)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.booleans())
def test_ties_are_broken_by_index(seed, values, exclude_self):
    rng = np.random.default_rng(seed)
    gallery = rng.integers(0, values, (24, 2)).astype(np.float32)
    # Eight of one class and eight queries of it: one shape, compiled once.
    labels = rng.permutation(np.repeat([-5, 0, 3], [8, 8, 8]))
    queries, query_labels = gallery[:9], labels[:9]
    query_labels = query_labels if exclude_self else rng.permutation(query_labels)
    check(queries, query_labels, gallery, labels, exclude_self=exclude_self, query_chunk=4)


def test_one_class_only_and_one_row_only():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(30, 3)).astype(np.float32)
    found = check(points, np.zeros(30, int), points, np.zeros(30, int), exclude_self=True)
    assert all((score == 1).all() for score in found[:4])
    found = full_ranking(points[:1], [4], points[:1], [4], exclude_self=True)
    assert [score.tolist() for score in found] == [[0.0]] * 4 + [[0]]
    check(points[:1], np.array([4]), points[:1], np.array([4]))


def test_far_from_the_origin():
    queries, query_labels, gallery, labels = fixture(n=200, q=20)
    # On a grid of 1/64, which float32 holds at 10,000 too.
    queries, gallery = (np.round(x * 64) / 64 + np.float32(1e4) for x in (queries, gallery))
    check(queries, query_labels, gallery, labels)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12, 1e25])
def test_huge_and_tiny_scales(scale):
    queries, query_labels, gallery, labels = fixture(n=200, q=20)
    scaled = [(x * np.float32(scale)) for x in (queries, gallery)]
    check(scaled[0], query_labels, scaled[1], labels)


def test_under_64_bits():
    queries, query_labels, gallery, labels = fixture(n=60, q=9)
    with jax.enable_x64(True):
        found = check(queries, query_labels, gallery, labels)
        assert all(score.dtype == np.float32 for score in found[:4])
        # Differences that float32 has not, and ties.
        queries, gallery = (1 + 1e-9 * np.round(x.astype(float), 1) for x in (queries, gallery))
        found = check(queries, query_labels, gallery, labels)
        assert all(score.dtype == np.float64 for score in found[:4])


def test_no_queries_and_labels_of_text():
    queries, query_labels, gallery, labels = fixture(n=60, q=9)
    found = full_ranking(np.zeros((0, 6)), [], gallery, labels)
    assert [score.shape for score in found] == [(0,)] * 5
    names = np.array(list("abcdefghi"))
    found = full_ranking(
        queries, names[query_labels], gallery, names[labels], query_chunk=np.int64(16)
    )
    np.testing.assert_array_equal(found, full_ranking(queries, query_labels, gallery, labels))
    with pytest.raises(ValueError, match="query_chunk must be an integer"):
        full_ranking(queries, query_labels, gallery, labels, query_chunk=2.0)


def test_memory_does_not_grow_with_the_queries():
    n, q, d, chunk = 20_000, 5_000, 8, 16
    row = np.zeros(q, np.int32)
    arguments = (np.zeros((q, d), np.float32), row, row, row, np.zeros((n, d), np.float32))
    compiled = _full_ranking.lower(*arguments, np.zeros(n, np.int32), n // 10, chunk).compile()
    # As the docstring has it, beside a copy or two of the gallery: of 400 MB for q × n.
    limit = 40 * chunk * n + 3 * 4 * n * d + 20 * q
    assert compiled.memory_analysis().temp_size_in_bytes < limit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": np.zeros((2, 4))}, "queries have 4 features, but the gallery has 3"),
        ({"queries": np.full((2, 3), np.nan)}, "queries must be finite"),
        ({"gallery": np.zeros((0, 3))}, "gallery must be a non-empty"),
        ({"query_labels": [1]}, "query_labels must be 2 integers"),
        ({"gallery_labels": [0.0, 1.0]}, "gallery_labels must be 2 integers"),
        ({"query_chunk": 0}, "query_chunk must be at least 1"),
        (
            {"queries": np.zeros((3, 3)), "query_labels": [0, 1, 1], "exclude_self": True},
            "there are 3 queries, but 2 rows",
        ),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {
        "queries": np.zeros((2, 3)),
        "query_labels": [0, 1],
        "gallery": np.zeros((2, 3)),
        "gallery_labels": [0, 1],
    }
    with pytest.raises(ValueError, match=message):
        full_ranking(**(arguments | change))
