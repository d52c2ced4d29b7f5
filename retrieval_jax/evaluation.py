"""Judges embeddings: arrays in, numbers out, with nothing known of what made them.

`judge` groups an embedding, ranks it and scores both. A score stands beside its chance level, which
is what random clusters of the same sizes, or random gallery rows in place of the neighbours found,
have in the mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from retrieval_jax import metrics, sharded
from retrieval_jax.kmeans import predict
from retrieval_jax.metrics.chance import expected_precision, expected_rand_index, random_table
from retrieval_jax.ranking import Neighbours, share_kept
from retrieval_jax.report.results import (
    Clustering,
    ClusterScores,
    Retrieval,
    RetrievalScores,
    Score,
    Scores,
)

VOTERS = 20  # neighbours that vote on a query's class, one vote each
_SILHOUETTES = 2000  # rows that silhouettes are taken of: their time grows with the square
_RANDOM_TABLES = 10
_CELLS = 10_000  # classes × clusters whose counts are still worth a place in results.json


class Clusters(NamedTuple):
    """What k-means found, on the host.

    Attributes:
      gallery: int32 [n], the cluster of each row.
      queries: int32 [q], that of the nearest centroid.
      centroids: float32 [k, d].
      inertia: float32 scalar, the sum of squared distances of the gallery to its centroids.
      iterations: int scalar.
      converged: bool scalar.
    """

    gallery: np.ndarray
    queries: np.ndarray
    centroids: np.ndarray
    inertia: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray


class Ranking(NamedTuple):
    """The nearest gallery images of every query, on the host."""

    cluster: Neighbours  # among the gallery images of the query's own cluster
    exhaustive: Neighbours  # among all gallery images


def judge(
    key: jax.Array,
    gallery: np.ndarray,
    queries: np.ndarray,
    gallery_labels: np.ndarray | None,
    query_labels: np.ndarray | None,
    *,
    k: int,
    neighbours: int,
    restarts: int = 10,
    max_iterations: int = 300,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Scores:
    """Groups, ranks and scores an embedding, on all devices.

    Args:
      key: of k-means.
      gallery: float32 [n, d].
      queries: float32 [q, d].
      gallery_labels: int [n], or None.
      query_labels: int [q], or None.
      k: clusters, 1 ≤ k ≤ n.
      neighbours: found for each query, ≥ 5.
      restarts: of k-means.
      max_iterations: per restart.
      tolerance: as `retrieval_jax.kmeans.kmeans`.
      seed: of chance levels and of the silhouettes' sample.

    Returns:
      `Scores`; without labels silhouettes and the share of true neighbours kept alone.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> labels = np.arange(60) % 2
      >>> points = (rng.normal(size=(60, 3)) + 9 * labels[:, None]).astype(np.float32)
      >>> found = judge(jax.random.key(0), points[10:], points[:10], labels[10:], labels[:10],
      ...               k=2, neighbours=5)
      >>> found.clustering.gallery.nmi.value, found.retrieval.exhaustive.precision_at["5"]
      (1.0, Score(value=1.0, chance=0.5))
    """
    clusters = cluster(
        key,
        gallery,
        queries,
        k,
        restarts=restarts,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )
    ranking = rank(
        queries, clusters.queries, gallery, clusters.gallery, clusters.centroids, neighbours
    )
    return score(gallery, queries, clusters, ranking, gallery_labels, query_labels, seed=seed)


def cluster(
    key: jax.Array,
    gallery: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    restarts: int,
    max_iterations: int,
    tolerance: float,
) -> Clusters:
    """Groups the gallery by k-means, on all devices, and predicts the cluster of each query."""
    found = sharded.kmeans(
        key,
        gallery,
        k,
        restarts=restarts,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )
    found = jax.tree.map(np.asarray, found)
    return Clusters(
        gallery=found.labels,
        queries=np.asarray(predict(queries, found.centroids)),
        centroids=found.centroids,
        inertia=found.inertia,
        iterations=found.iterations,
        converged=found.converged,
    )


def rank(
    queries: np.ndarray,
    query_clusters: ArrayLike,
    gallery: np.ndarray,
    gallery_clusters: ArrayLike,
    centroids: ArrayLike,
    k: int,
) -> Ranking:
    """Ranks the gallery for every query, on all devices: in its cluster, and exhaustively.

    Args:
      queries: float32 [q, d] embeddings.
      query_clusters: int [q].
      gallery: float32 [n, d].
      gallery_clusters: int [n].
      centroids: float32 [clusters, d].
      k: neighbours per query.

    Returns:
      `Ranking` of [q, k] NumPy arrays.
    """
    probed = np.asarray(query_clusters)[:, None]  # one cell per query: its own
    found = Ranking(
        cluster=sharded.search_cells(queries, probed, gallery, gallery_clusters, centroids, k),
        exhaustive=sharded.nearest(queries, gallery, k),
    )
    return jax.tree.map(np.asarray, found)


def score(
    gallery: np.ndarray,
    queries: np.ndarray,
    clusters: Clusters,
    ranking: Ranking,
    gallery_labels: np.ndarray | None,
    query_labels: np.ndarray | None,
    *,
    seed: int,
) -> Scores:
    """The scores of an embedding's clusters and neighbours; arguments as `judge`."""
    k = len(clusters.centroids)
    sizes = np.bincount(clusters.gallery, minlength=k)
    clustering = Clustering(
        k=k,
        inertia=float(clusters.inertia),
        iterations=int(clusters.iterations),
        converged=bool(clusters.converged),
        sizes=tuple(sizes.tolist()),
        gallery=score_clusters(gallery, clusters.gallery, gallery_labels, k, seed),
        queries=score_clusters(queries, clusters.queries, query_labels, k, seed),
    )
    in_cluster = exhaustive = None
    if gallery_labels is not None and query_labels is not None:
        in_cluster = score_retrieval(ranking.cluster, query_labels, gallery_labels)
        exhaustive = score_whole_ranking(
            score_retrieval(ranking.exhaustive, query_labels, gallery_labels),
            ranking.exhaustive,
            queries,
            query_labels,
            gallery,
            gallery_labels,
        )
    # A random cluster of the same size holds this share of any neighbours.
    chance = float(sizes[clusters.queries].mean() / len(gallery))
    kept = {
        str(n): Score(float(share_kept(ranking.exhaustive, ranking.cluster, n)), chance)
        for n in _cutoffs(ranking.exhaustive)
    }
    return Scores(clustering, Retrieval(in_cluster, exhaustive, kept), gallery.shape[1])


