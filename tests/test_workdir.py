"""A workdir belongs to one run, and its files are whole."""

import subprocess
import sys

import numpy as np
import pytest

from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.files import locked, write_arrays, write_json
from retrieval_jax.runtime.workdir import claim


def test_the_same_content_claims_again_and_another_is_refused(tmp_path):
    claim(tmp_path, "config.json", {"a": {"b": 1, "c": (1, 2)}, "d": "x"})
    claim(tmp_path, "config.json", {"d": "x", "a": {"b": 1, "c": (1, 2)}})
    with pytest.raises(
        UserError, match=r"a\.b is 1 there and 2 here; d is 'x' there and 'nothing'"
    ):
        claim(tmp_path, "config.json", {"a": {"b": 2, "c": (1, 2)}})


def test_many_differences_are_counted(tmp_path):
    claim(tmp_path, "config.json", {str(i): i for i in range(9)})
    with pytest.raises(UserError, match="and 6 more"):
        claim(tmp_path, "config.json", {str(i): i + 1 for i in range(9)})


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable JSON"):
        claim(tmp_path, "config.json", {})


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
