"""An index in the forms of other programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from etils import epath

from retrieval_jax.photos.index import PhotoIndex
from retrieval_jax.photos.store import Content
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import in_one_sentence, replacing, separated

_PROJECTOR = """embeddings {
  tensor_name: "photos"
  tensor_path: "tensors.tsv"
  metadata_path: "metadata.tsv"
}
"""


def export(index: PhotoIndex, form: str, directory: str | Path) -> None:
    """Writes the embeddings and paths of an index into a new directory.

    Args:
      index: `PhotoIndex`.
      form: one of `FORMS`.
        "numpy": `embeddings.npy`, float32 [n, d] of unit length, and `embeddings.txt`, a path a
        line. "projector": `tensors.tsv`, `metadata.tsv` and `projector_config.pbtxt`, which
        TensorBoard's projector opens. "parquet": `embeddings.parquet` with the columns path,
        cluster and embedding. "faiss": `photos.faiss`, an `IndexFlatIP`, whose ids are the lines
        of `photos.txt`, from 0. "jax": `embedder.stablehlo`, which `jax.export.deserialize` reads,
        and `embedder.json` with the size of its images.
      directory: new or empty.

    Raises:
      UserError: it can't be written or holds files, a package is missing, or a path has a line
        break and the form can't hold it.
    """
    with _new(Path(directory)) as target:
        if form == _PROGRAM:
            _jax(index, target)
        else:
            _FORMS[form](index.content, target)


def links(index: PhotoIndex, directory: str | Path) -> None:
    """Makes a folder of links for each cluster, the most typical photo first by name.

    Raises:
      UserError: the directory holds files, or can't be written; or the photos aren't files, as in
        the run of a data set.
    """
    with _new(Path(directory)) as target:
        for number in range(len(index.content.centroids)):
            folder = target / f"cluster-{number:05}"
            folder.mkdir()
            for rank, path in enumerate(index.cluster(number).paths):
                if not Path(path).is_absolute():
                    raise UserError(
                        f"{printable(path)!r} is no absolute path, so it can't be linked; "
                        "give --csv or --html"
                    )
                name = f"{rank:06}-{Path(path).name}"
                # Some names fit into 255 bytes only without a number before them.
                if len(name.encode("utf-8", "surrogateescape")) > 255:
                    name = f"{rank:06}{Path(path).suffix}"
                (folder / name).symlink_to(path)


def table(index: PhotoIndex, file: str | Path) -> None:
    """Writes a CSV of path, cluster and distance to the centroid, 1 - cosine.

    Raises:
      UserError: it can't be written.
    """
    rows: list[tuple[Any, ...]] = [("path", "cluster", "distance")]
    for number in range(len(index.content.centroids)):
        found = zip(*index.cluster(number), strict=True)
        rows += [(path, cluster, f"{distance:.6f}") for path, distance, cluster in found]
    try:
        with replacing(epath.Path(file)) as raw:
            raw.write(separated(rows, csv.excel))
    except OSError as error:
        raise UserError(f"{printable(str(file))} can't be written ({reason(error)})") from error


def _numpy(content: Content, target: Path) -> None:
    names = _lines(content.photos.paths)
    with (target / "embeddings.npy").open("wb") as file:
        np.save(file, content.rows.astype(np.float32), allow_pickle=False)
    (target / "embeddings.txt").write_bytes(names)


def _projector(content: Content, target: Path) -> None:
    with (target / "tensors.tsv").open("w") as file:
        np.savetxt(file, content.rows, "%.6g", "\t")
    paths = [printable(path) for path in content.photos.paths]
    rows = [("path", "cluster"), *zip(paths, content.clusters.tolist(), strict=True)]
    (target / "metadata.tsv").write_bytes(separated(rows, csv.excel_tab))
    (target / "projector_config.pbtxt").write_text(_PROJECTOR)


def _parquet(content: Content, target: Path) -> None:
    import pyarrow  # here, as a query needs none of it
    from pyarrow import parquet

    rows = pyarrow.array(content.rows.astype(np.float32).ravel())
    columns = {
        # Names that are no UTF-8 can't be strings of Parquet.
        "path": [
            printable(path) if any("\ud800" <= c < "\ue000" for c in path) else path
            for path in content.photos.paths
        ],
        "cluster": content.clusters,
        "embedding": pyarrow.FixedSizeListArray.from_arrays(rows, content.rows.shape[1]),
    }
    parquet.write_table(pyarrow.table(columns), str(target / "embeddings.parquet"))


def _faiss(content: Content, target: Path) -> None:
    try:
        import faiss
    except ImportError as error:
        raise UserError("the form faiss needs its package: pip install faiss-cpu") from error
    names = _lines(content.photos.paths)
    index = faiss.IndexFlatIP(content.rows.shape[1])
    index.add(content.rows.astype(np.float32))
    faiss.write_index(index, str(target / "photos.faiss"))
    (target / "photos.txt").write_bytes(names)


def _jax(index: PhotoIndex, target: Path) -> None:
    encoder = index.encoder
    built = encoder.embedder(1)
    try:
        program = built.exported(encoder.shape)
    except ValueError as error:
        kind = encoder.description["kind"]
        raise UserError(f"the encoder, of kind {kind}, can't be exported: {error}") from error
    (target / "embedder.stablehlo").write_bytes(program)
    height, width, channels = encoder.shape
    described = {
        "input": ["n", height, width, channels],
        "type": "uint8",
        "resize": "short side, then centre crop" if encoder.crop else "squeeze",
    }
    (target / "embedder.json").write_text(json.dumps(described, indent=1))


_PROGRAM = "jax"
_FORMS: dict[str, Callable[[Content, Path], None]] = {
    "numpy": _numpy,
    "projector": _projector,
    "parquet": _parquet,
    "faiss": _faiss,
}
FORMS = (*_FORMS, _PROGRAM)


@contextmanager
def _new(directory: Path) -> Iterator[Path]:
    """A place to fill, whose content is moved into the directory once it is whole."""
    with in_one_sentence(epath.Path(directory)):
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UserError(
                f"{printable(str(directory))} holds files already: give a new directory"
            )
        with TemporaryDirectory(prefix=".unfinished-", dir=directory) as place:
            yield Path(place)
            for made in sorted(Path(place).iterdir()):
                made.replace(directory / made.name)


def _lines(paths: list[str]) -> bytes:
    if broken := [path for path in paths if "\n" in path or path.endswith("\r")]:
        raise UserError(
            f"the path {printable(broken[0])!r} has a line break; rename it, or give --to parquet"
        )
    return "".join(f"{path}\n" for path in paths).encode("utf-8", "surrogateescape")
