"""Scores of a clustering that gives each cluster a class, of a contingency table.

References:
  H. W. Kuhn, "The Hungarian method for the assignment problem", Naval Research Logistics, 1955.
  C. Manning, P. Raghavan and H. Schütze, "Introduction to Information Retrieval", chapter 16, 2008.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from retrieval_jax.metrics.contingency import counted


def purity(table: np.ndarray) -> float:
    """The share of points that are of the commonest class of their cluster.

    1 where each point is alone in its cluster: it says nothing where there are many clusters.

    Args:
      table: int [c, k], of `contingency_table`.

    Returns:
      In (0, 1]: one division of exact integers.

    Raises:
      ValueError: a table without points.

    Example:
      >>> from retrieval_jax.metrics import contingency_table
      >>> purity(contingency_table([0, 0, 1, 1], [0, 1, 1, 1]))
      0.75
    """
    table, n = counted(table)
    return int(table.max(0).sum()) / n


def clustering_accuracy(table: np.ndarray) -> float:
    """The share of points whose cluster is matched to their class, by the best matching there is.

    Each cluster is matched to one class at most, and each class to one cluster: the points of a
    cluster beyond the number of classes are wrong. Also known as unsupervised accuracy.

    Args:
      table: int [c, k], of `contingency_table`.

    Returns:
      In (0, 1]: one division of exact integers.

    Raises:
      ValueError: a table without points.

    Example:
      >>> from retrieval_jax.metrics import contingency_table
      >>> clustering_accuracy(contingency_table([0, 0, 1, 1], [1, 1, 1, 0]))
      0.75
    """
    table, n = counted(table)
    return int(table[optimal_matching(table)].sum()) / n


def optimal_matching(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matches classes to clusters one to one so that the most points are in matched ones.

    Time grows with c · k · min(c, k).

    Args:
      table: int [c, k], of `contingency_table`.

    Returns:
      classes, clusters: int64 [min(c, k)], classes ascending; `table[classes, clusters]` are the
      points of the pairs.

    Raises:
      ValueError: a table without points.

    Example:
      >>> classes, clusters = optimal_matching([[1, 5, 0], [6, 7, 0]])
      >>> classes.tolist(), clusters.tolist()
      ([0, 1], [1, 0])
    """
    table, _ = counted(table)
    classes, clusters = linear_sum_assignment(table, maximize=True)
    return classes, clusters
