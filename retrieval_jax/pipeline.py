"""One run, end to end: data, train, embed, cluster, rank, score, map, baselines, report."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm

from retrieval_jax import baselines, embedder, evaluation, probes
from retrieval_jax.caveats import caveats
from retrieval_jax.data.images import ImageSet, LazyImages, names_of, view
from retrieval_jax.data.split import Split, split
from retrieval_jax.experiment import (
    Experiment,
    check_config,
    check_workdir,
    claimed,
    same,
    same_baselines,
)
from retrieval_jax.numerics.keys import key_for
from retrieval_jax.ranking import Neighbours
from retrieval_jax.report import explore, page
from retrieval_jax.report.examples import choose_examples, thumbnails
from retrieval_jax.report.items import write_items
from retrieval_jax.report.map import lay_out
from retrieval_jax.report.payload import space_of
from retrieval_jax.report.results import (
    Device,
    Epoch,
    Provenance,
    Results,
    Scores,
    Training,
    describe_data,
    file_checksums,
    finished,
    left_out,
    write,
)
from retrieval_jax.runtime import hosts, provenance
from retrieval_jax.runtime.errors import Interrupted, UserError
from retrieval_jax.runtime.files import checksum, in_one_sentence, write_arrays, write_json
from retrieval_jax.runtime.interruption import Interruption
from retrieval_jax.runtime.memory import require
from retrieval_jax.runtime.model_file import save_model, started_from
from retrieval_jax.runtime.progress import say
from retrieval_jax.runtime.records import plain, typed
from retrieval_jax.runtime.stage_cache import kept
from retrieval_jax.runtime.workdir import check_path, held
from retrieval_jax.training.batch_statistics import reestimated
from retrieval_jax.training.checkpoints import Checkpoints
from retrieval_jax.training.epoch import DataSet, Recipe
from retrieval_jax.training.labels import budgeted
from retrieval_jax.training.logs import MetricLog
from retrieval_jax.training.loop import Profile, Trained, train
from retrieval_jax.training.step import create_state

_TOLD = 10  # skipped files
STAGES = ("data", "train", "embed", "cluster", "rank", "score", "map", "baselines", "report")


class Embeddings(NamedTuple):
    """float32 [n, d], on the host."""

    gallery: np.ndarray
    queries: np.ndarray


def run(
    experiment: Experiment,
    workdir: epath.Path,
    arguments: list[str],
    *,
    started: float | None = None,
    interruption: Interruption | None = None,
) -> Results:
    """Does everything that the experiment says and leaves it in the workdir.

    The same call on the workdir of an interrupted run resumes it: inside an epoch from the last
    save, after that with the first stage that was not done; on any number of devices and hosts. It
    ends with the same numbers. Of a finished run, the stages are done again that
    depend on what has changed since: other neighbours, another k, more epochs.

    Args:
      experiment: of `retrieval_jax.build.experiment`.
      workdir: made if it isn't there. With several processes the first alone reads and writes it.
      arguments: of the command line, for the record.
      started: `time.perf_counter()` when the command began, if it was before this call.
      interruption: asked whether to stop; by default never.

    Returns:
      What `results.json` holds.

    Raises:
      UserError: a sentence on what is wrong with the data or the workdir.
      Interrupted: the run was told to stop, and can go on.
    """
    started = time.perf_counter() if started is None else started
    interruption = interruption or Interruption()
    check_path(workdir)
    check_config(experiment)
    seconds: dict[str, float] = {}
    with (
        held(workdir) if hosts.is_first() else nullcontext(),
        tqdm(total=len(STAGES), disable=None, leave=False) as bar,
    ):
        stage = partial(_stage, workdir, bar, seconds, interruption)
        with stage("data"):
            check_workdir(workdir, experiment)
            data, parts, recipe = load(experiment)
            # Not before: a start that fails here leaves the workdir to the corrected command.
            origin = claimed(workdir, experiment, data)
            for line in [data.description, *data.notes, *_skipped(data)]:
                say(f"  {line}")
        before = hosts.from_first(plain(finished(workdir, origin)) if hosts.is_first() else None)
        previous = None if before is None else typed(Results, before)
        if previous and same(previous.provenance.config, experiment.record):
            say("this run is complete")
            return previous
        with stage("train"), interruption.deferred() as asked_to_stop:
            trained = fit(
                experiment, workdir, data, parts, recipe, started, asked_to_stop, origin=origin
            )
            # Of all epochs, those before an interruption included.
            seconds["train"] = sum(row["seconds"] for row in trained.history)
            variables = trained.state.judged(experiment.average)
        with stage("embed"):
            embed = partial(
                embedder.Embedder.from_state,
                recipe.model,
                normalize=experiment.normalize,
                crops=experiment.crops,
                batch=experiment.embedding_batch_size,
            )
            how = experiment.normalize, experiment.layer, experiment.crops
            arrays, seconds["embed"] = kept(
                workdir / "embeddings.npz",
                checksum([origin, variables, *how]),
                lambda: embed_all(embed(variables), data, parts)._asdict(),
            )
            embeddings = Embeddings(**arrays)
        with stage("cluster"):
            clusters, seconds["cluster"] = kept(
                workdir / "clusters.npz",
                checksum([origin, arrays, experiment.clustering, experiment.seed]),
                lambda: cluster(experiment, embeddings)._asdict(),
            )
        with stage("rank"):
            neighbours, seconds["rank"] = kept(
                workdir / "neighbours.npz",
                checksum([origin, arrays, clusters, experiment.neighbours]),
                lambda: rank(experiment, parts, embeddings, clusters),
            )
        with stage("score"):
            scores = score(experiment, data, parts, embeddings, clusters, neighbours)
            notes = caveats(scores, embeddings.gallery, data, parts)
            for line in notes:
                say(f"  {line}")
        points, placed = experiment.tsne_points, None
        with stage("map"):
            if points > 0:
                asked = embeddings.queries[: explore.asked(len(parts.queries), points)]
                placed, seconds["map"] = kept(
                    workdir / "map.npz",
                    checksum([origin, arrays, points, len(asked), experiment.seed]),
                    lambda: lay_out(embeddings.gallery, asked, points, experiment.seed)._asdict(),
                )
        with stage("baselines"):
            if previous and previous.baselines and same_baselines(previous, experiment):
                scored = previous.baselines
            else:
                width = embeddings.gallery.shape[1]
                scored = score_baselines(experiment, data, parts, embed, recipe, width)
        results = Results(
            name=experiment.name,
            seconds={},
            training=training_record(trained),
            scores=scores,
            left_out=left_out(
                labelled=data.labels is not None,
                validated=len(parts.validation) > 0,
                gallery=len(parts.gallery),
                map_points=points,
            ),
            provenance=_provenance(experiment, data, parts, arguments),
            baselines=scored,
            origin=origin,
            notes=(*data.notes, *notes),
        )
        with stage("report"):
            reconstructions = reconstruct_examples(experiment, recipe, variables, data, parts)
            if hosts.is_first():
                examples = choose_examples(
                    data.images,
                    data.labels,
                    parts.gallery,
                    parts.queries,
                    neighbours["cluster_indices"],
                    experiment.examples,
                    reconstructions=reconstructions,
                    mapped=None if placed is None else placed["rows"],
                )
                space = space_of(arrays, clusters, neighbours, examples)
                mapped = np.zeros(0, int) if placed is None else placed["rows"]
                shown = explore.explore(space, mapped, points)
                rows = parts.gallery[shown.gallery], parts.queries[shown.queries]
                examples |= thumbnails(data.images, np.concatenate(rows))
                examples |= {"shown_gallery": shown.gallery, "shown_queries": shown.queries}
                examples["shown_points"] = np.asarray(points)
                write_arrays(workdir / "examples.npz", **examples)
                named = {
                    "gallery": names_of(data.names, parts.gallery),
                    "queries": names_of(data.names, parts.queries),
                }
                write_json(workdir / "images.json", named)
                found = clusters["gallery"], clusters["queries"]
                write_items(workdir / "items.csv", data, parts, *found)
                figures = page.draw(workdir, results)
        results = results._replace(seconds=seconds)
        if hosts.is_first():
            with in_one_sentence(workdir):
                results = results._replace(files=file_checksums(workdir))
                page.write_page(workdir, results, figures)
                write(workdir, results)  # last: with it the run is complete
    return results


def load(experiment: Experiment) -> tuple[ImageSet, Split, Recipe]:
    """The images, their split, and how to train on them."""
    data = experiment.load_images()
    parts = split(
        data.labels,
        len(data.images),
        experiment.queries(len(data.images)),
        experiment.seed,
        experiment.validation_fraction,
    )
    if experiment.clustering.k > len(parts.gallery):
        raise UserError(
            f"clustering.k is {experiment.clustering.k} but the gallery has {len(parts.gallery)} "
            "images; lower it"
        )
    listed = len(parts.queries) * experiment.neighbours
    require(
        4 * 8 * listed,  # indices and distances of both searches, and as much while they are made
        f"{listed:,} neighbours of {len(parts.queries):,} queries",
        "lower retrieval.neighbours or data.queries",
    )
    classes = 0 if data.labels is None else len(data.class_names)
    return data, parts, experiment.recipe(data.images.shape[1:], classes, len(parts.fit))


def fit(
    experiment: Experiment,
    workdir: epath.Path,
    data: ImageSet,
    parts: Split,
    recipe: Recipe,
    started: float,
    asked_to_stop: Callable[[], bool] = lambda: False,
    origin: str = "",
) -> Trained:
    """Trains, or takes up what the workdir holds, and leaves the model there."""
    labels = training_labels(experiment, data, parts)
    fit_set, validation_set = (
        DataSet(
            view(data.images, rows) if experiment.streaming else data.images[rows], labels[rows]
        )
        for rows in (parts.fit, parts.validation)
    )

    def start_from(params: Any) -> Any:
        own = {"encoder": experiment.initial} if experiment.initial else {}
        return started_from(experiment.init_from, params | own)

    trained = train(
        recipe,
        fit_set,
        validation_set,
        Checkpoints(workdir / "checkpoints", experiment.checkpoint_seconds, origin),
        MetricLog(workdir, experiment.trackers),
        start_from=start_from,
        started=started,
        profile=Profile(workdir / "profile", experiment.profile_steps),
        asked_to_stop=asked_to_stop,
    )
    if len(trained.history) > recipe.epochs:
        raise UserError(
            f"the workdir holds {len(trained.history)} epochs, more than training.epochs, "
            f"{recipe.epochs}; raise it, or give another --workdir"
        )
    if experiment.precise_batchnorm:
        variables = trained.state.judged(experiment.average)
        variables = reestimated(recipe.model, variables, fit_set.images, crops=experiment.crops)
        trained = trained._replace(state=trained.state.judging(variables, experiment.average))
    if hosts.is_first():
        description = {
            "encoder": experiment.encoder,
            "normalize": experiment.normalize,
            "projector": experiment.projector if experiment.layer == "projection" else None,
            "classes": len(data.class_names) if experiment.layer == "probabilities" else None,
            "crops": experiment.crops,
            "image_shape": list(data.images.shape[1:]),
        }
        save_model(workdir, trained.state.judged(experiment.average), description)
    return trained


def training_labels(experiment: Experiment, data: ImageSet, parts: Split) -> np.ndarray:
    """int32 [n], -1 where training may not use an image's label."""
    if data.labels is None:
        return np.full(len(data.images), -1, np.int32)
    if experiment.budget is None:
        return data.labels

    def embed() -> np.ndarray:
        by_run = embedder.Embedder.from_run(experiment.init_from)
        return by_run(view(data.images, parts.fit))

    classes = len(data.class_names)
    labels = budgeted(experiment.budget, data.labels, parts.fit, classes, experiment.seed, embed)
    shared = hosts.arrays_from_first({"labels": labels})  # the first process' k-means decides
    return labels if shared is None else shared["labels"]


