"""Photo files → pixels, checksums and perceptual hashes; and → embeddings, resumably."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from retrieval_jax.data.decode import (
    DecodeError,
    decode,
    header_size,
    is_image,
    kind_of_file,
    open_regular,
)
from retrieval_jax.data.images import LazyImages
from retrieval_jax.photos.encoders import Encoder, batch_size
from retrieval_jax.photos.store import Photos
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import read_arrays, write_arrays
from retrieval_jax.runtime.progress import Progress

_CHUNK = 512  # photos between two saves
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")


class Embedded(NamedTuple):
    """What became of files.

    Attributes:
      photos: those that could be read.
      rows: float16 [n, d], theirs, of unit length.
      unreadable: a printable line for each of the others.
    """

    photos: Photos
    rows: np.ndarray
    unreadable: list[str]


class Listing(NamedTuple):
    """What lies below a folder.

    Attributes:
      photos: absolute paths, without `..`.
      closed: absolute paths of folders that can't be listed.
    """

    photos: list[Path]
    closed: list[str]

    @property
    def complaints(self) -> list[str]:
        """A printable line for each folder that can't be listed."""
        return [f"{printable(folder)}: the folder can't be listed" for folder in self.closed]


def find_photos(folder: Path) -> Listing:
    """Files below a folder, at any depth, that are images by content or call themselves so.

    Hidden ones are left out; links to folders aren't followed.

    Raises:
      UserError: it is no folder, can't be listed or holds no photo.
    """
    shown = printable(str(folder))
    if not folder.is_dir():
        raise UserError(f"{shown} is not a folder: give the folder that holds the photos")
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise UserError(
            f"folder {shown} can't be listed ({reason(error)}): check its permissions"
        ) from error
    found: list[Path] = []
    closed: list[OSError] = []
    for place, folders, files in os.walk(os.path.abspath(folder), onerror=closed.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in files if not name.startswith(".")):
            named = path.name.lower().endswith(_ENDINGS)
            if path.is_file() and (named or is_image(kind_of_file(path))):
                found.append(path)
    listing = Listing(sorted(found), sorted(str(error.filename) for error in closed))
    if not found:
        raise UserError(
            f"{shown} holds no photos: give a folder with JPEG, PNG, WebP, … files"
            + "".join(f" ({line})" for line in listing.complaints[:1])
        )
    return listing


def perceptual_hash(pixels: np.ndarray) -> int:
    """The difference hash: 64 bits, whether an image of 8 × 9 grey cells grows brighter rightwards.

    Re-encoding, resizing and mild changes of colour move few of the bits. Ten lines stand here for
    the package imagehash, which brings PyWavelets for hashes that aren't used.

    Args:
      pixels: uint8 [h, w, c], c 1, 3 or 4.

    References:
      N. Krawetz, "Kind of Like That", The Hacker Factor Blog, 2013.

    Example:
      >>> ramp = np.tile(np.arange(90, dtype=np.uint8), (80, 1))[..., None]
      >>> perceptual_hash(ramp).bit_count(), perceptual_hash(ramp[:, ::-1]).bit_count()
      (64, 0)
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("L")
    cells = np.asarray(image.resize((9, 8), Image.Resampling.BOX)).astype(int)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def pixels_of(photo: Path | bytes, encoder: Encoder) -> np.ndarray:
    """One photo as the encoder wants it, uint8 [h, w, c].

    Raises:
      UserError: it can't be read.
    """
    height, width, channels = encoder.shape
    try:
        return decode(photo, (height, width), crop=encoder.crop, channels=channels)
    except DecodeError as error:
        name = "" if isinstance(photo, bytes) else f"{printable(str(photo))} "
        raise UserError(f"the photo {name}can't be read: {error}") from error


class _Files:
    """Files that are each read once, by several threads, for all that is asked of them."""

    def __init__(self, paths: list[Path], shape: tuple[int, int, int], crop: bool) -> None:
        n = len(paths)
        self.paths, self.shape, self.crop = paths, shape, crop
        self.reasons: list[str] = [""] * n
        integers = (np.zeros(n, np.int64) for _ in range(3))
        self.sizes, self.times, self.pixels = integers
        self.digests, self.hashes = np.zeros((n, 32), np.uint8), np.zeros(n, np.uint64)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Pixels [b, h, w, c] of these rows, 0 where there is a reason."""
        images = np.zeros((len(rows), *self.shape), np.uint8)
        for image, row in zip(images, rows, strict=True):
            path = self.paths[row]
            try:
                with open_regular(path) as file:
                    status, content = path.stat(), file.read()
                height, width, channels = self.shape
                image[:] = decode(content, (height, width), crop=self.crop, channels=channels)
                self.pixels[row] = np.prod(header_size(content))
            except (DecodeError, OSError) as error:
                self.reasons[row] = reason(error)
                continue
            self.sizes[row], self.times[row] = status.st_size, status.st_mtime_ns
            self.digests[row] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
            self.hashes[row] = perceptual_hash(image)
        return images

    def taken(self, rows: np.ndarray) -> Photos:
        """What was found of the files in these rows."""
        arrays = (self.sizes, self.times, self.digests, self.hashes, self.pixels)
        return Photos([str(self.paths[row]) for row in rows], *(a[rows] for a in arrays))


