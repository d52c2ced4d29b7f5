"""Sweeps: what they plan, what they refuse, and real runs of which one fails."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from retrieval_jax.report.results import read
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.sweep import Sweep, main, plan, read_sweep

HEADER = "from retrieval_jax.sweep import Sweep\n\ndef get_sweep():\n    return "


def written(tmp_path, text):
    path = tmp_path / "sweep.py"
    path.write_text(HEADER + text)
    return path


@pytest.mark.fast
def test_all_configs_with_all_overrides_and_all_seeds():
    runs = plan(Sweep(["a/b.py:hint", "quickstart"], [{}, {"x.y": (1, 2)}], [3, 4]))
    assert [run.name for run in runs] == [
        *("b-hint-seed3", "b-hint-seed4", "b-hint-x.y=_1_2_-seed3", "b-hint-x.y=_1_2_-seed4"),
        *("quickstart-seed3", "quickstart-seed4"),
        *("quickstart-x.y=_1_2_-seed3", "quickstart-x.y=_1_2_-seed4"),
    ]
    assert runs[3].arguments == ["--config=a/b.py:hint", "--config.x.y=(1, 2)", "--config.seed=4"]


@pytest.mark.fast
def test_names_are_directories_that_differ():
    long = [{"a": "x" * 300 + end} for end in "ab"]
    names = [run.name for run in plan(Sweep(["c"], [*long, {"p": "../[*]\n$HOME"}], [0]))]
    assert len(set(names)) == 3 and max(map(len, names)) <= 120
    assert not set("".join(names)) & set("/[]*\n$")
    with pytest.raises(UserError, match="twice"):
        plan(Sweep(["c"], [{"a": 1}, {"a": 1}], [0]))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("None", "AttributeError"),
        ("Sweep([])", "has no run"),
        ("Sweep(['c'], seeds=[])", "has no run"),
        ("Sweep(['c'], overrides=[3])", "TypeError"),
        ("Sweep(", "SyntaxError"),
    ],
)
def test_what_is_no_sweep_gets_a_sentence(tmp_path, text, named):
    with pytest.raises(UserError, match=named):
        read_sweep(written(tmp_path, text))


@pytest.mark.fast
def test_bad_arguments_exit_with_2(tmp_path, capsys):
    file = str(written(tmp_path, "Sweep(['quickstart'])"))
    lines = ([], [file], ["nowhere.py", "--workdir=d"], [file, "--workdir=d", "--only=1"])
    for line in lines:
        assert main(line) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_failed_runs_are_listed_and_finished_ones_not_repeated(tmp_path, capsys):
    overrides = '[{"training.epochs": n, "report.tsne_points": 0} for n in (-1, 1)]'
    file = str(written(tmp_path, f'Sweep(["quickstart:vanilla"], {overrides}, [5])'))
    line = [file, f"--workdir={tmp_path / 'out'}"]
    bad, good = (
        f"quickstart-vanilla-training.epochs={n}-report.tsne_points=0-seed5" for n in (-1, 1)
    )
    assert main(line) == 1
    said = capsys.readouterr()
    assert f"1/2 {bad}\n  failed with exit code 2" in said.out and "done after" in said.out
    assert said.err.startswith(f"failed: {bad}: error: ") and "training.epochs" in said.err
    assert read(tmp_path / "out" / good).provenance.seed == 5
    assert "epoch 1/1" in (tmp_path / "out" / f"{good}.log").read_text()

    assert main([*line, "--list"]) == 0
    states = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert states == [["0", "to", "do", bad], ["1", "finished", good]]

    results = tmp_path / "out" / good / "results.json"
    before = results.stat().st_mtime_ns
    command = [sys.executable, "-m", "retrieval_jax", "sweep", *line, "--only=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert results.stat().st_mtime_ns == before


def test_a_signal_is_for_the_run_to_answer(tmp_path):
    program = textwrap.dedent("""
        import signal, sys, time
        from retrieval_jax import sweep
        child = "import signal, sys, time\\n" \\
                "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\\n" \\
                "print('ready', flush=True); time.sleep(60)"
        sweep._command = lambda run, workdir: [sys.executable, "-c", child]
        sys.exit(sweep.main(sys.argv[1:]))
    """)
    file = str(written(tmp_path, "Sweep(['a', 'b'])"))
    out = tmp_path / "out"
    line = [sys.executable, "-c", program, file, f"--workdir={out}"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, deadline = out / "a-seed0.log", time.monotonic() + 60
    while not (log.exists() and b"ready" in log.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    said, told = process.communicate(timeout=60)
    assert process.returncode == 75 and "again to resume" in told
    assert "2/2" not in said, "the second run was not begun"
