"""A whole run of `configs/cifar10_hint.py`, t-SNE aside, beside the notebook's own calls.

    python -m benchmarks.whole_run --data DIR [--epochs N]

Each in a process of its own, one after the other, with empty caches, then the first process again,
now with full ones, up to its first training step. Prints a Markdown table; time is that of the
whole process, from command to exit, and memory the most that it ever held.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from benchmarks.interleaved import best_blas_kernels

CONFIG = Path(__file__).parents[1] / "configs" / "cifar10_hint.py"


class Finished(NamedTuple):
    """What a process left."""

    seconds: float
    peak_mb: float  # resident memory, 1e6 bytes
    output: str
    cpu_seconds: float  # of all its threads


def finished(command: list[str], environment: dict[str, str]) -> Finished:
    """Runs a command to its end.

    Raises:
      SystemExit: it failed; what it printed goes before.
    """
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=sys.stderr)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)  # it is waited for
        log.seek(0)
        output = log.read()
    if status:
        raise SystemExit(f"{output}\n{command} ended with {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return Finished(seconds, usage.ru_maxrss * 1024 / 1e6, output, cpu)


def seconds_to_first_step(command: list[str], environment: dict[str, str]) -> str:
    """What a run says of its first step; it is ended there."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            return next(line for line in process.stdout if "first step" in line).strip()
        finally:
            process.kill()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="TFDS directory with CIFAR-10")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    if find_spec("keras") is None:
        parser.error("the notebook needs Keras: pip install -c constraints.txt -e '.[bench]'")
    best_blas_kernels()
    with tempfile.TemporaryDirectory() as temporary:

        def ours(name: str) -> list[str]:
            return [
                *(sys.executable, "-m", "retrieval_jax.main", f"--config={CONFIG}"),
                f"--workdir={temporary}/{name}",
                f"--config.data.directory={options.data}",
                f"--config.compilation_cache={temporary}/programs",
                f"--config.training.epochs={options.epochs}",
                "--config.report.tsne_points=0",
            ]

        def home(name: str) -> dict[str, str]:
            """An environment with a cache of its own."""
            return os.environ | {"XDG_CACHE_HOME": f"{temporary}/{name} cache"}

        run = finished(ours("run"), home("run"))
        results = json.loads(Path(temporary, "run", "results.json").read_text())
        again = seconds_to_first_step(ours("again"), home("run"))
        command = [sys.executable, "-m", "benchmarks.notebook"]
        command += ["--data", str(options.data), "--epochs", str(options.epochs)]
        notebook = finished(command, home("notebook"))
    theirs = json.loads(notebook.output.splitlines()[-1])
    print(f"{results['provenance']['device']}; {results['provenance']['versions']}")
    print(f"{theirs['versions']}; epochs: {options.epochs}\n")
    print("| | ours | notebook | ours / notebook |\n|---|---|---|---|")

    def row(work: str, a: float, b: float, unit: str) -> None:
        print(f"| {work} | {a:,.1f} {unit} | {b:,.1f} {unit} | {a / b:.2f} |")

    row("whole run", run.seconds, notebook.seconds, "s")
    row("peak memory", run.peak_mb, notebook.peak_mb, "MB")
    for name in ("data", "train", "embed", "cluster", "score", "rank"):
        row(name, results["seconds"][name], theirs["seconds"][name], "s")
    for name, seconds in (("ours", results["seconds"]), ("notebook", theirs["seconds"])):
        stages = ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
        print(f"\n{name}, seconds: {stages}")
    print(f"\nsecond run: {again}")
    clusters = results["scores"]["clustering"]["gallery"]
    scores = {name: clusters[name]["value"] for name in ("nmi", "ri", "ari")}
    found = results["scores"]["retrieval"]["cluster"]
    for measure in ("precision", "map"):
        cuts = found[f"{measure}_at"].items()
        scores |= {f"{measure}@{cut}": score["value"] for cut, score in cuts}
    loss = results["training"]["history"][-1]["validation"]["loss"]
    print(f"scores: ours {scores}, validation loss {loss}; notebook {theirs['scores']}")


if __name__ == "__main__":
    main()
