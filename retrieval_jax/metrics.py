"""Scores of a clustering against classes, and of ranked neighbours against relevance.

Clustering scores are functions of a contingency table, which is counted once, in exact integers on
the host, and adds up over batches and hosts. Retrieval scores are functions that jit, of which
neighbours are relevant.

References:
  L. Hubert and P. Arabie, "Comparing partitions", Journal of Classification, 1985.
  N. X. Vinh, J. Epps and J. Bailey, "Information theoretic measures for clusterings comparison",
    JMLR, 2010.
  C. Manning, P. Raghavan and H. Schütze, "Introduction to Information Retrieval", chapters 8 and
    16, 2008.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

# Labels counted at a time: bounds the memory for their 64-bit copies to 64 MiB.
_BLOCK = 1 << 22


def contingency_table(
    classes: ArrayLike,
    clusters: ArrayLike,
    num_classes: int | None = None,
    num_clusters: int | None = None,
) -> np.ndarray:
    """Counts the points of each class in each cluster, exactly.

    Tables of the same shape add up: give both numbers to merge batches. Empty rows and columns
    change no score.

    Args:
      classes: int [n], 0 ≤ class < num_classes.
      clusters: int [n], 0 ≤ cluster < num_clusters.
      num_classes: rows of the table; None for the largest class + 1.
      num_clusters: columns of the table; None for the largest cluster + 1.

    Returns:
      int64 [num_classes, num_clusters], a NumPy array.

    Raises:
      ValueError: labels that are empty, not integers, differ in length or lie outside the table.

    Example:
      >>> contingency_table([0, 0, 1, 1], [0, 1, 1, 1]).tolist()
      [[1, 1], [0, 2]]
    """
    classes, rows = _integers(classes, num_classes, "classes")
    clusters, columns = _integers(clusters, num_clusters, "clusters")
    if len(classes) != len(clusters):
        raise ValueError(f"there are {len(classes)} classes, but {len(clusters)} clusters.")
    table = np.zeros(rows * columns, np.int64)
    for start in range(0, len(classes), _BLOCK):
        block = slice(start, start + _BLOCK)
        cells = classes[block].astype(np.int64) * columns + clusters[block].astype(np.int64)
        table += np.bincount(cells, minlength=table.size)
    return table.reshape(rows, columns)


def normalized_mutual_information(table: np.ndarray) -> float:
    """NMI: mutual information over the arithmetic mean of the entropies of classes and clusters.

    1 where both put all points together (no information to share); 0 where only one of them does.

    Args:
      table: int [c, k], of `contingency_table`.

    Returns:
      In [0, 1], computed in float64.

    Raises:
      ValueError: a table without points.

    Example:
      >>> normalized_mutual_information(contingency_table([0, 0, 1, 1], [1, 1, 0, 0]))
      1.0
    """
    table, n = _counted(table)
    classes, clusters = table.sum(1), table.sum(0)
    entropies = _entropy(classes, n) + _entropy(clusters, n)
    if entropies == 0:
        return 1.0
    row, column = table.nonzero()
    joint = table[row, column] / n
    independent = (classes[row] / n) * (clusters[column] / n)
    information = float((joint * np.log(joint / independent)).sum())
    return min(max(2 * information / entropies, 0.0), 1.0)


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


def relevance(
    indices: ArrayLike, query_labels: ArrayLike, gallery_labels: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Says which neighbours are of their query's class, and how many gallery rows are.

    Args:
      indices: int [q, k], rows of the gallery; -1 for a missing neighbour, which is not relevant.
      query_labels: int [q].
      gallery_labels: int [n].

    Returns:
      relevant: bool [q, k].
      positives: int32 [q], the gallery rows of each query's class, found or not.

    Example:
      >>> relevant, positives = relevance([[2, 0, -1]], [7], [7, 7, 8])
      >>> relevant.tolist(), positives.tolist()
      ([[False, True, False]], [2])
    """
    indices, query_labels, gallery_labels = map(
        jnp.asarray, (indices, query_labels, gallery_labels)
    )
    relevant = (gallery_labels[indices] == query_labels[:, None]) & (indices >= 0)
    ordered = jnp.sort(gallery_labels)
    first, last = (jnp.searchsorted(ordered, query_labels, side=side) for side in ("left", "right"))
    return relevant, last - first


