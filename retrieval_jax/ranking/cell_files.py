"""A `ClusterIndex` as one file: plain arrays behind a header that names them and their checksum.

The file is b"RJXINDEX", the length of the header (8 bytes, little-endian), the header (JSON: format
version, shape of each array in the order of `ClusterIndex`, CRC-32 of their bytes) and the arrays,
little-endian and in C order. What follows from the others (basis, features) is not in it: it is
made anew, and no file can break a search with bounds that are none. Nothing in it is ever run.
"""

import json
import math
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from retrieval_jax.ranking.cells import ClusterIndex, completed
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.files import replacing

_MAGIC = b"RJXINDEX"
_VERSION = 1
# Of each field that all others follow from: its type and its number of dimensions.
_FIELDS = {
    "centroids": ("<f4", 2),
    "origin": ("<f4", 1),
    "rows": ("<f4", 2),
    "squares": ("<f4", 1),
    "indices": ("<i4", 1),
    "offsets": ("<i4", 1),
}


def save(path: Path, index: ClusterIndex) -> None:
    """Writes an index to a file, whole or not at all; one that is there is replaced.

    Args:
      path: the file.
      index: `ClusterIndex`.

    Raises:
      OSError: the file cannot be written.

    Example:
      >>> import tempfile
      >>> from retrieval_jax.ranking.cells import group
      >>> path = Path(tempfile.mkdtemp()) / "gallery.index"
      >>> save(path, group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]]))
      >>> load(path).offsets.tolist()
      [0, 2, 3]
    """
    arrays = [
        np.ascontiguousarray(array, kind)
        for array, (kind, _) in zip(index[: len(_FIELDS)], _FIELDS.values(), strict=True)
    ]
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(array.data, checksum)
    header = json.dumps(
        {
            "version": _VERSION,
            "shapes": {name: a.shape for name, a in zip(_FIELDS, arrays, strict=True)},
            "crc32": checksum,
        }
    ).encode()
    with replacing(path) as file:
        file.write(_MAGIC + len(header).to_bytes(8, "little") + header)
        for array in arrays:
            file.write(array.data)


def load(path: Path) -> ClusterIndex:
    """Reads an index that `save` wrote, bit for bit (but for rounding of basis and features).

    Args:
      path: the file.

    Returns:
      `ClusterIndex`.

    Raises:
      UserError: the file cannot be read, is not such a file, is of a newer format, cut short,
        damaged, or holds arrays that are not an index.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _refusal(path, f"can't be read ({error.strerror}); give the path of one") from error
    start = len(_MAGIC) + 8
    if content[: len(_MAGIC)] != _MAGIC:
        raise _refusal(path, "is not one that this program wrote; give the path of one")
    end = start + int.from_bytes(content[len(_MAGIC) : start], "little")
    try:
        header = json.loads(content[start:end])
        version, shapes, checksum = header["version"], header["shapes"], header["crc32"]
    except (ValueError, KeyError, TypeError) as error:
        raise _refusal(path, "is damaged in its header; make it anew") from error
    if version != _VERSION:
        raise _refusal(
            path,
            f"has format version {version!r}, not {_VERSION}; read it with the version of "
            "retrieval_jax that wrote it, or make it anew",
        )
    if not _sound_shapes(shapes):
        raise _refusal(path, "has arrays of shapes that do not fit one another; make it anew")
    if len(content) != end + sum(4 * math.prod(shapes[name]) for name in _FIELDS):
        raise _refusal(path, "is cut short or has bytes too many; copy it again or make it anew")
    if zlib.crc32(memoryview(content)[end:]) != checksum:
        raise _refusal(path, "is damaged (its checksum is wrong); copy it again or make it anew")
    arrays = {}
    for name, (kind, _) in _FIELDS.items():
        size = math.prod(shapes[name])
        arrays[name] = np.frombuffer(content, kind, size, end).reshape(shapes[name])
        end += 4 * size
    if not _sound_values(arrays):
        raise _refusal(path, "holds values that are no index's; make it anew")
    return completed(**{name: jnp.asarray(array) for name, array in arrays.items()})


def _refusal(path: Path, fault: str) -> UserError:
    return UserError(f"the index file {str(path)!r} {fault}")


def _sound_shapes(shapes: dict) -> bool:
    if not isinstance(shapes, dict) or shapes.keys() != _FIELDS.keys():
        return False
    for name, (_, dimensions) in _FIELDS.items():
        shape = shapes[name]
        if not isinstance(shape, list) or len(shape) != dimensions:
            return False
        if not all(type(size) is int and size > 0 for size in shape):
            return False
    (cells, d), (n, width) = shapes["centroids"], shapes["rows"]
    return (
        width == d
        and shapes["origin"] == [d]
        and shapes["squares"] == shapes["indices"] == [n]
        and shapes["offsets"] == [cells + 1]
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