def score_clusters(
    points: np.ndarray, clusters: np.ndarray, labels: np.ndarray | None, k: int, seed: int
) -> ClusterScores:
    """Scores clusters int [n] of points [n, d] against class labels int [n] from 0, if any.

    Chance is exact for RI, and 0 by definition for ARI and AMI; for NMI and the accuracy by
    matching it is the mean of ten random tables of the same class and cluster sizes. Silhouettes
    are those of 2,000 points drawn by the seed, and absent where these are in fewer than two
    clusters or each in its own. Counts are absent beyond 10,000 cells.

    Example:
      >>> points = np.array([[0.0], [1.0], [8.0], [9.0]])
      >>> found = score_clusters(points, np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0]), 2, seed=0)
      >>> found.accuracy.value, round(found.ri.chance, 3), found.counts
      (1.0, 0.556, ((0, 2), (2, 0)))
    """
    silhouette = _sampled_silhouette(points, clusters, seed)
    if labels is None:
        return ClusterScores(silhouette=silhouette)
    table = metrics.contingency_table(labels, clusters)
    rng = np.random.default_rng(seed)
    random = [random_table(rng, table) for _ in range(_RANDOM_TABLES)]

    def by_tables(measure: Callable[[np.ndarray], float]) -> Score:
        return Score(measure(table), float(np.mean([measure(other) for other in random])))

    counts = np.pad(table, ((0, 0), (0, k - table.shape[1])))
    return ClusterScores(
        nmi=by_tables(metrics.normalized_mutual_information),
        ri=Score(metrics.rand_index(table), expected_rand_index(table)),
        ari=Score(metrics.adjusted_rand_index(table), 0.0),
        ami=Score(metrics.adjusted_mutual_information(table), 0.0),
        accuracy=by_tables(metrics.clustering_accuracy),
        silhouette=silhouette,
        counts=tuple(map(tuple, counts.tolist())) if counts.size <= _CELLS else None,
    )


