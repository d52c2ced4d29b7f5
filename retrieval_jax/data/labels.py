"""Budgets of labels: which of them training may use."""

from __future__ import annotations

import numpy as np

_PURPOSE = int.from_bytes(b"labels")  # sets these random numbers apart from others of the same seed


def drawn(labels: np.ndarray, seed: int, per_class: int = 0, fraction: float = 1.0) -> np.ndarray:
    """Rows of some labelled images, drawn at random from each class.

    The order comes from raw PCG64 output, as in `split`: a seed draws the same everywhere, and a
    larger budget keeps the rows of a smaller one.

    Args:
      labels: int [n], negative where there is none.
      seed: a non-negative integer.
      per_class: rows of each class, or as many as it has; 0: by the fraction.
      fraction: share of each class, in (0, 1], to the nearest row and one at least.

    Returns:
      int64, ascending.

    Example:
      >>> labels = np.repeat([0, 1, -1], [10, 20, 5])
      >>> rows = drawn(labels, seed=0, fraction=0.2)
      >>> np.bincount(labels[rows]).tolist()
      [2, 4]
    """
    order = np.argsort(np.random.PCG64((seed, _PURPOSE)).random_raw(len(labels)), kind="stable")
    chosen = []
    for label in np.unique(labels[labels >= 0]):
        members = order[labels[order] == label]
        count = per_class or max(round(fraction * len(members)), 1)
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def only(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The labels int [n], -1 in all but these rows.

    Example:
      >>> only(np.array([3, 4, 5]), np.array([1])).tolist()
      [-1, 4, -1]
    """
    kept = np.full_like(labels, -1)
    kept[rows] = labels[rows]
    return kept
