"""What turns photos into embeddings, described so that an index can name it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath

from retrieval_jax.data.lite0_weights import SHA256, SIZE, lite0_params
from retrieval_jax.photos import lite0_numpy, onnx_encoder
from retrieval_jax.photos.onnx_encoder import size_of, three
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import as_path, map_array, read_arrays
from retrieval_jax.runtime.memory import require
from retrieval_jax.runtime.origins import file_checksum

if TYPE_CHECKING:  # JAX and Flax take longer to import than all that a query needs
    from retrieval_jax.embedder import Embedder

PRETRAINED, _RUN, _FUNCTION, READY = "efficientnet_lite0", "run", "function", "embeddings"
_ONNX = "onnx"
_BLOCK = 4096  # embeddings that are checked at a time


class Encoder(NamedTuple):
    """An encoder of photos.

    Attributes:
      description: "kind" and what else tells it from others, as JSON can hold it.
      shape: (h, w, c) of the images that it takes.
      crop: whether photos keep their aspect ratio and are cropped, or are squeezed as in a run.
      embedder: images per call → `Embedder`.
      single: a function of one image uint8 [1, h, w, c] that answers sooner than `embedder(1)`
        can be made; None where there is none.
    """

    description: dict[str, Any]
    shape: tuple[int, int, int]
    crop: bool
    embedder: Callable[[int], Embedder]
    single: Callable[[np.ndarray], np.ndarray] | None = None


def pretrained() -> Encoder:
    """EfficientNet-lite0 with ImageNet's weights.

    Raises:
      UserError: its weights aren't installed.
    """
    params = lite0_params()

    def embedder(batch: int) -> Embedder:
        from retrieval_jax.embedder import Embedder
        from retrieval_jax.models.lite0 import EfficientNetLite0, nested

        variables = nested(params)
        return Embedder.from_state(EfficientNetLite0(), variables, normalize=True, batch=batch)

    return Encoder(
        {"kind": PRETRAINED, "sha256": SHA256},
        (SIZE, SIZE, 3),
        True,
        embedder,
        lambda images: lite0_numpy.features(params, images[0])[None],
    )


def of_run(workdir: str) -> Encoder:
    """The encoder of a finished run.

    Raises:
      UserError: it isn't one.
    """
    from retrieval_jax.runtime.model_file import TENSORS, read_description  # Flax again

    directory = as_path(workdir)
    height, width, channels = read_description(directory)["image_shape"]
    try:
        crc32 = file_checksum(directory / TENSORS)
    except OSError as error:
        raise UserError(
            f"{printable(str(directory / TENSORS))} can't be read ({reason(error)}); name the "
            "workdir of a finished run"
        ) from error

    def embedder(batch: int) -> Embedder:
        from retrieval_jax.embedder import Embedder

        return Embedder.from_run(directory, batch=batch)

    place = str(directory) if "://" in workdir else str(Path(directory).absolute())
    return Encoder(
        {"kind": _RUN, "workdir": place, "crc32": crc32},
        (height, width, channels),
        False,
        embedder,
    )


def of_function(name: str) -> Encoder:
    """A Python function uint8 [b, 224, 224, 3] → [b, d], given as module:name.

    The module is looked for in the current directory too.

    Raises:
      UserError: it can't be imported.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(f"--encoder is {printable(name)!r}: give a function as module:name")
    sys.path.insert(0, "")
    try:
        function = getattr(import_module(module), attribute)
    except Exception as error:  # a module is the user's own code: anything can come of it
        raise UserError(
            f"--encoder {printable(name)} can't be imported: {reason(error)}"
        ) from error
    finally:
        sys.path.remove("")

    def embedder(batch: int) -> Embedder:
        from retrieval_jax.embedder import Embedder

        return Embedder.from_function(function, batch=batch)

    return Encoder({"kind": _FUNCTION, "name": name}, (SIZE, SIZE, 3), True, embedder)


def of_onnx(
    file: str,
    size: tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    deviation: tuple[float, ...] | None = None,
) -> Encoder:
    """The network of an ONNX file, for images (pixel / 255 - mean) / deviation.

    Raises:
      UserError: onnxruntime isn't installed, the file can't be read, or what isn't given here
        isn't said beside it.
    """
    place = Path(file).absolute()
    network = onnx_encoder.Network(place)
    known = onnx_encoder.prepared(network, size, mean, deviation)
    description = {
        "kind": _ONNX,
        "file": str(place),
        "crc32": file_checksum(epath.Path(place)),
        **{name: list(value) for name, value in known._asdict().items()},
    }
    return Encoder(description, (*known.size, 3), True, onnx_encoder.embedder(network, known))


