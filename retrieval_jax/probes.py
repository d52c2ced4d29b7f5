"""How well embeddings tell classes apart: the field's weighted kNN and linear probe."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from retrieval_jax import sharded
from retrieval_jax.report.results import Score


def accuracies(
    gallery: np.ndarray,
    queries: np.ndarray,
    gallery_labels: np.ndarray,
    query_labels: np.ndarray,
) -> dict[str, Score]:
    """Both probes' accuracies on the queries, beside that of the gallery's commonest class.

    Example:
      >>> points, labels = np.eye(2, dtype=np.float32), np.arange(2)
      >>> accuracies(points, points, labels, labels)["linear_accuracy"]
      Score(value=1.0, chance=0.5)
    """
    chance = float((query_labels == np.bincount(gallery_labels).argmax()).mean())
    found = {
        "weighted_knn_accuracy": weighted_knn(gallery, gallery_labels, queries),
        "linear_accuracy": linear_probe(gallery, gallery_labels, queries),
    }
    return {
        name: Score(float((classes == query_labels).mean()), chance)
        for name, classes in found.items()
    }


def weighted_knn(
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    queries: np.ndarray,
    *,
    k: int = 200,
    temperature: float = 0.1,
) -> np.ndarray:
    """The class of each query by its neighbours' votes, each of weight exp(cosine / temperature).

    Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination",
    arXiv:1805.01978, section 3.4.

    Args:
      gallery: float32 [n, d], of any length.
      gallery_labels: int [n] from 0.
      queries: float32 [q, d].
      k: neighbours that vote; all, where there are fewer.
      temperature: above 0.

    Returns:
      int64 [q]; of classes with equal votes the lowest.

    Raises:
      ValueError: the temperature is not above 0.

    Example:
      >>> points = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]], np.float32)
      >>> weighted_knn(points, np.array([0, 0, 1]), points[2:], k=3).tolist()
      [1]
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    found = sharded.nearest(queries, gallery, min(k, len(gallery)), metric="cosine")
    indices = np.asarray(found.indices)
    votes = np.zeros((len(queries), int(gallery_labels.max()) + 1))
    weights = np.exp(-np.asarray(found.distances, np.float64) / temperature)  # of 1 - cosine
    np.add.at(votes, (np.arange(len(queries))[:, None], gallery_labels[indices]), weights)
    return votes.argmax(1)


def linear_probe(
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    queries: np.ndarray,
    *,
    l2: float = 1e-4,
    iterations: int = 100,
) -> np.ndarray:
    """The class of each query by multinomial logistic regression on the gallery, by L-BFGS.

    Features are standardised by the gallery's means and deviations. The objective is the mean
    cross-entropy plus l2 / 2 times the squared weights, without the biases.

    Args:
      gallery: float32 [n, d].
      gallery_labels: int [n] from 0.
      queries: float32 [q, d].
      l2: ridge, at least 0.
      iterations: of L-BFGS.

    Returns:
      int64 [q].

    Example:
      >>> points = np.array([[0.0], [1.0], [8.0], [9.0]], np.float32)
      >>> linear_probe(points, np.array([0, 0, 1, 1]), points[1:3]).tolist()
      [0, 1]
    """
    mean, deviation = gallery.mean(0), gallery.std(0)
    deviation = np.where(deviation > 0, deviation, 1)
    rows, asked = ((x - mean) / deviation for x in (gallery, queries))
    shape = gallery.shape[1], int(gallery_labels.max()) + 1
    kernel, bias = _logistic(jnp.asarray(rows), jnp.asarray(gallery_labels), l2, shape, iterations)
    return (asked @ np.asarray(kernel) + np.asarray(bias)).argmax(1)


def _logistic(
    rows: jax.Array, labels: jax.Array, l2: float, shape: tuple[int, int], iterations: int
) -> tuple[jax.Array, jax.Array]:
    solver = optax.lbfgs()

    def fit(rows: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        def objective(params):
            logits = rows @ params[0] + params[1]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean() + l2 / 2 * jnp.square(params[0]).sum()

        def step(_, carry):
            params, state = carry
            value, gradient = optax.value_and_grad_from_state(objective)(params, state=state)
            updates, state = solver.update(
                gradient, state, params, value=value, grad=gradient, value_fn=objective
            )
            return optax.apply_updates(params, updates), state

        params = jnp.zeros(shape), jnp.zeros(shape[1])
        return jax.lax.fori_loop(0, iterations, step, (params, solver.init(params)))[0]

    with jax.default_matmul_precision("highest"):
        return jax.jit(fit)(rows, labels)
