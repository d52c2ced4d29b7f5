"""Workdirs and data on gs://, with a stand-in for Google's store on this machine.

gcsfs (files), TensorStore (arrays of checkpoints) and Google's client (what Orbax asks about the
bucket) all speak HTTP to it.
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from etils import epath
from gcs_store import Store
from PIL import Image
from test_data_tfds import image_and_label, prepare, record

from retrieval_jax.data.folder import from_folder
from retrieval_jax.data.npz import from_npz
from retrieval_jax.data.remote import fetched
from retrieval_jax.data.tfds import from_tfds
from retrieval_jax.main import main
from retrieval_jax.report import compare
from retrieval_jax.runtime import files
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.files import replacing

CONFIGS = Path(__file__).parents[1] / "configs"
OVERRIDES = (
    "training.epochs=1",
    "training.checkpoint_seconds=0.5",
    "training.profile_steps=1",
    "report.tsne_points=0",
)


@pytest.fixture
def store(monkeypatch, tmp_path):
    with Store() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        files._prepare_for_objects.cache_clear()
        epath.backend.fsspec_backend._get_filesystem.cache_clear()
        fsspec.AbstractFileSystem.clear_instance_cache()
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def command(*overrides, workdir="gs://bucket/run"):
    return [
        *[sys.executable, "-m", "retrieval_jax.main"],
        f"--config={CONFIGS / 'quickstart.py'}:hint",
        f"--workdir={workdir}",
        *(f"--config.{override}" for override in (*OVERRIDES, *overrides)),
    ]


def started(*overrides):
    return subprocess.Popen(
        command(*overrides),
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*overrides):
    with started(*overrides) as process:
        said, _ = process.communicate(timeout=300)
    return process.returncode, said


def records(store):
    """Of the checkpoints that are whole."""
    return [name for name in store.names("run/checkpoints/") if name.endswith("record/metadata")]


def test_a_run_is_stopped_resumed_past_a_damaged_checkpoint_and_complete(store, capsys):
    with started("training.checkpoint_seconds=0.0") as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if "first step after" in line:  # a second checkpoint, to go back to
                while len(records(store)) < 2:
                    time.sleep(0.05)
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 75, "".join(said)
    saved = {name.split("/")[2] for name in store.names("run/checkpoints/")}
    assert 1 <= len(saved) <= 2, saved  # none but the newest two is left, nor a part of one
    newest = max(saved, key=int)
    record = f"run/checkpoints/{newest}/record/metadata"
    store.write(record, store.objects[record].content[:-9])

    code, said = run()
    assert code == 0, said
    assert f"checkpoint {newest} can't be read" in said
    assert store.names(f"run/damaged/{newest}-")
    results = json.loads(store.objects["run/results.json"].content)
    assert [row["epoch"] for row in results["training"]["history"]] == [1]
    lines = store.objects["run/metrics.jsonl"].content.splitlines()
    assert [json.loads(line) for line in lines] == results["training"]["history"]
    with np.load(io.BytesIO(store.objects["run/embeddings.npz"].content)) as embeddings:
        assert len(embeddings["gallery"]) == 1707 and np.isfinite(embeddings["queries"]).all()
    page = store.objects["run/report.html"].content
    assert page.count(b"data:image/png;base64,iVBOR") == 1 and b'id="ask"' in page
    assert sum("/events.out." in name for name in store.names("run/tensorboard/")) >= 1
    assert any(name.endswith(".xplane.pb") for name in store.names("run/profile/"))
    assert not [name for name in store.names("run/") if ".tmp" in name or "writable" in name]

    code, said = run()
    assert (code, "this run is complete" in said) == (0, True), said
    code, said = run("seed=1")
    assert code == 2 and "the workdir 'gs://bucket/run' holds another run" in said
    assert compare.main(["gs://bucket/run", "--output", "gs://bucket/table"]) == 0
    assert "clusters of the gallery" in capsys.readouterr().out
    assert store.names("table/") == ["table/comparison.html", "table/comparison.md"]


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of aiohttp to gcsfs
def test_what_a_large_object_takes_several_requests_for_is_whole(store):
    content = np.random.default_rng(0).bytes(12 << 20)
    with replacing(epath.Path("gs://bucket/large")) as file:
        file.write(content)
    assert store.objects["large"].content == content
    assert epath.Path("gs://bucket/large").read_bytes() == content


def test_what_fails_before_it_is_whole_leaves_the_old_object(store):
    store.write("kept", b"old")
    with pytest.raises(ZeroDivisionError), replacing(epath.Path("gs://bucket/kept")) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert store.objects["kept"].content == b"old"


@pytest.mark.parametrize("status", [403, 410])  # gcsfs has an OSError for the first alone
def test_what_the_store_refuses_is_an_os_error(store, status):
    store.refuses = status
    path = epath.Path("gs://bucket/refused")
    with pytest.raises(OSError), replacing(path) as file:
        file.write(b"new")
    assert store.names() == []


def as_npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def test_an_npz_is_copied_when_it_changes(store, capsys):
    images = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
    store.write("sets/a.npz", as_npz(images=images, labels=[0, 1, 0, 1, 1]))
    data = from_npz("gs://bucket/sets/a.npz")
    assert np.array_equal(data.images[..., 0], images) and data.labels.tolist() == [0, 1, 0, 1, 1]
    assert "1 file copied" in capsys.readouterr().out
    from_npz("gs://bucket/sets/a.npz")
    assert capsys.readouterr().out == ""
    store.write("sets/a.npz", as_npz(images=255 - images, labels=[0, 1, 0, 1, 1]))
    assert np.array_equal(from_npz("gs://bucket/sets/a.npz").images[..., 0], 255 - images)


def test_a_folder_of_images_is_copied(store, tmp_path):
    for name, value in {"cat/1.png": 10, "cat/2.png": 20, "dog/1.png": 30}.items():
        content = io.BytesIO()
        Image.new("RGB", (4, 4), (value,) * 3).save(content, "PNG")
        store.write(f"images/{name}", content.getvalue())
    store.write("images/dog/", b"")  # the placeholder by which consoles show a directory
    data = from_folder("gs://bucket/images", (4, 4))
    assert data.class_names == ("cat", "dog") and data.labels.tolist() == [0, 0, 1]
    assert data.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert fetched("gs://bucket/images/") == tmp_path / "cache/retrieval_jax/gs/bucket/images"


def test_of_a_tfds_directory_only_the_set_is_copied(store, tmp_path):
    prepare(tmp_path / "own", image_and_label(), {"train": [record(i, i % 2) for i in range(9)]})
    for path in (tmp_path / "own").rglob("*"):
        if path.is_file():
            store.write(f"tfds/{path.relative_to(tmp_path / 'own')}", path.read_bytes())
    store.write("tfds/other/1.0.0/features.json", b"{}")
    own, copied = (
        from_tfds("shapes:1.2.3", directory, streaming=True)
        for directory in (tmp_path / "own", "gs://bucket/tfds")
    )
    np.testing.assert_array_equal(copied.images[:], own.images[:])
    assert copied.images.identity == own.images.identity
    copy = tmp_path / "cache/retrieval_jax/gs/bucket/tfds"
    assert [path.name for path in copy.iterdir()] == ["shapes"]
    with pytest.raises(UserError, match="fashion_mnist is not prepared in .*/gs/bucket/tfds"):
        from_tfds("fashion_mnist", "gs://bucket/tfds")

    # A copy that was killed has left this, and someone removes that from the bucket.
    (copy / "shapes/1.2.3/.left.1-ab.tmp").write_bytes(b"half")
    store.write("tfds/shapes/1.2.3/old.json", b"{}")
    from_tfds("shapes", "gs://bucket/tfds")
    assert (copy / "shapes/1.2.3/old.json").exists()
    del store.objects["tfds/shapes/1.2.3/old.json"]
    again = from_tfds("shapes", "gs://bucket/tfds", streaming=True)
    assert again.images.identity == own.images.identity
    assert not [path for path in copy.rglob("*") if "old" in path.name or "left" in path.name]


def test_no_name_leads_out_of_the_copy(store, tmp_path):
    store.write("images/../../../../evil.png", b"x")
    with pytest.raises(UserError, match="holds an object .evil.png. whose path leads outside"):
        fetched("gs://bucket/images")
    assert not [path for path in tmp_path.rglob("*.png")]


@pytest.mark.parametrize("read", [from_npz, lambda path: from_tfds("mnist", path)])
@pytest.mark.parametrize("path", ["gs://bucket/none", "gs://none/a"])
def test_data_that_is_not_there_is_named(store, read, path):
    with pytest.raises(UserError, match=f"{path} isn't there"):
        read(path)


@pytest.mark.parametrize(
    ("workdir", "override", "said"),
    [
        ("gs://none/run", "seed=0", "the workdir 'gs://none/run' can't be written"),
        ("s3://bucket/run", "seed=0", "give a directory or gs://BUCKET/DIRECTORY"),
        ("/gs/bucket/run", "seed=0", "give a directory or gs://BUCKET/DIRECTORY"),
        ("gs://bucket/bad", "data.directory=s3://bucket/x", "must be on this machine or on gs://"),
        ("gs://bucket/bad", "data.file=s3://bucket/x.npz", "must be on this machine or on gs://"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(store, capsys, workdir, override, said):
    assert main(command(override, workdir=workdir)[3:]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert store.names("bad") == []


def test_a_bucket_that_may_not_be_written_is_said_in_a_sentence(store, capsys):
    store.refuses = 403
    assert main(command()[3:]) == 2
    error = capsys.readouterr().err
    assert "check that the bucket exists and this machine may read and write it" in error
    assert error.count("\n") == 1


def test_a_right_that_is_lost_during_a_run_ends_it_with_a_sentence(store):
    with started() as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if "first step after" in line:
                store.refuses = 403
        assert process.wait(timeout=120) == 2, "".join(said)
    assert said[-1].startswith("error: ") and "the same command" in said[-1]
    store.refuses = 0
    code, said = run()
    assert code == 0, said


def test_without_the_packages_the_cure_is_named(store, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not there
    for protocol in ("gs", "gcs"):
        sys.modules["fsspec.registry"]._registry.pop(protocol, None)
    assert main(command()[3:]) == 2
    assert "install retrieval-jax[gcs]" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"install retrieval-jax\[gcs\]"):
        fetched("gs://bucket/x")


@pytest.mark.fast
def test_without_a_network_the_answer_comes_at_once(monkeypatch, capsys, tmp_path):
    """The name of the store's host is looked up once; gcsfs would ask again for a minute."""
    asked = []

    def unknown(*host, **_):
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    files._prepare_for_objects.cache_clear()
    for workdir, overrides in (
        ("gs://bucket/run", ()),
        (tmp_path / "1", ("data.source=npz", "data.file=gs://bucket/images.npz")),
        (tmp_path / "2", ("data.source=folder", "data.directory=gs://bucket/images")),
    ):
        assert main(command(*overrides, workdir=workdir)[3:]) == 2
        error = capsys.readouterr().err
        assert "Name or service not known" in error
        assert error.count("\n") == 1
        assert asked == [("storage.googleapis.com", 443)]
        asked.clear()
