"""Batches of a data set that does not lie on the devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from retrieval_jax.data.stream import batches
from retrieval_jax.runtime import devices


class DataSet(NamedTuple):
    """Images and labels on the host."""

    images: Any  # uint8 [n, h, w, c]: np.ndarray, or LazyImages
    labels: np.ndarray  # int32 [n]; zeros where there are none


def streamed(
    data: DataSet, order: np.ndarray, start: int = 0
) -> Iterator[tuple[DataSet, jax.Array]]:
    """Yields what each step needs and no more, in the form of a data set that lies on the devices.

    Images are read two batches ahead, and the next batch is on its way to the devices while one is
    in use; so neither host nor devices hold more than a few, whatever the size of the set. The
    position is an argument: `start` goes on at the exact example, and nothing needs saving.

    Args:
      data: the whole set.
      order: int [steps, batch], rows of the set that this process' devices take; -1 pads.
      start: the first step to yield.

    Yields:
      A data set of one batch, [devices, batch / devices, …], and the order [devices, 1, batch /
      devices] in which it lies there, -1 where the batch is padded.
    """
    steps, batch = order.shape
    places = np.arange(batch // devices.local_count(), dtype=np.int32)

    def on_host() -> Iterator[tuple[DataSet, np.ndarray]]:
        images = batches(data.images, order.ravel(), batch, start)
        for step, part in zip(range(start, steps), images, strict=True):
            rows = order[step]
            local = np.where(rows.reshape(-1, len(places)) < 0, -1, places)
            yield DataSet(part, data.labels[rows]), local

    return devices.prefetched(on_host())
