"""Faults other than kills: what a run makes of two starts, foreign files, full disks and clocks.

    python -m tools.faults [--kinds starts swaps disk clock hosts] [--output FILE]

starts  the same command twice at once in one workdir: one ends, one is told of the other.
swaps   a file of a run of another seed in a finished run's place: the run makes it again, or says
        that it is another run's, and goes on once the file is put back.
disk    the disk is full from each stage on: a sentence, and the run ends once there is room.
        Needs root, for a small file system.
clock   the clock is set forward by an hour every second.
hosts   three processes, one of which is killed in each stage.

A fault is survived if the run ends with the figures of one that nobody disturbed, and lost
otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from retrieval_jax.pipeline import STAGES
from retrieval_jax.runtime import provenance
from retrieval_jax.runtime.files import write_json
from tools import chaos

RECORD = chaos.ROOT / "experiments" / "chaos" / "faults.json"
ONE, THREE = chaos.Layout(1, 1), chaos.Layout(3, 1)
SETTINGS = ("training.epochs=2", "training.checkpoint_seconds=0.5", "report.tsne_points=100")
BATCH = "training.batch_size=48"  # which three devices share
SWAPPED = (
    *("config.json", "data.json", "checkpoints", "model.safetensors", "model.json"),
    *("embeddings.npz", "clusters.npz", "neighbours.npz", "map.npz", "examples.npz"),
    *("images.json", "metrics.jsonl", "results.json"),
)
CLOCK = """
import time
now, since, start = time.time, time.monotonic, time.monotonic()
time.time = lambda: now() + 3600 * int(since() - start)
"""


class Lost(Exception):
    """A fault that the run did not survive; the message says how."""


def start(workdir: Path, *settings: str, layout: chaos.Layout = ONE) -> list[subprocess.Popen]:
    """Starts all processes of a run."""
    own = chaos.keys_to_meet(layout.processes) if layout.processes > 1 else [[]]
    each = [[*SETTINGS, BATCH, *settings, *keys] for keys in own]
    return chaos.started(workdir, layout.devices, each)


def ended(workdir: Path, codes: Sequence[int], *settings: str) -> str:
    """Runs to the end; what it said. Lost with another exit code or a traceback."""
    (code,) = chaos.finish(start(workdir, *settings))
    said = chaos.log_of(workdir, 0).read_text()
    if code not in codes or "Traceback" in said:
        raise Lost(f"exit code {code}: {said[-500:]}")
    return said


def same(workdir: Path, whole: Path) -> None:
    """Lost unless the figures are those of the undisturbed run."""
    if chaos.figures(workdir) != chaos.figures(whole):
        raise Lost("other figures")


def two_starts(folder: Path, whole: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """The second at the same instant, and while the first trains."""

    def twice(name: str, seconds: float) -> None:
        workdir, link = folder / "first" / name, folder / f"link {name}"
        workdir.mkdir(parents=True)
        link.symlink_to(workdir)  # another path: another log
        processes = start(workdir)
        time.sleep(seconds)
        processes += start(link)
        codes = chaos.finish(processes)
        if sorted(codes) != [0, 2]:
            raise Lost(f"exit codes {codes}")
        refused = chaos.log_of((workdir, link)[codes.index(2)], 0).read_text()
        if "another process is running here" not in refused:
            raise Lost(refused[-500:])
        same(workdir, whole)

    for name, seconds in (("at once", 0.0), ("later", 6.0)):
        yield name, lambda name=name, seconds=seconds: twice(name, seconds)


def swaps(folder: Path, whole: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every file of a run of another seed."""
    other = folder / "other"
    ended(other, [0], "seed=1")

    def swapped(name: str) -> None:
        workdir = folder / f"swapped {name}"
        shutil.copytree(whole, workdir)
        _replace(workdir / name, other / name)
        said = ended(workdir, [0, 2])
        if "error:" in said:
            if "another run" not in said and "with another config" not in said:
                raise Lost(said[-500:])
            _replace(workdir / name, whole / name)
            ended(workdir, [0])
        same(workdir, whole)

    for name in SWAPPED:
        yield name, lambda name=name: swapped(name)


