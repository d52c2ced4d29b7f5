"""`results.json`: every number of a run in one typed schema, written, read and averaged.

The types below are the file: a `NamedTuple` is an object with its fields as keys, a tuple a list,
and None a key that is absent. What needs labels is absent where the images have none.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from etils import epath

from retrieval_jax.data.images import ImageSet
from retrieval_jax.data.split import Split
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import reaching, read_json, write_json
from retrieval_jax.runtime.origins import file_checksum, sealed, unsealed
from retrieval_jax.runtime.records import RecordError, plain, typed

FORMAT = 2
_FILES = (
    *("model.safetensors", "model.json", "embeddings.npz", "clusters.npz", "neighbours.npz"),
    *("map.npz", "examples.npz", "images.json", "items.csv"),
)


class Unfinished(UserError):
    """A run has left no results yet."""


class Score(NamedTuple):
    """A score, and what it would be by chance where that is defined."""

    value: float
    chance: float | None = None


class ClusterScores(NamedTuple):
    """What `retrieval_jax.evaluation.score_clusters` says of gallery or queries."""

    nmi: Score | None = None
    ri: Score | None = None
    ari: Score | None = None
    ami: Score | None = None
    accuracy: Score | None = None  # the share in the class that their cluster is matched to
    silhouette: Score | None = None  # absent where there is one cluster only
    counts: tuple[tuple[int, ...], ...] | None = None  # [classes][clusters]


class Clustering(NamedTuple):
    """How k-means ended, and its scores."""

    k: int
    inertia: float
    iterations: int
    converged: bool
    sizes: tuple[int, ...]  # gallery images in each cluster
    gallery: ClusterScores = ClusterScores()
    queries: ClusterScores = ClusterScores()


class RetrievalScores(NamedTuple):
    """What `retrieval_jax.evaluation.score_retrieval` says; the keys of dictionaries are cutoffs.

    The last five are of the exhaustive search alone.
    """

    precision_at: dict[str, Score]
    recall_at: dict[str, Score]
    map_at: dict[str, Score]
    map_at_r: Score | None = None
    map: Score | None = None  # over the whole ranking
    knn_accuracy: Score | None = None
    weighted_knn_accuracy: Score | None = None  # k = 200, temperature 0.1
    linear_accuracy: Score | None = None  # of a linear probe


class Retrieval(NamedTuple):
    """Scores of the search in the query's cluster and of the exhaustive one."""

    cluster: RetrievalScores | None = None
    exhaustive: RetrievalScores | None = None
    kept: dict[str, Score] = {}  # share of the true neighbours that the cluster has, by cutoff


class Scores(NamedTuple):
    """All that is said of one embedding.

    Attributes:
      clustering: of its clusters.
      retrieval: of its neighbours.
      features: how many it has.
      variance_kept: the share that its projection keeps, where it was projected to be judged.
    """

    clustering: Clustering
    retrieval: Retrieval
    features: int | None = None
    variance_kept: float | None = None


class Epoch(NamedTuple):
    """Means of an epoch, by term."""

    epoch: int
    seconds: float
    fit: dict[str, float | None] = {}
    validation: dict[str, float | None] = {}
    step: int | None = None


class Training(NamedTuple):
    """The budget, the model's size and how training went."""

    epochs: int
    parameters: int  # BatchNorm statistics included
    trainable_parameters: int
    history: tuple[Epoch, ...]
    first_step: float | None = None  # seconds from the command to it; absent after an interruption


class Device(NamedTuple):
    """What the run was on; `host` is the processor and its cores."""

    platform: str
    kind: str
    count: int  # type: ignore[assignment]  # of devices, and a method of tuples
    host: str


class Data(NamedTuple):
    """The images: what they are, how many of each part, what was left out."""

    description: str
    images: int
    gallery: int
    fit: int
    validation: int
    queries: int
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


class Provenance(NamedTuple):
    """What another needs to repeat the run."""

    command: str
    config: dict[str, Any]
    versions: dict[str, str]
    device: Device
    seed: int
    date: str
    data: Data
    peak_memory_mb: int | None = None


