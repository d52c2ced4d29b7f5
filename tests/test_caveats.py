"""Conditions under which a score means something else."""

import numpy as np
import pytest

from retrieval_jax.caveats import caveats, ceilings, copies, empty_clusters, unasked
from retrieval_jax.data.images import ImageSet
from retrieval_jax.data.split import Split
from retrieval_jax.report.results import Clustering, Retrieval, RetrievalScores, Score, Scores

pytestmark = pytest.mark.fast


def clustering(*sizes):
    return Clustering(len(sizes), 0.0, 1, True, sizes)


def test_empty_clusters_are_told_with_what_leaves_them_empty():
    assert empty_clusters(clustering(1, 2), np.eye(3)) == []
    same = np.repeat(np.eye(2), 3, axis=0)
    assert empty_clusters(clustering(3, 3, 0, 0), same) == [
        "2 of the 4 clusters are empty: the gallery has only 2 distinct embeddings."
    ]
    assert empty_clusters(clustering(6, 0), np.eye(6)) == ["1 of the 2 clusters is empty."]


def test_copies_are_counted_as_numpy_counts_them():
    rng = np.random.default_rng(0)
    gallery, queries = rng.integers(0, 40, 50), rng.integers(0, 80, 20)
    leaked = sum(query in gallery.tolist() for query in queries.tolist())
    again = 50 - len(set(gallery.tolist()))
    first, second = copies(gallery, queries)
    assert first.startswith(f"{leaked} of the 20 queries have an exact copy")
    assert second == f"{again} of the 50 gallery images are exact copies of another."
    assert copies(np.arange(3), np.arange(3, 5)) == []


def test_a_ceiling_is_what_the_best_ranking_has():
    gallery, queries = np.array([0] * 7 + [1] * 3 + [2]), np.array([0, 0, 1, 2])
    ranked = [[label == query for label in sorted(gallery, key=lambda x: x != query)]
              for query in queries]  # fmt: skip
    best = np.mean([np.mean(row[:5]) for row in ranked])
    (said,) = ceilings([1, 5], gallery, queries, ["ant", "bee", "cow"])
    assert said == (
        f"precision@5 is {best:.4f} at best: 2 of the 4 queries have fewer than 5 gallery images "
        "of their class (cow has 1)."
    )


def test_classes_without_a_query_are_named():
    names = ["ant", "bee", "cow", "dog", "eel"]
    gallery = np.array([0, 0, 0, 1, 2, 2, 3, 4])
    assert unasked(gallery, np.arange(5), names) == []
    (said,) = unasked(gallery, np.array([0]), names)
    assert said.startswith("4 of the 5 classes have no query") and "cow (2 images)" in said
    assert said.endswith("dog (1 image), ….")


def test_a_run_has_them_all_and_a_sound_one_none():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 2, 2, 1), np.uint8)
    parts = Split(np.arange(20), np.arange(0), np.arange(20, 24))
    found = RetrievalScores({"5": Score(1.0)}, {}, {})
    scores = Scores(clustering(20), Retrieval(exhaustive=found))
    data = ImageSet(pixels, np.arange(24) % 2, ("cat", "dog"), "")
    assert caveats(scores, np.eye(20), data, parts) == ()
    pixels[20] = pixels[0]
    labels = np.array([0] * 3 + [1] * 17 + [0, 1, 1, 1])
    scores = Scores(clustering(20, 0), Retrieval(exhaustive=found))
    told = caveats(scores, np.eye(20), data._replace(labels=labels), parts)
    assert [line.split(" ", 1)[0] for line in told] == ["1", "1", "precision@5"]
