"""Files made to hurt: whatever is in one, its reader says so or reads it."""

import contextlib
import json
import os
import random
import sys
import warnings
import zipfile

import numpy as np
import pytest
from etils import epath
from test_report import results

from retrieval_jax.data.npz import from_npz
from retrieval_jax.report import text
from retrieval_jax.report.compare import terminal, to_html
from retrieval_jax.report.comparison import Run, compare, group
from retrieval_jax.report.results import read
from retrieval_jax.runtime import memory, progress
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.files import read_arrays, read_bytes, read_json
from retrieval_jax.runtime.records import plain
from tools.fuzz import readers

pytestmark = pytest.mark.fast


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(OSError, match="no regular file"):
        read_bytes(epath.Path(tmp_path / "results.json"))
    with pytest.raises(UserError, match="no regular file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(UserError, match="is not a file"):
        from_npz(tmp_path / "a.npz")


def test_members_that_are_no_arrays_and_bombs_are_named(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", b"x" * 40)
    with pytest.raises(ValueError, match="'images' is no array"):
        read_arrays(epath.Path(path))
    with pytest.raises(UserError, match="'images' is no array"):
        from_npz(path)
    np.savez_compressed(path, images=np.zeros((10, 100, 100), np.uint8))
    monkeypatch.setattr(memory, "available", lambda: 50_000)
    with pytest.raises(UserError, match="take 0.0 GB .* are available"):
        from_npz(path)


def test_channels_first_are_recognised(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((5, 3, 32, 32), np.uint8))
    with pytest.raises(UserError, match=r"axis 1 looks like channels: save .*\(0, 2, 3, 1\)"):
        from_npz(tmp_path / "a.npz")


def test_nesting_without_end_is_no_json(tmp_path):
    (tmp_path / "results.json").write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match="nested too deep"):
        read_json(epath.Path(tmp_path / "results.json"))
    with pytest.raises(UserError, match="not JSON"):
        read(tmp_path)


@pytest.mark.parametrize("cut", ["5" * 5000, "", "-5", "5.0", "٥"])
def test_cutoffs_are_numbers(tmp_path, cut):
    content = plain(results()) | {"format": 2}
    content["scores"]["retrieval"]["exhaustive"]["precision_at"][cut] = {"value": 0.5}
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is no number of neighbours"):
        read(tmp_path)


def test_a_long_name_widens_nothing(tmp_path):
    named = results()._replace(name="n" * 3000)
    found = compare(group([Run(epath.Path("a"), named), Run(epath.Path("b"), results())]))
    assert max(map(len, found.heads)) <= 80
    assert max(map(len, terminal(found, 100).splitlines())) <= 100
    assert "n" * 81 not in to_html(found, [])


def test_escapes_never_reach_a_terminal(capsys):
    progress.say("a set called \x1b]0;owned\x07")
    text.say("two\nlines \x1b[2J", sys.stdout)
    printed = capsys.readouterr().out
    assert printed == "a set called \\x1b]0;owned\\x07\ntwo\nlines \\x1b[2J\n"


def mutated(seed, content):
    """The content with a few bytes changed, inserted, removed or doubled."""
    chance, data = random.Random(seed), bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        at = chance.randrange(len(data) + 1)
        other = chance.choice([0, 1, 127, 128, 255, ord("9"), ord("-"), ord('"')])
        match chance.randrange(5):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at : at + 4] = bytes([other] * 4)
            case 2:
                del data[at : at + chance.randrange(1, 40)]
            case 3:
                data[at:at] = data[at : at + chance.randrange(40)]
            case 4:
                del data[at:]
    return bytes(data)


NAMES = ["decode", "labels", "npz", "arrays", "index", "model", "embeddings", "photos", "tfds"]


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_refused(tmp_path, name, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reader = readers()[name]
    seeds = reader.seeds(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds if name != "decode" else []:  # one of whose pictures is of floats
            reader.read(seed, tmp_path)
        for i in range(30 if name == "tfds" else 150):
            with contextlib.suppress(*reader.refusals):
                reader.read(mutated(i, seeds[i % len(seeds)]), tmp_path)


ODD = [None, 0, -1, 10**400, 1e308, float("nan"), float("inf"), True, "", "\ud800", "x" * 5000,
       [], {}, [[]], {"value": 1}, ["\x1b[2J"], "<script>", 0.5]  # fmt: skip


def places(tree, path=()):
    yield path
    for key in tree if isinstance(tree, dict) else range(len(tree) if type(tree) is list else 0):
        yield from places(tree[key], (*path, key))


def test_results_with_any_value_changed_are_refused_or_shown(tmp_path):
    reader = readers()["results"]
    for seed in reader.seeds(tmp_path):
        every = list(places(json.loads(seed)))[1:]
        chance = random.Random(0)
        for path in chance.sample(every, min(len(every), 150)):
            content = json.loads(seed)
            inner = content
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = chance.choice(ODD)
            with contextlib.suppress(*reader.refusals):
                reader.read(json.dumps(content).encode(), tmp_path)


def test_what_the_fuzzer_found(tmp_path):
    """An archive that says it spans disks; a baseline that doesn't say how many features it has."""
    end = b"PK\x06\x07    PK\x05\x062       \x01\xdc\xf9\xff\xff   $\x00\x00-"
    reader = readers()["index"]
    with pytest.raises(UserError, match="damaged"):
        reader.read(end, tmp_path)
    content = results()
    without = {name: of._replace(features=None) for name, of in content.baselines.items()}
    record = json.dumps({"format": 2} | plain(content._replace(baselines=without)))
    readers()["results"].read(record.encode(), tmp_path)
