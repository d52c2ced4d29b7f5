"""Data sets of images by the library `datasets`: a directory, or a name on Hugging Face's hub."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_jax.data.decode import MODES, DecodeError, decode
from retrieval_jax.data.images import ImageSet, describe_images
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.memory import require


def from_huggingface(
    name: str, size: tuple[int, int], channels: int = 3, max_skipped: int = 100
) -> ImageSet:
    """Reads all splits of a data set into memory, "train" first.

    The library reads files that are data; of scripts that a data set brings it runs none.

    Args:
      name: a directory of images in a folder for each class, of Parquet files, or that
        `save_to_disk` has made; else a name on the hub, such as "uoft-cs/cifar10", which is
        downloaded.
      size: height and width of the result, to which `decode` squeezes each image.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA).
      max_skipped: the most images that may be skipped because they can't be decoded.

    Returns:
      The image set, of the only column of images and the only one of class labels; without labels
      if there is no such column.

    Raises:
      UserError: `datasets` isn't installed; the set can't be read or has no such columns, too many
        images can't be decoded, or they don't fit into memory.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "data.source=huggingface needs the package datasets: pip install "
            "'retrieval-jax[huggingface]'"
        ) from error
    if channels not in MODES:
        raise UserError(f"channels is {channels}: images can be read as 1, 3 or 4")
    shown = printable(name)
    splits = _splits(datasets, name)
    features = splits[0].features
    images = [key for key, of in features.items() if isinstance(of, datasets.Image)]
    classes = [key for key, of in features.items() if isinstance(of, datasets.ClassLabel)]
    if len(images) != 1 or len(classes) > 1:
        raise UserError(
            f"{shown} has {len(images)} columns of images and {len(classes)} of class labels among "
            f"{', '.join(map(printable, features))}: choose a set with one of images"
        )
    count = sum(len(split) for split in splits)
    require(count * size[0] * size[1] * channels, f"{count:,} images of {shown}", "take fewer")
    found = np.empty((count, *size, channels), np.uint8)
    labels: list[int] = []
    names: list[str] = []
    skipped: list[str] = []
    for place, row in _rows(datasets, splits, images[0]):
        stored = row[images[0]] or {}
        called = printable(Path(stored.get("path") or f"row {place}").name)
        label = row[classes[0]] if classes else 0
        source = stored.get("bytes") or Path(stored.get("path") or "")
        try:
            if label is None or label < 0:
                raise DecodeError("it has no label")
            found[len(names)] = decode(source, size, channels=channels)
        except DecodeError as error:
            skipped.append(f"{called}: {error}")
            if len(skipped) > max_skipped:
                raise UserError(
                    f"more than data.max_skipped={max_skipped} images of {shown} can't be used, "
                    f"such as {skipped[0]}: repair the set or raise it"
                ) from error
            continue
        labels.append(label)
        names.append(called)
    if not names:
        raise UserError(f"{shown} has no image that can be read: choose another set")
    return ImageSet(
        images=found[: len(names)],
        labels=np.array(labels, np.int32) if classes else None,
        class_names=tuple(map(printable, features[classes[0]].names)) if classes else (),
        description=f"Hugging Face {shown}, {describe_images(found[: len(names)])}",
        skipped=tuple(skipped),
        names=tuple(names),
    )


def _splits(datasets: Any, name: str) -> list[Any]:
    """Of one kind of features, "train" first."""
    path = Path(name).expanduser()
    try:
        if path.is_dir() and any((path / f).exists() for f in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path) if path.is_dir() else name)
    except Exception as error:  # it has a class for each kind of fault
        raise UserError(
            f"{printable(name)} can't be read as a data set ({reason(error)}): check the name"
        ) from error
    if not isinstance(found, dict):
        return [found]
    splits = [found[key] for key in sorted(found, key=lambda key: (key != "train", key))]
    if any(a.features != b.features for a, b in pairwise(splits)):
        raise UserError(f"the splits of {printable(name)} differ in their columns: export one")
    return splits


def _rows(datasets: Any, splits: list[Any], images: str) -> Iterator[tuple[int, dict[str, Any]]]:
    place = 0
    for split in splits:
        # Decoded by this package, whose limits on what a file may claim hold for all sources.
        for row in split.cast_column(images, datasets.Image(decode=False)):
            yield place, row
            place += 1
