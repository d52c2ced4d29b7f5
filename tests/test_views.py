"""Views beside NumPy, SciPy and colorsys in float64: what a draw may do to an image, no more."""

import colorsys
import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

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
from retrieval_jax.training.views import (
    AUGMENTATIONS,
    blur,
    crop,
    cutout,
    flip,
    grayscale,
    jitter,
    shift,
    solarize,
    view,
    view_shapes,
    views_of,
)

INDICES = np.arange(64 * 5 * 6 * 2, dtype=np.float32).reshape(64, 5, 6, 2)  # no two values alike


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def augmented(function, images=INDICES, seed=0):
    return np.asarray(jax.jit(jax.vmap(function))(keys(len(images), seed), jnp.asarray(images)))


def noise(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def uniform(n, draws, **bounds):
    """What an augmentation of n images draws, float64 [n, draws]."""
    draw = jax.vmap(lambda key: jax.random.uniform(key, (draws,), **bounds))
    return np.asarray(draw(keys(n)), np.float64)


# --- crop ---


def oracle_box(draws, height, width, scale, ratio):
    """(top, left, height, width) by the definition, in plain Python."""
    shape = width / height
    most = min(scale[1], ratio[1] / shape, shape / ratio[0])
    least = min(scale[0], most)
    area = least + draws[0] * (most - least)
    low, high = max(ratio[0], area * shape), min(ratio[1], shape / area)
    aspect = math.exp(math.log(low) + draws[1] * (math.log(high) - math.log(low)))
    sides = [
        min(max(round(math.sqrt(area * height * width * a)), 1), most)
        for a, most in ((1 / aspect, height), (aspect, width))
    ]
    top, left = (
        math.floor(draw * (most - side + 1))
        for draw, most, side in zip(draws[2:], (height, width), sides, strict=True)
    )
    return top, left, *sides


@pytest.mark.fast
@pytest.mark.parametrize(
    ("shape", "size", "scale", "ratio"),
    [
        ((16, 16, 3), 12, (0.2, 1.0), (0.75, 4 / 3)),
        ((9, 20, 1), (7, 11), (0.1, 0.9), (0.5, 2.0)),
        ((8, 7, 2), (19, 23), (0.3, 0.3), (1.0, 1.0)),
    ],
)
def test_crop_is_scipys_interpolation_of_a_box(shape, size, scale, ratio):
    images = noise(200, *shape)
    cropped = augmented(
        lambda key, image: random_resized_crop(key, image, size, scale, ratio), images
    )
    size = (size, size) if isinstance(size, int) else size
    assert cropped.shape == (200, *size, shape[2])
    boxes = set()
    for image, draws, result in zip(images, uniform(200, 4), cropped, strict=True):
        top, left, height, width = box = oracle_box(draws, *shape[:2], scale, ratio)
        boxes.add(box)
        inside = image[top : top + height, left : left + width].astype(np.float64)
        assert inside.shape[:2] == (height, width)
        y = (np.arange(size[0]) + 0.5) * height / size[0] - 0.5
        x = (np.arange(size[1]) + 0.5) * width / size[1] - 0.5
        where = np.meshgrid(y, x, indexing="ij")
        expected = np.stack(
            [
                ndimage.map_coordinates(c, where, order=1, mode="nearest")
                for c in inside.T.swapaxes(1, 2)
            ],
            -1,
        )
        np.testing.assert_allclose(result, expected, atol=5e-6)
    assert len(boxes) > 8


def seen_boxes(shape, scale, ratio, n=2000):
    """Height and width of the boxes that were drawn, from a crop of coordinates alone."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width] / 1000.0
    image = jnp.asarray(np.stack([rows, columns], -1), jnp.float32)
    draw = jax.jit(jax.vmap(lambda key: random_resized_crop(key, image, 2, scale, ratio)))
    corners = draw(keys(n))  # points at a quarter and three quarters of the box
    return np.rint(np.asarray(corners[:, 1, 1] - corners[:, 0, 0]) * 2000).T


@pytest.mark.fast
def test_boxes_reach_all_of_their_scale_and_ratio():
    height, width = seen_boxes((200, 200), (0.2, 0.6), (0.5, 2.0))
    area, aspect = height * width / 200**2, width / height
    # Uniform: quantiles of the area, and of the ratio's logarithm where both ends fit.
    np.testing.assert_allclose(
        np.quantile(area, [0, 0.25, 0.5, 0.75, 1]), [0.2, 0.3, 0.4, 0.5, 0.6], atol=0.02
    )
    small = area < 0.45
    np.testing.assert_allclose(
        np.quantile(np.log2(aspect[small]), [0, 0.25, 0.5, 0.75, 1]),
        [-1, -0.5, 0, 0.5, 1],
        atol=0.1,
    )


@pytest.mark.fast
def test_boxes_of_a_wide_image_keep_their_ratio():
    height, width = seen_boxes((50, 200), (0.2, 1.0), (0.75, 4 / 3))
    area = height * width / (50 * 200)
    assert height.max() == 50 and area.min() < 0.22
    np.testing.assert_allclose(area.max(), 1 / 3, atol=0.02)  # the largest box of ratio 4 / 3
    assert 0.78 < (width / height).min() < 0.83 and 1.28 < (width / height).max() < 1.37


@pytest.mark.fast
def test_a_crop_of_everything_is_the_image():
    images = noise(5, 6, 7, 3)
    whole = augmented(lambda key, image: random_resized_crop(key, image, (6, 7), (1, 1)), images)
    np.testing.assert_allclose(whole, images, atol=1e-6)


def test_a_crop_of_its_own_size_is_a_plain_crop_at_every_place():
    images = np.tile(INDICES[:1] / 100, (300, 1, 1, 1))
    cropped = augmented(
        lambda key, image: random_resized_crop(key, image, 3, (9 / 30, 9 / 30), (1, 1)), images
    )
    plain = [images[0, i : i + 3, j : j + 3] for i in range(3) for j in range(4)]
    found = np.isclose(cropped[:, None], plain, atol=1e-6).all((2, 3, 4))
    assert np.all(found.sum(1) == 1) and np.all(found.sum(0) > 0)


# --- flip and shift ---


@pytest.mark.fast
@pytest.mark.parametrize("probability", [0.5, 0.2])
def test_flip_mirrors_whole_images_as_often_as_told(probability):
    images = np.tile(INDICES, (8, 1, 1, 1))
    flipped = augmented(partial(random_flip, probability=probability), images)
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert np.all(same ^ mirrored)
    assert abs(mirrored.mean() - probability) < 0.07


@pytest.mark.parametrize("border", ["reflect", "constant"])
def test_shift_is_a_crop_of_the_bordered_image_and_takes_every_offset(border):
    images = INDICES + 1  # no zero but the border's
    shifted = augmented(lambda key, image: random_shift(key, image, 1, border), images)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), border)
    crops = np.stack([padded[:, i : i + 5, j : j + 6] for i in range(3) for j in range(3)])
    matches = (crops == shifted).all((2, 3, 4))
    assert np.all(matches.sum(0) == 1)
    assert np.all(matches.sum(1) > 0)


# --- colours ---


def numpy_grey(image):
    weights = [0.299, 0.587, 0.114] if image.shape[-1] == 3 else [1 / image.shape[-1]]
    return (image * weights).sum(-1, keepdims=True)


def numpy_jitter(image, brightness, contrast, saturation, hue=0.0):
    """The changes by their factors, in float64; the hue by Python's own HSV."""
    image = np.clip(brightness * image.astype(np.float64), 0, 1)
    image = np.clip(contrast * image + (1 - contrast) * numpy_grey(image).mean(), 0, 1)
    image = np.clip(saturation * image + (1 - saturation) * numpy_grey(image), 0, 1)
    if image.shape[-1] == 3:
        for pixel in image.reshape(-1, 3):
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            pixel[:] = colorsys.hsv_to_rgb((h + hue) % 1, s, v)
    return image


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_colour_jitter_is_numpys(channels):
    images = noise(200, 4, 5, channels)
    images[:, 0] = images[:, 0].round()  # pure colours, black, white: ties and no chroma
    strengths = np.array([0.8, 0.5, 1.0])
    jittered = augmented(
        lambda key, image: colour_jitter(key, image, *map(float, strengths), 0.5, 0.7), images
    )
    draws = uniform(len(images), 5, minval=-1, maxval=1)
    applied = draws[:, 4] < 0.4
    assert abs(applied.mean() - 0.7) < 0.1
    for image, draw, on, result in zip(images, draws, applied, jittered, strict=True):
        expected = numpy_jitter(image, *1 + strengths * draw[:3], 0.5 * draw[3]) if on else image
        # A hue is a quotient by the chroma, so it is rounded the more the greyer a pixel is.
        np.testing.assert_allclose(result, expected, atol=3e-6)
    # Draws reach all of their range, and each strength has its own.
    np.testing.assert_allclose(draws.min(0), -1, atol=0.1)
    np.testing.assert_allclose(draws.max(0), 1, atol=0.1)
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 0.25


@pytest.mark.parametrize("place", range(4))
def test_each_strength_alone_changes_only_its_part(place):
    images = noise(20, 4, 5, 3)
    strengths = [0.0] * 4
    strengths[place] = 0.4
    jittered = augmented(lambda key, image: colour_jitter(key, image, *strengths), images)
    draws = uniform(20, 5, minval=-1, maxval=1)[:, :4] * strengths
    for image, draw, result in zip(images, draws, jittered, strict=True):
        np.testing.assert_allclose(result, numpy_jitter(image, *1 + draw[:3], draw[3]), atol=3e-6)


@pytest.mark.fast
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_grayscale_replaces_colours_by_their_luma(channels):
    images = noise(400, 4, 5, channels)
    greyed = augmented(partial(random_grayscale, probability=0.3), images)
    luma = np.broadcast_to(numpy_grey(images.astype(np.float64)), images.shape)
    grey, same = (np.isclose(greyed, to, rtol=0, atol=1e-6).all((1, 2, 3)) for to in (luma, images))
    assert np.all(grey | same)
    assert same.all() if channels == 1 else abs(grey.mean() - 0.3) < 0.07
    assert channels == 1 or np.all(greyed[grey].max(-1) == greyed[grey].min(-1))


@pytest.mark.fast
def test_solarize_inverts_bright_values():
    images = noise(400, 4, 5, 2)
    images[:, 0, 0] = 0.25  # the threshold itself is inverted
    changed = augmented(partial(random_solarize, threshold=0.25, probability=0.3), images)
    inverse = np.where(images >= np.float32(0.25), 1 - images, images)
    solarized, same = ((changed == to).all((1, 2, 3)) for to in (inverse, images))
    assert np.all(solarized ^ same)
    assert abs(solarized.mean() - 0.3) < 0.07


# --- blur ---


@pytest.mark.fast
@pytest.mark.parametrize("sigma", [(0.1, 2.0), (0.5, 0.5), (1.0, 4.0)])  # 12 pixels > the image
def test_blur_is_scipys(sigma):
    images = noise(100, 9, 11, 2)
    blurred = augmented(partial(gaussian_blur, sigma=sigma, probability=0.6), images)
    draws = uniform(100, 2)
    applied = draws[:, 1] < 0.6
    assert abs(applied.mean() - 0.6) < 0.15
    radius = int(3 * sigma[1] + 0.5)
    for image, (draw, _), on, result in zip(images, draws, applied, blurred, strict=True):
        if not on:
            np.testing.assert_array_equal(result, image)
            continue
        expected = ndimage.gaussian_filter(
            image.astype(np.float64),
            sigma[0] + draw * (sigma[1] - sigma[0]),
            radius=radius,
            mode="mirror",
            axes=(0, 1),
        )
        np.testing.assert_allclose(result, expected, atol=2e-6)


# --- cutout ---


@pytest.mark.parametrize("side", [1, 3, 4])
def test_cutout_is_one_square_anywhere(side):
    images = np.tile(INDICES + 1, (8, 1, 1, 1))
    cut = augmented(lambda key, image: random_cutout(key, image, side), images)
    holes = set()
    for before, after in zip(images, cut, strict=True):
        assert np.all((after == before) | (after == 0))
        hole = after[..., 0] == 0
        assert np.array_equal(hole, after[..., 1] == 0)
        holes.add(hole.tobytes())
    expected = set()
    for y in range(5):
        for x in range(6):
            hole = np.zeros((5, 6), bool)
            top, left = y - side // 2, x - side // 2
            hole[max(top, 0) : top + side, max(left, 0) : left + side] = True
            expected.add(hole.tobytes())
    assert holes == expected  # every centre has been drawn, and nothing else


# --- factories ---

ON = {
    crop: {"size": 6, "scale": (0.3, 1.0)},
    flip: {"probability": 0.5},
    shift: {"pixels": 2},
    jitter: {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
    grayscale: {"probability": 0.5},
    blur: {"probability": 0.5},
    solarize: {"probability": 0.5},
    cutout: {"side": 3},
}


@pytest.mark.parametrize("factory", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation_keeps_the_range_and_obeys_its_key(factory, channels):
    augment = factory(**ON[factory])
    images = noise(32, 8, 9, channels)
    images[:, :2] = images[:, :2].round()
    result, again, other = (augmented(augment, images, seed) for seed in (0, 0, 1))
    assert result.dtype == np.float32
    assert result.shape == ((32, 6, 6, channels) if factory is crop else images.shape)
    assert result.min() >= 0 and result.max() <= 1
    np.testing.assert_array_equal(result, again)
    if factory is not grayscale or channels == 3:
        assert not np.array_equal(result, other)


@pytest.mark.fast
def test_every_default_is_off_and_every_key_is_documented():
    assert set(ON) == set(AUGMENTATIONS)
    for factory in AUGMENTATIONS:
        assert factory() is None
        for name, parameter in inspect.signature(factory).parameters.items():
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert f"      {name}: " in factory.__doc__


@pytest.mark.fast
@pytest.mark.parametrize(
    ("factory", "settings"),
    [
        (crop, {"ratio": (0.5, 0.6)}),
        (jitter, {"probability": 0.0, "hue": 0.1}),
        (blur, {"sigma": (1.0, 1.0)}),
        (solarize, {"threshold": 0.1}),
        (shift, {"border": "constant"}),
    ],
)
def test_settings_that_do_nothing_are_off(factory, settings):
    assert factory(**settings) is None


@pytest.mark.fast
def test_a_crop_without_a_size_keeps_the_images():
    for one, side in ((crop(scale=(0.2, 0.3)), (6, 9)), (crop(size=4), (4, 4))):
        assert view_shapes([view([one])], (6, 9, 2)) == ((1, *side, 2),)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        (crop, {"size": -1}, "size must be at least 0; it is -1"),
        (crop, {"scale": (0.0, 1.0)}, "scale must be two numbers in ascending order, above 0 and"),
        (crop, {"scale": (0.9, 0.5)}, "scale must be two numbers"),
        (crop, {"scale": (0.5, 1.5)}, r"scale .* at most 1; it is \(0.5, 1.5\)"),
        (crop, {"scale": (0.5,)}, "scale must be two numbers"),
        (crop, {"ratio": (-1.0, 1.0)}, "ratio must be two numbers in ascending order, above 0; it"),
        (crop, {"ratio": (1.0, math.inf)}, "ratio must be two numbers"),
        (flip, {"probability": 1.5}, "probability must be from 0 to 1; it is 1.5"),
        (flip, {"probability": math.nan}, "probability must be from 0 to 1; it is nan"),
        (shift, {"pixels": -1}, "pixels must be at least 0; it is -1"),
        (shift, {"border": "wrap"}, "border must be 'reflect' or 'constant'; it is 'wrap'"),
        (jitter, {"probability": -0.1}, "probability must be from 0 to 1"),
        (jitter, {"brightness": 1.1}, "brightness must be from 0 to 1; it is 1.1"),
        (jitter, {"contrast": -1}, "contrast must be from 0 to 1"),
        (jitter, {"saturation": 2}, "saturation must be from 0 to 1"),
        (jitter, {"hue": 0.6}, "hue must be from 0 to 0.5; it is 0.6"),
        (grayscale, {"probability": 2}, "probability must be from 0 to 1"),
        (blur, {"probability": 2}, "probability must be from 0 to 1"),
        (blur, {"sigma": (0.0, 1.0)}, "sigma must be two numbers in ascending order, above 0"),
        (solarize, {"probability": 2}, "probability must be from 0 to 1"),
        (solarize, {"threshold": 1.5}, "threshold must be from 0 to 1; it is 1.5"),
        (cutout, {"side": -1}, "side must be at least 0; it is -1"),
        (partial(view, []), {"count": 0}, "count must be at least 1; it is 0"),
    ],
)
def test_bad_settings_are_refused_by_name(factory, settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        factory(**settings)


# --- views ---


def test_augmentations_are_joined_in_order_with_a_key_each():
    images = noise(16, 5, 6, 3)
    mirror, move, colours, cut = (
        flip(probability=0.5),
        shift(pixels=2, border="constant"),
        jitter(brightness=0.1, contrast=0.2, saturation=0.3),
        cutout(side=2),
    )
    everything = view([blur(), mirror, None, move, colours, grayscale(), cut])

    def in_turn(key, image):
        for i, one in enumerate((mirror, move, colours, cut)):  # those that are off have no number
            image = one(jax.random.fold_in(key, i), image)
        return image

    np.testing.assert_allclose(
        augmented(everything.augment, images), augmented(in_turn, images), atol=1e-6
    )
    np.testing.assert_array_equal(augmented(view([None]).augment, images), images)


@pytest.mark.fast
def test_the_first_augmentations_key_is_the_first_of_a_split():
    """So a run whose only augmentation is a flip draws what it drew when keys were split."""
    for key in keys(5):
        first, again = jax.random.split(key, 4)[0], jax.random.fold_in(key, 0)
        assert np.array_equal(jax.random.key_data(first), jax.random.key_data(again))


RECIPE = [
    crop(size=6, scale=(0.2, 1.0)),
    flip(probability=0.5),
    jitter(probability=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
]


def test_views_draw_by_their_number_and_the_examples_place():
    images = jnp.asarray(noise(4, 8, 9, 3))
    places = jnp.array([8, 1, 5, 2])
    weak = view([flip(probability=0.5)], count=2)
    views = [weak, view([]), view(RECIPE, count=3), view([crop(size=6)]), weak]
    result = views_of(views, jax.random.key(3), images, places, 10)
    shapes = [(3, 4, 8, 9, 3), (4, 4, 6, 6, 3), (2, 4, 8, 9, 3)]
    assert [one.shape for one in result] == shapes
    assert view_shapes(views, (8, 9, 3)) == tuple((v, *shape) for v, _, *shape in shapes)
    draws = [one.augment for one in views for _ in range(one.count)]
    results = [image for one in result for image in one]
    for j, (augment, drawn) in enumerate(zip(map(jax.jit, draws), results, strict=True)):
        for place, image, one in zip(places, images, drawn, strict=True):
            key = jax.random.fold_in(jax.random.key(3), j * 10 + place)
            np.testing.assert_allclose(one, augment(key, image), atol=3e-6)
    assert not np.array_equal(result[0][0], result[0][1])


def test_views_dont_depend_on_the_number_of_devices():
    images = jnp.asarray(noise(16, 8, 8, 3))
    views = [view([flip(probability=0.5)]), view(RECIPE, count=3)]

    def drawn(devices):
        def share(images):
            places = jax.lax.axis_index("devices") * len(images) + jnp.arange(len(images))
            return views_of(views, jax.random.key(1), images, places, 16)

        each = jax.pmap(share, "devices", out_axes=1, devices=jax.devices()[:devices])
        shares = each(images.reshape(devices, -1, *images.shape[1:]))
        return [one.reshape(len(one), 16, *one.shape[3:]) for one in shares]

    alone = drawn(1)
    for devices in (2, 8):
        for one, other in zip(alone, drawn(devices), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("augments", "message"),
    [
        ([shift(pixels=5)], "a shift of 5 pixels doesn't fit images of 5×6"),
        ([cutout(side=6)], "a cutout of 6 pixels doesn't fit images of 5×6"),
        ([crop(size=4), shift(pixels=4)], "a shift of 4 pixels doesn't fit images of 4×4"),
    ],
)
def test_an_augmentation_that_doesnt_fit_is_refused(augments, message):
    with pytest.raises(ValueError, match=message):
        view_shapes([view([flip(probability=0.5)]), view(augments)], (5, 6, 1))
