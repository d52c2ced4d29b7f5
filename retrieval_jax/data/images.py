"""What every source of images returns, and the one set that needs no download."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class LazyImages:
    """Images that are read when they are indexed, as the whole array would be.

    Attributes:
      read: any int rows [b] → uint8 [b, h, w, c]; called from several threads at once.
      rows: int [n], what to pass to `read` for each image.
      image_shape: (h, w, c).
      identity: names and sizes of the files they come from; "" if there are none.

    Example:
      >>> array = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)
      >>> images = view(array, np.array([5, 0, 3]))
      >>> images.shape, images[-1].ravel().tolist(), images[:2].shape
      ((3, 2, 2, 1), [12, 13, 14, 15], (2, 2, 2, 1))
    """

    read: Callable[[np.ndarray], np.ndarray]
    rows: np.ndarray
    image_shape: tuple[int, int, int]
    identity: str = ""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, h, w, c)."""
        return (len(self.rows), *self.image_shape)

    @property
    def dtype(self) -> np.dtype:
        """uint8."""
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = self.rows[index]
        return self.read(np.ravel(rows)).reshape(*np.shape(rows), *self.image_shape)


def view(images: np.ndarray | LazyImages, rows: np.ndarray) -> LazyImages:
    """The images in these rows, int [m], without reading or copying any."""
    if isinstance(images, LazyImages):
        return replace(images, rows=images.rows[rows])
    return LazyImages(images.__getitem__, rows, images.shape[1:])


class ImageSet(NamedTuple):
    """A whole image set, still uint8: the device scales it.

    Attributes:
      images: uint8 [n, h, w, c], decoded in memory or read when they are indexed.
      labels: int32 [n], values 0 .. len(class_names) - 1, or None if the set has no labels.
      class_names: one printable name per class; () without labels.
      description: one line for provenance.
      skipped: one printable line for each file that was left out, with its reason.
      names: for each image its file, printable and relative to the set's folder; None where the
        images have no files of their own.
      notes: a sentence for each thing that one should know of the set.
      digests: uint64 [n], equal where all pixels are, of images that aren't in memory.
    """

    images: np.ndarray | LazyImages
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    description: str
    skipped: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    digests: np.ndarray | None = None


def digests(images: np.ndarray) -> np.ndarray:
    """A number uint64 [n] for each image that two share only if all their pixels are equal.

    Two different images of a million share it with a probability of 3e-8.

    Example:
      >>> a, b, c = digests(np.array([[[[1]]], [[[2]]], [[[1]]]], np.uint8)).tolist()
      >>> a == c, a == b
      (True, False)
    """
    found = [
        hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest()
        for image in images
    ]
    return np.frombuffer(b"".join(found), np.uint64)


def names_of(names: tuple[str, ...] | None, rows: np.ndarray) -> list[str] | list[int]:
    """What to call the images in these rows: by their files, or by the rows where there are none.

    Example:
      >>> names_of(("cat/1.png", "dog/1.png"), np.array([1])), names_of(None, np.array([1]))
      (['dog/1.png'], [1])
    """
    return rows.tolist() if names is None else [names[row] for row in rows]


def digits() -> ImageSet:
    """Scikit-learn's handwritten digits: 1,797 grey images of 8×8, embedded in the library.

    The original intensities 0 .. 16 are stretched to 0 .. 255.

    References:
      E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
      Repository, 1998, https://doi.org/10.24432/C50P49 (the test part of it).

    Example:
      >>> digits().images.shape
      (1797, 8, 8, 1)
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    return ImageSet(
        images=images,
        labels=data.target.astype(np.int32),
        class_names=tuple(str(name) for name in data.target_names),
        description=f"scikit-learn digits, {describe_images(images)}",
    )


def describe_images(images: np.ndarray | LazyImages) -> str:
    """Count and shape in words.

    Example:
      >>> describe_images(np.zeros((60_000, 32, 32, 3), np.uint8))
      '60,000 images of 32×32×3'
    """
    n, *shape = images.shape
    return f"{n:,} image{'s' if n != 1 else ''} of {'×'.join(map(str, shape))}"
