"""results.json: what is written is what is read, of both formats, and nothing else passes."""

import json
import statistics
from pathlib import Path

import pytest
from etils import epath
from test_report import results, unlabelled

from retrieval_jax.report.compare import main
from retrieval_jax.report.results import (
    Score,
    average,
    file_checksums,
    finished,
    left_out,
    numbers,
    read,
    write,
)
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.records import plain, typed

pytestmark = pytest.mark.fast

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "cifar10"


@pytest.mark.parametrize("content", [results(), unlabelled()])
def test_reads_what_it_wrote(tmp_path, content):
    write(epath.Path(tmp_path), content)
    assert read(tmp_path) == content


def test_what_needs_labels_is_absent_without_them(tmp_path):
    write(epath.Path(tmp_path), unlabelled())
    content = json.loads((tmp_path / "results.json").read_text())
    for scores in (content["scores"], *content["baselines"].values()):
        assert set(scores["clustering"]["gallery"]) == {"silhouette"}
        assert set(scores["retrieval"]) == {"kept"}
    assert "null" not in (tmp_path / "results.json").read_text()


@pytest.mark.parametrize(
    "name", sorted(path.name for path in EXPERIMENTS.iterdir() if path.is_dir())
)
def test_format_1_is_read(name):
    old = json.loads((EXPERIMENTS / name / "results.json").read_text())
    new = read(EXPERIMENTS / name)
    assert old["format"] == 1 and new.name == old["name"]
    for side in ("gallery", "queries"):
        scores = getattr(new.scores.clustering, side)
        for measure, value in old["clustering"][side].items():
            assert getattr(scores, measure) == Score(value)
        assert scores.ami is scores.silhouette is scores.counts is None
    for way in ("cluster", "exhaustive"):
        found = getattr(new.scores.retrieval, way)
        again = {
            f"{measure}@{cut}": score.value
            for measure, cuts in (("precision", found.precision_at), ("map", found.map_at))
            for cut, score in cuts.items()
        }
        assert again == old["retrieval"][way] and found.map is None
    kept = {f"@{cut}": score.value for cut, score in new.scores.retrieval.kept.items()}
    assert kept == old["retrieval"]["kept"] and new.baselines == {}
    assert new.scores.clustering.sizes == tuple(old["clustering"]["sizes"])
    assert plain(new.training) == {
        key: value for key, value in old["training"].items() if value is not None
    }
    assert plain(new.provenance) == old["provenance"]


def test_averages_every_number_over_the_runs_that_have_it():
    first, second, third = results(), results(), unlabelled()
    gallery = second.scores.clustering.gallery._replace(nmi=Score(0.5, 0.1))
    clustering = second.scores.clustering._replace(gallery=gallery)
    second = second._replace(scores=second.scores._replace(clustering=clustering))
    found = average([first, second, third])
    nmi = found["scores", "clustering", "gallery", "nmi", "value"]
    assert nmi.n == 2 and nmi.mean == pytest.approx((0.39711 + 0.5) / 2)
    assert nmi.sd == pytest.approx(statistics.stdev([0.39711, 0.5]))
    assert found["scores", "retrieval", "kept", "5", "value"].n == 3
    assert found["training", "history", "2", "fit", "loss"].sd == 0
    assert found["seconds", "train"].mean == 2890
    assert ("baselines", "colour histogram", "clustering", "gallery", "ri", "value") in found
    assert not [path for path in found if {"sizes", "counts", "converged"} & set(path)]
    assert set(numbers(first)) <= set(found)
    (alone,) = {mean.sd for mean in average([first]).values()}
    assert alone is None
    with pytest.raises(ValueError, match="no run"):
        average([])


def test_a_run_is_finished_with_its_report(tmp_path):
    workdir = epath.Path(tmp_path)
    (tmp_path / "images.json").write_text("[]")
    whole = results()._replace(origin="a", files=file_checksums(workdir))
    assert finished(workdir, "a") is None
    write(workdir, whole)
    assert finished(workdir, "a") is None
    (tmp_path / "report.html").write_text("")
    assert finished(workdir, "a") == whole
    assert finished(workdir, "b") is None  # of another run
    content = (tmp_path / "results.json").read_text()
    edited = content.replace('"seed": 7', '"seed": 1')
    assert edited != content
    for other in ('{"format"', "{}", "7", "NaN", edited):
        (tmp_path / "results.json").write_text(other)
        assert finished(workdir, "a") is None
        with pytest.raises(UserError):
            read(workdir)
    write(workdir, results())  # as earlier versions did
    assert finished(workdir, "a") is None and read(workdir) == results()
    write(workdir, whole)
    (tmp_path / "images.json").write_text("[1]")
    assert finished(workdir, "a") is None


