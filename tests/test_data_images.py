"""Digits, names, and arrays from .npz files."""

import os
import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits

from retrieval_jax.data.images import describe_images, digits
from retrieval_jax.data.npz import from_npz
from retrieval_jax.runtime.errors import UserError, printable, reason


def test_digits_are_scikit_learns_stretched_to_bytes():
    data, reference = digits(), load_digits()
    assert data.images.shape == (1797, 8, 8, 1) and data.images.dtype == np.uint8
    assert data.images.min() == 0 and data.images.max() == 255
    back = np.round(data.images.reshape(1797, 64).astype(float) * 16 / 255)
    np.testing.assert_array_equal(back, reference.data)
    np.testing.assert_array_equal(data.labels, reference.target)
    assert data.labels.dtype == np.int32
    assert data.class_names == tuple("0123456789")
    assert data.description == "scikit-learn digits, 1,797 images of 8×8×1"
    assert data.skipped == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "cat"),
        ("<b>&'\"$x_1$", "<b>&'\"$x_1$"),  # markup is the writers' affair
        ("naïve 猫 🐈", "naïve 猫 🐈"),
        ("a\nb\tc\x00", "a\\nb\\tc\\x00"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (os.fsdecode(b"caf\xe9"), "caf\\udce9"),
        ("\ud800", "\\ud800"),
    ],
)
def test_names_become_one_line_of_valid_unicode(name, expected):
    assert printable(name) == expected
    expected.encode("utf-8")


def test_reason_is_one_short_line():
    assert reason(ValueError("bad chunk.\nlong story")) == "bad chunk"
    assert reason(KeyError()) == "KeyError"
    assert len(reason(ValueError("x" * 9999))) <= 200


def test_describe_images():
    assert describe_images(np.zeros((1, 2, 3, 4), np.uint8)) == "1 image of 2×3×4"


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_npz_with_labels_and_names(tmp_path):
    images, labels = pixels(5, 4, 6, 3), np.array([2, 0, 1, 1, 2], np.uint8)
    names = np.array(["cat", "dog", "<猫>\n"])
    path = save(tmp_path / "a.npz", images=images, labels=labels, class_names=names)
    data = from_npz(path)
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.labels.dtype == np.int32
    assert data.class_names == ("cat", "dog", "<猫>\\n")
    assert data.description == f"{path}, 5 images of 4×6×3"


def test_npz_without_labels_and_channel(tmp_path):
    images = np.asfortranarray(pixels(5, 4, 6))
    np.savez_compressed(tmp_path / "a.npz", images=images)
    data = from_npz(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(data.images, images[..., None])
    assert data.images.flags.c_contiguous
    assert data.labels is None and data.class_names == ()


def test_npz_labels_with_gaps_keep_their_numbers_as_names(tmp_path):
    labels = np.array([7, 3, 3, 100], np.int64)
    data = from_npz(save(tmp_path / "a.npz", images=pixels(4, 2, 2), labels=labels))
    assert data.labels.tolist() == [1, 0, 0, 2]
    assert data.class_names == ("3", "7", "100")


def test_npz_names_may_cover_classes_without_images(tmp_path):
    arrays = {"labels": np.array([2, 2]), "class_names": np.array(["a", "b", "c"])}
    data = from_npz(save(tmp_path / "a.npz", images=pixels(2, 2, 2), **arrays))
    assert data.labels.tolist() == [2, 2] and data.class_names == ("a", "b", "c")


GOOD = {
    "images": pixels(3, 4, 4, 3),
    "labels": np.array([0, 1, 0]),
    "class_names": np.array(["a", "b"]),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "no array called 'images'"),
        ({"label": np.zeros(3, int)}, "an array called 'label'"),
        ({"images": GOOD["images"] / 255}, "float64: save them as uint8"),
        ({"images": GOOD["images"].astype(np.int64)}, "int64: save them as uint8"),
        ({"images": GOOD["images"][0, 0]}, r"shape \[4, 3\]"),
        ({"images": GOOD["images"][:0]}, r"shape \[0, 4, 4, 3\]"),
        ({"images": GOOD["images"][..., :0]}, "at least one pixel"),
        ({"images": GOOD["images"][None]}, "shape"),
        ({"labels": np.array([0, 1])}, "one label per image, .3."),
        ({"labels": np.array([[0], [1], [0]])}, "one label per image"),
        ({"labels": np.array([0.0, 1.0, 0.0])}, "float64: save them as integers"),
        ({"labels": np.array([True, False, True])}, "bool: save them as integers"),
        ({"labels": np.array(["a", "b", "a"])}, "save them as integers"),
        ({"labels": np.array([0, -1, 0])}, "down to -1"),
        ({"labels": np.array([0, 2, 0])}, "up to 2, but there are 2 class_names"),
        ({"labels": np.array([0, 2**63, 0], np.uint64)}, "but there are 2"),
        ({"class_names": np.array([["a", "b"]])}, "one-dimensional array of strings"),
        ({"class_names": np.array([b"a", b"b"])}, "array of strings"),
        ({"labels": None}, "class_names and no labels"),
        ({"images": np.array([1, "a"], object)}, "can't be read as an .npz of plain arrays"),
        ({"class_names": np.array(["a", "b"], object)}, "without object arrays"),
    ],
)
def test_wrong_arrays_get_one_sentence(tmp_path, change, message):
    arrays = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(UserError, match=message) as error:
        from_npz(save(tmp_path / "a.npz", **arrays))
    assert "\n" not in str(error.value)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "is not a file"),
        (lambda p: p.mkdir(), "is not a file"),
        (lambda p: p.write_bytes(b""), "can't be read"),
        (lambda p: p.write_text("hello"), "can't be read"),
        (
            lambda p: np.save(p.with_suffix(".npy"), [0.0]) or p.with_suffix(".npy").rename(p),
            "holds a single array",
        ),
        (lambda p: os.truncate(save(p, **GOOD), 200), "can't be read"),
        (lambda p: flip_a_byte(save(p, **GOOD)), "can't be read"),
        (lambda p: p.write_bytes(pickle.dumps(Bomb(p.with_name("boom")))), "can't be read"),
        (lambda p: save(p, images=np.array([Bomb(p.with_name("boom"))])), "without object arrays"),
    ],
    ids=["missing", "folder", "empty", "text", "npy", "truncated", "damaged", "pickle", "object"],
)
def test_wrong_files_get_one_sentence_and_nothing_is_unpickled(tmp_path, make, message):
    make(tmp_path / "a.npz")
    with pytest.raises(UserError, match=message) as error:
        from_npz(tmp_path / "a.npz")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "boom").exists()
