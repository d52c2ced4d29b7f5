"""t-SNE: embeddings laid out in the plane for the eye."""

from typing import Any, NamedTuple

import numpy as np


class Map(NamedTuple):
    """Where some rows of the gallery, and the first queries, are on the map.

    Attributes:
      positions: float32 [m, 2].
      rows: int64 [m], ascending, rows of the gallery's embeddings.
      queries: float32 [p, 2].
    """

    positions: np.ndarray
    rows: np.ndarray
    queries: np.ndarray


def lay_out(gallery: np.ndarray, queries: np.ndarray, points: int, seed: int) -> Map:
    """The map of at most `points` of the gallery embeddings [n, d], drawn by the seed.

    The queries [p, d] are placed on the finished map, each between its three nearest.

    Example:
      >>> found = lay_out(np.eye(4), np.eye(4)[:1], points=3, seed=0)
      >>> found.positions.shape, found.queries.shape
      ((3, 2), (1, 2))
    """
    sample = np.random.default_rng(seed).permutation(len(gallery))
    rows = np.sort(sample[:points])
    layout = _fitted(gallery[rows], seed, 30.0)
    positions = np.asarray(layout, np.float32)
    queries = np.asarray(queries, np.float64)
    if not len(queries) or not len(rows):
        placed = np.zeros((len(queries), 2))
    elif hasattr(layout, "prepare_partial"):
        # Its optimization moved all queries alike, by as much as a group's width, in some maps.
        placed = layout.prepare_partial(queries, initialization="weighted", k=3)
    else:
        far = np.linalg.norm(queries[:, None] - gallery[rows], axis=2)
        placed = positions[far.argmin(1)]
    return Map(positions, rows, np.asarray(placed, np.float32))


def tsne(embeddings: np.ndarray, seed: int, *, perplexity: float = 30.0) -> np.ndarray:
    """Places embeddings in the plane so that near neighbours stay near (t-SNE).

    A map to look at: distances between groups and the sizes of groups carry no meaning. It starts
    from the first two principal components, so the same embeddings and seed give the same map.
    About 40 s for 10,000 x 128 on two CPU cores; pass a subsample of a large set.

    Args:
      embeddings: finite floats [n, d], n and d of any size.
      seed: of the jitter and of the approximate neighbour search.
      perplexity: effective number of neighbours; lowered to (n - 1) / 3 for small n.

    Returns:
      Positions float32 [n, 2]. Fewer than five points, or points that are all equal, have no
      neighbourhoods to keep: these get their principal components (zeros when all are equal).

    Raises:
      ValueError: embeddings that are not [n, d] or not finite.

    References:
      van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008;
      Linderman et al., "Fast interpolation-based t-SNE", Nature Methods 2019;
      Policar et al., "openTSNE", JSS 2024.

    >>> tsne(np.eye(3), seed=0).shape
    (3, 2)
    """
    return np.asarray(_fitted(embeddings, seed, perplexity), np.float32)


def _fitted(embeddings: np.ndarray, seed: int, perplexity: float) -> Any:
    """openTSNE's layout, which can place more points; or principal components as an array."""
    points = np.asarray(embeddings, np.float64)
    if points.ndim != 2:
        raise ValueError(f"embeddings should be [n, d], their shape is {points.shape}.")
    if not np.isfinite(points).all():
        raise ValueError("embeddings should be finite, there is a NaN or an infinite value.")
    start = _principal_components(points)
    if len(points) < 5 or not start.any():
        return start

    from openTSNE import TSNE  # takes seconds to import

    # Equal points would stay on one spot for ever: equal positions repel each other by zero.
    # A spread of 1e-4 keeps the first steps stable whatever the scale of the embeddings.
    start /= start.std(axis=0).max()
    start = 1e-4 * (start + np.random.default_rng(seed).normal(0.0, 0.01, start.shape))
    return TSNE(
        perplexity=min(perplexity, (len(points) - 1) / 3),
        initialization=start,
        random_state=seed,
        # Threads cost more than they bring below a few thousand points.
        n_jobs=-1 if len(points) > 5000 else 1,
    ).fit(points)


def _principal_components(points: np.ndarray) -> np.ndarray:
    """The first two principal components [n, 2], zeros where the points have fewer."""
    from sklearn.decomposition import PCA

    components = np.zeros((len(points), 2))
    if points.size and np.ptp(points, axis=0).any():
        rank = min(2, *points.shape)
        pca = PCA(rank, svd_solver="randomized", random_state=0)
        components[:, :rank] = pca.fit_transform(points)
    return components
