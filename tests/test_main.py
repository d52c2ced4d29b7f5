"""Whole runs: the digits end to end, killed and resumed, without labels, and with bad input."""

import csv
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image
from sklearn import metrics as sklearn_metrics
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from tensorboardX.proto.event_pb2 import Event

from retrieval_jax.main import main, parse
from retrieval_jax.report.page import main as report_main

CONFIGS = Path(__file__).parents[1] / "configs"
EPOCHS, STEPS = 4, 42  # steps per epoch


def arguments(workdir, *overrides, system="hint"):
    return [
        f"--config={CONFIGS / 'quickstart.py'}:{system}",
        f"--workdir={workdir}",
        *(f"--config.{override}" for override in overrides),
    ]


DIGITS = (f"training.epochs={EPOCHS}", "report.tsne_points=300")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert main(arguments(workdir, *DIGITS)) == 0
    return workdir


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


def figures_of_merit(workdir):
    """What a resumed run must end with: everything but times and dates."""
    results = results_of(workdir)
    history = [
        {k: v for k, v in row.items() if k != "seconds"} for row in results["training"]["history"]
    ]
    return [results[key] for key in ("scores", "baselines", "left_out")] + [history]


def test_the_scores_are_scikit_learns(whole):
    results = results_of(whole)
    embeddings, found = np.load(whole / "embeddings.npz"), np.load(whole / "neighbours.npz")
    clusters = np.load(whole / "clusters.npz")
    from retrieval_jax.data.images import digits

    labels = digits().labels
    assert len(found["gallery"]) == 1707 and len(found["queries"]) == 90
    assert not set(found["gallery"]) & set(found["queries"])
    for part in ("gallery", "queries"):
        truth, cells = labels[found[part]], clusters[part]
        scores = {
            name: results["scores"]["clustering"][part][name]["value"]
            for name in ("nmi", "ri", "ari")
        }
        assert scores["nmi"] == pytest.approx(
            sklearn_metrics.normalized_mutual_info_score(truth, cells)
        )
        assert scores["ri"] == pytest.approx(sklearn_metrics.rand_score(truth, cells))
        assert scores["ari"] == pytest.approx(sklearn_metrics.adjusted_rand_score(truth, cells))
    gallery, queries = embeddings["gallery"], embeddings["queries"]
    squared = ((gallery[:, None] - clusters["centroids"]) ** 2).sum(2)
    assert results["scores"]["clustering"]["inertia"] == pytest.approx(
        squared.min(1).sum(), rel=1e-4
    )
    np.testing.assert_array_equal(squared.argmin(1), clusters["gallery"])

    search = NearestNeighbors(n_neighbors=100, algorithm="brute").fit(gallery.astype(np.float64))
    distances, _ = search.kneighbors(queries.astype(np.float64))
    np.testing.assert_allclose(found["exhaustive_distances"], distances, rtol=1e-4, atol=1e-5)
    for way in ("cluster", "exhaustive"):
        indices = found[f"{way}_indices"]
        right = (labels[found["gallery"]][indices] == labels[found["queries"]][:, None]) & (
            indices >= 0
        )
        precision = results["scores"]["retrieval"][way]["precision_at"]
        assert precision["5"]["value"] == pytest.approx(right[:, :5].mean())
        assert precision["100"]["value"] == pytest.approx(right.mean())
    same_cluster = clusters["gallery"][found["cluster_indices"]] == clusters["queries"][:, None]
    assert np.all(same_cluster | (found["cluster_indices"] < 0))
    both = [
        set(a) & set(b)
        for a, b in zip(found["exhaustive_indices"], found["cluster_indices"], strict=True)
    ]
    assert results["scores"]["retrieval"]["kept"]["100"]["value"] == pytest.approx(
        np.mean([len(b) for b in both]) / 100
    )


