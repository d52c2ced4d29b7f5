"""TFDS sets, and CIFAR-10's preparation from a local server, on real files."""

import functools
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval_jax.data.stream import batches
from retrieval_jax.data.tfds import from_tfds
from retrieval_jax.runtime.errors import UserError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def temporary_files(tmp_path_factory, monkeypatch):
    """TFDS leaves a temporary folder behind each split that it writes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


# --- sets prepared by a builder of the test ------------------------------------------------------


def prepare(directory, features, splits, set_name="shapes", supervised=None):
    """Prepares a TFDS set of PIL images from {split: [record, ...]}."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Shapes(tfds.core.GeneratorBasedBuilder):
            name = set_name
            VERSION = tfds.core.Version("1.2.3")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features(tfds.features)),
                    supervised_keys=supervised,
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(splits[split]) for split in splits}

            def _generate_examples(self, records):
                yield from enumerate(records)

    builder = Shapes(data_dir=directory)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config, file_format="array_record")


def picture(seed, shape=(5, 7, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def record(seed, label, shape=(5, 7, 3)):
    return {"image": Image.fromarray(picture(seed, shape)), "label": label}


def image_and_label(shape=(5, 7, 3), **names):
    names = names or {"names": ["circle", "square"]}
    return lambda f: {"image": f.Image(shape=shape), "label": f.ClassLabel(**names)}


def test_labelled_splits_are_concatenated_train_first(tmp_path):
    splits = {
        "test": [record(0, 1), record(1, 0)],
        "extra": [record(2, 0)],
        "train": [record(3, 1), record(4, 0), record(5, 1)],
        "unlabelled": [record(6, -1), record(7, -1)],
    }
    prepare(tmp_path, image_and_label(), splits)
    data = from_tfds("shapes", tmp_path)
    expected = np.stack([picture(seed) for seed in (3, 4, 5, 2, 0, 1)])
    np.testing.assert_array_equal(data.images, expected)
    np.testing.assert_array_equal(data.labels, [1, 0, 1, 0, 1, 0])
    assert data.images.dtype == np.uint8 and data.labels.dtype == np.int32
    assert data.class_names == ("circle", "square")
    assert data.description == "shapes, 6 images of 5×7×3, TFDS shapes/1.2.3"


def test_more_records_than_one_batch_keep_their_order(tmp_path):
    records = [{"image": Image.fromarray(np.full((2, 3), i % 251, np.uint8)), "label": i % 2}
               for i in range(600)]  # fmt: skip
    prepare(tmp_path, image_and_label((2, 3, 1)), {"train": records})
    data = from_tfds("shapes:1.2.3", tmp_path)
    assert data.images.shape == (600, 2, 3, 1)
    np.testing.assert_array_equal(data.images[:, 1, 2, 0], np.arange(600) % 251)
    np.testing.assert_array_equal(data.labels, np.arange(600) % 2)


def test_images_come_in_the_declared_channels_however_they_are_stored(tmp_path):
    grey = Image.fromarray(picture(0, (5, 7)))
    palette = Image.fromarray(picture(1)).quantize(4)
    splits = {"train": [{"image": grey, "label": 0}, {"image": palette, "label": 1}]}
    prepare(tmp_path, image_and_label((None, None, 3)), splits)
    images = from_tfds("shapes", tmp_path).images
    np.testing.assert_array_equal(images[0], np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    np.testing.assert_array_equal(images[1], np.asarray(palette.convert("RGB")))


def test_class_names_are_numbers_where_the_set_has_none(tmp_path):
    prepare(tmp_path, image_and_label(num_classes=3), {"train": [record(0, 2)]})
    assert from_tfds("shapes", tmp_path).class_names == ("0", "1", "2")


def test_the_supervised_pair_is_chosen_among_several_labels(tmp_path):
    def features(f):
        return {
            "image": f.Image(shape=(5, 7, 3)),
            "coarse": f.ClassLabel(num_classes=2),
            "label": f.ClassLabel(num_classes=9),
        }

    records = [{**record(0, 8), "coarse": 1}]
    prepare(tmp_path, features, {"train": records}, supervised=("image", "label"))
    assert from_tfds("shapes", tmp_path).labels.tolist() == [8]
    prepare(tmp_path, features, {"train": records}, "both")
    with pytest.raises(UserError, match="1 image and 2 class label features"):
        from_tfds("both", tmp_path)


def test_a_stream_reads_what_the_memory_would_hold(tmp_path):
    splits = {
        "test": [record(i, i % 3 - 1) for i in range(30)],  # a third of them without a label
        "train": [record(i, i % 2) for i in range(30, 70)],
    }
    prepare(tmp_path, image_and_label(), splits)
    whole, lazy = (from_tfds("shapes", tmp_path, streaming=s) for s in (False, True))
    assert lazy.description == whole.description and lazy.class_names == whole.class_names
    np.testing.assert_array_equal(lazy.labels, whole.labels)
    assert lazy.images.shape == whole.images.shape == (60, 5, 7, 3)
    assert "array_record" in lazy.images.identity
    order = np.random.default_rng(0).permutation(60)
    read = np.concatenate(list(batches(lazy.images, order, 9)))
    np.testing.assert_array_equal(read, whole.images[order])


def test_a_stream_finds_what_is_damaged_before_it_begins(tmp_path):
    unequal = [record(0, 0), record(1, 1, (6, 7, 3))]
    prepare(tmp_path / "a", image_and_label((None, None, 3)), {"train": unequal})
    with pytest.raises(UserError, match="differ in shape, .5, 7, 3. and .6, 7, 3."):
        from_tfds("shapes", tmp_path / "a", streaming=True)
    prepare(tmp_path / "b", image_and_label(), {"train": [record(i % 3, 0) for i in range(9)]})
    data = from_tfds("shapes", tmp_path / "b", streaming=True)
    np.testing.assert_array_equal(data.images[0], picture(0))
    assert len(set(data.digests.tolist())) == 3 and data.digests[0] == data.digests[3]
    garble(shard(tmp_path / "b"))
    with pytest.raises(UserError, match="incomplete or damaged"):
        from_tfds("shapes", tmp_path / "b", streaming=True)


def test_a_set_that_was_prepared_again_is_read_again(tmp_path):
    for seed in (0, 1):
        prepare(tmp_path, image_and_label(), {"train": [record(seed, seed)]})
        for _ in range(2):
            data = from_tfds("shapes", tmp_path)
            np.testing.assert_array_equal(data.images[0], picture(seed))
            assert data.labels.tolist() == [seed]
        shutil.rmtree(tmp_path / "shapes")


@pytest.mark.parametrize(
    ("features", "records", "message"),
    [
        (lambda f: {"image": f.Image()}, [{"image": Image.new("RGB", (7, 5))}], "0 class label"),
        (lambda f: {"label": f.ClassLabel(num_classes=2)}, [{"label": 1}], "0 image and 1 class"),
        (image_and_label((5, 7, 3)), [record(0, -1)], "no labelled image"),
        (image_and_label((None, None, 3)), [record(0, 0), record(1, 1, (6, 7, 3))], "differ in"),
        (image_and_label((5, 7, 2)), [{**record(0, 0, (5, 7, 3))}], "1, 3 or 4 channels"),
    ],
    ids=["no label", "no image", "unlabelled", "unequal", "two channels"],
)  # fmt: skip
def test_unsuitable_sets_are_refused(tmp_path, features, records, message):
    prepare(tmp_path, features, {"train": records})
    with pytest.raises(UserError, match=message):
        from_tfds("shapes", tmp_path)


@pytest.fixture
def prepared(tmp_path):
    prepare(tmp_path, image_and_label(), {"train": [record(i, i % 2) for i in range(50)]})
    return tmp_path


def shard(root):
    return next(root.glob("shapes/1.2.3/*array_record*"))


def remove(path):
    path.unlink()


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def garble(path):
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [remove, halve, garble])
@pytest.mark.parametrize("file", ["shard", "dataset_info.json", "features.json"])
def test_incomplete_and_damaged_sets_get_one_sentence(prepared, damage, file):
    path = shard(prepared) if file == "shard" else prepared / "shapes/1.2.3" / file
    damage(path)
    with pytest.raises(UserError, match="shapes") as error:
        from_tfds("shapes", prepared)
    assert "\n" not in str(error.value)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("said", [3, 51, 10**12, -1])
def test_counts_are_those_of_the_record_files(prepared, said):
    def change(info):
        info["splits"][0]["shardLengths"] = [str(said)]

    edit(prepared / "shapes/1.2.3/dataset_info.json", change)
    with pytest.raises(UserError, match=f"says that .* holds {said:,} records, but it holds 50"):
        from_tfds("shapes", prepared)


def test_labels_are_among_the_names(prepared):
    def change(features):
        features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "1"

    edit(prepared / "shapes/1.2.3/features.json", change)
    (prepared / "shapes/1.2.3/label.labels.txt").write_text("circle\n")
    with pytest.raises(UserError, match="has the label 1 but names 1 classes"):
        from_tfds("shapes", prepared)


def test_records_without_a_label_are_counted(tmp_path):
    prepare(tmp_path, image_and_label(), {"train": [record(i, i % 3 - 1) for i in range(9)]})
    assert from_tfds("shapes", tmp_path).notes == (
        "Records without a label, which are left out: 3.",
    )


CLASS = "hostile_feature.Evil"


@pytest.mark.parametrize(
    "feature",
    [
        {"pythonClassName": CLASS, "image": {}},
        {"python_class_name": CLASS, "image": {}},
        {"type": CLASS, "content": {}},
        {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "jsonFeature": {"json": json.dumps({"x": {"type": CLASS, "content": {}}})},
        },
    ],
    ids=["proto", "snake", "legacy", "json in json"],
)
def test_a_set_runs_no_code(prepared, feature, monkeypatch):
    (prepared / "hostile_feature.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(prepared)  # as `python -m` has the current directory
    features = prepared / "shapes/1.2.3/features.json"
    edit(features, lambda content: content["featuresDict"]["features"].update(image=feature))
    with pytest.raises(UserError, match="names code to import, 'hostile_feature.Evil'"):
        from_tfds("shapes", prepared)
    features.write_text(json.dumps(feature))
    with pytest.raises(UserError, match="names code to import"):
        from_tfds("shapes", prepared)


def test_pipes_and_nesting_without_end_get_one_sentence(prepared):
    features = prepared / "shapes/1.2.3/features.json"
    features.write_text("[" * 100_000)
    with pytest.raises(UserError, match="can't open 'shapes'"):
        from_tfds("shapes", prepared)
    path = shard(prepared)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        from_tfds("shapes", prepared)


def test_a_format_without_random_access_is_named(prepared):
    path = prepared / "shapes/1.2.3/dataset_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="stored as tfrecord: prepare it with --file_format=array"):
        from_tfds("shapes", prepared)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist", "mnist is not prepared in .*tfds build mnist"),
        ("shapes:9.9.9", "knows no data set 'shapes:9.9.9'"),
        ("cifar", "did you mean cifar10 or"),
        ("", "check the name"),
        ("../shapes", "check the name"),
        ("a\nb", "check the name"),
        ("huggingface:mnist", "knows no data set"),
    ],
)
def test_unknown_and_odd_names_get_one_sentence(prepared, name, message):
    with pytest.raises(UserError, match=message) as error:
        from_tfds(name, prepared)
    assert "\n" not in str(error.value)


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere isn't there: create it"):
        from_tfds("cifar10", tmp_path / "nowhere")
    with pytest.raises(UserError, match="~nobody-of-this-name isn't there"):
        from_tfds("cifar10", "~nobody-of-this-name")


# --- CIFAR-10 ------------------------------------------------------------------------------------


def write_archive(path: Path, per_file: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A small archive in the official format; its images and labels by file, planes first."""
    rng = np.random.default_rng(0)
    content, files = {"batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode()}, {}
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        labels = rng.integers(0, 10, per_file, np.uint8)
        planes = rng.integers(0, 256, (per_file, 3, 32, 32), np.uint8)
        files[name] = labels, planes
        records = np.concatenate([labels[:, None], planes.reshape(per_file, -1)], axis=1)
        content[name] = records.tobytes()
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return files


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `tmp_path/served` over HTTP from this machine; yields (folder, address)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "served").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_cifar10_downloads_and_prepares_the_official_format(tmp_path, server):
    from retrieval_jax.data.cifar10 import prepare as prepare_cifar10

    served, address = server
    files = write_archive(served / "cifar-10-binary.tar.gz", per_file=4)
    root = tmp_path / "data"
    (root / "cifar10/incomplete.ABC_3.0.2").mkdir(parents=True)  # what a killed preparation leaves
    prepare_cifar10(root, f"{address}/cifar-10-binary.tar.gz")
    data = from_tfds("cifar10", root)
    assert data.images.shape == (24, 32, 32, 3)
    assert data.class_names == tuple(NAMES)
    assert data.description == "CIFAR-10, 24 images of 32×32×3, TFDS cifar10/3.0.2"
    # TFDS shuffles each split; as sets of (label, pixels) both sides must agree, losslessly.
    actual = [(int(y), x.tobytes()) for x, y in zip(data.images, data.labels, strict=True)]
    expected = [
        (int(y), p.transpose(1, 2, 0).tobytes())
        for labels, planes in files.values()
        for y, p in zip(labels, planes, strict=True)
    ]
    assert actual != expected
    assert sorted(actual[:20]) == sorted(expected[:20])  # train
    assert sorted(actual[20:]) == sorted(expected[20:])  # test


def test_cifar10_builder_declares_what_tfds_own_declares(tmp_path):
    from tensorflow_datasets.image_classification.cifar import Cifar10 as Stock

    from retrieval_jax.data.cifar10 import URL, Cifar10

    ours, stock = Cifar10(data_dir=tmp_path), Stock(data_dir=tmp_path)
    assert ours.info.full_name == stock.info.full_name
    assert ours.data_dir == stock.data_dir
    assert ours.info.features.to_json() == stock.info.features.to_json()
    assert ours.info.supervised_keys == stock.info.supervised_keys
    assert (
        URL
        in Path(sys.modules["tensorflow_datasets"].__file__)
        .with_name("url_checksums")
        .joinpath("cifar10.txt")
        .read_text()
    )


def test_an_archive_with_a_wrong_checksum_is_refused(tmp_path):
    manual = tmp_path / "downloads/manual"
    manual.mkdir(parents=True)
    write_archive(manual / "cifar-10-binary.tar.gz", per_file=1)
    with pytest.raises(UserError, match="damaged or not the official one"):
        from_tfds("cifar10", tmp_path)
    assert not (tmp_path / "cifar10/3.0.2").exists()


def test_a_server_without_the_archive_says_what_to_do(tmp_path, server):
    from retrieval_jax.data.cifar10 import prepare as prepare_cifar10

    with pytest.raises(UserError, match="can't be downloaded .*downloads/manual"):
        prepare_cifar10(tmp_path, f"{server[1]}/cifar-10-binary.tar.gz")


def test_a_broken_archive_gets_one_sentence(tmp_path, server):
    from retrieval_jax.data.cifar10 import prepare as prepare_cifar10

    served, address = server
    write_archive(served / "cifar-10-binary.tar.gz", per_file=1)
    halve(served / "cifar-10-binary.tar.gz")
    with pytest.raises(UserError, match="can't be prepared"):
        prepare_cifar10(tmp_path, f"{address}/cifar-10-binary.tar.gz")
    assert not (tmp_path / "cifar10/3.0.2").exists()


def test_without_a_network_one_sentence_comes_soon(tmp_path, monkeypatch):
    # A proxy at a closed port stands for a machine without a network.
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    with pytest.raises(UserError, match="not prepared .*put it into .*downloads/manual") as error:
        from_tfds("cifar10", tmp_path)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 30


def test_half_a_cifar10_is_not_overwritten(tmp_path):
    target = tmp_path / "cifar10/3.0.2"
    target.mkdir(parents=True)
    (target / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="not a complete TFDS data set: remove it"):
        from_tfds("cifar10", tmp_path)
    assert (target / "dataset_info.json").exists()


def test_a_set_of_jpeg_files_is_called_a_mirror(tmp_path):
    def jpeg(seed):
        file = io.BytesIO()
        Image.fromarray(picture(seed, (32, 32, 3))).save(file, "JPEG")
        return file.getvalue()

    records = [{"image": jpeg(i), "label": i} for i in range(10)]
    features = image_and_label((32, 32, 3), num_classes=10)
    prepare(tmp_path, features, {"train": records}, "cifar10")
    data = from_tfds("cifar10", tmp_path)
    assert data.description.startswith("CIFAR-10 (JPEG mirror), 10 images")


def test_tensorflow_is_not_imported_and_tfds_only_on_use(prepared):
    code = """
import sys
import retrieval_jax.data.tfds as source
from retrieval_jax.data import folder, images, npz, split
assert "tensorflow_datasets" not in sys.modules
assert len(source.from_tfds("shapes", sys.argv[1]).images) == 50
import retrieval_jax.data.cifar10
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(prepared)], check=True, timeout=120)


def test_real_cifar10():
    directory = os.environ.get("RETRIEVAL_JAX_CIFAR10")
    if not directory:
        pytest.skip("RETRIEVAL_JAX_CIFAR10 names no TFDS data directory with real CIFAR-10")
    data = from_tfds("cifar10", directory)
    assert data.images.shape == (60_000, 32, 32, 3)
    assert data.class_names == tuple(NAMES)
    np.testing.assert_array_equal(np.bincount(data.labels), np.full(10, 6000))
    np.testing.assert_array_equal(np.bincount(data.labels[:50_000]), np.full(10, 5000))
    # Published channel means of the train split.
    means = data.images[:50_000].mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=2e-3)
