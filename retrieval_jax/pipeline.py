"""One run, end to end: data, train, embed, cluster, score, rank, report."""

from __future__ import annotations

import shlex
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from retrieval_jax import config as configuration
from retrieval_jax import devices, evaluation, provenance, sharded
from retrieval_jax.compilation import keep_programs
from retrieval_jax.data.images import ImageSet, LazyImages, view
from retrieval_jax.data.split import Split, split
from retrieval_jax.kmeans import KMeansResult, predict
from retrieval_jax.models import AutoEncoder, unit_norm
from retrieval_jax.progress import say
from retrieval_jax.randomness import key_for
from retrieval_jax.report.write import write_figures, write_report
from retrieval_jax.training.checkpoints import Checkpoints
from retrieval_jax.training.feed import DataSet
from retrieval_jax.training.logs import MetricLog
from retrieval_jax.training.loop import Watch, train
from retrieval_jax.training.step import TrainState, as_float
from retrieval_jax.workdir import claim, open_workdir, write_arrays, write_json

STAGES = ("data", "train", "embed", "cluster", "score", "rank", "report")


class Embeddings(NamedTuple):
    """float32 [n, d], on the host."""

    gallery: np.ndarray
    queries: np.ndarray


class Clusters(NamedTuple):
    """k-means on the gallery, and the cluster int32 [q] predicted for each query."""

    gallery: KMeansResult
    queries: np.ndarray


def run(
    config: ConfigDict, workdir: Path, arguments: list[str], *, started: float | None = None
) -> dict[str, Any]:
    """Does everything that the config says and leaves it in the workdir.

    The same call on a workdir that an interrupted run left goes on after its last epoch, and ends
    with the same numbers.

    Args:
      config: as `retrieval_jax.config.default` has it.
      workdir: made if it isn't there.
      arguments: of the command line, for the record.
      started: `time.perf_counter()` when the command began, if it was before this call.

    Returns:
      What `results.json` holds.

    Raises:
      UserError: a sentence on what is wrong with the config, the data or the workdir.
    """
    started = time.perf_counter() if started is None else started
    configuration.check(config)
    keep_programs(config.compilation_cache)
    open_workdir(workdir)
    claim(workdir, "config.json", config.to_dict())
    seconds: dict[str, float] = {}
    first_step: list[float] = []  # seconds to it, where this call trains

    def tell_first_step() -> None:
        first_step.append(time.perf_counter() - started)
        say(f"  first step after {first_step[0]:.1f} s")

    with tqdm(total=len(STAGES), disable=None, leave=False) as bar:
        stage = partial(_stage, bar, seconds)
        with stage("data"):
            data, parts, classes = load(config)
            claim(workdir, "data.json", _fingerprint(data))
            say(f"  {data.description}")
        with stage("train"):
            model, state, history = fit(config, workdir, data, parts, classes, tell_first_step)
        # Of all epochs, those before an interruption included.
        seconds["train"] = sum(row["seconds"] for row in history)
        with stage("embed"):
            embeddings = embed_all(config, model, state, data, parts)
            write_arrays(workdir / "embeddings.npz", **embeddings._asdict())
        with stage("cluster"):
            clusters = cluster(config, embeddings)
        with stage("score"):
            scores = clustering_scores(data, parts, clusters)
        with stage("rank"):
            ranking = evaluation.rank(
                embeddings.queries,
                clusters.queries,
                embeddings.gallery,
                clusters.gallery.labels,
                clusters.gallery.centroids,
                config.retrieval.neighbours,
            )
            _write_neighbours(workdir, parts, clusters, ranking)
            retrieval = retrieval_scores(data, parts, ranking)
        with stage("report"):
            figures = write_figures(
                workdir,
                config,
                history=history,
                data=data,
                parts=parts,
                embeddings=embeddings.gallery,
                reconstructions=reconstruct_examples(config, model, state, data, parts),
                neighbours=np.asarray(ranking.cluster.indices),
            )
        results = {
            "format": 1,
            "name": config.name,
            "seconds": seconds,
            "training": _training_results(config, state, history)
            | {"first_step": next(iter(first_step), None)},
            "clustering": _clustering_results(config, clusters) | scores,
            "retrieval": retrieval,
            "left_out": _left_out(config, data, parts),
            "provenance": _provenance(config, data, parts, arguments),
        }
        write_json(workdir / "results.json", results)
        write_report(workdir, results, figures)
    return results


@contextmanager
def _stage(bar: tqdm, seconds: dict[str, float], name: str) -> Iterator[None]:
    bar.set_description(name)
    if bar.disable:
        say(f"{name} …")
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    say(f"{name} done in {seconds[name]:.1f} s")
    bar.update()


def load(config: ConfigDict) -> tuple[ImageSet, Split, int]:
    """The images, their split, and the number of classes, 0 without labels."""
    data = configuration.load_images(config)
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


def _fingerprint(data: ImageSet) -> dict[str, Any]:
    """Tells whether a resumed run sees the data that it began with.

    The checksum is of all pixels and labels; for images that are read later, it is of the names and
    sizes of their files and the labels.
    """
    images, labels = data.images, b"" if data.labels is None else data.labels.tobytes()
    content = (
        images.identity.encode()
        if isinstance(images, LazyImages)
        else np.ascontiguousarray(images).data
    )
    return {"images": len(images), "checksum": zlib.crc32(labels, zlib.crc32(content))}


