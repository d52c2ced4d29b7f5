"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from retrieval_jax.errors import UserError


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write(text.encode())


def write_arrays(path: Path, **arrays: ArrayLike) -> None:
    """Writes an .npz of plain arrays, whole or not at all."""
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(a) for name, a in arrays.items()})


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` once it is whole."""
    # Two runs that fill the same cache must not write the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a machine that is lost may leave an empty file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def in_one_sentence(path: Path) -> Iterator[None]:
    """Around work on files in `path`: where that fails, one sentence says so.

    Raises:
      UserError: the disk is full, the directory is gone, or any other `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{str(error.filename or path)!r} can't be read or written "
            f"({error.strerror or error}); mend that, and the same command goes on from here"
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
        value = zlib.crc32(np.ascontiguousarray(leaf).data, value)
    return value
