"""Images from an `.npz` file of NumPy arrays."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from retrieval_jax.data.images import ImageSet, describe_images
from retrieval_jax.data.remote import fetched
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import arrays_in

_KEYS = ("images", "labels", "class_names")


def from_npz(path: str | Path) -> ImageSet:
    """Reads images, and labels and class names if present, from one `.npz` file.

    Args:
      path: a file, here or on gs://, as `numpy.savez` or `numpy.savez_compressed` writes it, with
        the arrays
        `images`, uint8 [n, h, w] or [n, h, w, c];
        `labels`, optional, integers [n], none negative;
        `class_names`, optional with labels, strings [c]: label i is called `class_names[i]`.
        Without names the distinct labels in ascending order become classes 0 .. c - 1, named by
        their original numbers: {3, 7} gives two classes called "3" and "7".

    Returns:
      The image set; images [n, h, w] get one channel.

    Raises:
      UserError: the file doesn't exist, isn't an .npz, is damaged, would have to be unpickled or
        holds no image; or an array is missing, unknown, or of the wrong type, shape or range.
    """
    path = fetched(path)
    shown = printable(str(path))
    arrays = _read(path, shown)
    unknown = sorted(set(arrays) - set(_KEYS))
    if unknown:
        raise UserError(
            f"{shown} holds an array called {printable(unknown[0])!r}: "
            f"name its arrays images, labels (optional) and class_names (optional)"
        )
    if "images" not in arrays:
        raise UserError(f"{shown} holds no array called 'images': save it with numpy.savez")
    images = arrays["images"]
    if images.dtype != np.uint8:
        raise UserError(f"images in {shown} are {images.dtype}: save them as uint8, 0 .. 255")
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise UserError(
            f"images in {shown} have shape {list(images.shape)}: they need [n, h, w] or "
            f"[n, h, w, c], and at least one image of at least one pixel"
        )
    if images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[3] > 4:
        raise UserError(
            f"images in {shown} have shape {list(images.shape)}, where axis 1 looks like channels: "
            f"save images.transpose(0, 2, 3, 1)"
        )
    images = np.ascontiguousarray(images[..., None] if images.ndim == 3 else images)
    labels, class_names = _labels(arrays, len(images), shown)
    return ImageSet(images, labels, class_names, f"{shown}, {describe_images(images)}")


def _read(path: Path, shown: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{shown} is not a file: give the path of an .npz file")
    try:
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise UserError(f"{shown} holds a single array: use numpy.savez(path, images=…)")
            return arrays_in(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{shown} can't be read as an .npz of plain arrays ({reason(error)}): "
            f"save it again with numpy.savez, without object arrays"
        ) from error


def _labels(
    arrays: Mapping[str, np.ndarray], count: int, shown: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    labels, names = arrays.get("labels"), arrays.get("class_names")
    if labels is None:
        if names is not None:
            raise UserError(f"{shown} has class_names and no labels: add labels or drop the names")
        return None, ()
    if labels.dtype.kind not in "iu":
        raise UserError(f"labels in {shown} are {labels.dtype}: save them as integers")
    if labels.shape != (count,):
        raise UserError(
            f"labels in {shown} have shape {list(labels.shape)}: they need one label per image, "
            f"[{count}]"
        )
    if labels.min() < 0:
        raise UserError(f"labels in {shown} go down to {labels.min()}: count classes from 0")
    if names is None:
        values, labels = np.unique(labels, return_inverse=True)
        return labels.astype(np.int32), tuple(str(value) for value in values)
    if names.dtype.kind != "U" or names.ndim != 1:
        raise UserError(f"class_names in {shown} must be a one-dimensional array of strings")
    if labels.max() >= len(names):
        raise UserError(
            f"labels in {shown} go up to {labels.max()}, but there are {len(names)} class_names: "
            f"name every class"
        )
    return labels.astype(np.int32), tuple(printable(str(name)) for name in names)
