"""Image-classification sets of TensorFlow Datasets, read without TensorFlow."""

import difflib
import io
import json
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from retrieval_jax.data.cache import cached, identity, stamp
from retrieval_jax.data.decode import MODES
from retrieval_jax.data.images import ImageSet, LazyImages, describe_images, digests
from retrieval_jax.data.remote import fetched
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.memory import require

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
_BATCH = 256  # records of one read
_CLASSES = "tensorflow_datasets.core.features."  # TFDS' own, the only ones that may be imported
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


def from_tfds(name: str, directory: str | Path, streaming: bool = False) -> ImageSet:
    """Opens all labelled splits of a prepared TFDS set: train first, the others by name.

    The set must be prepared in a format with random access (ArrayRecord). `cifar10` is downloaded
    and prepared if needed; preparing other sets takes TensorFlow. If a record has several images or
    labels, TFDS's supervised pair is used. Records without a label (-1 in TFDS) are left out.
    Nothing in the directory is executed: of the features' classes only TFDS' own are imported.
    Labels, and images unless they stream, are cached in decoded form (see `cached`) and read again
    when a file of the set changes.

    Args:
      name: as TFDS writes it: "cifar10", "mnist:3.0.1", "set/config".
      directory: TFDS data directory, here or on gs://, which holds `name/version/` or
        `name/config/version/`.
      streaming: read an image when it is indexed, not all of them now; each is decoded once all the
        same, so that what is damaged is found here.

    Returns:
      The image set, images as they are stored: uint8 [n, h, w, c] with c 1, 3 or 4.

    Raises:
      UserError: no such directory or set; the set is incomplete, damaged, in a format without
        random access, or names code to import; its files hold other counts of records than it
        says, or labels beyond its class names; it has no single pair of image and class label,
        images that aren't uint8 or differ in shape, or no label at all.
    """
    root = fetched(directory, part=name.partition(":")[0])  # with its config, all versions
    if not root.is_dir():
        raise UserError(
            f"the data directory {printable(str(root))} isn't there: create it, or give the one "
            f"that holds the prepared TFDS sets"
        )
    builder = _open(name, root)
    title = f"TFDS {builder.info.full_name} in {printable(str(root))}"
    image_key, label_key = _keys(builder.info, title)
    records = _Records(builder, image_key, label_key, title)
    files = sorted(path for path in Path(builder.data_dir).iterdir() if path.is_file())
    known = cached(
        f"{title}, {'labels' if streaming else 'images'}",
        f"{image_key} and {label_key} of {stamp(files)}",
        records.checked if streaming else records.everything,
    )
    left = records.count - len(known["rows"])
    shape = tuple(known["shape"].tolist())
    lazy = LazyImages(partial(records.images, shape), known["rows"], shape, identity(files))
    images = lazy if streaming else known["images"]
    label = builder.info.name
    if label == "cifar10":  # TFDS's preparation is lossless; a mirror of JPEG files isn't
        label = "CIFAR-10 (JPEG mirror)" if known["encoding"] == "JPEG" else "CIFAR-10"
    return ImageSet(
        images=images,
        labels=known["labels"],
        class_names=tuple(printable(c) for c in builder.info.features[label_key].names),
        description=printable(f"{label}, {describe_images(images)}, TFDS {builder.info.full_name}"),
        notes=(f"Records without a label, which are left out: {left:,}.",) if left else (),
        digests=known.get("digests"),
    )


def _open(name: str, root: Path) -> Any:
    """The builder of a prepared set; prepares cifar10 if there is none."""
    from tensorflow_datasets.core.read_only_builder import builder_from_files
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    for attempt in range(2):
        try:
            _refuse_code(name, root)
            return builder_from_files(name, data_dir=str(root))
        except UserError:
            raise
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


def _refuse_code(name: str, root: Path) -> None:
    """Refuses what TFDS would import, or wait for, before it is given the directory."""
    from tensorflow_datasets.core.naming import parse_builder_name_kwargs

    folder = root / parse_builder_name_kwargs(name)[0].name
    for path in folder.rglob("*") if folder.is_dir() else ():
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"{printable(str(path))} is not a regular file: replace or remove it")
        if path.name != "features.json":
            continue
        for found in _class_names(json.loads(path.read_bytes())):
            if not found.startswith(_CLASSES):
                raise UserError(
                    f"{printable(str(path))} names code to import, {printable(found)[:80]!r}: only "
                    "TFDS' own features are used; prepare the set with those"
                )


