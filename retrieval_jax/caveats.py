"""What changes the meaning of a run's scores, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval_jax.data.images import ImageSet, LazyImages, digests
from retrieval_jax.data.split import Split
from retrieval_jax.report.results import Clustering, Scores


def caveats(scores: Scores, gallery: np.ndarray, data: ImageSet, parts: Split) -> tuple[str, ...]:
    """A sentence for each condition of these data under which a score means something else.

    Args:
      scores: of the run.
      gallery: float [n, d], the embeddings that were clustered.
      data: all images.
      parts: which of them are gallery and queries.
    """
    found = empty_clusters(scores.clustering, gallery)
    digest = data.digests if isinstance(data.images, LazyImages) else digests(data.images)
    if digest is not None:
        found += copies(digest[parts.gallery], digest[parts.queries])
    if data.labels is not None:
        found += unasked(data.labels[parts.gallery], data.labels[parts.queries], data.class_names)
    if data.labels is not None and scores.retrieval.exhaustive is not None:
        found += ceilings(
            [int(cut) for cut in scores.retrieval.exhaustive.precision_at],
            data.labels[parts.gallery],
            data.labels[parts.queries],
            data.class_names,
        )
    return tuple(found)


def empty_clusters(clustering: Clustering, gallery: np.ndarray) -> list[str]:
    """Clusters that hold nothing, and why, for embeddings [n, d].

    Example:
      >>> empty_clusters(Clustering(3, 0.0, 1, True, (2, 1, 0)), np.array([[0.0], [0.0], [1.0]]))
      ['1 of the 3 clusters is empty: the gallery has only 2 distinct embeddings.']
    """
    empty = clustering.sizes.count(0)
    if not empty:
        return []
    distinct = len({hash(row.tobytes()) for row in np.ascontiguousarray(gallery)})
    few = (
        f": the gallery has only {distinct:,} distinct embeddings"
        if distinct < clustering.k
        else ""
    )
    verb = "is" if empty == 1 else "are"
    return [f"{empty:,} of the {clustering.k:,} clusters {verb} empty{few}."]


def copies(gallery: np.ndarray, queries: np.ndarray) -> list[str]:
    """Images that are there more than once, by numbers [n] and [q] that equal images share.

    Example:
      >>> copies(np.array([7, 8]), np.array([8, 9]))
      ['1 of the 2 queries has an exact copy in the gallery, which is found first.']
    """
    leaked = int(np.isin(queries, gallery).sum())
    again = len(gallery) - len(np.unique(gallery))
    found = []
    if leaked:
        verb = "has" if leaked == 1 else "have"
        found.append(
            f"{leaked:,} of the {len(queries):,} queries {verb} an exact copy in the gallery, "
            "which is found first."
        )
    if again:
        what = "is an exact copy" if again == 1 else "are exact copies"
        found.append(f"{again:,} of the {len(gallery):,} gallery images {what} of another.")
    return found


def unasked(gallery: np.ndarray, queries: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Classes that have gallery images, by labels int [n] and [q], but no query.

    Example:
      >>> unasked(np.array([0, 0, 1]), np.array([0]), ["cat", "dog"])
      ['1 of the 2 classes has no query, and no part in the scores of retrieval: dog (1 image).']
    """
    counts = np.bincount(gallery, minlength=len(class_names))
    missing = np.setdiff1d(np.flatnonzero(counts), queries)
    if not len(missing):
        return []
    named = [
        f"{class_names[i]} ({counts[i]:,} {'image' if counts[i] == 1 else 'images'})"
        for i in missing[:3]
    ]
    verb = "has" if len(missing) == 1 else "have"
    return [
        f"{len(missing):,} of the {np.count_nonzero(counts):,} classes {verb} no query, and no "
        f"part in the scores of retrieval: {', '.join(named)}{', …' if len(missing) > 3 else ''}."
    ]


def ceilings(
    cuts: Sequence[int], gallery: np.ndarray, queries: np.ndarray, class_names: Sequence[str]
) -> list[str]:
    """The best that precision can be where classes have fewer images than neighbours count.

    Args:
      cuts: neighbours that count.
      gallery: int [n], classes from 0.
      queries: int [q].
      class_names: of the classes.

    Example:
      >>> ceilings([2], np.array([0, 0, 1]), np.array([0, 1]), ["cat", "dog"])[0][:61]
      'precision@2 is 0.7500 at best: 1 of the 2 queries has fewer t'
    """
    sizes = np.bincount(gallery, minlength=len(class_names))
    positives = sizes[queries]
    found = []
    for cut in cuts:
        short = int((positives < cut).sum())
        if not short:
            continue
        best = np.minimum(positives, cut).mean() / cut
        least = queries[positives.argmin()]
        verb, whose = ("has", "its") if short == 1 else ("have", "their")
        found.append(
            f"precision@{cut} is {best:.4f} at best: {short:,} of the {len(queries):,} queries "
            f"{verb} fewer than {cut} gallery images of {whose} class ({class_names[least]} has "
            f"{sizes[least]:,})."
        )
    return found
