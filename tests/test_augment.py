"""Augmentations beside plain NumPy: what they may do to an image, and nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax.training.views import (
    augmentation,
    colour_jitter,
    random_cutout,
    random_flip,
    random_shift,
)

IMAGES = np.arange(64 * 5 * 6 * 2, dtype=np.float32).reshape(64, 5, 6, 2)


def augmented(function, images=IMAGES, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(images))
    return np.asarray(jax.jit(jax.vmap(function))(keys, jnp.asarray(images)))


def test_flip_mirrors_whole_images_and_about_half():
    flipped = augmented(random_flip)
    same = (flipped == IMAGES).all((1, 2, 3))
    mirrored = (flipped == IMAGES[:, :, ::-1]).all((1, 2, 3))
    assert np.all(same ^ mirrored)
    assert 20 <= mirrored.sum() <= 44


@pytest.mark.parametrize("border", ["reflect", "constant"])
def test_shift_is_a_crop_of_the_bordered_image_and_takes_every_offset(border):
    images = IMAGES + 1  # no zero but the border's
    shifted = augmented(lambda key, image: random_shift(key, image, 1, border), images)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), border)
    crops = np.stack([padded[:, i : i + 5, j : j + 6] for i in range(3) for j in range(3)])
    matches = (crops == shifted).all((2, 3, 4))
    assert np.all(matches.sum(0) == 1)
    assert np.all(matches.sum(1) > 0)


def test_the_key_decides():
    shift = partial(random_shift, pixels=2)
    first, again, other = (augmented(shift, seed=i) for i in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_shift_as_wide_as_the_image_is_refused():
    with pytest.raises(ValueError, match="doesn't fit"):
        random_shift(jax.random.key(0), jnp.asarray(IMAGES[0]), 5)


def numpy_jitter(image, brightness, contrast, saturation):
    """The three changes by their factors, in float64."""

    def grey(image):
        weights = [0.299, 0.587, 0.114] if image.shape[-1] == 3 else [1 / image.shape[-1]]
        return (image * weights).sum(-1, keepdims=True)

    image = np.clip(brightness * image.astype(np.float64), 0, 1)
    image = np.clip(contrast * image + (1 - contrast) * grey(image).mean(), 0, 1)
    return np.clip(saturation * image + (1 - saturation) * grey(image), 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_jitter_is_numpys(channels):
    images = np.random.default_rng(0).random((200, 4, 5, channels), np.float32)
    strengths = np.array([0.8, 0.5, 1.0])
    jittered = augmented(lambda key, image: colour_jitter(key, image, 0.8, 0.5, 1.0), images)
    keys = jax.random.split(jax.random.key(0), len(images))
    draws = jax.vmap(lambda key: jax.random.uniform(key, (3,), minval=-1, maxval=1))(keys)
    factors = 1 + strengths * np.asarray(draws, np.float64)
    for image, factor, result in zip(images, factors, jittered, strict=True):
        np.testing.assert_allclose(result, numpy_jitter(image, *factor), atol=2e-6)
    # Factors reach all of their range, and each strength has its own.
    np.testing.assert_allclose(factors.min(0), 1 - strengths, atol=0.05)
    np.testing.assert_allclose(factors.max(0), 1 + strengths, atol=0.05)


def test_no_jitter_is_no_change():
    images = np.random.default_rng(0).random((3, 4, 5, 3), np.float32)
    same = augmented(lambda key, image: colour_jitter(key, image, 0.0, 0.0, 0.0), images)
    np.testing.assert_allclose(same, images, atol=1e-6)


@pytest.mark.parametrize("side", [1, 3, 4])
def test_cutout_is_one_square_anywhere(side):
    images = np.tile(IMAGES + 1, (8, 1, 1, 1))
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


def test_no_side_no_cut():
    np.testing.assert_array_equal(
        augmented(lambda key, image: random_cutout(key, image, 0)), IMAGES
    )


def test_augmentations_are_joined_with_a_key_each():
    images = np.random.default_rng(0).random((16, 5, 6, 3), np.float32)
    everything = augmentation(
        flip=True,
        shift=2,
        border="constant",
        brightness=0.1,
        contrast=0.2,
        saturation=0.3,
        cutout=2,
    )

    def in_turn(key, image):
        keys = jax.random.split(key, 4)
        image = random_shift(keys[1], random_flip(keys[0], image), 2, "constant")
        return random_cutout(keys[3], colour_jitter(keys[2], image, 0.1, 0.2, 0.3), 2)

    np.testing.assert_allclose(augmented(everything, images), augmented(in_turn, images), atol=1e-6)
    np.testing.assert_array_equal(augmented(augmentation(), images), images)
