"""One view predicts another, with no negatives: BYOL and SimSiam.

What keeps them from collapse is the predictor, which stands on one side alone, and that the other
side has no gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.numerics.distances import unit
from retrieval_jax.objectives.contrastive import mean_over_others
from retrieval_jax.objectives.objective import Loss, Seen, Term, mean_of


def predicted_cosines(predictions: jax.Array, goals: jax.Array) -> jax.Array:
    """The mean cosine of each view's prediction and the other views' goals, which have no gradient.

    Args:
      predictions: float [v, n, d], v ≥ 2.
      goals: float [v, n, d].

    Returns:
      float [v, n].

    Example:
      >>> one = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
      >>> two = jnp.array([[[0.0, 2.0]], [[0.0, 1.0]]])
      >>> predicted_cosines(one, two).tolist()
      [[0.0], [1.0]]
    """
    goals = lax.stop_gradient(unit(goals))
    return mean_over_others(jnp.einsum("vnd,wnd->vwn", unit(predictions), goals))


def byol(weight: float = 0.0) -> Term:
    """BYOL, Grill et al. 2020, arXiv:2006.07733, equation 2: 2 - 2 cosine, over pairs of views.

    Predictions are compared with the projections of the averaged network: set `training.ema_decay`,
    and `training.ema_schedule` for the paper's schedule.

    Args:
      weight: of the squared distance of the unit vectors.
    """

    def loss(seen: Seen) -> Loss:
        assert seen.outputs.prediction is not None and seen.target is not None
        assert seen.target.projection is not None
        cosines = predicted_cosines(seen.outputs.prediction, seen.target.projection)
        return mean_of(2 - 2 * cosines, seen.batch)

    return Term(loss, weight, needs=("prediction",), needs_target=True, views=2)


def simsiam(weight: float = 0.0) -> Term:
    """SimSiam, Chen and He 2021, arXiv:2011.10566, equations 1 and 3: -cosine, over pairs of views.

    Args:
      weight: of the negative cosine.
    """

    def loss(seen: Seen) -> Loss:
        assert seen.outputs.prediction is not None and seen.outputs.projection is not None
        cosines = predicted_cosines(seen.outputs.prediction, seen.outputs.projection)
        return mean_of(-cosines, seen.batch)

    return Term(loss, weight, needs=("prediction",), views=2)