class Results(NamedTuple):
    """The whole file, but for its format.

    Attributes:
      name: of the run.
      seconds: by stage.
      training: budget and history.
      scores: of the trained embedding.
      left_out: a sentence for each thing that data or config leave no room for.
      provenance: where all of it comes from.
      baselines: name → the same scores of an embedding that nobody trained.
      notes: a sentence for each thing that changes what a score means, or that the data lacks.
      origin: of the run, see `retrieval_jax.runtime.origins`; None in those of earlier versions.
      files: name → CRC-32 of the files beside it; None in those of earlier versions.
    """

    name: str
    seconds: dict[str, float]
    training: Training
    scores: Scores
    left_out: tuple[str, ...]
    provenance: Provenance
    baselines: dict[str, Scores] = {}
    notes: tuple[str, ...] = ()
    origin: str | None = None
    files: dict[str, int] | None = None


class Mean(NamedTuple):
    """A number over several runs; `sd` is the sample standard deviation, None of one run."""

    mean: float
    sd: float | None
    n: int


def describe_data(data: ImageSet, parts: Split) -> Data:
    """What the file says of the images."""
    return Data(
        description=data.description,
        images=len(data.images),
        gallery=len(parts.gallery),
        fit=len(parts.fit),
        validation=len(parts.validation),
        queries=len(parts.queries),
        image_shape=tuple(data.images.shape[1:]),
        class_names=tuple(data.class_names),
        skipped=tuple(data.skipped),
    )


def left_out(*, labelled: bool, validated: bool, gallery: int, map_points: int) -> tuple[str, ...]:
    """A sentence for each thing that the data or the config leaves no room for.

    Args:
      labelled: whether the images have labels.
      validated: whether there are validation images.
      gallery: images in it.
      map_points: how many of them the map shows at most.

    Example:
      >>> left_out(labelled=True, validated=True, gallery=9, map_points=5)
      ('The map shows 5 of the 9 gallery embeddings, sampled by the seed (report.tsne_points).',)
    """
    sentences = []
    if not labelled:
        sentences.append(
            "Scores that judge by classes, and the marks in the figures: the data has no labels."
        )
    if not validated:
        sentences.append("Validation losses: data.validation_fraction leaves no images for them.")
    if map_points == 0:
        sentences.append("The map of the embeddings: report.tsne_points is 0.")
    elif gallery > map_points:
        sentences.append(
            f"The map shows {map_points:,} of the {gallery:,} gallery embeddings, sampled by the "
            "seed (report.tsne_points)."
        )
    return tuple(sentences)


def write(workdir: epath.Path, results: Results) -> None:
    """Writes `workdir/results.json` whole or not at all.

    Raises:
      ValueError: a number is not finite.
      OSError: it can't be written.
    """
    write_json(workdir / "results.json", sealed({"format": FORMAT} | plain(results)))


