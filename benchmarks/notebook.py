"""System 2 of the protocol as a notebook has it: Keras 3 on TensorFlow, scikit-learn and NumPy.

    python -m benchmarks.notebook --data DIR --epochs N

The peer of `benchmarks.whole_run`: fit with validation, predict the bottleneck of all images,
average it over its positions, k-means, and rank each query's cluster. Reads and splits CIFAR-10 as
this project does. Its last line is JSON: scores, versions and the seconds of each stage.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"
_START = time.perf_counter()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import sklearn  # noqa: E402
import tensorflow as tf  # noqa: E402
from keras import layers  # noqa: E402
from sklearn.cluster import KMeans  # noqa: E402
from sklearn.metrics import normalized_mutual_info_score, rand_score  # noqa: E402

from retrieval_jax.data.split import split  # noqa: E402
from retrieval_jax.data.tfds import from_tfds  # noqa: E402

QUERIES, CLUSTERS, SHOWN = 3000, 10, 5


def build() -> tuple[keras.Model, keras.Model]:
    """The compiled model, and the encoder up to the bottleneck."""

    def conv(x, features, activation=None):
        return layers.Conv2D(features, 3, padding="same", activation=activation)(x)

    def norm(x):
        return layers.ReLU()(layers.BatchNormalization()(x))

    x = inputs = keras.Input((32, 32, 3))
    for features in (32, 64):
        x = layers.MaxPooling2D()(norm(conv(x, features)))
    bottleneck = conv(x, 128)
    x = norm(bottleneck)
    for features in (128, 64):
        x = norm(conv(layers.UpSampling2D()(x), features))
    hint = layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(bottleneck))
    model = keras.Model(inputs, [conv(x, 3, "sigmoid"), hint])
    model.compile(keras.optimizers.Adam(1e-3), ["mse", "sparse_categorical_crossentropy"])
    return model, keras.Model(inputs, bottleneck)


def rank(queries, clusters, gallery, gallery_clusters) -> np.ndarray:
    """int [q, SHOWN]: the nearest gallery rows in each query's cluster."""
    shown = []
    for query, cluster in zip(queries, clusters, strict=True):
        (rows,) = np.nonzero(gallery_clusters == cluster)
        distances = np.linalg.norm(gallery[rows] - query, axis=1)
        shown.append(rows[np.argsort(distances)[:SHOWN]])
    return np.stack(shown)


def main() -> None:
    """Runs it and prints the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="TFDS data directory with CIFAR-10")
    parser.add_argument("--epochs", type=int, required=True)
    options = parser.parse_args()
    seconds = {"import": time.perf_counter() - _START}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    keras.utils.set_random_seed(0)
    with stage("data"):
        found = from_tfds("cifar10", options.data)
        parts = split(found.labels, len(found.images), QUERIES, seed=0)
        images, labels = found.images.astype(np.float32) / 255, found.labels
        x, y = images[parts.gallery], labels[parts.gallery]
        queries, query_labels = images[parts.queries], labels[parts.queries]
    with stage("train"):
        model, encoder = build()
        fit, validation = np.split(x, [len(parts.fit)]), np.split(y, [len(parts.fit)])
        history = model.fit(
            fit[0],
            [fit[0], validation[0]],
            validation_data=(fit[1], [fit[1], validation[1]]),
            batch_size=32,
            epochs=options.epochs,
            verbose=0,
        ).history
    with stage("embed"):
        embedded = encoder.predict(x, verbose=0).mean((1, 2))
        embedded_queries = encoder.predict(queries, verbose=0).mean((1, 2))
    with stage("cluster"):
        kmeans = KMeans(CLUSTERS, n_init=10, random_state=0).fit(embedded)
        clusters = kmeans.predict(embedded_queries)
    with stage("score"):
        scores = {
            "NMI": normalized_mutual_info_score(y, kmeans.labels_),
            "RI": rand_score(y, kmeans.labels_),
        }
    with stage("rank"):
        shown = rank(embedded_queries, clusters, embedded, kmeans.labels_)
        scores["precision@5"] = float((y[shown] == query_labels[:, None]).mean())
    scores["validation loss"] = history["val_loss"][-1]
    versions = {"Keras": keras.__version__, "TensorFlow": tf.__version__}
    versions["scikit-learn"] = sklearn.__version__
    print(json.dumps({"seconds": seconds, "scores": scores, "versions": versions}))


if __name__ == "__main__":
    main()
