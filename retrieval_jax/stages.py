"""What each stage of a run does, in the order of the stages: functions of the config and arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from retrieval_jax import baselines, evaluation
from retrieval_jax import config as configuration
from retrieval_jax.baselines import Embedded, colour_histogram, raw_pixels
from retrieval_jax.build import build_recipe, load_images
from retrieval_jax.data.images import ImageSet, LazyImages, view
from retrieval_jax.data.split import Split, split
from retrieval_jax.models import AutoEncoder
from retrieval_jax.numerics.distances import unit
from retrieval_jax.numerics.keys import key_for
from retrieval_jax.ranking import Neighbours
from retrieval_jax.report.results import Epoch, Scores, Training, typed
from retrieval_jax.runtime import devices, hosts
from retrieval_jax.training.checkpoints import Checkpoints
from retrieval_jax.training.feed import DataSet
from retrieval_jax.training.logs import MetricLog
from retrieval_jax.training.loop import Watch, train
from retrieval_jax.training.step import TrainState, as_float


class Embeddings(NamedTuple):
    """float32 [n, d], on the host."""

    gallery: np.ndarray
    queries: np.ndarray


def load(config: ConfigDict) -> tuple[ImageSet, Split, int]:
    """The images, their split, and the number of classes, 0 without labels."""
    data = load_images(config)
    parts = split(
        data.labels,
        len(data.images),
        config.data.queries,
        config.seed,
        config.data.validation_fraction,
    )
    classes = 0 if data.labels is None else len(data.class_names)
    configuration.check_against_data(
        config, data.images.shape[1:], classes, len(parts.fit), len(parts.gallery)
    )
    return data, parts, classes


def fit(
    config: ConfigDict,
    workdir: epath.Path,
    data: ImageSet,
    parts: Split,
    classes: int,
    first_step: Callable[[], None] = lambda: None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> tuple[AutoEncoder, TrainState, list[dict]]:
    """Trains, or takes up what the workdir holds: the model, its state, a row an epoch.

    `first_step` is called after the first step, where there is one to do.
    """
    recipe = build_recipe(config, data.images.shape[3], classes, len(parts.fit))
    labels = np.zeros(len(data.images), np.int32) if data.labels is None else data.labels
    fit, validation = (
        DataSet(
            view(data.images, rows) if config.data.streaming else data.images[rows], labels[rows]
        )
        for rows in (parts.fit, parts.validation)
    )
    checkpoints = Checkpoints(workdir / "checkpoints", config.training.checkpoint_seconds)
    watch = Watch(first_step, workdir / "profile", config.training.profile_steps)
    state, history = train(
        recipe, fit, validation, checkpoints, partial(MetricLog, workdir), watch, asked_to_stop
    )
    return recipe.model, state, history


Embedder = Callable[[Any, LazyImages], np.ndarray]


def embedder(config: ConfigDict, model: AutoEncoder) -> Embedder:
    """The function (variables, images [n]) → float32 [n, d] of the encoder alone; compiled once."""

    def embed(variables: Any, images: jax.Array) -> jax.Array:
        embedding: Any = model.apply(variables, as_float(images), method="embed")
        return unit(embedding) if config.embedding.normalize else embedding

    mapped = devices.on_rows(embed)

    def embed_all(variables: Any, images: LazyImages) -> np.ndarray:
        on_devices = devices.on_every_device(variables)
        return devices.map_rows(mapped, on_devices, images, config.embedding.batch_size)

    return embed_all


def embed_all(embed: Embedder, state: TrainState, data: ImageSet, parts: Split) -> Embeddings:
    """Embeds gallery and queries."""
    embedded = embed(state.variables, _images(data, parts))
    return Embeddings(*np.split(embedded, [len(parts.gallery)]))


def _images(data: ImageSet, parts: Split) -> LazyImages:
    """All images, the gallery first."""
    return view(data.images, np.concatenate([parts.gallery, parts.queries]))


def training_record(
    config: ConfigDict, state: TrainState, history: list[dict], first_step: float | None
) -> Training:
    """What `results.json` says of the training."""
    trainable, statistics = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state.batch_stats)
    )
    return Training(
        epochs=config.training.epochs,
        parameters=trainable + statistics,
        trainable_parameters=trainable,
        history=tuple(typed(Epoch, row) for row in history),
        first_step=first_step,
    )


def reconstruct_examples(
    config: ConfigDict, model: AutoEncoder, state: TrainState, data: ImageSet, parts: Split
) -> np.ndarray:
    """float32 [examples, h, w, c] of the first queries."""

    def reconstruct(variables: Any, images: jax.Array) -> jax.Array:
        outputs: Any = model.apply(variables, as_float(images))
        return outputs.reconstruction

    images = data.images[parts.queries[: config.report.examples]]
    variables = devices.on_every_device(state.variables)
    return devices.map_rows(devices.on_rows(reconstruct), variables, images, len(images))


def cluster(config: ConfigDict, embeddings: Embeddings) -> dict[str, np.ndarray]:
    """Groups the gallery by k-means: the arrays of `evaluation.Clusters`."""
    return evaluation.cluster(
        key_for(config.seed, "k-means"),
        *embeddings,
        config.clustering.k,
        restarts=config.clustering.restarts,
        max_iterations=config.clustering.max_iterations,
        tolerance=config.clustering.tolerance,
    )._asdict()


def rank(
    config: ConfigDict, parts: Split, embeddings: Embeddings, clusters: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The neighbours of each query, in its cluster and in the whole gallery.

    Returns:
      "cluster_indices" and "exhaustive_indices" int32 [q, k], positions in "gallery", whose values,
      like those of "queries", are rows of the data; "cluster_distances" and "exhaustive_distances".
    """
    ranking = evaluation.rank(
        embeddings.queries,
        clusters["queries"],
        embeddings.gallery,
        clusters["gallery"],
        clusters["centroids"],
        config.retrieval.neighbours,
    )
    return {
        "queries": parts.queries,
        "gallery": parts.gallery,
        **{
            f"{kind}_{name}": array
            for kind, found in ranking._asdict().items()
            for name, array in found._asdict().items()
        },
    }


