"""The views of an image that a method compares: augmentations from settings, composed and counted.

SimCLR and BYOL take two draws of one view, SwAV two large crops and several small ones, EMP-SSL
many crops, FixMatch a weak and a strong view. The augmentations themselves are in `augmentations`.

Every factory here takes settings whose defaults mean "off", checks them, and returns the
augmentation, or None if it would do nothing. Its errors start with the parameter's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from math import inf
from typing import NamedTuple

import jax
import jax.numpy as jnp

from retrieval_jax.training.augmentations import (
    colour_jitter,
    gaussian_blur,
    random_cutout,
    random_flip,
    random_grayscale,
    random_resized_crop,
    random_shift,
    random_solarize,
)

Augment = Callable[[jax.Array, jax.Array], jax.Array]  # (key, image [h, w, c]) → [h', w', c]


class View(NamedTuple):
    """One way to augment an image, and how many draws of it each image gets."""

    augment: Augment
    count: int  # type: ignore[assignment]  # tuple.count, which nobody needs of a view


def view(augments: Sequence[Augment | None], count: int = 1) -> View:
    """The augmentations in order, without those that are None; the i-th draws by fold_in(key, i).

    Args:
      augments: what the factories below return.
      count: draws per image, at least 1.

    Returns:
      The view; its `augment` leaves the image alone if all are None.

    Raises:
      ValueError: `count` is less than 1.

    Example:
      >>> strong = view([crop(size=4, scale=(0.2, 1.0)), flip(probability=0.5), blur()], count=2)
      >>> strong.augment(jax.random.key(0), jnp.ones((8, 8, 3))).shape
      (4, 4, 3)
    """
    _check("count", count, count >= 1, "at least 1")
    active = [augment for augment in augments if augment is not None]

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        for i, one in enumerate(active):
            image = one(jax.random.fold_in(key, i), image)
        return image

    return View(augment, count)


def views_of(
    views: Sequence[View],
    key: jax.Array,
    images: jax.Array,
    places: jax.Array,
    batch_size: int,
) -> tuple[jax.Array, ...]:
    """Every draw of every view of n images.

    The j-th draw, counted over all views, of the example at place p draws by
    fold_in(key, j * batch_size + p): results don't depend on how a batch is divided over devices.

    Args:
      views: in the order of the result.
      key: of the step.
      images: float32 [n, h, w, c] in [0, 1].
      places: int32 [n], the images' places in the whole batch.
      batch_size: examples of the whole batch, on all devices.

    Returns:
      float32 [v, n, h', w', c] for each run of views whose images have the same shape.

    Raises:
      ValueError: an augmentation doesn't fit the images; `view_shapes` tells without any.

    Example:
      >>> small = view([crop(size=4, scale=(0.1, 0.3))], count=6)
      >>> views = views_of(
      ...     [view([flip(probability=0.5)], count=2), small],
      ...     jax.random.key(0), jnp.ones((5, 8, 8, 3)), jnp.arange(5), 5,
      ... )
      >>> [drawn.shape for drawn in views]
      [(2, 5, 8, 8, 3), (6, 5, 4, 4, 3)]
    """

    def draw(augment: Augment, number: jax.Array) -> jax.Array:
        numbers = number * batch_size + places
        return jax.vmap(augment)(jax.vmap(partial(jax.random.fold_in, key))(numbers), images)

    drawn = []
    first = 0
    for augment, count in views:
        # One draw after the other: a batch fills the device, and a CPU takes half as long.
        drawn.append(jax.lax.map(partial(draw, augment), first + jnp.arange(count)))
        first += count
    runs = groupby(drawn, key=lambda images: images.shape[1:])
    return tuple(jnp.concatenate(list(run)) for _, run in runs)


def view_shapes(
    views: Sequence[View], image_shape: tuple[int, int, int]
) -> tuple[tuple[int, ...], ...]:
    """(v, h', w', c) of each array that `views_of` returns, without computing any.

    Raises:
      ValueError: an augmentation doesn't fit images of this shape.

    Example:
      >>> view_shapes([view([crop(size=4)], count=3)], (8, 8, 1))
      ((3, 4, 4, 1),)
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    draw = partial(views_of, views, places=jnp.zeros(1, jnp.int32), batch_size=1)
    shapes = jax.eval_shape(lambda images: draw(jax.random.key(0), images), images)
    return tuple((v, *shape) for v, _, *shape in (one.shape for one in shapes))


