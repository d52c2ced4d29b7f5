"""An index of photos: made once, asked often, kept up to date."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from retrieval_jax.photos import encoders, store
from retrieval_jax.photos.duplicates import Duplicates, find_duplicates
from retrieval_jax.photos.encoders import Encoder
from retrieval_jax.photos.reading import Embedded, described, embedded, find_photos, pixels_of
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import as_path, in_one_sentence, read_arrays, read_json

_FITTED, _PER_CLUSTER = 50_000, 100  # photos that k-means sees, at most and in a cluster
_BLOCK = 16_384  # rows that are compared at a time


class Found(NamedTuple):
    """The photos nearest to a query, nearest first.

    Attributes:
      paths: absolute.
      distances: float32 [k], 1 - cosine: 0 for the same direction, 2 for the opposite.
      clusters: int32 [k].
    """

    paths: list[str]
    distances: np.ndarray
    clusters: np.ndarray

    def first(self, count: int) -> Found:
        """The nearest of them."""
        return Found(self.paths[:count], self.distances[:count], self.clusters[:count])


class Changes(NamedTuple):
    """What a call did to an index.

    Attributes:
      added: paths that are new.
      changed: paths that were embedded again.
      removed: paths that are no longer in it.
      unreadable: a printable line for each file that can't be read, and isn't in it.
    """

    added: list[str]
    changed: list[str]
    removed: list[str]
    unreadable: list[str]


class PhotoIndex:
    """Photos, their embeddings and clusters in a directory.

    Example:
        index, changes = PhotoIndex.create("photos.index", "Pictures")
        found = index.query("cat.jpg")
        print(found.paths[0], found.distances[0])
    """

    def __init__(self, directory: Path, content: store.Content, encoder: Encoder | None) -> None:
        """For the constructors below."""
        self._directory, self._content, self._encoder = directory, content, encoder

    @classmethod
    def create(
        cls,
        directory: str | Path,
        photos: str | Path,
        *,
        encoder: Encoder | None = None,
        embeddings: dict[str, np.ndarray] | None = None,
        clusters: int | None = None,
    ) -> tuple[PhotoIndex, Changes]:
        """Makes an index of the photos below a folder; a call after an interrupted one resumes it.

        Args:
          directory: of the index, new or empty.
          photos: the folder.
          encoder: by default EfficientNet-lite0 with ImageNet's weights.
          embeddings: in place of an encoder, path, absolute or relative to the folder → float [d].
          clusters: how many; None for √n. (To try several and to choose by a score would take
            minutes of compiling.)

        Returns:
          The index, and what it holds.

        Raises:
          UserError: the directory holds an index or other files or can't be written, the folder
            holds no readable photo, or names of embeddings don't match.
        """
        directory, folder = Path(directory), Path(photos)
        shown = printable(str(directory))
        listing = find_photos(folder)
        paths = listing.photos
        if clusters is not None and not 1 <= clusters <= len(paths):
            raise UserError(
                f"--clusters is {clusters} and there are {len(paths):,} photos: give 1 to that many"
            )
        with in_one_sentence(epath.Path(directory)):
            directory.mkdir(parents=True, exist_ok=True)
            if not store.exists(directory):
                store.check_new(directory)
            with store.only_writer(directory):
                if store.exists(directory):
                    raise UserError(
                        f"{shown} holds an index already: retrieval-jax add or refresh changes it, "
                        "or give another --output"
                    )
                if embeddings is None:
                    encoder = encoder or encoders.pretrained()
                    found = embedded(paths, encoder, directory / "parts")
                    description = encoder.description
                else:
                    found = _from_embeddings(folder, paths, embeddings)
                    del embeddings  # of a file that is mapped, whose pages count as memory
                    description = {"kind": encoders.READY}
                if not found.photos.paths:
                    raise UserError(
                        f"no photo in {printable(str(folder))} can be read "
                        f"({found.unreadable[0]}): repair or replace them"
                    )
                labels, centroids = _clustered(found.rows, clusters)
                content = store.Content(
                    description,
                    [os.path.abspath(folder)],
                    [],
                    *_by_cluster(found.photos, found.rows, labels),
                    centroids,
                )
                store.write(directory, content)
                shutil.rmtree(directory / "parts", ignore_errors=True)
        index = cls(directory, store.read(directory), encoder)
        unreadable = listing.complaints + found.unreadable
        return index, Changes(found.photos.paths, [], [], unreadable)

    @classmethod
    def open(cls, directory: str | Path, encoder: Encoder | None = None) -> PhotoIndex:
        """Opens an index.

        Args:
          directory: of the index.
          encoder: as it was made with; by default the one that the index describes, made when it
            is needed.

        Raises:
          UserError: it is none, damaged, of another version or of another encoder.
        """
        content = store.read(Path(directory))
        if encoder is not None:
            encoders.check_same(content.encoder, encoder)
        return cls(Path(directory), content, encoder)

    @classmethod
    def of_run(cls, workdir: str) -> PhotoIndex:
        """The gallery of a finished run; its paths are as the run's images.json names them.

        Raises:
          UserError: it isn't a finished run, or its files are damaged.
        """
        directory, encoder = as_path(workdir), encoders.of_run(workdir)
        shown = printable(workdir)
        try:
            rows = read_arrays(directory / "embeddings.npz")["gallery"]
            clusters = read_arrays(directory / "clusters.npz")
            names = read_json(directory / "images.json")["gallery"]
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            units = (rows / np.maximum(lengths, 1e-30)).astype(np.float16)
            centroids = np.asarray(clusters["centroids"], np.float32)
            centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-30)
            n = len(names)
            if n != len(rows) or n != len(clusters["gallery"]):
                raise ValueError("its images, embeddings and clusters are of different numbers")
            paths = [printable(str(name)) for name in names]
            unknown = (np.zeros(n, np.int64) for _ in range(3))
            sizes, times, pixels = unknown
            digests, hashes = np.zeros((n, 32), np.uint8), np.zeros(n, np.uint64)
            photos = store.Photos(paths, sizes, times, digests, hashes, pixels)
            arranged = _by_cluster(photos, units, clusters["gallery"].astype(np.int32))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"the run {shown} can't be asked ({reason(error)}); finish it again"
            ) from error
        content = store.Content(encoder.description, [], [], *arranged, centroids)
        return cls(Path(workdir), content, encoder)

    def __len__(self) -> int:
        return len(self._content.photos.paths)

    @property
    def content(self) -> store.Content:
        """All that the index holds."""
        return self._content

    def query(self, image: str | Path, neighbours: int = 12, probes: int | None = 4) -> Found:
        """The photos nearest to another.

        Args:
          image: a file; it need not be in the index.
          neighbours: how many photos, at least 1.
          probes: clusters to search, those with the nearest centroids, and more until they hold
            enough photos; None for all.

        Raises:
          UserError: the image can't be read, or the encoder isn't there.
        """
        return self.nearest(self.embed(image), neighbours, probes)

    def embed(self, image: str | Path | bytes) -> np.ndarray:
        """The embedding of a file, or of its content, float32 [d], of unit length.

        Raises:
          UserError: as `query`.
        """
        content = self._content
        if not isinstance(image, bytes) and content.encoder.get("kind") == encoders.READY:
            path = os.path.abspath(image)
            if path in content.photos.paths:
                return content.rows[content.photos.paths.index(path)].astype(np.float32)
        encoder = self.encoder
        pixels = pixels_of(image if isinstance(image, bytes) else Path(image), encoder)
        vector = self._embedder(pixels[None])[0]
        if vector.shape != content.rows.shape[1:]:
            raise UserError(
                f"the encoder gives {len(vector)} features and the index holds "
                f"{content.rows.shape[1]}: make the index again"
            )
        return vector / np.linalg.norm(vector)

    def nearest(self, vector: np.ndarray, neighbours: int = 12, probes: int | None = 4) -> Found:
        """The photos nearest to an embedding, float32 [d] of unit length; as `query`."""
        # NumPy on rows that stay on disk: to compile a search takes longer than hundreds of them.
        content = self._content
        sizes = np.bincount(content.clusters, minlength=len(content.centroids))
        ends = np.cumsum(sizes)
        order = np.argsort(-(content.centroids @ vector), kind="stable")
        if probes is not None:
            enough = int(np.searchsorted(np.cumsum(sizes[order]), min(neighbours, len(self)))) + 1
            order = order[: max(probes, enough)]
        spans = [(int(ends[c] - sizes[c]), int(ends[c])) for c in np.sort(order)]
        rows, scores = [], []
        for first, last in spans:
            for start in range(first, last, _BLOCK):
                stop = min(start + _BLOCK, last)
                scores.append(content.rows[start:stop].astype(np.float32) @ vector)
                rows.append(np.arange(start, stop))
        row, score = np.concatenate(rows), np.concatenate(scores)
        best = np.lexsort((row, -score))[:neighbours]
        return Found(
            [content.photos.paths[i] for i in row[best]],
            np.maximum(1 - score[best], 0),
            content.clusters[row[best]],
        )

    def clusters_by_size(self) -> list[tuple[int, int]]:
        """Number and photos of each cluster that has any, the largest first."""
        sizes = np.bincount(self._content.clusters, minlength=len(self._content.centroids))
        return [(int(c), int(sizes[c])) for c in np.argsort(-sizes, kind="stable") if sizes[c]]

    def cluster(self, number: int) -> Found:
        """All photos of a cluster, the most typical first; distances are to its centroid.

        Args:
          number: 0 … k - 1.

        Raises:
          UserError: there is no such cluster.
        """
        content = self._content
        if not 0 <= number < len(content.centroids):
            raise UserError(
                f"there is no cluster {number}: the clusters are 0 to {len(content.centroids) - 1}"
            )
        first, last = np.searchsorted(content.clusters, [number, number + 1])
        scores = content.rows[first:last].astype(np.float32) @ content.centroids[number]
        order = np.argsort(-scores, kind="stable")
        return Found(
            [content.photos.paths[first + row] for row in order],
            np.maximum(1 - scores[order], 0),
            content.clusters[first:last],
        )

    def add(self, photos: str | Path) -> Changes:
        """Adds the photos below a folder; those that are in it already stay as they are.

        Raises:
          UserError: another process is writing it, the folder holds no photo, the encoder isn't
            there, or the disk is full, and then the index is as before.
        """
        folder, listing = os.path.abspath(photos), find_photos(Path(photos))
        with self._changing() as content:
            known = set(content.photos.paths)
            new = [path for path in listing.photos if str(path) not in known]
            found = self._embedded(new)
            added = set(map(str, new))
            self._replace(
                content._replace(
                    folders=[*content.folders, *({folder} - set(content.folders))],
                    excluded=[path for path in content.excluded if path not in added],
                ),
                np.arange(len(known)),
                found,
            )
        return Changes(found.photos.paths, [], [], listing.complaints + found.unreadable)

    def remove(self, paths: list[str | Path]) -> Changes:
        """Removes photos, or all below a folder, from the index; the files stay.

        `refresh` won't bring them back, `add` would.

        Raises:
          UserError: one isn't in it, all are, or as `add`.
        """
        with self._changing() as content:
            there = content.photos.paths
            gone: set[str] = set()
            for given in map(str, paths):
                path = os.path.abspath(given)
                below = {name for name in there if name == path or name.startswith(path + "/")}
                if not below:
                    raise UserError(f"{printable(given)} is not in the index: check the path")
                gone |= below
            self._keep_some(content._replace(excluded=[*content.excluded, *sorted(gone)]), gone)
        return Changes([], [], sorted(gone), [])

    def refresh(self) -> Changes:
        """Looks into the folders of the index for photos that are new, changed or gone.

        A file counts as changed if its size or its time of modification differs and its checksum
        does too. What lies in a folder that can't be listed now stays as it is.

        Raises:
          UserError: a folder is gone, or as `add`.
        """
        with self._changing() as content:
            listings = [find_photos(Path(folder)) for folder in content.folders]
            paths = list(dict.fromkeys(path for listing in listings for path in listing.photos))
            closed = tuple(f"{folder}/" for listing in listings for folder in listing.closed)
            excluded, found_names = set(content.excluded), set(map(str, paths))
            photos = content.photos
            row_of = {name: row for row, name in enumerate(photos.paths)}
            gone = {name for name in row_of if name not in found_names}
            gone -= {name for name in gone if name.startswith(closed)}
            new, stale = [], []
            for path in paths:
                row = row_of.get(str(path))
                if row is None:
                    new += [path] if str(path) not in excluded else []
                    continue
                status = path.stat()
                if (status.st_size, status.st_mtime_ns) != (photos.sizes[row], photos.times[row]):
                    stale.append(path)
            found = self._embedded(new + stale)
            now = dict(zip(found.photos.paths, found.photos.digests, strict=True))
            changed = [
                str(p)
                for p in stale
                if str(p) in now and (now[str(p)] != photos.digests[row_of[str(p)]]).any()
            ]
            lost = {str(path) for path in stale if str(path) not in now}
            drop = gone | set(map(str, stale))
            kept = np.array([row for name, row in row_of.items() if name not in drop], int)
            if len(kept) + len(now) == 0:
                raise UserError("no photo of the index is left in its folders; remove the index")
            self._replace(content, kept, found)
        added = [name for name in found.photos.paths if name not in row_of]
        complaints = dict.fromkeys(line for listing in listings for line in listing.complaints)
        unreadable = [*complaints, *found.unreadable]
        return Changes(added, changed, sorted(gone | lost), unreadable)

    def duplicates(self, threshold: float = 0.3) -> Duplicates:
        """Groups of photos that are the same, or nearly; see `find_duplicates`."""
        return find_duplicates(store.read(self._directory, whole=True), threshold)

    @cached_property
    def encoder(self) -> Encoder:
        """What made the embeddings.

        Raises:
          UserError: it is gone, has changed, or must be given.
        """
        return self._encoder or encoders.of_index(self._content.encoder)

    @cached_property
    def _embedder(self) -> Callable[[np.ndarray], np.ndarray]:
        encoder = self.encoder
        return encoder.embedder(1) if encoder.single is None else encoder.single

    @contextmanager
    def _changing(self) -> Iterator[store.Content]:
        """Holds the lock, reads all of the index and puts a failure to write into a sentence."""
        store.read(self._directory)  # no lock is put into what is no index, such as a run
        with in_one_sentence(epath.Path(self._directory)), store.only_writer(self._directory):
            self._content = store.read(self._directory, whole=True)
            yield self._content

    def _embedded(self, paths: list[Path]) -> Embedded:
        if not paths:
            empty = self._content.photos.take(np.zeros(0, int))
            return Embedded(empty, self._content.rows[:0], [])
        found = embedded(paths, self.encoder, self._directory / "parts")
        if found.rows.shape[1] != self._content.rows.shape[1]:
            raise UserError(
                f"the encoder gives {found.rows.shape[1]} features and the index holds "
                f"{self._content.rows.shape[1]}: make the index again"
            )
        return found

    def _keep_some(self, content: store.Content, gone: set[str]) -> None:
        kept = [row for row, name in enumerate(content.photos.paths) if name not in gone]
        if not kept:
            raise UserError("that would leave no photo in the index; remove its directory instead")
        self._replace(content, np.array(kept), self._embedded([]))

    def _replace(self, content: store.Content, kept: np.ndarray, more: Embedded) -> None:
        """Writes the rows that are kept and more; each of those in its nearest cluster."""
        labels = np.concatenate([content.clusters[kept], _assigned(more.rows, content.centroids)])
        photos = content.photos.take(kept).joined(more.photos)
        rows = np.concatenate([content.rows[kept], more.rows])
        photos, rows, labels = _by_cluster(photos, rows, labels)
        store.write(self._directory, content._replace(photos=photos, rows=rows, clusters=labels))
        shutil.rmtree(self._directory / "parts", ignore_errors=True)
        self._content = store.read(self._directory)


def _from_embeddings(
    folder: Path, paths: list[Path], embeddings: dict[str, np.ndarray]
) -> Embedded:
    root, there = Path(os.path.abspath(folder)), set(paths)
    vectors = {root / name: vector for name, vector in embeddings.items()}
    missing = [name for name in embeddings if root / name not in there]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(embeddings):,} names of embeddings, such as "
            f"{printable(missing[0])!r}, are no photos in {printable(str(folder))}: names are "
            "paths relative to it"
        )
    chosen = [path for path in paths if path in vectors]
    return described(chosen, [vectors[path] for path in chosen])


def _clustered(rows: np.ndarray, clusters: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Labels int32 [n] and unit centroids float32 [k, d]."""
    n = len(rows)
    k = min(clusters or max(1, round(n**0.5)), n)  # some files may have been unreadable
    rng = np.random.default_rng(0)
    some = np.sort(rng.choice(n, min(n, _FITTED, _PER_CLUSTER * k), replace=False))
    import jax  # not for a query

    from retrieval_jax.kmeans import kmeans

    found = kmeans(
        jax.random.key(0),
        rows[some].astype(np.float32),
        k,
        restarts=1,
        max_iterations=25,
        spherical=True,
    )
    centroids = np.asarray(found.centroids, np.float32)
    return _assigned(rows, centroids), centroids


def _assigned(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    blocks = range(0, len(rows), _BLOCK)
    scores = (rows[i : i + _BLOCK].astype(np.float32) @ centroids.T for i in blocks)
    labels = [block.argmax(1).astype(np.int32) for block in scores]
    return np.concatenate([np.zeros(0, np.int32), *labels])


def _by_cluster(
    photos: store.Photos, rows: np.ndarray, labels: np.ndarray
) -> tuple[store.Photos, np.ndarray, np.ndarray]:
    """Sorts photos, rows and labels by cluster; the rows in place, for want of memory."""
    order = np.argsort(labels, kind="stable")
    for first in range(0, rows.shape[1], 64):
        rows[:, first : first + 64] = rows[order, first : first + 64]
    return photos.take(order), rows, labels[order]
