"""Checkpoints: what is kept, what is damaged and set aside, what can't be written."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import optax
import pytest

from retrieval_jax.runtime.errors import UserError
from retrieval_jax.training.checkpoints import Checkpoints


class State(NamedTuple):
    """A tree of all that a train state is made of."""

    step: np.ndarray
    params: dict
    opt_state: tuple
    target: Any
    memory: dict


def state_at(step):
    generator = np.random.default_rng(step)
    kernel = generator.standard_normal((100, 40)).astype(np.float32)
    params = {"layers": [{"kernel": kernel}, {"bias": np.ones(4)}]}
    average = {"queue": np.full((2, 3), step, ml_dtypes.bfloat16), "nothing": ()}
    moments = optax.MaskedNode(), optax.ScaleByAdamState(np.int32(step), kernel, -kernel)
    return State(np.int32(step), params, moments, None, average)


def record_at(step):
    return {"history": [{"epoch": 1, "fit": {"loss": 0.1 + step / 7}}], "seconds": 2.5}


def save(directory, scores):
    """Saves a state at steps 1, 2, … with these scores, None inside an epoch."""
    checkpoints = Checkpoints(directory)
    for step, score in enumerate(scores, 1):
        checkpoints.save(step, state_at(step), record_at(step), score)
        checkpoints._manager.wait_until_finished()
    checkpoints.close()


def assert_restores(directory, step):
    state, record = Checkpoints(directory).restore(state_at(0))
    expected = state_at(step)
    assert record == record_at(step)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def steps_in(directory):
    return sorted(int(path.name) for path in directory.iterdir())


@pytest.mark.fast
def test_without_one_there_is_none(tmp_path):
    assert Checkpoints(tmp_path / "none").restore(state_at(3)) is None


@pytest.mark.fast
def test_the_newest_two_and_the_best_are_kept(tmp_path):
    save(tmp_path / "runs", [-0.5, -0.2, None, -0.4, -np.inf, None])
    assert steps_in(tmp_path / "runs") == [2, 5, 6]
    assert_restores(tmp_path / "runs", 6)


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(checkpoint):
    os.truncate(largest_file(checkpoint), largest_file(checkpoint).stat().st_size // 2)


def flip_a_bit(checkpoint):
    path = largest_file(checkpoint)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_the_record(checkpoint):
    shutil.rmtree(checkpoint / "record")


def change_the_record(checkpoint):
    path = checkpoint / "record" / "metadata"
    path.write_text(path.read_text().replace("2.5", "2.6"))


# TensorStore's threads complain of the event loop that Orbax' failed read has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.fast
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_the_record, change_the_record])
def test_a_damaged_one_is_set_aside_and_the_one_before_is_taken(tmp_path, capsys, damage):
    directory = tmp_path / "checkpoints"
    save(directory, [0.3, 0.4, 0.5])
    damage(directory / "3")
    assert_restores(directory, 2)
    assert "checkpoint 3 can't be read" in capsys.readouterr().out
    assert steps_in(directory) == [2]
    (aside,) = (tmp_path / "damaged").iterdir()
    assert aside.name.startswith("3-") and largest_file(aside).exists()
    again = Checkpoints(directory)  # the same step can be saved again
    again.save(3, state_at(3), record_at(3), 0.5)
    again.close()
    assert_restores(directory, 3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_all_are_damaged_it_is_said_before_training_starts_anew(tmp_path):
    save(tmp_path / "checkpoints", [0.5, 0.4])
    for step in (1, 2):
        truncate(tmp_path / "checkpoints" / str(step))
    with pytest.raises(
        UserError, match="none of the checkpoints can be read; they are in .*damaged"
    ):
        Checkpoints(tmp_path / "checkpoints").restore(state_at(0))
    assert Checkpoints(tmp_path / "checkpoints").restore(state_at(0)) is None


@pytest.mark.fast
def test_those_of_another_tree_are_refused_and_left_alone(tmp_path):
    directory = tmp_path / "checkpoints"
    save(directory, [0.5])
    state = state_at(0)
    kernel = state.opt_state[1].mu
    for other, names in (
        (state._replace(target={"kernel": kernel}), r"\.target\['kernel'\] float32 \[100, 40\]"),
        (state._replace(memory={}), r"\.memory\['queue'\] bfloat16 \[2, 3\]"),
        (state._replace(step=np.int64(0)), r"\.step int32 \[\]"),
        (state._replace(params={"layers": state.params["layers"][::-1]}), "kernel"),
    ):
        with pytest.raises(
            UserError, match=f"are of another network or optimizer .*{names}.*; give another dir"
        ) as caught:
            Checkpoints(directory).restore(other)
        assert "\n" not in str(caught.value)
    assert_restores(directory, 1)


@pytest.mark.fast
def test_those_of_another_origin_are_refused_and_left_alone(tmp_path):
    save(tmp_path / "checkpoints", [0.5])
    with pytest.raises(UserError, match="are of another run; give another --workdir"):
        Checkpoints(tmp_path / "checkpoints", origin="another").restore(state_at(0))
    assert_restores(tmp_path / "checkpoints", 1)


def test_one_that_cannot_be_read_back_ends_the_run_before_the_one_before_is_removed(tmp_path):
    said = failing_saves(
        tmp_path / "checkpoints",
        """
        checkpoints.save(1, state_at(1), record_at(1))
        for step in (2, 3, 4):
            checkpoints.save(step, state_at(step), record_at(step))
            checkpoints._manager.wait_until_finished()
            (directory / str(step) / "state" / "manifest.ocdbt").unlink()
        """,
    )
    assert "can't be written (No such file or directory)" in said
    assert steps_in(tmp_path / "checkpoints") == [1, 2]


def test_a_clock_that_is_set_forward_during_a_save_is_no_failure(tmp_path):
    said = failing_saves(
        tmp_path / "checkpoints",
        """
        import time
        now, since, start = time.time, time.monotonic, time.monotonic()
        time.time = lambda: now() + 3600 * int(100 * (since() - start))
        for step in (1, 2, 3):
            checkpoints.save(step, state_at(step), record_at(step))
        checkpoints.close()
        assert time.time() > now() + 10 * 3600
        print("saved")
        """,
    )
    assert said == "saved\n"
    assert_restores(tmp_path / "checkpoints", 3)


def test_what_failed_first_is_said(tmp_path):
    said = failing_saves(
        tmp_path / "checkpoints",
        """
        from contextlib import closing
        wait = checkpoints._manager.wait_until_finished
        def late():
            checkpoints._manager.wait_until_finished = wait
            raise TimeoutError("too late")
        with closing(checkpoints):
            checkpoints.save(1, state_at(1), record_at(1))
            wait()
            (directory / "1" / "record" / "metadata").unlink()
            checkpoints._manager.wait_until_finished = late
            checkpoints.save(2, state_at(2), record_at(2))
        """,
    )
    assert "can't be written (too late)" in said


def failing_saves(directory, body):
    """What a process says whose saves can't be written; Orbax' threads would outlive a test's."""
    code = f"""
import os, shutil, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_checkpoints import *
directory = Path({str(directory)!r})
checkpoints = Checkpoints(directory)
try:
{textwrap.indent(textwrap.dedent(body), "    ")}
except UserError as error:
    print(error, flush=True)
os._exit(0)
"""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def test_a_directory_that_vanished_is_said(tmp_path):
    said = failing_saves(
        tmp_path / "checkpoints",
        """
        shutil.rmtree(directory)
        directory.write_text("a file in its place")
        checkpoints.save(1, state_at(1), record_at(1), 0.5)
        checkpoints.close()
        """,
    )
    assert re.search(r"checkpoints' can't be written \(.+\); make room or mend it", said)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk_is_said_and_the_last_good_one_stays(small_disk):
    directory = small_disk / "checkpoints"
    save(directory, [0.5])
    (small_disk / "filler").write_bytes(bytes(60_000))
    said = failing_saves(
        directory,
        """
        for step in (2, 3, 4, 5):
            checkpoints.save(step, state_at(step), record_at(step), 0.4)
        checkpoints.close()
        """,
    )
    assert re.search(r"can't be written \(.+\); make room", said)
    (small_disk / "filler").unlink()
    state, _ = Checkpoints(directory).restore(state_at(0))
    assert state.step >= 1
    assert_restores(directory, int(state.step))
