"""Decoded data sets, kept in the user's cache for the next run."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from etils import epath

from retrieval_jax.runtime.files import write_arrays
from retrieval_jax.runtime.progress import say

_LARGEST = 1 << 30  # bytes; larger sets are decoded at every start, or should stream
_FORMAT = 2  # raise it when decoding changes


def cache_home() -> Path:
    """Where this project keeps what it can compute or download again."""
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home) / "retrieval_jax"
    try:
        return Path.home() / ".cache" / "retrieval_jax"
    except RuntimeError:  # a user without a home, as in a container
        return Path(tempfile.gettempdir()) / f"retrieval_jax-{os.getuid()}"


def cached(
    name: str, state: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns what `make` returns, from `~/.cache/retrieval_jax/data` if it is there.

    The arrays are one .npz, named by a checksum of `name`, so a new state replaces the old one. A
    file that is missing or damaged (zip has a checksum of every array), holds another state or
    would have to be unpickled is ignored. A cache that can't be written is no error, and arrays
    over 1 GiB are not cached.

    Args:
      name: what is cached, e.g. the data set and its location.
      state: differs whenever `make` would return something else.
      make: called if the cache lacks it; returns arrays of numbers or strings.

    Returns:
      The arrays by name.
    """
    path = cache_home() / "data" / f"{zlib.crc32(name.encode()):08x}.npz"
    state = f"{_FORMAT}: {name}: {state}"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if archive["state"].item() == state:
                return {key: archive[key] for key in archive.files if key != "state"}
    # zipfile and NumPy raise almost anything for a damaged file; in any case the arrays are
    # made again below.
    except Exception:
        pass
    arrays = make()
    if sum(array.nbytes for array in arrays.values()) <= _LARGEST:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_arrays(epath.Path(path), state=np.array(state), **arrays)
        except OSError as error:
            say(f"  {path} can't be written ({error.strerror}): the next run decodes again")
    return arrays


def stamp(paths: Iterable[Path]) -> str:
    """Name, size and modification time of each file."""
    stats = [(path.name, path.stat()) for path in paths]
    return repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def identity(paths: Iterable[Path]) -> str:
    """Name and size of each file, which a copy shares."""
    return repr([(path.name, path.stat().st_size) for path in paths])
