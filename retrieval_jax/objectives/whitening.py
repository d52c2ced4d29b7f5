"""Views agree after their features are made uncorrelated and of one scale: W-MSE."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from retrieval_jax.numerics.distances import unit
from retrieval_jax.objectives.batchwide import all_real, moments, total
from retrieval_jax.objectives.objective import Term, check_range, of_projections


def whitened_distance(
    projections: jax.Array,
    *,
    epsilon: float = 1e-3,
    real: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """W-MSE, Ermolov et al. 2021, arXiv:2007.06346, equations 4 to 6; the mean over pairs of views.

    Each view is whitened by the Cholesky factor of its covariance over the whole batch (the
    authors whiten in random parts of it), then the squared distance of unit rows is averaged. The
    batch needs more examples than features, or no features could be uncorrelated.

    Args:
      projections: float [v, n, d] of v ≥ 2 views of one device's n examples.
      epsilon: added to each variance, without which collapsed features could not be divided.
      real: bool [n]; rows that are not count nowhere.
      axis_name: the mapped axis of devices.

    Returns:
      A scalar in [0, 4], the same on every device.

    Example:
      >>> same = jnp.array([[[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]] * 2)
      >>> float(whitened_distance(same))
      0.0
    """
    views, n, width = projections.shape
    centred, _, count = moments(projections, real, axis_name)
    product = total(jnp.einsum("vni,vnj->vij", centred, centred), axis_name)
    covariance = product / jnp.maximum(count - 1, 1) + epsilon * jnp.eye(width)
    factor = jnp.linalg.cholesky(covariance)
    white = jax.vmap(lambda f, rows: solve_triangular(f, rows.T, lower=True).T)(factor, centred)
    white = unit(white)
    # The mean over ordered pairs of views of |z - z'|², from the distances to their mean.
    apart = jnp.where(all_real(n, real)[:, None], white - white.mean(0), 0)
    return 2 * total(jnp.square(apart).sum(), axis_name) / (count * (views - 1))


def w_mse(weight: float = 0.0, epsilon: float = 1e-3) -> Term:
    """W-MSE of the projections; see `whitened_distance`.

    Args:
      weight: of the whole.
      epsilon: added to each feature's variance before it is divided by.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_range("epsilon", epsilon, 0, open_low=True)

    return of_projections(whitened_distance, weight, epsilon=epsilon)
