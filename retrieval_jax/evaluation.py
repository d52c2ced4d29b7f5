"""Judges embeddings: arrays in, numbers out, with nothing known of the model that made them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from retrieval_jax import metrics, sharded
from retrieval_jax.ranking import Neighbours, share_kept


class Ranking(NamedTuple):
    """The nearest gallery images of every query, on the host."""

    cluster: Neighbours  # among the gallery images of the query's own cluster
    exhaustive: Neighbours  # among all gallery images


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
      k: neighbours a query.

    Returns:
      `Ranking` of [q, k] NumPy arrays.
    """
    probed = np.asarray(query_clusters)[:, None]  # one cell a query: its own
    found = Ranking(
        cluster=sharded.search_cells(queries, probed, gallery, gallery_clusters, centroids, k),
        exhaustive=sharded.nearest(queries, gallery, k),
    )
    return jax.tree.map(np.asarray, found)


def clustering_scores(labels: ArrayLike, clusters: ArrayLike) -> dict[str, float]:
    """NMI, RI and ARI of clusters int [n] against class labels int [n]."""
    table = metrics.contingency_table(labels, clusters)
    return {
        "nmi": metrics.normalized_mutual_information(table),
        "ri": metrics.rand_index(table),
        "ari": metrics.adjusted_rand_index(table),
    }


def retrieval_scores(
    found: Neighbours, query_labels: np.ndarray, gallery_labels: np.ndarray
) -> dict[str, float]:
    """Precision@5, precision@k and mAP@k for the k neighbours of each query, right by class.

    A neighbour that was not found counts as wrong.
    """
    relevant, positives = metrics.relevance(found.indices, query_labels, gallery_labels)
    k = relevant.shape[1]
    return {
        **{f"precision@{n}": float(metrics.precision_at_k(relevant, n)) for n in (5, k)},
        f"map@{k}": float(metrics.mean_average_precision_at_k(relevant, positives, k)),
    }


def kept(ranking: Ranking) -> dict[str, float]:
    """Share of the true 5 and k nearest neighbours that the restriction to the cluster keeps."""
    cutoffs = (5, ranking.exhaustive.indices.shape[1])
    return {f"@{n}": float(share_kept(ranking.exhaustive, ranking.cluster, n)) for n in cutoffs}
