"""Images from a folder: one subfolder per class, or flat without labels."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from retrieval_jax.data.images import ImageSet, LazyImages, describe_images
from retrieval_jax.data.remote import fetched
from retrieval_jax.runtime.errors import UserError, printable, reason

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")  # by content: Pillow's other readers never see an untrusted file
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_THREADS = 8  # bounds the full-size images in memory at once, at most 360 MB each


def from_folder(
    directory: str | Path,
    size: tuple[int, int],
    channels: int = 3,
    max_skipped: int = 100,
    streaming: bool = False,
) -> ImageSet:
    """Reads `DIR/class/*.png|jpg|jpeg|webp` with labels, or `DIR/*.png|jpg|jpeg|webp` without.

    Classes are the subfolders that directly hold a file with such an extension (in either case),
    sorted by name, as are the images within a class. Hidden files and folders, deeper folders and
    other files are ignored. Links are followed; one that loops does no harm, since no folder below
    the classes is entered.

    Each image is rotated as its EXIF orientation says, composited onto white where it is
    transparent (four channels keep alpha), and resized to `size` with antialiasing, whatever its
    aspect ratio. Palette, grey, CMYK and 16-bit images are converted, the last by scaling their
    full range. Of an animation only the first frame is used.

    An image is skipped, with a reason, if it can't be fully decoded, exceeds Pillow's limit against
    decompression bombs (`PIL.Image.MAX_IMAGE_PIXELS`, 89 million pixels), or is not a regular file.

    Args:
      directory: the folder, here or on gs://.
      size: height and width of the result.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA).
      max_skipped: the most images that may be skipped.
      streaming: read an image when it is indexed, not all of them now. What to skip must be known
        by then, so each file is opened now and only its header read; a UserError names a file
        whose pixels turn out to be damaged later.

    Returns:
      The image set; names that aren't UTF-8, and characters that don't print, are escaped.

    Raises:
      UserError: the folder doesn't exist or can't be listed; holds no image, both flat images and
        class folders, a class without a readable image, or more than `max_skipped` unreadable
        images; or size or channels are out of range.
    """
    root = fetched(directory)
    shown = printable(str(root))
    if min(size) < 1:
        raise UserError(f"image size is {size[0]}×{size[1]}: height and width must be positive")
    if channels not in _MODES:
        raise UserError(f"channels is {channels}: a folder of images can be read as 1, 3 or 4")
    if not root.is_dir():
        raise UserError(f"{shown} is not a folder: give the folder that holds the images")
    names, paths, labels = _find(root, shown)

    images: np.ndarray | LazyImages
    if streaming:
        read, skipped = _read(root, paths, _header, None, max_skipped)
        files = [(str(paths[i].relative_to(root)), paths[i].stat().st_size) for i in read]
        decode = partial(_decode_sound, root, paths, size, channels)
        images = LazyImages(decode, np.array(read, int), (*size, channels), repr(files))
    else:
        images = np.empty((len(paths), *size, channels), np.uint8)
        look = partial(_decode, size=size, channels=channels)
        read, skipped = _read(root, paths, look, images, max_skipped)
        images = images[: len(read)]
    labels = labels[read]
    for lost in sorted(set(range(len(names))) - set(labels.tolist())):
        raise UserError(
            f"no image of class {names[lost]!r} in {shown} can be read: repair or remove it"
        )
    if not read:
        raise UserError(f"no image in {shown} can be read ({skipped[0]}): repair or replace them")
    return ImageSet(
        images=images,
        labels=labels if names else None,
        class_names=names,
        description=f"folder {shown}, {describe_images(images)}",
        skipped=tuple(skipped),
        names=tuple(printable(paths[i].relative_to(root).as_posix()) for i in read),
    )


def _find(root: Path, shown: str) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    """Printable class names (none if flat), image paths, labels int32 (all 0 if flat)."""
    flat, folders = _list(root)
    classes = [(folder.name, found) for folder in folders if (found := _list(folder)[0])]
    if flat and classes:
        raise UserError(
            f"{shown} holds images both directly and in class folders such as "
            f"{printable(classes[0][0])!r}: move the former into class folders or elsewhere"
        )
    if not flat and not classes:
        raise UserError(
            f"{shown} holds no images: it needs DIR/class/*.png (or jpg, jpeg, webp), or "
            f"DIR/*.png without labels"
        )
    paths = flat or [path for _, found in classes for path in found]
    names = tuple(printable(name) for name, _ in classes)
    labels = [0] * len(flat) + [i for i, (_, found) in enumerate(classes) for _ in found]
    return names, paths, np.asarray(labels, np.int32)


def _list(folder: Path) -> tuple[list[Path], list[Path]]:
    """Image files and subfolders of a folder, each sorted by name, the hidden ones left out."""
    files, folders = [], []
    try:
        entries = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    except OSError as error:
        raise UserError(
            f"folder {printable(str(folder))} can't be listed ({error.strerror}): "
            f"check its permissions"
        ) from error
    for entry in entries:
        path = folder / entry
        if path.is_dir():
            folders.append(path)
        elif entry.lower().endswith(_ENDINGS):
            files.append(path)
    return files, folders


def _read(
    root: Path,
    paths: list[Path],
    look: Callable[[Path], Any],
    images: np.ndarray | None,
    max_skipped: int,
) -> tuple[list[int], list[str]]:
    """Indices of the readable paths, and a line per skipped path.

    `look` returns a string, the reason to skip it, or what goes into `images`, if given, without a
    gap.
    """
    read: list[int] = []
    skipped: list[str] = []
    pool = ThreadPoolExecutor(_THREADS)  # Pillow's decoders release the GIL
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for i, result in enumerate(pool.map(look, paths)):
                if not isinstance(result, str):
                    if images is not None:
                        images[len(read)] = result
                    read.append(i)
                    continue
                skipped.append(f"{printable(str(paths[i].relative_to(root)))}: {result}")
                if len(skipped) > max_skipped:
                    raise UserError(
                        f"more than {max_skipped} images in {printable(str(root))} can't be read, "
                        f"the last of them {skipped[-1]}: repair or remove them, or allow more to "
                        f"be skipped"
                    )
    finally:  # an interrupt doesn't wait for the images that are still queued
        pool.shutdown(cancel_futures=True)
    return read, skipped


def _decode_sound(
    root: Path, paths: list[Path], size: tuple[int, int], channels: int, rows: np.ndarray
) -> np.ndarray:
    """The images [b, h, w, channels] of files whose header was sound."""
    images = np.empty((len(rows), *size, channels), np.uint8)
    for image, row in zip(images, rows, strict=True):
        pixels = _decode(paths[row], size, channels)
        if isinstance(pixels, str):
            raise UserError(
                f"{printable(str(paths[row].relative_to(root)))} in {printable(str(root))} can't "
                f"be decoded ({pixels}): repair or remove it, and start in another workdir"
            )
        image[:] = pixels
    return images


def _decode(path: Path, size: tuple[int, int], channels: int) -> np.ndarray | str:
    """One image, uint8 [h, w, channels], or the reason why there is none."""

    def pixels(image: Image.Image) -> np.ndarray:
        # Lets the JPEG decoder shrink by a power of two on the way; never below twice the size.
        image.draft(image.mode, (2 * max(size), 2 * max(size)))
        converted = _convert(ImageOps.exif_transpose(image), channels)
        resized = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(resized).reshape(*size, channels)

    return _open(path, pixels)


def _header(path: Path) -> tuple[int, int] | str:
    """Width and height of the stored image, or the reason why there is none."""
    return _open(path, lambda image: image.size)


def _open(path: Path, look: Callable[[Image.Image], Any]) -> Any:
    """What `look` returns for the image, or the reason why it can't be read."""
    try:
        if not path.is_file():  # opening a pipe would block forever
            return "not a regular file, or a broken link"
        if path.stat().st_size == 0:
            return "empty file"
        with Image.open(path, formats=_FORMATS) as image:
            return look(image)
    except UnidentifiedImageError:  # its message is the whole path
        return "not a PNG, JPEG or WebP image"
    except Exception as error:  # hostile files raise far more than OSError in Pillow's parsers
        return reason(error)


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        values = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.round(values / 257).clip(0, 255).astype(np.uint8))
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(_MODES[channels])
