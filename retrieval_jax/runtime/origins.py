"""What the files of a run were made from, and whether they are still what the run wrote.

The origin of a run is one name for its config and its data. Every file that a later start takes up
holds it, or a checksum that depends on it, and a checksum of its own content. The checksums tell of
mistakes, not of forgery.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any

from etils import epath

from retrieval_jax.runtime.files import read_bytes


def origin_of(*parts: Any) -> str:
    """A name for what JSON can hold: 16 hexadecimal digits of its SHA-256.

    Example:
      >>> origin_of({"seed": 0}, {"images": 2}) == origin_of({"seed": 1}, {"images": 2})
      False
    """
    return hashlib.sha256(_canonical(parts)).hexdigest()[:16]


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content, and under "crc32" its CRC-32."""
    return content | {"crc32": zlib.crc32(_canonical(content))}


def unsealed(content: Any) -> dict[str, Any]:
    """The inverse of `sealed`.

    Raises:
      ValueError: it is no object, has no checksum, or another one.

    Example:
      >>> unsealed(sealed({"a": 1}))
      {'a': 1}
      >>> unsealed({"a": 1})
      Traceback (most recent call last):
      ValueError: it has no checksum
    """
    if not isinstance(content, dict) or "crc32" not in content:
        raise ValueError("it has no checksum")
    rest = {key: value for key, value in content.items() if key != "crc32"}
    if content["crc32"] != zlib.crc32(_canonical(rest)):
        raise ValueError("it was changed after the run wrote it")
    return rest


def file_checksum(path: epath.Path) -> int:
    """CRC-32 of a file.

    Raises:
      OSError: it isn't there or can't be read.
    """
    return zlib.crc32(read_bytes(path))


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