def embedded(paths: list[Path], encoder: Encoder, keep: Path) -> Embedded:
    """Embeds files on all devices, while threads decode the next ones.

    Args:
      paths: absolute.
      encoder: `Encoder`.
      keep: a directory for what is done so far: a second call goes on with it. The caller removes
        it once the result is safe.
    """
    files = _Files(paths, encoder.shape, encoder.crop)
    images = LazyImages(files.read, np.arange(len(paths)), encoder.shape)
    embed = encoder.embedder(batch_size())
    parts: list[tuple[Photos, np.ndarray]] = list(_kept(keep, encoder.description))
    done = {path for photos, _ in parts for path in _unchanged(photos)}
    left = np.array([i for i, path in enumerate(paths) if str(path) not in done], int)
    with warnings.catch_warnings(), Progress("photos", len(paths)) as progress:
        warnings.simplefilter("ignore")  # of odd metadata
        progress.update(len(paths) - len(left))
        for first in range(0, len(left), _CHUNK):
            rows = left[first : first + _CHUNK]
            found = _unit(embed(LazyImages(images.read, rows, encoder.shape)))
            good = np.array([not files.reasons[row] for row in rows], bool)
            part = (files.taken(rows[good]), found[good])
            _keep(keep, encoder.description, part)
            parts.append(part)
            progress.update(len(rows))
    return _joined(parts, paths, files)


def described(paths: list[Path], vectors: Sequence[np.ndarray]) -> Embedded:
    """The same for files whose embeddings, n of float [d], are there already."""
    from retrieval_jax.embedder import Embedder  # slow to import: not for a query

    files = _Files(paths, (224, 224, 3), True)
    read = Embedder.from_function(lambda images: images[:, 0, 0, :1], batch=64)
    read(LazyImages(files.read, np.arange(len(paths)), files.shape))
    good = np.flatnonzero([not why for why in files.reasons])
    rows = np.empty((len(good), len(vectors[0])), np.float16)
    for first in range(0, len(good), _CHUNK):  # of a file that may be larger than the memory
        some = [vectors[row] for row in good[first : first + _CHUNK]]
        rows[first : first + _CHUNK] = _unit(np.stack(some).astype(np.float32))
    return _joined([(files.taken(good), rows)], paths, files)


def _joined(parts: list[tuple[Photos, np.ndarray]], paths: list[Path], files: _Files) -> Embedded:
    """One entry for each wanted path, the newest, in the order of paths."""
    photos = reduce(Photos.joined, (photos for photos, _ in parts))
    rows = np.concatenate([rows for _, rows in parts])
    newest = {path: row for row, path in enumerate(photos.paths)}
    order = np.array([newest[str(path)] for path in paths if str(path) in newest], int)
    unreadable = [
        f"{printable(str(path))}: {why}"
        for path, why in zip(paths, files.reasons, strict=True)
        if why
    ]
    return Embedded(photos.take(order), rows[order], unreadable)


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        raise UserError("the encoder gives embeddings that are infinite or no numbers; repair it")
    return (rows / np.maximum(lengths, 1e-30)).astype(np.float16)


def _unchanged(photos: Photos) -> Iterator[str]:
    for path, size, time in zip(photos.paths, photos.sizes, photos.times, strict=True):
        try:
            status = Path(path).stat()
        except OSError:
            continue
        if (status.st_size, status.st_mtime_ns) == (size, time):
            yield path


def _keep(directory: Path, description: dict[str, Any], part: tuple[Photos, np.ndarray]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    number = len(list(directory.glob("part-*.npz")))
    photos, rows = part
    write_arrays(
        epath.Path(directory / f"part-{number:06}.npz"),
        encoder=np.array(repr(description)),
        names=np.frombuffer("\0".join(photos.paths).encode("utf-8", "surrogateescape"), np.uint8),
        rows=rows,
        **dict(zip(photos._fields[1:], photos[1:], strict=True)),
    )


def _kept(directory: Path, description: dict[str, Any]) -> Iterator[tuple[Photos, np.ndarray]]:
    """What an interrupted call has left of the same encoder; damaged parts are ignored."""
    for path in sorted(directory.glob("part-*.npz")):
        try:
            arrays = read_arrays(epath.Path(path))
            names = arrays["names"].tobytes().decode("utf-8", "surrogateescape")
            photos = Photos(
                names.split("\0") if names else [], *(arrays[name] for name in Photos._fields[1:])
            )
            if arrays["encoder"].item() == repr(description) and len(photos.paths) == len(
                arrays["rows"]
            ):
                yield photos, arrays["rows"]
        except (OSError, ValueError, LookupError):
            continue