def precision_at_k(relevant: ArrayLike, k: int) -> jax.Array:
    """Precision@k: the share of relevant ones among the first k neighbours, mean over the queries.

    Always divided by k: a neighbour that is missing counts as not relevant, a query with no
    positives as 0.

    Args:
      relevant: bool [q, m], nearest first, m ≥ k.
      k: neighbours that count.

    Returns:
      float32 scalar in [0, 1].

    Raises:
      ValueError: relevant is empty or not [q, m], or k is not in 1..m.

    Example:
      >>> float(precision_at_k([[True, False, True, True]], k=2))
      0.5
    """
    return _first(relevant, k).mean(1).mean()


def mean_average_precision_at_k(relevant: ArrayLike, positives: ArrayLike, k: int) -> jax.Array:
    """mAP@k: the mean over the queries of their average precision among the first k neighbours.

    AP@k = Σ_{i=1..k} P@i · rel_i / min(k, positives), where rel_i is 1 if the i-th neighbour is
    relevant, else 0, and P@i the share of relevant ones among the first i. So 1 needs every place
    that a positive could fill to be filled. A missing neighbour counts as not relevant; a query
    with no positives has AP 0 and counts in the mean.

    Args:
      relevant: bool [q, m], nearest first, m ≥ k.
      positives: int [q], the relevant rows in the whole gallery, found or not.
      k: neighbours that count.

    Returns:
      float32 scalar in [0, 1].

    Raises:
      ValueError: relevant is empty or not [q, m], k is not in 1..m, or positives is not [q].

    Example:
      >>> found = mean_average_precision_at_k([[True, False, True, False]], [4], k=4)
      >>> round(float(found), 4)
      0.4167
    """
    relevant = _first(relevant, k)
    positives = jnp.asarray(positives)
    if positives.shape != relevant.shape[:1]:
        raise ValueError(
            f"positives must be one count a query, {len(relevant)}, not {positives.shape}."
        )
    precisions = jnp.cumsum(relevant, axis=1) / jnp.arange(1, k + 1, dtype=jnp.float32)
    total = (precisions * relevant).sum(1)
    return (total / jnp.clip(positives, 1, k)).mean()


def _integers(labels: ArrayLike, count: int | None, name: str) -> tuple[np.ndarray, int]:
    array = np.asarray(labels)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{name} must be integers [n], n ≥ 1; they are {array.dtype} {array.shape}."
        )
    largest = int(array.max())
    count = largest + 1 if count is None else count
    if array.min() < 0 or largest >= count:
        raise ValueError(
            f"{name} must lie in 0..{count - 1}; they lie in {array.min()}..{largest}."
        )
    return array, count


def _counted(table: np.ndarray) -> tuple[np.ndarray, int]:
    table = np.asarray(table, np.int64)
    n = int(table.sum())
    if n == 0:
        raise ValueError("the contingency table holds no points.")
    return table, n


def _entropy(counts: np.ndarray, n: int) -> float:
    shares = counts[counts > 0] / n
    return float(-(shares * np.log(shares)).sum())


def _pairs(table: np.ndarray) -> tuple[int, int, int, int]:
    """Ordered pairs of points together in both, apart in both, together by class, by cluster only.

    Python integers: the products of two pair counts pass 64 bits at 60,000 points.
    """
    table, n = _counted(table)
    both = int((table**2).sum())
    by_class = int((table.sum(1) ** 2).sum())
    by_cluster = int((table.sum(0) ** 2).sum())
    return both - n, n * n - by_class - by_cluster + both, by_class - both, by_cluster - both


def _first(relevant: ArrayLike, k: int) -> jax.Array:
    relevant = jnp.asarray(relevant)
    if relevant.ndim != 2 or 0 in relevant.shape or not 1 <= k <= relevant.shape[1]:
        raise ValueError(f"relevant must be [q, m] with 1 ≤ k ≤ m; shape {relevant.shape}, k {k}.")
    return relevant[:, :k]
