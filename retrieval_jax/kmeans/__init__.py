"""k-means as pure, jitted functions on arrays: whole sets, streams of batches, and many devices."""

from retrieval_jax.kmeans.assignment import predict, transform
from retrieval_jax.kmeans.balanced import BalancedKMeansResult, balanced_kmeans
from retrieval_jax.kmeans.choice import KChoice, choose_k, match_centroids
from retrieval_jax.kmeans.fit import KMeansResult, kmeans
from retrieval_jax.kmeans.mini_batch import MiniBatchState, mini_batch_start, mini_batch_step

__all__ = [
    "BalancedKMeansResult",
    "KChoice",
    "KMeansResult",
    "MiniBatchState",
    "balanced_kmeans",
    "choose_k",
    "kmeans",
    "match_centroids",
    "mini_batch_start",
    "mini_batch_step",
    "predict",
    "transform",
]
