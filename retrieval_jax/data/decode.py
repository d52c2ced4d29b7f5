"""Pictures of any kind and size as pixels: the one place that opens image files."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from retrieval_jax.runtime.errors import reason

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels
_HEAD = 512  # bytes of a file that tell its kind

# Photographs of 200 megapixels fit, and scans of 16,384². In memory that is 0.8 GB of RGB, but a
# JPEG of that size is decoded at an eighth of its sides unless it is wanted large.
_MOST_PIXELS = 1 << 28
# Above this an image is reduced before it is converted, and one thread at a time decodes such.
_LARGE_PIXELS = (1 << 28) // 3  # 256 MiB of RGB
_REDUCED = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")
_decoding_large = threading.Lock()


class DecodeError(ValueError):
    """Why a file gives no image, in one sentence without the file's name."""


def decode(
    source: bytes | Path, size: int | tuple[int, int], *, crop: bool = False, channels: int = 3
) -> np.ndarray:
    """Decodes one image; only its content decides what it is, never the name of its file.

    JPEG (baseline and progressive, MPO's first picture), PNG, WebP, GIF, BMP, TIFF and AVIF, and
    HEIC where pillow-heif is installed. Of an animation or several pages the first counts. The
    image is rotated as its EXIF orientation says, laid on white where it is transparent (four
    channels keep alpha), and resized with antialiasing (bilinear). Palette, grey and CMYK images
    are converted. Grey of 16 bits is scaled by 65,535 or, if no value exceeds 4,095, as 12 bits.

    JPEGs are decoded at 1/2, 1/4 or 1/8 of their sides where that is still twice the size wanted,
    so that photographs of 200 megapixels are never unpacked whole.

    Args:
      source: the bytes of a file, or its path.
      size: height and width of the result, or its one side.
      crop: False squeezes the whole image into the size; True keeps its aspect ratio, the short
        side filling the size, and cuts off what juts out at both ends of the long one.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA).

    Returns:
      uint8 [h, w, channels].

    Raises:
      DecodeError: it is no regular file, no such image, truncated, damaged, or has more than
        2^28 pixels, which a small file could claim in order to fill the memory.

    Example:
      >>> file = io.BytesIO()
      >>> Image.new("RGB", (40, 20), "red").save(file, "PNG")
      >>> decode(file.getvalue(), 8, crop=True)[0, 0].tolist()
      [255, 0, 0]
    """
    height, width = (size, size) if isinstance(size, int) else size

    def pixels(image: Image.Image) -> np.ndarray:
        # Only JPEGs have a draft; it is never below twice the size.
        least = 2 * max(height, width)
        image.draft(image.mode, (least, least))
        large = image.width * image.height > _LARGE_PIXELS
        with _decoding_large if large else nullcontext():
            _refuse_dim_colour(image)
            upright = ImageOps.exif_transpose(image)
            if large and image.mode in _REDUCED and (factor := min(image.size) // least) > 1:
                upright = upright.reduce(factor)
            converted = _convert(upright, channels)
            if crop:
                fitted = ImageOps.fit(converted, (width, height), Image.Resampling.BILINEAR)
            else:
                fitted = converted.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(fitted).reshape(height, width, channels)

    return _opened(source, pixels)


def header_size(source: bytes | Path) -> tuple[int, int]:
    """Width and height of the stored image, without decoding it.

    Raises:
      DecodeError: as `decode`, as far as the header tells.
    """
    return _opened(source, lambda image: image.size)


def kind_of(head: bytes) -> str:
    """What a file is, by its first bytes (512 are enough).

    Returns:
      A word to count by: "JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF" and "HEIC" are
      images that `decode` reads; others are "empty", "text", "PDF", "video", "unknown", ….

    Example:
      >>> kind_of(b"GIF89a"), kind_of(b"hello"), kind_of(b"")
      ('GIF', 'text', 'empty')
    """
    if not head:
        return "empty"
    if head[4:8] == b"ftyp":
        return _boxed(head)
    if head[:4] == b"RIFF":
        return {b"WEBP": "WebP", b"WAVE": "audio", b"AVI ": "video"}.get(head[8:12], "unknown")
    if head[:2] == b"BM" and head[15:18] == bytes(3):  # the length of a header, not text
        return "BMP"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    return "text" if _is_text(head) else "unknown"


def kind_of_file(path: Path) -> str:
    """The kind of a file that may be anything: "unreadable", or a pipe, "no regular file"."""
    try:
        with open_regular(path) as file:
            return kind_of(file.read(_HEAD))
    except DecodeError:
        return "no regular file"
    except OSError:
        return "unreadable"


def is_image(kind: str) -> bool:
    """Whether `decode` reads this kind, given the packages that are installed.

    Example:
      >>> is_image("PNG"), is_image("text")
      (True, False)
    """
    return _opener(kind) is not None


# By content: Pillow's other readers never see an untrusted file.
_OPENERS: dict[str, Callable[[Any], Image.Image]] = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0\x10\0\0\0CR": "camera raw",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"PK\x03\x04": "archive",
    b"\x1f\x8b": "archive",
    b"\x93NUMPY": "NumPy array",
    b"\x1aE\xdf\xa3": "video",
    b"\0\0\x01\0": "icon",
}


