"""Scores of a clustering from counts of pairs of points, of a contingency table.

References:
  L. Hubert and P. Arabie, "Comparing partitions", Journal of Classification, 1985.
  E. B. Fowlkes and C. L. Mallows, "A method for comparing two hierarchical clusterings", Journal
    of the American Statistical Association, 1983.
"""

import math

import numpy as np

from retrieval_jax.metrics.contingency import counted


def rand_index(table: np.ndarray) -> float:
    """RI: the share of all pairs of points on which classes and clusters agree (together or apart).

    Near 0.82, not 0, by chance for ten balanced classes and clusters: see `adjusted_rand_index`. 1
    for a single point, which has no pairs.

    Args:
      table: int [c, k], of `contingency_table`.

    Returns:
      In [0, 1]: one division of exact integers.

    Raises:
      ValueError: a table without points.

    Example:
      >>> from retrieval_jax.metrics import contingency_table
      >>> rand_index(contingency_table([0, 0, 1, 1], [0, 1, 1, 1]))
      0.5
    """
    together, apart, class_only, cluster_only = _pairs(table)
    pairs = together + apart + class_only + cluster_only
    return (together + apart) / pairs if pairs else 1.0


def adjusted_rand_index(table: np.ndarray) -> float:
    """ARI: the Rand index scaled so that 0 is its mean over random clusterings of the same sizes.

    1 for identical partitions, among them one class in one cluster and single points each alone;
    down to -0.5.

    Args:
      table: int [c, k], of `contingency_table`.

    Returns:
      In [-0.5, 1]: one division of exact integers.

    Raises:
      ValueError: a table without points.

    Example:
      >>> from retrieval_jax.metrics import contingency_table
      >>> adjusted_rand_index(contingency_table([0, 0, 1, 1], [0, 1, 0, 1]))
      -0.5
    """
    together, apart, class_only, cluster_only = _pairs(table)
    if class_only == cluster_only == 0:
        return 1.0
    agreement = 2 * (together * apart - class_only * cluster_only)
    by_class = (together + class_only) * (class_only + apart)
    by_cluster = (together + cluster_only) * (cluster_only + apart)
    return agreement / (by_class + by_cluster)


def fowlkes_mallows(table: np.ndarray) -> float:
    """FMI: the geometric mean of precision and recall over the pairs of points put together.

    0 where no pair is together in both classes and clusters; so for single points each alone.

    Args:
      table: int [c, k], of `contingency_table`.

    Returns:
      In [0, 1], computed in float64 from exact integers.

    Raises:
      ValueError: a table without points.

    Example:
      >>> from retrieval_jax.metrics import contingency_table
      >>> round(fowlkes_mallows(contingency_table([0, 0, 1, 1], [0, 1, 1, 1])), 6)
      0.408248
    """
    together, _, class_only, cluster_only = _pairs(table)
    if together == 0:
        return 0.0
    return together / math.sqrt((together + class_only) * (together + cluster_only))


def _pairs(table: np.ndarray) -> tuple[int, int, int, int]:
    """Ordered pairs of points together in both, apart in both, together by class, by cluster only.

    Python integers: the products of two pair counts pass 64 bits at 60,000 points.
    """
    table, n = counted(table)
    if n >> 31:  # squares of counts pass 64 bits
        table = table.astype(object)
    both = int((table**2).sum())
    by_class = int((table.sum(1) ** 2).sum())
    by_cluster = int((table.sum(0) ** 2).sum())
    return both - n, n * n - by_class - by_cluster + both, by_class - both, by_cluster - both
