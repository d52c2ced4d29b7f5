"""Scores of the first k neighbours of each query, from which of them are relevant.

References:
  C. Manning, P. Raghavan and H. Schütze, "Introduction to Information Retrieval", chapter 8, 2008.
  K. Järvelin and J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS, 2002.
  Z. Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR,
    2018 (votes weighted by similarity).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from retrieval_jax.metrics.labels import coded, host_labels
from retrieval_jax.numerics.arguments import whole_number


def relevance(
    indices: ArrayLike,
    query_labels: ArrayLike,
    gallery_labels: ArrayLike,
    *,
    exclude_self: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Says which neighbours are of their query's class, and how many gallery rows are.

    Args:
      indices: int [q, k], rows of the gallery; -1 for a missing neighbour, which is not relevant.
      query_labels: [q], integers of any size; or strings, outside of jit.
      gallery_labels: [n], of the same kind.
      exclude_self: query i is gallery row i, which is none of its positives, and not relevant where
        it was found. Give it to the search too, as the row would take the place of another.

    Returns:
      relevant: bool [q, k].
      positives: int32 [q], the gallery rows of each query's class, found or not.

    Raises:
      ValueError: indices that are not integers [q, k] or (where they are concrete, not traced by
        jit) outside -1..n - 1; labels that are not [q] and [n], or are floats; exclude_self with
        more queries than gallery rows.

    Example:
      >>> relevant, positives = relevance([[2, 0, -1]], [7], [7, 7, 8])
      >>> relevant.tolist(), positives.tolist()
      ([[False, True, False]], [2])
      >>> pairs = [5, 5, 6, 6]
      >>> relevance([[1, 2], [0, 3], [3, 0], [2, 1]], pairs, pairs, exclude_self=True)[1].tolist()
      [1, 1, 1, 1]
    """
    indices, query_labels, gallery_labels = _labelled(indices, query_labels, gallery_labels)
    q, n = len(query_labels), len(gallery_labels)
    relevant = (gallery_labels.at[indices].get(mode="clip") == query_labels[:, None]) & (
        indices >= 0
    )
    ordered = jnp.sort(gallery_labels)
    first, last = (jnp.searchsorted(ordered, query_labels, side=side) for side in ("left", "right"))
    positives = (last - first).astype(jnp.int32)
    if exclude_self:
        if q > n:
            raise ValueError(
                f"with exclude_self query i is gallery row i, but there are {q} queries and {n} "
                "rows."
            )
        relevant &= indices != jnp.arange(q)[:, None]
        positives -= (gallery_labels[:q] == query_labels).astype(jnp.int32)
    return relevant, positives


def precision_at_k(relevant: ArrayLike, k: int, *, per_query: bool = False) -> jax.Array:
    """Precision@k: the share of relevant ones among the first k neighbours, mean over the queries.

    Always divided by k: a neighbour that is missing counts as not relevant, a query with no
    positives as 0.

    Args:
      relevant: bool [q, m], nearest first, m ≥ k.
      k: neighbours that count.
      per_query: returns the scores of the queries, not their mean; `class_means` averages them.

    Returns:
      float32 scalar in [0, 1], or [q].

    Raises:
      ValueError: relevant is empty or not [q, m], or k is not in 1..m.

    Example:
      >>> float(precision_at_k([[True, False, True, True]], k=2))
      0.5
    """
    return _mean(_first(relevant, k).mean(1), per_query)


def recall_at_k(
    relevant: ArrayLike, positives: ArrayLike, k: int, *, per_query: bool = False
) -> jax.Array:
    """Recall@k: the share of a query's positives among its first k neighbours, mean over queries.

    A query with no positives counts as 0. Metric learning often calls `hit_at_k` by this name.

    Args:
      relevant: bool [q, m], nearest first, m ≥ k.
      positives: int [q], the relevant rows in the whole gallery, found or not.
      k: neighbours that count.
      per_query: returns the scores of the queries, not their mean; `class_means` averages them.

    Returns:
      float32 scalar in [0, 1], or [q].

    Raises:
      ValueError: relevant is empty or not [q, m], k is not in 1..m, or positives is not [q]
        or (where both are concrete, not traced by jit) smaller than the relevant ones found.

    Example:
      >>> float(recall_at_k([[True, False, True, True]], [4], k=3))
      0.5
    """
    relevant = _first(relevant, k)
    return _mean(relevant.sum(1) / jnp.maximum(_counts(positives, relevant), 1), per_query)


