"""An index of photos: made, asked, changed, damaged."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import faiss
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from etils import epath
from PIL import Image

from retrieval_jax.embedder import Embedder
from retrieval_jax.main import main
from retrieval_jax.models import Encoder as ConvolutionalEncoder
from retrieval_jax.models import Network
from retrieval_jax.photos import PhotoIndex, export, store
from retrieval_jax.photos.duplicates import mirrored
from retrieval_jax.photos.encoders import Encoder, ready_embeddings
from retrieval_jax.photos.reading import perceptual_hash
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.model_file import save_model


def coarse(images):
    """An encoder that is not trained: colours of 4 × 4 cells."""
    n, h, w, c = images.shape
    cells = images.reshape(n, 4, h // 4, 4, w // 4, c).mean((2, 4))
    return cells.reshape(n, -1) / 255 - 0.5


ENCODER = Encoder(
    {"kind": "function", "name": "test_photos:coarse"},
    (32, 32, 3),
    True,
    lambda batch: Embedder.from_function(coarse, batch=batch),
)


def picture(seed, side=64):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for i in range(30):
        place = root / f"{i % 3}" / "deep"
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place / f"{i:02}.png")
    (root / "notes.txt").write_text("not a photo")
    (root / "0" / "broken.jpg").write_bytes(b"\xff\xd8\xffnothing")
    (root / ".hidden.png").write_bytes((root / "0" / "deep" / "00.png").read_bytes())
    return root


@pytest.fixture
def index(folder, tmp_path):
    made, changes = PhotoIndex.create(tmp_path / "index", folder, encoder=ENCODER, clusters=5)
    assert len(changes.added) == 30
    (line,) = changes.unreadable
    assert "broken.jpg" in line
    return made


def opened(index):
    return PhotoIndex.open(index._directory, ENCODER)


def expected_order(vector, content):
    """Row numbers, nearest first, in float64."""
    return np.argsort(-(content.rows.astype(np.float64) @ vector.astype(np.float64)))


def test_a_search_of_all_clusters_is_exact(index, tmp_path):
    picture(100).save(tmp_path / "query.jpg")
    found = opened(index).query(tmp_path / "query.jpg", 7, probes=None)
    vector, content = index.embed(tmp_path / "query.jpg"), index.content
    order = expected_order(vector, content)[:7]
    assert found.paths == [content.photos.paths[row] for row in order]
    exact = 1 - content.rows[order].astype(np.float64) @ vector
    np.testing.assert_allclose(found.distances, exact, atol=1e-5)
    assert found.clusters.tolist() == content.clusters[order].tolist()


def test_a_search_of_some_clusters_is_exact_in_them_and_finds_enough(index, folder):
    content = index.content
    for probes in (1, 2):
        vector = index.embed(folder / "1" / "deep" / "01.png")
        cells = np.argsort(-(content.centroids @ vector))[:probes]
        inside = [r for r in expected_order(vector, content) if content.clusters[r] in cells][:3]
        found = index.nearest(vector, 3, probes)
        assert found.paths[: len(inside)] == [content.photos.paths[row] for row in inside]
    assert len(index.nearest(vector, 30, probes=1).paths) == 30
    assert len(index.nearest(vector, 99, probes=1).paths) == 30


def test_photos_are_added_removed_and_refreshed(index, folder, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    picture(50).save(more / "50.png")
    added = opened(index).add(more)
    assert added.added == [str(more / "50.png")]
    now = opened(index)
    assert len(now) == 31
    assert now.query(more / "50.png", 1).paths == [str(more / "50.png")]
    gone, changed, touched = (folder / "0" / "deep" / f"{name}.png" for name in ("00", "03", "06"))
    now.remove([gone])
    (folder / "1" / "deep" / "01.png").unlink()
    picture(60).save(changed)
    os.utime(touched, (1, 1))
    picture(61).save(folder / "new.png")
    found = opened(index).refresh()
    assert found.added == [str(folder / "new.png")]
    assert found.changed == [str(changed)]
    assert found.removed == [str(folder / "1" / "deep" / "01.png")]
    last = opened(index)
    assert str(gone) not in last.content.photos.paths
    assert last.query(changed, 1).distances[0] < 1e-3
    assert last.refresh()[:3] == ([], [], [])
    assert len(list(index._directory.glob("rows-*"))) == 1
    with pytest.raises(UserError, match="is not in the index"):
        last.remove(["nowhere.png"])


def test_an_interrupted_index_goes_on(folder, tmp_path, monkeypatch):
    from retrieval_jax.photos import reading

    monkeypatch.setattr(reading, "_CHUNK", 8)
    seen = []

    def counting(images):
        seen.append(len(images))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return coarse(images)

    def encoder(function):
        return ENCODER._replace(embedder=lambda _: Embedder.from_function(function, batch=8))

    with pytest.raises(KeyboardInterrupt):
        PhotoIndex.create(tmp_path / "i", folder, encoder=encoder(counting), clusters=5)
    assert not store.exists(tmp_path / "i")
    calls = []
    resumed, _ = PhotoIndex.create(
        tmp_path / "i",
        folder,
        encoder=encoder(lambda images: (calls.append(1), coarse(images))[1]),
        clusters=5,
    )
    assert len(calls) == 2  # 31 files, 16 of them done
    assert len(resumed) == 30
    assert not (tmp_path / "i" / "parts").exists()


def test_two_writers_and_a_full_disk_leave_the_index_whole(index, folder, tmp_path, monkeypatch):
    before = sorted(p.name for p in index._directory.iterdir())
    with (
        store.only_writer(index._directory),
        pytest.raises(UserError, match="another process is writing"),
    ):
        index.remove([folder / "0"])
    monkeypatch.setattr(store, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(UserError, match="full|No space"):
        index.remove([folder / "0"])
    monkeypatch.undo()
    assert sorted(p.name for p in index._directory.iterdir()) == before
    assert len(opened(index)) == 30


def test_damaged_and_foreign_indexes_are_refused(index, tmp_path):
    directory = index._directory
    manifest = json.loads((directory / "index.json").read_text())

    def refused(match, **changes):
        (directory / "index.json").write_text(json.dumps(manifest | changes))
        with pytest.raises(UserError, match=match):
            PhotoIndex.open(directory, ENCODER)

    refused("has format 2", format=2)
    refused("damaged", photos=31)
    refused("damaged", files={})
    files = manifest["files"]
    refused("damaged", files=files | {"rows": files["rows"] | {"name": "../rows-x.npy"}})
    refused("another encoder", encoder={"kind": "function", "name": "other"})
    (directory / "index.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="can't be read"):
        PhotoIndex.open(directory)
    (directory / "index.json").write_text(json.dumps(manifest))
    paths = directory / files["paths"]["name"]
    paths.write_bytes(paths.read_bytes().replace(b"00.png", b"99.png"))
    with pytest.raises(UserError, match="checksum"):
        PhotoIndex.open(directory)
    with pytest.raises(UserError, match="holds no index"):
        PhotoIndex.open(tmp_path)


def test_a_link_in_place_of_the_lock_is_refused(index, tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("the user's")
    (index._directory / ".lock").unlink()
    (index._directory / ".lock").symlink_to(precious)
    with pytest.raises(UserError, match=r"\.lock"):
        index.remove([index.content.photos.paths[0]])
    assert precious.read_text() == "the user's"


@pytest.mark.parametrize("name", ["parts/engine.png", "photos-2024.npz", "x/y.txt"])
def test_a_folder_of_the_user_becomes_no_index(folder, tmp_path, name):
    place = tmp_path / "place" / name
    place.parent.mkdir(parents=True)
    place.write_text("the user's")
    with pytest.raises(UserError, match="holds other files, such as"):
        PhotoIndex.create(tmp_path / "place", folder, encoder=ENCODER, clusters=5)
    assert [path for path in (tmp_path / "place").rglob("*") if path.is_file()] == [place]


def test_other_paths_of_a_file_are_no_copies(folder, tmp_path):
    first, second = folder / "0" / "deep" / "00.png", folder / "1" / "deep" / "01.png"
    (folder / "a-link.png").symlink_to(first)
    (folder / "another.png").symlink_to(second)
    (folder / "copy.png").write_bytes(second.read_bytes())
    for name in ("23", "26", "29"):  # 30 again, for which k-means is compiled
        (folder / "2" / "deep" / f"{name}.png").unlink()
    made, _ = PhotoIndex.create(tmp_path / "index", folder, encoder=ENCODER, clusters=5)
    assert len(made) == 30
    (group,) = made.duplicates(0.001).groups
    assert sorted(group) == sorted([str(second), str(folder / "copy.png")])


def test_a_folder_that_cannot_be_listed_is_named_and_its_photos_stay(index, folder, monkeypatch):
    scandir = os.scandir

    def closed(path):
        if str(path) == str(folder / "1" / "deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = opened(index).refresh()
    assert found.removed == []
    assert str(folder / "1" / "deep") in found.unreadable[0]
    assert len(opened(index)) == 30
    (folder / "0" / "deep" / "00.png").unlink()
    assert opened(index).refresh().removed == [str(folder / "0" / "deep" / "00.png")]
    assert "1/deep" in opened(index).add(folder).unreadable[0]


def test_one_folder_by_another_path_is_no_news(index, folder):
    assert opened(index).add(folder / ".." / "photos").added == []
    assert opened(index).content.folders == [str(folder)]
    opened(index).remove([folder / "0" / ".." / "1"])
    assert len(opened(index)) == 20


def test_an_index_that_is_replaced_while_it_is_read(index, folder, monkeypatch):
    content, seen = store._content, []

    def late(directory, manifest, whole):
        if not seen:
            seen.append(manifest)
            monkeypatch.setattr(store, "_content", content)
            opened(index).remove([folder / "0"])
        return content(directory, manifest, whole)

    monkeypatch.setattr(store, "_content", late)
    assert len(store.read(index._directory).photos.paths) == 20


def test_duplicates_need_no_lock(index):
    with store.only_writer(index._directory):
        assert opened(index).duplicates(0.001).groups == []


def test_duplicates_are_grouped_and_the_largest_is_kept(folder, tmp_path):
    first = folder / "0" / "deep" / "00.png"
    (folder / "copy.png").write_bytes(first.read_bytes())
    picture(1, 256).save(folder / "large.jpg", quality=60)
    for name in ("2/deep/26.png", "2/deep/29.png"):  # 30 again, for which k-means is compiled
        (folder / name).unlink()
    made, _ = PhotoIndex.create(tmp_path / "index", folder, encoder=ENCODER, clusters=5)
    found = made.duplicates(0.01)
    assert found.exact.tolist() == [True, False]
    assert set(found.groups[0]) == {str(first), str(folder / "copy.png")}
    assert found.groups[1] == [str(folder / "large.jpg"), str(folder / "1" / "deep" / "01.png")]


@pytest.mark.fast
def test_the_hash_of_a_mirrored_picture():
    pixels = np.asarray(picture(3))
    turned = mirrored(np.array([perceptual_hash(pixels)], np.uint64))[0]
    assert (int(turned) ^ perceptual_hash(pixels[:, ::-1])).bit_count() <= 1


def test_ready_embeddings(folder, tmp_path, capsys):
    names = [f"{i % 3}/deep/{i:02}.png" for i in range(30)]
    rows = np.random.default_rng(0).normal(size=(30, 48)).astype(np.float32)
    np.savez(tmp_path / "ready.npz", names=np.array(names), embeddings=rows)
    arguments = ["index", str(folder), "--output", str(tmp_path / "i"), "--clusters", "5"]
    assert main([*arguments, "--embeddings", str(tmp_path / "ready.npz")]) == 0
    index = PhotoIndex.open(tmp_path / "i")
    found = index.query(folder / names[4], 3, probes=None)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    order = np.argsort(-(units @ units[4]))[:3]
    assert found.paths == [str(folder / names[row]) for row in order]
    picture(9).save(tmp_path / "other.png")
    assert main(["query", str(tmp_path / "i"), str(tmp_path / "other.png")]) == 2
    assert "only with photos that are in it" in capsys.readouterr().err
    np.savez(tmp_path / "wrong.npz", names=np.array(["x.png"]), embeddings=rows[:1])
    with pytest.raises(UserError, match=r"'x\.png'"):
        PhotoIndex.create(
            tmp_path / "j", folder, embeddings=ready_embeddings(str(tmp_path / "wrong.npz"))
        )


def test_the_command(index, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    by = ["--encoder", "test_photos:coarse"]
    big = ENCODER._replace(shape=(224, 224, 3))
    directory = str(tmp_path / "second")
    PhotoIndex.create(directory, folder, encoder=big, clusters=5)
    name = tmp_path / "<script>.jpg"
    picture(2).save(name, quality=90)
    assert main(["query", directory, str(name), *by, "--paths", "--neighbours", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(folder / "2" / "deep" / "02.png")
    assert main(["query", directory, str(name), *by, "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert len(answer["paths"]) == 12 == len(answer["distances"])
    assert main(["query", directory, str(name), *by, "--html", str(tmp_path / "p.html")]) == 0
    page = (tmp_path / "p.html").read_text()
    assert "<script>" not in page
    assert page.count("data:image/jpeg;base64,") == 13
    assert main(["duplicates", directory, "--html", str(tmp_path / "d.html")]) == 0
    assert main(["remove", directory, str(folder / "2")]) == 0
    assert "10 removed" in capsys.readouterr().out
    assert main(["refresh", directory, *by]) == 0
    assert main(["add", directory, str(folder), *by]) == 0
    assert "10 added" in capsys.readouterr().out


def test_a_finished_run_answers(tmp_path):
    model = Network(ConvolutionalEncoder((3,), 5))
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3))))
    encoder = {"name": "convolutional", "dtype": "float32", "widths": [3], "bottleneck": 5}
    save_model(
        epath.Path(tmp_path),
        variables,
        {"encoder": encoder, "normalize": False, "image_shape": [4, 4, 3]},
    )
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), np.uint8)
    gallery = Embedder.from_run(tmp_path)(images)
    np.savez(tmp_path / "embeddings.npz", gallery=gallery)
    labels = np.arange(20) % 2
    centroids = np.stack([gallery[labels == i].mean(0) for i in range(2)])
    np.savez(tmp_path / "clusters.npz", gallery=labels, centroids=centroids)
    names = [f"cat/{i}.png" for i in range(20)]
    (tmp_path / "images.json").write_text(json.dumps({"gallery": names, "queries": []}))
    Image.fromarray(images[7]).save(tmp_path / "query.png")
    found = PhotoIndex.of_run(str(tmp_path)).query(tmp_path / "query.png", 3, probes=None)
    assert found.paths[0] == "cat/7.png"
    assert found.distances[0] < 1e-3
    assert found.clusters[0] == 1
    (tmp_path / "images.json").write_text(json.dumps({"gallery": names[1:]}))
    with pytest.raises(UserError, match="finish it again"):
        PhotoIndex.of_run(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["query", "INDEX", "nowhere.jpg", "--encoder", "test_photos:coarse"], "nowhere.jpg"),
        (["query", "INDEX", "photos/notes.txt", "--encoder", "test_photos:coarse"], "text"),
        (["query", "INDEX", "photos/0/deep/00.png"], "--encoder module:name"),
        (["query", "INDEX", "x", "--encoder", "json:loads"], "another encoder"),
        (["query", "INDEX", "x", "--encoder", "nomodule:x"], "can't be imported"),
        (["query", "photos", "x"], "holds no index"),
        (["query", "INDEX", "x", "--neighbours", "0"], "neighbours"),
        (["add", "INDEX", "empty", "--encoder", "test_photos:coarse"], "holds no photos"),
        (["index", "empty", "--output", "new"], "holds no photos"),
        (["index", "nowhere", "--output", "new"], "not a folder"),
        (["index", "photos", "--output", "INDEX"], "holds an index already"),
        (["index", "photos", "--output", "new", "--clusters", "0"], "--clusters"),
        (["index", "photos", "--output", "new", "--embeddings", "photos/notes.txt"], ".npz"),
        (["index", "photos", "--output", "new", "--run", "photos"], "finished run"),
        (["duplicates", "INDEX", "--threshold", "nan"], "--threshold"),
        (["clusters", "photos"], "holds no index"),
        (["export", "INDEX", "--to", "numpy", "--output", "photos"], "holds files already"),
        (["export", "INDEX", "--to", "pickle", "--output", "new"], "--to"),
    ],
)
def test_bad_input_gets_a_sentence(index, tmp_path, capsys, monkeypatch, arguments, sentence):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["index" if a == "INDEX" and i else a for i, a in enumerate(arguments)]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_names_that_are_no_utf8_survive(folder, tmp_path):
    odd = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")
    (folder / "0" / "deep" / "00.png").rename(odd)
    PhotoIndex.create(tmp_path / "index", folder, encoder=ENCODER, clusters=5)
    found = PhotoIndex.open(tmp_path / "index", ENCODER).query(odd, 1)
    assert found.paths == [odd]


def test_a_cluster_lists_its_photos_the_most_typical_first(index):
    content = index.content
    for number in range(5):
        found = index.cluster(number)
        rows = np.flatnonzero(content.clusters == number)
        exact = 1 - content.rows[rows].astype(np.float64) @ content.centroids[number]
        np.testing.assert_allclose(found.distances, np.sort(exact), atol=1e-5)
        assert sorted(found.paths) == sorted(content.photos.paths[row] for row in rows)
        assert set(found.clusters.tolist()) <= {number}
    with pytest.raises(UserError, match="0 to 4"):
        index.cluster(5)


def test_clusters_as_page_table_and_links(index, tmp_path, capsys):
    directory, paths = str(index._directory), index.content.photos.paths
    assert main(["clusters", directory]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert main(["clusters", directory, "--html", str(tmp_path / "c.html")]) == 0
    assert (tmp_path / "c.html").read_text().count("data:image/jpeg;base64,") == 30
    assert main(["clusters", directory, "--csv", str(tmp_path / "c.csv")]) == 0
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"]: int(row["cluster"]) for row in rows} == dict(
        zip(paths, index.content.clusters.tolist(), strict=True)
    )
    assert main(["clusters", directory, "--links", str(tmp_path / "links")]) == 0
    for number in range(5):
        made = sorted((tmp_path / "links" / f"cluster-{number:05}").iterdir())
        assert [str(link.readlink()) for link in made] == index.cluster(number).paths
    capsys.readouterr()
    assert main(["clusters", directory, "--links", str(tmp_path / "links")]) == 2
    assert "holds files already" in capsys.readouterr().err
    assert main(["clusters", directory, "--csv", str(tmp_path / "no" / "c.csv")]) == 2
    assert "no/c.csv" in capsys.readouterr().err


def test_exports_are_read_by_other_programs(index, tmp_path):
    content = index.content
    paths, rows = content.photos.paths, content.rows.astype(np.float32)
    for form in ("numpy", "projector", "parquet", "faiss"):
        assert (
            main(["export", str(index._directory), "--to", form, "--output", f"{tmp_path}/{form}"])
            == 0
        )
    np.testing.assert_array_equal(np.load(tmp_path / "numpy" / "embeddings.npy"), rows)
    assert (tmp_path / "numpy" / "embeddings.txt").read_text().splitlines() == paths
    shown = np.loadtxt(tmp_path / "projector" / "tensors.tsv", delimiter="\t", dtype=np.float32)
    np.testing.assert_allclose(shown, rows, rtol=1e-5)
    metadata = (tmp_path / "projector" / "metadata.tsv").read_text().splitlines()
    assert metadata == [
        "path\tcluster",
        *(f"{p}\t{c}" for p, c in zip(paths, content.clusters, strict=True)),
    ]
    table = parquet.read_table(tmp_path / "parquet" / "embeddings.parquet").to_pydict()
    assert (table["path"], table["cluster"]) == (paths, content.clusters.tolist())
    np.testing.assert_array_equal(np.array(table["embedding"], np.float32), rows)
    found = faiss.read_index(str(tmp_path / "faiss" / "photos.faiss")).search(rows[:3], 4)[1]
    names = (tmp_path / "faiss" / "photos.txt").read_text().splitlines()
    for row, ids in zip(rows[:3], found, strict=True):
        assert [names[i] for i in ids] == index.nearest(row, 4, probes=None).paths


def test_an_encoder_is_exported_as_a_program(tmp_path, capsys):
    model = Network(ConvolutionalEncoder((4,), 8))
    image = jnp.zeros((1, 16, 24, 3))
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), image))
    embedder = Embedder.from_state(model, variables, normalize=True)
    by_network = Encoder({"kind": "run"}, (16, 24, 3), False, lambda batch: embedder)
    photos = tmp_path / "photos"
    photos.mkdir()
    picture(0).save(photos / "a.png")
    index, _ = PhotoIndex.create(tmp_path / "index", photos, encoder=by_network, clusters=1)
    export.export(index, "jax", tmp_path / "program")
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)
    content = (tmp_path / "program" / "embedder.stablehlo").read_bytes()
    program = jax.export.deserialize(bytearray(content))
    assert program.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_allclose(program.call(images), embedder(images), atol=1e-6)
    np.testing.assert_allclose(program.call(images[:1]), embedder(images)[:1], atol=1e-6)
    described = json.loads((tmp_path / "program" / "embedder.json").read_text())
    assert described == {"input": ["n", 16, 24, 3], "type": "uint8", "resize": "squeeze"}


def test_what_can_not_be_exported_is_said_and_leaves_nothing(folder, tmp_path):
    index, _ = PhotoIndex.create(tmp_path / "index", folder, encoder=ENCODER, clusters=5)
    with pytest.raises(UserError, match="kind function, can't be exported: only networks of JAX"):
        export.export(index, "jax", tmp_path / "program")
    index.content.photos.paths[-1] = "of/a/run.png"  # links that fail half-way
    with pytest.raises(UserError, match="no absolute path"):
        export.links(index, tmp_path / "links")
    for place in ("program", "links"):
        assert list((tmp_path / place).iterdir()) == []


@pytest.mark.parametrize(
    ("form", "file"), [("numpy", "embeddings.npy"), ("parquet", "embeddings.parquet")]
)
def test_an_export_is_taken_as_ready_embeddings(folder, tmp_path, form, file):
    (folder / "0" / "deep" / "00.png").rename(folder / "a\u2028b\x0b.png")
    index, _ = PhotoIndex.create(tmp_path / "index", folder, encoder=ENCODER, clusters=5)
    export.export(index, form, tmp_path / form)
    ready = ready_embeddings(str(tmp_path / form / file))
    again, _ = PhotoIndex.create(tmp_path / "again", folder, embeddings=ready, clusters=5)
    rows = dict(zip(again.content.photos.paths, again.content.rows, strict=True))
    for path, row in zip(index.content.photos.paths, index.content.rows, strict=True):
        np.testing.assert_allclose(rows[path], row, atol=1e-3)


def flawed_embeddings(place, name):
    rows = np.ones((2, 3), np.float32)
    file, names = place / name, "a.png\nb.png\n"
    match file.stem:
        case "nothing":
            file.write_bytes(b"PAR1 nothing")
        case "empty":
            file.write_bytes(b"")
        case "alone":
            np.save(file, rows)
            return file
        case "twice":
            np.save(file, rows)
            names = "a.png\na.png\n"
        case "bomb":  # claims 4 TB
            np.save(file, rows)
            file.write_bytes(file.read_bytes().replace(b"(2, 3)", b"(1000000, 1000000)"))
        case "pickle":
            np.save(file, np.array([{}, {}]), allow_pickle=True)
        case "infinite":
            np.save(file, rows * np.inf)
        case "late":
            rows = np.ones((5000, 3), np.float16)
            rows[4999, 2] = np.nan
            np.save(file, rows)
            names = "".join(f"{i}.png\n" for i in range(5000))
        case "none":
            np.save(file, rows[:0])
            names = ""
        case "columns":
            parquet.write_table(pyarrow.table({"path": ["a"], "vector": [[1.0]]}), file)
        case "ragged":
            parquet.write_table(pyarrow.table({"path": ["a", "b"], "embedding": [[1.0], []]}), file)
        case "null":
            table = pyarrow.table({"path": ["a", "b"], "embedding": [[1.0], None]})
            parquet.write_table(table, file)
        case "flat":
            parquet.write_table(pyarrow.table({"path": ["a"], "embedding": [1.0]}), file)
        case "text":
            parquet.write_table(pyarrow.table({"path": [1], "embedding": [[1.0]]}), file)
    file.with_suffix(".txt").write_text(names)
    return file


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        *((f"nothing.{kind}", "can't be read as embeddings") for kind in ("npy", "npz", "parquet")),
        *((f"empty.{kind}", "can't be read as embeddings") for kind in ("npy", "npz", "parquet")),
        *((f"{kind}.npy", "can't be read as embeddings") for kind in ("alone", "bomb", "pickle")),
        ("twice.npy", "names a photo twice"),
        ("infinite.npy", "infinite"),
        ("late.npy", "no numbers"),
        ("none.npy", "must hold names"),
        *((f"{kind}.parquet", "can't be read") for kind in ("columns", "ragged", "null", "flat")),
        ("text.parquet", "must hold names"),
    ],
)
def test_ready_embeddings_that_are_none(tmp_path, name, sentence):
    with pytest.raises(UserError, match=sentence):
        ready_embeddings(str(flawed_embeddings(tmp_path, name)))


def test_what_a_form_cannot_hold_is_refused(folder, tmp_path, capsys):
    (folder / "0" / "deep" / "00.png").rename(folder / "two\nlines.png")
    made, _ = PhotoIndex.create(tmp_path / "index", folder, encoder=ENCODER, clusters=5)
    for form in ("numpy", "faiss"):
        with pytest.raises(UserError, match="line break"):
            export.export(made, form, tmp_path / form)
    export.export(made, "parquet", tmp_path / "parquet")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("the user's")
    with pytest.raises(UserError, match="holds files already"):
        export.export(made, "numpy", tmp_path / "full")


def test_the_command_embeds_on_a_device_in_every_core(tmp_path):
    picture(0).save(tmp_path / "0.png")
    (tmp_path / "counting.py").write_text(
        "import jax, numpy as np\n"
        "def devices(images):\n"
        "    return np.tile(np.float32([1, jax.device_count()]), (len(images), 1))\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    command = [sys.executable, "-m", "retrieval_jax", "index", ".", "--output", "i"]
    command += ["--encoder", "counting:devices"]
    environment |= {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    one, devices = store.read(tmp_path / "i").rows[0].astype(np.float32)
    assert round(devices / one) == os.cpu_count()
