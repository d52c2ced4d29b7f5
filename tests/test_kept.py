"""What a stage leaves is taken up when it is whole and follows from the same, and only then."""

import os

import numpy as np
import pytest

from retrieval_jax.runtime.stage_cache import kept

pytestmark = pytest.mark.fast


def maker(values):
    calls = []

    def make():
        calls.append(1)
        return {"a": np.asarray(values, np.float32), "count": np.asarray(len(values))}

    return make, calls


def test_a_stage_is_done_once(tmp_path):
    make, calls = maker([1, 2, 3])
    first, seconds = kept(tmp_path / "a.npz", 7, make)
    again, seconds_again = kept(tmp_path / "a.npz", 7, make)
    assert len(calls) == 1 and seconds == seconds_again > 0
    assert list(first) == list(again) == ["a", "count"]
    np.testing.assert_array_equal(first["a"], again["a"])
    assert again["a"].dtype == np.float32 and again["count"].shape == ()


def test_what_follows_from_something_else_is_made_again(tmp_path, capsys):
    make, calls = maker([1, 2, 3])
    kept(tmp_path / "a.npz", 7, make)
    kept(tmp_path / "a.npz", 8, make)
    assert len(calls) == 2 and "another state" in capsys.readouterr().out
    kept(tmp_path / "a.npz", 8, make)
    assert len(calls) == 2


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[content.index(np.float32(3).tobytes())] ^= 1
    path.write_bytes(content)


def put_an_object_in(path):
    np.savez(path, a=np.array([{}], object), made_from=7, seconds=1.0)


def leave_out_its_origin(path):
    np.savez(path, a=np.ones(3))


def change_a_value(path):
    with np.load(path) as archive:
        np.savez(path, **dict(archive) | {"a": np.ones(3, np.float32)})


DAMAGES = [truncate, flip_a_bit, put_an_object_in, leave_out_its_origin, change_a_value]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(tmp_path, capsys, damage):
    make, calls = maker([1, 2, 3])
    kept(tmp_path / "a.npz", 7, make)
    damage(tmp_path / "a.npz")
    arrays, _ = kept(tmp_path / "a.npz", 7, make)
    assert len(calls) == 2 and "a.npz can't be read" in capsys.readouterr().out
    np.testing.assert_array_equal(arrays["a"], [1, 2, 3])
