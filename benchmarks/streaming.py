"""What streaming costs: reading alone, and a training step beside one whose data is on the device.

    python -m benchmarks.streaming [--directory DIR]

DIR is a TFDS data directory with cifar10; without it random images take its place in the training
step, and its row is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from benchmarks.interleaved import table_row, times
from retrieval_jax import build, config
from retrieval_jax.data.folder import from_folder
from retrieval_jax.data.images import ImageSet, LazyImages, describe_images
from retrieval_jax.data.stream import batches
from retrieval_jax.data.tfds import from_tfds
from retrieval_jax.runtime import devices, provenance
from retrieval_jax.training.epoch import DataSet, Epoch, fit_steps, no_totals, streamed
from retrieval_jax.training.step import create_state


def photos(directory: Path, count: int) -> ImageSet:
    """JPEG files of 500×375, smooth and noisy as photos are, to be read at 64×64."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), float)
        noisy = smooth + rng.normal(0, 8, smooth.shape)
        pixels = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        pixels.save(directory / f"{i}.jpg", quality=90)
    return from_folder(directory, (64, 64), streaming=True)


def reading_row(work: str, images: LazyImages, repeats: int, count: int, batch: int = 128) -> str:
    """A row: through the stream, beside one image after the other in a loop."""
    order = np.random.default_rng(0).permutation(len(images))[:count]

    def stream() -> None:
        for _ in batches(images, order, batch):
            pass

    def loop() -> None:
        for row in order:
            images[row]

    seconds = times({"ours": stream, "one by one": loop}, repeats)
    rate = count / statistics.median(seconds["ours"])
    return table_row(f"read {count:,} {work}", seconds, f"{rate:,.0f} images/s")


def training_row(data: DataSet, decoded: np.ndarray, batch: int, repeats: int, steps: int) -> str:
    """A row: `steps` steps from a stream, beside a stream from memory and the device's own data."""
    settings = config.default()
    settings.training.batch_size = batch
    settings.objective.classification.weight = 1.0
    settings.data.streaming = True  # a call is one step, for all contenders
    classes, shape = int(data.labels.max()) + 1, decoded.shape[1:]
    recipe = build.recipe(settings, build.Sizes(shape, classes, len(decoded)))
    key = jax.random.key(0)
    state = create_state(recipe.model, recipe.objective, recipe.optimizer, key, shape)
    start = devices.on_every_device(Epoch(state, no_totals(recipe)))
    step = devices.mapped(partial(fit_steps, recipe))
    order = np.random.default_rng(0).permutation(len(decoded))[: steps * batch]
    order = order.reshape(steps, batch).astype(np.int32)
    in_memory = data._replace(images=decoded)
    shared = devices.share_batches(order)
    resident = devices.on_every_device(in_memory), shared, shared

    def train(fed: Callable[[], Iterable]) -> Any:
        last = start
        for part, rows, places in fed():
            last, _ = step(last, part, rows, places)
        return last.state.step

    contenders = {
        "ours": lambda: streamed(data, order),
        "memory": lambda: streamed(in_memory, order),
        "on the device": lambda: repeat(resident, steps),
    }
    seconds = times({name: partial(train, fed) for name, fed in contenders.items()}, repeats)
    rate = steps * batch / statistics.median(seconds["ours"])
    return table_row(
        f"{steps} training steps, hint, batch {batch}", seconds, f"{rate:,.0f} images/s"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", help="TFDS data directory with cifar10")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{provenance.device()}; {os.cpu_count()} cores; {provenance.versions()}")
    print("| work | streamed | streamed / other (other) | |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        lazy = photos(Path(directory), 512).images
        print(reading_row("JPEG photos of 500×375 at 64×64", lazy, options.repeats, 512))
    if options.directory:
        found = from_tfds("cifar10", options.directory, streaming=True)
        print(reading_row("of CIFAR-10", found.images, options.repeats, 10_000))
        decoded = from_tfds("cifar10", options.directory).images
        data = DataSet(found.images, found.labels)
    else:
        rng = np.random.default_rng(0)
        decoded = rng.integers(0, 256, (10_000, 32, 32, 3), np.uint8)
        data = DataSet(decoded, rng.integers(0, 10, len(decoded)).astype(np.int32))
    for batch in (32, 128):
        print(training_row(data, decoded, batch, options.repeats, steps=512 // batch))
    print(f"training on {describe_images(decoded)}")


if __name__ == "__main__":
    main()
