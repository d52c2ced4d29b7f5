"""CIFAR-10 in TFDS' layout, prepared without TensorFlow.

TFDS's own builder extracts, reads and encodes with TensorFlow. This one stores exactly the same:
name, version, features and keys (hence the order) agree, so each reads what the other prepared.
"""

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import locked

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_ARCHIVE = "cifar-10-binary.tar.gz"
_SHAPE = (32, 32, 3)

with tfds.core.registered.skip_registration():  # TFDS has a builder with this name

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        """Builder of CIFAR-10 from its binary archive (Krizhevsky, 2009)."""

        VERSION = tfds.core.Version("3.0.2")
        url = URL

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description="Colour images of 32×32 in 10 classes: 50,000 train, 10,000 test.",
                features=tfds.features.FeaturesDict(
                    {
                        "id": tfds.features.Text(),
                        "image": tfds.features.Image(shape=_SHAPE),
                        "label": tfds.features.ClassLabel(num_classes=10),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
            # TFDS's own extraction needs TensorFlow, and the files aren't needed on disk.
            files = _read_archive(dl_manager.download(self.url))
            self.info.features["label"].names = files["batches.meta.txt"].decode().split()
            train = [files[f"data_batch_{i}.bin"] for i in range(1, 6)]
            return {
                "train": self._generate_examples("train", train),
                "test": self._generate_examples("test", [files["test_batch.bin"]]),
            }

        def _generate_examples(
            self, split: str, files: list[bytes]
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            # A record is one byte of label, then the red, the green and the blue plane.
            records = np.frombuffer(b"".join(files), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
            images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for i, (label, image) in enumerate(zip(records[:, 0].tolist(), images, strict=True)):
                picture = Image.fromarray(np.ascontiguousarray(image))  # TFDS stores it as PNG
                yield i, {"id": f"{split}_{i:05d}", "image": picture, "label": label}


def _read_archive(path: Path) -> dict[str, bytes]:
    """File name without folder → content; nothing is written to disk."""
    files = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if (file := archive.extractfile(member)) is not None:  # None for a folder
                files[Path(member.name).name] = file.read()
    return files


def prepare(directory: Path, url: str = URL) -> None:
    """Downloads the archive (170 MB) into `directory/downloads` and prepares `directory/cifar10`.

    An archive in `directory/downloads/manual`, or one that TFDS downloaded there earlier, is used
    instead. TFDS verifies the checksum either way.

    Args:
      directory: TFDS data directory, which must exist.
      url: of the archive; TFDS knows only the checksum of the default.

    Raises:
      UserError: the archive can't be downloaded or is damaged, or the directory can't be written
        or holds half a data set.
    """
    shown = printable(str(directory))
    target = directory / "cifar10" / str(Cifar10.VERSION)
    try:
        with locked(directory / ".cifar10.lock"):
            if (target / "features.json").exists():
                return  # another process has just done it
            if target.exists():
                raise UserError(
                    f"{printable(str(target))} is not a complete TFDS data set: remove it and retry"
                )
            _prepare(directory, url)
    except (requests.RequestException, DownloadError) as error:
        raise UserError(
            f"CIFAR-10 is not prepared in {shown} and can't be downloaded "
            f"({type(error).__name__}): fetch {url} on a machine with a network and put it into "
            f"{printable(str(directory / 'downloads' / 'manual'))}, or give a directory where TFDS "
            f"has prepared cifar10"
        ) from error
    except NonMatchingChecksumError as error:
        raise UserError(
            f"the CIFAR-10 archive under {shown}/downloads is damaged or not the official one: "
            f"remove it and retry"
        ) from error
    except (OSError, EOFError, tarfile.TarError, ValueError, KeyError) as error:
        raise UserError(
            f"CIFAR-10 can't be prepared in {shown} ({reason(error)}): check that the directory "
            f"can be written and has 400 MB to spare, remove its downloads, and retry"
        ) from error


def _prepare(directory: Path, url: str) -> None:
    if not _has_archive(directory / "downloads"):
        # TFDS itself retries a dead connection for minutes.
        requests.head(url, timeout=10, allow_redirects=True).raise_for_status()
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    builder = Cifar10(data_dir=directory)
    builder.url = url
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            compute_stats=tfds.download.ComputeStatsMode.SKIP, try_download_gcs=False
        ),
        file_format="array_record",
    )


def _has_archive(downloads: Path) -> bool:
    # TFDS writes the .INFO file last, beside the archive: in a folder per set, or flat before that.
    info = "*cifar-10-binary*.INFO"
    kept = [*downloads.glob(info), *downloads.glob(f"cifar10/{info}")]
    return bool(kept) or (downloads / "manual" / _ARCHIVE).is_file()