def test_left_out_says_why():
    assert left_out(labelled=True, validated=True, gallery=5, map_points=5) == ()
    sentences = left_out(labelled=False, validated=False, gallery=5, map_points=0)
    for sentence, named in zip(
        sentences, ("no labels", "validation_fraction", "tsne_points is 0"), strict=True
    ):
        assert named in sentence


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    content = results()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(epath.Path(tmp_path), content._replace(seconds={"train": float("nan")}))
    assert not (tmp_path / "results.json").exists()


def changed(path: str, value: object, content: dict | None = None) -> bytes:
    """A results file with one value in another's place; without it, where the value is ..."""
    content = content or {"format": 2} | json.loads(json.dumps(plain(results())))
    *keys, last = path.split(".")
    at = content
    for key in keys:
        at = at[int(key)] if isinstance(at, list) else at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return json.dumps(content).encode()


def old() -> dict:
    return json.loads((EXPERIMENTS / "hint" / "results.json").read_text())


BROKEN = {
    "empty": (b"", "broken"),
    "truncated": (changed("name", "x")[:200], "broken"),
    "binary": (b"\x89PNG\xff\xfe", "broken"),
    "deep": (b"[" * 100_000, "broken"),
    "digits": (b'{"format": ' + b"1" * 5000 + b"}", "broken"),
    "list": (b"[1, 2]", "not the results file"),
    "foreign": (b'{"scores": 1}', "not the results file"),
    "newer": (b'{"format": 3}', "format 3"),
    "nothing": (b'{"format": 2}', "name is missing"),
    "nothing of old": (b'{"format": 1}', "name is missing"),
    "score": (changed("scores.clustering.gallery.nmi.value", "high"), "gallery.nmi.value is not"),
    "bare score": (changed("scores.clustering.gallery.nmi", 0.5), "gallery.nmi is not an object"),
    "truth": (changed("scores.retrieval.kept.5.value", True), "kept.5.value is not a number"),
    "huge": (changed("scores.clustering.gallery.ri.value", 10**400), "gallery.ri.value"),
    "part": (changed("scores.clustering", [1]), "scores.clustering is not an object"),
    "counts": (changed("scores.clustering.gallery.counts", [[1.5]]), "counts.0.0 is not a whole"),
    "baseline": (changed("baselines.colour histogram", 3), "baselines.colour histogram is not"),
    "epoch": (changed("training.history", [3]), "history.0 is not an object"),
    "loss": (changed("training.history.2.fit.loss", []), "fit.loss is not a number"),
    "time": (changed("training.history.0.seconds", ...), "history.0.seconds is missing"),
    "stage": (changed("seconds.train", None), "seconds.train is not a number"),
    "name": (changed("name", 3), "name is not a text"),
    "sentence": (changed("left_out", [{}]), "left_out.0 is not a text"),
    "shape": (changed("provenance.data.image_shape", 8), "image_shape is not a list"),
    "converged": (changed("scores.clustering.converged", 1), "converged is not true or false"),
    "old score": (changed("clustering.gallery.nmi", "high", old()), "gallery.nmi is not a number"),
    "old part": (changed("retrieval", 1, old()), "retrieval is not an object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_results_file_gets_one_sentence(case, tmp_path, capsys):
    content, named = BROKEN[case]
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(UserError, match="results.json"):
        read(tmp_path)
    assert finished(epath.Path(tmp_path), "a") is None
    assert main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.endswith(".\n")
    assert named in err and "results.json" in err


def test_undefined_values_and_unknown_keys_are_no_error(tmp_path):
    content = json.loads(changed("scores.clustering.gallery.nmi.value", float("nan")))
    content["scores"]["clustering"]["gallery"]["ri"] = None
    content["training"]["history"][-1]["fit"]["loss"] = None
    content["seconds"]["train"] = float("inf")
    content["scores"]["later"] = [1]
    (tmp_path / "results.json").write_text(json.dumps(content))
    found = read(tmp_path)
    gallery = found.scores.clustering.gallery
    assert gallery.nmi.value != gallery.nmi.value and gallery.ri is None
    assert found.training.history[-1].fit["loss"] is None
    assert main([str(tmp_path)]) == 0


def test_a_whole_number_is_a_number_and_the_reverse_is_not():
    assert typed(Score, {"value": 1}) == Score(1.0)
    with pytest.raises(ValueError, match="whole number"):
        typed(int, 1.0, "k")
