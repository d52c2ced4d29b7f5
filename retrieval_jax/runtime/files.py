"""Files on disk and on gs://, written whole or not at all."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import logging
import os
import secrets
import socket
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from etils import epath
from numpy.typing import ArrayLike

from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.memory import require


def write_json(path: epath.Path, content: Any) -> None:
    """Writes JSON whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def write_arrays(path: epath.Path, **arrays: ArrayLike) -> None:
    """Writes an .npz of plain arrays, whole or not at all."""
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(a) for name, a in arrays.items()})


def separated(rows: Iterable[Sequence[Any]], dialect: type[csv.Dialect] = csv.excel) -> bytes:
    r"""A table as CSV, or in another dialect; names of files in it need not be UTF-8.

    Example:
      >>> separated([("name", "cluster"), ("a,b.png", 1)])
      b'name,cluster\n"a,b.png",1\n'
    """
    text = io.StringIO(newline="")
    csv.writer(text, dialect, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz, none of which may hold Python objects.

    Raises:
      FileNotFoundError: it isn't there.
      OSError: it can't be read.
      ValueError: it is damaged or no .npz.
    """
    return arrays_in(io.BytesIO(read_bytes(path)))


def arrays_in(file: IO[bytes]) -> dict[str, np.ndarray]:
    """All arrays of an open .npz, none of which may hold Python objects.

    Raises:
      ValueError: it is damaged, no .npz, holds something else than arrays, or unpacks to more than
        the memory that there is.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        require(size, "its arrays", "make them smaller")
        file.seek(0)
        with np.load(file, allow_pickle=False) as members:
            arrays = {name: members[name] for name in members.files}
    except Exception as error:  # NumPy and zipfile have many for what is damaged
        raise ValueError(reason(error)) from error
    if other := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"its member {printable(other[0])[:80]!r} is no array")
    return arrays


def map_array(path: Path) -> np.ndarray:
    """The array of an .npy, which stays on disk until it is used.

    Mapped, a header can't claim more than the file holds.

    Raises:
      OSError: it isn't there or can't be read.
      ValueError: it is damaged, no .npy, or holds Python objects.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy parses the header by Python's own tokenizer
        raise ValueError(reason(error)) from error
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an .npz")
    return array


def read_json(path: epath.Path) -> Any:
    """What a JSON file holds.

    Raises:
      FileNotFoundError: it isn't there.
      OSError: it can't be read.
      ValueError: it is no JSON, or nested too deep.
    """
    try:
        return json.loads(read_bytes(path))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


@contextmanager
def replacing(path: epath.Path) -> Iterator[IO[bytes]]:
    """A file to write that replaces `path` once it is complete."""
    if is_remote(path):  # an object appears once it is whole; the old one stays until then
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
            os.fsync(file.fileno())  # or a crash may leave an empty file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_bytes(path: epath.Path) -> bytes:
    """Reads a whole file.

    Raises:
      OSError: it isn't there, can't be read, on gs:// too, or is a pipe, whose end may never come.
    """
    with reaching(path):
        # etils takes a pipe for a file.
        if not is_remote(path) and os.path.exists(path) and not os.path.isfile(path):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return path.read_bytes()


def copy_files(source: epath.Path, target: epath.Path) -> None:
    """Copies all files under a directory, each whole or not at all, on disk or on gs://.

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
    """Creates a directory and its parents if needed; object stores have none.

    Raises:
      OSError: it can't be created.
    """
    if not is_remote(path):  # gcsfs would look up the bucket, which a writer may have no right to
        path.mkdir(parents=True, exist_ok=True)


def as_path(text: str) -> epath.Path:
    """The path that a command line names; `~` is the home directory.

    Raises:
      UserError: it is neither a directory nor on gs://, or empty.

    Example:
      >>> as_path("runs/hint").as_posix()
      'runs/hint'
    """
    remote = text.startswith("gs://") and text != "gs://"
    # etils takes the directories /gs, /s3 and the like for object stores, and fails at others.
    if text and "\0" not in text and (remote or "://" not in text):
        path = epath.Path(text if remote else os.path.expanduser(text))
        if is_remote(path) == remote:
            return path
    raise UserError(f"{printable(text)!r} can't be used; give a directory or gs://BUCKET/DIRECTORY")


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is on an object store, which has no rename, no append and no directories.

    Example:
      >>> is_remote(epath.Path("gs://bucket/run")), is_remote("runs/hint")
      (True, False)
    """
    return "://" in os.fspath(path)


@contextmanager
def reaching(path: epath.Path) -> Iterator[None]:
    """Wraps work on a path: errors of the packages that access gs:// become an `OSError`.

    Raises:
      UserError: the packages that access gs:// aren't installed.
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
                f"{str(path)!r} needs packages that aren't installed ({reason(error)}); install "
                "retrieval-jax[gcs]"
            ) from error
        raise OSError(None, reason(error), str(path)) from error


@cache
def _prepare_for_objects() -> None:
    import fsspec

    os.environ.setdefault("EPATH_USE_TF", "false")  # or TensorFlow would be used if it is installed
    # gcsfs has two classes; this is the one that is tested.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # Listings would be stale: TensorStore writes there too, and deleting relies on them.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    # It also logs a traceback of what it raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    elsewhere = (
        os.environ.get("STORAGE_EMULATOR_HOST"),
        fsspec.config.conf["gcs"].get("endpoint_url"),
    )
    if not any(elsewhere):  # without a network it would ask for a minute
        socket.getaddrinfo("storage.googleapis.com", 443)


def open_lock(path: epath.PathLike) -> IO[str]:
    """Opens a file to lock it, or makes it; what it holds stays.

    Raises:
      OSError: it can't be opened, or is a link, which a hostile directory may have to another file.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    return open(path, "a+", encoding="utf-8", opener=opener)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Admits one process at a time, of all that name the same file, which is created.

    Raises:
      OSError: it can't be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        yield


@contextmanager
def in_one_sentence(path: epath.Path) -> Iterator[None]:
    """Wraps work on files in `path`: an `OSError` becomes one sentence.

    Raises:
      UserError: the disk is full, the directory is gone, or any other `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{str(error.filename or path)!r} can't be read or written "
            f"({reason(error)}); fix that and run the same command again to resume"
        ) from error


def checksum(tree: Any) -> int:
    """CRC-32 of all arrays of a tree, in their order.

    Example:
      >>> checksum([np.zeros(2), np.ones(3)]) == checksum([np.zeros(2), np.zeros(3)])
      False
    """
    import jax  # not needed by those who only read data

    value = 0
    for leaf in jax.tree.leaves(tree):
        # As bytes: not every type, bfloat16 for one, is a buffer.
        value = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, value)
    return value