def crop(
    *,
    size: int = 0,
    scale: tuple[float, float] = (1.0, 1.0),
    ratio: tuple[float, float] = (0.75, 1.3333),
) -> Augment | None:
    """A random box of the image, resized; see `random_resized_crop`.

    Args:
      size: Side of the resized crop in pixels; 0 keeps the image's height and width.
      scale: Least and greatest share of the image's area; 1 and 1 with size 0 is no crop.
      ratio: Least and greatest width / height of the box.

    Example:
      >>> crop(size=4, scale=(0.2, 1.0))(jax.random.key(0), jnp.ones((8, 8, 3))).shape
      (4, 4, 3)
    """
    _check("size", size, size >= 0, "at least 0")
    _check_range("scale", scale, 1)
    _check_range("ratio", ratio)
    if not size and tuple(scale) == (1, 1):
        return None

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        height, width, _ = image.shape
        return random_resized_crop(key, image, size or (height, width), scale, ratio)

    return augment


def flip(*, probability: float = 0.0) -> Augment | None:
    """The image mirrored left to right.

    Args:
      probability: Of a mirrored image; 0 is off.
    """
    _check_probability(probability)
    return partial(random_flip, probability=probability) if probability else None


def shift(*, pixels: int = 0, border: str = "reflect") -> Augment | None:
    """A move by whole pixels: a random crop with a border.

    Args:
      pixels: Greatest move in each direction; 0 is off.
      border: What moves in: "reflect", the image mirrored, or "constant", zeros.
    """
    _check("pixels", pixels, pixels >= 0, "at least 0")
    _check("border", repr(border), border in ("reflect", "constant"), "'reflect' or 'constant'")
    return partial(random_shift, pixels=pixels, border=border) if pixels else None


def jitter(
    *,
    probability: float = 1.0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Augment | None:
    """Random brightness, contrast, saturation and hue; see `colour_jitter`.

    Args:
      probability: That the colours change at all.
      brightness: Scale by a factor of 1 ± up to this, at most 1.
      contrast: Scale the distance from the mean grey by a factor of 1 ± up to this, at most 1.
      saturation: Scale each pixel's distance from its grey by 1 ± up to this, at most 1.
      hue: Turn the hue by up to this part of the colour circle, at most 0.5.
    """
    _check_probability(probability)
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, strength in strengths.items():
        _check(name, strength, 0 <= strength <= 1, "from 0 to 1")
    _check("hue", hue, 0 <= hue <= 0.5, "from 0 to 0.5")
    if not probability or not (any(strengths.values()) or hue):
        return None
    settings = {**strengths, "hue": hue, "probability": probability}
    return lambda key, image: colour_jitter(key, image, **settings)


def grayscale(*, probability: float = 0.0) -> Augment | None:
    """All channels replaced by their grey.

    Args:
      probability: Of a grey image; 0 is off.
    """
    _check_probability(probability)
    return partial(random_grayscale, probability=probability) if probability else None


def blur(*, probability: float = 0.0, sigma: tuple[float, float] = (0.1, 2.0)) -> Augment | None:
    """Gaussian blur; see `gaussian_blur`.

    Args:
      probability: Of a blurred image; 0 is off.
      sigma: Least and greatest standard deviation in pixels.
    """
    _check_probability(probability)
    _check_range("sigma", sigma)
    return partial(gaussian_blur, sigma=sigma, probability=probability) if probability else None


def solarize(*, probability: float = 0.0, threshold: float = 0.5) -> Augment | None:
    """Bright values inverted.

    Args:
      probability: Of a solarized image; 0 is off.
      threshold: Least value that is inverted, from 0 to 1.
    """
    _check_probability(probability)
    _check("threshold", threshold, 0 <= threshold <= 1, "from 0 to 1")
    if not probability:
        return None
    return partial(random_solarize, threshold=threshold, probability=probability)


def cutout(*, side: int = 0) -> Augment | None:
    """A black square.

    Args:
      side: Of the square in pixels; 0 is off.
    """
    _check("side", side, side >= 0, "at least 0")
    return partial(random_cutout, side=side) if side else None


AUGMENTATIONS = (crop, flip, shift, jitter, grayscale, blur, solarize, cutout)  # order of use


def _check(name: str, value: object, ok: bool, bounds: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {bounds}; it is {value}")


def _check_probability(probability: float) -> None:
    _check("probability", probability, 0 <= probability <= 1, "from 0 to 1")


def _check_range(name: str, bounds: Sequence[float], most: float = inf) -> None:
    """Two numbers above 0 in order, finite, at most `most`."""
    ok = len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= most and bounds[1] < inf
    limit = "" if most == inf else f" and at most {most}"
    _check(name, tuple(bounds), ok, f"two numbers in ascending order, above 0{limit}")
