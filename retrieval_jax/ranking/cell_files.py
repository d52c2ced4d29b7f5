"""A `ClusterIndex` as one .npz of plain arrays, a format version and a checksum.

What follows from the other arrays (basis, features) is not in it: it is worked out when the file is
read, so that no file can break a search with bounds that are none. Nothing in it is ever run.
"""

import io
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from retrieval_jax.ranking.cells import ClusterIndex, completed
from retrieval_jax.runtime.errors import UserError, reason
from retrieval_jax.runtime.files import checksum, read_bytes, write_arrays

_VERSION = 2  # 1 was no .npz
# Of each field that all others follow from: its type and its dimensions.
_FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "centroids": ("<f4", ("cells", "d")),
    "origin": ("<f4", ("d",)),
    "rows": ("<f4", ("n", "d")),
    "squares": ("<f4", ("n",)),
    "indices": ("<i4", ("n",)),
    "offsets": ("<i4", ("cells + 1",)),
}


def save(path: epath.PathLike, index: ClusterIndex) -> None:
    """Writes an index to a file, whole or not at all; one that is there is replaced.

    Args:
      path: the file, here or on gs://.
      index: `ClusterIndex`.

    Raises:
      OSError: the file cannot be written.

    Example:
      >>> import tempfile
      >>> from retrieval_jax.ranking.cells import group
      >>> path = tempfile.mkdtemp() + "/gallery.npz"
      >>> save(path, group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]]))
      >>> load(path).offsets.tolist()
      [0, 2, 3]
    """
    arrays = {
        name: np.asarray(getattr(index, name)).astype(kind) for name, (kind, _) in _FIELDS.items()
    }
    crc32 = np.uint32(checksum(list(arrays.values())))
    write_arrays(epath.Path(path), version=np.int32(_VERSION), crc32=crc32, **arrays)


def load(path: epath.PathLike) -> ClusterIndex:
    """Reads an index that `save` wrote, bit for bit (but for rounding of basis and features).

    Args:
      path: the file, here or on gs://.

    Returns:
      `ClusterIndex`.

    Raises:
      UserError: the file cannot be read, is not such a file, is of another format version, cut
        short, damaged, or holds arrays that are not an index.
    """

    def refusal(fault: str) -> UserError:
        return UserError(f"the index file {str(path)!r} {fault}")

    try:
        content = read_bytes(epath.Path(path))
    except OSError as error:
        raise refusal(f"can't be read ({reason(error)}); give the path of one") from error
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise refusal("is cut short or no index; copy it again or give the path of one")
    try:
        arrays = _members(content)
    except Exception as error:  # a zip and its .npy headers can be wrong in a dozen ways
        raise refusal("is damaged; copy it again or build the index again") from error
    version, crc32 = arrays.pop("version", None), arrays.pop("crc32", None)
    if version is None or crc32 is None or version.shape or crc32.shape:
        raise refusal("is not one that this program wrote; give the path of one")
    if version != _VERSION:
        raise refusal(
            f"has format version {version}, not {_VERSION}; read it with the version of "
            "retrieval_jax that wrote it, or build the index again"
        )
    if not _sound_shapes(arrays):
        raise refusal("has arrays of types or shapes that do not fit; build the index again")
    if checksum([arrays[name] for name in _FIELDS]) != crc32:
        raise refusal("is damaged (its checksum is wrong); copy it again or build the index again")
    if not _sound_values(arrays):
        raise refusal("holds values that are no index's; build the index again")
    return completed(**{name: jnp.asarray(arrays[name]) for name in _FIELDS})


def _members(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz; nothing is made larger than the file, and nothing is unpickled."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(content):
            raise ValueError("members that are larger than the file")
    with np.load(io.BytesIO(content), allow_pickle=False) as members:
        arrays: dict[str, Any] = {name: members[name] for name in members.files}
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError("a member that is no array")
    return arrays


def _sound_shapes(arrays: dict[str, np.ndarray]) -> bool:
    if arrays.keys() != _FIELDS.keys():
        return False
    if any(arrays[name].ndim != len(axes) for name, (_, axes) in _FIELDS.items()):
        return False
    (cells, d), n = arrays["centroids"].shape, len(arrays["rows"])
    sizes = {"cells": cells, "d": d, "n": n, "cells + 1": cells + 1}
    return min(cells, d, n) > 0 and all(
        arrays[name].dtype == kind and arrays[name].shape == tuple(sizes[axis] for axis in axes)
        for name, (kind, axes) in _FIELDS.items()
    )


def _sound_values(arrays: dict[str, np.ndarray]) -> bool:
    offsets, indices = arrays["offsets"], arrays["indices"]
    n = len(indices)
    if offsets[0] != 0 or offsets[-1] != n or (offsets[1:] < offsets[:-1]).any():
        return False
    # In order of index in every cell, as equal distances are told apart.
    falls = np.flatnonzero(indices[1:] < indices[:-1]) + 1
    return (
        bool((np.sort(indices) == np.arange(n)).all())
        and bool(np.isin(falls, offsets).all())
        and all(bool(np.isfinite(a).all()) for a in arrays.values())
        and bool(np.allclose(arrays["squares"], (arrays["rows"] ** 2).sum(1), rtol=1e-4))
    )
