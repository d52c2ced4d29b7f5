"""Fuzzes every reader of a file, guided by coverage, for as long as it is told.

    python -m tools.fuzz 3600                # an hour, shared by all readers
    python -m tools.fuzz 300 decode results  # five minutes for these two

A reader may raise what it documents; anything else, and an input of 30 seconds or 3 GB, is a
finding, whose input is kept in `.fuzz/READER/`, where the next run also goes on with the inputs
that reached new code. Needs the extra `fuzz` (Python 3.11 to 3.13, Linux).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HOME = Path(".fuzz")
MODULES = ["retrieval_jax", "PIL", "zipfile", "numpy.lib._format_impl", "numpy.lib._npyio_impl"]


class Reader(NamedTuple):
    """What reads a file.

    Attributes:
      read: called with the content of the file and an empty directory.
      refusals: what it may raise.
      seeds: contents to begin with.
    """

    read: Callable[[bytes, Path], Any]
    refusals: tuple[type[Exception], ...]
    seeds: Callable[[Path], list[bytes]]


def readers() -> dict[str, Reader]:
    """Every reader, by name; made when asked, so that what they import can be instrumented."""
    from retrieval_jax.data.decode import DecodeError
    from retrieval_jax.runtime.errors import UserError

    return {
        "decode": Reader(_decode, (DecodeError,), _pictures),
        "labels": Reader(_labels, (UserError,), lambda _: [b"path,label\n1.png,cat\n"]),
        "npz": Reader(_npz, (UserError,), _archives),
        "arrays": Reader(_arrays, (ValueError,), _archives),
        "index": Reader(_index, (UserError,), _indices),
        "model": Reader(_model, (UserError,), _models),
        "results": Reader(_results, (UserError,), _result_files),
        "embeddings": Reader(_embeddings, (UserError,), _embedding_files),
        "photos": Reader(_photos, (UserError,), _photo_indexes),
        "claims": Reader(_claims, (UserError,), _claim_files),
        "tfds": Reader(_tfds, (UserError,), _tfds_parts),
    }


def _decode(content: bytes, _: Path) -> None:
    from retrieval_jax.data.decode import decode, header_size, kind_of

    kind_of(content)
    header_size(content)
    decode(content, 16, crop=len(content) % 2 == 0)


def _labels(content: bytes, directory: Path) -> None:
    from retrieval_jax.data.folder import from_folder

    picture = directory / "pictures" / "1.png"
    if not picture.exists():
        picture.parent.mkdir(exist_ok=True)
        picture.write_bytes(_pictures(directory)[0])
    (directory / "labels.csv").write_bytes(content)
    from_folder(picture.parent, (4, 4), labels=directory / "labels.csv")


def _npz(content: bytes, directory: Path) -> None:
    from retrieval_jax.data.npz import from_npz

    (directory / "a.npz").write_bytes(content)
    from_npz(directory / "a.npz")


def _arrays(content: bytes, directory: Path) -> None:
    from etils import epath

    from retrieval_jax.runtime.files import read_arrays

    (directory / "a.npz").write_bytes(content)
    read_arrays(epath.Path(directory / "a.npz"))


def _index(content: bytes, directory: Path) -> None:
    from retrieval_jax.ranking.cell_files import load

    (directory / "a.npz").write_bytes(content)
    load(directory / "a.npz")


def _model(content: bytes, directory: Path) -> None:
    from etils import epath

    from retrieval_jax.runtime import model_file

    name = model_file.DESCRIPTION if content[:1] == b"{" else model_file.TENSORS
    (directory / name).write_bytes(content)
    read = model_file.read_description if content[:1] == b"{" else model_file.read_tensors
    read(epath.Path(directory))


def _results(content: bytes, directory: Path) -> None:
    """Whatever is read can be shown."""
    from etils import epath

    from retrieval_jax.report import comparison, page
    from retrieval_jax.report.compare import terminal, to_html, to_markdown

    (directory / "results.json").write_bytes(content)
    run = comparison.read_run(directory)
    table = comparison.compare(comparison.group([run]))
    terminal(table, 100), to_html(table, []), to_markdown(table, [])
    page.write_page(epath.Path(directory), run.results, {})


def _embeddings(content: bytes, directory: Path) -> None:
    from retrieval_jax.photos.encoders import ready_embeddings

    ending = {b"PAR1": "parquet", b"\x93NUM": "npy"}.get(content[:4], "npz")
    (directory / "a.txt").write_text("a.png\nb.png\n")
    (directory / f"a.{ending}").write_bytes(content)
    ready_embeddings(str(directory / f"a.{ending}"))


def _photos(content: bytes, directory: Path) -> None:
    """The first byte says which file of a sound index is replaced; what is read can be asked."""
    import numpy as np

    from retrieval_jax.photos import PhotoIndex

    place = directory / "index"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(_sound_index(directory), place)
    names = sorted(path.name for path in place.iterdir() if path.is_file())
    if content:
        name = names[content[0] % len(names)]
        (place / name).write_bytes(content[1:])
        if name != "index.json":  # a checksum is no protection from who makes the file
            manifest = json.loads((place / "index.json").read_text())
            for file in manifest["files"].values():
                if file["name"] == name:
                    file |= {"bytes": len(content) - 1, "crc32": zlib.crc32(content[1:])}
            (place / "index.json").write_text(json.dumps(manifest))
    index = PhotoIndex.open(place)
    index.nearest(np.ones(index.content.rows.shape[1], np.float32), 3)
    for number in range(len(index.content.centroids)):
        index.cluster(number)
    index.duplicates()


def _claims(content: bytes, directory: Path) -> None:
    """A workdir's config.json, with a right checksum where it can have one."""
    from etils import epath

    from retrieval_jax.runtime.origins import sealed
    from retrieval_jax.runtime.workdir import check

    with contextlib.suppress(ValueError, RecursionError):
        tree = json.loads(content)
        content = json.dumps(sealed(tree)).encode() if isinstance(tree, dict) else content
    (directory / "config.json").write_bytes(content)
    check(epath.Path(directory), "config.json", {"training": {"seed": 0, "layers": [1, 2]}})


