"""What a search minimises, exactly for a few rows and bounded from below for all of them.

Inside the search every metric is a cost, the smaller the nearer: the squared distance, that of the
unit vectors for the cosine, the negative inner product. Candidates are chosen by `bounds`, one
matrix product, and ranked by `costs`.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from retrieval_jax.numerics.bounds import SAMPLE, Basis, principal_basis
from retrieval_jax.numerics.distances import FULL_PRECISION, largest_magnitude, power_of_two, unit
from retrieval_jax.ranking.neighbours import Metric

# Components of the bounds. With their three other features a multiple of 16, which vectors are made
# of: of embeddings they let through 118 rows for 100 neighbours at most, 21 components 133.
COMPONENTS = 29
# Most variance outside the components for their bounds to be worth a try.
RESIDUE = 0.1


def scale_of(*arrays: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The power of two that rows are multiplied by before they are compared: squares stay finite.

    It brings the largest magnitude to 2³¹..2³²: with the squares of more than a million features
    still finite, differences of 10⁻²⁸ of it are not lost.

    Example:
      >>> float(scale_of(jnp.array([[1e-20, -3e-20]]), dtype=jnp.float32)) * 3e-20 > 2**31
      True
    """
    largest = largest_magnitude(*arrays).astype(dtype)
    return power_of_two(jnp.maximum(largest * 2.0**-32, jnp.finfo(dtype).tiny))


def as_compared(rows: jax.Array, metric: Metric, scale: jax.Array) -> jax.Array:
    """Rows [..., d] in the type of the scale; for the cosine of length 1 (a zero row stays zero).

    Example:
      >>> rows = jnp.array([[0.0, 5.0], [0.0, 0.0]])
      >>> as_compared(rows, "cosine", jnp.float32(1)).tolist()
      [[0.0, 1.0], [0.0, 0.0]]
      >>> as_compared(rows, "euclidean", jnp.float32(2)).tolist()
      [[0.0, 10.0], [0.0, 0.0]]
    """
    rows = rows.astype(scale.dtype)
    return unit(rows) if metric == "cosine" else rows * scale


def costs(queries: jax.Array, rows: jax.Array, metric: Metric) -> jax.Array:
    """The cost of each row to its query, from differences, so never by cancellation.

    A zero vector has cosine 0 to everything, itself included.

    Args:
      queries: `as_compared` [..., d].
      rows: `as_compared` [..., d].
      metric: as `nearest`.

    Returns:
      [...], of their type.

    Example:
      >>> costs(jnp.array([[0.0, 3.0]]), jnp.array([[4.0, 0.0]]), "euclidean").tolist()
      [25.0]
    """
    if metric == "inner_product":
        return -_dot(queries, rows)
    squared = ((queries - rows) ** 2).sum(-1)
    if metric == "cosine":
        zero = (queries == 0).all(-1) | (rows == 0).all(-1)
        squared = jnp.where(zero, 2, squared)
    return squared


def as_distances(least: jax.Array, metric: Metric, scale: jax.Array) -> jax.Array:
    """Costs of rows `as_compared` as the metric names them; the gradient of a distance 0 is 0.

    Example:
      >>> as_distances(jnp.array([4.0]), "euclidean", jnp.float32(2)).tolist()
      [1.0]
    """
    match metric:
        case "euclidean":
            positive = least > 0
            return jnp.where(positive, jnp.sqrt(jnp.where(positive, least, 1)), 0) / scale
        case "sqeuclidean":
            return least / scale / scale
        case "cosine":
            return least / 2
    return -least / scale / scale


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """x·y over the last axis as if in twice the precision of its type, rounded once.

    Products by Dekker's splitting, sums by Knuth's two-sum in halves. T. Ogita, S. Rump, S. Oishi,
    "Accurate sum and dot product", SIAM J. Scientific Computing, 2005.
    """
    info = jnp.finfo(x.dtype)
    x_high, y_high = (lax.reduce_precision(of, info.nexp, (info.nmant - 1) // 2) for of in (x, y))
    x_low, y_low = x - x_high, y - y_high
    total = x * y
    error = ((x_high * y_high - total) + x_high * y_low + x_low * y_high) + x_low * y_low
    while total.shape[-1] > 1:
        half = -(-total.shape[-1] // 2)
        pad = [(0, 0)] * (total.ndim - 1) + [(0, 2 * half - total.shape[-1])]
        total, error = jnp.pad(total, pad), jnp.pad(error, pad)
        a, b = total[..., :half], total[..., half:]
        total = a + b
        partner = total - a
        lost = (a - (total - partner)) + (b - partner)
        error = error[..., :half] + error[..., half:] + lost
    return (total + error)[..., 0]


def find_basis(
    gallery: jax.Array, metric: Metric, scale: jax.Array, components: int = COMPONENTS
) -> Basis:
    """Principal components of some of the rows [n, d], as they are compared.

    Example:
      >>> basis = find_basis(jnp.array([[1.0, 5.0], [3.0, 5.0]]), "euclidean", jnp.float32(1))
      >>> basis.origin.tolist(), basis.vectors.shape
      ([2.0, 5.0], (2, 2))
    """
    sample = as_compared(gallery[:: -(-len(gallery) // SAMPLE)], metric, scale)
    # Inner products have no origin but 0.
    return principal_basis(sample, sample.mean(0) * (metric != "inner_product"), components)


def bounds(
    rows: jax.Array, basis: Basis, metric: Metric, *, whole: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Features whose products never exceed the cost of a pair, whatever the rounding.

    With x = [p, r] in the basis, p the components and r the rest, x·y ≤ p·p' + |r| |r'|
    (Cauchy-Schwarz): the product of one more feature than components bounds the inner product from
    above, hence the squared distance |x|² + |y|² - 2 x·y from below. All rounding, here and in the
    product, is within slack × |x| |y|, which adding slack × |x|² to |r|² makes up for.

    Args:
      rows: `as_compared` [n, d].
      basis: of any rows.
      metric: as `nearest`.
      whole: takes all d coordinates in place of the components, which makes the bound tight.

    Returns:
      Features [n, components + 3] of the rows as gallery and as queries: products of the one with
      the other are the bounds.

    Example:
      >>> basis = Basis(jnp.zeros(2), jnp.eye(2)[:, :1], jnp.zeros(()))
      >>> gallery, _ = bounds(jnp.array([[3.0, 4.0]]), basis, "euclidean")
      >>> _, queries = bounds(jnp.array([[0.0, -4.0]]), basis, "euclidean")
      >>> round(float((gallery @ queries.T)[0, 0]), 2)  # where |x - y|² is 73
      9.0
    """
    rows = rows - basis.origin
    slack = (rows.shape[1] + 16) * jnp.finfo(rows.dtype).eps
    square = (rows**2).sum(1, keepdims=True)
    if whole:
        p, left = rows, jnp.zeros_like(square)
    else:
        p = jnp.dot(rows, basis.vectors, precision=FULL_PRECISION)
        left = jnp.maximum(square - (p**2).sum(1, keepdims=True), 0)
    rest = jnp.sqrt(left + 2 * slack * square)
    one = jnp.ones_like(square)
    if metric == "inner_product":
        return jnp.hstack([p, rest, 0 * one, one]), jnp.hstack([-p, -rest, one, 0 * one])
    square = (1 - 2 * slack) * square
    return jnp.hstack([p, rest, square, one]), jnp.hstack([-2 * p, -2 * rest, one, square])