def embed_all(embed: embedder.Embedder, data: ImageSet, parts: Split) -> Embeddings:
    """Embeds gallery and queries."""
    return Embeddings(*np.split(embed(_images(data, parts)), [len(parts.gallery)]))


def reconstruct_examples(
    experiment: Experiment, recipe: Recipe, variables: dict[str, Any], data: ImageSet, parts: Split
) -> np.ndarray | None:
    """float32 [examples, h, w, c] of the first queries; None without a decoder."""
    if "reconstruction" not in {n for term in recipe.objective.values() for n in term.needs}:
        return None

    def reconstruct(variables: Any, images: jax.Array) -> jax.Array:
        scaled = embedder.as_float(images)
        return recipe.model.apply(variables, scaled, method="reconstruct")  # type: ignore[return-value]

    images = data.images[parts.queries[: experiment.examples]]
    return embedder.applied(reconstruct, variables, images, len(images))


def cluster(experiment: Experiment, embeddings: Embeddings) -> evaluation.Clusters:
    """Groups the gallery by k-means and predicts the cluster of each query."""
    how = experiment.clustering._asdict()
    require(
        2 * 4 * how["restarts"] * how["k"] * embeddings.gallery.shape[1],
        f"the seeds of {how['restarts']:,} restarts",
        "lower clustering.restarts",
    )
    return evaluation.cluster(key_for(experiment.seed, "k-means"), *embeddings, **how)


