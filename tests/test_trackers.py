"""Trackers: what each keeps is read back by its own reader; one that fails stops nothing."""

import json
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog

from retrieval_jax import build, config
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.training.logs import MetricLog, scalars
from retrieval_jax.training.trackers import MLflow, TensorBoard, WandB

ROWS = [
    {
        "epoch": epoch,
        "step": 42 * epoch,
        "fit": {"loss": 1 / epoch, "reconstruction": 0.5 / epoch},
        "validation": {"loss": 2 / epoch},
        "seconds": 1.5,
    }
    for epoch in (1, 2, 3)
]
EXPECTED = {(row["step"], name): value for row in ROWS for name, value in scalars(row).items()}
ABOUT = {"name": "digits", "config": {"seed": 7, "data": {"image_size": [32, 32]}}}


def interrupted_and_resumed(workdir, **trackers):
    """Two epochs are written; the second start knows of one more than was told, and ends."""
    workdir.mkdir(exist_ok=True)
    for before, after in ((0, 1), (2, 3)):
        log = MetricLog(epath.Path(workdir), trackers)
        log.begin(ROWS[:before])
        for row in ROWS[before:after]:
            log.write(row)
        log.close()


class Kept:
    """A tracker of one's own, that may fail."""

    def __init__(self, fails=""):
        self.fails, self.told, self.closed = fails, [], 0

    def scalars(self, step, values):
        self.told.append(step)
        if self.fails == "scalars":
            raise OSError(28, "No space left on device")

    def close(self):
        self.closed += 1
        if self.fails == "close":
            raise TimeoutError("still uploading")


@pytest.mark.fast
def test_a_resumed_run_tells_all_rows(tmp_path):
    kept = Kept()
    interrupted_and_resumed(tmp_path, own=lambda workdir: kept)
    assert kept.told == [42, 42, 84, 126] and kept.closed == 2
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS


@pytest.mark.fast
def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(tmp_path, capsys):
    good, full, slow = Kept(), Kept("scalars"), Kept("close")

    def away(workdir):
        raise ConnectionError("nobody\nanswers")

    trackers = {
        "Full": lambda workdir: full,
        "Away": away,
        "Slow": lambda workdir: slow,
        "Good": lambda workdir: good,
    }
    log = MetricLog(epath.Path(tmp_path), trackers)
    log.begin([])
    for row in ROWS:
        log.write(row)
    log.close()
    said = capsys.readouterr().out.splitlines()
    assert [line.strip().partition(";")[0] for line in said] == [
        "Away failed (nobody)",
        "Full failed (No space left on device)",
        "Slow failed (still uploading)",
    ]
    assert full.told == [42] and good.told == slow.told == [42, 84, 126]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.fast
def test_the_newest_event_file_has_every_epoch_and_hides_the_others(tmp_path):
    interrupted_and_resumed(tmp_path, TensorBoard=TensorBoard)
    newest = max((tmp_path / "tensorboard").iterdir())
    data, found, starts = newest.read_bytes(), {}, []
    while data:  # TFRecord: length, its checksum, the record, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        if event.HasField("session_log"):
            starts.append((event.session_log.status, event.step))
        found |= {(event.step, of.tag): of.simple_value for of in event.summary.value}
        data = data[16 + length :]
    assert found == pytest.approx(EXPECTED) and starts == [(SessionLog.START, 0)]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
@pytest.mark.fast
def test_a_missing_package_is_refused_with_the_cure():
    c = config.default()
    c.tracking.wandb = "digits"
    with pytest.raises(UserError, match=r"^tracking.wandb needs .* 'retrieval-jax\[wandb\]', or"):
        build.experiment(c)


@pytest.mark.fast
def test_trackers_are_those_of_the_config_and_bind_no_workdir():
    c = config.default()
    assert list(build.experiment(c).trackers) == ["TensorBoard"]
    c.tracking.tensorboard = False
    assert not build.experiment(c).trackers


def leveldb_records(data, at):
    """The records of a file in LevelDB's log format, from the position `at` of a 32 KiB block."""
    parts = b""
    while len(data) >= 7:
        room = 2**15 - at % 2**15
        if room < 7:  # no header fits
            data, at = data[room:], at + room
            continue
        length, kind = struct.unpack("<HB", data[4:7])  # after a checksum
        parts += data[7 : 7 + length]
        data, at = data[7 + length :], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


# Their packages warn of deprecations inside themselves, which this project's tests make errors.
@pytest.mark.filterwarnings("default")
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    interrupted_and_resumed(tmp_path, WandB=lambda at: WandB(at, project="digits", **ABOUT))
    wandb.teardown()  # as at the end of a process: its own process has then written everything
    ids, found, seeds = set(), {}, set()
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    for file in files:
        for data in leveldb_records(file.read_bytes()[7:], at=7):
            record = Record.FromString(data)
            if record.HasField("run"):
                ids.add((record.run.run_id, record.run.project, record.run.display_name))
                seeds |= {of.value_json for of in record.run.config.update if of.key == "seed"}
            items = {
                of.key or "/".join(of.nested_key): json.loads(of.value_json)
                for of in record.history.item
            }
            for name, value in items.items():
                if not name.startswith("_"):
                    found[items["_step"], name] = value
    run = json.loads((tmp_path / "tracking.json").read_text())["run"]
    assert ids == {(run, "digits", "digits")} and seeds == {"7"}
    assert found == EXPECTED


@pytest.mark.filterwarnings("default")
def test_mlflow_in_a_file_store(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    for workdir in (tmp_path / "a", tmp_path / "b"):
        interrupted_and_resumed(workdir, MLflow=lambda at: MLflow(at, experiment="digits", **ABOUT))
    client = MlflowClient()
    where = client.get_experiment_by_name("digits").experiment_id
    runs = client.search_runs([where])
    assert len(runs) == 2  # not four
    for run in runs:
        assert (run.info.run_name, run.info.status) == ("digits", "FINISHED")
        assert run.data.params == {"seed": "7", "data.image_size": "[32, 32]"}
        history = [
            of
            for name in run.data.metrics
            for of in client.get_metric_history(run.info.run_id, name)
        ]
        assert len(history) == len(EXPECTED)
        assert {(of.step, of.key): of.value for of in history} == EXPECTED


@pytest.mark.filterwarnings("default")
def test_a_server_that_does_not_answer_is_one_sentence(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    interrupted_and_resumed(tmp_path, MLflow=lambda at: MLflow(at, experiment="digits", **ABOUT))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all(line.startswith("  MLflow failed (") for line in said)
    assert len(Path(tmp_path, "metrics.jsonl").read_text().splitlines()) == 3
