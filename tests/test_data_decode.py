"""Pictures of every kind, size and damage, through the one decoder."""

import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from retrieval_jax.data.decode import DecodeError, decode, header_size, is_image, kind_of

pytestmark = pytest.mark.fast


def encoded(image, kind, **options):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(height, width):
    """Red grows with the rows, green with the columns."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, 0 * x + 60], -1).astype(np.uint8)


def png_of(header, rows):
    """A PNG by hand, for the kinds that Pillow doesn't write."""
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def heic(array):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(array)).save(file, quality=95)
    return file.getvalue()


KINDS = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "WEBP": "WebP", "GIF": "GIF", "BMP": "BMP",
         "TIFF": "TIFF", "AVIF": "AVIF"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_by_its_content(tmp_path, kind):
    array = gradient(40, 60)
    data = encoded(array, kind)
    assert kind_of(data) == kind_of(data[:512]) == KINDS[kind] and is_image(KINDS[kind])
    (tmp_path / "wrong.txt").write_bytes(data)
    for source in (data, tmp_path / "wrong.txt"):
        assert header_size(source) == (60, 40)
        np.testing.assert_allclose(decode(source, (40, 60)), array, atol=20)


def test_heic_is_read_or_names_its_package(monkeypatch):
    array = gradient(40, 60)
    data = heic(array)
    assert kind_of(data) == "HEIC" and is_image("HEIC")
    np.testing.assert_allclose(decode(data, (40, 60)), array, atol=20)
    with pytest.raises(DecodeError):
        decode(data[: len(data) // 2], 8)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DecodeError, match=r"pip install 'retrieval-jax\[photos\]'"):
        decode(data, 8)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "empty"),
        (b"name,label\n", "text"),
        ("naïve 猫".encode()[:-1], "text"),
        (b"BMW is a make of car, not a bitmap", "text"),
        (b"<svg xmlns=", "text"),
        (bytes(range(256)), "unknown"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04", "archive"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "video"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "camera raw"),
        (b"RIFF\0\0\0\0WAVE", "audio"),
    ],
)
def test_other_files_have_a_kind_to_be_counted_by(head, kind):
    assert kind_of(head) == kind
    if kind not in ("HEIC", "AVIF"):
        with pytest.raises(DecodeError, match=f"empty|{kind}"):
            decode(head, 4)


def test_a_crop_keeps_the_aspect_ratio_and_the_centre():
    image = decode(encoded(gradient(60, 120), "PNG"), 30, crop=True)
    assert image.shape == (30, 30, 3)
    # The columns 30 .. 89 of 120 are left, at half the size.
    np.testing.assert_allclose(image[15, :, 1], (30.5 + 2 * np.arange(30)) * 255 / 120, atol=4)
    np.testing.assert_allclose(image[:, 15, 0], (0.5 + 2 * np.arange(30)) * 255 / 60, atol=4)


@pytest.mark.parametrize("crop", [False, True])
def test_a_photograph_of_200_megapixels_is_never_in_memory(crop, monkeypatch):
    data = encoded(Image.new("L", (16_320, 12_240), 120), "JPEG")
    decoded, transpose = [], ImageOps.exif_transpose

    def seen(image):
        decoded.append(image.size)
        return transpose(image)

    monkeypatch.setattr(ImageOps, "exif_transpose", seen)
    np.testing.assert_allclose(decode(data, 64, crop=crop), 120, atol=3)
    assert decoded == [(2040, 1530)]


def test_what_no_memory_can_hold_is_refused_by_its_header():
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    png = png_of(header, bytes(99))
    with pytest.raises(DecodeError, match=r"20,000 × 20,000 pixels are more than the 268,435,456"):
        decode(png, 8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("most", "levels"), [(4095, 256), (65_535, 256)])
def test_16_bit_grey_keeps_its_levels(kind, most, levels):
    values = np.linspace(0, most, 64 * 64).reshape(64, 64).astype(np.uint16)
    image = decode(encoded(values, kind), 64, channels=1)[..., 0]
    np.testing.assert_array_equal(image, np.round(values / (most / 255)))
    assert len(np.unique(image)) == levels


def test_12_bit_colour_and_floating_point_are_refused_with_a_cure():
    rows = b"".join(b"\0" + struct.pack(">12H", *range(0, 4092, 341)) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    png = png_of(header, rows)
    with pytest.raises(DecodeError, match="12-bit values in 16-bit colour: save"):
        decode(png, 4)
    with pytest.raises(DecodeError, match="floating-point pixels: save"):
        decode(encoded(np.ones((4, 4), np.float32), "TIFF"), 4)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_are_refused(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(noise, kind)
    for part in (0.9, 0.5, 0.1):
        with pytest.raises(DecodeError) as error:
            decode(data[: int(len(data) * part)], 16)
        assert "\n" not in str(error.value) and len(str(error.value)) > 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_orientation_of_every_kind(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = gradient(40, 60)
    data = encoded(np.ascontiguousarray(np.rot90(upright)), kind, exif=exif)
    np.testing.assert_allclose(decode(data, (40, 60)), upright, atol=24)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DecodeError, match="not a regular file"):
        decode(tmp_path / "pipe.png", 4)


def test_a_path_that_leads_nowhere_says_so(tmp_path):
    with pytest.raises(DecodeError, match="no such file"):
        decode(tmp_path / "photo.png", 4)
    (tmp_path / "link.png").symlink_to(tmp_path / "photo.png")
    with pytest.raises(DecodeError, match="broken link"):
        decode(tmp_path / "link.png", 4)
