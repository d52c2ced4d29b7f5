"""A finished run whose config changes: the stages that depend on it are done again, no others."""

import os
import shutil

import numpy as np
import pytest
from etils import epath
from test_main import CONFIGS

from retrieval_jax.main import main
from retrieval_jax.report.page import main as report
from retrieval_jax.runtime.model_file import read_tensors
from retrieval_jax.runtime.workdir import held

SHORT = ("training.epochs=2", "report.tsne_points=0", "model.decoder.widths=(8,8)")
FILES = ("embeddings.npz", "clusters.npz", "neighbours.npz")


def run(workdir, *overrides, config="quickstart:hint"):
    line = [f"--config={config}", f"--workdir={workdir}"]
    return main([*line, *(f"--config.{override}" for override in (*SHORT, *overrides))])


def arrays(workdir):
    """Everything that the stages left, but for when and from what."""
    found = {}
    for name in FILES:
        with np.load(workdir / name) as archive:
            found |= {(name, key): archive[key] for key in archive.files}
    return {
        key: a for key, a in found.items() if key[1] not in ("made_from", "seconds", "checksum")
    }


def same(a, b):
    a, b = arrays(a), arrays(b)
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def written(workdir):
    return {name: (workdir / name).stat().st_mtime_ns for name in FILES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert run(workdir) == 0
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("retrieval.neighbours=7", ("neighbours.npz",)),
        ("clustering.k=4", ("clusters.npz", "neighbours.npz")),
        ("embedding.normalize=True", FILES),
        ("embedding.precise_batchnorm=True", FILES),
        ("name=another", ()),
    ],
)
def test_only_what_depends_on_the_change_is_done_again(copy, capsys, override, again):
    before = written(copy)
    assert run(copy, override) == 0
    assert "epoch 1/" not in capsys.readouterr().out
    after = written(copy)
    assert tuple(name for name in FILES if before[name] != after[name]) == again


def test_a_change_and_back_ends_where_it_began(finished, copy):
    assert run(copy, "clustering.k=4") == 0
    assert not same(finished, copy)
    assert run(copy) == 0
    assert same(finished, copy)


def test_more_epochs_go_on_and_equal_a_run_of_as_many(copy, tmp_path, capsys):
    assert run(copy, "training.epochs=3") == 0
    assert "epoch 1/" not in capsys.readouterr().out
    assert run(tmp_path / "whole", "training.epochs=3") == 0
    assert same(copy, tmp_path / "whole")
    assert run(copy, "training.epochs=2") == 2
    assert "holds 3 epochs, more than training.epochs, 2" in capsys.readouterr().err


def test_more_epochs_are_refused_where_the_rate_depends_on_their_number(tmp_path, capsys):
    cosine = "optimizer.decay=cosine"
    assert run(tmp_path / "run", cosine, "training.epochs=1") == 0
    assert run(tmp_path / "run", cosine, "training.epochs=2") == 2
    assert "training.epochs is 1 there and 2 here" in capsys.readouterr().err


def test_another_training_is_refused(copy, capsys):
    before = written(copy)
    assert run(copy, "objective.classification.weight=2.0") == 2
    assert "objective.classification.weight is 1.0 there and 2.0 here" in capsys.readouterr().err
    assert written(copy) == before


def edit(path, **changes):
    """Other arrays, with everything else that the file says."""
    with np.load(path) as archive:
        np.savez(path, **dict(archive) | changes)


def test_what_is_not_the_runs_own_is_made_again(finished, copy, capsys):
    before = (copy / "embeddings.npz").stat().st_mtime_ns
    (copy / "images.json").write_text("{}")
    assert report([str(copy)]) == 2
    assert "images.json is not the file that the run left there" in capsys.readouterr().err
    with np.load(copy / "clusters.npz") as archive:
        edit(copy / "clusters.npz", gallery=archive["gallery"][::-1])
    assert report([str(copy)]) == 2
    assert "clusters.npz is not the file that the run left there" in capsys.readouterr().err
    assert run(copy) == 0
    said = capsys.readouterr().out
    assert "this run is complete" not in said and "epoch 1/" not in said
    assert "clusters.npz can't be read (it was changed after the run wrote it)" in said
    assert same(finished, copy) and (copy / "embeddings.npz").stat().st_mtime_ns == before
    assert (copy / "images.json").read_bytes() == (finished / "images.json").read_bytes()
    assert run(copy) == 0
    assert "this run is complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gone", "override", "says"),
    [
        (("config.json",), "optimizer.learning_rate=0.01", "data.json' is of a run with another"),
        (("config.json", "data.json"), "seed=0", "holds checkpoints of a run, but not config.json"),
    ],
)
def test_without_its_config_a_run_is_not_taken_for_another(copy, capsys, gone, override, says):
    for name in gone:
        (copy / name).unlink()
    assert run(copy, override) == 2
    assert says in capsys.readouterr().err
    assert not (copy / "config.json").exists()


@pytest.mark.parametrize("content", ["7", "{}", '{"seed": 0}', "NaN", "[" * 100_000])
def test_a_config_that_no_run_wrote_is_refused(copy, capsys, content):
    (copy / "config.json").write_text(content)
    assert run(copy) == 2
    said = capsys.readouterr().err
    assert "config.json' " in said and "give another --workdir" in said and said.count("\n") == 1


def test_checkpoints_of_another_seed_are_refused(finished, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "damaged").mkdir()
    (tmp_path / "run" / "metrics.jsonl").mkdir()  # so that it ends once it is claimed
    assert run(tmp_path / "run", "seed=1") == 2
    (tmp_path / "run" / "metrics.jsonl").rmdir()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(finished / "checkpoints", tmp_path / "run" / "checkpoints")
    capsys.readouterr()
    assert run(tmp_path / "run", "seed=1") == 2
    assert "are of another run; give another --workdir" in capsys.readouterr().err


def test_a_failed_start_leaves_the_workdir_free(tmp_path, capsys):
    assert run(tmp_path / "run", "data.source=npz", "data.file=typo.npz") == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_second_process_in_a_workdir_is_refused(copy, capsys):
    (copy / ".live.1-ab.tmp").write_text("half")
    with held(epath.Path(copy)):
        (copy / ".live.1-ab.tmp").write_text("half")  # which the first process is writing
        assert run(copy) == 2
        assert (copy / ".live.1-ab.tmp").exists()
    said = capsys.readouterr().err
    assert f"another process is running here (process {os.getpid()} on " in said
    assert run(copy) == 0 and not (copy / ".live.1-ab.tmp").exists()


def test_a_run_starts_from_another_ones_parameters(finished, tmp_path, capsys):
    line = [f"--config={CONFIGS / 'quickstart.py'}:vanilla", f"--workdir={tmp_path / 'run'}"]
    short = [f"--config.{override}" for override in SHORT]
    still = "--config.optimizer.learning_rate=1e-30"  # the parameters stay what they were
    assert main([*line, *short, still, f"--init_from={finished}"]) == 0
    # The hint's network has a classifier more, and every other parameter is taken.
    assert "22 of 22 parameters are those of" in capsys.readouterr().out
    ours, theirs = (read_tensors(epath.Path(of)) for of in (tmp_path / "run", finished))
    kernel = "params/encoder/bottleneck/kernel"
    np.testing.assert_array_equal(ours[kernel], theirs[kernel])
    assert {name for name in theirs if name not in ours} == {
        "params/head/dense/bias",
        "params/head/dense/kernel",
    }
    assert main([*line[:1], f"--workdir={tmp_path / 'x'}", f"--init_from={tmp_path}"]) == 2
    assert "model.safetensors is missing" in capsys.readouterr().err
