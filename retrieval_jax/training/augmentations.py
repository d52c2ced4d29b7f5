"""Random image augmentations: pure functions of a key and one image; `jax.vmap` makes a batch.

Images are float32 [h, w, c] in [0, 1], and so are the results. The same key draws the same change.
On a CPU all of a batch's elements are computed whether a draw applies to them or not, so what a
draw decides is, where possible, a factor and not a `where`, which would keep XLA from vectorizing
the loop that it is fused into.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def random_resized_crop(
    key: jax.Array,
    image: jax.Array,
    size: int | tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> jax.Array:
    """Resizes a random box of the image, Szegedy et al. 2015, arXiv:1409.4842, section 6.

    The box's share of the image's area is uniform over `scale`, and its width / height log-uniform
    over that part of `ratio` with which it fits; sides are rounded to whole pixels, and every place
    is equally likely. So no draw is rejected. Where no ratio lets a share fit (a wide image and a
    large share), `scale` ends at the largest that does.

    Resampling is bilinear between pixel centres (PyTorch's `align_corners=False`) with the box's
    outermost pixels continued, and without a low-pass filter when the box is reduced. It is two
    matrix products, which accelerators do best.

    Args:
      key: of the draw.
      image: [h, w, c].
      size: the result's side, or its height and width.
      scale: least and greatest share of the area, 0 < low <= high <= 1.
      ratio: least and greatest width / height of the box, 0 < low <= high.

    Returns:
      [height, width, c].

    Example:
      >>> random_resized_crop(jax.random.key(0), jnp.zeros((8, 8, 3)), (4, 6)).shape
      (4, 6, 3)
    """
    height, width, _ = image.shape
    rows, columns = (size, size) if isinstance(size, int) else size
    shape = width / height
    most = min(scale[1], ratio[1] / shape, shape / ratio[0])
    least = min(scale[0], most)
    draws = jax.random.uniform(key, (4,))
    area = least + (most - least) * draws[0]
    low = jnp.log(jnp.maximum(ratio[0], area * shape))
    high = jnp.log(jnp.minimum(ratio[1], shape / area))
    aspect = jnp.exp(low + (high - low) * draws[1])
    area *= height * width
    box_height = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, height)
    box_width = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, width)
    top = jnp.floor(draws[2] * (height - box_height + 1))
    left = jnp.floor(draws[3] * (width - box_width + 1))
    return _weighted(
        _bilinear(top, box_height, height, rows), image, _bilinear(left, box_width, width, columns)
    )


def _weighted(down: jax.Array, image: jax.Array, across: jax.Array) -> jax.Array:
    """Weighted means along both axes: `down` [h', h], `image` [h, w, c], `across` [w', w]."""
    # Full float32 everywhere: TPUs and GPUs would round pixels to 8 or 10 bits of mantissa.
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    result = product(product(down, image.transpose(2, 0, 1)), across.T)
    return jnp.clip(result.transpose(1, 2, 0), 0, 1)  # weights add up to 1 but for rounding


def _bilinear(start: jax.Array, length: jax.Array, pixels: int, size: int) -> jax.Array:
    """[size, pixels]: what each pixel adds to each of `size` points spread over the interval."""
    points = (jnp.arange(size) + 0.5) * (length / size) - 0.5
    points = start + jnp.clip(points, 0, length - 1)
    return jnp.maximum(0, 1 - jnp.abs(points[:, None] - jnp.arange(pixels)))


def random_flip(key: jax.Array, image: jax.Array, probability: float = 0.5) -> jax.Array:
    """Mirrors an image [h, w, c] left to right with the given probability.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 5)
      >>> jax.vmap(random_flip)(keys, jnp.zeros((5, 8, 8, 3))).shape
      (5, 8, 8, 3)
    """
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


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
    key: jax.Array,
    image: jax.Array,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    probability: float = 1.0,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue, in this order, each by its own draw.

    A strength s in [0, 1] draws a factor uniformly from [1 - s, 1 + s]. Brightness scales the
    image, contrast its distance from the mean of its greys, saturation the distance of each pixel
    from its grey; values are clipped to [0, 1] after each. Grey is the luma of ITU-R BT.601 for
    three channels and the mean of any other number, so one channel has no saturation to change. The
    hue of HSV (A. R. Smith 1978, "Color gamut transform pairs") turns by a part of the circle drawn
    uniformly from [-hue, hue], hue at most one half; only three channels have one. These are the
    definitions of torchvision's `ColorJitter`, which draws the order too.

    All four apply with the given probability; otherwise the image is unchanged but for rounding.

    Example:
      >>> colour_jitter(jax.random.key(0), jnp.full((1, 1, 3), 0.5), 0.0, 1.0, 1.0).tolist()
      [[[0.5, 0.5, 0.5]]]
    """
    draws = jax.random.uniform(key, (5,), minval=-1, maxval=1)
    draws = jnp.where(draws[4] < 2 * probability - 1, draws, 0)
    if brightness:
        image = jnp.clip((1 + brightness * draws[0]) * image, 0, 1)
    if contrast:
        image = _blend(_grey_mean(image), image, 1 + contrast * draws[1])
    if saturation:
        image = _blend(_grey(image), image, 1 + saturation * draws[2])
    if hue and image.shape[-1] == 3:
        image = _turn_hue(image, hue * draws[3])
    return image