def score_retrieval(
    found: Neighbours, query_labels: np.ndarray, gallery_labels: np.ndarray
) -> RetrievalScores:
    """Precision, recall and mAP at 5 and k of the k neighbours of each query, right by class.

    A neighbour that was not found counts as wrong, and is missing from the chance level too.

    Example:
      >>> found = Neighbours(np.array([[0, 1, 2, 3, 4]]), np.zeros((1, 5)))
      >>> labels = np.array([1, 1, 0, 1, 0, 0, 0, 0])
      >>> score_retrieval(found, np.array([1]), labels).precision_at["5"]
      Score(value=0.6000000238418579, chance=0.375)
    """
    cuts = _cutoffs(found)
    positives, values = _at_cutoffs(found.indices, query_labels, gallery_labels, cuts)
    counts, n = np.asarray(positives, np.int64), len(gallery_labels)
    precision, recall, average = {}, {}, {}
    for cut, (precise, recalled, averaged) in zip(cuts, np.asarray(values), strict=True):
        depth = (np.asarray(found.indices)[:, :cut] >= 0).sum(1)
        precision[str(cut)] = Score(float(precise), float((counts / n * depth / cut).mean()))
        recall[str(cut)] = Score(float(recalled), float((depth / n * (counts > 0)).mean()))
        average[str(cut)] = Score(
            float(averaged), expected_precision(counts, n, depth, np.clip(counts, 1, cut))
        )
    return RetrievalScores(precision, recall, average)