def hit_at_k(relevant: ArrayLike, k: int, *, per_query: bool = False) -> jax.Array:
    """Hit@k: the share of queries with a relevant one among their first k neighbours.

    A query with no positives counts as 0. Also known as Recall@k (metric learning) and CMC at k.

    Args:
      relevant: bool [q, m], nearest first, m ≥ k.
      k: neighbours that count.
      per_query: returns the scores of the queries, not their mean; `class_means` averages them.

    Returns:
      float32 scalar in [0, 1], or [q].

    Raises:
      ValueError: relevant is empty or not [q, m], or k is not in 1..m.

    Example:
      >>> float(hit_at_k([[False, True, True], [False, False, True]], k=2))
      0.5
    """
    return _mean(_first(relevant, k).any(1), per_query)


def mean_average_precision_at_k(
    relevant: ArrayLike, positives: ArrayLike, k: int, *, per_query: bool = False
) -> jax.Array:
    """mAP@k: the mean over the queries of their average precision among the first k neighbours.

    AP@k = Σ_{i=1..k} P@i · rel_i / min(k, positives), where rel_i is 1 if the i-th neighbour is
    relevant, else 0, and P@i the share of relevant ones among the first i. So 1 needs every place
    that a positive could fill to be filled. A missing neighbour counts as not relevant; a query
    with no positives has AP 0 and counts in the mean.

    Args:
      relevant: bool [q, m], nearest first, m ≥ k.
      positives: int [q], the relevant rows in the whole gallery, found or not.
      k: neighbours that count.
      per_query: returns the scores of the queries, not their mean; `class_means` averages them.

    Returns:
      float32 scalar in [0, 1], or [q].

    Raises:
      ValueError: relevant is empty or not [q, m], k is not in 1..m, or positives is not [q]
        or (where both are concrete, not traced by jit) smaller than the relevant ones found.

    Example:
      >>> found = mean_average_precision_at_k([[True, False, True, False]], [4], k=4)
      >>> round(float(found), 4)
      0.4167
    """
    relevant = _first(relevant, k)
    precisions = jnp.cumsum(relevant, axis=1) / jnp.arange(1, k + 1, dtype=jnp.float32)
    total = (precisions * relevant).sum(1)
    return _mean(total / jnp.clip(_counts(positives, relevant), 1, k), per_query)


def mean_reciprocal_rank_at_k(relevant: ArrayLike, k: int, *, per_query: bool = False) -> jax.Array:
    """MRR@k: the mean over the queries of 1 over the rank of their first relevant neighbour.

    A query with none among its first k neighbours counts as 0.

    Args:
      relevant: bool [q, m], nearest first, m ≥ k.
      k: neighbours that count.
      per_query: returns the scores of the queries, not their mean; `class_means` averages them.

    Returns:
      float32 scalar in [0, 1], or [q].

    Raises:
      ValueError: relevant is empty or not [q, m], or k is not in 1..m.

    Example:
      >>> float(mean_reciprocal_rank_at_k([[False, True, True], [False, False, False]], k=3))
      0.25
    """
    relevant = _first(relevant, k)
    return _mean(jnp.where(relevant.any(1), 1 / (relevant.argmax(1) + 1), 0), per_query)


def ndcg_at_k(
    relevant: ArrayLike, positives: ArrayLike, k: int, *, per_query: bool = False
) -> jax.Array:
    """NDCG@k: discounted gain of the first k neighbours over that of the best ranking, the mean.

    A relevant neighbour at rank i gains 1 / log2(i + 1); the best ranking has min(k, positives)
    relevant ones first. A query with no positives counts as 0.

    Args:
      relevant: bool [q, m], nearest first, m ≥ k.
      positives: int [q], the relevant rows in the whole gallery, found or not.
      k: neighbours that count.
      per_query: returns the scores of the queries, not their mean; `class_means` averages them.

    Returns:
      float32 scalar in [0, 1], or [q].

    Raises:
      ValueError: relevant is empty or not [q, m], k is not in 1..m, or positives is not [q]
        or (where both are concrete, not traced by jit) smaller than the relevant ones found.

    Example:
      >>> round(float(ndcg_at_k([[False, True, True]], [3], k=2)), 4)
      0.3869
    """
    relevant = _first(relevant, k)
    gains = 1 / jnp.log2(jnp.arange(2, k + 2, dtype=jnp.float32))
    best = jnp.cumsum(gains)[jnp.clip(_counts(positives, relevant), 1, k) - 1]
    return _mean(jnp.where(relevant, gains, 0).sum(1) / best, per_query)


