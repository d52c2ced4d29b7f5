"""An index as a directory of plain files, each with its size and checksum in `index.json`.

| file | holds |
|---|---|
| `index.json` | format version, encoder, folders, and the names, sizes and CRC-32 of the others |
| `rows-….npy` | unit embeddings, float16 [n, d], those of a cluster together; memory-mapped |
| `photos-….npz` | of each row: size, time, SHA-256, perceptual hash, pixels, cluster; centroids |
| `paths-….json` | of each row: the absolute path of its photo |

A change writes new files, then `index.json`, then removes the old ones: whoever reads meanwhile has
the old index or the new one. Nothing is ever unpickled.
"""

from __future__ import annotations

import fcntl
import json
import re
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import (
    map_array,
    open_lock,
    read_arrays,
    read_json,
    replacing,
    write_arrays,
    write_json,
)

FORMAT = 1
_MANIFEST = "index.json"
_KINDS = ("rows", "photos", "paths")
_ENDINGS = {"rows": ".npy", "photos": ".npz", "paths": ".json"}
_LEFT_OVER = r"\.lock|parts|\..*\.tmp|(rows|photos|paths)-[0-9a-f]{8}\.(npy|npz|json)"


class Photos(NamedTuple):
    """What is known of files besides their embeddings, one entry each.

    Attributes:
      paths: absolute.
      sizes: int64 [n], bytes.
      times: int64 [n], of modification, in nanoseconds.
      digests: uint8 [n, 32], SHA-256.
      hashes: uint64 [n], perceptual.
      pixels: int64 [n], width × height as stored.
    """

    paths: list[str]
    sizes: np.ndarray
    times: np.ndarray
    digests: np.ndarray
    hashes: np.ndarray
    pixels: np.ndarray

    def take(self, rows: np.ndarray) -> Photos:
        """Those in these rows, int [m]."""
        return Photos([self.paths[row] for row in rows], *(array[rows] for array in self[1:]))

    def joined(self, more: Photos) -> Photos:
        """These, then more."""
        arrays = zip(self[1:], more[1:], strict=True)
        return Photos(self.paths + more.paths, *(np.concatenate(both) for both in arrays))


_COLUMNS = {"sizes": "<i8", "times": "<i8", "digests": "|u1", "hashes": "<u8", "pixels": "<i8"}


