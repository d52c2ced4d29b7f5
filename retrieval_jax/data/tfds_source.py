"""Image-classification sets of TensorFlow Datasets, read without TensorFlow."""

import difflib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from retrieval_jax.data.images import ImageSet, describe_images, printable, reason
from retrieval_jax.errors import UserError

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_BATCH = 256  # records of one read


def from_tfds(name: str, directory: str | Path) -> ImageSet:
    """Reads all labelled splits of a prepared TFDS set: train first, the others by name.

    The set must be prepared in a format with random access (ArrayRecord). `cifar10` is downloaded
    and prepared where it isn't yet; other builders need TensorFlow for that. Of several images or
    labels in a record, the pair that TFDS calls supervised counts. Records without a label (-1 in
    TFDS) are left out.

    Args:
        name: as TFDS writes it: "cifar10", "mnist:3.0.1", "set/config".
        directory: TFDS data directory, which holds `name/version/` or `name/config/version/`.

    Returns:
        The image set, images as they are stored: uint8 [n, h, w, c] with c 1, 3 or 4.

    Raises:
        UserError: no such directory or set; the set is incomplete, damaged or in a format without
            random access; it has no single pair of image and class label, images that aren't
            uint8 or differ in shape, or no label at all.
    """
    root = Path(os.path.expanduser(directory))
    if not root.is_dir():
        raise UserError(
            f"the data directory {printable(str(root))} isn't there: create it, or name the one "
            f"that holds the prepared TFDS sets"
        )
    builder = _open(name, root)
    title = f"TFDS {builder.info.full_name} in {printable(str(root))}"
    image_key, label_key = _keys(builder.info, title)
    try:
        images, labels, encoding = _read(builder, image_key, label_key, title)
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f"{title} is stored as {builder.info.file_format.value}: prepare it with "
            f"--file_format=array_record"
        ) from error
    except Exception as error:  # ArrayRecord, protobuf and Pillow each have errors of their own
        raise UserError(
            f"{title} is incomplete or damaged ({reason(error)}): remove it and prepare it again"
        ) from error
    label = builder.info.name
    if label == "cifar10":  # TFDS' preparation is lossless; a mirror made of JPEG files isn't
        label = "CIFAR-10 (JPEG mirror)" if encoding == "JPEG" else "CIFAR-10"
    return ImageSet(
        images=images,
        labels=labels,
        class_names=tuple(printable(c) for c in builder.info.features[label_key].names),
        description=f"{label}, {describe_images(images)}, TFDS {builder.info.full_name}",
    )


def _open(name: str, root: Path) -> Any:
    """The builder of a prepared set; prepares cifar10 if there is none."""
    from tensorflow_datasets.core.read_only_builder import builder_from_files
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    for attempt in range(2):
        try:
            return builder_from_files(name, data_dir=str(root))
        except DatasetNotFoundError as error:
            if name != "cifar10" or attempt > 0:
                raise UserError(_not_found(name, root)) from error
        except Exception as error:  # an odd name, or metadata that doesn't parse
            raise UserError(
                f"TFDS can't open {printable(name)!r} in {printable(str(root))} ({reason(error)}): "
                f"check the name, or remove the set and prepare it again"
            ) from error
        from retrieval_jax.data.cifar10 import prepare

        prepare(root)
    raise AssertionError("unreachable")


def _not_found(name: str, root: Path) -> str:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    shown, base = printable(str(root)), name.partition("/")[0].partition(":")[0]
    if base in known:
        return (
            f"{printable(name)} is not prepared in {shown}: run 'tfds build {base} "
            f"--file_format=array_record --data_dir=DIR' where TensorFlow is installed and copy "
            f"DIR/{base} there"
        )
    close = difflib.get_close_matches(base, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "check the name"
    return (
        f"TFDS knows no data set {printable(name)!r}, and {shown} holds none of that name: {hint}"
    )


def _keys(info: Any, title: str) -> tuple[str, str]:
    """Names of the image feature and the label feature."""
    import tensorflow_datasets as tfds

    features = info.features if isinstance(info.features, tfds.features.FeaturesDict) else {}
    supervised = info.supervised_keys
    if supervised is None or not all(isinstance(key, str) for key in supervised):
        supervised = tuple(features)
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    found = [[k for k in features if k in supervised and isinstance(features[k], t)] for t in kinds]
    (images, labels) = found
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            f"{title} has {len(images)} image and {len(labels)} class label features among "
            f"{', '.join(map(printable, features)) or 'none'}: choose a set with one of each"
        )
    feature = features[images[0]]
    if feature.np_dtype != np.uint8 or feature.shape[-1] not in _MODES or len(feature.shape) != 3:
        raise UserError(
            f"images of {title} are {np.dtype(feature.np_dtype).name} of shape {feature.shape}: "
            f"choose a set of uint8 images with 1, 3 or 4 channels"
        )
    return images[0], labels[0]


def _read(
    builder: Any, image_key: str, label_key: str, title: str
) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Images, labels, and the format (PNG, JPEG, …) in which the first image is stored."""
    import tensorflow_datasets as tfds

    mode = _MODES[builder.info.features[image_key].shape[-1]]
    splits = {s: i.num_examples for s, i in builder.info.splits.items() if i.num_examples > 0}
    images: np.ndarray | None = None
    labels: list[int] = []
    encoding: str | None = None
    for split in sorted(splits, key=lambda s: (s != "train", s)):
        # Decoded here, as TFDS' own decoder leaves images in whatever mode they are stored.
        source = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
        for start in range(0, len(source), _BATCH):
            keys = list(range(start, min(start + _BATCH, len(source))))
            for record in source.__getitems__(keys):
                if record[label_key] < 0:
                    continue
                with Image.open(io.BytesIO(record[image_key]), formats=_FORMATS) as image:
                    encoding = encoding or image.format
                    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
                pixels = pixels.reshape(*pixels.shape[:2], -1)
                if images is None:
                    images = np.empty((sum(splits.values()), *pixels.shape), np.uint8)
                if pixels.shape != images.shape[1:]:
                    raise UserError(
                        f"images of {title} differ in shape, {images.shape[1:]} and "
                        f"{pixels.shape}: export them to a folder, which can be read at one size"
                    )
                images[len(labels)] = pixels
                labels.append(record[label_key])
    if images is None:
        raise UserError(f"{title} has no labelled image: choose a set with labels")
    return images[: len(labels)], np.asarray(labels, np.int32), encoding