def _described_onnx(description: dict[str, Any]) -> Encoder:
    try:
        file = description["file"]
        size = size_of(description["size"])
        mean, deviation = three(description["mean"]), three(description["deviation"])
        if not isinstance(file, str):
            raise TypeError(file)
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            "the index doesn't say how its ONNX file prepares images; make the index again"
        ) from error
    return of_onnx(file, size, mean, deviation)


def of_index(description: dict[str, Any]) -> Encoder:
    """The encoder that an index describes.

    Raises:
      UserError: it is gone, has changed, or can't be known from a description.
    """
    kind = description.get("kind")
    if kind == PRETRAINED:
        encoder = pretrained()
    elif kind == _RUN and isinstance(description.get("workdir"), str):
        encoder = of_run(description["workdir"])
    elif kind == _ONNX:
        encoder = _described_onnx(description)
    elif kind == _FUNCTION:  # what a file names is never imported
        raise UserError(
            f"the index was made by the function {printable(str(description.get('name')))}: give "
            "it again as --encoder module:name"
        )
    elif kind == READY:
        raise UserError(
            "the index was made from ready embeddings: it can be asked only with photos that are "
            "in it"
        )
    else:
        raise UserError(f"the index was made by an encoder of kind {printable(str(kind))!r}")
    check_same(description, encoder)
    return encoder


def check_same(description: dict[str, Any], encoder: Encoder) -> None:
    """Refuses another encoder than that of an index.

    Raises:
      UserError: it is another.
    """
    if encoder.description != description:
        raise UserError(
            f"the index was made by another encoder ({_words(description)}) than this one "
            f"({_words(encoder.description)}): give that one, or make the index again"
        )


def batch_size() -> int:
    """Images per call: few on a CPU, whose caches they should fit."""
    import jax

    return 32 if jax.default_backend() == "cpu" else 256


def ready_embeddings(file: str) -> dict[str, np.ndarray]:
    """File name → embedding, float [d].

    Args:
      file: an .npz with the arrays "names" [n] and "embeddings" [n, d]; an .npy [n, d], with the
        names in a .txt of the same name, one a line; or a .parquet with the columns "path" and
        "embedding", lists of one length.

    Raises:
      UserError: it can't be read or holds anything else.
    """
    shown = printable(file)
    read = {".npy": _of_npy, ".parquet": _of_parquet}.get(Path(file).suffix, _of_npz)
    try:
        names, rows = read(Path(file))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{shown} can't be read as embeddings ({reason(error)}): give an .npz, an .npy with a "
            ".txt of names beside it, or a .parquet"
        ) from error
    if (
        names is None
        or rows is None
        or names.dtype.kind != "U"
        or names.ndim != 1
        or rows.ndim != 2
        or rows.dtype.kind != "f"
        or not 0 < len(names) == len(rows)
    ):
        raise UserError(f"{shown} must hold names, strings [n], and embeddings, floats [n, d]")
    if len(set(names.tolist())) < len(names):
        raise UserError(f"{shown} names a photo twice: give each one embedding")
    for first in range(0, len(rows), _BLOCK):  # they stay on disk
        part = rows[first : first + _BLOCK]
        if not np.isfinite(part).all() or not (part != 0).any(1).all():
            raise UserError(f"{shown} holds embeddings that are 0, infinite or no numbers")
    return dict(zip(names.tolist(), np.asarray(rows), strict=True))


_Named = tuple[np.ndarray | None, np.ndarray | None]


def _of_npz(file: Path) -> _Named:
    arrays = read_arrays(epath.Path(file))
    return arrays.get("names"), arrays.get("embeddings")


def _of_npy(file: Path) -> _Named:
    rows = map_array(file)
    text = file.with_suffix(".txt").read_bytes().decode("utf-8", "surrogateescape")
    # Names may hold any of the other characters at which `splitlines` splits.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    return np.array(lines, np.str_), rows


def _of_parquet(file: Path) -> _Named:
    from pyarrow import ArrowException, compute, parquet

    try:
        with parquet.ParquetFile(str(file)) as table:
            groups = range(table.metadata.num_row_groups)
            size = sum(table.metadata.row_group(i).total_byte_size for i in groups)
            require(2 * size, f"{printable(str(file))}", "split it")
            columns = table.read(["path", "embedding"])
        vectors = columns["embedding"].combine_chunks()
        widths = compute.unique(compute.list_value_length(vectors)).to_pylist()
        if len(widths) != 1 or widths == [None]:
            raise ValueError("its embeddings aren't of one length")
        rows = vectors.flatten().to_numpy(zero_copy_only=False)
        return np.array(columns["path"].to_pylist()), rows.reshape(len(vectors), -1)
    except (ArrowException, LookupError, NotImplementedError) as error:
        raise ValueError(reason(error)) from error


def _words(description: dict[str, Any]) -> str:
    return printable(", ".join(str(value)[:80] for value in description.values()))
