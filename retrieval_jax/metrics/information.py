"""Scores of a clustering from mutual information and entropies, of a contingency table.

References:
  N. X. Vinh, J. Epps and J. Bailey, "Information theoretic measures for clusterings comparison",
    JMLR, 2010.
  A. Rosenberg and J. Hirschberg, "V-measure: a conditional entropy-based external cluster
    evaluation measure", EMNLP, 2007.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from retrieval_jax.metrics.contingency import counted

Average = Literal["arithmetic", "geometric", "min", "max"]

_AVERAGES: dict[str, Callable[[float, float], float]] = {
    "arithmetic": lambda a, b: (a + b) / 2,
    "geometric": lambda a, b: math.sqrt(a * b),
    "min": min,
    "max": max,
}
# Overlaps that chance gives with probability below exp(-_TAIL), 1e-35, are left out of a mean.
_TAIL = 80
# Cluster sizes handled at a time: bounds the memory of the expected mutual information.
_SIZES = 64


def normalized_mutual_information(table: np.ndarray, average: Average = "arithmetic") -> float:
    """NMI: mutual information over an average of the entropies of classes and clusters.

    1 where both put all points together (no information to share); 0 where only one of them does.

    Args:
      table: int [c, k], of `contingency_table`.
      average: of the two entropies: "arithmetic", "geometric", "min" or "max".

    Returns:
      In [0, 1], computed in float64.

    Raises:
      ValueError: a table without points, or an unknown average.

    Example:
      >>> from retrieval_jax.metrics import contingency_table
      >>> normalized_mutual_information(contingency_table([0, 0, 1, 1], [1, 1, 0, 0]))
      1.0
    """
    information, classes, clusters = _information(table)
    return _share(information, _average(classes, clusters, average), classes == clusters == 0)


def adjusted_mutual_information(table: np.ndarray, average: Average = "arithmetic") -> float:
    """AMI: mutual information scaled so that 0 is its mean over random clusterings, 1 its bound.

    (MI - E[MI]) / (average of the entropies - E[MI]), the mean over all pairs of partitions with
    these class and cluster sizes, exact to float64. 1 for identical partitions. 0 where they differ
    and one of them puts all points together, or each alone: chance then always gives the same MI.

    Args:
      table: int [c, k], of `contingency_table`.
      average: of the two entropies: "arithmetic", "geometric", "min" or "max".

    Returns:
      At most 1, below 0 where there is less agreement than by chance; computed in float64. Time
      grows with the product of the numbers of distinct class sizes and distinct cluster sizes.

    Raises:
      ValueError: a table without points, or an unknown average.

    Example:
      >>> from retrieval_jax.metrics import contingency_table
      >>> round(adjusted_mutual_information(contingency_table([0, 0, 1, 1], [0, 1, 0, 1])), 6)
      -0.5
    """
    information, *entropies = _information(table)
    bound = _average(entropies[0], entropies[1], average)
    table, n = counted(table)
    overlaps = table > 0
    if overlaps.sum(0).max() == overlaps.sum(1).max() == 1:
        return 1.0
    classes, clusters = (sizes[sizes > 0] for sizes in (table.sum(1), table.sum(0)))
    if {1, n} & {len(classes), len(clusters)}:
        return 0.0
    expected = _expected_information(classes, clusters, n)
    return (information - expected) / (bound - expected)


def homogeneity(table: np.ndarray) -> float:
    """The share of the classes' entropy that the clusters explain: 1 - H(class|cluster) / H(class).

    1 where each cluster holds points of one class only; so where there is one class.

    Args:
      table: int [c, k], of `contingency_table`.

    Returns:
      In [0, 1], computed in float64.

    Raises:
      ValueError: a table without points.

    Example:
      >>> from retrieval_jax.metrics import contingency_table
      >>> homogeneity(contingency_table([0, 0, 1, 1], [0, 1, 2, 2]))
      1.0
    """
    information, classes, _ = _information(table)
    return _share(information, classes, classes == 0)


def completeness(table: np.ndarray) -> float:
    """The share of the clusters' entropy that the classes explain: homogeneity, roles exchanged.

    1 where the points of each class are in one cluster only; so where there is one cluster.

    Args:
      table: int [c, k], of `contingency_table`.

    Returns:
      In [0, 1], computed in float64.

    Raises:
      ValueError: a table without points.

    Example:
      >>> from retrieval_jax.metrics import contingency_table
      >>> round(completeness(contingency_table([0, 0, 1, 1], [0, 1, 2, 2])), 6)
      0.666667
    """
    return homogeneity(np.transpose(table))


def v_measure(table: np.ndarray, beta: float = 1.0) -> float:
    """(1 + beta) · homogeneity · completeness / (beta · homogeneity + completeness).

    0 where both are 0. With beta 1 it equals the NMI of the arithmetic mean.

    Args:
      table: int [c, k], of `contingency_table`.
      beta: > 0; above 1 completeness weighs more, below 1 homogeneity.

    Returns:
      In [0, 1], computed in float64.

    Raises:
      ValueError: a table without points, or beta not above 0.

    Example:
      >>> from retrieval_jax.metrics import contingency_table
      >>> round(v_measure(contingency_table([0, 0, 1, 1], [0, 1, 2, 2])), 6)
      0.8
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0; it is {beta}.")
    pure, whole = homogeneity(table), completeness(table)
    total = beta * pure + whole
    return (1 + beta) * pure * whole / total if total else 0.0