@partial(jax.jit, static_argnames="cuts")
def _at_cutoffs(
    indices: ArrayLike, query_labels: ArrayLike, gallery_labels: ArrayLike, cuts: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Positives [q]; precision, recall and mAP at each cut, [cuts, 3]. One program, not twenty."""
    relevant, positives = metrics.relevance(indices, query_labels, gallery_labels)
    rows = [
        jnp.stack(
            [
                metrics.precision_at_k(relevant, cut),
                metrics.recall_at_k(relevant, positives, cut),
                metrics.mean_average_precision_at_k(relevant, positives, cut),
            ]
        )
        for cut in cuts
    ]
    return positives, jnp.stack(rows)


def score_whole_ranking(
    scores: RetrievalScores,
    found: Neighbours,
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
) -> RetrievalScores:
    """Adds MAP@R and mAP of the rankings of the whole gallery, and the accuracy of kNN.

    The 20 nearest of the neighbours found (all, where they are fewer) vote on a query's class, one
    vote each; of classes with equal votes the one with the nearest neighbour wins. Its chance level
    is what the gallery's commonest class gets.
    """
    n = len(gallery_labels)
    whole = whole_rankings(queries, query_labels, gallery, gallery_labels)
    most = np.maximum(whole.positives, 1)
    elected = _elected(np.asarray(found.indices)[:, :VOTERS], gallery_labels)
    commonest = np.bincount(gallery_labels).argmax()
    return scores._replace(
        map_at_r=Score(
            float(whole.average_precision_at_r.mean()),
            expected_precision(whole.positives, n, whole.positives, most),
        ),
        map=Score(
            float(whole.average_precision.mean()),
            expected_precision(whole.positives, n, np.full_like(most, n), most),
        ),
        knn_accuracy=Score(
            float((elected == query_labels).mean()), float((query_labels == commonest).mean())
        ),
    )


def _elected(indices: np.ndarray, gallery_labels: np.ndarray) -> np.ndarray:
    """The class int [q] that most of the neighbours int [q, m] have, of equals the nearest one's.

    As in `retrieval_jax.metrics.knn_accuracy`, which takes a second to compile.
    """
    voters = np.where(indices >= 0, gallery_labels[indices], -1)
    votes = (voters[:, :, None] == voters[:, None, :]).sum(2) * (voters >= 0)
    return voters[np.arange(len(voters)), votes.argmax(1)]


class WholeRankings(NamedTuple):
    """Of each query, as in `retrieval_jax.metrics.RankingScores`: float64 [q], but int64 [q]."""

    average_precision: np.ndarray
    average_precision_at_r: np.ndarray
    positives: np.ndarray


def whole_rankings(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
) -> WholeRankings:
    """Two scores of `retrieval_jax.metrics.full_ranking`, on the host.

    Rows at equal distances count with the rank that they have in the mean over all orders, where
    that function takes the lower row first. NumPy sorts 57,000 distances in half a millisecond: the
    digits are scored in a fraction of the time that the program takes to compile, and CIFAR-10 no
    slower. Time grows with q · n · (d + log n), memory with some 30 MB per core beside a copy of
    the gallery.

    Args:
      queries: float32 [q, d].
      query_labels: int [q].
      gallery: float32 [n, d].
      gallery_labels: int [n].

    Example:
      >>> points = np.array([[0.0], [1.0], [3.0]], np.float32)
      >>> found = whole_rankings(points[:1], np.array([1]), points, np.array([0, 1, 1]))
      >>> found.average_precision.round(3).tolist(), found.average_precision_at_r.tolist()
      ([0.583], [0.25])
    """
    origin = gallery.mean(0)
    gallery, queries = gallery - origin, queries - origin
    squares = np.einsum("nd,nd->n", gallery, gallery)
    classes = np.unique(query_labels)
    members = {label: np.flatnonzero(gallery_labels == label) for label in classes.tolist()}

    def score(start: int) -> list[tuple[float, float, int]]:
        part = slice(start, start + tile)
        distances = squares - 2 * queries[part] @ gallery.T
        return [
            _precisions(row, members[label])
            for row, label in zip(distances, query_labels[part].tolist(), strict=True)
        ]

    tile = max((1 << 21) // len(gallery), 1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # sorting releases the interpreter's lock
        found = list(chain.from_iterable(pool.map(score, range(0, len(queries), tile))))
    average, at_r, positives = (np.array(column) for column in zip(*found, strict=True))
    return WholeRankings(average, at_r, positives)


def _precisions(distances: np.ndarray, members: np.ndarray) -> tuple[float, float, int]:
    """AP, AP@R and R of one query, of float32 [n] distances and the rows of its class."""
    count = len(members)
    if count == 0:
        return 0.0, 0.0, 0
    own, every = np.sort(distances[members]), np.sort(distances)
    first, last = (np.searchsorted(every, own, side) for side in ("left", "right"))
    own_first, own_last = (np.searchsorted(own, own, side) for side in ("left", "right"))
    hits, equal = np.arange(1, count + 1), own_last - own_first
    # Of t rows of other classes at the distance of p of its own, t j / (p + 1) are before the j-th.
    tied = (last - first - equal) * (hits - own_first) / (equal + 1)
    ranks = hits + first - own_first + tied
    precisions = hits / ranks
    return precisions.sum() / count, precisions[ranks <= count].sum() / count, count


def _cutoffs(found: Neighbours) -> tuple[int, ...]:
    k = found.indices.shape[1]
    return (5, k) if k > 5 else (k,)


def _sampled_silhouette(points: np.ndarray, clusters: np.ndarray, seed: int) -> Score | None:
    from sklearn.metrics import silhouette_score  # the project's own takes longer to compile

    sample = np.random.default_rng(seed).permutation(len(points))[:_SILHOUETTES]
    if not 2 <= len(np.unique(clusters[sample])) < len(sample):
        return None
    return Score(float(silhouette_score(points[sample].astype(np.float64), clusters[sample])))
