"""Kills digits runs at random moments, lets them resume, and compares what they end with.

    python -m tools.chaos [--runs 20] [--seed 0] [--output experiments/chaos/chaos.json]

Half of the runs are one process with one device, half two processes with two devices each, on
loopback. Each is killed by SIGKILL a few times, all its processes or one of them: in turn in every
stage, while a checkpoint is being written, and while a stage's file is. Then it is left to end, and
its `results.json` is compared with that of a run nobody disturbed: all scores, losses, sizes and
counts, on one process bit for bit, on several too, times and dates aside. Exits with 1 where one
differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from retrieval_jax.pipeline import STAGES
from retrieval_jax.runtime import provenance
from retrieval_jax.runtime.files import write_json

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "experiments" / "chaos" / "chaos.json"
SETTINGS = ("training.epochs=3", "training.checkpoint_seconds=0.5", "report.tsne_points=200")
LIMIT = 600  # seconds that a start may take


class Layout(NamedTuple):
    """How the devices of a run are spread."""

    processes: int
    devices: int  # of each process

    def __str__(self) -> str:
        return f"{self.processes} × {self.devices}"


LAYOUTS = Layout(1, 1), Layout(2, 2)


class Moment(NamedTuple):
    """When to kill: once this is true of the workdir, and a random while later."""

    name: str
    come: Callable[[Path], bool]
    longest: float  # seconds of that while


def moments() -> list[Moment]:
    """Every stage, and the middle of both kinds of saves."""

    def said(stage: str) -> Callable[[Path], bool]:
        return lambda workdir: f"{stage} …" in log_of(workdir, 0).read_text()

    def half_a_checkpoint(workdir: Path) -> bool:
        return any((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))

    def half_a_file(workdir: Path) -> bool:
        return any(workdir.glob(".*.npz.*.tmp"))

    longest = {"train": 8.0, "embed": 1.0, "cluster": 3.0, "score": 0.3, "rank": 4.0}
    found = [Moment(stage, said(stage), longest.get(stage, 1.5)) for stage in STAGES]
    # Where they come in a run: later they would not come again.
    found.insert(STAGES.index("train") + 1, Moment("a checkpoint's save", half_a_checkpoint, 0.0))
    found.insert(len(found) - 1, Moment("a file's save", half_a_file, 0.0))
    return found


def log_of(workdir: Path, process: int) -> Path:
    """Standard output and error of a process' last start."""
    return workdir.with_name(f"{workdir.name}.{process}.log")


def keys_to_meet(processes: int) -> list[list[str]]:
    """The settings by which each of several processes on loopback finds the others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        [
            f"distributed.coordinator=127.0.0.1:{port}",
            f"distributed.processes={processes}",
            f"distributed.process={i}",
        ]
        for i in range(processes)
    ]


def started(
    workdir: Path, devices: int, settings: Sequence[Sequence[str]]
) -> list[subprocess.Popen]:
    """Starts the digits experiment in a process, with so many devices, for each of the settings."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "NPROC": "16",  # XLA's threads: collectives of several devices need as many
        "PYTHONUNBUFFERED": "1",
    }
    processes = []
    for i, own in enumerate(settings):
        command = [
            *(sys.executable, "-m", "retrieval_jax.main"),
            *(f"--config={ROOT / 'configs' / 'quickstart.py'}:hint", f"--workdir={workdir}"),
            *(f"--config.{setting}" for setting in own),
        ]
        with log_of(workdir, i).open("w") as log:
            run = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        processes.append(run)
    return processes


def start(workdir: Path, layout: Layout) -> list[subprocess.Popen]:
    """Starts all processes of a run."""
    own = keys_to_meet(layout.processes) if layout.processes > 1 else [[]]
    return started(workdir, layout.devices, [[*SETTINGS, *keys] for keys in own])


def finish(processes: list[subprocess.Popen]) -> list[int]:
    """Exit codes of processes that are left alone."""
    try:
        return [process.wait(LIMIT) for process in processes]
    finally:
        kill(processes)