def score(
    config: ConfigDict,
    data: ImageSet,
    parts: Split,
    embeddings: Embeddings,
    clusters: dict[str, np.ndarray],
    neighbours: dict[str, np.ndarray],
) -> Scores:
    """Scores the trained embedding."""
    ranking = evaluation.Ranking(
        *(
            Neighbours(*(jnp.asarray(neighbours[f"{kind}_{name}"]) for name in Neighbours._fields))
            for kind in evaluation.Ranking._fields
        )
    )
    return evaluation.score(
        *embeddings,
        evaluation.Clusters(**clusters),
        ranking,
        *_labels(data, parts),
        seed=config.seed,
    )


def score_baselines(
    config: ConfigDict, data: ImageSet, parts: Split, embed: Embedder, model: AutoEncoder
) -> dict[str, Scores]:
    """Judges what nobody trained as the trained embedding is judged."""
    images, gallery = _images(data, parts), len(parts.gallery)
    image_shape = (1, *data.images.shape[1:])
    untrained = jax.jit(model.init)(key_for(config.seed, "init"), jnp.zeros(image_shape))
    width = config.model.bottleneck
    features = {"raw pixels": raw_pixels, "colour histogram": colour_histogram}
    embedded = baselines.embed(features, images, gallery, width, config.seed)
    embedded["untrained encoder"] = Embedded(embed(untrained, images), width, None)
    # Those of the first process, to the last bit: the processes search one gallery together.
    rows = hosts.arrays_from_first({name: found.rows for name, found in embedded.items()}) or {}
    gallery_labels, query_labels = _labels(data, parts)
    return {
        name: evaluation.judge(
            key_for(config.seed, "k-means"),
            rows[name][:gallery],
            rows[name][gallery:],
            gallery_labels,
            query_labels,
            k=config.clustering.k,
            neighbours=config.retrieval.neighbours,
            restarts=config.clustering.restarts,
            max_iterations=config.clustering.max_iterations,
            tolerance=config.clustering.tolerance,
            seed=config.seed,
        )._replace(features=found.features, variance_kept=found.variance_kept)
        for name, found in embedded.items()
    }


def _labels(data: ImageSet, parts: Split) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Of gallery and queries."""
    if data.labels is None:
        return None, None
    return data.labels[parts.gallery], data.labels[parts.queries]
