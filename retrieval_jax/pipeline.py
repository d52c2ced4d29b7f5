"""One run, end to end: data, train, embed, cluster, score, rank, report."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from retrieval_jax import config as configuration
from retrieval_jax import devices, evaluation, hosts, sharded
from retrieval_jax.build import build_recipe, load_images
from retrieval_jax.compilation import keep_programs
from retrieval_jax.data.images import ImageSet, LazyImages, view
from retrieval_jax.data.split import Split, split
from retrieval_jax.errors import Interrupted, UserError
from retrieval_jax.files import checksum, in_one_sentence, write_json
from retrieval_jax.interruption import Interruption
from retrieval_jax.kmeans import predict
from retrieval_jax.models import AutoEncoder, unit_norm
from retrieval_jax.progress import say
from retrieval_jax.randomness import key_for
from retrieval_jax.ranking import Neighbours
from retrieval_jax.report.run_page import write_report
from retrieval_jax.report.write import write_figures
from retrieval_jax.results import left_out, of_clustering, of_provenance, of_training
from retrieval_jax.stages import kept, read_results
from retrieval_jax.training.checkpoints import Checkpoints
from retrieval_jax.training.feed import DataSet
from retrieval_jax.training.logs import MetricLog
from retrieval_jax.training.loop import Watch, train
from retrieval_jax.training.step import TrainState, as_float
from retrieval_jax.workdir import claim, differences, open_workdir

STAGES = ("data", "train", "embed", "cluster", "score", "rank", "report")


class Embeddings(NamedTuple):
    """float32 [n, d], on the host."""

    gallery: np.ndarray
    queries: np.ndarray


def run(
    config: ConfigDict,
    workdir: Path,
    arguments: list[str],
    *,
    started: float | None = None,
    interruption: Interruption | None = None,
) -> dict[str, Any]:
    """Does everything that the config says and leaves it in the workdir.

    The same call on a workdir that an interrupted run left goes on where that one was: inside an
    epoch from its last save, after it with the stage that was not done; on any number of devices
    and hosts. It ends with the same numbers. A finished run is left as it is.

    Args:
      config: as `retrieval_jax.config.default` has it.
      workdir: made if it isn't there. With several processes the first alone reads and writes it.
      arguments: of the command line, for the record.
      started: `time.perf_counter()` when the command began, if it was before this call.
      interruption: asked whether to stop; by default never.

    Returns:
      What `results.json` holds.

    Raises:
      UserError: a sentence on what is wrong with the config, the data or the workdir.
      Interrupted: the run was told to stop, and can go on.
    """
    started = time.perf_counter() if started is None else started
    interruption = interruption or Interruption()
    configuration.check(config)
    keep_programs(config.compilation_cache)
    # Where the processes meet may change from start to start.
    claimed = config.to_dict() | {"distributed": None}
    if hosts.is_first():
        open_workdir(workdir)
        with in_one_sentence(workdir):
            claim(workdir, "config.json", claimed)
    _agree(claimed)
    seconds: dict[str, float] = {}
    first_step: list[float] = []  # seconds to it, where this call trains

    def tell_first_step() -> None:
        first_step.append(time.perf_counter() - started)
        say(f"  first step after {first_step[0]:.1f} s")

    with tqdm(total=len(STAGES), disable=None, leave=False) as bar:
        stage = partial(_stage, workdir, bar, seconds, interruption)
        with stage("data"):
            data, parts, classes = load(config)
            _claim_data(workdir, data)
            say(f"  {data.description}")
        finished = hosts.from_first(read_results(workdir) if hosts.is_first() else None)
        if finished is not None:
            say("this run is complete")
            return finished
        with stage("train"), interruption.deferred() as asked_to_stop:
            model, state, history = fit(
                config, workdir, data, parts, classes, tell_first_step, asked_to_stop
            )
            # Of all epochs, those before an interruption included.
            seconds["train"] = sum(row["seconds"] for row in history)
        with stage("embed"):
            arrays, seconds["embed"] = kept(
                workdir / "embeddings.npz",
                checksum(state.variables),
                lambda: embed_all(config, model, state, data, parts)._asdict(),
            )
            embeddings = Embeddings(**arrays)
        with stage("cluster"):
            clusters, seconds["cluster"] = kept(
                workdir / "clusters.npz", checksum(arrays), lambda: cluster(config, embeddings)
            )
        with stage("score"):
            scores = clustering_scores(data, parts, clusters)
        with stage("rank"):
            neighbours, seconds["rank"] = kept(
                workdir / "neighbours.npz",
                checksum([arrays, clusters]),
                lambda: rank(config, parts, embeddings, clusters),
            )
            retrieval = retrieval_scores(data, parts, neighbours)
        with stage("report"):
            reconstructions = reconstruct_examples(config, model, state, data, parts)
            if hosts.is_first():
                figures = write_figures(
                    workdir,
                    config,
                    history=history,
                    data=data,
                    parts=parts,
                    embeddings=embeddings.gallery,
                    reconstructions=reconstructions,
                    neighbours=neighbours["cluster_indices"],
                )
        results: dict[str, Any] = {
            "format": 1,
            "name": config.name,
            "seconds": seconds,
            "training": of_training(config, state, history)
            | {"first_step": next(iter(first_step), None)},
            "clustering": of_clustering(config, clusters) | scores,
            "retrieval": retrieval,
            "left_out": left_out(config, data, parts),
            "provenance": of_provenance(config, data, parts, arguments),
        }
        if hosts.is_first():
            with in_one_sentence(workdir):
                write_report(results, figures, workdir / "report.html")
                write_json(workdir / "results.json", results)  # last: with it the run is complete
    return results


@contextmanager
def _stage(
    workdir: Path, bar: tqdm, seconds: dict[str, float], interruption: Interruption, name: str
) -> Iterator[None]:
    if interruption.asked():
        raise Interrupted
    bar.set_description(name)
    if bar.disable:
        say(f"{name} …")
    start = time.perf_counter()
    with in_one_sentence(workdir):
        yield
    elapsed = time.perf_counter() - start
    seconds.setdefault(name, elapsed)  # a stage that an earlier start did has set its own
    say(f"{name} done in {elapsed:.1f} s")
    bar.update()


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


def _agree(claimed: dict[str, Any]) -> None:
    """Refuses a config that is not the first process', but for what hosts may differ in."""
    own = json.loads(json.dumps(claimed))
    theirs = hosts.from_first(own)
    for config in (own, theirs):
        for host in ("directory", "file"):
            config["data"][host] = None
        config["compilation_cache"] = None
    if found := differences(theirs, own):
        raise UserError(
            f"this process has another config than process 0: {found}; start all by one command"
        )


def _claim_data(workdir: Path, data: ImageSet) -> None:
    """Refuses other images than those that the run began with, on any host."""
    fingerprint = _fingerprint(data)
    if hosts.is_first():
        claim(workdir, "data.json", fingerprint)
    if hosts.from_first(fingerprint) != fingerprint:
        raise UserError("the data is not what process 0 has; give every host the same")


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
        return unit_norm(embedding, -1) if config.embedding.normalize else embedding

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
