"""What a loss has to know of the whole batch, whose rows are shared by the devices of an axis.

Under an axis name the functions reduce over its devices; without one, over one device's rows. The
gradient of a value that all devices compute is right under the training step's rule: the mean of
the devices' gradients is that of the mean of the devices' values.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def everyone(x: jax.Array, axis_name: str | None, axis: int = 0) -> jax.Array:
    """The devices' arrays behind one another along `axis`, in the order of the devices.

    Example:
      >>> everyone(jnp.ones((2, 3)), None).shape
      (2, 3)
    """
    return x if axis_name is None else lax.all_gather(x, axis_name, axis=axis, tiled=True)


def first_row(rows: int, axis_name: str | None) -> jax.Array | int:
    """The place of this device's first row in the whole batch.

    Example:
      >>> first_row(4, None)
      0
    """
    return 0 if axis_name is None else lax.axis_index(axis_name) * rows


def total(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The sum over devices.

    Example:
      >>> float(total(jnp.float32(2), None))
      2.0
    """
    return x if axis_name is None else lax.psum(x, axis_name)


def all_real(rows: int, real: jax.Array | None) -> jax.Array:
    """`real` bool [rows], or True for each.

    Example:
      >>> all_real(2, None).tolist()
      [True, True]
    """
    return jnp.ones(rows, bool) if real is None else real


def moments(
    rows: jax.Array, real: jax.Array | None = None, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The rows less their mean over the whole batch, the mean, and how many are real.

    Args:
      rows: float [v, n, d], each view with a mean of its own.
      real: bool [n]; the others come out as 0.
      axis_name: the mapped axis of devices.

    Returns:
      Centred rows [v, n, d], means [v, d] and the count, a float scalar of at least 1.

    Example:
      >>> centred, mean, count = moments(jnp.array([[[1.0], [3.0]]]))
      >>> centred.ravel().tolist(), mean.ravel().tolist(), float(count)
      ([-1.0, 1.0], [2.0], 2.0)
    """
    counted = all_real(rows.shape[1], real)[:, None]
    count = jnp.maximum(total(counted.sum(dtype=rows.dtype), axis_name), 1)
    mean = total(jnp.where(counted, rows, 0).sum(1), axis_name) / count
    return jnp.where(counted, rows - mean[:, None], 0), mean, count
