"""Images from a folder: labelled by the folders they lie in or by a table, or without labels."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retrieval_jax.data.cache import cached
from retrieval_jax.data.decode import MODES, DecodeError, decode, is_image, kind_of_file
from retrieval_jax.data.images import ImageSet, LazyImages, describe_images, digests
from retrieval_jax.data.label_table import read_table
from retrieval_jax.data.remote import fetched
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.memory import require
from retrieval_jax.runtime.progress import Progress

# Whose content is no image is listed by its name; others are counted.
_ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
)
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_THREADS = 8  # bounds the full-size images in memory at once


def from_folder(
    directory: str | Path,
    size: tuple[int, int],
    channels: int = 3,
    max_skipped: int = 100,
    streaming: bool = False,
    class_depth: int = 0,
    labels: str | Path = "",
) -> ImageSet:
    """Reads every file below a folder whose content is an image that `decode` reads.

    The images lie in one folder per class, DIR/class/file, or directly in DIR and have no labels.
    Other layouts have to be told: with a `class_depth` of n the n-th folder on the way to an image
    is its class, however deep it lies below. So 1 labels DIR/class/session/file, and 2 labels
    DIR/train/class/file and DIR/val/class/file, whose parts become one set. Or a table says it all.

    Classes are sorted by name, as are the images within a class. Hidden files and folders are left
    out, links are followed. A file that isn't used is listed under `skipped` with a reason if its
    name ends like an image's (.jpg, .png, …), and otherwise counted in `notes` by its kind.

    Args:
      directory: the folder, here or on gs://.
      size: height and width of the result, to which `decode` squeezes each image.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA).
      max_skipped: the most images that may be skipped.
      streaming: read an image when it is indexed, not all of them now. Each is decoded once now
        all the same, so that what is damaged is found here; what was found is kept in the cache
        (see `cached`) until a file changes.
      class_depth: which folder on the way to an image is its class; 0: there is one, or none.
      labels: a CSV file, UTF-8, whose first line names the columns "path", relative to the
        directory, and "label", or a .parquet with these columns. It alone says which images there
        are; "" for none.

    Returns:
      The image set; names that aren't UTF-8, and characters that don't print, are escaped.

    Raises:
      UserError: the folder doesn't exist or can't be listed, or its layout has to be told; the
        table names what isn't there; a class has no readable image, or more than `max_skipped`
        images are unreadable; the images don't fit into memory; or an argument is out of range.
    """
    if not os.fspath(directory):
        raise UserError("a folder of images needs data.directory; name the folder")
    root = fetched(directory)
    shown = printable(str(root))
    if min(size) < 1:
        raise UserError(f"image size is {size[0]}×{size[1]}: height and width must be positive")
    if channels not in MODES:
        raise UserError(f"channels is {channels}: a folder of images can be read as 1, 3 or 4")
    if not root.is_dir():
        raise UserError(f"{shown} is not a folder: give the folder that holds the images")
    files = _walk(root)
    table = None if labels == "" else read_table(fetched(labels), root)
    listed = _layout(files, root, class_depth) if table is None else _from_table(table, files)
    paths = [root / name for name in listed.files]

    images: np.ndarray | LazyImages
    if streaming:
        read, failed, digest = _check(root, listed.files, size, channels, max_skipped)
        stamps = [(listed.files[i], paths[i].stat().st_size) for i in read]
        lazy = partial(_decode_sound, root, paths, size, channels)
        images = LazyImages(lazy, np.array(read, int), (*size, channels), repr(stamps))
    else:
        need = len(paths) * size[0] * size[1] * channels
        require(need, f"{len(paths):,} images in {shown}", "read them with data.streaming=True")
        images = np.empty((len(paths), *size, channels), np.uint8)
        read, failed = [], []
        for i, pixels in enumerate(_tried(partial(decode, size=size, channels=channels), paths)):
            if isinstance(pixels, str):
                failed.append((listed.files[i], pixels))
                _limit(failed, max_skipped, shown)
            else:
                images[len(read)] = pixels
                read.append(i)
        images, digest = images[: len(read)], None
    _limit(failed, max_skipped, shown)
    found = listed.labels[read]
    for lost in sorted(set(range(len(listed.classes))) - set(found.tolist())):
        raise UserError(
            f"no image of class {listed.classes[lost]!r} in {shown} can be read: repair or remove "
            "it"
        )
    if not read:
        raise UserError(
            f"no image in {shown} can be read ({': '.join(failed[0])}): repair or replace them"
        )
    return ImageSet(
        images=images,
        labels=found if listed.classes else None,
        class_names=listed.classes,
        description=f"folder {shown}, {describe_images(images)}",
        skipped=tuple(f"{printable(name)}: {why}" for name, why in failed),
        names=tuple(printable(listed.files[i]) for i in read),
        notes=listed.notes,
        digests=digest,
    )


class _Files(NamedTuple):
    """What lies below a folder: paths relative to it, sorted."""

    kinds: dict[str, str]  # file → its kind by content
    folders: list[str]  # those directly in it
    hidden: int  # files and folders
    unlisted: list[str]  # a reason for each folder that can't be listed


class _Listed(NamedTuple):
    """The images of a set, to be decoded, and what is left out of it."""

    files: list[str]  # relative to the folder
    labels: np.ndarray  # int32 [n], all 0 without classes
    classes: tuple[str, ...]  # printable
    notes: tuple[str, ...]


def _walk(root: Path) -> _Files:
    """Every file below a folder by what it is."""
    files: list[str] = []
    folders: list[str] = []
    unlisted: list[str] = []
    hidden = 0

    def enter(folder: Path, above: tuple[tuple[int, int], ...]) -> None:
        nonlocal hidden
        inside = "" if folder == root else folder.relative_to(root).as_posix() + "/"
        try:
            status = folder.stat()
            entries = sorted(os.listdir(folder))
        except OSError as error:
            if folder == root:
                raise UserError(
                    f"folder {printable(str(folder))} can't be listed ({reason(error)}): check its "
                    "permissions"
                ) from error
            unlisted.append(
                f"The folder {printable(inside)} can't be listed ({reason(error)}) and is left out."
            )
            return
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link that leads back
            return
        for entry in entries:
            if entry.startswith("."):
                hidden += 1
            elif os.path.isdir(folder / entry):
                if folder == root:
                    folders.append(entry)
                enter(folder / entry, (*above, here))
            else:
                files.append(inside + entry)

    enter(root, ())
    with ThreadPoolExecutor(_THREADS) as pool:
        kinds = pool.map(lambda name: kind_of_file(root / name), files)
        return _Files(dict(zip(files, kinds, strict=True)), folders, hidden, unlisted)


def _layout(found: _Files, root: Path, class_depth: int) -> _Listed:
    """Labels the images by their folders."""
    shown = printable(str(root))
    images = [name for name, kind in found.kinds.items() if is_image(kind)]
    if not images:
        raise UserError(
            f"{shown} holds no images{_beside(found, ())}: it needs DIR/class/file, or DIR/file "
            "without labels"
        )
    depths = Counter(name.count("/") for name in images)
    depth = class_depth
    if not class_depth:
        if len(depths) > 1 or max(depths) > 1:
            raise UserError(_untold(images, depths, shown))
        depth = max(depths)
    # A file that looks like an image by its name goes along, to be listed if it is none.
    used = [
        name
        for name, kind in found.kinds.items()
        if name.count("/") >= depth and (is_image(kind) or name.lower().endswith(_ENDINGS))
    ]
    if max(depths) < depth:
        raise UserError(
            f"data.class_depth is {class_depth} but images in {shown} lie in at most "
            f"{max(depths)} folders, such as {printable(images[-1])}: lower it"
        )
    above = [name for name in images if name.count("/") < depth]
    notes = []
    if above:
        notes.append(
            f"{_count(len(above), 'image')} above the class folders left out, such as "
            f"{printable(above[0])}."
        )

    def class_of(name: str) -> str:
        return name.split("/")[depth - 1]

    if depth:
        used.sort(key=lambda name: (class_of(name), name.split("/")))
    else:
        used.sort()
    classes = sorted({class_of(name) for name in used}) if depth else []
    index = {name: i for i, name in enumerate(classes)}
    labels = np.array([index[class_of(name)] if depth else 0 for name in used], np.int32)
    if depth == 1 and (empty := sorted(set(found.folders) - set(classes))):
        which = ", ".join(printable(name) for name in empty[:10])
        more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
        notes.append(f"Class folders without an image: {which}{more}.")
    return _Listed(
        used, labels, tuple(map(printable, classes)), (*_unused(found, used + above), *notes)
    )


def _untold(images: list[str], depths: Counter[int], shown: str) -> str:
    """Where the images are, and which keys would say what that means."""
    where = []
    for depth in sorted(depths):
        example = next(name for name in images if name.count("/") == depth)
        place = "/".join(["DIR", *["folder"] * depth, "file"])
        where.append(f"{_count(depths[depth], 'image')} as {place} ({printable(example)})")
    offers = []
    if len(depths) > 1 and 0 in depths:
        offers.append("move those directly in DIR into class folders or elsewhere")
    top = {name.split("/")[0] for name in images if "/" in name}
    if max(depths) > 1:
        parts = sorted(name for name in top if name.lower() in _SPLITS)
        merged = f", which puts {' and '.join(parts)} together" if parts else ""
        offers.append(f"data.class_depth=2 labels them by the second folder{merged}")
    offers.append("data.class_depth=1 labels them by the first folder")
    if any(name.lower() in _SPLITS for name in top):
        offers.append("or name one of the parts as data.directory")
    return f"{shown} holds {', '.join(where)}: {'; '.join(offers)}"


def _from_table(table: dict[str, str], found: _Files) -> _Listed:
    """Takes the images that a table lists."""
    files = sorted(table)
    classes = sorted(set(table.values()))
    index = {name: i for i, name in enumerate(classes)}
    labels = np.array([index[table[name]] for name in files], np.int32)
    left = [name for name, kind in found.kinds.items() if name not in table and is_image(kind)]
    notes = [f"{_count(len(left), 'image')} not in the table of labels."] if left else []
    return _Listed(
        files, labels, tuple(map(printable, classes)), (*_unused(found, files + left), *notes)
    )


def _unused(found: _Files, claimed: Sequence[str]) -> list[str]:
    beside = _beside(found, claimed)
    heic = any(kind == "HEIC" and not is_image(kind) for kind in found.kinds.values())
    cure = "; pip install 'retrieval-jax[photos]' reads HEIC" if heic else ""
    left = [f"Files that were not used{beside}{cure}."] if beside else []
    return [*left, *found.unlisted]


def _beside(found: _Files, claimed: Sequence[str]) -> str:
    """The files that are no images by kind, behind a colon; "" if there are none."""
    kinds = dict(found.kinds)
    for name in claimed:
        kinds.pop(name, None)
    counts = Counter(kinds.values())
    if found.hidden:
        counts["hidden"] = found.hidden
    listed = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))
    return f": {listed}" if listed else ""


def _check(
    root: Path, names: list[str], size: tuple[int, int], channels: int, max_skipped: int
) -> tuple[list[int], list[tuple[str, str]], np.ndarray]:
    """Decodes every image once: which are sound, why the others aren't, the digests of the sound.

    What is known of files that haven't changed is taken from the cache.
    """

    def check() -> dict[str, np.ndarray]:
        digest = np.zeros(len(names), np.uint64)
        reasons = np.full(len(names), "", object)
        failed = []
        with Progress("images checked", len(names)) as progress:
            for i, found in enumerate(_tried(look, [root / name for name in names])):
                progress.update()
                if isinstance(found, str):
                    reasons[i] = found
                    failed.append((names[i], found))
                    _limit(failed, max_skipped, shown)
                else:
                    digest[i] = found
        return {"digests": digest, "reasons": reasons.astype(str)}

    def look(path: Path) -> np.uint64:
        return digests(decode(path, size, channels=channels)[None])[0]

    shown = printable(str(root))
    how = f"{size}, {channels} channels"
    known = cached(f"images in {root} at {how}", _stamp(root, names), check)
    sound = np.flatnonzero(known["reasons"] == "")
    failed = [(names[i], str(known["reasons"][i])) for i in np.flatnonzero(known["reasons"] != "")]
    return sound.tolist(), failed, known["digests"][sound]


def _stamp(root: Path, names: list[str]) -> str:
    """Changes when an image does."""
    digest = hashlib.sha256()
    for name in names:
        try:
            status = (root / name).stat()
            state = f"{name!r} {status.st_size} {status.st_mtime_ns}\n"
        except OSError:
            state = f"{name!r} gone\n"
        digest.update(state.encode())
    return digest.hexdigest()


def _tried(look: Callable[[Path], Any], paths: Sequence[Path]) -> Iterator[Any]:
    """What `look` returns for each path, or the reason why it can't be decoded, a string."""

    def attempt(path: Path) -> Any:
        try:
            return look(path)
        except DecodeError as error:
            return str(error)

    pool = ThreadPoolExecutor(_THREADS)  # Pillow's decoders release the GIL
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            yield from pool.map(attempt, paths)
    finally:  # an interrupt doesn't wait for the images that are still queued
        pool.shutdown(cancel_futures=True)


def _limit(skipped: Sequence[tuple[str, str]], most: int, shown: str) -> None:
    if len(skipped) > most:
        name, why = skipped[-1]
        raise UserError(
            f"more than {most} images in {shown} can't be read, the last of them "
            f"{printable(name)}: {why}: repair or remove them, or raise data.max_skipped"
        )


def _decode_sound(
    root: Path, paths: list[Path], size: tuple[int, int], channels: int, rows: np.ndarray
) -> np.ndarray:
    """The images [b, h, w, channels] of files that were sound at the start."""
    images = np.empty((len(rows), *size, channels), np.uint8)
    for image, row in zip(images, rows, strict=True):
        try:
            image[:] = decode(paths[row], size, channels=channels)
        except DecodeError as error:
            raise UserError(
                f"{printable(str(paths[row].relative_to(root)))} in {printable(str(root))} can no "
                f"longer be decoded ({error}): put back the file that the run began with"
            ) from error
    return images


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
