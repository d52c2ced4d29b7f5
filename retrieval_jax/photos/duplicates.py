"""Photos that are the same file, or nearly the same picture; for review, nothing is deleted."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from retrieval_jax.photos.store import Content, Photos

_SURE = 0.2  # of the threshold: closer than that is near whatever the hashes say
_BITS = 12  # of 64 that may differ between the hashes of two versions of a picture
_PROBES = 4  # clusters in which a photo's copies are looked for


class Duplicates(NamedTuple):
    """Groups of photos, those that are exact copies first.

    Attributes:
      groups: paths of each group; the first is the one to keep: most pixels, then the largest file,
        then the oldest.
      exact: bool [groups], whether all files of a group hold the same bytes.
      distances: float32 [groups], the largest 1 - cosine of two photos that brought the group
        together.
    """

    groups: list[list[str]]
    exact: np.ndarray
    distances: np.ndarray


def find_duplicates(content: Content, threshold: float) -> Duplicates:
    """Groups exact and near duplicates.

    Two photos are near if their embeddings are no farther apart than the threshold and their
    perceptual hashes (of one of them mirrored, too) differ in at most 12 of 64 bits, or if the
    distance is below a fifth of the threshold: crops keep the embedding and lose the hash,
    different pictures of one scene the other way round. Copies are looked for in the four clusters
    nearest to each photo's own. Paths that lead to one file, by links or "..", are no copies.

    Args:
      content: of the index.
      threshold: 1 - cosine, at least 0.
    """
    # Not above: a query needs none of it, and would wait for it longer than for its search.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    photos = content.photos
    first, second, distance = _pairs(content, threshold)
    differing = np.minimum(
        np.bitwise_count(photos.hashes[first] ^ photos.hashes[second]),
        np.bitwise_count(mirrored(photos.hashes[first]) ^ photos.hashes[second]),
    )
    same = (photos.digests[first] == photos.digests[second]).all(1)
    near = same | (differing <= _BITS) | (distance <= _SURE * threshold)
    first, second, distance = first[near], second[near], distance[near]
    n = len(photos.paths)
    graph = coo_array((np.ones(len(first), bool), (first, second)), (n, n))
    count, labels = connected_components(graph, directed=False)
    largest = np.zeros(count, np.float32)
    np.maximum.at(largest, labels[first], distance)
    sizes = np.bincount(labels, minlength=count)
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.cumsum(sizes)[:-1])
    files = [(_once(photos, rows), largest[i]) for i, rows in enumerate(members) if len(rows) > 1]
    groups = [(rows, far) for rows, far in files if len(rows) > 1]
    exact = [bool((photos.digests[rows] == photos.digests[rows[0]]).all()) for rows, _ in groups]
    ranked = sorted(range(len(groups)), key=lambda i: (not exact[i], groups[i][1]))
    return Duplicates(
        [[photos.paths[row] for row in _best_first(photos, groups[i][0])] for i in ranked],
        np.array([exact[i] for i in ranked], bool),
        np.array([groups[i][1] for i in ranked], np.float32),
    )


def mirrored(hashes: np.ndarray) -> np.ndarray:
    """The difference hashes of the mirrored pictures, uint64 [n], but for cells that are equal.

    Example:
      >>> hex(mirrored(np.array([0xF000000000000001], np.uint64))[0])
      '0xf0ffffffffffff7f'
    """
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)
    turned = 1 - bits.reshape(-1, 8, 8)[:, :, ::-1]
    return np.packbits(turned.reshape(-1, 64), axis=1).view(">u8").ravel().astype(np.uint64)


def _pairs(content: Content, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows i < j that are no farther apart than the threshold or hold the same bytes."""
    ends = np.searchsorted(content.clusters, np.arange(len(content.centroids)), "right")
    starts = np.searchsorted(content.clusters, np.arange(len(content.centroids)))
    likeness = content.centroids @ content.centroids.T
    np.fill_diagonal(likeness, np.inf)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for cluster in range(len(content.centroids)):
        own = content.rows[starts[cluster] : ends[cluster]].astype(np.float32)
        for other in np.argsort(-likeness[cluster], kind="stable")[:_PROBES]:
            rows = content.rows[starts[other] : ends[other]].astype(np.float32)
            distances = 1 - own @ rows.T
            i, j = np.nonzero(distances <= threshold)
            found.append((i + starts[cluster], j + starts[other], distances[i, j]))
    # Equal bytes lie in one cluster, unless the encoder was of another mind in a later call.
    order = np.lexsort(content.photos.digests.T)
    same = (content.photos.digests[order[1:]] == content.photos.digests[order[:-1]]).all(1)
    found.append((order[:-1][same], order[1:][same], np.zeros(same.sum(), np.float32)))
    first, second, distance = (np.concatenate(parts) for parts in zip(*found, strict=True))
    different = first != second
    return first[different], second[different], np.maximum(distance[different], 0)


def _once(photos: Photos, rows: np.ndarray) -> np.ndarray:
    """One row for each file, by its own path where that is there, not that of a link to it.

    Who deletes all but the photo to keep would else delete that one through its other path.
    """
    real = {row: os.path.realpath(photos.paths[row]) for row in rows}
    own_last = sorted(rows, key=lambda row: photos.paths[row] == real[row])
    return np.sort(list({real[row]: row for row in own_last}.values()))


def _best_first(photos: Photos, rows: np.ndarray) -> np.ndarray:
    names = np.array([photos.paths[row] for row in rows])
    keys = (names, photos.times[rows], -photos.sizes[rows], -photos.pixels[rows])
    return rows[np.lexsort(keys)]
