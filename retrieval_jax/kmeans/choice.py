"""How many clusters to ask for, and the same numbers for the same clusters in every fit.

References:
  P. J. Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster
    analysis", Journal of Computational and Applied Mathematics, 1987.
  D. Pelleg and A. Moore, "X-means: extending k-means with efficient estimation of the number of
    clusters", ICML 2000, for the information criterion.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from retrieval_jax.kmeans._points import check_clusters
from retrieval_jax.kmeans.assignment import transform
from retrieval_jax.kmeans.fit import kmeans
from retrieval_jax.numerics.arguments import whole_number
from retrieval_jax.numerics.distances import host_matrix


class KChoice(NamedTuple):
    """What `choose_k` found.

    Attributes:
      k: the number of clusters with the highest score.
      ks: int [m], all that were tried.
      silhouettes: float64 [m], the mean silhouette of the sample, in [-1, 1]; NaN for one cluster.
      bic: float64 [m], the log-likelihood less its penalty; larger is better.
      inertias: float64 [m].
    """

    k: int
    ks: np.ndarray
    silhouettes: np.ndarray
    bic: np.ndarray
    inertias: np.ndarray


def choose_k(
    key: jax.Array,
    points: ArrayLike,
    ks: Sequence[int],
    *,
    score: Literal["silhouette", "bic"] = "silhouette",
    sample: int = 2048,
    **options: Any,
) -> KChoice:
    """Clusters the points for each k, and scores the clusters.

    The silhouette asks for clusters that are dense and far apart. The information criterion (BIC)
    takes them for Gaussians of one variance in all directions, and weighs how well these explain
    the points against their number of parameters, k (d + 1); it counts every point as independent,
    and so tends to many clusters where there are many points. Each k is a program of its own to
    compile. Not for use under jit.

    Args:
      key: JAX random key, of all fits and the sample.
      points: [n, d], as for `kmeans`.
      ks: the numbers of clusters to try, each in 1..n-1.
      score: which score chooses.
      sample: rows that silhouettes are taken of, the same for all k: time grows with their square.
      **options: of `kmeans`, but for weights, initial_centroids and axis_name.

    Returns:
      A `KChoice`.

    Raises:
      ValueError: no k, one out of range, an unknown score, or as `kmeans`.

    Example:
      >>> points = [[0.0], [0.1], [4.0], [4.1], [9.0], [9.1]]
      >>> found = choose_k(jax.random.key(0), points, [2, 3], restarts=3)
      >>> found.k, found.silhouettes.round(2).tolist()
      (3, [0.72, 0.98])
    """
    from retrieval_jax.metrics.silhouette import silhouette  # not for all who import k-means

    points = host_matrix(points, "points")
    n, d = points.shape
    if score not in ("silhouette", "bic"):
        raise ValueError(f"score must be 'silhouette' or 'bic'; it is {score!r}.")
    if not len(ks):
        raise ValueError("ks must name at least one number of clusters.")
    if refused := {"weights", "initial_centroids", "axis_name"} & options.keys():
        raise ValueError(f"choose_k takes no {', '.join(sorted(refused))}.")
    counts = np.array([check_clusters(k, n - 1) for k in ks])
    fit_key, sample_key = jax.random.split(key)
    rows = np.asarray(jax.random.permutation(sample_key, n))[: whole_number(sample, "sample")]
    some = np.asarray(points)[rows]
    silhouettes, bic, inertias = np.full((3, len(counts)), np.nan)
    for i, k in enumerate(counts):
        fit = kmeans(fit_key, points, k, **options)
        labels = np.asarray(fit.labels)
        inertias[i] = fit.inertia
        bic[i] = _bic(np.bincount(labels, minlength=k), float(fit.inertia), d)
        if 1 < len(np.unique(labels[rows])) < len(rows):
            silhouettes[i] = silhouette(some, labels[rows])
    chosen = silhouettes if score == "silhouette" else bic
    best = int(np.argmax(np.where(np.isnan(chosen), -np.inf, chosen)))
    return KChoice(int(counts[best]), counts, silhouettes, bic, inertias)


def _bic(sizes: np.ndarray, inertia: float, d: int) -> float:
    """The criterion of Pelleg and Moore, for one variance estimated over all n points."""
    n, k = sizes.sum(), len(sizes)
    variance = inertia / (d * (n - k))
    if variance == 0:
        return np.inf
    filled = sizes[sizes > 0]
    likelihood = (filled * np.log(filled / n)).sum()
    likelihood -= n * d / 2 * np.log(2 * np.pi * variance) + d * (n - k) / 2
    return float(likelihood - k * (d + 1) / 2 * np.log(n))


def match_centroids(earlier: ArrayLike, centroids: ArrayLike) -> np.ndarray:
    """Which of the centroids takes the number of each earlier one.

    The pairs have the least sum of squared distances. `centroids[order]` are in the order of the
    earlier ones, and `np.argsort(order)[labels]` are labels in their numbers.

    Args:
      earlier: [k, d], of the fit whose numbers are kept.
      centroids: [k, d], of another fit.

    Returns:
      int [k], a permutation.

    Raises:
      ValueError: arrays that are empty, not finite or of different shapes.

    Example:
      >>> order = match_centroids([[0.0], [5.0], [9.0]], [[9.1], [0.2], [5.3]])
      >>> order.tolist()
      [1, 2, 0]
    """
    from scipy.optimize import linear_sum_assignment  # half a second

    before, after = host_matrix(earlier, "earlier"), host_matrix(centroids, "centroids")
    if before.shape != after.shape:
        raise ValueError(f"the centroids are of shape {before.shape} and {after.shape}.")
    return linear_sum_assignment(np.asarray(transform(before, after), np.float64) ** 2)[1]
