"""What picks the best checkpoint, and how far embeddings are spread."""

from __future__ import annotations

import math
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


def gram(embeddings: jax.Array, real: jax.Array) -> jax.Array:
    """What `spread_of` needs of a batch, to be added up: [d + 1, d + 1].

    Args:
      embeddings: float32 [n, d].
      real: bool [n]; the others count nowhere.

    Example:
      >>> gram(jax.numpy.array([[2.0], [9.0]]), jax.numpy.array([True, False])).tolist()
      [[4.0, 2.0], [2.0, 1.0]]
    """
    rows = jax.numpy.pad(embeddings, ((0, 0), (0, 1)), constant_values=1)
    rows = jax.numpy.where(real[:, None], rows, 0)
    return rows.T @ rows


def spread_of(gram: np.ndarray) -> dict[str, float]:
    """How far embeddings are from a point, and from a line.

    Args:
      gram: float64 [d + 1, d + 1], the sum of `gram` of all batches.

    Returns:
      "effective_rank": exp of the entropy of the shares of variance along the principal axes (Roy
      and Vetterli 2007, "The effective rank"), from 1 to d, 0 of a point; and "spread": the root of
      the variance's share of the mean squared length, from 0 to 1. NaN where an
      embedding is not finite.

    Example:
      >>> points = np.array([[1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])  # behind each, a 1
      >>> spread_of(points.T @ points)
      {'effective_rank': 1.0, 'spread': 1.0}
    """
    if not np.isfinite(gram).all():
        return {"effective_rank": math.nan, "spread": math.nan}
    count = gram[-1, -1]
    squares, mean = gram[:-1, :-1] / count, gram[-1, :-1] / count
    length = float(np.trace(squares))
    # What float32 sums leave of the variance of a point is no spread.
    variances = np.maximum(np.linalg.eigvalsh(squares - np.outer(mean, mean)), 0)
    variances[variances < 1e-6 * length] = 0
    whole = float(variances.sum())
    if whole == 0:
        return {"effective_rank": 0.0, "spread": 0.0}
    shares = variances[variances > 0] / whole
    rank = float(np.exp(-(shares * np.log(shares)).sum()))
    return {"effective_rank": rank, "spread": math.sqrt(min(whole / length, 1.0))}
