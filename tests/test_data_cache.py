"""Decoded arrays come from the cache as long as nothing has changed, and only then."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from retrieval_jax.data import cache
from retrieval_jax.data.cache import cached, identity, stamp


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Source:
    """Makes other arrays at every call."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"images": np.full((3, 2, 2, 1), self.calls, np.uint8), "kind": np.array("PNG")}


def made_by(name="set", state="as it is", make=None):
    make = make or Source()
    arrays = cached(name, state, make)
    assert set(arrays) == {"images", "kind"} and arrays["kind"] == "PNG"
    return int(arrays["images"][0, 0, 0, 0])


def test_the_second_call_makes_nothing(home):
    make = Source()
    assert [made_by(make=make) for _ in range(3)] == [1, 1, 1] and make.calls == 1
    arrays = cached("set", "as it is", make)
    assert arrays["images"].shape == (3, 2, 2, 1) and arrays["images"].dtype == np.uint8


def test_another_state_or_name_is_made_again_and_replaces_its_own_only(home):
    make = Source()
    states = [("a", "x"), ("b", "x"), ("a", "y"), ("a", "y"), ("b", "x"), ("a", "x")]
    assert [made_by(*each, make) for each in states] == [1, 2, 3, 3, 2, 4]
    assert len(list(home.rglob("*.npz"))) == 2


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "text", "pickle", "folder"])
def test_a_damaged_cache_is_made_again_and_nothing_is_unpickled(home, damage):
    make = Source()
    made_by(make=make)
    (path,) = home.rglob("*.npz")
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "one bit":
        data[data.index(b"\1" * 12)] ^= 16  # a pixel
        path.write_bytes(data)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        bomb = pickle.dumps(Bomb(home / "boom"))
        path.write_bytes({"empty": b"", "text": b"hello", "pickle": bomb}[damage])
    assert made_by(make=make) == 2
    assert made_by(make=make) == (3 if damage == "folder" else 2)
    assert not (home / "boom").exists()


def test_arrays_of_objects_are_not_unpickled(home):
    made_by()
    (path,) = home.rglob("*.npz")
    state = np.load(path)["state"]
    np.savez(path, state=state, images=np.array([Bomb(home / "boom")]), kind=np.array("PNG"))
    assert made_by() == 1
    assert not (home / "boom").exists()


def test_a_cache_that_cannot_be_written_is_done_without(home, capsys):
    home.write_text("a file where the folder should be")
    make = Source()
    assert [made_by(make=make), made_by(make=make)] == [1, 2]
    assert "can't be written" in capsys.readouterr().out


def test_what_is_too_large_is_not_kept(home, monkeypatch):
    monkeypatch.setattr(cache, "_LARGEST", 20)
    make = Source()
    assert [made_by(make=make), made_by(make=make)] == [1, 2]
    assert not list(home.rglob("*.npz"))


def test_stamps_tell_files_apart_that_differ_in_size_or_time(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    os.utime(path, ns=(0, 1))
    before = stamp([path]), identity([path])
    os.utime(path, ns=(0, 2))
    assert stamp([path]) != before[0] and identity([path]) == before[1]
    path.write_bytes(b"123")
    os.utime(path, ns=(0, 1))
    assert stamp([path]) != before[0] and identity([path]) != before[1]
