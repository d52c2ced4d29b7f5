"""What picks the best checkpoint: scores of the validation images' embeddings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from retrieval_jax import metrics, sharded
from retrieval_jax.numerics.keys import key_for


class Monitor(NamedTuple):
    """A score of embeddings, the higher the better."""

    name: str
    score: Callable[[np.ndarray, np.ndarray], float]  # (embeddings [n, d], labels [n]) → score


def knn() -> Monitor:
    """Accuracy of the majority of each image's 20 nearest others.

    Example:
      >>> points = np.repeat([[0.0], [9.0]], 30, axis=0) + np.arange(60)[:, None] / 100
      >>> knn().score(points, np.repeat([0, 1], 30))
      1.0
    """
    return Monitor("knn_accuracy", _knn_accuracy)


def nmi(k: int, seed: int) -> Monitor:
    """NMI of the labels and k-means' clusters, one restart.

    Example:
      >>> points = np.repeat([[0.0], [9.0]], 30, axis=0) + np.arange(60)[:, None] / 100
      >>> nmi(k=2, seed=0).score(points, np.repeat([0, 1], 30))
      1.0
    """
    return Monitor("nmi", partial(_nmi, k=k, seed=seed))


def _knn_accuracy(embeddings: np.ndarray, labels: np.ndarray, k: int = 20) -> float:
    embeddings, labels = embeddings[labels >= 0], labels[labels >= 0]
    if len(labels) < 2:  # nobody has a neighbour
        return 0.0
    k = min(k, len(labels) - 1)
    found = np.asarray(sharded.nearest(embeddings, embeddings, k, exclude_self=True).indices)
    votes = jax.nn.one_hot(labels[found], labels.max() + 1).sum(1)
    return float((np.asarray(votes).argmax(1) == labels).mean())


def _nmi(embeddings: np.ndarray, labels: np.ndarray, k: int, seed: int) -> float:
    k = min(k, len(embeddings))
    found = sharded.kmeans(key_for(seed, "monitor"), embeddings, k, restarts=1)
    clusters = np.asarray(found.labels)[labels >= 0]
    table = metrics.contingency_table(labels[labels >= 0], clusters)
    return metrics.normalized_mutual_information(table)
