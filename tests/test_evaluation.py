"""Scores and their chance levels against scikit-learn and simulation; baselines against NumPy."""

import jax
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from retrieval_jax import evaluation, metrics
from retrieval_jax.baselines import colour_histogram, embed, raw_pixels
from retrieval_jax.data.images import digits, names_of, view
from retrieval_jax.evaluation import judge, score_clusters, score_retrieval, whole_rankings
from retrieval_jax.ranking import Neighbours


def blobs(n=300, d=4, classes=3, seed=0):
    """Points around their classes' centres, which overlap."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = rng.normal(0, 1.5, (classes, d))
    return (centres[labels] + rng.normal(size=(n, d))).astype(np.float32), labels


@pytest.fixture(scope="module")
def judged():
    points, labels = blobs()
    gallery, queries, gallery_labels, query_labels = (
        *(points[60:], points[:60]),
        *(labels[60:], labels[:60]),
    )
    scores = judge(
        jax.random.key(0), gallery, queries, gallery_labels, query_labels, k=5, neighbours=30
    )
    return scores, gallery, queries, gallery_labels, query_labels


def test_an_embedding_is_judged_as_scikit_learn_judges_it(judged):
    scores, gallery, queries, gallery_labels, query_labels = judged
    assert scores.clustering.k == 5 and sum(scores.clustering.sizes) == 240
    assert scores.features == 4 and scores.variance_kept is None
    search = NearestNeighbors(n_neighbors=240, algorithm="brute").fit(gallery.astype(np.float64))
    _, order = search.kneighbors(queries.astype(np.float64))
    relevant = gallery_labels[order] == query_labels[:, None]
    positives = relevant.sum(1)
    exhaustive = scores.retrieval.exhaustive
    for cut in (5, 30):
        first = relevant[:, :cut]
        precisions = np.cumsum(first, 1) / np.arange(1, cut + 1)
        average = (precisions * first).sum(1) / np.minimum(positives, cut)
        assert exhaustive.precision_at[str(cut)].value == pytest.approx(first.mean())
        recall = (first.sum(1) / positives).mean()
        assert exhaustive.recall_at[str(cut)].value == pytest.approx(recall)
        assert exhaustive.map_at[str(cut)].value == pytest.approx(average.mean())
    falling = -np.arange(240.0)
    every = [sklearn_metrics.average_precision_score(row, falling) for row in relevant]
    assert exhaustive.map.value == pytest.approx(np.mean(every))
    precisions = np.cumsum(relevant, 1) / np.arange(1, 241)
    inside = np.arange(240) < positives[:, None]
    at_r = (precisions * relevant * inside).sum(1) / positives
    assert exhaustive.map_at_r.value == pytest.approx(at_r.mean())
    votes = KNeighborsClassifier(20).fit(gallery, gallery_labels).predict(queries)
    # scikit-learn breaks ties of votes by the lower class, so a few queries may differ.
    accuracy = (votes == query_labels).mean()
    assert exhaustive.knn_accuracy.value == pytest.approx(accuracy, abs=0.05)
    commonest = np.bincount(gallery_labels).argmax()
    assert exhaustive.knn_accuracy.chance == (query_labels == commonest).mean()
    assert scores.retrieval.cluster.map is None
    assert scores.retrieval.kept["5"].value > scores.retrieval.kept["5"].chance > 0


def test_without_labels_nothing_is_zero_but_absent(judged):
    _, gallery, queries, *_ = judged
    scores = judge(jax.random.key(0), gallery, queries, None, None, k=5, neighbours=30)
    assert scores.retrieval.cluster is scores.retrieval.exhaustive is None
    for found in (scores.clustering.gallery, scores.clustering.queries):
        assert found._replace(silhouette=None) == evaluation.ClusterScores()
        assert -1 <= found.silhouette.value <= 1
    assert scores.retrieval.kept == judged[0].retrieval.kept
    one = judge(jax.random.key(0), gallery, queries, None, None, k=1, neighbours=30)
    assert one.clustering.gallery.silhouette is None, "there is no other cluster"


def test_cluster_scores_are_scikit_learns():
    points, labels = blobs(seed=1)
    clusters = np.random.default_rng(2).permutation(labels * 2 + (points[:, 0] > 0))
    found = score_clusters(points, clusters, labels, 7, seed=0)
    table = sklearn_metrics.cluster.contingency_matrix(labels, clusters)
    assert np.array(found.counts)[:, : table.shape[1]].tolist() == table.tolist()
    assert np.array(found.counts).shape == (3, 7), "empty clusters have a column"
    silhouette = sklearn_metrics.silhouette_score(points, clusters)
    assert found.silhouette.value == pytest.approx(silhouette)
    for name, oracle in (
        ("nmi", sklearn_metrics.normalized_mutual_info_score),
        ("ri", sklearn_metrics.rand_score),
        ("ari", sklearn_metrics.adjusted_rand_score),
        ("ami", sklearn_metrics.adjusted_mutual_info_score),
    ):
        assert getattr(found, name).value == pytest.approx(oracle(labels, clusters))
    assert score_clusters(points, clusters, labels, 4000, seed=0).counts is None, "too many"


def test_chance_of_clusters_is_what_shuffled_labels_have():
    points, labels = blobs(seed=3)
    clusters = np.random.default_rng(0).choice(5, 300, p=[0.4, 0.3, 0.1, 0.1, 0.1])
    found = score_clusters(points, clusters, labels, 5, seed=0)
    rng = np.random.default_rng(1)
    shuffled = [metrics.contingency_table(rng.permutation(labels), clusters) for _ in range(200)]
    for name, measure, tolerance in (
        ("nmi", metrics.normalized_mutual_information, 0.005),
        ("ri", metrics.rand_index, 0.002),
        ("ari", metrics.adjusted_rand_index, 0.004),
        ("ami", metrics.adjusted_mutual_information, 0.004),
        ("accuracy", metrics.clustering_accuracy, 0.02),
    ):
        expected = np.mean([measure(table) for table in shuffled])
        assert getattr(found, name).chance == pytest.approx(expected, abs=tolerance), name
        assert getattr(found, name).chance < getattr(found, name).value + 0.03


def test_chance_of_retrieval_is_what_random_rows_have():
    rng = np.random.default_rng(0)
    gallery_labels = rng.choice(3, 80, p=[0.6, 0.3, 0.1])
    query_labels = np.repeat([0, 1, 2], 1500)
    points = rng.normal(size=(80, 2)).astype(np.float32)
    indices = rng.permuted(np.tile(np.arange(80), (4500, 1)), axis=1)[:, :12]
    indices[::2, 7:] = -1  # small clusters hold fewer
    found = Neighbours(indices, np.zeros(indices.shape))
    scores = score_retrieval(found, query_labels, gallery_labels)
    for cuts in (scores.precision_at, scores.recall_at, scores.map_at):
        assert list(cuts) == ["5", "12"]
        for score in cuts.values():
            assert score.chance == pytest.approx(score.value, rel=0.03)
    # Rankings of every row: queries at random places.
    queries = rng.normal(size=(4500, 2)).astype(np.float32)
    labels = rng.permuted(np.tile(gallery_labels, (300, 1)), axis=1)
    values = []
    for shuffled, chosen in zip(labels, np.array_split(rng.permutation(4500), 300), strict=True):
        part = whole_rankings(queries[chosen], query_labels[chosen], points, shuffled)
        values.append([part.average_precision.mean(), part.average_precision_at_r.mean()])
    whole = evaluation.score_whole_ranking(
        scores, found, queries, query_labels, points, gallery_labels
    )
    average, at_r = np.mean(values, 0)
    assert whole.map.chance == pytest.approx(average, rel=0.03)
    assert whole.map_at_r.chance == pytest.approx(at_r, rel=0.06)


def test_whole_rankings_are_those_of_the_device():
    points, labels = blobs(400, seed=5)
    arguments = points[:90], labels[:90], points[90:], labels[90:]
    ours, theirs = whole_rankings(*arguments), metrics.full_ranking(*arguments)
    for name in ours._fields:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-5)
    # A class that the gallery lacks has 0 everywhere.
    missing = whole_rankings(points[:1], np.array([9]), points, labels)
    assert [column.tolist() for column in missing] == [[0], [0], [0]]


def test_equal_distances_count_with_their_mean_rank():
    rng = np.random.default_rng(0)
    gallery = rng.integers(0, 3, (40, 1)).astype(np.float32)
    labels = rng.integers(0, 2, 40)
    query, label = np.array([[0.9]], np.float32), np.array([1])
    found = whole_rankings(query, label, gallery, labels)
    ranks = []
    for _ in range(4000):  # of all orders of equal rows
        order = rng.permutation(40)
        ranking = order[np.argsort(np.abs(gallery[order, 0] - query[0, 0]), kind="stable")]
        ranks.append(np.flatnonzero(labels[ranking] == 1) + 1)
    expected = (np.arange(1, labels.sum() + 1) / np.mean(ranks, 0)).mean()
    assert found.average_precision[0] == pytest.approx(expected, rel=5e-3)


def test_the_vote_is_that_of_the_device():
    rng = np.random.default_rng(0)
    indices = rng.integers(-1, 30, (200, 7))
    indices[0] = -1
    gallery_labels, query_labels = rng.integers(0, 4, 30), rng.integers(0, 4, 200)
    accuracy = (evaluation._elected(indices, gallery_labels) == query_labels).mean()
    device = metrics.knn_accuracy(indices, query_labels, gallery_labels)
    assert accuracy == pytest.approx(float(device))


@pytest.mark.fast
def test_a_colour_histogram_counts_colours():
    rng = np.random.default_rng(0)
    for channels in (1, 2, 3, 4):
        images = rng.integers(0, 256, (5, 6, 7, channels), dtype=np.uint8)
        counted = min(channels, 3)
        found = colour_histogram(images)
        for image, row in zip(images, found, strict=True):
            pixels = image[..., :counted].reshape(-1, counted)
            ranges = [(0, 256)] * counted
            counts, _ = np.histogramdd(pixels.astype(float), bins=8, range=ranges)
            np.testing.assert_allclose(row, np.sqrt(counts.ravel() / 42), rtol=1e-6)


@pytest.mark.fast
def test_narrow_features_are_padded_and_wide_ones_projected(monkeypatch):
    images = digits().images[:300]
    features = {"pixels": raw_pixels, "histogram": colour_histogram}
    found = embed(features, images, gallery=250, width=20, seed=3)
    flat = images.reshape(300, 64) / np.float32(255)
    histogram, pixels = found["histogram"], found["pixels"]
    assert (histogram.features, histogram.variance_kept) == (8, None)
    np.testing.assert_array_equal(histogram.rows[:, :8], colour_histogram(images))
    assert not histogram.rows[:, 8:].any()
    assert pixels.features == 64 and pixels.rows.dtype == np.float32
    exact = PCA(20, svd_solver="full").fit(flat[:250].astype(np.float64))
    kept = exact.explained_variance_ratio_.sum()
    assert pixels.variance_kept == pytest.approx(kept, abs=1e-3)
    distances = np.linalg.norm(exact.transform(flat)[:, None] - exact.transform(flat[:40]), axis=2)
    ours = np.linalg.norm(pixels.rows[:, None] - pixels.rows[:40], axis=2)
    np.testing.assert_allclose(ours, distances, atol=0.05)
    # The same read in another way and in other batches, and the queries have no say in it.
    monkeypatch.setattr("retrieval_jax.baselines._NUMBERS", 64 * 17)
    again = embed(features, view(images, np.arange(300)), gallery=250, width=20, seed=3)
    np.testing.assert_allclose(again["pixels"].rows, pixels.rows, atol=1e-5)
    changed = images.copy()
    changed[250:] = 0
    other = embed(features, changed, gallery=250, width=20, seed=3)
    np.testing.assert_allclose(other["pixels"].rows[:250], pixels.rows[:250], atol=1e-5)


@pytest.mark.fast
def test_a_gallery_smaller_than_the_width_is_filled_up_with_zeros():
    images = digits().images[:9]
    found = embed({"pixels": raw_pixels}, images, gallery=6, width=20, seed=0)["pixels"]
    assert not found.rows[:, 6:].any() and found.rows[:, :5].any()
    assert found.variance_kept == pytest.approx(1.0, abs=1e-5)


@pytest.mark.fast
def test_images_are_called_by_their_files_or_rows():
    assert names_of(None, np.array([3, 1])) == [3, 1]
    assert names_of(("a", "b", "c"), np.array([2, 0])) == ["c", "a"]
