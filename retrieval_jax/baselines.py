"""Embeddings that nobody trained, to judge a trained one by.

Each is brought to the trained embedding's width, so that the programs that judge that one are not
compiled again: narrower features get zeros, which change no distance, wider ones are projected
onto principal components.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from retrieval_jax.data.images import LazyImages, view

# Numbers in a thread's batch of images or features; images, and their numbers, in a sample.
_NUMBERS = 1 << 21
_SAMPLE, _SAMPLE_NUMBERS = 2000, 1 << 26

Features = Callable[[np.ndarray], np.ndarray]


class Embedded(NamedTuple):
    """Rows of one width, however many features there were.

    Attributes:
      rows: float32 [n, width].
      features: their number before they were padded or projected.
      variance_kept: the share of the sample's variance that the projection keeps; None where
        nothing was projected.
    """

    rows: np.ndarray
    features: int
    variance_kept: float | None


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """The pixels themselves: uint8 [n, h, w, c] → float32 [n, h · w · c] in [0, 1].

    Example:
      >>> raw_pixels(np.array([[[[0], [255]]]], np.uint8)).tolist()
      [[0.0, 1.0]]
    """
    return images.reshape(len(images), -1).astype(np.float32) / 255


def colour_histogram(images: np.ndarray) -> np.ndarray:
    """Square roots of the shares of pixels in each of 8 × 8 × 8 colours, or 8^c with c channels.

    Euclidean distances of the roots are Hellinger distances of the histograms (× √2), which weigh
    rare colours more: on CIFAR-10 NMI is 0.106 with roots and 0.086 without. Of more than three
    channels the first three count.

    Args:
      images: uint8 [n, h, w, c].

    Returns:
      float32 [n, 8^min(c, 3)], rows of length 1.

    References:
      M. Swain and D. Ballard, "Color indexing", International Journal of Computer Vision, 1991.
      A. Vedaldi and A. Zisserman, "Efficient additive kernels via explicit feature maps", PAMI,
        2012 (Hellinger's kernel).

    Example:
      >>> found = colour_histogram(np.array([[[[0], [255], [250], [1]]]], np.uint8))
      >>> (found**2).round(2).tolist()
      [[0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5]]
    """
    n, channels = len(images), min(images.shape[3], 3)
    bins = 8**channels
    codes = np.zeros(images.shape[:3], np.int32)
    for channel in range(channels):
        codes = 8 * codes + (images[..., channel] >> 5)
    codes = codes.reshape(n, -1) + bins * np.arange(n, dtype=np.int32)[:, None]
    counts = np.bincount(codes.ravel(), minlength=bins * n).reshape(n, bins)
    return np.sqrt(counts / codes.shape[1]).astype(np.float32)


def embed(
    features: Mapping[str, Features],
    images: np.ndarray | LazyImages,
    gallery: int,
    width: int,
    seed: int,
) -> dict[str, Embedded]:
    """Features of all images, brought to `width`; the images are read once, in bounded batches.

    Principal components are those of at most 2,000 gallery images, drawn by the seed. Where these
    are fewer than `width`, zeros fill up.

    Args:
      features: name → function uint8 [b, h, w, c] → float32 [b, f], each image on its own.
      images: [n, h, w, c] in memory, or read when they are needed; the gallery first.
      gallery: how many of them are the gallery, ≥ 1.
      width: of the results, ≥ 1.
      seed: of the sample.

    Returns:
      name → `Embedded`, the rows in the images' order.

    Example:
      >>> images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1)
      >>> found = embed({"pixels": raw_pixels}, images, gallery=2, width=5, seed=0)["pixels"]
      >>> found.rows.shape, found.features, found.variance_kept
      ((3, 5), 4, None)
    """
    pixels = int(np.prod(images.shape[1:]))
    count = min(gallery, _SAMPLE, max(_SAMPLE_NUMBERS // pixels, 2))
    drawn = np.sort(np.random.default_rng(seed).permutation(gallery)[:count])
    sample = view(images, drawn)[:]
    found, project = {}, {}
    for name, function in features.items():
        wide, kept, project[name] = function(sample[:1]).shape[1], None, function
        if wide > width:
            project[name], kept = _projection(function, sample, width, seed)
        found[name] = Embedded(np.zeros((len(images), width), np.float32), wide, kept)
    del sample
    most = max(pixels, *(embedded.features for embedded in found.values()))
    batch = max(_NUMBERS // most, 1)

    def fill(start: int) -> None:
        part = images[start : start + batch]
        for name, embedded in found.items():
            rows = project[name](part)
            embedded.rows[start : start + len(part), : rows.shape[1]] = rows

    pool = ThreadPoolExecutor(os.cpu_count())  # decoders and NumPy release the interpreter's lock
    try:
        for _ in pool.map(fill, range(0, len(images), batch)):
            pass
    finally:  # an interrupt doesn't wait for the images that are still queued
        pool.shutdown(cancel_futures=True)
    return found


def _projection(
    features: Features, sample: np.ndarray, width: int, seed: int
) -> tuple[Features, float]:
    """The features in their principal components, and the share of variance that these keep."""
    from sklearn.decomposition import PCA  # a second to import

    pca = PCA(min(width, len(sample)), svd_solver="randomized", random_state=seed)
    pca.fit(features(sample))
    kept = float(np.nansum(pca.explained_variance_ratio_))  # NaN where all images are equal

    def project(images: np.ndarray) -> np.ndarray:
        return (features(images) - pca.mean_) @ pca.components_.T

    return project, kept
