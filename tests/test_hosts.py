"""Several processes on loopback, real ones: one result however the devices are spread over them."""

import json
import signal
import time

import numpy as np
import pytest

from tools import chaos

SETTINGS = (
    *("training.epochs=2", "training.checkpoint_seconds=0.0", "report.tsne_points=0"),
    "data.streaming=True",  # each process reads its own rows
)


class Hosts:
    """The same command in several processes on loopback."""

    def __init__(self, workdir, processes, devices, *settings, own=None, meet=None):
        """`own`: process → settings of its own; `meet`: how many are really started."""
        workdir.parent.mkdir(exist_ok=True)
        each = [
            [*keys, *settings, *(own or {}).get(i, ())]
            for i, keys in enumerate(chaos.keys_to_meet(processes))
        ]
        self.workdir = workdir
        self.processes = chaos.started(workdir, devices, each[:meet])

    def wait(self):
        """The exit codes."""
        return chaos.finish(self.processes)

    def said(self, process):
        return chaos.log_of(self.workdir, process).read_text()


def figures(workdir):
    results = json.loads((workdir / "results.json").read_text())
    history = [
        {part: row[part] for part in ("epoch", "step", "fit", "validation")}
        for row in results["training"]["history"]
    ]
    return [history] + [results[key] for key in ("scores", "baselines", "left_out")]


def test_one_result_on_any_hosts_and_across_an_interruption(tmp_path):
    whole = Hosts(tmp_path / "whole", 2, 1, *SETTINGS)
    assert whole.wait() == [0] * 2, whole.said(0)
    # Reports and lines are the first process' alone.
    assert "epoch 2/2" in whole.said(0) and "epoch" not in whole.said(1)
    assert len(list((tmp_path / "whole" / "tensorboard").iterdir())) == 1

    parts = Hosts(tmp_path / "parts", 2, 1, *SETTINGS)
    checkpoints = tmp_path / "parts" / "checkpoints"
    deadline = time.monotonic() + 300
    while not (checkpoints.exists() and any(p.name.isdigit() for p in checkpoints.iterdir())):
        assert parts.processes[1].poll() is None and time.monotonic() < deadline, parts.said(1)
        time.sleep(0.02)
    parts.processes[1].send_signal(signal.SIGTERM)  # the host that writes nothing
    assert parts.wait() == [75, 75], parts.said(0) + parts.said(1)
    assert "interrupted; run the same command again" in parts.said(0)
    steps = [int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()]
    assert 0 < max(steps) < 84  # 42 steps an epoch
    assert not (tmp_path / "parts" / "embeddings.npz").exists()

    resumed = Hosts(tmp_path / "parts", 1, 2, *SETTINGS)
    assert resumed.wait() == [0], resumed.said(0)
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    for name in ("embeddings.npz", "clusters.npz", "neighbours.npz"):
        one, many = (np.load(tmp_path / run / name) for run in ("whole", "parts"))
        assert one.files == many.files
        for key in set(one.files) - {"seconds"}:
            np.testing.assert_array_equal(one[key], many[key])


def test_what_stops_one_process_stops_all_with_its_reason(tmp_path):
    images = np.zeros((40, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(40) % 2)
    settings = (*SETTINGS, "data.source=npz", "data.queries=4", "training.batch_size=8")
    own = {
        0: [f"data.file={tmp_path / 'images.npz'}"],
        1: [f"data.file={tmp_path / 'elsewhere.npz'}"],
    }
    hosts = Hosts(tmp_path / "run", 2, 1, *settings, own=own)
    assert hosts.wait() == [2, 2]
    for process in (0, 1):
        assert hosts.said(process).count("error: ") == 1
        assert "elsewhere.npz" in hosts.said(process).partition("error: ")[2]
        assert "Traceback" not in hosts.said(process)


def test_a_process_with_another_config_is_refused(tmp_path):
    own = {1: ["optimizer.learning_rate=0.01"]}
    hosts = Hosts(tmp_path / "run", 2, 1, *SETTINGS, own=own)
    assert hosts.wait() == [2, 2]
    for process in (0, 1):
        assert "optimizer.learning_rate is 0.001 there and 0.01 here" in hosts.said(process)


def test_a_lost_process_makes_the_others_ask_for_a_new_start(tmp_path):
    hosts = Hosts(tmp_path / "run", 2, 1, *SETTINGS)
    deadline = time.monotonic() + 300
    while "first step" not in hosts.said(0):
        assert hosts.processes[0].poll() is None and time.monotonic() < deadline, hosts.said(0)
        time.sleep(0.02)
    hosts.processes[1].kill()
    assert hosts.wait() == [75, -signal.SIGKILL], hosts.said(0)
    assert "lost process 1; run the same command" in hosts.said(0)
    assert "Traceback" not in hosts.said(0)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ("distributed.process=1", "two processes were started with distributed.process=1"),
        ("distributed.processes=3", "distributed.processes=3 and process 0 with 2"),
    ],
)
def test_a_process_that_is_told_otherwise_ends_all_in_a_sentence(tmp_path, own, says):
    each = [[*keys, *SETTINGS] for keys in chaos.keys_to_meet(2)]
    each = [*each, [*each[1], own]] if own.endswith("process=1") else [each[0], [*each[1], own]]
    workdir = tmp_path / "run"
    codes = chaos.finish(chaos.started(workdir, 1, each))
    said = [chaos.log_of(workdir, i).read_text() for i in range(len(each))]
    assert codes == [2] * len(each), said
    assert all(says in text and "Traceback" not in text for text in said), said


@pytest.mark.parametrize("process", [0, 1])
def test_a_host_that_is_missing_is_said_in_time(tmp_path, process):
    lonely = Hosts(
        tmp_path / "run", 2, 1, "distributed.timeout=2", f"distributed.process={process}", meet=1
    )
    assert lonely.wait() == [1]
    said = lonely.said(0)
    assert f"error: process {process} of 2 waited 2 s for all processes to meet" in said
    assert "Traceback" not in said
