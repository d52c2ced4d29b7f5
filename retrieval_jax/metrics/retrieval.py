"""Scores of the first k neighbours of each query, from which of them are relevant.

References:
  C. Manning, P. Raghavan and H. Schütze, "Introduction to Information Retrieval", chapter 8, 2008.
  K. Järvelin and J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS, 2002.
  Z. Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR,
    2018 (votes weighted by similarity).
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


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


def recall_at_k(relevant: ArrayLike, positives: ArrayLike, k: int) -> jax.Array:
    """Recall@k: the share of a query's positives among its first k neighbours, mean over queries.

    A query with no positives counts as 0. Metric learning often calls `hit_at_k` by this name.

    Args:
      relevant: bool [q, m], nearest first, m ≥ k.
      positives: int [q], the relevant rows in the whole gallery, found or not.
      k: neighbours that count.

    Returns:
      float32 scalar in [0, 1].

    Raises:
      ValueError: relevant is empty or not [q, m], k is not in 1..m, or positives is not [q].

    Example:
      >>> float(recall_at_k([[True, False, True, True]], [4], k=3))
      0.5
    """
    relevant = _first(relevant, k)
    return (relevant.sum(1) / jnp.maximum(_counts(positives, relevant), 1)).mean()


def hit_at_k(relevant: ArrayLike, k: int) -> jax.Array:
    """Hit@k: the share of queries with a relevant one among their first k neighbours.

    A query with no positives counts as 0. Also known as Recall@k (metric learning) and CMC at k.

    Args:
      relevant: bool [q, m], nearest first, m ≥ k.
      k: neighbours that count.

    Returns:
      float32 scalar in [0, 1].

    Raises:
      ValueError: relevant is empty or not [q, m], or k is not in 1..m.

    Example:
      >>> float(hit_at_k([[False, True, True], [False, False, True]], k=2))
      0.5
    """
    return _first(relevant, k).any(1).mean()


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
    precisions = jnp.cumsum(relevant, axis=1) / jnp.arange(1, k + 1, dtype=jnp.float32)
    total = (precisions * relevant).sum(1)
    return (total / jnp.clip(_counts(positives, relevant), 1, k)).mean()


def mean_reciprocal_rank_at_k(relevant: ArrayLike, k: int) -> jax.Array:
    """MRR@k: the mean over the queries of 1 over the rank of their first relevant neighbour.

    A query with none among its first k neighbours counts as 0.

    Args:
      relevant: bool [q, m], nearest first, m ≥ k.
      k: neighbours that count.

    Returns:
      float32 scalar in [0, 1].

    Raises:
      ValueError: relevant is empty or not [q, m], or k is not in 1..m.

    Example:
      >>> float(mean_reciprocal_rank_at_k([[False, True, True], [False, False, False]], k=3))
      0.25
    """
    relevant = _first(relevant, k)
    return jnp.where(relevant.any(1), 1 / (relevant.argmax(1) + 1), 0).mean()


def ndcg_at_k(relevant: ArrayLike, positives: ArrayLike, k: int) -> jax.Array:
    """NDCG@k: discounted gain of the first k neighbours over that of the best ranking, the mean.

    A relevant neighbour at rank i gains 1 / log2(i + 1); the best ranking has min(k, positives)
    relevant ones first. A query with no positives counts as 0.

    Args:
      relevant: bool [q, m], nearest first, m ≥ k.
      positives: int [q], the relevant rows in the whole gallery, found or not.
      k: neighbours that count.

    Returns:
      float32 scalar in [0, 1].

    Raises:
      ValueError: relevant is empty or not [q, m], k is not in 1..m, or positives is not [q].

    Example:
      >>> round(float(ndcg_at_k([[False, True, True]], [3], k=2)), 4)
      0.3869
    """
    relevant = _first(relevant, k)
    gains = 1 / jnp.log2(jnp.arange(2, k + 2, dtype=jnp.float32))
    best = jnp.cumsum(gains)[jnp.clip(_counts(positives, relevant), 1, k) - 1]
    return (jnp.where(relevant, gains, 0).sum(1) / best).mean()


def knn_accuracy(
    indices: ArrayLike,
    query_labels: ArrayLike,
    gallery_labels: ArrayLike,
    weights: ArrayLike | None = None,
) -> jax.Array:
    """The share of queries whose class wins the vote of their k neighbours.

    Of classes with equal votes the one with the nearest neighbour wins. A missing neighbour has no
    vote; a query without neighbours counts as 0.

    Args:
      indices: int [q, k], rows of the gallery, nearest first; -1 for a missing neighbour.
      query_labels: int [q].
      gallery_labels: int [n].
      weights: [q, k] of the votes, ≥ 0; None for one each. exp(cosine similarity / temperature) is
        usual for embeddings, with a temperature of 0.07.

    Returns:
      float32 scalar in [0, 1].

    Raises:
      ValueError: indices are empty or not [q, k], query_labels not [q], or weights not [q, k].

    Example:
      >>> float(knn_accuracy([[0, 1, 2], [2, 0, -1]], [8, 7], [7, 8, 8]))
      0.5
      >>> float(knn_accuracy([[0, 1, 2]], [7], [7, 8, 8], weights=[[5.0, 2.0, 2.0]]))
      1.0
    """
    indices, query_labels, gallery_labels = map(
        jnp.asarray, (indices, query_labels, gallery_labels)
    )
    weights = jnp.ones(indices.shape) if weights is None else jnp.asarray(weights, jnp.float32)
    if indices.ndim != 2 or 0 in indices.shape or weights.shape != indices.shape:
        raise ValueError(
            f"indices and weights must be [q, k], not {indices.shape} and {weights.shape}."
        )
    if query_labels.shape != indices.shape[:1]:
        raise ValueError(
            f"query_labels must be one a query, {len(indices)}, not {query_labels.shape}."
        )
    there = indices >= 0
    elected = _elected(gallery_labels[indices], jnp.where(there, weights, 0), there)
    return ((elected == query_labels) & there.any(1)).mean()


# Compiled as one: the [q, k, k] comparisons are never in memory.
@jax.jit
def _elected(labels: jax.Array, weights: jax.Array, there: jax.Array) -> jax.Array:
    """The label [q] with the most votes of labels [q, k], of equal ones the first to occur."""
    same = labels[:, :, None] == labels[:, None, :]
    votes = jnp.where(same, weights[:, None, :], 0).sum(2)
    first = jnp.where(there, votes, -1).argmax(1)
    return jnp.take_along_axis(labels, first[:, None], 1)[:, 0]


def _first(relevant: ArrayLike, k: int) -> jax.Array:
    relevant = jnp.asarray(relevant, bool)
    if relevant.ndim != 2 or 0 in relevant.shape or not 1 <= k <= relevant.shape[1]:
        raise ValueError(f"relevant must be [q, m] with 1 ≤ k ≤ m; shape {relevant.shape}, k {k}.")
    return relevant[:, :k]


def _counts(positives: ArrayLike, relevant: jax.Array) -> jax.Array:
    positives = jnp.asarray(positives)
    if positives.shape != relevant.shape[:1]:
        raise ValueError(
            f"positives must be one count a query, {len(relevant)}, not {positives.shape}."
        )
    return positives