def rank(
    experiment: Experiment, parts: Split, embeddings: Embeddings, clusters: dict[str, np.ndarray]
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
        experiment.neighbours,
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
    experiment: Experiment,
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
    of_gallery, of_queries = _labels(data, parts)
    scores = evaluation.score(
        *embeddings,
        evaluation.Clusters(**clusters),
        ranking,
        of_gallery,
        of_queries,
        seed=experiment.seed,
    )
    exhaustive = scores.retrieval.exhaustive
    if not experiment.probes or exhaustive is None or of_gallery is None or of_queries is None:
        return scores
    found: Any = probes.accuracies(*embeddings, of_gallery, of_queries)
    probed = scores.retrieval._replace(exhaustive=exhaustive._replace(**found))
    return scores._replace(retrieval=probed)


def score_baselines(
    experiment: Experiment,
    data: ImageSet,
    parts: Split,
    embed: Callable[[dict[str, Any]], embedder.Embedder],
    recipe: Recipe,
    width: int,
) -> dict[str, Scores]:
    """Judges what nobody trained as the trained embedding, of that width, is judged."""
    images, gallery = _images(data, parts), len(parts.gallery)
    untrained = create_state(
        recipe.model,
        recipe.objective,
        recipe.optimizer,
        key_for(experiment.seed, "init"),
        data.images.shape[1:],
    ).variables
    features = {
        "raw pixels": baselines.raw_pixels,
        "colour histogram": baselines.colour_histogram,
    }
    embedded = baselines.embed(features, images, gallery, width, experiment.seed)
    embedded["untrained encoder"] = baselines.Embedded(embed(untrained)(images), width, None)
    # Those of the first process, to the last bit: the processes search one gallery together.
    rows = hosts.arrays_from_first({name: found.rows for name, found in embedded.items()}) or {}
    return {
        name: evaluation.judge(
            key_for(experiment.seed, "k-means"),
            rows[name][:gallery],
            rows[name][gallery:],
            *_labels(data, parts),
            neighbours=experiment.neighbours,
            seed=experiment.seed,
            **experiment.clustering._asdict(),
        )._replace(features=found.features, variance_kept=found.variance_kept)
        for name, found in embedded.items()
    }


def training_record(trained: Trained) -> Training:
    """What `results.json` says of the training."""
    trainable, others = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (trained.state.params, trained.state.collections)
    )
    return Training(
        epochs=len(trained.history),
        parameters=trainable + others,
        trainable_parameters=trainable,
        history=tuple(typed(Epoch, row) for row in trained.history),
        first_step=trained.first_step,
    )