def full_disks(folder: Path, whole: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A small file system that is filled when a stage begins."""

    def filled(stage: str) -> None:
        disk = folder / f"disk {stage}"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=True)
        try:
            workdir = disk / "run"
            processes = start(workdir)
            log = chaos.log_of(workdir, 0)
            # The log is on the full disk too.
            while f"{stage} …" not in log.read_text() and processes[0].poll() is None:
                time.sleep(0.002)
            with (disk / "filler").open("wb") as filler:
                try:
                    while True:
                        filler.write(bytes(1 << 16))
                        filler.flush()
                except OSError:
                    pass
            (code,) = chaos.finish(processes)
            if code not in (0, 2):
                raise Lost(f"exit code {code}: {log.read_text()[-500:]}")
            (disk / "filler").unlink()
            ended(workdir, [0])
            same(workdir, whole)
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)

    for stage in STAGES:
        yield stage, lambda stage=stage: filled(stage)


def clocks(folder: Path, whole: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Python's clock, an hour later every second."""

    def forward() -> None:
        patch = folder / "patch"
        patch.mkdir()
        (patch / "sitecustomize.py").write_text(CLOCK)
        before = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = f"{patch}{os.pathsep}{before}"
        try:
            ended(folder / "clock", [0])
        finally:
            os.environ["PYTHONPATH"] = before
        same(folder / "clock", whole)

    yield "an hour every second", forward


def three_hosts(folder: Path, whole: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """One of three is killed; the others notice, and all resume."""
    whole = folder / "whole 3"
    chaos.finish(start(whole, layout=THREE))
    draw = random.Random(0)

    def killed(number: int, stage: str) -> None:
        workdir = folder / f"three {stage}"
        processes = start(workdir, layout=THREE)
        victim = number % 3
        while f"{stage} …" not in chaos.log_of(workdir, 0).read_text():
            if all(process.poll() is not None for process in processes):
                raise Lost(f"never came to {stage}")
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.5))
        processes[victim].kill()
        codes = chaos.finish(processes)
        del codes[victim]
        # JAX aborts those that lose the first; 0: it had ended for them.
        if not set(codes) <= {75, 0} | ({-6} if victim == 0 else set()):
            raise Lost(f"the others ended with {codes}")
        if any(chaos.finish(start(workdir, layout=THREE))):
            raise Lost(chaos.log_of(workdir, 0).read_text()[-500:])
        same(workdir, whole)

    for number, stage in enumerate(STAGES):
        yield stage, lambda number=number, stage=stage: killed(number, stage)


KINDS = {
    "starts": two_starts,
    "swaps": swaps,
    "disk": full_disks,
    "clock": clocks,
    "hosts": three_hosts,
}


def main() -> int:
    """Tries all faults and writes the record; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--output", type=epath.Path, default=RECORD)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ended(folder / "whole", [0])
        for kind in options.kinds:
            for case, fault in KINDS[kind](folder, folder / "whole"):
                begin, how = time.monotonic(), ""
                try:
                    fault()
                except Lost as lost:
                    how = str(lost)
                row = {"kind": kind, "case": case, "survived": not how, "how": how}
                rows.append(row | {"seconds": round(time.monotonic() - begin, 1)})
                print(f"{kind:7} {case:24} {'survived' if not how else f'LOST: {how}'}", flush=True)
                record = {
                    "settings": [*SETTINGS, BATCH],
                    "versions": provenance.versions(),
                    "device": provenance.device(),
                    "faults": rows,
                }
                write_json(options.output, record)
    return int(not all(row["survived"] for row in rows))


def _replace(target: Path, source: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


if __name__ == "__main__":
    sys.exit(main())
