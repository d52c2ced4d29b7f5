"""The one form in which every source hands over its images, and the set that needs no download."""

from typing import NamedTuple

import numpy as np


class ImageSet(NamedTuple):
    """A whole image set in memory, decoded but still uint8: scaling it is the device's work.

    Attributes:
        images: uint8 [n, h, w, c].
        labels: int32 [n], values 0 .. len(class_names) - 1, or None where the set has no labels.
        class_names: one printable name a class; () without labels.
        description: one line for provenance.
        skipped: one printable line for each file that was left out, with its reason.
    """

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    description: str
    skipped: tuple[str, ...] = ()


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


def describe_images(images: np.ndarray) -> str:
    """Count and shape in words.

    Example:
        >>> describe_images(np.zeros((60_000, 32, 32, 3), np.uint8))
        '60,000 images of 32×32×3'
    """
    n, *shape = images.shape
    return f"{n:,} image{'s' if n != 1 else ''} of {'×'.join(map(str, shape))}"


def printable(name: str) -> str:
    r"""A name from outside as one line of valid Unicode: everything that doesn't print is escaped.

    File names that aren't UTF-8 reach Python as lone surrogates, which no JSON or HTML file can
    hold; line breaks and direction marks would garble a listing.

    Example:
        >>> printable("caf\udce9\n")
        'caf\\udce9\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def reason(error: BaseException) -> str:
    """The first line of an error from a library, short enough to stand inside a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0][:200]).rstrip(".")
