"""Data sets of the library `datasets`, made here: nothing is downloaded."""

import numpy as np
import pytest
from PIL import Image

from retrieval_jax.data.huggingface import from_huggingface
from retrieval_jax.runtime.errors import UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """DIR/split/class/file, each image of one grey."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    for value, place in enumerate(["train/dog", "train/cat", "test/cat", "train/dog"]):
        path = tmp_path / "set" / place
        path.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (20 * value,) * 3).save(path / f"{value}.png")
    return tmp_path / "set"


def test_a_folder_of_images(folder):
    data = from_huggingface(str(folder), (2, 3))
    assert data.images.shape == (4, 2, 3, 3) and data.images.dtype == np.uint8
    greys, names = data.images[:, 0, 0, 0].tolist(), data.names
    assert data.class_names == ("cat", "dog") and data.labels.dtype == np.int32
    of_image = {
        name: (grey, label)
        for name, grey, label in zip(names, greys, data.labels.tolist(), strict=True)
    }
    assert of_image == {"0.png": (0, 1), "1.png": (20, 0), "2.png": (40, 0), "3.png": (60, 1)}
    assert data.names[-1] == "2.png"  # the test split comes last
    assert data.skipped == ()


def test_what_is_saved_to_disk_and_a_damaged_image(folder, tmp_path):
    (folder / "train" / "cat" / "1.png").write_bytes(b"\x89PNG nothing")
    datasets.load_dataset(str(folder)).save_to_disk(str(tmp_path / "saved"))
    data = from_huggingface(str(tmp_path / "saved"), (2, 2), channels=1)
    assert data.images.shape == (3, 2, 2, 1) and data.labels.tolist() == [1, 1, 0]
    assert len(data.skipped) == 1 and data.skipped[0].startswith("1.png: ")
    with pytest.raises(UserError, match="more than data.max_skipped=0 images"):
        from_huggingface(str(tmp_path / "saved"), (2, 2), max_skipped=0)


def test_sets_without_labels_and_without_images(tmp_path):
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    features = datasets.Features({"photo": datasets.Image(), "n": datasets.Value("int64")})
    rows = {"photo": [str(tmp_path / "a.png"), None], "n": [1, 2]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    data = from_huggingface(str(tmp_path / "saved"), (2, 2), channels=1)
    assert data.labels is None and data.images.ravel().tolist() == [9] * 4
    assert len(data.skipped) == 1  # a row without an image
    datasets.Dataset.from_dict({"n": [1]}).save_to_disk(str(tmp_path / "numbers"))
    with pytest.raises(UserError, match="0 columns of images"):
        from_huggingface(str(tmp_path / "numbers"), (2, 2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="can't be read as a data set"):
        from_huggingface(str(tmp_path / "empty"), (2, 2))