def _provenance(
    experiment: Experiment, data: ImageSet, parts: Split, arguments: list[str]
) -> Provenance:
    return Provenance(
        command=shlex.join(["retrieval-jax", "run", *arguments]),
        config=json.loads(json.dumps(experiment.record)),
        versions=provenance.versions(),
        device=typed(Device, provenance.device()),
        seed=experiment.seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        data=describe_data(data, parts),
        peak_memory_mb=provenance.peak_memory_mb(),
    )


def _skipped(data: ImageSet) -> list[str]:
    """What of the skipped files is told at once."""
    told = [f"skipped: {line}" for line in data.skipped[:_TOLD]]
    more = len(data.skipped) - _TOLD
    return [*told, f"skipped: {more:,} more, which the report lists"] if more > 0 else told


def _images(data: ImageSet, parts: Split) -> LazyImages:
    """All images, the gallery first."""
    return view(data.images, np.concatenate([parts.gallery, parts.queries]))


def _labels(data: ImageSet, parts: Split) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Of gallery and queries."""
    if data.labels is None:
        return None, None
    return data.labels[parts.gallery], data.labels[parts.queries]


@contextmanager
def _stage(
    workdir: epath.Path, bar: tqdm, seconds: dict[str, float], interruption: Interruption, name: str
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