def _tfds(content: bytes, directory: Path) -> None:
    """The first byte says which file of a sound set is replaced."""
    from retrieval_jax.data.tfds import from_tfds

    version = directory / "shapes" / "1.2.3"
    shutil.rmtree(version, ignore_errors=True)
    shutil.copytree(_sound_set(directory), version)
    names = sorted(path.name for path in version.iterdir())
    if content:
        (version / names[content[0] % len(names)]).write_bytes(content[1:])
    from_tfds("shapes", directory, streaming=len(content) % 2 == 0)


def _pictures(_: Path) -> list[bytes]:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    picture = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for image, kind, options in (
        (picture, "PNG", {}),
        (picture, "PNG", {"exif": exif}),
        (picture.quantize(8), "PNG", {"transparency": 1}),
        (Image.fromarray(pixels[..., 0].astype(np.uint16)), "PNG", {}),
        (picture, "JPEG", {"exif": exif}),
        (picture.convert("CMYK"), "JPEG", {"progressive": True}),
        (picture, "WEBP", {"lossless": True}),
        (picture, "WEBP", {}),
        (picture.quantize(8), "GIF", {}),
        (picture, "BMP", {}),
        (picture, "TIFF", {}),
        (picture, "TIFF", {"compression": "tiff_lzw"}),
        (Image.fromarray(pixels[..., 0].astype(np.float32)), "TIFF", {}),
        (picture, "AVIF", {}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        found.append(file.getvalue())
    return found


def _archives(_: Path) -> list[bytes]:
    import numpy as np

    images, found = np.zeros((3, 2, 2, 3), np.uint8), []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        names = np.array(["a", "b"])
        save(file, images=images, labels=np.array([0, 1, 0]), class_names=names)
        found.append(file.getvalue())
    return found


def _indices(directory: Path) -> list[bytes]:
    from retrieval_jax.ranking.cell_files import save
    from retrieval_jax.ranking.cells import group

    save(directory / "seed.npz", group([[0.0], [9.0], [1.0]], [0, 1, 0], [[0.5], [9.0]]))
    return [(directory / "seed.npz").read_bytes()]


def _models(directory: Path) -> list[bytes]:
    import numpy as np
    from etils import epath

    from retrieval_jax.runtime.model_file import DESCRIPTION, TENSORS, save_model

    description = {
        "encoder": {"name": "convolutional", "dtype": "float32"},
        "normalize": False,
        "image_shape": [8, 8, 1],
        "crops": 0,
    }
    save_model(epath.Path(directory), {"params": {"a": np.ones((2, 3))}}, description)
    return [(directory / name).read_bytes() for name in (DESCRIPTION, TENSORS)]


def _result_files(_: Path) -> list[bytes]:
    """A small one of each format."""
    kept = Path(__file__).parents[1] / "experiments" / "cifar10" / "hint" / "results.json"
    old = json.loads(kept.read_text())
    old["training"]["history"] = old["training"]["history"][:1]
    score = {"value": 0.5, "chance": 0.1}
    clusters = {"nmi": score, "counts": [[1, 2], [3, 4]]}
    found = {"precision_at": {"5": score}, "recall_at": {"5": score}, "map_at": {"5": score}}
    clustering = {"k": 2, "inertia": 1.5, "iterations": 3, "converged": True, "sizes": [4, 6]}
    scores = {
        "clustering": {**clustering, "gallery": clusters, "queries": clusters},
        "retrieval": {"cluster": found, "exhaustive": found, "kept": {"5": score}},
        "features": 8,
    }
    new = {key: old[key] for key in ("name", "seconds", "training", "provenance")}
    new |= {"format": 2, "scores": scores, "baselines": {"raw pixels": scores}}
    new |= {"left_out": ["nothing"], "notes": ["a note"]}
    return [json.dumps(content).encode() for content in (old, new)]


def _embedding_files(directory: Path) -> list[bytes]:
    import numpy as np
    import pyarrow
    from pyarrow import parquet

    rows, paths = np.ones((2, 3), np.float32), ["a.png", "b.png"]
    np.savez(directory / "seed.npz", names=np.array(paths), embeddings=rows)
    np.save(directory / "seed.npy", rows)
    table = pyarrow.table({"path": paths, "embedding": list(rows)})
    parquet.write_table(table, directory / "seed.parquet")
    return [(directory / f"seed.{ending}").read_bytes() for ending in ("npz", "npy", "parquet")]


def _photo_indexes(directory: Path) -> list[bytes]:
    files = sorted(path for path in _sound_index(directory).iterdir() if path.is_file())
    return [bytes([i]) + path.read_bytes() for i, path in enumerate(files)]


def _claim_files(_: Path) -> list[bytes]:
    return [b'{"training": {"seed": 1, "layers": [1, null, "a"]}, "origin": "b"}']


def _sound_index(directory: Path) -> Path:
    """An index of four photos, made once."""
    import numpy as np

    from retrieval_jax.photos import store

    place = directory / "sound_index"
    if not place.exists():
        place.mkdir()
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(4, 3))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        numbers = (np.arange(4) for _ in range(3))
        digests = rng.integers(0, 256, (4, 32), np.uint8)
        hashes = rng.integers(0, 1 << 63, 4).astype(np.uint64)
        sizes, times, pixels = numbers
        photos = store.Photos(
            [f"/{i}.png" for i in range(4)], sizes, times, digests, hashes, pixels
        )
        clusters, centroids = np.array([0, 0, 1, 1]), rows[[0, 2]]
        encoder = {"kind": "embeddings"}
        store.write(place, store.Content(encoder, ["/"], [], photos, rows, clusters, centroids))
    return place


def _sound_set(directory: Path) -> Path:
    """A prepared TFDS set of 20 images, made once."""
    version = directory / "sound" / "shapes" / "1.2.3"
    if version.exists():
        return version
    import numpy as np
    import tensorflow_datasets as tfds
    from PIL import Image

    tempfile.tempdir = str(directory)  # where TFDS leaves folders behind
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 3, 3), np.uint8)
    with tfds.core.registered.skip_registration():

        class Shapes(tfds.core.GeneratorBasedBuilder):
            """Noise of two kinds."""

            VERSION = tfds.core.Version("1.2.3")

            def _info(self) -> Any:
                image, label = tfds.features.Image(shape=(4, 3, 3)), ["circle", "square"]
                features = {"image": image, "label": tfds.features.ClassLabel(names=label)}
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager: Any) -> Any:
                return {"train": self._generate_examples()}

            def _generate_examples(self) -> Iterator[Any]:
                for i, image in enumerate(pixels):
                    file = io.BytesIO()  # an array would take TensorFlow to encode
                    Image.fromarray(image).save(file, "PNG")
                    file.seek(0)
                    yield i, {"image": file, "label": i % 2}

    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder = Shapes(data_dir=directory / "sound")
    builder.download_and_prepare(download_config=config, file_format="array_record")
    return version


