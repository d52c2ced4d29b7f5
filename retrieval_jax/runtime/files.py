"""Files here and on gs://, written whole or not at all."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from etils import epath
from numpy.typing import ArrayLike

from retrieval_jax.runtime.errors import UserError, reason


def write_json(path: epath.Path, content: Any) -> None:
    """Writes JSON whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def write_arrays(path: epath.Path, **arrays: ArrayLike) -> None:
    """Writes an .npz of plain arrays, whole or not at all."""
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(a) for name, a in arrays.items()})


def read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz, none of which may hold Python objects.

    Raises:
      FileNotFoundError: it isn't there.
      OSError: it can't be read.
      ValueError: it is damaged or no .npz.
    """
    content = io.BytesIO(read_bytes(path))
    try:
        with np.load(content, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # NumPy and zipfile have many for what is damaged
        raise ValueError(reason(error)) from error


@contextmanager
def replacing(path: epath.Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` once it is whole."""
    if is_remote(path):  # an object is there once it is whole, and until then the old one
        content = io.BytesIO()
        yield content
        with reaching(path):
            path.write_bytes(content.getvalue())
        return
    # Two runs that fill the same cache must not write the same file; hosts may share process ids.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a machine that is lost may leave an empty file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_bytes(path: epath.Path) -> bytes:
    """A whole file.

    Raises:
      OSError: it isn't there or can't be read, on gs:// too.
    """
    with reaching(path):
        return path.read_bytes()


def copy_files(source: epath.Path, target: epath.Path) -> None:
    """Copies all files under a directory, each whole or not at all, here or on gs://.

    Raises:
      OSError: one can't be read or written.
    """
    with reaching(source):
        is_directory = {path: path.is_dir() for path in source.iterdir()}
    make_directory(target)
    for path, directory in is_directory.items():
        if directory:
            copy_files(path, target / path.name)
        else:
            with replacing(target / path.name) as file:
                file.write(read_bytes(path))


def make_directory(path: epath.Path) -> None:
    """Makes a directory and those above it, where they aren't there; an object store has none.

    Raises:
      OSError: it can't be made.
    """
    if not is_remote(path):  # gcsfs would ask for the bucket, which not everyone may who writes
        path.mkdir(parents=True, exist_ok=True)


def as_path(text: str) -> epath.Path:
    """The path that a command line names.

    Raises:
      UserError: it is neither a directory nor on gs://.
    """
    path = epath.Path(text)
    # etils takes the directories /gs, /s3 and the like for object stores.
    if is_remote(path) != is_remote(text) or (is_remote(text) and not text.startswith("gs://")):
        raise UserError(f"{text!r} can't be used; give a directory or gs://BUCKET/DIRECTORY")
    return path


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is on an object store: it has no rename, no appending and no directories.

    Example:
      >>> is_remote(epath.Path("gs://bucket/run")), is_remote("runs/hint")
      (True, False)
    """
    return "://" in os.fspath(path)


@contextmanager
def reaching(path: epath.Path) -> Iterator[None]:
    """Around work on a path: what reaches gs:// has errors of its own, which become an `OSError`.

    Raises:
      UserError: the packages that reach gs:// aren't installed.
      OSError: anything else.
    """
    if is_remote(path):
        _prepare_for_objects()
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        if isinstance(error, ImportError):
            raise UserError(
                f"{str(path)!r} needs packages that aren't there ({reason(error)}); install "
                "retrieval-jax[gcs]"
            ) from error
        raise OSError(None, reason(error), str(path)) from error


@cache
def _prepare_for_objects() -> None:
    import fsspec

    os.environ.setdefault("EPATH_USE_TF", "false")  # or TensorFlow, where it is there, would do it
    # gcsfs has two classes; this is the one that the tests run.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # A listing is stale at once: TensorStore writes there too, and deleting goes by listings.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    # It logs a traceback of what it raises as well.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets in one process at a time, of all that name the same file, which is made.

    Raises:
      OSError: it can't be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        yield


@contextmanager
def in_one_sentence(path: epath.Path) -> Iterator[None]:
    """Around work on files in `path`: where that fails, one sentence says so.

    Raises:
      UserError: the disk is full, the directory is gone, or any other `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{str(error.filename or path)!r} can't be read or written "
            f"({reason(error)}); mend that, and the same command goes on from here"
        ) from error


def checksum(tree: Any) -> int:
    """CRC-32 of all arrays of a tree, in their order.

    Example:
      >>> checksum([np.zeros(2), np.ones(3)]) == checksum([np.zeros(2), np.zeros(3)])
      False
    """
    import jax  # what reads data does without

    value = 0
    for leaf in jax.tree.leaves(tree):
        # As bytes: not every type, bfloat16 for one, is a buffer.
        value = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, value)
    return value
