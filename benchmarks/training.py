"""The training step and the embedding beside PyTorch (channels-last) and Keras 3 on TensorFlow.

    python -m benchmarks.training

One process, the same random images, the same mathematics, as many threads each; data lies in the
memory of each of them as it would in a run. Prints a Markdown table; ratios are ours / theirs, the
time of the same work: below 1 is faster than they are.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

# Before the peers are imported: threads that wait must not take the cores of whose turn it is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from benchmarks import epochs  # noqa: E402
from benchmarks.epochs import Work  # noqa: E402
from benchmarks.interleaved import table_row, times  # noqa: E402
from retrieval_jax import config  # noqa: E402
from retrieval_jax.main import with_huge_pages  # noqa: E402
from retrieval_jax.runtime import provenance  # noqa: E402

CLASSES = 10


def ours(images: np.ndarray, labels: np.ndarray, hint: bool, batch: int) -> Work:
    """This project's, by the default config."""
    settings = config.default()
    settings.training.batch_size = batch
    settings.objective.classification.weight = float(hint)
    return epochs.ours(settings, images, labels, CLASSES)


def by_torch(images: np.ndarray, labels: np.ndarray, hint: bool, batch: int) -> Work:
    """The same in PyTorch, channels-last."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def conv(before: int, after: int) -> nn.Conv2d:
        return nn.Conv2d(before, after, 3, padding=1)

    def norm(features: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(features, eps=1e-3, momentum=0.01), nn.ReLU()]

    def up() -> nn.Module:
        return nn.Upsample(scale_factor=2)

    encoder = nn.Sequential(
        *(conv(3, 32), *norm(32), nn.MaxPool2d(2)),
        *(conv(32, 64), *norm(64), nn.MaxPool2d(2)),
        conv(64, 128),
    )
    decoder = nn.Sequential(
        *norm(128),
        *(up(), conv(128, 128), *norm(128)),
        *(up(), conv(128, 64), *norm(64)),
        *(conv(64, 3), nn.Sigmoid()),
    )
    model = nn.ModuleList([encoder, decoder, nn.Linear(128, CLASSES)])
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    classes = torch.from_numpy(labels).long()

    def epoch() -> None:
        model.train()
        for rows in torch.randperm(len(pixels))[: len(pixels) // batch * batch].split(batch):
            x = pixels[rows]
            bottleneck = encoder(x)
            loss = nn.functional.mse_loss(decoder(bottleneck), x)
            if hint:
                logits = model[2](bottleneck.mean((2, 3)))
                loss = loss + nn.functional.cross_entropy(logits, classes[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    @torch.inference_mode()
    def embed() -> np.ndarray:
        model.eval()
        return torch.cat([encoder(part).mean((2, 3)) for part in pixels.split(batch)]).numpy()

    return Work(epoch, embed)


def by_keras(images: np.ndarray, labels: np.ndarray, hint: bool, batch: int) -> Work:
    """The same in Keras 3 on TensorFlow: `fit`, and `predict` of the encoder."""
    threads = len(os.sched_getaffinity(0))
    if not tf.config.threading.get_intra_op_parallelism_threads():
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    layers = keras.layers

    def conv(x: Any, features: int) -> Any:
        return layers.Conv2D(features, 3, padding="same")(x)

    def norm(x: Any) -> Any:
        return layers.ReLU()(layers.BatchNormalization()(x))

    inputs = keras.Input((32, 32, 3))
    x = inputs
    for features in (32, 64):
        x = layers.MaxPool2D()(norm(conv(x, features)))
    bottleneck = conv(x, 128)
    embedding = layers.GlobalAveragePooling2D()(bottleneck)
    x = norm(bottleneck)
    for features in (128, 64):
        x = norm(conv(layers.UpSampling2D()(x), features))
    outputs = [layers.Activation("sigmoid")(conv(x, 3))]
    losses = ["mse"]
    pixels = images.astype(np.float32) / 255
    targets = [pixels]
    if hint:
        outputs.append(layers.Dense(CLASSES, activation="softmax")(embedding))
        losses.append("sparse_categorical_crossentropy")
        targets.append(labels)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(1e-3), losses)
    encoder = keras.Model(inputs, embedding)
    return Work(
        lambda: model.fit(pixels, targets, batch_size=batch, verbose=0),
        lambda: encoder.predict(pixels, batch_size=batch, verbose=0),
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns that are timed")
    parser.add_argument("--images", type=int, default=1280, help="of an epoch; of embedding ×10")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10 * options.images, 32, 32, 3), np.uint8)
    labels = rng.integers(0, CLASSES, len(images)).astype(np.int32)
    few = images[: options.images], labels[: options.images]
    makers = {"ours": ours, "PyTorch": by_torch, "Keras": by_keras}
    peers = f"PyTorch {torch.__version__}, Keras {keras.__version__}, TensorFlow {tf.__version__}"
    print(f"{provenance.device()}; {provenance.versions()}; {peers}")
    print(f"medians of {options.repeats} interleaved turns\n")
    print("| work | ours | ours / theirs (theirs) | images/s |\n|---|---|---|---|")

    def show(work: str, calls: dict[str, Callable[[], Any]], count: int) -> None:
        seconds = times(calls, options.repeats)
        rates = (f"{name} {count / statistics.median(s):,.0f}" for name, s in seconds.items())
        print(table_row(work, seconds, ", ".join(rates)), flush=True)

    for hint in (False, True):
        for batch in (32, 128):
            work = {name: make(*few, hint, batch) for name, make in makers.items()}
            steps = len(few[0]) // batch
            name = f"{'hint' if hint else 'vanilla'}, {steps} steps of {batch}"
            show(name, {peer: of.steps for peer, of in work.items()}, steps * batch)
    for batch in (128, 512):
        work = {name: make(images, labels, True, batch) for name, make in makers.items()}
        name = f"embedding {len(images):,} images by {batch}"
        show(name, {peer: of.embed for peer, of in work.items()}, len(images))


if __name__ == "__main__":
    with_huge_pages()
    main()
