"""Folders of real image files, sound and nasty ones."""

import io
import os
import struct
import sys
import time
import zlib
from functools import partial

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from retrieval_jax.data import folder
from retrieval_jax.data.folder import from_folder
from retrieval_jax.data.images import digests
from retrieval_jax.data.stream import batches
from retrieval_jax.runtime.errors import UserError


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path, width, height, depth, colour, rows, *extra):
    """A PNG by hand, for the kinds that Pillow doesn't write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows))
    body = chunk(b"IHDR", header) + b"".join(extra) + data + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def only(root, size, channels=3, **options):
    data = from_folder(root, size, channels, **options)
    assert len(data.images) == 1 and data.skipped == ()
    return data.images[0]


# --- layout --------------------------------------------------------------------------------------


def test_class_folders_in_the_order_of_names(tmp_path):
    names = {"dog": ["b.png", "a.PNG"], "Cat": ["10.webp", "9.png"], "ant": ["x.jpeg", "y.JPG"]}
    expected = []
    for name, files in names.items():
        for i, file in enumerate(files):
            grey = 20 * len(expected) + i
            expected.append((name, file, grey))
            options = {"lossless": True} if file.endswith("webp") else {}
            save(tmp_path / name / file, np.full((3, 4, 3), grey, np.uint8), **options)
    expected.sort()
    data = from_folder(tmp_path, (3, 4))
    assert data.images.shape == (6, 3, 4, 3) and data.images.dtype == np.uint8
    assert data.class_names == ("Cat", "ant", "dog")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2] and data.labels.dtype == np.int32
    np.testing.assert_allclose(data.images[:, 0, 0, 0], [grey for *_, grey in expected], atol=1)
    assert data.description == f"folder {tmp_path}, 6 images of 3×4×3"


def test_a_flat_folder_has_no_labels(tmp_path):
    for i in (2, 0, 1):
        save(tmp_path / f"{i}.png", np.full((2, 2), i, np.uint8))
    data = from_folder(str(tmp_path), (2, 2), channels=1)
    assert data.labels is None and data.class_names == ()
    np.testing.assert_array_equal(data.images[:, 0, 0, 0], [0, 1, 2])


def test_other_and_hidden_files_are_counted_by_kind(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where the extra isn't installed
    save(tmp_path / "cat/a.png", pixels(0, 2, 2, 3))
    save(tmp_path / "cat/.hidden.png", pixels(1, 2, 2, 3))
    save(tmp_path / ".thumbnails/c.png", pixels(3, 2, 2, 3))
    (tmp_path / "cat/notes.txt").write_text("x")
    (tmp_path / "cat/raw").write_bytes(bytes(range(256)))
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu/photo.heics").write_bytes(b"\0\0\0\x18ftypheix\0\0\0\0")
    data = from_folder(tmp_path, (2, 2))
    assert len(data.images) == 1 and data.class_names == ("cat",) and data.skipped == ()
    left, empty = data.notes
    assert left.startswith("Files that were not used: 1 HEIC, 2 hidden, 2 text, 1 unknown")
    assert empty == "Class folders without an image: empty, emu."


def test_links_are_followed_and_loops_are_harmless(tmp_path):
    save(tmp_path / "elsewhere/a.png", pixels(0, 2, 2, 3))
    root = tmp_path / "root"
    save(root / "cat/own.png", pixels(1, 2, 2, 3))
    (root / "cat/linked.png").symlink_to(tmp_path / "elsewhere/a.png")
    (root / "cat/up").symlink_to(root)
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "cat/self.png").symlink_to(root / "cat/self.png")
    data = from_folder(root, (2, 2))
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(data.images[0], data.images[2])
    assert data.skipped == ("cat/self.png: not a regular file, or a broken link",)


def test_odd_names_are_kept_and_safe(tmp_path):
    odd = [b"<script>alert(1)<-script>", b"a\nb", "猫 🐈".encode(), b"caf\xe9", b"$x_1$"]
    for i, name in enumerate(sorted(odd)):
        folder = tmp_path / os.fsdecode(name)
        try:
            save(folder / "a.png", np.full((2, 2, 3), i, np.uint8))
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / os.fsdecode(b"caf\xe9") / "br\noken.png").write_bytes(b"x")
    data = from_folder(tmp_path, (2, 2))
    assert data.class_names == (
        "$x_1$",
        "<script>alert(1)<-script>",
        "a\\nb",
        "caf\\udce9",
        "猫 🐈",
    )
    assert data.skipped == (
        "caf\\udce9/br\\noken.png: its content is text, no image of a kind that is read "
        "(JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC)",
    )
    "".join([data.description, *data.class_names, *data.skipped]).encode("utf-8")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: r.rmdir(), "is not a folder"),
        (lambda r: (r.rmdir(), r.write_text("x")), "is not a folder"),
        (lambda r: None, "holds no images: it needs DIR/class"),
        (lambda r: save(r / "train/cat/a.png", pixels(0, 2, 2, 3)), "data.class_depth=2 labels"),
        (
            lambda r: [save(r / name, pixels(0, 2, 2, 3)) for name in ("a.png", "cat/b.png")],
            r"1 image as DIR/file \(a.png\), 1 image as DIR/folder/file \(cat/b.png\): move",
        ),
        (
            lambda r: (save(r / "cat/a.png", pixels(0, 2, 2, 3)), (r / "dog").mkdir(),
                       (r / "dog/b.png").write_text("x")),
            "no image of class 'dog'",
        ),
        (lambda r: (r / "a.png").write_text("x"), "holds no images: 1 text"),
    ],
    ids=["missing", "file", "empty", "too deep", "mixed", "class lost", "all lost"],
)  # fmt: skip
def test_folders_that_hold_no_image_set(tmp_path, make, message):
    root = tmp_path / "root"
    root.mkdir()
    make(root)
    with pytest.raises(UserError, match=message):
        from_folder(root, (2, 2))


def test_size_and_channels_out_of_range(tmp_path):
    save(tmp_path / "a.png", pixels(0, 2, 2, 3))
    with pytest.raises(UserError, match="0×5"):
        from_folder(tmp_path, (0, 5))
    with pytest.raises(UserError, match="1, 3 or 4"):
        from_folder(tmp_path, (2, 2), channels=2)


def test_files_are_what_their_content_says(tmp_path):
    for kind in ("PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP", "AVIF"):
        for i in range(2):
            path = tmp_path / kind / f"{i}.jfif"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encoded(kind, np.full((8, 8, 3), 99, np.uint8)))
    data = from_folder(tmp_path, (4, 4))
    assert len(data.images) == 14 and len(data.class_names) == 7
    np.testing.assert_allclose(data.images, 99, atol=4)
    assert data.skipped == data.notes == ()


def nested(root):
    for i, name in enumerate(
        ["train/cat/1.png", "train/dog/a/2.png", "val/cat/3.png", "val/4.png"]
    ):
        save(root / name, np.full((2, 2), i, np.uint8))


def test_nested_folders_say_where_the_images_are_and_which_key_reads_them(tmp_path):
    nested(tmp_path)
    with pytest.raises(UserError) as error:
        from_folder(tmp_path, (2, 2))
    for part in (
        r"1 image as DIR/folder/file (val/4.png)",
        r"2 images as DIR/folder/folder/file (train/cat/1.png)",
        "data.class_depth=2 labels them by the second folder, which puts train and val together",
        "data.class_depth=1 labels",
        "name one of the parts as data.directory",
    ):
        assert part in str(error.value)
    data = from_folder(tmp_path, (2, 2), 1, class_depth=2)
    assert data.class_names == ("cat", "dog") and data.labels.tolist() == [0, 0, 1]
    assert data.images[:, 0, 0, 0].tolist() == [0, 2, 1]
    assert data.names == ("train/cat/1.png", "val/cat/3.png", "train/dog/a/2.png")
    assert data.notes == ("1 image above the class folders left out, such as val/4.png.",)
    assert from_folder(tmp_path, (2, 2), class_depth=1).class_names == ("train", "val")
    with pytest.raises(UserError, match="data.class_depth is 4 but images .* at most 3 folders"):
        from_folder(tmp_path, (2, 2), class_depth=4)


def test_a_folder_that_cant_be_listed_is_named(tmp_path, monkeypatch):
    nested(tmp_path)
    listdir = os.listdir  # permissions don't bind the root user who may run this

    def refusing(path):
        if str(path).endswith("train"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refusing)
    data = from_folder(tmp_path, (2, 2), class_depth=1)
    assert data.class_names == ("val",)
    assert data.notes[0] == "The folder train/ can't be listed (Permission denied) and is left out."


def test_a_table_of_labels(tmp_path):
    nested(tmp_path)
    table = tmp_path / "labels.csv"
    table.write_text('\ufefflabel,path,note\r\nred,./val/4.png,\r\n"bl,ue",train/cat/1.png,x\r\n')
    data = from_folder(tmp_path, (2, 2), 1, labels=table)
    assert data.class_names == ("bl,ue", "red") and data.labels.tolist() == [0, 1]
    assert data.images[:, 0, 0, 0].tolist() == [0, 3]
    assert data.notes == (
        "Files that were not used: 1 text.",
        "2 images not in the table of labels.",
    )


@pytest.mark.parametrize("as_labels", [str, int])
def test_a_table_of_labels_in_parquet(tmp_path, as_labels):
    for name in ("a.png", "deep/b.png", "other.png"):
        save(tmp_path / name, pixels(0, 2, 2, 3))
    labels = [as_labels(7), as_labels(3)]
    columns = pyarrow.table({"path": ["a.png", "deep/b.png"], "label": labels})
    parquet.write_table(columns, str(tmp_path / "labels.parquet"))
    data = from_folder(tmp_path, (2, 2), labels=tmp_path / "labels.parquet")
    assert data.names == ("a.png", "deep/b.png")
    assert data.class_names == ("3", "7") and data.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a.png"], "label": [None]}, "label strings or integers"),
        ({"path": ["a.png"], "label": [0.5]}, "label strings or integers"),
        ({"path": ["a.png"]}, "can't be read as Parquet with the columns path and label"),
        ({"path": ["a.png", "a.png"], "label": [1, None]}, "row 2 .* has no path or no label"),
        ({"path": ["../a.png"], "label": [1]}, r"row 1 .* relative to data\.directory"),
    ],
)
def test_parquet_that_is_no_table_of_labels(tmp_path, columns, message):
    save(tmp_path / "a.png", pixels(0, 2, 2, 3))
    parquet.write_table(pyarrow.table(columns), str(tmp_path / "labels.parquet"))
    with pytest.raises(UserError, match=message):
        from_folder(tmp_path, (2, 2), labels=tmp_path / "labels.parquet")
    content = (tmp_path / "labels.parquet").read_bytes()
    (tmp_path / "labels.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="can't be read as Parquet"):
        from_folder(tmp_path, (2, 2), labels=tmp_path / "labels.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must name the columns path and label"),
        (b"a,b\n1,2\n", "must name the columns path and label, it is 'a,b'"),
        (b"path,label\n", "lists no image"),
        (b"path,label\n1.png\n", "line 2 of .* has no path or no label"),
        (b"path,label\n../1.png,a\n", "paths are relative to data.directory"),
        (b"path,label\n/1.png,a\n", "paths are relative to data.directory"),
        (b"path,label\n2.png,a\n", "'2.png', which isn't in"),
        (b"path,label\n1.png,a\n./1.png,b\n", "line 3 of .* repeats 1.png"),
        (b"path,label\n1.png,\xff\n", "can't be read as CSV in UTF-8"),
        (b"path,label\n1.png," + b"x" * 200_000 + b"\n", "can't be read as CSV in UTF-8"),
        (b"path,label\n1.png\0,a\n", "relative to|can't be read"),
    ],
)
def test_tables_that_name_no_labels(tmp_path, content, message):
    save(tmp_path / "1.png", pixels(0, 2, 2))
    table = tmp_path / "labels.csv"
    table.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        from_folder(tmp_path, (2, 2), labels=table)
    assert "\n" not in str(error.value)


def test_a_set_larger_than_memory_names_streaming(tmp_path):
    save(tmp_path / "1.png", pixels(0, 2, 2))
    with pytest.raises(UserError, match="1 image.* GB .* available: .*data.streaming=True"):
        from_folder(tmp_path, (2**24, 2**24))


def test_a_folder_without_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="needs data.directory"):
        from_folder("", (2, 2))


# --- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_lossless_images_of_the_right_size_stay_as_they_are(tmp_path, ending):
    options = {"lossless": True} if ending == "webp" else {}
    save(tmp_path / f"a.{ending}", pixels(0, 5, 7, 3), **options)
    np.testing.assert_array_equal(only(tmp_path, (5, 7)), pixels(0, 5, 7, 3))


def test_resizing_is_antialiased_and_height_comes_first(tmp_path):
    # Stripes of one pixel: without antialiasing they would come out black or white.
    stripes = np.zeros((60, 40, 3), np.uint8)
    stripes[:, ::2] = 255
    stripes[30:] = 0
    save(tmp_path / "a.png", stripes)
    image = only(tmp_path, (6, 4))
    assert image.shape == (6, 4, 3)
    np.testing.assert_allclose(image[:2], 127.5, atol=8)
    np.testing.assert_array_equal(image[4:], 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_large_jpegs_keep_their_content(tmp_path, mode):
    y, x = np.mgrid[:600, :800]
    smooth = np.stack([x * 255 // 799, y * 255 // 599, 255 - x * 255 // 799], -1).astype(np.uint8)
    save(tmp_path / "a.jpg", Image.fromarray(smooth).convert(mode), quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        full = np.asarray(image.convert("RGB"), float)
    blocks = full.reshape(6, 100, 8, 100, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(only(tmp_path, (6, 8))[1:-1, 1:-1], blocks[1:-1, 1:-1], atol=4)


def test_grey_comes_as_grey_in_any_number_of_channels(tmp_path):
    grey = pixels(0, 4, 5)
    save(tmp_path / "a.png", grey)
    np.testing.assert_array_equal(only(tmp_path, (4, 5), 1), grey[..., None])
    np.testing.assert_array_equal(only(tmp_path, (4, 5), 3), np.repeat(grey[..., None], 3, -1))
    opaque = np.full((4, 5, 1), 255, np.uint8)
    expected = np.concatenate([np.repeat(grey[..., None], 3, -1), opaque], -1)
    np.testing.assert_array_equal(only(tmp_path, (4, 5), 4), expected)


def test_bilevel_and_palette(tmp_path):
    bits = pixels(0, 4, 5) > 127
    save(tmp_path / "a.png", Image.fromarray(bits))
    np.testing.assert_array_equal(only(tmp_path, (4, 5), 1)[..., 0], bits * 255)
    colours = np.array([[255, 0, 0], [0, 200, 0], [10, 20, 30]], np.uint8)
    index = pixels(1, 4, 5) % 3
    image = Image.fromarray(index, "L")
    image.putpalette(colours.tobytes())
    save(tmp_path / "a.png", image)
    np.testing.assert_array_equal(only(tmp_path, (4, 5)), colours[index])


def test_transparency_is_laid_on_white_or_kept(tmp_path):
    rgba = pixels(0, 4, 5, 4)
    rgba[..., 3] = [0, 255, 128, 64, 1]
    save(tmp_path / "a.png", rgba)
    alpha = rgba[..., 3:] / 255.0
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(only(tmp_path, (4, 5)), expected, atol=1)
    np.testing.assert_array_equal(only(tmp_path, (4, 5), 4), rgba)


def test_a_transparent_colour_is_laid_on_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "L")
    image.putpalette(bytes([0, 0, 0, 9, 9, 9]))
    save(tmp_path / "a.png", image, transparency=0)
    np.testing.assert_array_equal(only(tmp_path, (2, 2))[..., 0], [[255, 9], [9, 255]])
    save(tmp_path / "a.png", np.array([[50, 60]], np.uint8), transparency=60)
    np.testing.assert_array_equal(only(tmp_path, (1, 2), 1)[..., 0], [[50, 255]])


@pytest.mark.parametrize("colour", [0, 2, 4, 6], ids=["grey", "rgb", "grey+alpha", "rgba"])
def test_16_bit_images_are_scaled_not_clipped(tmp_path, colour):
    planes = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    values = np.random.default_rng(0).integers(0, 65536, (3, 4, planes)).astype(np.uint16)
    values[0, 0], values[0, 1] = 0, 65535
    if colour in (4, 6):
        values[..., -1] = 65535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    write_png(tmp_path / "a.png", 4, 3, 16, colour, rows)
    expected = values[..., : 3 if planes > 2 else 1] / 257
    np.testing.assert_allclose(only(tmp_path, (3, 4)), np.broadcast_to(expected, (3, 4, 3)), atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.kron(
        np.array([[0, 80, 160], [240, 120, 40]], np.uint8), np.ones((16, 16), np.uint8)
    )
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.jpg", np.ascontiguousarray(stored), exif=exif, quality=95)
    np.testing.assert_allclose(only(tmp_path, (32, 48), 1)[..., 0], upright, atol=12)


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_the_first_frame_of_an_animation_counts(tmp_path, ending):
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (10, 100, 200)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(only(tmp_path, (8, 8)), 10)


# --- broken files --------------------------------------------------------------------------------


def encoded(kind, array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def nasty_files(root):
    """Files that can't be read, and what must be said of each."""
    sound = pixels(0, 64, 64, 3)
    png = encoded("PNG", sound)
    bad_crc = bytearray(png)
    bad_crc[60] ^= 0xFF
    (root / "b_crc.png").write_bytes(bad_crc)
    (root / "empty.png").write_bytes(b"")
    (root / "folder_link.png").symlink_to(root / "nowhere")
    (root / "postscript.png").write_bytes(encoded("EPS", sound))
    (root / "random.jpg").write_bytes(np.random.default_rng(0).bytes(5000))
    (root / "text.webp").write_text("<html>not found</html>")
    for kind, ending in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")):
        data = encoded(kind, sound)
        (root / f"truncated_{ending}.{ending}").write_bytes(data[: len(data) // 2])
    # A header that promises 20,000 × 20,000 pixels (1.2 GB) in a file of a few hundred bytes.
    write_png(root / "enormous.png", 20_000, 20_000, 8, 2, b"\0" * 99)
    write_png(root / "large.png", 20_000, 15_000, 8, 0, b"\0" * 99)
    write_png(root / "zero.png", 0, 0, 8, 2, b"")
    os.mkfifo(root / "pipe.png")
    return {
        "b_crc.png": "",
        "empty.png": "empty file",
        "enormous.png": "are more than the",
        "folder_link.png": "broken link",
        "large.png": "are more than the",
        "pipe.png": "not a regular file",
        "postscript.png": "PostScript, no image",
        "random.jpg": "unknown, no image",
        "text.webp": "text, no image",
        "truncated_jpg.jpg": "truncated",
        "truncated_png.png": "truncated",
        "truncated_webp.webp": "",
        "zero.png": "",
    }


def test_nasty_files_are_skipped_and_listed_with_reasons(tmp_path):
    for i in range(5):
        save(tmp_path / f"good_{i}.png", np.full((64, 64, 3), 40 * i, np.uint8))
    expected = nasty_files(tmp_path)
    start = time.monotonic()
    data = from_folder(tmp_path, (4, 4), max_skipped=len(expected))
    assert time.monotonic() - start < 10
    np.testing.assert_array_equal(data.images[:, 0, 0, 0], [0, 40, 80, 120, 160])
    assert [line.split(": ")[0] for line in data.skipped] == sorted(expected)
    for line in data.skipped:
        assert expected[line.split(": ")[0]] in line and len(line.split(": ", 1)[1]) > 5, line
        assert "\n" not in line and str(tmp_path) not in line


def test_beyond_the_limit_the_run_stops(tmp_path):
    save(tmp_path / "good.png", pixels(0, 2, 2, 3))
    for i in range(4):
        (tmp_path / f"bad_{i}.png").write_bytes(b"x")
    assert len(from_folder(tmp_path, (2, 2), max_skipped=4).skipped) == 4
    with pytest.raises(
        UserError, match="more than 3 images .* last of them bad_3.png: its content is text"
    ):
        from_folder(tmp_path, (2, 2), max_skipped=3)


def test_labels_stay_with_their_images_when_some_are_skipped(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(60):
        path = save(tmp_path / f"class{i % 3}" / f"{i:02d}.png", np.full((2, 2, 3), i, np.uint8))
        if rng.random() < 0.4:
            path.write_bytes(b"x")
    data = from_folder(tmp_path, (2, 2))
    assert 10 < len(data.skipped) < 40
    assert len(data.images) == len(data.labels) == 60 - len(data.skipped)
    np.testing.assert_array_equal(data.images[:, 0, 0, 0] % 3, data.labels)


# --- streaming -----------------------------------------------------------------------------------


def test_a_stream_reads_what_the_memory_would_hold(tmp_path):
    for i in range(40):
        save(tmp_path / f"class{i % 3}" / f"{i:02d}.jpg", pixels(i, 30 + i, 50, 3))
    (tmp_path / "class1" / "07b.jpg").write_bytes(b"x")
    (tmp_path / "class2" / "08b.png").write_bytes(b"")
    whole, lazy = (from_folder(tmp_path, (6, 5), streaming=s) for s in (False, True))
    same = {"images": None, "labels": None, "digests": None}
    assert lazy._replace(**same) == whole._replace(**same)
    np.testing.assert_array_equal(lazy.digests, digests(whole.images))
    np.testing.assert_array_equal(lazy.labels, whole.labels)
    assert lazy.images.shape == whole.images.shape
    order = np.random.default_rng(0).permutation(40)
    read = np.concatenate(list(batches(lazy.images, order, 7)))
    np.testing.assert_array_equal(read, whole.images[order])


def test_a_stream_finds_what_is_damaged_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "root"
    root.mkdir()
    for i in range(3):
        save(root / f"good_{i}.png", np.full((64, 64, 3), 40 * i, np.uint8))
    expected = nasty_files(root)
    read = partial(from_folder, root, (4, 4), max_skipped=len(expected))
    data, whole = read(streaming=True), read()
    assert data.skipped == whole.skipped and len(data.images) == 3
    np.testing.assert_array_equal(data.images[:], whole.images)
    with pytest.raises(UserError, match="more than 0 images"):
        from_folder(root, (4, 4), max_skipped=0, streaming=True)
    # What is known is not decoded again, until a file changes.
    monkeypatch.setattr(folder, "decode", lambda *_, **__: pytest.fail("decoded again"))
    assert read(streaming=True).skipped == data.skipped
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (root / "good_1.png").write_bytes(b"x")
    assert len(read(streaming=True, max_skipped=99).images) == 2
    (root / "good_0.png").write_bytes(b"x")
    with pytest.raises(UserError, match="^good_0.png in .* can no longer be decoded"):
        data.images[0]


def test_a_stream_tells_its_files_apart_by_name_and_size(tmp_path):
    def identity():
        return from_folder(tmp_path, (2, 2), streaming=True).images.identity

    save(tmp_path / "a" / "1.png", pixels(0, 2, 2, 3))
    found = [identity()]
    save(tmp_path / "a" / "2.png", pixels(0, 2, 2, 3))
    found.append(identity())
    save(tmp_path / "a" / "2.png", pixels(0, 9, 9, 3))
    found.append(identity())
    (tmp_path / "a" / "2.png").rename(tmp_path / "a" / "3.png")
    found.append(identity())
    assert len(set(found)) == 4 and identity() == found[-1]