def knn_accuracy(
    indices: ArrayLike,
    query_labels: ArrayLike,
    gallery_labels: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    per_query: bool = False,
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
      per_query: returns the scores of the queries, 0 or 1, not their mean.

    Returns:
      float32 scalar in [0, 1], or [q].

    Raises:
      ValueError: indices are empty or not as for `relevance`, or labels; weights are not [q, k].

    Example:
      >>> float(knn_accuracy([[0, 1, 2], [2, 0, -1]], [8, 7], [7, 8, 8]))
      0.5
      >>> float(knn_accuracy([[0, 1, 2]], [7], [7, 8, 8], weights=[[5.0, 2.0, 2.0]]))
      1.0
    """
    indices, query_labels, gallery_labels = _labelled(indices, query_labels, gallery_labels)
    weights = jnp.ones(indices.shape) if weights is None else jnp.asarray(weights, jnp.float32)
    if 0 in indices.shape or weights.shape != indices.shape:
        raise ValueError(
            f"indices and weights must be [q, k], not {indices.shape} and {weights.shape}."
        )
    there = indices >= 0
    voters = gallery_labels.at[indices].get(mode="clip")
    elected = _elected(voters, jnp.where(there, weights, 0), there)
    return _mean((elected == query_labels) & there.any(1), per_query)


def class_means(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Averages scores of queries over each class.

    The mean of the result weighs all classes alike, however many queries they have ("macro").

    Args:
      scores: [q], of a score of this module with `per_query`, or a field of `RankingScores`.
      labels: [q], the class of each query, integers or strings.

    Returns:
      The classes [c] that occur, ascending, and float64 [c], the mean score of their queries.

    Raises:
      ValueError: no scores, or labels that are not one a query.

    Example:
      >>> relevant = [[True, False], [True, True], [False, False]]
      >>> scores = precision_at_k(relevant, k=2, per_query=True)
      >>> classes, means = class_means(scores, ["cat", "cat", "dog"])
      >>> classes.tolist(), means.tolist()
      (['cat', 'dog'], [0.75, 0.0])
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"scores must be one a query, not of shape {values.shape}.")
    classes, codes = np.unique(host_labels(labels, len(values), "labels"), return_inverse=True)
    return classes, np.bincount(codes, values) / np.bincount(codes)


# Compiled as one: the [q, k, k] comparisons are never in memory.
@jax.jit
def _elected(labels: jax.Array, weights: jax.Array, there: jax.Array) -> jax.Array:
    """The label [q] with the most votes of labels [q, k], of equal ones the first to occur."""
    same = labels[:, :, None] == labels[:, None, :]
    votes = jnp.where(same, weights[:, None, :], 0).sum(2)
    first = jnp.where(there, votes, -1).argmax(1)
    return jnp.take_along_axis(labels, first[:, None], 1)[:, 0]


def _labelled(
    indices: ArrayLike, query_labels: ArrayLike, gallery_labels: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The indices of neighbours [q, k], labels [q] and labels [n], checked, the labels coded."""
    given = indices if isinstance(indices, jax.Array) else np.asarray(indices)
    of_queries, of_gallery = map(jnp.asarray, coded(query_labels, gallery_labels))
    if given.ndim != 2 or not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"indices must be integers [q, k]; they are {given.dtype} {given.shape}.")
    if of_queries.shape != given.shape[:1]:
        raise ValueError(f"query_labels must be one a query, {len(given)}, not {of_queries.shape}.")
    if of_gallery.ndim != 1 or not len(of_gallery):
        raise ValueError(f"gallery_labels must be [n], n ≥ 1, not {of_gallery.shape}.")
    if not isinstance(given, jax.core.Tracer) and given.size:
        host, n = np.asarray(given), len(of_gallery)
        if host.min() < -1 or host.max() >= n:
            raise ValueError(
                f"indices must be -1 or rows of the gallery, 0..{n - 1}; they lie in "
                f"{host.min()}..{host.max()}."
            )
    return jnp.asarray(given), of_queries, of_gallery


def _mean(values: jax.Array, per_query: bool) -> jax.Array:
    values = values.astype(jnp.float32)
    return values if per_query else values.mean()


def _first(relevant: ArrayLike, k: int) -> jax.Array:
    relevant, k = jnp.asarray(relevant, bool), whole_number(k, "k", 0)
    if relevant.ndim != 2 or 0 in relevant.shape or not 1 <= k <= relevant.shape[1]:
        raise ValueError(f"relevant must be [q, m] with 1 ≤ k ≤ m; shape {relevant.shape}, k {k}.")
    return relevant[:, :k]


def _counts(positives: ArrayLike, relevant: jax.Array) -> jax.Array:
    """The positives [q]; under jit at least the relevant ones found, or scores could pass 1."""
    positives, found = jnp.asarray(positives), relevant.sum(1)
    if positives.shape != relevant.shape[:1]:
        raise ValueError(
            f"positives must be one count a query, {len(relevant)}, not {positives.shape}."
        )
    if not isinstance(fewer := positives < found, jax.core.Tracer) and fewer.any():
        i = int(fewer.argmax())
        raise ValueError(
            f"positives are those in the whole gallery, but query {i} has {int(positives[i])} and "
            f"{int(found[i])} relevant neighbours; `relevance` counts them."
        )
    return jnp.maximum(positives, found)
