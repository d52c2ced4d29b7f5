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

from retrieval_jax import config as configuration
from retrieval_jax import evaluation, sharded
from retrieval_jax.build import build_recipe, load_images
from retrieval_jax.data.images import ImageSet, view
from retrieval_jax.data.split import Split, split
from retrieval_jax.kmeans import predict
from retrieval_jax.models import AutoEncoder
from retrieval_jax.numerics.distances import unit
from retrieval_jax.numerics.keys import key_for
from retrieval_jax.ranking import Neighbours
from retrieval_jax.runtime import devices
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


def embed_all(
    config: ConfigDict, model: AutoEncoder, state: TrainState, data: ImageSet, parts: Split
) -> Embeddings:
    """Embeds gallery and queries with the encoder alone."""

    def embed(variables: Any, images: jax.Array) -> jax.Array:
        embedding: Any = model.apply(variables, as_float(images), method="embed")
        return unit(embedding) if config.embedding.normalize else embedding

    rows = np.concatenate([parts.gallery, parts.queries])
    variables = devices.on_every_device(state.variables)
    images = view(data.images, rows)
    embedded = devices.map_rows(
        devices.on_rows(embed), variables, images, config.embedding.batch_size
    )
    return Embeddings(*np.split(embedded, [len(parts.gallery)]))


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
    """Groups the gallery by k-means and predicts the cluster of each query.

    Returns:
      "gallery" int32 [n] and "queries" int32 [q], the cluster of each, and of `KMeansResult`
      "centroids", "inertia", "iterations" and "converged".
    """
    found = sharded.kmeans(
        key_for(config.seed, "k-means"),
        embeddings.gallery,
        config.clustering.k,
        restarts=config.clustering.restarts,
        max_iterations=config.clustering.max_iterations,
        tolerance=config.clustering.tolerance,
    )
    found = jax.tree.map(np.asarray, found)
    return {
        "gallery": found.labels,
        "queries": np.asarray(predict(embeddings.queries, found.centroids)),
        "centroids": found.centroids,
        "inertia": found.inertia,
        "iterations": found.iterations,
        "converged": found.converged,
    }


def clustering_scores(
    data: ImageSet, parts: Split, clusters: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """NMI, RI and ARI on gallery and queries; nothing without labels."""
    if data.labels is None:
        return {}
    return {
        "gallery": evaluation.clustering_scores(data.labels[parts.gallery], clusters["gallery"]),
        "queries": evaluation.clustering_scores(data.labels[parts.queries], clusters["queries"]),
    }


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


def retrieval_scores(
    data: ImageSet, parts: Split, neighbours: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Precision, mAP and the share of neighbours kept; without labels the share alone."""
    ranking = evaluation.Ranking(
        *(
            Neighbours(*(jnp.asarray(neighbours[f"{kind}_{name}"]) for name in Neighbours._fields))
            for kind in evaluation.Ranking._fields
        )
    )
    scores: dict[str, Any] = {}
    if data.labels is not None:
        truth = data.labels[parts.queries], data.labels[parts.gallery]
        scores = {
            kind: evaluation.retrieval_scores(found, *truth)
            for kind, found in ranking._asdict().items()
        }
    return scores | {"kept": evaluation.kept(ranking)}
