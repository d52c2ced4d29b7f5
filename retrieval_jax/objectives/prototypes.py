"""Prototypes that are learned: SwAV's swapped prediction with Sinkhorn's assignments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.objectives.batchwide import all_real, everyone, first_row
from retrieval_jax.objectives.objective import Loss, Seen, Term, check_range, mean_of


def sinkhorn(
    scores: jax.Array,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    real: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Soft assignments that use all prototypes alike: Sinkhorn and Knopp's iteration.

    Caron et al. 2020, "SwAV", arXiv:2006.09882, equations 3 to 5; in logarithms, so that no row or
    column can underflow to 0, on the rows of all devices.

    Args:
      scores: float [n, k], cosines with the prototypes.
      epsilon: of the entropy; the smaller, the harder the assignments.
      iterations: each makes the columns' sums equal, then the rows'.
      real: bool [n]; the others take no part.
      axis_name: the mapped axis of devices.

    Returns:
      float [n, k] without gradient; every row adds up to 1.

    Example:
      >>> sinkhorn(jnp.array([[0.9, 0.8], [0.9, 0.1]]), iterations=20).round(1)
      Array([[0., 1.],
             [1., 0.]], dtype=float32)
    """
    n = len(scores)
    counted = everyone(all_real(n, real), axis_name)[:, None]
    logs = lax.stop_gradient(everyone(scores, axis_name)) / epsilon

    def even(_: int, logs: jax.Array) -> jax.Array:
        logs -= jax.nn.logsumexp(jnp.where(counted, logs, -1e30), 0)
        return logs - jax.nn.logsumexp(logs, 1, keepdims=True)

    logs = lax.fori_loop(0, iterations, even, logs)
    return lax.dynamic_slice_in_dim(jnp.exp(logs), first_row(n, axis_name), n)


def swapped_prediction(
    scores: jax.Array,
    *,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    codes: int = 2,
    real: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """SwAV, Caron et al. 2020, arXiv:2006.09882, equations 1, 2 and 6.

    Each of the first views gives a code, which every other view has to predict.

    Args:
      scores: float [v, n, k], cosines of the views with the prototypes, v ≥ 2.
      temperature: divides the scores of what predicts.
      epsilon: of `sinkhorn`.
      iterations: of `sinkhorn`.
      codes: how many views give one, 1 to v.
      real: bool [n].
      axis_name: the mapped axis of devices.

    Returns:
      float [n], the cross-entropy averaged over pairs, in nats.

    Example:
      >>> float(swapped_prediction(jnp.zeros((2, 3, 4)))[0])  # log(4)
      1.3862943649291992
    """
    views = len(scores)
    given = jax.vmap(
        lambda view: sinkhorn(
            view, epsilon=epsilon, iterations=iterations, real=real, axis_name=axis_name
        )
    )(scores[:codes])
    entropies = -jnp.einsum("cnk,vnk->cvn", given, jax.nn.log_softmax(scores / temperature, -1))
    other = (jnp.arange(codes)[:, None] != jnp.arange(views))[:, :, None]
    return jnp.where(other, entropies, 0).sum((0, 1)) / (codes * (views - 1))


def swav(
    weight: float = 0.0,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    codes: int = 2,
) -> Term:
    """SwAV: views predict one another's assignment to `model.prototypes`; `swapped_prediction`.

    Args:
      weight: of the cross-entropy in nats.
      temperature: divides the cosines with the prototypes.
      epsilon: of the assignments' entropy; the smaller, the harder they are.
      iterations: of Sinkhorn.
      codes: how many of the first views are assigned, the large crops; all views predict.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_range("temperature", temperature, 0, open_low=True)
    check_range("epsilon", epsilon, 0, open_low=True)
    check_range("iterations", iterations, 1)
    check_range("codes", codes, 1)

    def loss(seen: Seen) -> Loss:
        assert seen.outputs.scores is not None
        values = swapped_prediction(
            seen.outputs.scores,
            temperature=temperature,
            epsilon=epsilon,
            iterations=iterations,
            codes=codes,
            real=seen.batch.rows >= 0,
            axis_name=seen.axis_name,
        )
        return mean_of(values, seen.batch)

    return Term(loss, weight, needs=("scores",), views=max(codes, 2))