class Content(NamedTuple):
    """All of an index.

    Attributes:
      encoder: what made the embeddings, as JSON can hold it.
      folders: absolute paths that `refresh` looks into.
      excluded: absolute paths of photos that were removed and shall not come back.
      photos: of each row.
      rows: float16 [n, d], unit vectors.
      clusters: int32 [n], ascending.
      centroids: float32 [k, d], unit vectors.
    """

    encoder: dict[str, Any]
    folders: list[str]
    excluded: list[str]
    photos: Photos
    rows: np.ndarray
    clusters: np.ndarray
    centroids: np.ndarray


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Admits one writing process at a time; the lock ends with the process, however it ends.

    Raises:
      UserError: another process is writing the index.
    """
    with open_lock(directory / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is writing {printable(str(directory))}: wait until it is done"
            ) from None
        yield


def exists(directory: Path) -> bool:
    """Whether the directory holds an index."""
    return (directory / _MANIFEST).is_file()


def check_new(directory: Path) -> None:
    """Checks that a directory is empty, or holds only what an interrupted `index` leaves.

    Files of an earlier state are removed when an index is written, and none may be the user's.

    Raises:
      UserError: it holds anything else.
    """
    names = sorted(path.name for path in directory.iterdir())
    foreign = [name for name in names if not re.fullmatch(_LEFT_OVER, name)]
    if foreign or (names and ".lock" not in names):
        raise UserError(
            f"{printable(str(directory))} holds other files, such as "
            f"{printable((foreign or names)[0])!r}: give a new directory as --output"
        )


def write(directory: Path, content: Content) -> None:
    """Writes an index, whole or not at all; the caller holds the lock.

    Raises:
      OSError: it can't be written; the index that was there still is.
    """
    token = secrets.token_hex(4)
    names = {kind: f"{kind}-{token}{_ENDINGS[kind]}" for kind in _KINDS}
    paths = {kind: epath.Path(directory / name) for kind, name in names.items()}
    photos = content.photos
    try:
        with replacing(paths["rows"]) as file:
            np.save(file, np.asarray(content.rows, "<f2"), allow_pickle=False)
        columns = {name: getattr(photos, name).astype(kind) for name, kind in _COLUMNS.items()}
        write_arrays(
            paths["photos"],
            clusters=content.clusters.astype("<i4"),
            centroids=content.centroids.astype("<f4"),
            **columns,
        )
        with replacing(paths["paths"]) as file:  # names that are no UTF-8 are escaped by ASCII
            file.write(json.dumps(photos.paths).encode())
        manifest = {
            "format": FORMAT,
            "encoder": content.encoder,
            # Escaped, as paths need not be UTF-8.
            "folders": [json.dumps(folder) for folder in content.folders],
            "excluded": [json.dumps(path) for path in content.excluded],
            "photos": len(photos.paths),
            "width": content.rows.shape[1],
            "files": {
                kind: {
                    "name": names[kind],
                    "bytes": path.stat().length,
                    "crc32": _crc32(Path(path)),
                }
                for kind, path in paths.items()
            },
        }
        write_json(epath.Path(directory / _MANIFEST), manifest)
    except BaseException:
        for path in paths.values():
            path.unlink(missing_ok=True)
        raise
    for kind in _KINDS:
        for old in directory.glob(f"{kind}-*{_ENDINGS[kind]}"):
            if old.name != names[kind]:
                old.unlink(missing_ok=True)


def read(directory: Path, *, whole: bool = False) -> Content:
    """Reads an index; its rows stay on disk until they are used.

    Args:
      directory: of the index.
      whole: compare the checksum of the rows too, which reads them all.

    Raises:
      UserError: it isn't there, is of another version, damaged, or not what `write` writes.
    """
    shown = printable(str(directory))

    def refusal(fault: str) -> UserError:
        return UserError(f"the index {shown} {fault}; make it again with retrieval-jax index")

    try:
        manifest = read_json(epath.Path(directory / _MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{shown} holds no index; make one with retrieval-jax index PHOTOS --output {shown}"
        ) from None
    except (OSError, ValueError) as error:
        raise refusal(f"can't be read ({reason(error)})") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise refusal(f"has format {version!r}, and this program reads {FORMAT}")
    try:
        return _content(directory, manifest, whole)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        with suppress(OSError, ValueError):
            if read_json(epath.Path(directory / _MANIFEST)) != manifest:  # replaced meanwhile
                return read(directory, whole=whole)
        raise refusal(f"is damaged ({reason(error)})") from error


def _content(directory: Path, manifest: dict[str, Any], whole: bool) -> Content:
    files = {}
    for kind in _KINDS:
        described = manifest["files"][kind]
        name = described["name"]
        if name != Path(name).name or not name.startswith(f"{kind}-"):
            raise ValueError(f"it names {printable(name)[:80]!r}")
        path = directory / name
        if not path.is_file() or path.stat().st_size != described["bytes"]:
            raise ValueError(f"{name} is missing or cut short")
        if (whole or kind != "rows") and _crc32(path) != described["crc32"]:
            raise ValueError(f"the checksum of {name} is wrong")
        files[kind] = path
    rows = map_array(files["rows"])
    arrays = read_arrays(epath.Path(files["photos"]))
    paths = read_json(epath.Path(files["paths"]))
    folders, excluded = (list(map(json.loads, manifest[key])) for key in ("folders", "excluded"))
    photos = Photos(paths, *(arrays[name] for name in _COLUMNS))
    clusters, centroids = arrays["clusters"], arrays["centroids"]
    n, width = manifest["photos"], manifest["width"]
    sound = (
        isinstance(manifest["encoder"], dict)
        and all(isinstance(name, str) and name for name in [*paths, *folders, *excluded])
        and (rows.shape, rows.dtype) == ((n, width), np.dtype("<f2"))
        and len(paths) == n
        and all(arrays[name].dtype == kind for name, kind in _COLUMNS.items())
        and all(arrays[name].shape == (n, 32)[: arrays[name].ndim] for name in _COLUMNS)
        and photos.digests.ndim == 2
        and (clusters.shape, clusters.dtype) == ((n,), np.dtype("<i4"))
        and (centroids.ndim, centroids.dtype) == (2, np.dtype("<f4"))
        and centroids.shape[1] == width
        and bool(np.isfinite(centroids).all())
        and bool((np.diff(clusters) >= 0).all())
        and (n == 0 or 0 <= clusters[0] <= clusters[-1] < len(centroids))
    )
    if not sound:
        raise ValueError("its arrays don't fit together")
    return Content(manifest["encoder"], folders, excluded, photos, rows, clusters, centroids)


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            value = zlib.crc32(part, value)
    return value
