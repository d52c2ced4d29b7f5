"""A `ClusterIndex` as one .npz of plain arrays, a format version and a checksum.

What follows from the other arrays (basis, features) is not in it: it is worked out when the file is
read, so that no file can break a search with bounds that are none. Nothing in it is ever run.
"""

import io
import os
import zipfile

import jax.numpy as jnp
import numpy as np
from etils import epath

from retrieval_jax.ranking._cell_arguments import in_halves
from retrieval_jax.ranking.cells import ClusterIndex, completed, own_ids
from retrieval_jax.runtime.errors import UserError, reason
from retrieval_jax.runtime.files import arrays_in, checksum, read_bytes, write_arrays

_VERSION = 2  # 1 was no .npz
# Of each field that all others follow from: whether it holds floats, and its dimensions.
_FIELDS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "centroids": (True, ("cells", "d")),
    "origin": (True, ("d",)),
    "rows": (True, ("n", "d")),
    "squares": (True, ("n",)),
    "indices": (False, ("n",)),
    "offsets": (False, ("cells + 1",)),
}
# Of each gallery row, int64 [n]; absent where the index has none.
_IDS = "ids"


def save(path: str | os.PathLike[str], index: ClusterIndex) -> None:
    """Writes an index to a file, whole or not at all; one that is there is replaced.

    Args:
      path: the file, here or on gs://; text, of pathlib, of etils, or any other path.
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
    arrays = {name: np.asarray(getattr(index, name)) for name in _FIELDS}
    if index.ids is not None:
        arrays[_IDS] = own_ids(index, np.arange(len(index.rows)))
    arrays = {name: array.astype(array.dtype.newbyteorder("<")) for name, array in arrays.items()}
    crc32 = np.uint32(checksum(list(arrays.values())))
    write_arrays(_path(path), version=np.int32(_VERSION), crc32=crc32, **arrays)


def load(path: str | os.PathLike[str]) -> ClusterIndex:
    """Reads an index that `save` wrote, bit for bit (but for rounding of basis and features).

    One of float64 is read as float32 where `jax_enable_x64` is off.

    Args:
      path: the file, as for `save`.

    Returns:
      `ClusterIndex`.

    Raises:
      UserError: the file cannot be read, is not such a file, is of another format version, cut
        short, damaged, or holds arrays that are not an index.
    """

    def refusal(fault: str) -> UserError:
        return UserError(f"the index file {str(path)!r} {fault}")

    try:
        content = read_bytes(_path(path))
    except OSError as error:
        raise refusal(f"can't be read ({reason(error)}); give the path of one") from error
    try:
        whole = zipfile.is_zipfile(io.BytesIO(content))
        arrays = _members(content) if whole else {}
    except Exception as error:  # a zip and its .npy headers can be wrong in a dozen ways
        raise refusal("is damaged; copy it again or build the index again") from error
    if not whole:
        raise refusal("is cut short or no index; copy it again or give the path of one")
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
    if checksum([arrays[name] for name in (*_FIELDS, _IDS) if name in arrays]) != crc32:
        raise refusal("is damaged (its checksum is wrong); copy it again or build the index again")
    if not _sound_values(arrays):
        raise refusal("holds values that are no index's; build the index again")
    index = completed(**{name: jnp.asarray(arrays[name]) for name in _FIELDS})
    return index._replace(ids=in_halves(arrays[_IDS])) if _IDS in arrays else index


def _path(path: str | os.PathLike[str]) -> epath.Path:
    return epath.Path(os.fspath(path))


def _members(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz; nothing is made larger than the file, and nothing is unpickled."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > len(content):
            raise ValueError("members that are larger than the file")
    return arrays_in(io.BytesIO(content))


def _sound_shapes(arrays: dict[str, np.ndarray]) -> bool:
    if arrays.keys() - {_IDS} != _FIELDS.keys():
        return False
    if any(arrays[name].ndim != len(axes) for name, (_, axes) in _FIELDS.items()):
        return False
    (cells, d), n = arrays["centroids"].shape, len(arrays["rows"])
    sizes = {"cells": cells, "d": d, "n": n, "cells + 1": cells + 1}
    kind = arrays["rows"].dtype
    if kind not in ("<f4", "<f8") or min(cells, d, n) < 1:
        return False
    ids = arrays.get(_IDS, np.zeros(n, "<i8"))
    return (ids.dtype == "<i8" and ids.shape == (n,)) and all(
        arrays[name].dtype == (kind if floats else "<i4")
        and arrays[name].shape == tuple(sizes[axis] for axis in axes)
        for name, (floats, axes) in _FIELDS.items()
    )


def _sound_values(arrays: dict[str, np.ndarray]) -> bool:
    offsets, indices = arrays["offsets"], arrays["indices"]
    n = len(indices)
    if offsets[0] != 0 or offsets[-1] != n or (offsets[1:] < offsets[:-1]).any():
        return False
    ids = arrays.get(_IDS, np.arange(n))
    # In order of index in every cell, as equal distances are told apart.
    falls = np.flatnonzero(indices[1:] < indices[:-1]) + 1
    return (
        bool((np.sort(indices) == np.arange(n)).all())
        and bool((ids >= 0).all() and len(np.unique(ids)) == n)
        and bool(np.isin(falls, offsets).all())
        and all(bool(np.isfinite(a).all()) for a in arrays.values())
        and bool(np.allclose(arrays["squares"], (arrays["rows"] ** 2).sum(1), rtol=1e-4))
    )
