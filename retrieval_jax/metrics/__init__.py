"""Scores of a clustering against classes or on its own, and of rankings against relevance.

Clustering scores are functions of a contingency table, which is counted once, exactly, and adds up
over batches and hosts. Scores of the first k neighbours are functions that jit, of which neighbours
are relevant. Scores of whole rankings, and silhouettes, are streamed over tiles of distances.
"""

from retrieval_jax.metrics.contingency import add_batch, contingency_counts, contingency_table
from retrieval_jax.metrics.full_ranking import RankingScores, full_ranking
from retrieval_jax.metrics.information import (
    adjusted_mutual_information,
    completeness,
    homogeneity,
    normalized_mutual_information,
    v_measure,
)
from retrieval_jax.metrics.matching import clustering_accuracy, optimal_matching, purity
from retrieval_jax.metrics.pairs import adjusted_rand_index, fowlkes_mallows, rand_index
from retrieval_jax.metrics.retrieval import (
    class_means,
    hit_at_k,
    knn_accuracy,
    mean_average_precision_at_k,
    mean_reciprocal_rank_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    relevance,
)
from retrieval_jax.metrics.silhouette import silhouette, silhouette_samples

__all__ = [
    "RankingScores",
    "add_batch",
    "adjusted_mutual_information",
    "adjusted_rand_index",
    "class_means",
    "clustering_accuracy",
    "completeness",
    "contingency_counts",
    "contingency_table",
    "fowlkes_mallows",
    "full_ranking",
    "hit_at_k",
    "homogeneity",
    "knn_accuracy",
    "mean_average_precision_at_k",
    "mean_reciprocal_rank_at_k",
    "ndcg_at_k",
    "normalized_mutual_information",
    "optimal_matching",
    "precision_at_k",
    "purity",
    "rand_index",
    "recall_at_k",
    "relevance",
    "silhouette",
    "silhouette_samples",
    "v_measure",
]