def _boxed(head: bytes) -> str:
    """The kind of a file of ISO boxes, by its brands."""
    brands = {head[i : i + 4] for i in range(8, min(int.from_bytes(head[:4]), len(head), 64), 4)}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}:
        return "HEIC"
    return "camera raw" if b"crx " in brands else "video"


def _is_text(head: bytes) -> bool:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
        return True
    try:
        words = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # or a character is cut by the end of the head
            return False
        words = head[: error.start].decode()
    return all(c.isprintable() or c in "\t\n\r\f\x1b\ufeff" for c in words)


def _opener(kind: str) -> Callable[[Any], Image.Image] | None:
    if kind != "HEIC":
        return _OPENERS.get(kind)
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        return None
    return HeifImageFile


def _opened(source: bytes | Path, look: Callable[[Image.Image], Any]) -> Any:
    """What `look` returns for the image."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
            kind = kind_of(file.read(_HEAD))
            file.seek(0)
            if (opener := _opener(kind)) is None:
                raise DecodeError(_refusal(kind))
            with opener(file) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise DecodeError(
                        f"{image.width:,} × {image.height:,} pixels are more than the "
                        f"{_MOST_PIXELS:,} that are decoded: make it smaller"
                    )
                return look(image)
    except DecodeError:
        raise
    except Exception as error:  # hostile files raise far more than OSError in Pillow's parsers
        raise DecodeError(reason(error)) from error


@contextmanager
def open_regular(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file, unless it is a pipe or a device, whose opening or reading could block.

    Raises:
      DecodeError: it is, or isn't there.
    """
    if not os.path.lexists(path):
        raise DecodeError("there is no such file")
    if not path.is_file():
        raise DecodeError("not a regular file, or a broken link")
    with path.open("rb") as file:
        yield file


def _refusal(kind: str) -> str:
    if kind == "empty":
        return "empty file"
    if kind == "HEIC":
        return "HEIC is read by pillow-heif: pip install 'retrieval-jax[photos]'"
    return f"its content is {kind}, no image of a kind that is read ({', '.join(_OPENERS)}, HEIC)"


def _refuse_dim_colour(image: Image.Image) -> None:
    """Pillow keeps the upper bytes of 16-bit colour, which hold 4 bits of 12-bit values."""
    deep = any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
    if not deep or image.mode not in ("LA", "RGB", "RGBA"):
        return
    bands = np.asarray(image)[..., : 1 if image.mode == "LA" else 3]
    if 0 < bands.max() < 16:
        raise DecodeError("12-bit values in 16-bit colour: save it with 8 bits per channel")


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if image.mode == "F":
        raise DecodeError("floating-point pixels: save it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65_535:
            raise DecodeError("32-bit pixels: save it with 8 or 16 bits per channel")
        # Cameras and scanners store 12 bits in files of 16, which don't say so.
        most = 4095 if values.max() <= 4095 else 65_535
        image = Image.fromarray(np.round(values.astype(np.float32) / (most / 255)).astype(np.uint8))
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(MODES[channels])