def _class_names(value: Any) -> Iterator[str]:
    """Of features, also those in JSON that is a text in JSON."""
    if isinstance(value, list):
        for item in value:
            yield from _class_names(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in _CLASS_KEYS and isinstance(item, str):
                yield item
            else:
                yield from _class_names(item)
    elif isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            inside = json.loads(value)
        except ValueError:
            return
        yield from _class_names(inside)


def _not_found(name: str, root: Path) -> str:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    shown, base = printable(str(root)), _base(name)
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


def _base(name: str) -> str:
    """A set's name without its config and version."""
    return name.partition("/")[0].partition(":")[0]


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
    if feature.np_dtype != np.uint8 or feature.shape[-1] not in MODES or len(feature.shape) != 3:
        raise UserError(
            f"images of {title} are {np.dtype(feature.np_dtype).name} of shape {feature.shape}: "
            f"choose a set of uint8 images with 1, 3 or 4 channels"
        )
    return images[0], labels[0]


class _Records:
    """The records of all splits in sequence, train first, each parsed when it is read."""

    def __init__(self, builder: Any, image_key: str, label_key: str, title: str) -> None:
        import tensorflow_datasets as tfds

        self._image_key, self._label_key = image_key, label_key
        self._title, self._classes = title, builder.info.features[label_key].num_classes
        self._mode = MODES[builder.info.features[image_key].shape[-1]]
        splits = sorted(builder.info.splits.items(), key=lambda item: (item[0] != "train", item[0]))
        # Decoded here: TFDS's own decoder keeps whatever mode an image is stored in, and takes
        # thirty times as long to find it in a record.
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        try:
            if builder.info.file_format.value == "array_record":
                self._check_counts([info for _, info in splits])
            self._splits = [
                builder.as_data_source(split, deserialize_method=raw)
                for split, info in splits
                if info.num_examples > 0
            ]
            self._ends = list(accumulate(len(split) for split in self._splits))
        except UserError:
            raise
        except NotImplementedError as error:
            raise UserError(
                f"{title} is stored as {builder.info.file_format.value}: prepare it with "
                f"--file_format=array_record"
            ) from error
        except Exception as error:
            raise self._damaged(error) from error

    @property
    def count(self) -> int:
        """Records of all splits."""
        return self._ends[-1] if self._ends else 0

    def _check_counts(self, splits: list[Any]) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        for info in splits:
            for path, said in zip(info.filepaths, info.shard_lengths, strict=True):
                reader = ArrayRecordReader(str(path))
                held = reader.num_records()
                reader.close()
                if held != said:
                    raise UserError(
                        f"{self._title} says that {printable(path.name)} holds {said:,} records, "
                        f"but it holds {held:,}: remove the set and prepare it again"
                    )

    def labels(self) -> dict[str, np.ndarray]:
        """Labels int32 [n], their rows int64 [n], shape and format (PNG, …) of the first image."""
        from tensorflow_datasets.proto import tf_example_pb2

        count = self.count
        labels = np.full(count, -1, np.int64)
        try:
            for start in range(0, count, _BATCH):
                records = self._read(np.arange(start, min(start + _BATCH, count)))
                for i, record in enumerate(records, start):
                    feature = tf_example_pb2.Example.FromString(record).features.feature[
                        self._label_key
                    ]
                    labels[i] = feature.int64_list.value[0]
            rows = np.flatnonzero(labels >= 0)
            if len(labels) and not -1 <= labels.min() <= labels.max() < self._classes:
                wrong = labels.min() if labels.min() < -1 else labels.max()
                raise UserError(
                    f"{self._title} has the label {wrong} but names {self._classes:,} classes: "
                    "prepare it again with a name for each"
                )
            if len(rows) == 0:
                raise UserError(f"{self._title} has no labelled image: choose a set with labels")
            pixels, encoding = self._decode(self._read(rows[:1])[0])
        except UserError:
            raise
        except Exception as error:
            raise self._damaged(error) from error
        return {
            "labels": labels[rows].astype(np.int32),
            "rows": rows,
            "shape": np.array(pixels.shape),
            "encoding": np.array(encoding),
        }

    def checked(self) -> dict[str, np.ndarray]:
        """What `labels` returns, and digests uint64 [n]; every image is decoded once."""
        found = self.labels()
        rows, shape = found["rows"], tuple(found["shape"].tolist())
        parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
        return found | {
            "digests": np.concatenate([digests(self.images(shape, part)) for part in parts])
        }

    def everything(self) -> dict[str, np.ndarray]:
        """What `labels` returns, and images uint8 [n, h, w, c]."""
        found = self.labels()
        rows, shape = found["rows"], tuple(found["shape"].tolist())
        what = f"{len(rows):,} images of {self._title}"
        require(len(rows) * int(np.prod(shape)), what, "read them with data.streaming=True")
        images = np.empty((len(rows), *shape), np.uint8)
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            images[part] = self.images(shape, rows[part])
        return found | {"images": images}

    def images(self, shape: tuple[int, int, int], rows: np.ndarray) -> np.ndarray:
        """uint8 [b, h, w, c] of the records int [b]; each must have the shape."""
        images = np.empty((len(rows), *shape), np.uint8)
        try:
            for image, record in zip(images, self._read(rows), strict=True):
                pixels, _ = self._decode(record)
                if pixels.shape != shape:
                    raise UserError(
                        f"images of {self._title} differ in shape, {shape} and {pixels.shape}: "
                        f"export them to a folder, which can be read at one size"
                    )
                image[:] = pixels
        except UserError:
            raise
        except Exception as error:
            raise self._damaged(error) from error
        return images

    def _read(self, rows: np.ndarray) -> list[bytes]:
        records: list[bytes] = [b""] * len(rows)
        split_of = np.searchsorted(self._ends, rows, side="right")
        for i in np.unique(split_of):
            places = np.flatnonzero(split_of == i)
            start = self._ends[i] - len(self._splits[i])
            found = self._splits[i].__getitems__((rows[places] - start).tolist())
            for place, record in zip(places, found, strict=True):
                records[place] = record
        return records

    def _decode(self, record: bytes) -> tuple[np.ndarray, str]:
        """Pixels [h, w, c], and the format they are stored in."""
        from tensorflow_datasets.proto import tf_example_pb2

        encoded = (
            tf_example_pb2.Example.FromString(record)
            .features.feature[self._image_key]
            .bytes_list.value[0]
        )
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            pixels = np.asarray(image if image.mode == self._mode else image.convert(self._mode))
            return pixels.reshape(*pixels.shape[:2], -1), str(image.format)

    def _damaged(self, error: Exception) -> UserError:
        # ArrayRecord, protobuf and Pillow each have errors of their own.
        return UserError(
            f"{self._title} is incomplete or damaged ({reason(error)}): remove it and prepare it "
            f"again"
        )