def fit(
    config: ConfigDict,
    workdir: Path,
    data: ImageSet,
    parts: Split,
    classes: int,
    first_step: Callable[[], None] = lambda: None,
) -> tuple[AutoEncoder, TrainState, list[dict]]:
    """Trains, or takes up what the workdir holds: the model, its state, a row an epoch.

    `first_step` is called after the first step, where there is one to do.
    """
    recipe = configuration.build_recipe(config, data.images.shape[3], classes, len(parts.fit))
    labels = np.zeros(len(data.images), np.int32) if data.labels is None else data.labels
    fit, validation = (
        DataSet(
            view(data.images, rows) if config.data.streaming else data.images[rows], labels[rows]
        )
        for rows in (parts.fit, parts.validation)
    )
    checkpoints = Checkpoints(workdir / "checkpoints")
    watch = Watch(first_step, workdir / "profile", config.training.profile_steps)
    state, history = train(recipe, fit, validation, checkpoints, partial(MetricLog, workdir), watch)
    return recipe.model, state, history


def embed_all(
    config: ConfigDict, model: AutoEncoder, state: TrainState, data: ImageSet, parts: Split
) -> Embeddings:
    """Embeds gallery and queries with the encoder alone."""

    def embed(variables: Any, images: jax.Array) -> jax.Array:
        embedding: Any = model.apply(variables, as_float(images), method="embed")
        return unit_norm(embedding, -1) if config.embedding.normalize else embedding

    rows = np.concatenate([parts.gallery, parts.queries])
    variables = devices.on_every_device(state.variables)
    images = view(data.images, rows)
    embedded = devices.map_rows(embed, variables, images, config.embedding.batch_size)
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
    return devices.map_rows(reconstruct, variables, images, len(images))


def cluster(config: ConfigDict, embeddings: Embeddings) -> Clusters:
    """Groups the gallery by k-means and predicts the cluster of each query."""
    result = sharded.kmeans(
        key_for(config.seed, "k-means"),
        embeddings.gallery,
        config.clustering.k,
        restarts=config.clustering.restarts,
        max_iterations=config.clustering.max_iterations,
        tolerance=config.clustering.tolerance,
    )
    result = jax.tree.map(np.asarray, result)
    return Clusters(result, np.asarray(predict(embeddings.queries, result.centroids)))


def clustering_scores(
    data: ImageSet, parts: Split, clusters: Clusters
) -> dict[str, dict[str, float]]:
    """NMI, RI and ARI on gallery and queries; nothing without labels."""
    if data.labels is None:
        return {}
    return {
        "gallery": evaluation.clustering_scores(
            data.labels[parts.gallery], clusters.gallery.labels
        ),
        "queries": evaluation.clustering_scores(data.labels[parts.queries], clusters.queries),
    }


def retrieval_scores(data: ImageSet, parts: Split, ranking: evaluation.Ranking) -> dict[str, Any]:
    """Precision, mAP and the share of neighbours kept; without labels the share alone."""
    scores: dict[str, Any] = {}
    if data.labels is not None:
        truth = data.labels[parts.queries], data.labels[parts.gallery]
        scores = {
            "cluster": evaluation.retrieval_scores(ranking.cluster, *truth),
            "exhaustive": evaluation.retrieval_scores(ranking.exhaustive, *truth),
        }
    return scores | {"kept": evaluation.kept(ranking)}


def _write_neighbours(
    workdir: Path, parts: Split, clusters: Clusters, ranking: evaluation.Ranking
) -> None:
    """Indices are positions in `gallery`, whose values, like `queries`', are rows of the data."""
    write_arrays(
        workdir / "neighbours.npz",
        queries=parts.queries,
        gallery=parts.gallery,
        query_clusters=clusters.queries,
        gallery_clusters=clusters.gallery.labels,
        centroids=clusters.gallery.centroids,
        cluster_indices=ranking.cluster.indices,
        cluster_distances=ranking.cluster.distances,
        exhaustive_indices=ranking.exhaustive.indices,
        exhaustive_distances=ranking.exhaustive.distances,
    )


def _training_results(config: ConfigDict, state: TrainState, history: list[dict]) -> dict[str, Any]:
    trainable, statistics = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state.batch_stats)
    )
    return {
        "epochs": config.training.epochs,
        "parameters": trainable + statistics,
        "trainable_parameters": trainable,
        "history": history,
    }


def _clustering_results(config: ConfigDict, clusters: Clusters) -> dict[str, Any]:
    result = clusters.gallery
    return {
        "k": config.clustering.k,
        "inertia": float(result.inertia),
        "iterations": int(result.iterations),
        "converged": bool(result.converged),
        "sizes": np.bincount(result.labels, minlength=config.clustering.k).tolist(),
    }


def _left_out(config: ConfigDict, data: ImageSet, parts: Split) -> list[str]:
    left_out = []
    if data.labels is None:
        left_out.append(
            "NMI, RI, ARI, precision and mAP, and the marks in the figures: the data has no labels."
        )
    if len(parts.validation) == 0:
        left_out.append("Validation losses: data.validation_fraction leaves no images for them.")
    if len(parts.gallery) > config.report.tsne_points:
        left_out.append(
            f"t-SNE shows {config.report.tsne_points:,} of the {len(parts.gallery):,} gallery "
            "embeddings, sampled by the seed (report.tsne_points)."
        )
    return left_out


def _provenance(
    config: ConfigDict, data: ImageSet, parts: Split, arguments: list[str]
) -> dict[str, Any]:
    return {
        "command": shlex.join(["python", "-m", "retrieval_jax.main", *arguments]),
        "config": config.to_dict(),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "peak_memory_mb": provenance.peak_memory_mb(),
        "seed": config.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "description": data.description,
            "images": len(data.images),
            "gallery": len(parts.gallery),
            "fit": len(parts.fit),
            "validation": len(parts.validation),
            "queries": len(parts.queries),
            "image_shape": list(data.images.shape[1:]),
            "class_names": list(data.class_names),
            "skipped": list(data.skipped),
        },
    }
