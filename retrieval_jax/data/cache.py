"""What was decoded once, kept in the user's cache for the next start."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from etils import epath

from retrieval_jax.runtime.files import write_arrays
from retrieval_jax.runtime.progress import say

_LARGEST = 1 << 30  # bytes; what takes more is decoded at every start, or should stream
_FORMAT = 1  # to be raised when the decoding changes


def cache_home() -> Path:
    """Where this project keeps what it can make or get again."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "retrieval_jax"


def cached(
    name: str, state: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays that `make` makes, from `~/.cache/retrieval_jax/data` where they are there.

    They lie in one .npz under a checksum of the name, so what has changed is replaced. A file that
    is missing or damaged (the zip format has a checksum of every array), holds another state or
    would have to be unpickled is not used. A cache that can't be written is done without, and
    arrays over 1 GiB are not kept.

    Args:
      name: of what is cached, e.g. the data set and where it lies.
      state: changes whenever `make` would make something else.
      make: called where the cache does not have it; arrays of numbers and strings.

    Returns:
      The arrays by name.
    """
    path = cache_home() / "data" / f"{zlib.crc32(name.encode()):08x}.npz"
    state = f"{_FORMAT}: {name}: {state}"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if archive["state"].item() == state:
                return {key: archive[key] for key in archive.files if key != "state"}
    # Any: zipfile and NumPy raise almost anything of a damaged file, and whatever it is, what the
    # file should hold is made anew below.
    except Exception:
        pass
    arrays = make()
    if sum(array.nbytes for array in arrays.values()) <= _LARGEST:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_arrays(epath.Path(path), state=np.array(state), **arrays)
        except OSError as error:
            say(f"  {path} can't be written ({error.strerror}): the next start decodes again")
    return arrays


def stamp(paths: Iterable[Path]) -> str:
    """Name, size and time of change of each file."""
    stats = [(path.name, path.stat()) for path in paths]
    return repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def identity(paths: Iterable[Path]) -> str:
    """Name and size of each file, which a copy has too."""
    return repr([(path.name, path.stat().st_size) for path in paths])
