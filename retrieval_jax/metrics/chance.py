"""What a score is by chance: of random clusters of the same sizes, and of random rankings.

References:
  L. Hubert and P. Arabie, "Comparing partitions", Journal of Classification, 1985.
"""

import numpy as np


def random_table(rng: np.random.Generator, table: np.ndarray) -> np.ndarray:
    """A table of the same sums, as shuffled labels would give: int64 [classes, clusters].

    Example:
      >>> random_table(np.random.default_rng(0), np.array([[2, 0], [0, 2]])).sum(0).tolist()
      [2, 2]
    """
    left, rows = table.sum(0), []
    for size in table.sum(1):
        rows.append(rng.multivariate_hypergeometric(left, size, method="marginals"))
        left = left - rows[-1]
    return np.stack(rows)


def expected_rand_index(table: np.ndarray) -> float:
    """RI in the mean over all clusterings of the same sizes (Hubert and Arabie, 1985, eq. 4).

    Example:
      >>> round(expected_rand_index(np.array([[2, 0], [0, 2]])), 4)
      0.5556
    """
    n = int(table.sum())
    if n < 2:
        return 1.0
    by_class, by_cluster = (
        sum(size * (size - 1) for size in table.sum(axis).tolist()) / (n * (n - 1))
        for axis in (1, 0)
    )
    return by_class * by_cluster + (1 - by_class) * (1 - by_cluster)


def expected_precision(
    positives: np.ndarray, n: int, depth: np.ndarray, divisor: np.ndarray
) -> float:
    """The mean over queries of Σ_{i ≤ depth} E[P@i · rel_i] / divisor in random rankings.

    With R positives among n rows, the i-th is right with probability R / n, and given that, each
    row before it with (R - 1) / (n - 1): E[P@i · rel_i] = R / n · (1 + (i - 1)(R - 1)/(n - 1)) / i.

    Args:
      positives: int [q], R.
      n: rows of the gallery.
      depth: int [q], 0..n, how far a ranking counts.
      divisor: int [q], ≥ 1.

    Example:
      >>> expected_precision(np.array([1]), 4, np.array([1]), np.array([1]))
      0.25
    """
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])[depth]
    before = (positives - 1) / max(n - 1, 1)
    return float((positives / n * (harmonic + (depth - harmonic) * before) / divisor).mean())
