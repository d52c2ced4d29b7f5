"""What a report answers about a run's embeddings: arrays in, arrays out, in NumPy alone.

Positions are those of `retrieval_jax.pipeline`: of the gallery's rows, of the queries' rows; -1 is
nothing. Without labels whatever judges by classes is left out.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

SHOWN = 10  # neighbours of a list
_OTHERS = 8  # neighbours of a gallery image
_TYPICAL, _ODD = 12, 6  # images of a cluster
_CLUSTERS = 200
_GROUP = 16  # rows of which the nearest is looked at first
_LISTED = 24  # hubs, leaks, doubtful labels


class Space(NamedTuple):
    """The embeddings of a run and what it found in them.

    Attributes:
      gallery: float [n, d].
      queries: float [q, d].
      gallery_clusters: int [n].
      query_clusters: int [q].
      centroids: float [c, d].
      cluster_indices: int [q, k], nearest of the query's cluster; -1 for none.
      cluster_distances: float [q, k].
      exhaustive_indices: int [q, k], nearest of the whole gallery.
      exhaustive_distances: float [q, k].
      gallery_labels: int [n], or None.
      query_labels: int [q], or None.
    """

    gallery: np.ndarray
    queries: np.ndarray
    gallery_clusters: np.ndarray
    query_clusters: np.ndarray
    centroids: np.ndarray
    cluster_indices: np.ndarray
    cluster_distances: np.ndarray
    exhaustive_indices: np.ndarray
    exhaustive_distances: np.ndarray
    gallery_labels: np.ndarray | None = None
    query_labels: np.ndarray | None = None


class Candidates(NamedTuple):
    """Whatever is among the nearest of some number of clusters, for each query, nearest first.

    Attributes:
      starts: int [q + 1], where a query's begin in the arrays below.
      indices: int [m], positions in the gallery.
      distances: float [m].
      ranks: int [m], the place of the neighbour's cluster in the order in which the query searches
        them: with p clusters those below p are found.
      known: int [q], how many of a query's, from the first, are as far as the exhaustive list goes:
        beyond it those of the query's own cluster alone are known.
    """

    starts: np.ndarray
    indices: np.ndarray
    distances: np.ndarray
    ranks: np.ndarray
    known: np.ndarray


class Cluster(NamedTuple):
    """A cluster; images are positions in the gallery, by their distance to the centroid."""

    number: int
    size: int
    queries: int
    typical: list[int]
    odd: list[int]
    near: list[tuple[int, float]]  # clusters whose centroids are nearest, and how far they are
    classes: list[tuple[int, int]] = []  # class, images of it; the commonest first


def asked(queries: int, points: int) -> int:
    """How many of the queries, the first ones, a page answers: a map of more points has more.

    Example:
      >>> asked(3000, 2000), asked(180, 1000), asked(3000, 0)
      (1000, 180, 200)
    """
    return min(queries, max(points // 2, 200))


def cluster_ranks(points: np.ndarray, own: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """int [n, c]: the place of each cluster by distance to each point; its own comes first.

    Example:
      >>> cluster_ranks(np.array([[0.0], [7.0]]), np.array([0, 1]), np.array([[1.0], [8.0], [4.0]]))
      array([[0, 2, 1],
             [2, 0, 1]])
    """
    distances = (centroids * centroids).sum(1) - 2 * points @ centroids.T
    distances[np.arange(len(points)), own] = -np.inf
    order = distances.argsort(1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(centroids))[None], 1)
    return ranks


def entries(space: Space, indices: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int [m, k]: with how many clusters, less one, each query finds its neighbours.

    Args:
      space: of the run.
      indices: int [m, k], positions in the gallery; where they are missing (-1) the result is the
        number of clusters: none finds them.
      rows: int [m], the queries.
    """
    ranks = cluster_ranks(space.queries[rows], space.query_clusters[rows], space.centroids)
    there = np.take_along_axis(ranks, space.gallery_clusters[indices], 1)
    return np.where(indices >= 0, there, len(space.centroids))


