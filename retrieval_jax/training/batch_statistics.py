"""BatchNorm's statistics by the weights as they are, in place of the running ones.

The running ones remember weights of the last hundred steps or so, which at a constant learning rate
have moved on: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3, arXiv:2105.07576.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from retrieval_jax.data.images import LazyImages
from retrieval_jax.data.stream import batches
from retrieval_jax.embedder import as_float, nine_crops
from retrieval_jax.runtime import devices
from retrieval_jax.runtime.progress import Progress

# Large, because the variances are means of those within batches: how batches differ is left out.
_BATCH = 512


def of_batch(model: nn.Module, variables: dict[str, Any], images: jax.Array) -> Any:
    """The statistics of one batch, over all devices where the model has a mapped axis.

    Args:
      model: any Flax module whose normalization keeps `m · old + (1 - m) · new` in "batch_stats".
      variables: all of its collections.
      images: float [b, h, w, c].

    Returns:
      A tree like `variables["batch_stats"]`.
    """

    def kept_after(old: Any) -> Any:
        others = {name: value for name, value in variables.items() if name != "batch_stats"}
        rngs = {"params": jax.random.key(0)}  # of dropout and the like
        mutable = [name for name in variables if name != "params"]
        after = model.apply(
            {**others, "batch_stats": old}, images, True, mutable=mutable, rngs=rngs
        )
        return after[1]["batch_stats"]

    # From zeros (1 - m) · new is kept; from that, (1 + m) times as much, which tells m.
    once = kept_after(jax.tree.map(jnp.zeros_like, variables["batch_stats"]))
    twice = kept_after(once)
    return jax.tree.map(
        lambda a, b: jnp.where(a == 0, 0, a / (2 - b / jnp.where(a == 0, 1, a))), once, twice
    )


def reestimated(
    model: nn.Module,
    variables: dict[str, Any],
    images: np.ndarray | LazyImages,
    *,
    crops: int = 0,
) -> dict[str, Any]:
    """The variables with the statistics of images as they are embedded, by the same weights.

    Args:
      model: as for `of_batch`.
      variables: all of its collections, on the host; without "batch_stats" they are returned.
      images: uint8 [n, h, w, c], as many as there are devices or more.
      crops: side of the nine crops that are embedded for each image; 0 for the whole image.

    Returns:
      The variables, on the host: "batch_stats" is the mean over batches of 512 images or, of
      crops, 56; images that don't fill the last batch are left out.
    """
    if "batch_stats" not in variables:
        return variables

    def on_device(variables: dict[str, Any], part: jax.Array) -> Any:
        scaled = as_float(part)
        if crops:
            scaled = nine_crops(scaled, crops).reshape(-1, crops, crops, scaled.shape[-1])
        return of_batch(model, variables, scaled)

    batch = min(_BATCH // 9 if crops else _BATCH, len(images)) // devices.count() * devices.count()
    steps = len(images) // batch
    mine = devices.local_share(np.arange(steps * batch).reshape(steps, batch))
    fed: Iterator[Any] = devices.prefetched(batches(images, mine.ravel(), mine.shape[1]))
    statistics, placed = devices.mapped(on_device), devices.on_every_device(variables)
    sums = jax.tree.map(lambda x: np.zeros(x.shape), variables["batch_stats"])
    with Progress("images for BatchNorm", steps * batch) as progress:
        for part in fed:
            found = devices.from_first_device(statistics(placed, part))
            sums = jax.tree.map(np.add, sums, found)
            progress.update(batch)
    means = jax.tree.map(
        lambda total, x: (total / steps).astype(x.dtype), sums, variables["batch_stats"]
    )
    return {**variables, "batch_stats": means}
