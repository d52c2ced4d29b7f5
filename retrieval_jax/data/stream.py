"""Batches of images in a given order, read ahead by threads through Grain."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from retrieval_jax.data.images import LazyImages

_PART = 16  # images that a thread reads at a time, enough to hide Grain's overhead per item


def batches(
    images: np.ndarray | LazyImages, order: np.ndarray, batch: int, start: int = 0
) -> Iterator[np.ndarray]:
    """Yields images in the given order, one batch at a time; lazy ones are read two batches ahead.

    One thread per CPU core shares in reading every batch; decoders of large images release the GIL.
    Nothing needs to be saved to resume: the same order and another `start` give the same batches
    from there on.

    Args:
      images: where they come from, [n, h, w, c].
      order: int [m], rows of `images`.
      batch: images per batch, at least 1.
      start: the first batch to yield; those before it are not read.

    Yields:
      uint8 [batch, h, w, c]; the last may be shorter.

    Example:
      >>> images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
      >>> order = np.array([4, 0, 2, 1, 3])
      >>> [part.ravel().tolist() for part in batches(images, order, 2, start=1)]
      [[2, 1], [3]]
    """
    if not isinstance(images, LazyImages):  # there is nothing to wait for
        for first in range(start * batch, len(order), batch):
            yield images[order[first : first + batch]]
        return
    import grain  # as slow to import as JAX, so not at the start of every run

    parts = -(-batch // _PART)  # per batch

    def read(i: int) -> np.ndarray:
        first = i // parts * batch + i % parts * _PART
        return images[order[first : min(first + _PART, (i // parts + 1) * batch)]]

    whole, left = divmod(len(order), batch)
    total = whole * parts + -(-left // _PART)
    threads = min(os.cpu_count() or 1, 2 * parts)
    dataset = (
        grain.MapDataset.range(start * parts, max(total, start * parts))
        .map(read)
        .to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=2 * parts))
        .batch(parts, batch_fn=np.concatenate)
    )
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:  # without waiting for batches that nobody asked for
        iterator.close()
