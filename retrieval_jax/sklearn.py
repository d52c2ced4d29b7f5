"""k-means and nearest neighbours as scikit-learn estimators.

Thin: what is found is what `retrieval_jax.kmeans.kmeans` and `retrieval_jax.ranking.nearest` find,
in float32, or in float64 where the input is and `jax_enable_x64` is on. Sparse input is refused.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from retrieval_jax.kmeans import kmeans, predict, transform
from retrieval_jax.numerics.distances import scores
from retrieval_jax.ranking import nearest

_FLOATS = (np.float64, np.float32)


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """`retrieval_jax.kmeans.kmeans` with the interface of `sklearn.cluster.KMeans`.

    Rows of weight 0 and columns of zeros are added up to round sizes, so that inputs of about the
    same size share a compiled program.

    Args:
      n_clusters: k.
      init: "k-means++", "random", or centroids [k, d].
      n_init: restarts; "auto" for 1, but 10 where init is "random".
      max_iter: most moves of the centroids in a restart.
      tol: relative to the mean variance of the features.
      random_state: seed, `np.random.RandomState`, or None for NumPy's global one.

    Attributes:
      cluster_centers_: [k, d].
      labels_: int32 [n].
      inertia_: the weighted sum of squared distances of the points to their centroids.
      n_iter_: moves of the centroids in the best restart.
      n_features_in_: d.

    Example:
      >>> found = KMeans(n_clusters=2, random_state=0).fit([[0.0], [1.0], [8.0], [9.0]])
      >>> sorted(found.cluster_centers_.ravel().tolist()), found.inertia_
      ([0.5, 8.5], 1.0)
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Literal["k-means++", "random"] | ArrayLike = "k-means++",
        n_init: int | Literal["auto"] = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
    ):
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Clusters the points [n, d], weighted by sample_weight [n]."""
        X = validate_data(self, X, dtype=_FLOATS)
        n, d = X.shape
        if n < self.n_clusters:
            raise ValueError(f"n_samples={n} should be >= n_clusters={self.n_clusters}.")
        weights = np.ones(n, X.dtype) if sample_weight is None else np.asarray(sample_weight)
        if weights.shape != (n,):
            raise ValueError(f"sample_weight must be of shape ({n},), not {weights.shape}.")
        if not (weights > 0).any():
            raise ValueError("every sample weight is zero.")
        options: dict[str, Any] = {"seeding": self.init}
        if not isinstance(self.init, str):
            centroids = validate_data(self, self.init, dtype=X.dtype, reset=False)
            options = {"initial_centroids": _rounded_up(centroids, rows=False)}
        restarts = self.n_init
        if restarts == "auto":
            restarts = 10 if isinstance(self.init, str) and self.init == "random" else 1
        rows = _rounded_up(X)
        seed = check_random_state(self.random_state).randint(2**31)
        found = kmeans(
            jax.random.key(seed),
            rows,
            self.n_clusters,
            weights=np.pad(weights, (0, len(rows) - n)),
            restarts=restarts,
            max_iterations=self.max_iter,
            tolerance=self.tol,
            **options,
        )
        self.cluster_centers_ = np.asarray(found.centroids)[:, :d].astype(X.dtype)
        self.labels_ = np.asarray(found.labels)[:n]
        self.inertia_ = float(found.inertia)
        self.n_iter_ = int(found.iterations)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The number int32 [n] of the nearest centroid of each point."""
        X, centroids = self._checked(X)
        return np.asarray(predict(_rounded_up(X), centroids))[: len(X)]

    def transform(self, X: Any) -> np.ndarray:
        """The Euclidean distance [n, k] of each point to each centroid."""
        X, centroids = self._checked(X)
        return np.asarray(transform(_rounded_up(X), centroids))[: len(X)].astype(X.dtype)

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """The inertia of points [n, d] at these centroids, with its sign changed."""
        labels = self.predict(X)
        X = validate_data(self, X, dtype=_FLOATS, reset=False)
        squares = ((X - self.cluster_centers_[labels]) ** 2).sum(1, dtype=np.float64)
        return -float(np.average(squares, weights=sample_weight) * _total(sample_weight, len(X)))

    def _checked(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_FLOATS, reset=False)
        return X, _rounded_up(self.cluster_centers_, rows=False)

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class NearestNeighbors(BaseEstimator):
    """`retrieval_jax.ranking.nearest` with the interface of `sklearn.neighbors.NearestNeighbors`.

    Args:
      n_neighbors: neighbours of a query where `kneighbors` is not told.
      radius: where `radius_neighbors` is not told.
      metric: "euclidean", "sqeuclidean" or "cosine".

    Attributes:
      n_samples_fit_: rows of the gallery.
      n_features_in_: d.

    Example:
      >>> gallery = NearestNeighbors(n_neighbors=2).fit([[0.0], [1.0], [3.0]])
      >>> gallery.kneighbors([[0.9]], return_distance=False).tolist()
      [[1, 0]]
      >>> gallery.radius_neighbors([[2.0]], radius=1.0, return_distance=False)[0].tolist()
      [1, 2]
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        radius: float = 1.0,
        metric: Literal["euclidean", "sqeuclidean", "cosine"] = "euclidean",
    ):
        self.n_neighbors = n_neighbors
        self.radius = radius
        self.metric = metric

    def fit(self, X: Any, y: Any = None) -> Self:
        """Keeps the gallery [n, d]."""
        if self.metric not in _METRICS:
            raise ValueError(f"metric must be one of {', '.join(_METRICS)}; it is {self.metric!r}.")
        self._gallery = validate_data(self, X, dtype=_FLOATS)
        self.n_samples_fit_ = len(self._gallery)
        return self

    def kneighbors(
        self,
        X: Any | None = None,
        n_neighbors: int | None = None,
        return_distance: bool = True,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The nearest gallery rows of each query, nearest first, of equally near ones the first.

        Args:
          X: queries [q, d]; None for the gallery's rows, none of which finds itself.
          n_neighbors: k; None for the estimator's.
          return_distance: whether distances come first.

        Returns:
          Distances [q, k] if asked for, and int32 [q, k] rows of the gallery.
        """
        queries = self._queries(X)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        most = self.n_samples_fit_ - (X is None)
        if not 1 <= k <= most:
            raise ValueError(f"n_neighbors must be in 1..{most}, the rows there are; it is {k}.")
        found = nearest(queries, self._gallery, k, metric=self.metric, exclude_self=X is None)
        indices = np.asarray(found.indices)
        return (np.asarray(found.distances), indices) if return_distance else indices

    def radius_neighbors(
        self,
        X: Any | None = None,
        radius: float | None = None,
        return_distance: bool = True,
        sort_results: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The gallery rows at most the radius away from each query.

        Products say which rows may be; distances in float64 decide.

        Args:
          X: queries [q, d]; None for the gallery's rows, none of which finds itself.
          radius: the largest distance, by the metric; None for the estimator's.
          return_distance: whether distances come first.
          sort_results: nearest first; otherwise by row.

        Returns:
          Arrays of q arrays: distances (float64) if asked for, and rows of the gallery (int64).
        """
        queries, gallery = self._queries(X), self._gallery
        radius = self.radius if radius is None else radius
        if not radius >= 0:
            raise ValueError(f"radius must not be negative; it is {radius}.")
        queries = _for_squares(queries, self.metric, (1, 0))
        gallery = _for_squares(gallery, self.metric, (0, 1))
        squared = {"euclidean": radius**2, "sqeuclidean": radius, "cosine": 2 * radius}[self.metric]
        origin = gallery.mean(0)
        # Of a size that squares of any type can hold.
        scale = 2.0 ** -np.frexp(max(np.abs(a - origin).max() for a in (queries, gallery)))[1]
        near = [(rows - origin) * scale for rows in (queries, gallery)]
        distances, rows = np.empty((2, len(queries)), object)
        chunk = max(1, (1 << 24) // len(gallery))
        for start in range(0, len(queries), chunk):
            possible = np.asarray(
                _may_be_within(near[0][start : start + chunk], near[1], squared * scale**2)
            )
            for i, found in enumerate(possible, start):
                at = np.flatnonzero(found)
                at = at[at != i] if X is None else at
                squares = ((gallery[at] - queries[i]) ** 2).sum(1)
                at, squares = at[squares <= squared], squares[squares <= squared]
                if sort_results:
                    order = np.argsort(squares, kind="stable")
                    at, squares = at[order], squares[order]
                values = {"euclidean": np.sqrt(squares), "cosine": squares / 2}
                distances[i], rows[i] = values.get(self.metric, squares), at
        return (distances, rows) if return_distance else rows

    def _queries(self, X: Any | None) -> np.ndarray:
        check_is_fitted(self)
        return self._gallery if X is None else validate_data(self, X, dtype=_FLOATS, reset=False)


# Sizes are rounded up to multiples of these; many rows by at most an eighth.
_ROWS, _COLUMNS = 64, 8
_METRICS = ("euclidean", "sqeuclidean", "cosine")


def _rounded_up(X: np.ndarray, rows: bool = True) -> np.ndarray:
    """The array with columns and rows of zeros added."""
    n, d = X.shape
    step = max(_ROWS, 1 << max(0, n.bit_length() - 4))
    return np.pad(X, ((0, -n % step if rows else 0), (0, -d % _COLUMNS)))


def _total(weights: ArrayLike | None, n: int) -> float:
    return n if weights is None else float(np.sum(np.asarray(weights, np.float64)))


def _for_squares(rows: np.ndarray, metric: str, own: tuple[int, int]) -> np.ndarray:
    """Rows in float64; for the cosine of length 1, so that half a squared distance is 1 - cosine.

    A zero vector is at 1 from all others: along an axis of its own, another for queries.
    """
    rows = rows.astype(np.float64)
    if metric != "cosine":
        return rows
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.hstack([rows / np.where(lengths > 0, lengths, 1), (lengths == 0) * np.array([own])])


@jax.jit
def _may_be_within(queries, gallery, squared) -> jax.Array:
    """Whether products say of each pair [q, n] that its squared distance may be that small."""
    own, others = (queries**2).sum(1), (gallery**2).sum(1)
    slack = 16 * queries.shape[1] ** 0.5 * jnp.finfo(queries.dtype).eps
    sizes = own[:, None] + others
    return scores(gallery, queries) + others <= squared * (1 + slack) + slack * sizes
