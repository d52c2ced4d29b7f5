"""Which labels training may use, where the budget has few."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from retrieval_jax import sharded
from retrieval_jax.data.labels import drawn, only
from retrieval_jax.numerics.keys import key_for


class Budget(NamedTuple):
    """How many labels of the fit images training may use, and how they are chosen."""

    per_class: int  # 0: by the fraction
    fraction: float
    typical: bool  # of each k-means cell the image nearest to its centroid; or at random


def budgeted(
    budget: Budget,
    labels: np.ndarray,
    fit: np.ndarray,
    classes: int,
    seed: int,
    embed: Callable[[], np.ndarray],
) -> np.ndarray:
    """The labels of all images, -1 where training may not use one.

    Args:
      budget: how many.
      labels: int [n] of all images.
      fit: int [m], the rows that train; all others are hidden, those of the validation too.
      classes: how many there are.
      seed: of the choice.
      embed: gives embeddings float32 [m, d] of the fit images, where the typical ones are chosen.

    Returns:
      int [n].

    Example:
      >>> found = budgeted(Budget(1, 1.0, False), np.array([0, 1, 1, 0]), np.arange(3), 2, 0, None)
      >>> sorted(found.tolist())
      [-1, -1, 0, 1]
    """
    if not budget.typical:
        return only(labels, fit[drawn(labels[fit], seed, budget.per_class, budget.fraction)])
    count = budget.per_class * classes or max(round(budget.fraction * len(fit)), 1)
    rows = typical(key_for(seed, "typical"), embed(), min(count, len(fit)))
    return only(labels, fit[rows])


def typical(key: jax.Array, embeddings: np.ndarray, count: int) -> np.ndarray:
    """The row nearest to the centroid of each of `count` k-means cells, without any label.

    Close to TypiClust (Hacohen et al. 2022, arXiv:2202.02794), whose typical image is the one with
    the nearest neighbours.

    Args:
      key: of k-means.
      embeddings: float32 [n, d].
      count: cells, at most n; a cell that stays empty gives no row.

    Returns:
      int64, ascending.

    Example:
      >>> points = np.array([[0.0], [1.0], [2.0], [7.0], [8.0], [9.0]], np.float32)
      >>> typical(jax.random.key(0), points, 2).tolist()
      [1, 4]
    """
    found = sharded.kmeans(key, embeddings, count, restarts=1)
    cells = np.asarray(found.labels)
    distances = np.square(embeddings - np.asarray(found.centroids)[cells]).sum(1)
    order = np.lexsort((distances, cells))
    return np.sort(order[np.unique(cells[order], return_index=True)[1]])
