"""Text for people: scores by their names, numbers in a fixed style, names that fit a column."""

import argparse
import math
import unicodedata
from typing import NamedTuple, NoReturn, TextIO

from retrieval_jax.report.results import ClusterScores, RetrievalScores, Score, Scores
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.progress import silence

GROUPS = (
    "clusters of the gallery",
    "clusters of the queries",
    "retrieval in the whole gallery",
    "retrieval in the query's cluster",
)


class Named(NamedTuple):
    """A score to show.

    Attributes:
      group: one of `GROUPS`.
      name: what the field calls the measure.
      score: higher is better.
      comparable: whether it judges by classes, so that it can say which of two embeddings is the
        better one. Silhouettes and shares kept depend on an embedding's own distances.
    """

    group: str
    name: str
    score: Score
    comparable: bool


def named(scores: Scores) -> list[Named]:
    """The scores that there are, in the order to show them.

    >>> from retrieval_jax.report.results import Clustering, Retrieval
    >>> found = Clustering(2, 1.0, 3, True, (4, 5), ClusterScores(nmi=Score(0.5, 0.01)))
    >>> [(one.group, one.name) for one in named(Scores(found, Retrieval()))]
    [('clusters of the gallery', 'NMI')]
    """
    clustering, retrieval = scores.clustering, scores.retrieval
    gallery, queries, whole, cluster = GROUPS
    found = [
        *_of_clusters(gallery, clustering.gallery),
        *_of_clusters(queries, clustering.queries),
        *_of_retrieval(whole, retrieval.exhaustive),
        *_of_retrieval(cluster, retrieval.cluster),
    ]
    for cut, share in retrieval.kept.items():
        found.append(Named(cluster, f"true neighbours kept, @{cut}", share, False))
    return found


def _of_clusters(group: str, scores: ClusterScores) -> list[Named]:
    measures = {
        "NMI": scores.nmi,
        "RI": scores.ri,
        "ARI": scores.ari,
        "AMI": scores.ami,
        "accuracy by matching": scores.accuracy,
        "silhouette": scores.silhouette,
    }
    return [
        Named(group, name, score, name != "silhouette")
        for name, score in measures.items()
        if score is not None
    ]


def _of_retrieval(group: str, scores: RetrievalScores | None) -> list[Named]:
    if scores is None:
        return []
    measures: dict[str, Score | None] = {
        f"{name}@{cut}": score
        for name, cuts in (
            ("precision", scores.precision_at),
            ("recall", scores.recall_at),
            ("mAP", scores.map_at),
        )
        for cut, score in cuts.items()
    }
    measures |= {
        "MAP@R": scores.map_at_r,
        "mAP": scores.map,
        "kNN accuracy": scores.knn_accuracy,
        "weighted kNN accuracy": scores.weighted_knn_accuracy,
        "linear probe accuracy": scores.linear_accuracy,
    }
    return [Named(group, name, score, True) for name, score in measures.items() if score]


def columns(text: str) -> int:
    """The number of fixed-width columns that a text takes: wide East Asian characters take two.

    >>> columns("cat"), columns("猫")
    (3, 2)
    """
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def shorten(text: str, limit: int) -> str:
    """The printable text in at most `limit` columns (>= 3), an ellipsis in place of its middle.

    Both ends stay, because names that share a prefix differ at their end.

    >>> shorten("runs/quickstart/seed1", 12)
    'runs/q…seed1'
    """
    text = printable(text)
    if columns(text) <= limit:
        return text
    head, tail = text, text[len(text) // 2 :]
    while columns(tail) > (limit - 1) // 2:
        tail = tail[1:]
    while columns(head) > limit - 1 - columns(tail):
        head = head[:-1]
    return f"{head}…{tail}"


def score(value: float) -> str:
    """A score between -1 and 1 with four decimals."""
    return f"{value:.4f}"


def loss(value: float) -> str:
    """A loss with four significant digits.

    >>> loss(0.00131234), loss(1.45), loss(2305.4)
    ('0.001312', '1.450', '2305')
    """
    return f"{value:#.4g}".rstrip(".")


def duration(seconds: float) -> str:
    """A time span in the unit that suits its size.

    >>> duration(0.0312), duration(31.04), duration(2890), duration(9000)
    ('0.03 s', '31.0 s', '48 min 10 s', '2 h 30 min')
    """
    if not math.isfinite(seconds) or seconds < 100:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Parser(argparse.ArgumentParser):
    """Raises a `UserError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raises it."""
        raise UserError(f"{message[:1].upper()}{message[1:]}; see --help.")


def say(text: str, stream: TextIO) -> None:
    """Prints what the stream's encoding has, and a question mark for the rest.

    Lines may hold names, hence escapes that a terminal would obey; they are printed as text.

    Raises:
      UserError: they can't be written, as on a full disk.
    """
    text = "\n".join(map(printable, text.split("\n")))
    encoding = stream.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:  # the reader (`head`) has seen enough; the exit flushes once more
        silence(stream)
    except OSError as error:
        silence(stream)
        raise UserError(
            f"the output can't be written ({reason(error)}): send it elsewhere"
        ) from error