def test_a_run_answers_by_its_gallery(whole, tmp_path, capsys):
    names = json.loads((whole / "images.json").read_text())
    asked = names["gallery"][5]
    pixels = np.rint(load_digits().images[asked] * 255 / 16).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    assert main(["query", str(whole), str(tmp_path / "digit.png"), "--paths"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == str(asked)
    assert main(["clusters", str(whole), "--csv", str(tmp_path / "c.csv")]) == 0
    with (tmp_path / "c.csv").open(newline="") as file:
        found = {int(row["path"]): int(row["cluster"]) for row in csv.DictReader(file)}
    labels = np.load(whole / "clusters.npz")["gallery"].tolist()
    assert found == dict(zip(names["gallery"], labels, strict=True))


def test_everything_that_a_run_leaves(whole):
    results = results_of(whole)
    assert (
        results["scores"]["clustering"]["gallery"]["nmi"]["value"] > 0.5
    )  # digits are easy, even after 4 epochs
    assert list(results["seconds"]) == [
        "data",
        "train",
        "embed",
        "cluster",
        "rank",
        "score",
        "map",
        "baselines",
        "report",
    ]
    assert list(results["baselines"]) == ["raw pixels", "colour histogram", "untrained encoder"]
    names = json.loads((whole / "images.json").read_text())
    assert sorted(names["gallery"] + names["queries"]) == list(range(1797))
    with (whole / "items.csv").open(newline="") as file:
        items = list(csv.DictReader(file))
    assert [int(item["image"]) for item in items] == names["gallery"] + names["queries"]
    clusters, digits = np.load(whole / "clusters.npz"), load_digits()
    found = np.concatenate([clusters["gallery"], clusters["queries"]])
    assert [int(item["cluster"]) for item in items] == found.tolist()
    assert all(item["label"] == str(digits.target[int(item["image"])]) for item in items)
    assert 0 < results["training"]["first_step"] < results["seconds"]["train"] + 60
    assert results["provenance"]["device"]["count"] == 8
    assert (
        results["provenance"]["data"]["fit"] + results["provenance"]["data"]["validation"] == 1707
    )
    assert results["training"]["trainable_parameters"] < results["training"]["parameters"]
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert rows == results["training"]["history"] and len(rows) == EPOCHS
    for name in ("losses", "reconstructions", "retrieval", "tsne"):
        with Image.open(whole / "figures" / f"{name}.png") as image:
            assert image.format == "PNG" and min(image.size) > 100
    page = (whole / "report.html").read_text().replace("http://www.w3.org/2000/svg", "")
    assert page.count("data:image/png;base64,") == 1 and "http" not in page.split("<body", 1)[1]
    assert 'id="map"' in page and 'id="doubtful"' in page, "and all that it answers"


def test_event_files_say_what_the_json_says(whole):
    (path,) = (whole / "tensorboard").iterdir()
    data, scalars = path.read_bytes(), {}
    while data:  # TFRecord: length, its checksum, the record, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    for row in results_of(whole)["training"]["history"]:
        for part in ("fit", "validation"):
            for name, value in row[part].items():
                assert scalars[f"{part}/{name}", row["step"]] == pytest.approx(value)


def test_stopped_and_killed_inside_an_epoch_a_run_ends_with_the_same_numbers(whole, tmp_path):
    line = arguments(tmp_path / "stopped", *DIGITS, "training.checkpoint_seconds=0.0")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    checkpoints = tmp_path / "stopped" / "checkpoints"

    def saved():
        names = [path.name for path in checkpoints.iterdir()] if checkpoints.exists() else []
        return max((int(name) for name in names if name.isdigit()), default=0)

    reader, nobody_reads = os.pipe()  # as after `| head -1`: it goes on without output
    os.close(reader)
    hearing_ctrl_c = (  # which whoever starts the tests in a background may ignore
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('retrieval_jax.main', run_name='__main__')"
    )
    stops = ((signal.SIGINT, 130, 0), (signal.SIGKILL, -signal.SIGKILL, STEPS))
    for by, code, earliest in stops:
        run = subprocess.Popen(
            [sys.executable, "-c", hearing_ctrl_c, *line],
            env=environment,
            stdout=nobody_reads,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 300
        while not (saved() > earliest and saved() % STEPS):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        run.send_signal(by)
        _, said = run.communicate()
        assert run.returncode == code and "Traceback" not in said
        assert by == signal.SIGKILL or "the same command" in said
        assert not (tmp_path / "stopped" / "results.json").exists()
    os.close(nobody_reads)
    assert main(line) == 0
    assert figures_of_merit(tmp_path / "stopped") == figures_of_merit(whole)


def test_python_starts_again_once_with_huge_pages(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nfrom retrieval_jax.main import with_huge_pages\n"
        "print('started')\nwith_huge_pages()\nprint(os.environ['GLIBC_TUNABLES'], sys.argv[1:])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}

    def run(environment):
        command = [sys.executable, "-u", script, "a b", "c"]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()

    assert run(environment) == ["started"] * 2 + ["glibc.malloc.hugetlb=1 ['a b', 'c']"]
    own = environment | {"GLIBC_TUNABLES": "glibc.malloc.check=0"}
    assert run(own) == ["started", "glibc.malloc.check=0 ['a b', 'c']"]


def test_the_report_is_made_again_from_the_workdir_alone(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy", ignore=lambda *_: ["figures", "report.html"])
    assert report_main([str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy" / "report.html").read_bytes() == (whole / "report.html").read_bytes()


def test_a_finished_run_is_left_as_it_is(whole, capsys):
    before = (whole / "results.json").read_bytes()
    assert main(arguments(whole, *DIGITS)) == 0
    said = capsys.readouterr().out
    assert "this run is complete" in said and "train" not in said
    assert (whole / "results.json").read_bytes() == before


def test_only_what_is_missing_is_done_again(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "copy")
    for missing in ("report.html", "neighbours.npz"):
        (tmp_path / "copy" / missing).unlink()
    files = [tmp_path / "copy" / name for name in ("embeddings.npz", "clusters.npz")]
    before = [path.stat().st_mtime_ns for path in files]
    assert main(arguments(tmp_path / "copy", *DIGITS)) == 0
    said = capsys.readouterr().out
    assert "epoch 1/" not in said and "first step" not in said
    assert [path.stat().st_mtime_ns for path in files] == before
    assert figures_of_merit(tmp_path / "copy") == figures_of_merit(whole)
    seconds, original = (results_of(run)["seconds"] for run in (tmp_path / "copy", whole))
    assert seconds["embed"] == original["embed"] and seconds["rank"] != original["rank"]


def test_another_config_is_refused_by_its_difference(whole, capsys):
    before = (whole / "results.json").read_bytes()
    assert main(arguments(whole, *DIGITS, "optimizer.learning_rate=0.01")) == 2
    said = capsys.readouterr().err
    assert "optimizer.learning_rate is 0.001 there and 0.01 here" in said
    assert (whole / "results.json").read_bytes() == before


def colour_images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)


SMALL = ("training.epochs=1", "training.batch_size=8", "data.queries=6", "clustering.k=3")


def test_without_labels_the_rest_is_done_and_the_gap_is_said(tmp_path):
    np.savez(tmp_path / "images.npz", images=colour_images(46))
    data = (
        "data.source=npz",
        f"data.file={tmp_path / 'images.npz'}",
        "data.validation_fraction=0.0",
    )
    assert main(arguments(tmp_path / "run", *data, *SMALL, system="vanilla")) == 0
    results = results_of(tmp_path / "run")
    for scores in (results["scores"], *results["baselines"].values()):
        assert set(scores["retrieval"]) == {"kept"}
        assert set(scores["clustering"]["gallery"]) == {"silhouette"}
    assert "the data has no labels" in " ".join(results["left_out"])
    assert results["training"]["history"][0]["validation"] == {}
    found = np.load(tmp_path / "run" / "neighbours.npz")
    assert found["cluster_indices"].shape == (6, 100)  # more than the gallery: the rest is -1
    assert (found["exhaustive_indices"] >= 0).sum(1).tolist() == [40] * 6


def test_a_folder_of_own_images_with_a_broken_one_and_an_odd_name(tmp_path):
    for name in ("a & <b>", "café"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i, pixels in enumerate(colour_images(20)):
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "images" / "café" / "broken.png").write_bytes(b"\x89PNG\r\n")
    data = ("data.source=folder", f"data.directory={tmp_path / 'images'}", "data.image_size=(8,8)")
    assert main(arguments(tmp_path / "run", *data, *SMALL)) == 0
    (skipped,) = results_of(tmp_path / "run")["provenance"]["data"]["skipped"]
    assert "broken.png" in skipped
    page = (tmp_path / "run" / "report.html").read_text()
    assert "a &amp; &lt;b&gt;" in page and "<b>" not in page
    names = json.loads((tmp_path / "run" / "images.json").read_text())
    assert sorted(names["gallery"] + names["queries"]) == sorted(
        f"{name}/{i}.png" for name in ("a & <b>", "café") for i in range(20)
    )
    streaming = (*data, *SMALL, "data.streaming=True")
    assert main(arguments(tmp_path / "streamed", *streaming)) == 0
    assert "broken.png" in results_of(tmp_path / "streamed")["provenance"]["data"]["skipped"][0]
    values, streamed = (np.load(tmp_path / run / "embeddings.npz") for run in ("run", "streamed"))
    for name in ("gallery", "queries"):
        np.testing.assert_allclose(streamed[name], values[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("data.queries=1790",), "leave 7 gallery images for 10 classes"),
        (("retrieval.neighbours=1000000000000",), "lower retrieval.neighbours"),
        (("clustering.k=1708",), "clustering.k is 1708 but the gallery has 1707"),
        (
            ("model.encoder.convolutional.widths=(4,4,4,4)", "model.decoder.widths=(4,4,4,4)"),
            "divisible by 16",
        ),
        (("data.source=folder", "data.directory=nowhere"), "nowhere"),
        (("data.source=tfds", "data.directory=nowhere"), "nowhere"),
        (("data.source=npz", "data.file=nowhere.npz"), "nowhere.npz"),
        (("model.encoder.convolutional.bottleneck=1000000000000",), "lower the widths under model"),
        (
            (
                *("objective.moco.weight=1.0", "objective.moco.queue=1000000000000"),
                *("views.main.count=2", "training.ema_decay=0.9"),
            ),
            "the queue of an objective",
        ),
        (("clustering.restarts=1000000000000", *SMALL), "lower clustering.restarts"),
        (("optimizer.learning_rate=1e30",), "is not finite at step"),
    ],
)
def test_bad_input_ends_with_one_sentence(tmp_path, capsys, overrides, says):
    assert main(arguments(tmp_path / "run", *overrides)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and says in said and said.count("\n") == 1


def test_a_classification_loss_without_labels_is_refused(tmp_path, capsys):
    np.savez(tmp_path / "images.npz", images=colour_images(46))
    data = ("data.source=npz", f"data.file={tmp_path / 'images.npz'}")
    assert main(arguments(tmp_path / "run", *data, *SMALL)) == 2
    assert "has no labels" in capsys.readouterr().err


@pytest.mark.fast
def test_a_workdir_as_people_type_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = f"--config={CONFIGS / 'quickstart.py'}"
    assert parse([config, "--workdir=~/runs/x"])[1] == epath.Path(tmp_path / "runs" / "x")
    for workdir in ("", "http://host/run", "file:///run", "s3://bucket/run", "gs://", "/gs/run"):
        assert main([config, f"--workdir={workdir}"]) == 2
        assert capsys.readouterr().err == (
            f"error: {workdir!r} can't be used; give a directory or gs://BUCKET/DIRECTORY\n"
        )
    for odd in ("--workdir=a\udcff", "--config.name=\x1b[31m", "--workdir=a\nb"):
        assert main([config, "--workdir=x", odd]) == 2
        said = capsys.readouterr().err
        assert "control characters or is no UTF-8" in said and said.count("\n") == 1
        assert said.isprintable() or said[:-1].isprintable()


@pytest.mark.parametrize("kind", ["file", "under a file", "no permission"])
def test_a_workdir_that_cannot_be_written_is_refused(tmp_path, capsys, kind):
    (tmp_path / "file").write_text("")
    workdir = {
        "file": tmp_path / "file",
        "under a file": tmp_path / "file" / "run",
        "no permission": Path("/proc/run"),
    }[kind]
    assert main(arguments(workdir)) == 2
    said = capsys.readouterr().err
    assert "can't be written" in said and str(workdir) in said
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("name", ["lr[0.1]", "a*", "b?", "c\\d"])
def test_a_workdir_under_which_checkpoints_cannot_be_found_is_refused(tmp_path, capsys, name):
    assert main(arguments(tmp_path / name)) == 2
    assert "with which checkpoints can't be found again" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("to", [">/dev/full", ">&-", "2>&-", "| head -1", "2>/dev/full"])
def test_where_nobody_reads_nothing_breaks(to):
    command = f"set -o pipefail; {sys.executable} -OO -m retrieval_jax.main --help {to}"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    ("to", "code", "said"),
    [(">/dev/full", 2, "can't be written"), (">&-", 0, ""), ("2>/dev/full", 0, "")],
)
def test_an_answer_that_cannot_be_written_is_no_success(tmp_path, to, code, said):
    (tmp_path / "sweep.py").write_text(
        "from retrieval_jax.sweep import Sweep\n"
        "def get_sweep():\n    return Sweep(['quickstart'])\n"
    )
    arguments = f"sweep {tmp_path}/sweep.py --workdir={tmp_path}/runs --list"
    command = f"{sys.executable} -m retrieval_jax {arguments} {to}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert run.returncode == code, run.stderr
    assert said in run.stderr and "Traceback" not in run.stderr


def test_the_program_itself_exits_2_without_a_traceback(tmp_path):
    config = tmp_path / "wrong.py"
    config.write_text("def get_config():\n    return 1 / 0\n")
    command = [sys.executable, "-m", "retrieval_jax.main", f"--config={config}", "--workdir=x"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2
    assert "ZeroDivisionError" in run.stderr and run.stderr.count("\n") == 1
    config.write_text("x = 1\n")
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2 and "get_config" in run.stderr and "Traceback" not in run.stderr
