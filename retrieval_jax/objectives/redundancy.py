"""Views agree while features stay spread and apart: VICReg, Barlow Twins and EMP-SSL's coding rate.

None of them compares images with one another, so they need no large batches. Each function takes
projections float32 [v, n, d] of v views of one device's n examples and returns the loss of the
whole batch, the same on every device; rows that are not `real` count nowhere.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from retrieval_jax.numerics.distances import unit
from retrieval_jax.objectives.batchwide import all_real, moments, total
from retrieval_jax.objectives.objective import Term, check_range, of_projections


def variance_invariance_covariance(
    projections: jax.Array,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    real: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """VICReg, Bardes et al. 2022, arXiv:2105.04906, equations 1 to 6.

    The invariance is the mean squared difference of two views and the variance's hinge the mean of
    theirs, as the authors' program weighs them; of more than two views it is the mean over pairs.

    Args:
      projections: float [v, n, d], v ≥ 2.
      invariance: weight of the squared difference between views, averaged over features.
      variance: weight of what each feature's standard deviation lacks to 1.
      covariance: weight of the squared covariances of different features, summed and divided by d.
      real: bool [n].
      axis_name: the mapped axis of devices.

    Returns:
      A scalar.

    Example:
      >>> same = jnp.array([[[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]] * 2)
      >>> float(variance_invariance_covariance(same))
      0.0
    """
    views, n, width = projections.shape
    counted = all_real(n, real)[:, None]
    centred, _, count = moments(projections, real, axis_name)
    apart = jnp.where(counted, projections - projections.mean(0), 0)
    # The mean over ordered pairs of views of |z - z'|², from the distances to their mean.
    pairs = 2 * total(jnp.square(apart).sum(), axis_name) / (count * (views - 1))
    product = total(jnp.einsum("vni,vnj->vij", centred, centred), axis_name)
    matrices = product / jnp.maximum(count - 1, 1)
    variances = jnp.diagonal(matrices, axis1=1, axis2=2)
    hinge = jax.nn.relu(1 - jnp.sqrt(variances + 1e-4)).mean()
    off = (jnp.square(matrices).sum((1, 2)) - jnp.square(variances).sum(1)).mean() / width
    return invariance * pairs / width + variance * hinge + covariance * 2 * off


def cross_correlation(
    projections: jax.Array,
    *,
    off_diagonal: float = 0.005,
    real: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Barlow Twins, Zbontar et al. 2021, arXiv:2103.03230, equations 1 and 2; the mean over pairs.

    Args:
      projections: float [v, n, d], v ≥ 2.
      off_diagonal: weight λ of the squared correlations of different features.
      real: bool [n].
      axis_name: the mapped axis of devices.

    Returns:
      A scalar.

    Example:
      >>> same = jnp.array([[[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]] * 2)
      >>> round(float(cross_correlation(same)), 5)
      0.0
    """
    views = len(projections)
    centred, _, count = moments(projections, real, axis_name)
    variances = total(jnp.square(centred).sum(1), axis_name) / count
    scaled = centred / jnp.sqrt(variances[:, None] + 1e-5)
    products = total(jnp.einsum("vni,wnj->vwij", scaled, scaled), axis_name) / count
    diagonal = jnp.diagonal(products, axis1=2, axis2=3)
    off = jnp.square(products).sum((2, 3)) - jnp.square(diagonal).sum(2)
    values = jnp.square(1 - diagonal).sum(2) + off_diagonal * off
    other = ~jnp.eye(views, dtype=bool)
    return jnp.where(other, values, 0).sum() / (views * (views - 1))


def coding_rate(
    rows: jax.Array,
    *,
    epsilon: float = 0.2,
    real: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """½ log det(I + d / (n ε²) Zᵀ Z), Yu et al. 2020, arXiv:2006.08558, equation 6, in nats.

    It grows as the rows fill more directions more evenly.

    Args:
      rows: float [v, n, d] of length 1.
      epsilon: the coding precision ε.
      real: bool [n].
      axis_name: the mapped axis of devices.

    Returns:
      float [v].

    Example:
      >>> one, two = jnp.ones((1, 2, 2)) / 2**0.5, jnp.eye(2)[None]
      >>> float(coding_rate(one)[0]) < float(coding_rate(two)[0])
      True
    """
    n, width = rows.shape[1:]
    counted = all_real(n, real)
    count = jnp.maximum(total(counted.sum(dtype=rows.dtype), axis_name), 1)
    rows = jnp.where(counted[:, None], rows, 0)
    product = total(jnp.einsum("vni,vnj->vij", rows, rows), axis_name)
    factor = jnp.linalg.cholesky(jnp.eye(width) + width / (count * epsilon**2) * product)
    return jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)).sum(1)


def many_crops(
    projections: jax.Array,
    *,
    epsilon: float = 0.2,
    agreement: float = 200.0,
    real: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """EMP-SSL, Tong et al. 2023, arXiv:2304.03977, equations 2 to 4: -(R + λ agreement).

    R is the mean of the crops' coding rates, and the agreement the mean cosine between a crop's
    projection and the mean of the image's crops.

    Args:
      projections: float [v, n, d], v ≥ 2.
      epsilon: of the coding rate.
      agreement: the weight λ.
      real: bool [n].
      axis_name: the mapped axis of devices.

    Returns:
      A scalar.

    Example:
      >>> float(many_crops(jnp.ones((2, 4, 1)), epsilon=1.0, agreement=1.0))  # -(log(2) / 2 + 1)
      -1.3465735912322998
    """
    rows = unit(projections)
    counted = all_real(rows.shape[1], real)
    count = jnp.maximum(total(counted.sum(dtype=rows.dtype), axis_name), 1)
    rate = coding_rate(rows, epsilon=epsilon, real=real, axis_name=axis_name).mean()
    cosines = (rows * unit(rows.mean(0))).sum(-1).mean(0)
    alike = total(jnp.where(counted, cosines, 0).sum(), axis_name) / count
    return -rate - agreement * alike


def vicreg(
    weight: float = 0.0,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Term:
    """VICReg of the projections; see `variance_invariance_covariance`.

    Args:
      weight: of the whole.
      invariance: weight of the mean squared difference between views.
      variance: weight of what each feature's standard deviation lacks to 1.
      covariance: weight of the squared covariances of different features.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    for name, value in weights.items():
        check_range(name, value, 0)

    return of_projections(variance_invariance_covariance, weight, **weights)


def barlow_twins(weight: float = 0.0, off_diagonal: float = 0.005) -> Term:
    """Barlow Twins of the projections; see `cross_correlation`.

    Args:
      weight: of the whole.
      off_diagonal: weight of the squared correlations of different features.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_range("off_diagonal", off_diagonal, 0)

    return of_projections(cross_correlation, weight, off_diagonal=off_diagonal)


def emp_ssl(weight: float = 0.0, epsilon: float = 0.2, agreement: float = 200.0) -> Term:
    """EMP-SSL of the projections of many crops; see `many_crops`.

    Args:
      weight: of the whole.
      epsilon: precision of the coding rate; the smaller, the more it rewards spread.
      agreement: weight of the mean cosine between a crop and its image's mean.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_range("epsilon", epsilon, 0, open_low=True)
    check_range("agreement", agreement, 0)

    return of_projections(many_crops, weight, epsilon=epsilon, agreement=agreement)
