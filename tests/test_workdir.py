"""A workdir belongs to one run, and its files are whole."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from retrieval_jax.runtime import workdir as workdir_files
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.files import locked, write_arrays, write_json


def claim(workdir, content, origin="a", data=None):
    contents = {"config.json": content, "data.json": data or {"images": 2}}
    workdir_files.claim(epath.Path(workdir), contents, origin)


def test_the_same_content_claims_again_and_another_is_refused(tmp_path):
    claim(tmp_path, {"a": {"b": 1, "c": (1, 2)}, "d": "x"})
    claim(tmp_path, {"d": "x", "a": {"b": 1, "c": (1, 2)}})
    with pytest.raises(
        UserError, match=r"a\.b is 1 there and 2 here; d is 'x' there and 'nothing'"
    ):
        claim(tmp_path, {"a": {"b": 2, "c": (1, 2)}})
    with pytest.raises(UserError, match="images is 2 there and 3 here"):
        claim(tmp_path, {"d": "x", "a": {"b": 1, "c": (1, 2)}}, data={"images": 3})


def test_many_differences_are_counted(tmp_path):
    claim(tmp_path, {str(i): i for i in range(9)})
    with pytest.raises(UserError, match="and 6 more"):
        claim(tmp_path, {str(i): i + 1 for i in range(9)})


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        claim(tmp_path, {})


def test_one_of_the_two_that_is_gone_comes_back_for_its_own_run_alone(tmp_path):
    claim(tmp_path, {"seed": 0})
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="data.json' is of a run with another config"):
        claim(tmp_path, {"seed": 1}, origin="b")
    claim(tmp_path, {"seed": 0})
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_a_lease_is_taken_over_from_a_dead_process_and_not_from_a_live_one(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_files, "_RENEWED", 1.0)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    path, lease = epath.Path(tmp_path), tmp_path / "lease.json"
    for number, host in ((ended.pid, socket.gethostname()), (1, "elsewhere")):
        lease.write_text(json.dumps({"owner": f"process {number} on {host}", "count": 3}))
        with workdir_files._leased(path):
            assert f"process {os.getpid()} on" in json.loads(lease.read_text())["owner"]
        assert not lease.exists()
    with workdir_files._leased(path):
        content = json.loads(lease.read_text())
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(UserError, match="another process is running here"):
            workdir_files._leased(path).__enter__()
        assert json.loads(lease.read_text())["token"] == content["token"]


def test_files_come_back_and_leave_nothing_beside_them(tmp_path):
    write_json(tmp_path / "x.json", {"café": [1.5, None]})
    write_arrays(tmp_path / "x.npz", a=np.arange(3), b=np.eye(2, dtype=np.float32))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.npz"]
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["a"].tolist() == [0, 1, 2] and arrays["b"].dtype == np.float32


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", float("nan"))
    assert not (tmp_path / "x.json").exists()


def test_a_lock_lets_in_one_process_at_a_time(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from retrieval_jax.runtime.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('in', flush=True)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "below" / "lock")]
    with locked(tmp_path / "below" / "lock"):
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=3)
    assert other.communicate(timeout=60)[0] == "in\n"


def test_a_link_in_place_of_the_lock_is_refused(tmp_path):
    precious, workdir = tmp_path / "precious.txt", tmp_path / "run"
    precious.write_text("the user's")
    workdir.mkdir()
    (workdir / ".lock").symlink_to(precious)
    with (
        pytest.raises(UserError, match="can't be written"),
        workdir_files.held(epath.Path(workdir)),
    ):
        pass
    assert precious.read_text() == "the user's"


def test_no_lock_is_opened_through_a_link(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("the user's")
    (tmp_path / ".set.lock").symlink_to(precious)
    with pytest.raises(OSError), locked(tmp_path / ".set.lock"):
        pass
    assert precious.read_text() == "the user's"
