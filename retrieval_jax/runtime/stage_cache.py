"""Arrays of a run's stages, kept for the next start."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from etils import epath

from retrieval_jax.runtime import hosts
from retrieval_jax.runtime.errors import reason
from retrieval_jax.runtime.files import checksum, read_arrays, write_arrays
from retrieval_jax.runtime.progress import say

_ABOUT = ("made_from", "seconds", "checksum")  # beside the arrays of the stage


def kept(
    path: epath.Path, made_from: int, make: Callable[[], dict[str, np.ndarray]]
) -> tuple[dict[str, np.ndarray], float]:
    """The arrays of a stage, read from `path` if an earlier start left them there whole.

    A file that is damaged, was changed, or was made from something else, is made again. Only
    process 0 reads and writes; all processes get what it read, or all make it.

    Args:
      path: an .npz.
      made_from: `checksum` of everything that the arrays depend on.
      make: the stage; called by all processes or by none.

    Returns:
      The arrays, and the seconds it took to make them.
    """
    read = _read(path, made_from) if hosts.is_first() else None
    arrays = hosts.arrays_from_first(read)
    if arrays is None:
        start = time.perf_counter()
        arrays = {name: np.asarray(array) for name, array in make().items()}
        seconds = time.perf_counter() - start
        arrays |= {
            "made_from": np.asarray(made_from),
            "seconds": np.asarray(seconds),
            "checksum": np.asarray(checksum(arrays)),
        }
        if hosts.is_first():
            write_arrays(path, **arrays)
    del arrays["made_from"], arrays["checksum"]
    return arrays, float(arrays.pop("seconds"))


def _read(path: epath.Path, made_from: int) -> dict[str, np.ndarray] | None:
    try:
        arrays = read_arrays(path)
        content = {name: array for name, array in arrays.items() if name not in _ABOUT}
        if int(arrays["checksum"]) != checksum(content):
            raise ValueError("it was changed after the run wrote it")
        if int(arrays["made_from"]) == made_from:
            return arrays
        say(f"  {path.name} belongs to another state of the run and is made again")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"  {path.name} can't be read ({reason(error)}) and is made again")
    return None