def kept_by_clusters(space: Space) -> np.ndarray:
    """float [c]: the share of the ten true neighbours that 1, 2, … searched clusters have."""
    true = space.exhaustive_indices[:, :SHOWN]
    found, exist = entries(space, true, np.arange(len(true))), (true >= 0).sum(1)
    kept = (found[:, :, None] < np.arange(1, len(space.centroids) + 1)).sum(1)
    return (kept / np.maximum(exist, 1)[:, None])[exist > 0].mean(0)


def candidates(space: Space, rows: np.ndarray) -> Candidates:
    """What the queries int [q] may find among their ten nearest, however many clusters they search.

    The lists of both searches are all that is known: an image of another cluster than the query's
    own that is farther than the last of the exhaustive list is left out.
    """
    both = np.concatenate([space.exhaustive_indices[rows], space.cluster_indices[rows]], 1)
    far = np.concatenate([space.exhaustive_distances[rows], space.cluster_distances[rows]], 1)
    ranks = entries(space, both, rows)
    parts, known, k = [], [], space.exhaustive_indices.shape[1]
    for indices, distances, of in zip(both, far, ranks, strict=True):
        found, first = np.unique(indices, return_index=True)
        first = first[found >= 0]
        first = first[np.lexsort((indices[first], distances[first]))]
        before = [np.count_nonzero(of[first[:i]] <= of[at]) for i, at in enumerate(first)]
        first = first[np.array(before, int) < SHOWN]
        parts.append((indices[first], distances[first], of[first]))
        known.append(int((distances[first] <= distances[k - 1]).sum()))
    indices, distances, of = (np.concatenate(column) for column in zip(*parts, strict=True))
    starts = np.cumsum([0, *(len(part[0]) for part in parts)])
    return Candidates(starts, indices, distances, of, np.array(known))