def kill(processes: list[subprocess.Popen]) -> None:
    """SIGKILL, and no process left."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def disturb(workdir: Path, layout: Layout, moment: Moment, draw: random.Random) -> str | None:
    """Starts a run and kills it at the moment; None where it ended before."""
    processes = start(workdir, layout)
    deadline = time.monotonic() + LIMIT
    try:
        while not moment.come(workdir):
            if all(process.poll() is not None for process in processes):
                return None
            if time.monotonic() > deadline:
                raise TimeoutError(f"{workdir} never came to {moment.name}")
            time.sleep(0.001)
        time.sleep(draw.uniform(0, moment.longest))
        if all(process.poll() is not None for process in processes):
            return None
        victim = draw.randrange(layout.processes + 1)  # the last: all at once
        if victim < layout.processes:
            processes[victim].send_signal(signal.SIGKILL)
            others = [process for i, process in enumerate(processes) if i != victim]
            codes = {process.wait(LIMIT) for process in others}  # they must notice
            # 75: resume me. JAX aborts those that lose the first; 0: it had ended for them.
            if not codes <= {75, 0} | ({-signal.SIGABRT} if victim == 0 else set()):
                raise SystemExit(f"{workdir}: the others ended with {codes}")
        return moment.name
    finally:
        kill(processes)


def figures(workdir: Path) -> dict[str, Any]:
    """What must be the same: all of `results.json` but times, dates and the command.

    Checksums are of files that hold times.
    """
    results = json.loads((workdir / "results.json").read_text())
    for row in results["training"]["history"]:
        del row["seconds"]
    del results["seconds"], results["crc32"], results["files"]
    results["training"].pop("first_step", None)  # not there where nothing was left to train
    provenance = results.pop("provenance")
    del provenance["config"]["distributed"]
    kept = {key: provenance[key] for key in ("config", "versions", "device", "seed", "data")}
    return results | kept


def one_run(workdir: Path, layout: Layout, first: int, draw: random.Random) -> list[str]:
    """Kills a new run at three moments, one of them given, and lets it end: the kills."""
    moment = moments()
    chosen = [first % len(moment), *(draw.randrange(len(moment)) for _ in range(2))]
    kills = []
    # In the order of the stages, or the later ones would be over.
    for number in sorted(chosen):
        kills.append(disturb(workdir, layout, moment[number], draw))
    codes = finish(start(workdir, layout))
    if any(codes):
        raise SystemExit(f"{workdir} ended with {codes}:\n{log_of(workdir, 0).read_text()}")
    return [name for name in kills if name is not None]


def main() -> int:
    """Does all runs and writes the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=epath.Path, default=RECORD)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    rows, same = [], 0
    with tempfile.TemporaryDirectory() as folder:
        expected = {}
        for layout in LAYOUTS:
            whole = Path(folder) / f"whole {layout.processes}"
            if any(finish(start(whole, layout))):
                raise SystemExit(log_of(whole, 0).read_text())
            expected[layout] = figures(whole)
        for i in range(options.runs):
            layout = LAYOUTS[i % len(LAYOUTS)]
            workdir = Path(folder) / f"run {i}"
            begin = time.monotonic()
            kills = one_run(workdir, layout, i // len(LAYOUTS), draw)
            equal = figures(workdir) == expected[layout]
            same += equal
            row = {"layout": str(layout), "killed in": kills, "same": equal}
            rows.append(row | {"seconds": round(time.monotonic() - begin, 1)})
            print(
                f"{i + 1:2}  {layout}  killed in {', '.join(kills)}: "
                f"{'same' if equal else 'DIFFERENT'}",
                flush=True,
            )
            record = {
                "command": f"python -m tools.chaos --runs {options.runs} --seed {options.seed}",
                "settings": list(SETTINGS),
                "versions": provenance.versions(),
                "device": provenance.device(),
                "same": same,
                "runs": rows,
            }
            write_json(options.output, record)
    print(f"{same} of {options.runs} ended with the figures of the undisturbed run")
    return int(same != options.runs)


if __name__ == "__main__":
    sys.exit(main())