def _tfds_parts(directory: Path) -> list[bytes]:
    files = sorted(_sound_set(directory).iterdir())
    return [bytes([i]) + path.read_bytes() for i, path in enumerate(files)]


def _fuzz_one(name: str, seconds: int) -> None:
    """Fuzzes in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=MODULES):
        reader = readers()[name]
        directory = Path(tempfile.mkdtemp(prefix="retrieval_jax-fuzz-"))
        os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
        corpus = HOME / name / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(reader.seeds(directory)):
            (corpus / f"seed{i}").write_bytes(seed)
            with contextlib.suppress(reader.refusals):  # imports what it needs
                reader.read(seed, directory)

    warnings.simplefilter("ignore")

    def once(content: bytes) -> None:
        with contextlib.suppress(reader.refusals):
            reader.read(content, directory)

    limits = [f"-max_total_time={seconds}", "-timeout=30", "-rss_limit_mb=3072", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={HOME / name}/", str(corpus)], once)
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Fuzzes the readers named, or all, one after the other; 1 if there were findings."""
    if arguments[0] == "--one":
        _fuzz_one(arguments[1], int(arguments[2]))
    names = arguments[1:] or list(readers())
    found = 0
    for name in names:
        seconds = max(int(arguments[0]) // len(names), 1)
        (HOME / name).mkdir(parents=True, exist_ok=True)
        log = HOME / name / "log"
        with log.open("wb") as file:
            command = [sys.executable, "-m", "tools.fuzz", "--one", name, str(seconds)]
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
        text = log.read_text(errors="replace")
        runs = re.findall(r"^#(\d+)", text, re.MULTILINE)
        done = max(map(int, runs), default=0)
        print(f"{name}: {done:,} executions in {seconds} s, exit code {code}", flush=True)
        found += code != 0
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["600"]))