def nearest_others(points: np.ndarray, k: int = _OTHERS) -> tuple[np.ndarray, np.ndarray]:
    """Of each point the nearest others: rows int [n, k] and distances float [n, k], k < n at most.

    Example:
      >>> nearest_others(np.array([[0.0], [1.0], [5.0]]), 1)[0].tolist()
      [[1], [0], [1]]
    """
    points = np.asarray(points, np.float32)
    n, k = len(points), min(k, len(points) - 1)
    if k < 1:
        return np.zeros((n, 0), int), np.zeros((n, 0), np.float32)
    points = points - points.mean(0)
    squares = (points * points).sum(1)
    some = min(k + 8, n - 1)  # rounding may misplace a few
    groups = -(-n // _GROUP)
    squares = np.pad(squares, (0, groups * _GROUP - n), constant_values=np.inf)
    padded = np.pad(points, ((0, groups * _GROUP - n), (0, 0))).T.copy()

    def part(start: int) -> tuple[np.ndarray, np.ndarray]:
        here = np.arange(start, min(start + tile, n))
        rough = squares - 2 * points[here] @ padded
        rough[np.arange(len(here)), here] = np.inf
        # The nearest are in the groups with the least minima, of which there are far fewer.
        grouped = rough.reshape(len(here), groups, _GROUP)
        best = min(some, groups)
        chosen = np.argpartition(grouped.min(2), best - 1, 1)[:, :best]
        rows = (chosen[:, :, None] * _GROUP + np.arange(_GROUP)).reshape(len(here), -1)
        near = np.argpartition(np.take_along_axis(rough, rows, 1), some - 1, 1)[:, :some]
        rows = np.sort(np.take_along_axis(rows, near, 1), 1)
        exact = np.linalg.norm(points[rows] - points[here][:, None], axis=2)
        order = exact.argsort(1, kind="stable")[:, :k]
        return np.take_along_axis(rows, order, 1), np.take_along_axis(exact, order, 1)

    tile = max((1 << 22) // n, 1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows, distances = zip(*pool.map(part, range(0, n, tile)), strict=True)
    return np.concatenate(rows), np.concatenate(distances)


def centroid_distances(points: np.ndarray, own: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """float [n]: how far each point is from the centroid of its cluster."""
    return np.linalg.norm(points - centroids[own], axis=1)


def describe_clusters(space: Space) -> list[Cluster]:
    """The clusters, the largest first, 200 at most."""
    k = len(space.centroids)
    far = centroid_distances(space.gallery, space.gallery_clusters, space.centroids)
    order = np.lexsort((far, space.gallery_clusters))
    sizes = np.bincount(space.gallery_clusters, minlength=k)
    ends = np.cumsum(sizes)
    queries = np.bincount(space.query_clusters, minlength=k)
    near, near_distances = nearest_others(space.centroids, 3)
    found = []
    for c in np.argsort(-sizes, kind="stable")[:_CLUSTERS].tolist():
        members = order[ends[c] - sizes[c] : ends[c]]
        classes: list[tuple[int, int]] = []
        if space.gallery_labels is not None:
            counts = np.bincount(space.gallery_labels[members])
            common = np.argsort(-counts, kind="stable")
            classes = [(int(label), int(counts[label])) for label in common if counts[label]]
        found.append(
            Cluster(
                number=c,
                size=len(members),
                queries=int(queries[c]),
                typical=members[:_TYPICAL].tolist(),
                odd=members[_TYPICAL:][-_ODD:][::-1].tolist(),
                near=list(zip(near[c].tolist(), near_distances[c].tolist(), strict=True)),
                classes=classes,
            )
        )
    return found


def relevance(space: Space, indices: np.ndarray) -> np.ndarray:
    """bool [q, k]: whether the neighbours have the class of the query; needs labels."""
    assert space.gallery_labels is not None and space.query_labels is not None
    same = space.gallery_labels[indices] == space.query_labels[:, None]
    return same & (indices >= 0)


def positives(space: Space) -> np.ndarray:
    """int [q]: gallery images of the query's class; needs labels."""
    assert space.gallery_labels is not None and space.query_labels is not None
    classes = 1 + max(space.gallery_labels.max(initial=0), space.query_labels.max(initial=0))
    return np.bincount(space.gallery_labels, minlength=classes)[space.query_labels]


def goodness(space: Space) -> np.ndarray:
    """float [q], how well a query is answered, to sort by.

    With labels the average precision of the exhaustive list; else the share of the ten true
    neighbours that the query's own cluster has.
    """
    if space.query_labels is None:
        true = space.exhaustive_indices[:, :SHOWN]
        return (entries(space, true, np.arange(len(true))) == 0).mean(1)
    right = relevance(space, space.exhaustive_indices)
    k = right.shape[1]
    precision = right.cumsum(1) / np.arange(1, k + 1)
    return (precision * right).sum(1) / np.clip(positives(space), 1, k)


def precision_recall(space: Space, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean precision and recall after 1 … k neighbours, each float [k].

    Queries whose class the gallery lacks count with zeros, as in the scores.
    """
    hits = relevance(space, indices).cumsum(1)
    depth = np.arange(1, hits.shape[1] + 1)
    return (hits / depth).mean(0), (hits / np.maximum(positives(space), 1)[:, None]).mean(0)


class PerClass(NamedTuple):
    """How the queries of a class fare, in the query's cluster and exhaustively."""

    label: int
    queries: int
    gallery: int
    precision: tuple[float, float]  # of the first five, or fewer where fewer were asked for
    recall: tuple[float, float]  # of all that were asked for


def per_class(space: Space) -> list[PerClass]:
    """One for each class that has a query."""
    assert space.query_labels is not None
    of = positives(space)
    both = [relevance(space, one) for one in (space.cluster_indices, space.exhaustive_indices)]
    rows = []
    for label in np.unique(space.query_labels).tolist():
        mine = space.query_labels == label
        count = int(of[mine][0])
        precision = [float(right[mine, :5].mean()) for right in both]
        recall = [float(right[mine].sum(1).mean() / max(count, 1)) for right in both]
        rows.append(PerClass(label, int(mine.sum()), count, tuple(precision), tuple(recall)))  # type: ignore[arg-type]
    return rows


def hubs(space: Space) -> list[tuple[int, int]]:
    """Gallery images that are among the ten nearest of the most queries, and of how many."""
    found = space.exhaustive_indices[:, :SHOWN]
    counts = np.bincount(found[found >= 0], minlength=len(space.gallery))
    most = np.argsort(-counts, kind="stable")[:_LISTED]
    return [(int(row), int(counts[row])) for row in most if counts[row]]


def leaks(space: Space) -> list[tuple[int, int, float]]:
    """The queries nearest to a gallery image: query, image, distance; candidates for copies."""
    nearest = space.exhaustive_distances[:, 0]
    closest = np.argsort(nearest, kind="stable")[:_LISTED]
    return [
        (int(q), int(space.exhaustive_indices[q, 0]), float(nearest[q]))
        for q in closest
        if space.exhaustive_indices[q, 0] >= 0
    ]


def doubtful(labels: np.ndarray, neighbour_labels: np.ndarray) -> list[tuple[int, int, float]]:
    """Images whose neighbours agree on another class than theirs: row, that class, its share.

    Args:
      labels: int [n].
      neighbour_labels: int [n, k], -1 for none.

    Returns:
      Those of which more than half of the neighbours have one other class, and more than have
      their own; the clearest first.

    Example:
      >>> doubtful(np.array([0, 1]), np.array([[0, 0, 1], [0, 0, 0]]))
      [(1, 0, 1.0)]
    """
    if neighbour_labels.size == 0:
        return []
    agree = (neighbour_labels[:, :, None] == neighbour_labels[:, None, :]).sum(2)
    agree[neighbour_labels < 0] = 0
    first = agree.argmax(1)
    rows = np.arange(len(labels))
    other, votes = neighbour_labels[rows, first], agree[rows, first]
    share = votes / neighbour_labels.shape[1]
    clear = np.flatnonzero((other != labels) & (share > 0.5))
    clear = clear[np.argsort(-share[clear], kind="stable")]
    return [(int(i), int(other[i]), float(share[i])) for i in clear[:_LISTED]]


class Exploration(NamedTuple):
    """All that a page says of a space, and which images it shows.

    Attributes:
      gallery: int, ascending: the gallery images of the page.
      queries: int, ascending: the queries that it answers.
      candidates: of these queries.
      clusters: see `describe_clusters`.
      hubs: see `hubs`.
      leaks: see `leaks`.
      doubtful: see `doubtful`; rows are queries.
    """

    gallery: np.ndarray
    queries: np.ndarray
    candidates: Candidates
    clusters: list[Cluster]
    hubs: list[tuple[int, int]]
    leaks: list[tuple[int, int, float]]
    doubtful: list[tuple[int, int, float]]


def explore(space: Space, mapped: np.ndarray, points: int) -> Exploration:
    """Looks at a space for a page whose map has these rows of the gallery, `points` at most."""
    described, popular, close = describe_clusters(space), hubs(space), leaks(space)
    unsure: list[tuple[int, int, float]] = []
    if space.gallery_labels is not None and space.query_labels is not None:
        near = space.exhaustive_indices[:, :SHOWN]
        unsure = doubtful(space.query_labels, np.where(near >= 0, space.gallery_labels[near], -1))
    first = np.arange(asked(len(space.queries), points))
    queries = np.unique([*first, *(q for q, *_ in close), *(q for q, *_ in unsure)])
    found = candidates(space, queries)
    gallery: list[Any] = [mapped, found.indices]
    gallery += [one.typical + one.odd for one in described]
    gallery += [[row for row, _ in popular], [row for _, row, _ in close]]
    shown = np.unique(np.concatenate([np.asarray(part, int) for part in gallery]))
    return Exploration(shown, queries, found, described, popular, close, unsure)