def _blend(start: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """The image's distance from `start` times a factor, in [0, 1]."""
    return jnp.clip(start + factor * (image - start), 0, 1)


def _grey(image: jax.Array) -> jax.Array:
    """[h, w, 1]."""
    channels = image.shape[-1]
    weights = _LUMA if channels == 3 else (1 / channels,) * channels
    # A sum of slices: a matmul would be rounded by an accelerator, a reduction is slow on a CPU.
    terms = [weight * image[..., i : i + 1] for i, weight in enumerate(weights)]
    return sum(terms[1:], terms[0])


def _grey_mean(image: jax.Array) -> jax.Array:
    """The mean of `_grey`, as one dot product: XLA doesn't vectorize a sum to a scalar on CPUs."""
    height, width, channels = image.shape
    weights = jnp.array(_LUMA if channels == 3 else (1 / channels,) * channels) / (height * width)
    weights = jnp.broadcast_to(weights, image.shape).reshape(-1)
    return jnp.dot(weights, image.reshape(-1), precision=jax.lax.Precision.HIGHEST)


def _turn_hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """RGB → HSV → hue + turn → RGB, without branches; both ways stay in sixths of the circle."""
    red, green, blue = (image[..., i] for i in range(3))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    scale = 1 / jnp.where(chroma > 0, chroma, 1)
    # Not `value == red`: XLA may compute red twice, rounded differently.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) * scale,
        jnp.where(green >= blue, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    hue += 6 * turn

    def channel(place: int) -> jax.Array:
        sixth = hue + place
        sixth -= 6 * jnp.floor(sixth * (1 / 6))  # `%` is ten times as slow on a CPU
        return value - chroma * jnp.clip(jnp.minimum(sixth, 4 - sixth), 0, 1)

    return jnp.stack([channel(place) for place in (5, 3, 1)], -1)


def random_grayscale(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    """Replaces all channels by their grey, see `colour_jitter`, with the given probability.

    Example:
      >>> random_grayscale(jax.random.key(0), jnp.eye(3)[None], 1.0)[0, :, 0]
      Array([0.299, 0.587, 0.114], dtype=float32)
    """
    if image.shape[-1] == 1:
        return image
    return _blend(_grey(image), image, 1.0 - jax.random.bernoulli(key, probability))


def gaussian_blur(
    key: jax.Array, image: jax.Array, sigma: tuple[float, float], probability: float
) -> jax.Array:
    """Blurs by a Gaussian whose σ in pixels is drawn uniformly, with the given probability.

    The kernel reaches three times the largest σ, to the nearest pixel, whatever is drawn, and the
    border is the image mirrored at its outermost pixels. For σ from 0.1 to 2 this is the blur of
    SimCLR (arXiv:2002.05709, appendix A), whose kernel is 23 pixels wide on images of 224. Rows and
    columns are multiplied by a matrix each: a third of the time of a sum of shifted images for
    24×24 on a CPU.

    Args:
      key: of the draw.
      image: [h, w, c].
      sigma: least and greatest σ, 0 < low <= high.
      probability: of a blur.

    Returns:
      [h, w, c].

    Example:
      >>> dot = jnp.zeros((5, 5, 1)).at[2, 2].set(1.0)
      >>> gaussian_blur(jax.random.key(0), dot, (0.5, 0.5), 1.0)[2, :, 0].round(2)
      Array([0.  , 0.08, 0.62, 0.08, 0.  ], dtype=float32)
    """
    low, high = sigma
    radius = int(3 * high + 0.5)
    draws = jax.random.uniform(key, (2,))
    offsets = jnp.arange(-radius, radius + 1)
    kernel = jnp.exp(-0.5 * (offsets / (low + (high - low) * draws[0])) ** 2)
    kernel = jnp.where(draws[1] < probability, kernel / kernel.sum(), offsets == 0)
    height, width, _ = image.shape
    return _weighted(_banded(kernel, height), image, _banded(kernel, width))


def _banded(kernel: jax.Array, pixels: int) -> jax.Array:
    """[pixels, pixels]: the convolution by `kernel` of a signal with mirrored ends, as a matrix."""
    radius = len(kernel) // 2
    padded = np.pad(np.eye(pixels, dtype=np.float32), ((radius, radius), (0, 0)), "reflect")
    bands = np.stack([padded[i : i + pixels] for i in range(len(kernel))], -1)
    return jnp.dot(bands, kernel, precision=jax.lax.Precision.HIGHEST)


def random_solarize(
    key: jax.Array, image: jax.Array, threshold: float, probability: float
) -> jax.Array:
    """Inverts the values of at least `threshold`, with the given probability, as BYOL does.

    Example:
      >>> random_solarize(jax.random.key(0), jnp.array([[[0.25, 0.75]]]), 0.5, 1.0).tolist()
      [[[0.25, 0.25]]]
    """
    least = jnp.where(jax.random.bernoulli(key, probability), threshold, jnp.inf)
    return jnp.where(image >= least, 1 - image, image)


def random_cutout(key: jax.Array, image: jax.Array, side: int) -> jax.Array:
    """Blackens a square whose centre is any pixel; what reaches over the border is cut off.

    DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with cutout",
    arXiv:1708.04552.

    Args:
      key: of the draw.
      image: [h, w, c].
      side: of the square, in pixels, at least 0; the odd pixel of an even side lies above and left.

    Raises:
      ValueError: the square is larger than the image.

    Example:
      >>> int((random_cutout(jax.random.key(0), jnp.ones((8, 8, 1)), 1) == 0).sum())
      1
    """
    height, width, _ = image.shape
    if not 0 <= side <= min(height, width):
        raise ValueError(f"a cutout of {side} pixels doesn't fit images of {height}×{width}")
    first = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - side // 2
    rows, columns = (
        (jnp.arange(n) >= start) & (jnp.arange(n) < start + side)
        for n, start in zip((height, width), first, strict=True)
    )
    return jnp.where((rows[:, None] & columns)[..., None], 0, image)
