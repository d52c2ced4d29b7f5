"""Random image augmentations: pure functions of a key and one image; `jax.vmap` makes a batch.

Images are float [h, w, c] in [0, 1], and what comes back has their shape. The same key draws the
same change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Augment = Callable[[jax.Array, jax.Array], jax.Array]  # (key, image) → image of the same shape


def augmentation(
    *,
    flip: bool = False,
    shift: int = 0,
    border: str = "reflect",
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    cutout: int = 0,
) -> Augment:
    """The augmentations below in that order, each with a key of its own; 0 and False leave one out.

    Example:
      >>> augmentation(flip=True, cutout=2)(jax.random.key(0), jnp.ones((8, 8, 3))).shape
      (8, 8, 3)
    """

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        flip_key, shift_key, jitter_key, cutout_key = jax.random.split(key, 4)
        if flip:
            image = random_flip(flip_key, image)
        if shift:
            image = random_shift(shift_key, image, shift, border)
        if brightness or contrast or saturation:
            image = colour_jitter(jitter_key, image, brightness, contrast, saturation)
        if cutout:
            image = random_cutout(cutout_key, image, cutout)
        return image

    return augment


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors an image [h, w, c] left to right with probability one half.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 5)
      >>> jax.vmap(random_flip)(keys, jnp.zeros((5, 8, 8, 3))).shape
      (5, 8, 8, 3)
    """
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def random_shift(
    key: jax.Array, image: jax.Array, pixels: int, border: str = "reflect"
) -> jax.Array:
    """The random crop, at the image's own size, of the image with a border around it.

    Args:
      key: of the draw.
      image: [h, w, c].
      pixels: width of the border; the image moves by up to ±pixels in each direction.
      border: "reflect", the image mirrored at its outermost pixels, or "constant", zeros.

    Raises:
      ValueError: the border is not narrower than the image.

    Example:
      >>> random_shift(jax.random.key(0), jnp.zeros((8, 8, 3)), 2).shape
      (8, 8, 3)
    """
    height, width, _ = image.shape
    if not 0 <= pixels < min(height, width):
        raise ValueError(f"a shift of {pixels} pixels doesn't fit images of {height}×{width}")
    padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), border)
    offset = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
    return jax.lax.dynamic_slice(padded, (*offset, 0), image.shape)


def colour_jitter(
    key: jax.Array, image: jax.Array, brightness: float, contrast: float, saturation: float
) -> jax.Array:
    """Scales brightness, then contrast, then saturation, each by a factor of its own.

    A strength s in [0, 1] draws the factor uniformly from [1 - s, 1 + s]. Brightness scales the
    image, contrast its distance from the mean of its greys, saturation the distance of each pixel
    from its grey; values are clipped to [0, 1] after each. Grey is the luma of ITU-R BT.601 for
    three channels and the mean of any other number, so one channel has no saturation to change. The
    definitions are those of torchvision's `ColorJitter`, in a fixed order and without the hue.

    Example:
      >>> colour_jitter(jax.random.key(0), jnp.full((1, 1, 3), 0.5), 0.0, 1.0, 1.0).tolist()
      [[[0.5, 0.5, 0.5]]]
    """
    strengths = jnp.array([brightness, contrast, saturation])
    factors = 1 + strengths * jax.random.uniform(key, (3,), minval=-1, maxval=1)
    image = jnp.clip(factors[0] * image, 0, 1)
    mean = _grey(image).mean()
    image = jnp.clip(mean + factors[1] * (image - mean), 0, 1)
    grey = _grey(image)
    return jnp.clip(grey + factors[2] * (image - grey), 0, 1)


def _grey(image: jax.Array) -> jax.Array:
    channels = image.shape[-1]
    if channels != 3:
        return image.mean(-1, keepdims=True)
    # A sum, not a matmul, which an accelerator would round.
    return (image * jnp.array([0.299, 0.587, 0.114])).sum(-1, keepdims=True)


def random_cutout(key: jax.Array, image: jax.Array, side: int) -> jax.Array:
    """Blackens a square whose centre is any pixel; what reaches over the border is cut off.

    DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with cutout",
    arXiv:1708.04552.

    Args:
      key: of the draw.
      image: [h, w, c].
      side: of the square, in pixels, at least 0; the odd pixel of an even side lies above and left.

    Example:
      >>> int((random_cutout(jax.random.key(0), jnp.ones((8, 8, 1)), 1) == 0).sum())
      1
    """
    size = jnp.array(image.shape[:2])
    first = jax.random.randint(key, (2,), 0, size) - side // 2
    rows, columns = (
        (jnp.arange(n) >= start) & (jnp.arange(n) < start + side)
        for n, start in zip(image.shape[:2], first, strict=True)
    )
    return jnp.where((rows[:, None] & columns)[..., None], 0, image)


def flip(*, probability: float = 0.0):
    """Mirrors.

    Args:
      probability: of mirroring left to right.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be from 0 to 1; it is {probability}")
    if not probability:
        return None
    return lambda key, image: jnp.where(
        jax.random.bernoulli(key, probability), image[:, ::-1], image
    )


AUGMENTATIONS = (flip,)


class View(NamedTuple):
    """One kind of view."""

    augment: Augment
    count: int = 1


def view(augments, count=1):
    """Composes."""
    active = [a for a in augments if a is not None]

    def augment(key, image):
        for i, one in enumerate(active):
            image = one(jax.random.fold_in(key, i), image)
        return image

    return View(augment, count)


def views_of(views, key, images, places, batch):
    """All views."""
    found, j = [], 0
    for view in views:
        for _ in range(view.count):
            keys = jax.vmap(lambda place, j=j: jax.random.fold_in(key, j * batch + place))(places)
            found.append(jax.vmap(view.augment)(keys, images))
            j += 1
    return (jnp.stack(found),)
