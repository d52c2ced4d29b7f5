"""What a run leaves in its working directory, and the refusal to mix two runs in one."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from numpy.typing import ArrayLike

from retrieval_jax.errors import UserError

_MISSING = "nothing"


def open_workdir(path: Path) -> Path:
    """Makes the directory where it isn't there, and tries that it can be written.

    Raises:
      UserError: it can't be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"the workdir {str(path)!r} can't be written ({error.strerror}); give another --workdir"
        ) from error
    return path


def claim(workdir: Path, name: str, content: dict) -> None:
    """Writes `content` to `workdir/name`, or checks that it says the same already.

    Raises:
      UserError: it holds something else; the sentence names the first differences.
    """
    path = workdir / name
    content = json.loads(json.dumps(content))  # as it will read back: tuples are lists
    if not path.exists():
        write_json(path, content)
        return
    try:
        held = dict(_leaves(json.loads(path.read_text())))
    except ValueError as error:
        raise UserError(
            f"{str(path)!r} is not readable JSON; give another --workdir or remove this one"
        ) from error
    asked = dict(_leaves(content))
    differences = [
        f"{key} is {held.get(key, _MISSING)!r} there and {asked.get(key, _MISSING)!r} here"
        for key in sorted(held.keys() | asked.keys())
        if held.get(key, _MISSING) != asked.get(key, _MISSING)
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"the workdir {str(workdir)!r} holds another run: {'; '.join(differences[:3])}{more}; "
            "give another --workdir or remove that one"
        )


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
    """A file to write that takes the place of `path` once it is whole.

    Raises:
      UserError: it can't be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file or in a directory: where that fails, one sentence says so.

    Raises:
      UserError: the disk is full, the directory is gone, or any other `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{str(path)!r} can't be written ({error.strerror or error}); mend that, and the same "
            "command goes on from here"
        ) from error


def checksum(tree: Any) -> int:
    """CRC-32 of all arrays of a tree, in their order.

    Example:
      >>> checksum([np.zeros(2), np.ones(3)]) == checksum([np.zeros(2), np.zeros(3)])
      False
    """
    value = 0
    for leaf in jax.tree.leaves(tree):
        value = zlib.crc32(np.ascontiguousarray(leaf).data, value)
    return value


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, tree