def read(workdir: epath.PathLike) -> Results:
    """Reads the results of a finished run, of this format or the one before.

    Raises:
      Unfinished: the directory has no such file.
      UserError: there is no such directory, or it isn't a whole results file of a format that this
        version knows.
    """
    workdir = epath.Path(workdir)
    file = workdir / "results.json"
    shown = printable(str(file))
    try:
        with reaching(workdir):
            there = workdir.is_dir()
        if not there:
            raise UserError(
                f"{printable(str(workdir))} is not a directory: name the workdir of a finished run."
            )
        content = read_json(file)
    except FileNotFoundError:
        raise Unfinished(f"{shown} is missing: the run there has not finished.") from None
    except OSError as error:
        raise UserError(
            f"{shown} can't be read ({reason(error)}): check that this machine may read it."
        ) from None
    except ValueError:
        raise UserError(f"{shown} is broken, it is not JSON: repeat the run's command.") from None
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(
            f"{shown} is not the results file of a run: name the workdir of a finished one."
        )
    if "crc32" in content:  # not in those of earlier versions
        try:
            content = unsealed(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{shown} is not to be trusted, {error}: repeat its command.") from None
    try:
        if content["format"] == FORMAT:
            return _sound(typed(Results, content))
        if content["format"] == 1:
            from retrieval_jax.report.format1 import Results1, from_format_1  # of these types

            return _sound(from_format_1(typed(Results1, content)))
    except RecordError as error:
        raise UserError(
            f"{shown} is broken ({printable(str(error))}): repeat the run's command."
        ) from None
    raise UserError(
        f"{shown} has format {printable(repr(content['format']))[:40]}, and this version reads 1 "
        f"and {FORMAT}: read it with the version that wrote it."
    )


def _sound(results: Results) -> Results:
    """Refuses what has the right types and can't be: no cluster, cutoffs that are no numbers."""
    for scores in (results.scores, *results.baselines.values()):
        if not scores.clustering.sizes:
            raise RecordError("clustering.sizes is empty")
        retrieval = scores.retrieval
        cuts = set(retrieval.kept)
        for found in filter(None, (retrieval.cluster, retrieval.exhaustive)):
            cuts |= {*found.precision_at, *found.recall_at, *found.map_at}
        for cut in cuts:
            if not re.fullmatch("[0-9]{1,9}", cut):
                raise RecordError(f"the cutoff {cut[:40]!r} is no number of neighbours")
    return results


def file_checksums(workdir: epath.Path) -> dict[str, int]:
    """CRC-32 of the files that a run leaves beside `results.json`, of those that are there."""
    with reaching(workdir):
        there = [name for name in _FILES if (workdir / name).exists()]
    return {name: file_checksum(workdir / name) for name in there}


def check_files(workdir: epath.Path, results: Results, names: Sequence[str] = _FILES) -> None:
    """Raises if a file is not the one that the run left; what earlier versions left is not checked.

    Raises:
      UserError: it was changed, is of another run, or is missing.
    """
    for name in names:
        if results.files is None or name not in results.files:
            continue
        with suppress(OSError):
            if file_checksum(workdir / name) == results.files[name]:
                continue
        raise UserError(
            f"{printable(str(workdir / name))} is not the file that the run left there: repeat the "
            "run's command, which makes it again."
        )


def finished(workdir: epath.Path, origin: str | None = None) -> Results | None:
    """The results of a complete run, of this origin if given, whose files are as it left them.

    None where there are none, or no report with them.
    """
    try:
        with reaching(workdir):
            if not (workdir / "report.html").exists():
                return None
        results = read(workdir)
        if results.files is None or (origin is not None and results.origin != origin):
            return None
        check_files(workdir, results)
    except (OSError, UserError):
        return None
    return results


def collapsed(validation: Mapping[str, float | None]) -> bool:
    """Whether a validation's embeddings are nearly a point, or nearly a line.

    Example:
      >>> collapsed({"effective_rank": 40.0, "spread": 0.5}), collapsed({})
      (False, False)
    """
    spread, rank = validation.get("spread"), validation.get("effective_rank")
    return (spread is not None and spread < 0.01) or (rank is not None and rank < 1.05)


def numbers(results: Results) -> dict[tuple[str, ...], float]:
    """Every number of a run that can be averaged over runs, by the keys that lead to it.

    These are the seconds, the training, the scores and the baselines; of them not cluster sizes
    and counts, which have no order that runs share.
    """
    parts = {
        name: getattr(results, name) for name in ("seconds", "training", "scores", "baselines")
    }
    return dict(_leaves(plain(parts)))


def average(runs: Sequence[Results]) -> dict[tuple[str, ...], Mean]:
    """Mean and standard deviation of each of the `numbers` over the runs that have it.

    Raises:
      ValueError: there is no run.
    """
    if not runs:
        raise ValueError("there is no run to average.")
    values: dict[tuple[str, ...], list[float]] = {}
    for run in runs:
        for path, value in numbers(run).items():
            values.setdefault(path, []).append(value)
    return {path: mean_of(found) for path, found in values.items()}


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of one value or more, and their spread.

    Example:
      >>> mean_of([1.0, 3.0]).mean, mean_of([1.0]).sd
      (2.0, None)
    """
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Mean(statistics.fmean(values), sd, len(values))


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key not in ("sizes", "counts"):
                yield from _leaves(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _leaves(value, (*path, str(i)))
    elif isinstance(tree, (int, float)) and not isinstance(tree, bool):
        yield path, float(tree)
