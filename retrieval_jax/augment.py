"""Random image augmentations: pure functions of a key and a batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Augment = Callable[[jax.Array, jax.Array], jax.Array]  # (key, images) → images, same shape


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image [n, h, w, c] left to right with probability one half.

    Example:
      >>> random_flip(jax.random.key(0), jnp.arange(4.0).reshape(1, 1, 4, 1)).shape
      (1, 1, 4, 1)
    """
    mirror = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirror, images[:, :, ::-1], images)


def random_shift(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
    """Moves each image [n, h, w, c] by up to ±pixels in each direction, mirroring at the border.

    It is the random crop of a padded image, in other words.

    Raises:
      ValueError: the shift is not smaller than the images.

    Example:
      >>> random_shift(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), 2).shape
      (2, 8, 8, 3)
    """
    n, height, width, _ = images.shape
    if not 0 <= pixels < min(height, width):
        raise ValueError(f"a shift of {pixels} pixels doesn't fit images of {height}×{width}")
    border = (pixels, pixels)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)), "reflect")
    offsets = jax.random.randint(key, (n, 2), 0, 2 * pixels + 1)
    return jax.vmap(
        lambda image, offset: jax.lax.dynamic_slice(image, (*offset, 0), images.shape[1:])
    )(padded, offsets)
