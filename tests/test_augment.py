"""Augmentations: what they may do to a batch, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrieval_jax.augment import random_flip, random_shift

IMAGES = np.arange(64 * 5 * 6 * 2, dtype=np.float32).reshape(64, 5, 6, 2)


def test_flip_mirrors_whole_images_and_about_half():
    flipped = np.asarray(random_flip(jax.random.key(0), jnp.asarray(IMAGES)))
    same = (flipped == IMAGES).all((1, 2, 3))
    mirrored = (flipped == IMAGES[:, :, ::-1]).all((1, 2, 3))
    assert np.all(same ^ mirrored)
    assert 20 <= mirrored.sum() <= 44


def test_shift_is_a_crop_of_the_mirrored_image_and_takes_every_offset():
    shifted = np.asarray(random_shift(jax.random.key(0), jnp.asarray(IMAGES), 1))
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    crops = np.stack([padded[:, i : i + 5, j : j + 6] for i in range(3) for j in range(3)])
    matches = (crops == shifted).all((2, 3, 4))
    assert np.all(matches.sum(0) == 1)
    assert np.all(matches.sum(1) > 0)


def test_the_key_decides():
    images = jnp.asarray(IMAGES)
    first, again, other = (random_shift(jax.random.key(i), images, 2) for i in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_shift_as_wide_as_the_image_is_refused():
    with pytest.raises(ValueError, match="doesn't fit"):
        random_shift(jax.random.key(0), jnp.asarray(IMAGES), 5)
