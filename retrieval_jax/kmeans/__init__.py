"""k-means as pure, jitted functions on arrays: whole sets, streams of batches, and many devices."""

from retrieval_jax.kmeans.assignment import predict, transform
from retrieval_jax.kmeans.fit import KMeansResult, kmeans
from retrieval_jax.kmeans.mini_batch import MiniBatchState, mini_batch_start, mini_batch_step

__all__ = [
    "KMeansResult",
    "MiniBatchState",
    "kmeans",
    "mini_batch_start",
    "mini_batch_step",
    "predict",
    "transform",
]