def _information(table: np.ndarray) -> tuple[float, float, float]:
    """Mutual information, entropy of the classes, entropy of the clusters, in nats."""
    table, n = counted(table)
    classes, clusters = table.sum(1), table.sum(0)
    row, column = table.nonzero()
    joint = table[row, column] / n
    independent = (classes[row] / n) * (clusters[column] / n)
    information = float((joint * np.log(joint / independent)).sum())
    return information, _entropy(classes / n), _entropy(clusters / n)


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def _average(a: float, b: float, average: Average) -> float:
    if average not in _AVERAGES:
        raise ValueError(f"average must be one of {', '.join(_AVERAGES)}; it is {average!r}.")
    return _AVERAGES[average](a, b)


def _share(information: float, whole: float, nothing_to_share: bool) -> float:
    if nothing_to_share:
        return 1.0
    return min(max(information / whole, 0.0), 1.0) if whole else 0.0


def _expected_information(classes: np.ndarray, clusters: np.ndarray, n: int) -> float:
    """E[MI] of equation 24a of Vinh et al., for class sizes [c] and cluster sizes [k] of n points.

    A term for each pair of sizes that differs: the sizes of n points have at most √(2n) values.
    """
    sizes, times = np.unique(clusters, return_counts=True)
    total = 0.0
    for size, repeats in zip(*np.unique(classes, return_counts=True), strict=True):
        for start in range(0, len(sizes), _SIZES):
            part = slice(start, start + _SIZES)
            total += repeats * (times[part] * _expected_terms(int(size), sizes[part], n)).sum()
    return float(total)


def _expected_terms(a: int, b: np.ndarray, n: int) -> np.ndarray:
    """E[x/n · log(n x / (a b))] [m] of the overlap x of a and b [m] of n points, hypergeometric."""
    mean = a * (b / n)  # the product of two counts may pass 64 bits
    # Bernstein's inequality, which holds for draws without replacement (Hoeffding, 1963).
    reach = _TAIL / 3 + np.sqrt((_TAIL / 3) ** 2 + 2 * _TAIL * mean)
    first = np.maximum(np.maximum(0, a + b - n), np.floor(mean - reach).astype(np.int64))
    last = np.minimum(np.minimum(a, b), np.ceil(mean + reach).astype(np.int64))
    x = first[:, None] + np.arange((last - first).max() + 1)
    inside, b = x <= last[:, None], b[:, None]
    # Sums of the logarithms of P(x+1) / P(x): no factorials, whose differences would lose digits.
    x = np.minimum(x, last[:, None]).astype(np.float64)
    here = x[:, :-1]
    ratio = (a - here) * (b - here) / ((here + 1) * (n - a - b + here + 1))
    steps = np.log(np.where(inside[:, 1:], ratio, 1))
    logs = np.concatenate([np.zeros_like(mean)[:, None], np.cumsum(steps, 1)], 1)
    weights = np.where(inside, np.exp(logs - logs.max(1, keepdims=True)), 0)
    terms = x / n * np.log(np.maximum(x, 1) * n / (a * b.astype(np.float64)))
    return (weights * terms).sum(1) / weights.sum(1)
